"""One run on any number of devices and processes: real collectives, the same numbers."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tolerances import assert_within, float32_error
from xla_flags import with_cpu_devices

from experiments import digits
from experiments.errors import SettingsError
from experiments.run import devices, program, setup
from experiments.run.loop import run
from experiments.settings import Settings
from experiments.store.checkpoints import Checkpoints
from experiments.store.manifests import verify
from lvae_jax import LadderVAE, objective, training

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[3]

GLOOS_WORDS = re.compile(
    r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :|\d|\s"
)
"""What connects processes prints these, two threads of it in pieces of lines."""

# Trains an epoch of two replicas on meshes of 1 to 8 devices, and prints the parameters of each;
# and by how much other programs may differ: a dozen layers and sums over 160 images round.
ON_MESHES = """
import functools, json, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from experiments.run import devices
from lvae_jax import LadderVAE, training
from lvae_jax.data import binarise
from tolerances import value_and_error

assert jax.device_count() == 8
model, optimizer = LadderVAE(20, (4,), (16,)), training.make_optimizer(1.0, adam_epsilon=1e-3)
images = np.random.default_rng(0).integers(0, 256, (480, 20), np.uint8)
root = jnp.stack([jax.random.key(0), jax.random.key(1)])
results = {}
for replica, data in ((1, 1), (2, 1), (2, 4)):
    mesh = jax.make_mesh((replica, data), training.MESH_AXES, axis_types=(AxisType.Auto,) * 2,
                         devices=jax.devices()[: replica * data])
    keys = devices.put(root, mesh, "replica")
    init = functools.partial(training.init_state, model, optimizer)
    state = jax.jit(init, out_shardings=keys.sharding)(keys)
    arguments = (model, optimizer, binarise, state, devices.put(images, mesh), keys,
                 *(devices.put(np.float32(v), mesh, "replica") for v in ([1, 0.5], [0.01, 0.003])))
    with jax.set_mesh(mesh):
        compiled = training.train_replicas.lower(*arguments, batch_size=160).compile()

    def values(params):
        # The parameters and metrics of each replica after the epoch.
        start = jax.jit(init, out_shardings=keys.sharding)(keys)
        params = jax.device_put(jax.tree.map(np.float32, params), keys.sharding)
        with jax.set_mesh(mesh):
            trained, metrics = compiled(start._replace(params=params), *arguments[4:])
        host = devices.fetch((trained.params, metrics), mesh)
        return np.concatenate([leaf.reshape(2, -1) for leaf in jax.tree.leaves(host)], axis=1)

    initial = devices.fetch(state.params, mesh)
    if mesh.size == 1:
        _, error = value_and_error(values, initial, roundings=64)
    name, text = f"{replica}x{data}", compiled.as_text()
    results[name] = {
        "values": values(initial).tolist(),
        "error": error.tolist(),
        "largest_batch": max(map(int, re.findall(r"f32\\[(?:1,|2,)*(\\d+),20\\]", text))),
        "all_reduces": text.count("all-reduce("),
        "devices": len(state.step.sharding.device_set),
    }
