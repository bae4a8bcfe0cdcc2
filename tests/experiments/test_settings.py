"""The command line: what is accepted, and the one line that refuses what is not."""

import dataclasses
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from absl import flags

from docs import make_flags
from experiments import cli, registry
from experiments.errors import WorkdirError
from experiments.presets import PRESETS, Presets
from experiments.run.loop import run
from experiments.settings import Command, Settings

ROOT = Path(__file__).parents[2]


def digits(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "experiments.digits", *arguments],
        cwd=cwd,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HOME": str(cwd)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth=0"], "flag --depth=0: give a whole number of at least 1"),
        (["--depth=two"], "flag --depth=two: give a whole number of at least 1"),
        (
            ["--depth=4"],
            "--depth=4: there are sizes for 3 layers; give at most as many, or longer "
            "--latent_sizes and --hidden_sizes",
        ),
        (
            ["--latent_sizes=3,0"],
            "flag --latent_sizes=3,0: give whole numbers of at least 1 and at most 2147483647, "
            "separated by commas, from the bottom layer to the top",
        ),
        (
            ["--latent_sizes=8,4", "--hidden_sizes=8"],
            "--latent_sizes=8,4 --hidden_sizes=8: give the same number of both, and at least one",
        ),
        (["--model=gan"], "flag --model=gan: give one of lvae, vae"),
        (["--schedule=linear"], "give one of constant, staircase, cosine"),
        (["--batch_norm=maybe"], "flag --batch_norm=maybe: give true or false"),
        (["--learning_rate=nan"], "flag --learning_rate=nan: give a number greater than 0"),
        (["--learning_rate=-1"], "flag --learning_rate=-1: give a number greater than 0"),
        (["--warmup_epochs=-5"], "flag --warmup_epochs=-5: give a whole number of at least 0"),
        (["--max_gradient_norm=-1"], "give a number of at least 0"),
        (["--dept=3"], "Unknown command line flag 'dept'. Did you mean: depth ?"),
        (["mnist"], "unexpected argument 'mnist': every setting is given as --name=value"),
        (["--batch_size=1"], "--batch_size=1: batch normalisation has nothing to normalise over"),
        (["--model=vae", "--mean_upward"], "--mean_upward are variants of the ladder"),
        (["--recipe=slow"], "flag --recipe=slow: give one of fast"),
        (["--gradient=iwae"], "flag --gradient=iwae: give one of standard, stl, dreg"),
        (["--free_bits=-0.1"], "flag --free_bits=-0.1: give a number of at least 0"),
        (
            ["--free_bits=0.1", "--iw_samples=5"],
            "--free_bits=0.1 --iw_samples=5 --gradient=standard: free bits are for the ELBO and "
            "its standard gradient; give --free_bits=0, or --iw_samples=1 --gradient=standard",
        ),
        (
            ["--validation=100", "--eval_every=0"],
            "--validation=100 --eval_every=0: the best of the evaluated epochs is chosen; give "
            "--eval_every of at least 1, or --validation=0",
        ),
        (
            ["--fresh_optimizer"],
            "--fresh_optimizer: there is no --init_from; give the workdir of the run to continue, "
            "or leave it out",
        ),
        (["--free_bits=0.1", "--gradient=stl"], "--iw_samples=1 --gradient=stl: free bits are"),
    ],
)
def test_a_bad_flag_is_refused_in_one_line_with_status_2_and_nothing_created(
    tmp_path, arguments, message
):
    result = digits(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_only_the_data_can_refuse_is_refused_the_same_way(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    experiment = registry.experiment("digits")
    settings = dataclasses.replace(experiment.defaults, batch_size=1501)
    with pytest.raises(SystemExit) as stopped, cli.errors_in_one_line():
        run(settings, experiment.load(settings))
    message = "error: --batch_size=1501: digits has 1500 training images; give at most that\n"
    assert (stopped.value.code, capsys.readouterr().err) == (2, message)
    assert list(tmp_path.iterdir()) == []


def test_a_run_to_continue_that_is_not_there_is_refused_and_nothing_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = registry.experiment("digits")
    settings = dataclasses.replace(experiment.defaults, init_from="nowhere")
    with pytest.raises(WorkdirError) as refusal:
        run(settings, experiment.load(settings))
    assert str(refusal.value) == "nowhere holds no config.json; give a run's folder"
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_setting_of_the_experiment_with_its_default(tmp_path):
    result = digits("--help", cwd=tmp_path)
    assert "jax" not in result.stderr
    for name in (*Settings.__dataclass_fields__, *Presets.__dataclass_fields__):
        assert f"--{name}:" in result.stdout or f"--[no]{name}:" in result.stdout
    assert "--hidden_sizes: units of the two hidden layers" in result.stdout
    assert "(default: '128,64,32')" in result.stdout


def test_the_table_of_flags_names_every_flag_with_the_default_of_mnist():
    rows = {
        line.split("`")[1]: line
        for line in make_flags.PAGE.read_text("utf-8").split("## Presets")[0].splitlines()
        if line.startswith("| `--")
    }
    settings = Settings()
    assert set(rows) == {f"--{name}" for name in Settings.__dataclass_fields__}
    for name, field in Settings.__dataclass_fields__.items():
        default = getattr(settings, name)
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        assert f"| {shown and f'`{shown}`'} |" in rows[f"--{name}"]
        assert field.metadata["help"] in rows[f"--{name}"]


def test_the_page_of_flags_is_as_the_settings_are_now():
    page = make_flags.PAGE.read_text("utf-8")
    assert make_flags.updated(page) == page, "run python -m docs.make_flags"
    assert "| `experiments.norb` | `--cameras` | `one` |" in page


def presets_of(arguments: list[str], experiment: str = "mnist") -> Settings:
    """The settings of a command line; no flags are left."""
    defaults = registry.experiment(experiment).defaults
    cli.define_flags(defaults)
    cli.define_flags(Presets())
    try:
        cli.parse(["a command", *arguments])
        return cli.from_flags(type(defaults))
    finally:
        names = [*(f.name for f in fields(defaults)), *(f.name for f in fields(Presets))]
        flags.FLAGS.remove_flag_values(names)
        flags.FLAGS.unparse_flags()


AUTHORS = {
    "activation": "leaky_relu_0.01", "batch_norm_epsilon": 1e-10, "own_top_down": True,
    "wide_generative": True, "mean_upward": True, "variance_bias": 1.0, "closed_form_kl": False,
    "adam_epsilon": 1e-4, "max_gradient_norm": 4.0, "max_gradient": 0.9,
}  # fmt: skip
NOT_OF_A_VAE = {"own_top_down": False, "wide_generative": False, "mean_upward": False}


@pytest.mark.parametrize(
    ("experiment", "arguments", "expected"),
    [
        ("mnist", ["--as_authors"], AUTHORS),
        ("mnist", ["--as_authors", "--depth=2"], AUTHORS | {"depth": 2}),
        ("mnist", ["--as_authors", "--model=vae"], AUTHORS | NOT_OF_A_VAE | {"model": "vae"}),
        (
            "mnist",
            ["--as_authors", "--nomean_upward", "--adam_epsilon=1e-8"],
            AUTHORS | {"mean_upward": False, "adam_epsilon": 1e-8},
        ),
        ("norb", ["--as_authors"], AUTHORS | {"activation": "tanh"}),
        ("mnist", ["--as_authors", "--recipe=fast"], AUTHORS | PRESETS["fast"]),
        ("mnist", ["--recipe=fast"], PRESETS["fast"]),
        ("omniglot", ["--recipe=fast", "--epochs=7"], PRESETS["fast"] | {"epochs": 7}),
        ("mnist", ["--noas_authors", "--recipe="], {}),
    ],
)
def test_a_preset_sets_defaults_that_flags_override(experiment, arguments, expected):
    defaults = registry.experiment(experiment).defaults
    assert presets_of(arguments, experiment) == dataclasses.replace(defaults, **expected)


def test_presets_set_settings_that_exist_and_no_two_the_same():
    sets = [name for preset in PRESETS.values() for name in preset]
    assert len(sets) == len(set(sets))
    kinds = {field.name: field.metadata["kind"] for field in fields(Settings)}
    for preset in PRESETS.values():
        assert all(kinds[name].accept(value) for name, value in preset.items())


def test_the_page_sets_every_choice_of_the_authors_preset_beside_the_default():
    _, table = make_flags.PAGE.read_text("utf-8").split("## The authors' code, choice by choice")
    cells = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    chosen = {cell.split("`")[1] for *_, cell in cells[1:] if cell.startswith("`--")}
    assert {presets_of([flag]) for flag in chosen} == {
        dataclasses.replace(Settings(), **{name: value}) for name, value in AUTHORS.items()
    }


def test_what_a_preset_sets_is_what_config_json_and_the_command_that_resumes_say():
    settings = presets_of(["--as_authors", "--seed=3"])
    assert AUTHORS.items() <= settings.changing_results().items()
    line = Command("mnist", Settings()).line(settings, Path("a"))
    assert "as_authors" not in line
    assert presets_of(shlex.split(line)[3:]) == dataclasses.replace(settings, workdir="a")


def test_depth_keeps_the_lowest_layers():
    assert Settings(depth=2).layers() == ((64, 32), (512, 256))
    assert Settings(depth=5).layers()[1] == (512, 256, 128, 64, 32)
