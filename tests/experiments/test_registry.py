"""From a run's config.json back to its experiment, its settings and its command."""

import dataclasses
import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import arrays, digits, mnist, norb, registry
from experiments.errors import WorkdirError
from experiments.settings import Settings

ROOT = Path(__file__).parents[2]


def config_of(experiment: str, defaults: Settings, **settings) -> dict:
    """config.json of a run, after its way to the disk and back."""
    kept = dataclasses.replace(defaults, **settings)
    config = {
        "experiment": experiment,
        "settings": kept.changing_results(),
        "other_settings": kept.not_changing_results(),
    }
    return json.loads(json.dumps(config))


def flags_of(command: str) -> list[str]:
    """The command's flags but for the workdir, which is always there."""
    python, dash_m, _, *flags, workdir = shlex.split(command)
    assert (python, dash_m) == ("python", "-m")
    assert workdir.startswith("--workdir=")
    return flags


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({}, []),
        ({"depth": 2}, ["--depth=2"]),
        ({"batch_norm": False}, ["--nobatch_norm"]),
        ({"own_top_down": True, "mean_upward": True}, ["--own_top_down", "--mean_upward"]),
        ({"seed": 7, "learning_rate": 3e-5}, ["--learning_rate=3e-05", "--seed=7"]),
        ({"latent_sizes": (9, 8, 7, 6, 5)}, ["--latent_sizes=9,8,7,6,5"]),
        ({"depth": 1, "latent_sizes": (9,)}, ["--depth=1", "--latent_sizes=9"]),
        ({"checkpoint_seconds": 1.0}, []),
        ({"data_dir": "my files"}, [f"--data_dir={Path.cwd()}/my files"]),
        ({"tfds_dir": "/prepared"}, ["--tfds_dir=/prepared"]),
    ],
)
def test_a_command_has_only_the_flags_that_differ_from_the_defaults(settings, flags):
    command = registry.command(config_of("mnist", mnist.DEFAULTS, **settings), Path("runs/a"))
    assert flags_of(command) == flags
    assert command.startswith("python -m experiments.mnist ")
    assert command.endswith(" --workdir=runs/a")


def test_a_command_is_one_line_for_a_shell_whatever_is_in_its_paths():
    train = "my images; rm -rf $HOME `id`'.npy"
    config = config_of("arrays", arrays.DEFAULTS, train=train)
    workdir = Path('runs/a b "c" $(d)')
    command = registry.command(config, workdir)
    echo = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
    shell = command.replace("python -m", shlex.join(echo), 1)
    found = json.loads(subprocess.check_output(["sh", "-c", shell], text=True))
    assert found == ["experiments.arrays", f"--train={Path.cwd()}/{train}", f"--workdir={workdir}"]


PARSE = """
import dataclasses, importlib, json, sys
from absl import flags
from experiments import cli
from experiments.presets import Presets

found = []
cli.define_flags(Presets())
for name, *argv in json.load(sys.stdin):
    defaults = importlib.import_module(name).DEFAULTS
    cli.define_flags(defaults)
    cli.parse(["a command", *argv])
    given = cli.from_flags(type(defaults))
    found.append([given.changing_results(), given.not_changing_results()])
    flags.FLAGS.remove_flag_values([field.name for field in dataclasses.fields(defaults)])
    flags.FLAGS.unparse_flags()
assert "jax" not in sys.modules
json.dump(found, sys.stdout)
"""


def parsed(commands: list[str]) -> list[list[dict]]:
    """What the command lines' flags mean, by the parser of another process."""
    lines = [shlex.split(command)[2:] for command in commands]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(lines), env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return json.loads(out)


