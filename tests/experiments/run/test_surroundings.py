"""Runs where people have them: batch scripts, notebooks, containers, threads, narrow consoles."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tolerances import assert_within, float32_error
from xla_flags import with_cpu_devices

from experiments.run.loop import run
from experiments.settings import Settings
from lvae_jax.data import Dataset

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[3]

TINY = [
    "--latent_sizes=2", "--hidden_sizes=4", "--epochs=1", "--batch_size=750", "--eval_samples=2",
    "--eval_subset=5", "--eval_every=0",
]  # fmt: skip

# A user without a home directory, and without an entry in the system's list of users.
NO_HOME = """
import os, pwd, runpy, sys

def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = unknown
for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
    os.environ.pop(name, None)
runpy.run_module("experiments.digits", run_name="__main__", alter_sys=True)
"""


def finished(workdir: Path) -> dict:
    assert (workdir / "report.html").exists()
    return json.loads((workdir / "results.json").read_text(encoding="utf-8"))


def environment(**variables: str) -> dict[str, str]:
    one_cpu = {"XLA_FLAGS": with_cpu_devices(1), "JAX_PLATFORMS": "cpu"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return os.environ | one_cpu | {"PYTHONPATH": path} | variables


def test_a_run_ends_well_in_a_batch_script_a_notebook_and_a_container_without_stderr(tmp_path):
    """All at once: none of them may matter."""
    surroundings = environment(
        # What a notebook's !python inherits.
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        PYTHONIOENCODING="ascii",
        SLURM_JOB_ID="77", SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_LOCALID="0",
    )  # fmt: skip
    command = [sys.executable, "-c", NO_HOME, *TINY, f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command],
        cwd=ROOT, env=surroundings, stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert result.returncode == 0
    assert b"test log-likelihood -" in result.stdout
    assert b" ? " in result.stdout  # the plus-minus sign, as far as ASCII goes
    assert finished(tmp_path / "run")["eval_images"] == 5


FIGURE = """
import sys
from pathlib import Path
import numpy as np
from experiments.show import figures
picture = np.zeros((21, 21), np.uint8)
figures.write_png(Path(sys.argv[1]), figures.labelled_rows(picture, ["one", "two"]))
"""


def test_a_figure_needs_no_display_whatever_backend_is_asked_for(tmp_path):
    command = [sys.executable, "-c", FIGURE, str(tmp_path / "figure.png")]
    surroundings = environment(MPLBACKEND="tkagg")
    surroundings.pop("DISPLAY", None)
    result = subprocess.run(
        command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    with Image.open(tmp_path / "figure.png") as image:
        image.load()


def stripes() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 3)).astype(np.uint8)
    labels = np.zeros(60, np.int32)
    return Dataset(
        "stripes", images[:50], labels[:50], images[50:], labels[50:], "bernoulli", "dynamic"
    )


SETTINGS = Settings(
    depth=2, latent_sizes=(3, 2), hidden_sizes=(8, 6), epochs=2, warmup_epochs=0, batch_size=16,
    eval_every=2, eval_samples=30,
)  # fmt: skip
"""Its programs are those of test_run.py."""


def test_a_run_in_another_thread_than_the_main_one_runs_without_signal_handling(tmp_path):
    problems = []

    def train():
        try:
            run(dataclasses.replace(SETTINGS, workdir=str(tmp_path / "run")), stripes())
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert problems == []
    assert finished(tmp_path / "run")["epochs"] == 2


# A single step. With an epsilon of 1e-8 the sign of a rounding error would be a whole update.
SHORTEST = dataclasses.replace(
    SETTINGS, depth=1, latent_sizes=(2,), hidden_sizes=(4,), epochs=1, batch_size=50,
    eval_samples=1, eval_subset=1, adam_epsilon=1e-3,
)  # fmt: skip

WITHOUT_JIT = """
import sys
sys.path.insert(0, sys.argv[1])
import jax
from test_surroundings import SHORTEST, stripes
import dataclasses
from experiments.run.loop import run
run(dataclasses.replace(SHORTEST, workdir=sys.argv[2]), stripes())
"""


@pytest.mark.slow
def test_a_run_without_compilation_finds_the_same_to_rounding(tmp_path):
    """JAX_DISABLE_JIT=1 is how people look into a run with a debugger."""
    run(dataclasses.replace(SHORTEST, workdir=str(tmp_path / "compiled")), stripes())
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_JIT, str(Path(__file__).parent), str(tmp_path / "run")],
        cwd=ROOT, env=environment(JAX_DISABLE_JIT="1"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found, expected = (finished(tmp_path / name) for name in ("run", "compiled"))
    # Both round a bound through half a dozen layers. So they do its gradient, of elements up to
    # about one, whose error Adam divides by its epsilon.
    of_parameters = SHORTEST.learning_rate / SHORTEST.adam_epsilon * float32_error(32, 1)
    sum_of_gradient = 10  # absolute values of all elements
    for name in ("test_elbo", "test_log_likelihood", "train_elbo"):
        error = float32_error(64, 1 + abs(expected[name])) + sum_of_gradient * of_parameters
        assert_within(found[name], expected[name], error)
