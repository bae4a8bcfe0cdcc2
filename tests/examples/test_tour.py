"""The notebook: every cell runs, and shows what its saved output says."""

import json

import installed_wheel
from notebook_cells import code_cells, run

TOUR = installed_wheel.ROOT / "examples" / "tour.ipynb"


def test_the_tour_runs_and_shows_what_it_has_saved():
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = code_cells(notebook)
    assert len(cells) == 10
    for number, (cell, shown) in enumerate(zip(cells, run(TOUR), strict=True), 1):
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
