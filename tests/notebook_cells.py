"""Runs a notebook's cells in order, without Jupyter; `notebook_cells.py FILE` saves their output.

A notebook is JSON, and a code cell of Python alone is a program; what a cell shows is what it
prints, and the figures that are open at its end.
"""

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl


def run(path: Path) -> list[list[dict[str, Any]]]:
    """Executes the code cells in one namespace; of each the outputs, as a notebook stores them."""
    mpl.use("Agg", force=True)
    from matplotlib import pyplot as plt

    namespace: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for number, cell in enumerate(code_cells(json.loads(path.read_text(encoding="utf-8"))), 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), namespace)
        found: list[dict[str, Any]] = []
        if printed.getvalue():
            text = printed.getvalue().splitlines(keepends=True)
            found.append({"output_type": "stream", "name": "stdout", "text": text})
        for figure in map(plt.figure, plt.get_fignums()):
            image = io.BytesIO()
            figure.savefig(image, dpi=60, bbox_inches="tight", metadata={"Software": None})
            data = {"image/png": base64.b64encode(image.getvalue()).decode()}
            found.append({"output_type": "display_data", "data": data, "metadata": {}})
        plt.close("all")
        outputs.append(found)
    return outputs


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that are programs."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def save_outputs(path: Path) -> None:
    """Executes a notebook and stores what its cells show."""
    outputs = run(path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for number, (cell, found) in enumerate(zip(code_cells(notebook), outputs, strict=True), 1):
        cell["execution_count"], cell["outputs"] = number, found
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    save_outputs(Path(sys.argv[1]))
