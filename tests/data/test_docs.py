import doctest
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_examples_of_the_page_on_data_run_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failures, tried = doctest.testfile(str(DOCS / "data.md"), module_relative=False)
    assert (failures, tried) == (0, 16)
