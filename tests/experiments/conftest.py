"""Whole runs: those in the tests' own process are compiled sooner, the others as users' are."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _runs_are_compiled_sooner(compile_sooner):
    pass