print(json.dumps(results))
"""


EPOCHS, STEPS, LEARNING_RATE = 6, 18, 1 / 150


def error_of_training(steps: int) -> float:
    """Of a parameter of two runs whose gradients, of elements up to about one, round differently.

    With an epsilon of one Adam hardly divides them, and a step makes the difference before it
    larger by at most a fifteenth: three times in all the steps of a run below.
    """
    return (16 / 15) ** steps * steps * LEARNING_RATE * float32_error(32, 1.0)


SUM_OF_GRADIENT = 200
"""By how much a bound, in nats, changes by parameters that change by one each, at most."""


def environment(virtual_devices: int) -> dict[str, str]:
    """Of a process with so many devices."""
    return os.environ | {
        "XLA_FLAGS": with_cpu_devices(virtual_devices),
        "JAX_PLATFORMS": "cpu",
    }


@pytest.fixture(scope="module")
def on_meshes():
    process = subprocess.run(
        [sys.executable, "-c", ON_MESHES],
        env=environment(8) | {"PYTHONPATH": str(ROOT / "tests")},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["2x1", "2x4"])
def test_an_epoch_on_several_devices_is_that_on_one_to_rounding(on_meshes, mesh):
    assert on_meshes[mesh]["devices"] == np.prod([int(n) for n in mesh.split("x")])
    on_one = on_meshes["1x1"]
    assert_within(on_meshes[mesh]["values"], on_one["values"], on_one["error"])
    # The two replicas are two.
    assert np.abs(np.subtract(*on_meshes[mesh]["values"])).max() > 0.1


@pytest.mark.parametrize("mesh", ["1x1", "2x1", "2x4"])
def test_a_batch_is_split_and_only_over_data_is_anything_reduced(on_meshes, mesh):
    data = int(mesh[2:])
    # No device computes on more than its part of the 160 examples of 20 pixels.
    assert on_meshes[mesh]["largest_batch"] == 160 // data
    assert (on_meshes[mesh]["all_reduces"] > 0) == (data > 1)


def test_gradients_of_the_runs_below_are_as_large_as_their_tolerances_assume():
    model = LadderVAE(64, (4,), (16,))
    grey = digits.load(digits.DEFAULTS).train_images[:480].reshape(480, 64)
    x = jax.random.bernoulli(jax.random.key(0), grey)
    state = training.init_state(model, training.make_optimizer(), jax.random.key(1))
    gradients = jax.jit(objective.loss_and_gradients, static_argnums=0)(
        model, state.params, x, jax.random.key(2)
    )[2]
    sizes = np.concatenate([np.abs(leaf).ravel() for leaf in jax.tree.leaves(gradients)])
    assert sizes.max() < 1.5
    assert sizes.sum() < SUM_OF_GRADIENT


def error_of_bound(steps: int, bound: np.ndarray) -> np.ndarray:
    """In nats, with the parameters after so many steps."""
    size = 64 * np.log(2) + np.abs(bound)  # of the terms that a bound adds up
    return SUM_OF_GRADIENT * error_of_training(steps) + float32_error(64, size)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start(workdir: Path, *flags: str, virtual_devices: int = 1) -> subprocess.Popen:
    arguments = [
        "--latent_sizes=4", "--hidden_sizes=16", f"--epochs={EPOCHS}", "--warmup_epochs=2",
        "--eval_every=2", "--eval_samples=20", "--batch_size=480",
        f"--learning_rate={LEARNING_RATE}", "--adam_epsilon=1",
        f"--workdir={workdir}", *flags,
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.digits", *arguments],
        env=environment(virtual_devices),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SETTINGS = dataclasses.replace(
    digits.DEFAULTS, depth=1, latent_sizes=(4,), hidden_sizes=(16,), epochs=EPOCHS,
    warmup_epochs=2, eval_every=2, eval_samples=20, batch_size=480, learning_rate=LEARNING_RATE,
    adam_epsilon=1.0,
)  # fmt: skip
"""Those of `start`."""


def finish(process: subprocess.Popen) -> tuple[str, str]:
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out, errors


def numbers_of(workdir: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What a run found: its parameters; and its metrics and results, in nats."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(EPOCHS))
    results = json.loads((workdir / "results.json").read_text())
    checkpoints = Checkpoints(workdir / "checkpoints")
    params, _ = checkpoints.read("params")
    checkpoints.close()
    import jax

    return list(map(np.asarray, jax.tree.leaves(params))), [
        np.array([[line["train_elbo"], *line["kl_per_layer"]] for line in lines]),
        np.array([line["test_elbo"] for line in lines if "test_elbo" in line]),
        np.array([results["test_log_likelihood"], results["train_elbo"]]),
    ]


def start_both(workdir: Path, *flags: str) -> list[subprocess.Popen]:
    """Two processes of one run, with two devices each."""
    connect = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2"]
    return [
        start(workdir, *flags, *connect, f"--process_id={i}", virtual_devices=2) for i in range(2)
    ]


def step_at_signal(both: list[subprocess.Popen], workdir: Path) -> int:
    """Sends a signal to the second of two processes; returns the step after which both end."""
    first, second = both
    assert any(" took until " in line for line in first.stderr)  # the first steps
    second.send_signal(signal.SIGTERM)
    steps = set()
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 128 + signal.SIGTERM, errors
        said = re.search(r"error: SIGTERM: stopped after step (\d+), which is", errors)
        assert said, errors
        steps.add(int(said[1]))
    (step,) = steps
    assert verify(workdir / "checkpoints" / str(step), step) is None
    return step


def test_a_signal_to_one_of_two_processes_ends_both_with_what_one_process_computes(tmp_path):
    both = start_both(tmp_path, "--epochs=1000", "--eval_every=0")
    step = step_at_signal(both, tmp_path)
    settings = dataclasses.replace(SETTINGS, epochs=1000)
    alone = setup.make_experiment(settings, digits.load(settings))
    training_program, state = program.compile_and_initialise(alone)
    epochs = step * EPOCHS // STEPS
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(epochs))
    for epoch, line in enumerate(lines):
        batches = training_program.batches(state)
        state, metrics = training_program.take_steps(state, batches, epoch)
        expected = np.asarray(metrics.train_elbo)
        steps = (epoch + 1) * STEPS // EPOCHS
        assert_within([line["train_elbo"]], expected, error_of_bound(steps, expected))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    params, _ = checkpoints.read("params")
    checkpoints.close()
    for found, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        assert_within(found, leaf, error_of_training(step) + float32_error(step, leaf))


def test_a_process_whose_peer_is_killed_says_so_in_one_line_and_ends(tmp_path):
    first, second = start_both(tmp_path, "--epochs=100000", "--eval_every=0")
    assert any(" took until " in line for line in first.stderr)  # the first steps
    second.kill()
    _, errors = first.communicate()
    second.communicate()
    assert first.returncode == 2, errors
    line = errors.splitlines()[-1]
    assert line.startswith("error: an exchange with the other processes of this run failed (")
    assert line.endswith("start all again: they resume from the last checkpoint")
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_two_processes_that_a_signal_ended_resume_to_find_what_one_finds(tmp_path):
    settings = dataclasses.replace(SETTINGS, replicas=2, workdir=str(tmp_path / "alone"))
    run(settings, digits.load(settings))
    workdir = tmp_path / "together"
    # It saves after every epoch, which gives the signal time.
    both = start_both(workdir, "--replicas=2", "--checkpoint_seconds=0")
    step = step_at_signal(both, workdir)

    both = start_both(workdir, "--replicas=2")
    (out, errors), (other_out, other_errors) = map(finish, both)
    assert f"resuming after epoch {EPOCHS * step // STEPS}" in errors
    assert "4 x cpu" in errors
    assert "in 2 processes" in errors
    assert "is finished" in out
    # The second process says nothing of its own.
    assert GLOOS_WORDS.sub("", other_out) == ""
    for word in ("epoch", "image"):
        assert word in errors
        assert word not in other_errors
    (params, nats), (expected_params, expected_nats) = (
        numbers_of(tmp_path / name) for name in ("together", "alone")
    )
    for found, expected in zip(params, expected_params, strict=True):
        assert_within(found, expected, error_of_training(STEPS) + float32_error(STEPS, expected))
    for found, expected in zip(nats, expected_nats, strict=True):
        assert_within(found, expected, error_of_bound(STEPS, expected))


# Calls what may fail on one process only, and prints what each process gets; then fails for good.
FAILING = """
import dataclasses, sys
from pathlib import Path
import jax, records
from experiments import digits, processes
from experiments.cli import errors_in_one_line
from experiments.run import devices
from experiments.run.loop import run
from experiments.settings import Settings
from experiments.store.workdir import Workdir
from lvae_jax.data import DataError

