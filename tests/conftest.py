"""What holds for every test: their order, strict ranks, one compilation of a program a session."""

import fcntl
import gc
import inspect
import os
from pathlib import Path

import xla_flags

# Few optimisations: the models of tests are tiny, and compiling them is what takes time. For the
# processes that tests start, too, so that they find each other's programs in the cache.
# .ci/machines sets it to 0: there programs are compiled as a user's are.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    xla_flags.compile_sooner()

import jax
import jaxtyping
import pytest

# The types and shapes of the library's annotations are enforced (an int is a float).
beartype = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook("lvae_jax", beartype)

FEW_OPTIMISATIONS = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
jax.config.update("jax_disable_most_optimizations", FEW_OPTIMISATIONS)
jax.config.update("jax_numpy_rank_promotion", "raise")

LONGEST = ["test_processes", "test_extremes", "test_devices", "test_paper", "test_datasets"]


def pytest_collection_modifyitems(items):
    """The files that take longest first, so that no worker is left alone with one at the end.

    Workers take tests from each other (`--dist=worksteal`), but not the one that is running.
    """

    def place(item) -> int:
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_collection_finish():
    """Garbage is collected seldom.

    JAX's modules and what they import are a quarter of a million objects, and tracing makes many
    more: at Python's own thresholds, collecting garbage takes 8 % of a run's CPU time.
    """
    gc.set_threshold(50_000, 20, 100)


def folder_of_the_session(tmp_path_factory) -> Path:
    """The one of all workers, in which each has its own."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """One compilation cache for a session, its workers and the processes they start.

    It is the session's own, unless LVAE_JAX_TEST_CACHE names a folder that outlives it: programs
    that have not changed are then not compiled again.
    """
    own = folder_of_the_session(tmp_path_factory) / "compilation_cache"
    cache = os.environ.get("LVAE_JAX_TEST_CACHE") or str(own)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A function of a name and of what makes a folder; returns that folder, of the whole session.

    The first worker that needs it makes it, and the others wait. Tests read it, or copy it.
    """
    shared = folder_of_the_session(tmp_path_factory) / "made_once"
    shared.mkdir(exist_ok=True)

    def folder(name, make):
        with (shared / f"{name}.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not lock.seek(0, os.SEEK_END):  # written while this worker waited, perhaps
                make(shared / name)
                lock.write("made")
        return shared / name

    return folder


@pytest.fixture(scope="session")
def real_tfds_dir(made_once):
    """A function of a data set's module: the folder where its real files have been prepared."""

    def folder(module):
        name = module.__name__.rpartition(".")[2]
        files = Path(os.environ["LVAE_JAX_TEST_DATA"]) / name
        return made_once(f"tfds_{name}", lambda path: module.load(files, path))

    return folder


@pytest.fixture(scope="session")
def wheel(made_once):
    """The library's wheel, built from the checkout."""
    import installed_wheel

    (built,) = made_once("wheel", installed_wheel.build).glob("*.whl")
    return built


@pytest.fixture(scope="session")
def finished_run(made_once):
    """The folder of a finished run of the digits, with the settings `small_runs.SINGLE`."""
    import small_runs

    return made_once("single", lambda path: small_runs.train(path, small_runs.SINGLE))


@pytest.fixture(scope="session")
def finished_pair(made_once):
    """The folder of a finished run of two replicas, with the settings `small_runs.PAIR`."""
    import small_runs

    return made_once("pair", small_runs.train_pair)


MANY_MAPS = 20_000
"""Of the 65,530 memory maps that Linux gives a process; a file of tests needs a few thousand."""


def memory_maps() -> int:
    """How many memory maps this process has; more than `MANY_MAPS` where nothing says so."""
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else MANY_MAPS + 1


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_dropped(request):
    """Lets go of all programs once there are many; of those of another platform at once.

    Each takes a dozen memory maps: a worker that keeps all programs of the suite crashes in the
    middle of compiling one. Yet files share programs, and compiling them again takes time.
    """
    other_platforms = '"platform_dependent"' in request.path.read_text(encoding="utf-8")
    if other_platforms:  # what has been traced for this platform is not to be found, nor the other
        jax.clear_caches()
    yield
    if other_platforms or memory_maps() > MANY_MAPS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _refusals_are_the_librarys_own(request, monkeypatch):
    """A test of an error may give what the annotations exclude."""
    function = getattr(request.node, "function", None)  # a doctest has none
    if function and "pytest.raises" in inspect.getsource(function):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def without_figures(monkeypatch):
    """The test's runs draw no picture and write no page, which takes longer than they train."""
    monkeypatch.setattr("experiments.run.final.draws.draw", lambda *_: None)
    monkeypatch.setattr("experiments.run.final.drawing.draw_model", lambda *_: None)
    monkeypatch.setattr("experiments.run.final.page.write", lambda *_: None)


@pytest.fixture
def strict_dtypes():
    """No silent promotion between dtypes either (optax's Adam promotes, so not everywhere)."""
    with jax.numpy_dtype_promotion("strict"):
        yield
