"""Any command line gives settings or one line with status 2, and any settings a command line."""

import contextlib
import dataclasses
import json
import math
import shlex
from pathlib import Path

import pytest
from absl import flags
from hypothesis import example, given
from hypothesis import strategies as st

from experiments import arrays, cli, digits, mnist, norb, registry
from experiments import settings as settings_lib
from experiments.errors import SettingsError
from experiments.presets import Presets
from experiments.settings import Settings

EXPERIMENTS = {"mnist": mnist, "digits": digits, "arrays": arrays, "norb": norb}


@contextlib.contextmanager
def flags_of(defaults: Settings):
    """absl's flags as in a process that runs the experiment; none are left."""
    cli.define_flags(defaults)
    cli.define_flags(Presets())
    try:
        yield
    finally:
        fields = (*dataclasses.fields(defaults), *dataclasses.fields(Presets))
        flags.FLAGS.remove_flag_values([field.name for field in fields])
        flags.FLAGS.unparse_flags()


def parsed(defaults: Settings, arguments: list[str], capsys) -> Settings | str:
    """The settings that the command line gives, or the one line that refuses it."""
    capsys.readouterr()
    with flags_of(defaults):
        try:
            cli.parse(["a command", *arguments])
            return cli.from_flags(type(defaults))
        except SettingsError as error:
            return str(error)
        except SystemExit as end:
            status = end.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith("\n")
    return err.removesuffix("\n")


# Values by the default's type, good and bad ones alike; and what nobody expects, for every flag.
SIZES = st.lists(st.integers(-1, 9), max_size=4).map(lambda sizes: ",".join(map(str, sizes)))
WHOLE = st.integers(-3, 12) | st.integers() | st.just(10**30)
REAL = st.floats() | st.integers(-3, 5)
ANYTHING = st.text(max_size=12) | st.sampled_from(["nan", "1e999", "0x10", "1_0", "-", "٣", "\n"])
WORDS = ["lvae", "vae", "gan", "tanh", "leaky_relu", "cosine", "staircase", "constant", "stl"]
WORDS += ["dreg", "standard", "bernoulli", "gaussian", "left", "right", "both", "host:1", ""]


def values_of(default) -> st.SearchStrategy[str]:
    usual = {
        bool: st.sampled_from(["true", "false", "1", "0", "yes"]),
        int: WHOLE.map(str),
        float: REAL.map(str),
        tuple: SIZES,
        str: st.sampled_from(WORDS),
    }[type(default)]
    return st.one_of(usual, usual, usual, ANYTHING)


@st.composite
def command_lines(draw) -> tuple[str, list[str]]:
    """An experiment and flags of it, in any combination, one of them unknown now and then."""
    name = draw(st.sampled_from(sorted(EXPERIMENTS)))
    defaults = EXPERIMENTS[name].DEFAULTS
    fields = [field.name for field in dataclasses.fields(defaults)]
    chosen = draw(st.lists(st.sampled_from([*fields, "dept"]), max_size=8))
    return name, [f"--{flag}={draw(values_of(getattr(defaults, flag, 0)))}" for flag in chosen]


def test_any_combination_of_flags_gives_settings_or_one_line_with_status_2(capsys):
    outcomes = set()

    @given(command_lines())
    def check(command_line):
        name, arguments = command_line
        defaults = EXPERIMENTS[name].DEFAULTS
        found = parsed(defaults, arguments, capsys)
        outcomes.add(type(found))
        if isinstance(found, str):
            assert found
            assert found.splitlines() == [found]
            return
        # What is accepted fits together, and holds every value as it was given.
        settings_lib.check(found)
        latent_sizes, hidden_sizes = found.layers()
        assert len(latent_sizes) == len(hidden_sizes) == found.depth >= 1
        given_last = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
        for field in dataclasses.fields(defaults):
            value = getattr(found, field.name)
            assert type(value) is type(getattr(defaults, field.name))
            assert not isinstance(value, float) or math.isfinite(value)
            if field.name in given_last and not isinstance(value, bool | tuple):
                assert value == type(value)(given_last[field.name])
            elif field.name not in {*given_last, "depth"} and not isinstance(value, tuple):
                assert value == getattr(defaults, field.name)

    check()
    assert str in outcomes
    assert outcomes & {type(module.DEFAULTS) for module in EXPERIMENTS.values()}