address, process, folder = sys.argv[1:]

def fail_on(index):
    if jax.process_index() == index:
        raise DataError(f"process {index} has no data; give some")
    return jax.process_index()

def shown(call):
    try:
        print(call(), file=sys.stderr)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)

with errors_in_one_line():
    devices.start_processes(
        Settings(coordinator_address=address, num_processes=2, process_id=int(process)))
    shown(lambda: devices.make_mesh(replicas=1, batch_size=99))
    workdir = Workdir(Path(folder), {"dataset": "digits", "settings": {}})
    workdir.create()
    processes.by_first((Path(folder) / "metrics.jsonl").mkdir)
    shown(lambda: processes.first_alone(lambda: fail_on(2)))
    shown(lambda: processes.first_alone(lambda: fail_on(1)))
    shown(lambda: processes.by_first(lambda: fail_on(0)))
    shown(lambda: processes.by_first(lambda: fail_on(1)))
    shown(lambda: workdir.append_metrics(records.epoch(0)))
    shown(lambda: processes.agree(2**24 + 1 - jax.process_index(), jax.process_index()))
    shown(lambda: processes.exchange({"of": ["first", "\\u00e9"][jax.process_index()]}))
    shown(lambda: processes.everywhere(lambda: fail_on(1)))
    settings = dataclasses.replace(
        digits.DEFAULTS, workdir=folder + "s", seed=int(process),
        learning_rate=[0.1, 0.25][int(process)])
    shown(lambda: run(settings, digits.load(settings)))
    processes.first_alone(lambda: fail_on(0))
