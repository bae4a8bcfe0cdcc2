"""Writes the tables of docs/flags.md from the settings: `python -m docs.make_flags`."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.presets import PRESETS
from experiments.registry import EXPERIMENTS
from experiments.settings import Settings, as_flag, as_typed

PAGE = Path(__file__).with_name("flags.md")
END = "## Where the paper is silent"

INTRODUCTION = """\
# Flags

Every data set's command has these flags. Their defaults are the paper's settings for MNIST.
`python -m docs.make_flags` writes these tables.

| flag | default | what |
| --- | --- | --- |
"""

PRESETS_HEADER = """
## Presets

A preset puts other defaults in place; flags that you give override it. `config.json` stores the
settings that result, and the command that a run prints to resume it spells them out.

| flag | defaults that it sets |
| --- | --- |
"""

OWN = """
## Flags of one data set

| command | flag | default | what |
| --- | --- | --- | --- |
"""

DIFFERENT = """
## Defaults of the other data sets

| command | defaults that differ |
| --- | --- |
"""


def tables() -> str:
    """The page up to `END`."""
    common = {field.name for field in dataclasses.fields(Settings)}
    page = INTRODUCTION + "".join(f"| {row(Settings(), name)} |\n" for name in fields(Settings()))
    page += PRESETS_HEADER
    for flag, preset in {"--as_authors": "as_authors", "--recipe=fast": "fast"}.items():
        sets = [f"`{as_flag(name, value)}`" for name, value in PRESETS[preset].items()]
        page += f"| `{flag}` | {' '.join(sets)} |\n"
    page += OWN
    for command, (_, defaults) in EXPERIMENTS.items():
        for name in fields(defaults):
            if name not in common:
                page += f"| `experiments.{command}` | {row(defaults, name)} |\n"
    page += DIFFERENT
    for command, (_, defaults) in EXPERIMENTS.items():
        different = [
            f"`{as_flag(name, getattr(defaults, name))}`"
            for name in fields(Settings())
            if getattr(defaults, name) != getattr(Settings(), name)
        ]
        if different:
            page += f"| `experiments.{command}` | {' '.join(different)} |\n"
    return page + "\n"


def fields(defaults: Settings) -> dict[str, dataclasses.Field[Any]]:
    """The fields of the settings by name."""
    return {field.name: field for field in dataclasses.fields(defaults)}


def row(defaults: Settings, name: str) -> str:
    """Flag, default and help text, as cells of a table."""
    default = as_typed(getattr(defaults, name))
    help_text = fields(defaults)[name].metadata["help"].replace("|", "\\|")
    return f"`--{name}` | {default and f'`{default}`'} | {help_text}"


def updated(page: str) -> str:
    """The page with its tables as the settings are now."""
    return tables() + page[page.index(END) :]


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