POSITIVE = st.floats(1e-300, 1e300, exclude_min=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def good_values(field) -> st.SearchStrategy:
    """Values of a setting that are allowed by themselves."""
    kind = field.metadata["kind"]
    strategies = {
        bool: st.booleans(),
        int: st.integers(0, 2**31 - 1),
        float: st.floats(0, 0.999) | POSITIVE,
        str: st.sampled_from(WORDS) | TEXT,
    }
    return strategies[type(field.default)].filter(kind.accept)


@st.composite
def settings(draw) -> tuple[str, Settings]:
    """An experiment and settings of it that fit together."""
    name = draw(st.sampled_from(sorted(EXPERIMENTS)))
    defaults = EXPERIMENTS[name].DEFAULTS
    depth = draw(st.integers(1, 6))
    sizes = st.lists(st.integers(1, 5000), min_size=depth, max_size=depth).map(tuple)
    own = {"depth", "latent_sizes", "hidden_sizes", "workdir"}
    fields = [field for field in dataclasses.fields(defaults) if field.name not in own]
    chosen = draw(st.lists(st.sampled_from(fields), max_size=6, unique_by=lambda f: f.name))
    values = {field.name: draw(good_values(field)) for field in chosen}
    if draw(st.booleans()):
        values |= {"depth": depth, "latent_sizes": draw(sizes), "hidden_sizes": draw(sizes)}
    found = dataclasses.replace(defaults, **values)
    try:
        settings_lib.check(found)
    except SettingsError:
        found = dataclasses.replace(
            found,
            model="lvae",
            batch_size=max(2, found.batch_size),
            free_bits=0.0,
            fresh_optimizer=False,
        )
    return name, found


def test_the_command_of_any_settings_gives_them_again(capsys):
    @given(settings(), TEXT.filter(lambda text: text.strip("./")))
    @example(("digits", EXPERIMENTS["digits"].DEFAULTS), "~/runs")
    def check(found, workdir):
        name, kept = found
        config = {
            "experiment": name,
            "settings": kept.changing_results(),
            "other_settings": kept.not_changing_results(),
        }
        config = json.loads(json.dumps(config))
        command = registry.command(config, Path(workdir))
        python, dash_m, module, *arguments = shlex.split(command)
        assert (python, dash_m, module) == ("python", "-m", f"experiments.{name}")
        again = parsed(EXPERIMENTS[name].DEFAULTS, arguments, capsys)
        assert isinstance(again, Settings), again
        assert again.changing_results() == kept.changing_results()
        assert Path(again.workdir) == Path(workdir)
        assert registry.settings_of(config).changing_results() == kept.changing_results()

    check()


def test_a_flag_is_refused_whatever_its_text_is_but_a_number(capsys):
    @given(ANYTHING, st.sampled_from(["depth", "epochs", "seed", "learning_rate", "holdout"]))
    def check(text, flag):
        found = parsed(arrays.DEFAULTS, [f"--{flag}={text}"], capsys)
        kind = float if isinstance(getattr(arrays.DEFAULTS, flag), float) else int
        try:
            number = kind(text)
        except ValueError:
            assert isinstance(found, str)
            assert f"--{flag}=" in found
        else:
            assert isinstance(found, str) or getattr(found, flag) == number

    check()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        # JAX's keys take 32 bits of a whole number: 2^32 would be the seed 0 again.
        ("seed", "4294967296"),
        ("seed", "1" + 30 * "0"),
        # Zero in float32, and infinite.
        ("variance_floor", "1e-50"),
        ("adam_epsilon", "1e-50"),
        ("learning_rate", "1e39"),
        # Whole numbers are int32.
        ("max_nonfinite", "2147483648"),
        ("eval_samples", "3000000000"),
        ("replicas", "1" + 30 * "0"),
        ("epochs", "1" + 400 * "0"),
        ("warmup_epochs", "1" + 400 * "0"),
        ("latent_sizes", "64,2147483648"),
    ],
)
def test_a_number_that_would_be_another_one_in_the_computation_is_refused(flag, value, capsys):
    found = parsed(mnist.DEFAULTS, [f"--{flag}={value}"], capsys)
    assert isinstance(found, str)
    assert f"--{flag}={value}" in found


@pytest.mark.parametrize(
    ("address", "is_one"),
    [
        ("localhost:1", True), ("10.0.0.1:65535", True), ("[::1]:1234", True), ("", True),
        ("localhost", False), ("localhost:", False), ("localhost:notaport", False),
        ("localhost:0", False), ("localhost:65536", False), (":1234", False), ("::1:1234", False),
        ("[::1]", False), ("[]:1", False), ("a b:1", False),
        ("host:\N{ARABIC-INDIC DIGIT ONE}", False),
    ],
)  # fmt: skip
def test_a_coordinator_is_a_host_and_a_port(address, is_one, capsys):
    found = parsed(mnist.DEFAULTS, [f"--coordinator_address={address}"], capsys)
    if is_one:
        assert found.coordinator_address == address
    else:
        assert found == (
            f"error: flag --coordinator_address={address}: give HOST:PORT, with an IPv6 address in "
            "brackets and a port from 1 to 65535"
        )
