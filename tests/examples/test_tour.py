"""The notebook: every cell runs, and shows what its saved output says."""

import json

import installed_wheel
import pytest
from notebook_cells import code_cells, run

TOUR = installed_wheel.ROOT / "examples" / "tour.ipynb"
SHORTER = {
    "range(100)": "range(3)",
    "num_samples=500": "num_samples=20",
    "temperatures=200": "temperatures=10",
    "mean_image, key)": "mean_image, key, effort=evaluation.Conditioning(64, rounds=0))",
}
"""Fewer epochs, samples and temperatures, and no rounds of Metropolis-within-Gibbs: they change
numbers alone, which are not compared."""


@pytest.mark.slow
def test_the_tour_runs_and_shows_what_it_has_saved(tmp_path):
    text = TOUR.read_text(encoding="utf-8")
    notebook = json.loads(text)
    for given, less in SHORTER.items():
        assert text.count(given) == 1, given
        text = text.replace(given, less)
    shorter = tmp_path / TOUR.name
    shorter.write_text(text, encoding="utf-8")
    assert notebook["nbformat"] == 4
    cells = code_cells(notebook)
    assert len(cells) == 10
    for number, (cell, shown) in enumerate(zip(cells, run(shorter), strict=True), 1):
        saved = cell["outputs"]
        assert cell["execution_count"] == number
        kinds = [output["output_type"] for output in shown]
        assert kinds == [output["output_type"] for output in saved]
        assert all("image/png" in o["data"] for o in saved if o["output_type"] == "display_data")
        assert all(words(one) == words(two) for one, two in zip(shown, saved, strict=True))


def words(output):
    """The text without its numbers, which differ by rounding from one processor to another."""
    text = "".join(output.get("text", []))
    return [word for word in text.split() if not any(c.isdigit() for c in word)]