"""

ANOTHER = "another process of this run failed; its own line says why"


def test_a_failure_of_one_process_is_one_line_on_each(tmp_path):
    address = f"localhost:{free_port()}"
    together = [
        subprocess.Popen(
            [sys.executable, "-c", FAILING, address, str(index), str(tmp_path / "run")],
            env=environment(1) | {"PYTHONPATH": str(ROOT / "tests")},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,  # Gloo prints there
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    errors, other_errors = (process.communicate()[1].splitlines() for process in together)
    assert [process.returncode for process in together] == [2, 2], errors + other_errors
    no_data = "process {} has no data; give some"
    cannot = f"cannot write to {tmp_path / 'run' / 'metrics.jsonl'} (Is a directory)"
    cannot_share = (
        "SettingsError: --batch_size=99 --replicas=1: cannot be split over 2 devices of 2 "
        "processes; their product must be a multiple of 2"
    )
    assert errors.pop(0) == other_errors.pop(0) == cannot_share
    differ = (
        "SettingsError: the processes of this run differ: learning_rate is 0.1 in process 0 and "
        "0.25 in process 1; seed is 0 in process 0 and 1 in process 1. Give all of them the same "
        "settings and data"
    )
    assert errors == [
        "0", f"RunError: {ANOTHER}", f"DataError: {no_data.format(0)}", "0",
        f"WorkdirError: {cannot}; repair it, or give another path", "(16777217, 1)",
        "[{'of': 'first'}, {'of': 'é'}]", f"RunError: {ANOTHER}", differ,
        f"error: {no_data.format(0)}",
    ]  # fmt: skip
    assert other_errors == [
        "1", f"DataError: {no_data.format(1)}", f"RunError: {ANOTHER}", "None",
        f"RunError: {ANOTHER}", "(16777217, 1)", "[{'of': 'first'}, {'of': 'é'}]",
        f"DataError: {no_data.format(1)}", differ, f"error: {ANOTHER}",
    ]  # fmt: skip
    assert not (tmp_path / "runs").exists()


def test_a_mesh_of_one_device_serves_any_batch():
    mesh = devices.make_mesh(replicas=3, batch_size=7)
    assert mesh.axis_names == ("replica", "data")
    assert mesh.size == 1


BATCH_SCRIPT = {
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
}  # fmt: skip
"""What sbatch sets for a script, which is one process."""


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        (BATCH_SCRIPT, False),
        (BATCH_SCRIPT | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0"}, True),  # srun
        (BATCH_SCRIPT | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ],
)
def test_processes_are_connected_where_a_scheduler_started_several(variables, several, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "TPU")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args: calls.append(args))
    devices.start_processes(Settings())
    assert calls == [()] * several


def test_a_coordinator_that_is_given_is_used_as_given(monkeypatch):
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args: calls.append(args))
    devices.start_processes(
        Settings(coordinator_address="host:1234", num_processes=3, process_id=2)
    )
    assert calls == [("host:1234", 3, 2)]


def test_a_coordinator_that_cannot_be_reached_is_named(monkeypatch):
    def initialize(*_):
        raise RuntimeError("no answer")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(SettingsError, match=r"--coordinator_address=host:1: no answer; start all"):
        devices.start_processes(Settings(coordinator_address="host:1"))


ALONE = """
import sys
from experiments.run import devices
from experiments.settings import Settings
assert devices.CONNECT_SECONDS < 60
devices.CONNECT_SECONDS = 3.0
address, process = sys.argv[1:]
devices.start_processes(
    Settings(coordinator_address=address, num_processes=2, process_id=int(process))
)
"""


@pytest.mark.parametrize("process", ["0", "1"])
def test_a_process_whose_peer_never_comes_ends_in_one_line(process):
    address = f"localhost:{free_port()}"
    result = subprocess.run(
        [sys.executable, "-c", ALONE, address, process],
        cwd=ROOT, env=environment(1), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: --coordinator_address={address}: not all processes connected; start all 2 "
        "processes, with HOST:PORT of process 0\n"
    )


USES = """
import sys
from experiments import certify, cli, digits, impute, outliers, probe

for use, settings in (
    (certify.certify, certify.CertifySettings()),
    (impute.impute, impute.ImputeSettings()),
    (outliers.outliers, outliers.OutlierSettings()),
    (probe.probe, probe.ProbeSettings()),
):
    try:
        with cli.errors_in_one_line():
            use(settings, "run")
    except SystemExit as end:
        print(end.code)
sys.argv = ["digits", "--workdir=run"]
try:
    cli.main("digits", digits.load, digits.DEFAULTS)
except SystemExit as end:
    print(end.code)
"""


def test_devices_that_are_not_there_are_one_line_of_a_run_and_every_use_of_a_trained_model(
    tmp_path,
):
    result = subprocess.run(
        [sys.executable, "-c", USES], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=environment(1) | {"JAX_PLATFORMS": "cuda", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["2"] * 5
    lines = result.stderr.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert line.startswith("error: JAX_PLATFORMS=cuda: JAX cannot use these devices (")
    assert list(tmp_path.iterdir()) == []


def test_every_key_of_evaluation_is_of_threefry_whatever_jaxs_default_is():
    dataset = digits.load(digits.DEFAULTS)
    made = setup.make_experiment(digits.DEFAULTS, dataset)
    expected = jax.random.key_data(made.key(1, "test_elbo", 3))
    with jax.default_prng_impl("rbg"):
        key = made.key(1, "test_elbo", 3)
    assert str(jax.random.key_impl(key)) == "threefry2x32"
    np.testing.assert_array_equal(jax.random.key_data(key), expected)
