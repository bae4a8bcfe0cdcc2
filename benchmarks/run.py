"""`python -m benchmarks.run`: measures the speed of training, likelihood and start-up.

Contenders are timed in turn within one process, so that a drift of the machine's speed affects all
of them; only the products of `layer` are timed one library after the other. The tables show medians
with their range, and ratios formed round by round.
"""

import argparse
import json
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from benchmarks import likelihood, linear_layer, startup, targets, training_step
from benchmarks.timing import markdown
from experiments.run.devices import cores

SECTIONS: dict[str, Any] = {
    "step": training_step,
    "layer": linear_layer,
    "likelihood": likelihood,
    "startup": startup,
    "targets": targets,
}
"""Each module has the plans FULL and QUICK, and `measure(plan)`, which returns tables and notes."""


def sections_of(text: str) -> list[str]:
    """The sections named, in the order of `SECTIONS`.

    Raises:
      argparse.ArgumentTypeError: there is no such section.
    """
    given = text.split(",")
    for name in given:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"{name!r}; give some of {','.join(SECTIONS)}")
    return [name for name in SECTIONS if name in given]


def machine() -> dict[str, Any]:
    """The device and the versions that the figures were measured with."""
    versions: dict[str, str | None] = {}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cores": cores(),
        "python": platform.python_version(),
        **versions,
    }


def run(sections: list[str], quick: bool, json_file: Path | None = None) -> None:
    """Runs sections; prints the tables of each, and writes its figures, as soon as it is measured.

    Args:
      sections: names in `SECTIONS`.
      quick: small models and few rounds.
      json_file: where to write every figure, by section.
    """
    result: dict[str, Any] = {"machine": machine(), "quick": quick}
    print(", ".join(f"{k} {v}" for k, v in result["machine"].items() if v), flush=True)
    for name in sections:
        start = time.perf_counter()
        print(f"\n## {name}\n", flush=True)
        module = SECTIONS[name]
        plan = module.QUICK if quick else module.FULL
        result[name] = module.measure(plan)
        for caption, rows in result[name]["tables"].items():
            print(f"{caption}\n\n{markdown(rows)}" if rows else caption, flush=True)
        for note in result[name]["notes"]:
            print(f"Note: {note}.", flush=True)
        print(f"({name}: {time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
        if json_file:
            json_file.write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    """Runs the requested sections, prints their tables and writes all figures to --json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--only", type=sections_of, default=list(SECTIONS), help=f"some of {','.join(SECTIONS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small models and few rounds, for a quick check"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    if arguments.json:
        try:
            arguments.json.open("a").close()  # before minutes of measuring
        except OSError as error:
            parser.error(f"--json={arguments.json}: {error.strerror}; give a file to be written")
    run(arguments.only, arguments.quick, arguments.json)


if __name__ == "__main__":
    main()
