"""Imports go one way, and nowhere in a circle, at the top of a file and in its functions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

EXPERIMENTS = ["mnist", "binarized_mnist", "fashion_mnist", "omniglot", "norb", "digits", "arrays"]

COMMANDS = ["report", "compare", "paper", "probe", "outliers", "impute", "certify"]

# From the top down: a module may import what stands below it or beside it, never what stands above.
ORDER = [
    ["benchmarks"],
    [f"experiments.{name}" for name in COMMANDS],
    ["experiments.finished"],
    ["experiments.registry"],
    [f"experiments.{name}" for name in EXPERIMENTS],
    ["experiments.cli"],
    ["experiments.run"],
    ["experiments.show"],
    ["experiments.store"],
    [
        "experiments.results", "experiments.published", "experiments.settings",
        "experiments.presets", "experiments.errors", "experiments.progress",
        "experiments.processes",
    ],
    ["lvae_jax"],
]  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of the project by its name; a package by the name of its folder."""
    found = {}
    for top in ("lvae_jax", "experiments", "benchmarks"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(name: str) -> set[str]:
    """Modules of the project that a module imports, wherever the import stands in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module or "")
    return (found & MODULES.keys()) - {name}


IMPORTS = {name: imports_of(name) for name in MODULES}


def floor(name: str) -> int:
    """The place of a module in `ORDER`, by the longest name there that it begins with."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        for i, names in enumerate(ORDER):
            if ".".join(parts[:end]) in names:
                return i
    pytest.fail(f"{name} is not in the order of imports; say where it belongs")


def test_the_imports_are_read():
    """Those at the top of a file, those in functions, and modules named after `from package`."""
    assert "experiments.run.loop" in IMPORTS["experiments.cli"]  # in a function
    assert "experiments.show.console" in IMPORTS["experiments.run.loop"]  # from a package
    assert "lvae_jax.bounds" in IMPORTS["lvae_jax.objective"]
    assert len(MODULES) > 60
    assert sum(map(len, IMPORTS.values())) > 200


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"experiments"}))
def test_nothing_is_imported_from_above(name):
    above = [other for other in IMPORTS[name] - {"experiments"} if floor(other) < floor(name)]
    assert above == []


def test_the_library_imports_nothing_of_the_experiments_and_no_flags():
    for name in (name for name in MODULES if name.split(".")[0] == "lvae_jax"):
        assert all(other.startswith("lvae_jax") for other in IMPORTS[name]), name
        assert "absl" not in MODULES[name].read_text(encoding="utf-8").split("import"), name


def circle_through(name: str) -> list[str] | None:
    """A shortest way along imports from a module back to itself."""
    ways = [[name]]
    seen = set()
    for way in ways:
        for other in sorted(IMPORTS[way[-1]]):
            if other == name:
                return [*way, name]
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return None


def test_there_is_no_circle():
    assert [circle for name in sorted(MODULES) if (circle := circle_through(name))] == []
