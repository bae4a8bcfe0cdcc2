"""What every test of the promises in docs/reliability.md shares: `pytest -m faults` runs them."""

from pathlib import Path

import hypothesis

HERE = Path(__file__).parent

# The same examples in every run, and no limit that a slow machine could miss.
hypothesis.settings.register_profile("faults", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("faults")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("faults")
