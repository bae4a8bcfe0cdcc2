"""Whole runs in the tests' own process are compiled with few optimisations, to be compiled sooner.

Runs in processes of their own are compiled as users' are.
"""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _compile_sooner():
    before = jax.config.jax_disable_most_optimizations
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