def test_a_command_gives_the_settings_again_that_it_was_made_of():
    configs = [
        config_of("mnist", mnist.DEFAULTS),
        config_of("mnist", mnist.DEFAULTS, depth=2),
        config_of("mnist", mnist.DEFAULTS, model="vae", batch_norm=False, warmup_epochs=0),
        config_of("mnist", mnist.DEFAULTS, latent_sizes=(9, 8, 7, 6, 5), depth=3),
        config_of("mnist", mnist.DEFAULTS, hidden_sizes=(9, 8, 7, 6, 5)),
        config_of(
            "mnist", mnist.DEFAULTS,
            depth=7, latent_sizes=tuple(range(7, 0, -1)), hidden_sizes=tuple(range(8, 1, -1)),
        ),
        config_of(
            "mnist", mnist.DEFAULTS,
            own_top_down=True, mean_upward=True, variance_floor=1e-7, epochs=3, batch_size=17,
            learning_rate=1 / 3, schedule="staircase", mc_samples=2, iw_samples=3, gradient="dreg",
            adam_epsilon=1e-4, max_gradient_norm=4.0, max_gradient=0.9, seed=123,
            init_from="/runs/an other", eval_every=3, validation=1000, eval_samples=10,
            activation="tanh", tfds_dir="/pre pared", data_dir="/fi'les",
        ),
        config_of("mnist", mnist.DEFAULTS, free_bits=0.125),
        config_of("digits", digits.DEFAULTS, continuous=True, latent_sizes=(4, 2), depth=2),
        config_of("digits", digits.DEFAULTS, depth=2, latent_sizes=(4, 2), hidden_sizes=(16, 8)),
        config_of("norb", norb.DEFAULTS, cameras="both", depth=1, learning_rate=1e-3),
        config_of(
            "arrays", arrays.DEFAULTS,
            train="/a b.npz:x", test="/c.npy", observation="gaussian", holdout=0.25, holdout_seed=3,
        ),
    ]  # fmt: skip
    commands = [registry.command(config, Path("runs/a run")) for config in configs]
    for config, command, (changing, other) in zip(configs, commands, parsed(commands), strict=True):
        assert changing == config["settings"], command
        assert other == config["other_settings"] | {"workdir": "runs/a run"}, command


@pytest.mark.parametrize(
    ("experiment", "defaults", "settings"),
    [
        ("mnist", mnist.DEFAULTS, {}),
        ("digits", digits.DEFAULTS, {"continuous": True, "depth": 2}),
        ("arrays", arrays.DEFAULTS, {"train": "/a.npy", "latent_sizes": (7, 6, 5, 4, 3)}),
    ],
)
def test_settings_are_read_back_from_a_config(experiment, defaults, settings):
    kept = dataclasses.replace(defaults, **settings)
    found = registry.settings_of(config_of(experiment, defaults, **settings))
    assert type(found) is type(defaults)
    sizes = dict(zip(("latent_sizes", "hidden_sizes"), kept.layers(), strict=True))
    assert found == dataclasses.replace(kept, **sizes)


def test_settings_of_a_config_can_be_changed_and_unknown_ones_are_left_out():
    config = config_of("mnist", mnist.DEFAULTS, seed=3)
    config["settings"]["of_a_later_version"] = 1
    del config["settings"]["free_bits"], config["other_settings"]  # of an earlier one
    found = registry.settings_of(config, data_dir="new", of_nothing="x")
    assert found == dataclasses.replace(mnist.DEFAULTS, seed=3, data_dir="new")


def test_every_experiment_is_known_by_its_name():
    for name, experiment in registry.EXPERIMENTS.items():
        module = importlib.import_module(f"experiments.{name}")
        assert experiment == (module.load, module.DEFAULTS)
        # The name that the command says of itself.
        assert f'cli.main("{name}", load, DEFAULTS)' in Path(module.__file__).read_text()
    # Every module with defaults of its own is one.
    files = (ROOT / "experiments").glob("*.py")
    assert set(registry.EXPERIMENTS) == {f.stem for f in files if "\nDEFAULTS = " in f.read_text()}


@pytest.mark.parametrize("name", ["os", "this", "settings", "..os", "mnist.py", "", "Mnist"])
def test_nothing_but_an_experiment_is_ever_imported(name, monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"imported {arguments}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    config = config_of("mnist", mnist.DEFAULTS) | {"experiment": name}
    for call in (
        lambda: registry.experiment(name),
        lambda: registry.settings_of(config),
        lambda: registry.command(config, Path("runs")),
    ):
        with pytest.raises(WorkdirError) as refusal:
            call()
        assert str(refusal.value) == (
            f"there is no experiment {name!r}; give one of mnist, binarized_mnist, fashion_mnist, "
            "omniglot, norb, digits, arrays"
        )


def test_a_run_of_code_of_ones_own_has_no_command():
    config = config_of("mnist", mnist.DEFAULTS)
    assert registry.command(config | {"experiment": None}, Path("runs")) is None
    del config["experiment"]
    assert registry.command(config, Path("runs")) is None
