"""The command lines and flags on the pages exist and are accepted; none of them is run."""

import contextlib
import functools
import importlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from absl import app, flags

from benchmarks import on_device, targets
from benchmarks import run as benchmarks_run
from experiments import cli
from experiments.presets import Presets

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"): path
    for package in ("experiments", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text("utf-8")
}
"""The file of every command, by what follows `python -m`."""

REQUIRED = {
    "benchmarks.on_device": ["--results=DIR", "--tfds_dir=DIR"],
    "benchmarks.targets": ["h100"],
}
"""What a command that is to show whether it knows a flag cannot do without."""

NOT_ALONE = {"--nobatch_norm=false", "--flagfile"}
"""What docs/reliability.md says is refused; and absl's own flag, which needs a file."""


def prose(page: Path) -> str:
    """A page without its Python, each command on one line and with its shell variables' values."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    text = re.sub(r"\\\n *", "", text)
    text = re.sub(r"`[^`]+`", lambda span: span[0].replace("\n", " "), text)
    for name, value in re.findall(r'^ {4}(\w+)="(.*)"$', text, re.MULTILINE):
        text = text.replace(f"${name}", value)
    return text


def command_lines(page: Path) -> list[tuple[str, list[str]]]:
    """Module and arguments of every command in a code block or within backticks."""
    found = re.findall(
        r'(?:python -m |`)((?:experiments|benchmarks)\.\w+)([^"&;#`\n]*)', prose(page)
    )
    return [(command, shlex.split(arguments)) for command, arguments in found]


@functools.cache
def started(command: str) -> tuple:
    """The function of `cli` that a command's file calls, with what."""
    calls: list[tuple] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("main", "start"):
            patch.setattr(
                cli, name, lambda *given, name=name, **named: calls.append((name, given, named))
            )
        runpy.run_path(str(FILES[command]), run_name="__main__")
    (call,) = calls
    return call


def parse_experiment(command: str, arguments: list[str], together: bool) -> None:
    name, given, named = started(command)
    defaults = given[2] if name == "main" else given[1]
    defined = [defaults, Presets()] if name == "main" else [defaults]
    app.define_help_flags()
    for each in defined:
        cli.define_flags(each)
    try:
        cli.parse([command, *arguments], **named)
        if together and name == "main":
            with cli.errors_in_one_line():
                cli.from_flags(type(defaults))
    finally:
        flags.FLAGS.remove_flag_values([f for each in defined for f in each.__dataclass_fields__])
        flags.FLAGS.unparse_flags()


def parse_benchmark(command: str, arguments: list[str], together: bool) -> None:
    handed_on: list[str] = []

    def measure(plan, chosen):
        handed_on.extend(plan.flags)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command, *arguments])
        patch.setattr(benchmarks_run, "run", lambda *_: {})
        patch.setattr(targets, "missing_compiler", lambda _: None)
        patch.setattr(targets, "use_no_accelerator", lambda: None)
        patch.setattr(targets, "compile_all", lambda *_: [])
        patch.setattr(on_device, "measure", measure)
        importlib.import_module(command).main()
    if handed_on:
        parse_experiment("experiments.mnist", handed_on, together)


def refusal(command: str, arguments: list[str], together: bool = True) -> str:
    """What a command says against its arguments, each alone and `together`; "" if nothing."""
    parse = parse_experiment if command.startswith("experiments.") else parse_benchmark
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            parse(command, arguments, together)
        except SystemExit as ended:
            return said.getvalue() if ended.code else ""
    return ""


def knows(command: str, named: list[str]) -> bool:
    """Whether a command has these flags and takes their values; a page may leave a value out."""
    said = refusal(command, [*REQUIRED.get(command, []), *named], together=False)
    return not said or "Missing value for flag" in said or "expected one argument" in said


def test_every_command_line_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the file of --json
    refused, accepted = [], set()
    for page in PAGES:
        for command, arguments in command_lines(page):
            said = refusal(command, arguments) if command in FILES else "no such command"
            if said:
                refused.append((page.name, command, arguments, said))
            accepted.add(command)
    assert refused == []
    assert accepted == FILES.keys()


def test_the_flags_named_without_a_command_are_those_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spans = {span for page in PAGES for span in re.findall(r"`(--[^`]+)`", prose(page))}
    unknown = set()
    for span in spans:
        named = re.sub(r"=N\b", "=1", re.sub(r"=NAME\b", "=digits", span)).split()
        if not any(knows(command, named) for command in FILES):
            unknown.add(span)
    assert unknown == NOT_ALONE
