"""The runs that the paper's tables and figures need, how far they are, and how long they take."""

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import registry
from experiments.published import VARIANTS
from experiments.results import RunResults
from experiments.settings import (
    FLAG,
    PATH,
    Command,
    Kind,
    Settings,
    choice,
    real,
    setting,
    whole,
)

ITEMS = ("table1", "table2", "figure2", "figure3", "figure4", "figure5", "figure6")

PAPER_DATA = {"table2": ("omniglot", "norb")}
"""What an item is about, where that is not MNIST."""

SIZES = {
    "mnist": (784, 60_000, 10_000),
    "binarized_mnist": (784, 60_000, 10_000),
    "fashion_mnist": (784, 60_000, 10_000),
    "omniglot": (784, 24_345, 8_070),
    "norb": (1024, 24_300, 24_300),
    "digits": (64, 1_500, 297),
}
"""Dimension, training images and test images of a data set, for a plan that loads none."""

MC_SAMPLES = 10
"""Of the fine-tuning, and of its importance samples where Table 1 says so."""


@dataclasses.dataclass(frozen=True)
class PaperSettings:
    """What to make, and how much of it."""

    only: tuple[str, ...] = setting(
        ("all",),
        Kind(
            lambda text: tuple(text.split(",")),
            lambda items: set(items) <= {"all", *ITEMS},
            f"all, or some of {', '.join(ITEMS)}",
        ),
        f"what to make: all, or some of {', '.join(ITEMS)}",
    )
    scale: float = setting(
        1.0,
        real("a number greater than 0 and at most 1", lambda v: 0 < v <= 1),
        "shortens every schedule to this part of the paper's, for a smoke run",
    )
    dry_run: bool = setting(False, FLAG, "print the plan and its estimated time only")
    on: str = setting(
        "", choice("", *SIZES), "make everything on this data set instead of the paper's"
    )
    seed: int = setting(0, whole(0), "of every run")
    eval_samples: int = setting(5000, whole(1), "importance samples of the test log-likelihoods")
    workdir: str = setting("runs/paper", PATH, "folder for the runs, tables and figures")
    data_dir: str = setting(
        "", PATH, "folder with the data sets' original files, each in a folder of its name"
    )
    tfds_dir: str = setting(
        "",
        PATH,
        "where prepared data sets live; tensorflow-datasets' own place if not given",
    )

    @property
    def items(self) -> list[str]:
        """What to make, in the paper's order."""
        return [item for item in ITEMS if item in self.only or "all" in self.only]


class PlannedRun(NamedTuple):
    """A run that a table or figure needs."""

    experiment: str
    """Of `registry.EXPERIMENTS`."""
    variant: str
    """Of `published.VARIANTS`, or a row of Table 1."""
    settings: Settings

    @property
    def name(self) -> str:
        """That of its folder."""
        words = "".join(c if c.isalnum() else "-" for c in self.variant.lower())
        slug = "-".join(word for word in words.split("-") if word)
        return f"{self.experiment}-{slug}-{self.settings.depth}"

    @property
    def command(self) -> Command:
        """The command that makes the run alone."""
        return Command(self.experiment, registry.experiment(self.experiment).defaults)


def plan(paper: PaperSettings, item: str) -> list[PlannedRun]:
    """The runs that a table or figure needs, in an order in which they can be made."""
    runs = []
    for experiment in [paper.on] if paper.on else PAPER_DATA.get(item, ("mnist",)):
        defaults = _defaults(paper, experiment)
        deepest = len(registry.experiment(experiment).defaults.latent_sizes)
        depths = range(1, deepest + 1) if item in ("table2", "figure3") else [deepest]
        compared = VARIANTS[-2:] if item == "figure6" else VARIANTS
        if item == "table1":
            runs += _table_1(paper, experiment, defaults, deepest)
            continue
        runs += [
            _variant(paper, experiment, defaults, variant, depth)
            for depth in depths
            for variant in compared
            # The ladder of one layer is the VAE of one layer.
            if depth > 1 or not variant.startswith("LVAE")
        ]
    return runs


def planned_runs(paper: PaperSettings) -> list[PlannedRun]:
    """Every run that is needed, once."""
    runs = [planned for item in paper.items for planned in plan(paper, item)]
    return list({planned.name: planned for planned in runs}.values())


def _defaults(paper: PaperSettings, experiment: str) -> Settings:
    """The experiment's settings with its schedule shortened by --scale."""
    defaults = registry.experiment(experiment).defaults
    epochs = max(1, round(defaults.epochs * paper.scale))
    folder = str(Path(paper.data_dir) / experiment) if paper.data_dir else ""
    return dataclasses.replace(
        defaults,
        epochs=epochs,
        warmup_epochs=round(defaults.by_replica("warmup_epochs")[0] * paper.scale),
        eval_every=math.ceil(epochs / 50),
        eval_samples=paper.eval_samples,
        seed=paper.seed,
        data_dir=folder,
        tfds_dir=paper.tfds_dir,
    )


def _variant(
    paper: PaperSettings, experiment: str, defaults: Settings, variant: str, depth: int
) -> PlannedRun:
    """One of the models that the paper compares."""
    planned = PlannedRun(
        experiment,
        variant,
        dataclasses.replace(
            defaults,
            depth=depth,
            model="lvae" if variant.startswith("LVAE") else "vae",
            batch_norm="+BN" in variant,
            warmup_epochs=defaults.warmup_epochs if "+WU" in variant else 0,
        ),
    )
    return _in_its_folder(paper, planned)


def _table_1(
    paper: PaperSettings, experiment: str, defaults: Settings, depth: int
) -> list[PlannedRun]:
    """The deepest ladder, and the two ways of tuning it further."""
    ladder = _variant(paper, experiment, defaults, VARIANTS[-1], depth)
    tuning = dataclasses.replace(
        ladder.settings,
        init_from=ladder.settings.workdir,
        schedule="staircase",
        warmup_epochs=0,
        mc_samples=MC_SAMPLES,
    )
    return [
        ladder,
        _in_its_folder(paper, PlannedRun(experiment, "fine-tuning", tuning)),
        _in_its_folder(
            paper,
            PlannedRun(
                experiment,
                "fine-tuning, IW = 10",
                dataclasses.replace(tuning, iw_samples=MC_SAMPLES),
            ),
        ),
    ]


def _in_its_folder(paper: PaperSettings, planned: PlannedRun) -> PlannedRun:
    folder = Path(paper.workdir) / "runs" / planned.name
    return planned._replace(settings=dataclasses.replace(planned.settings, workdir=str(folder)))


def results_of(planned: PlannedRun) -> RunResults | None:
    """What a run found; None if it is not finished."""
    from experiments.store.workdir import read_results

    return read_results(Path(planned.settings.workdir))


def kernel_sizes(planned: PlannedRun) -> tuple[int, int]:
    """Weights that an image meets once, and weights that every sample of it meets."""
    import jax

    from experiments.run.setup import make_model
    from lvae_jax import training

    data_dim = SIZES[planned.experiment][0]
    observation = "gaussian" if planned.experiment == "norb" else "bernoulli"
    model = make_model(planned.settings, data_dim, observation)
    optimizer = training.make_optimizer()
    shapes = jax.eval_shape(
        lambda key: training.init_state(model, optimizer, key).params, jax.random.key(0)
    )
    per_image = per_sample = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if leaf.ndim < 2:
            continue
        names = [entry.key for entry in path]
        # Upward networks meet an image once: all of the ladder's, the lowest of the VAE's.
        once = names[0] == "inference" and (
            planned.settings.model == "lvae" or names[1].endswith("_0")
        )
        per_image += leaf.size if once else 0
        per_sample += 0 if once else leaf.size
    return per_image, per_sample


def products_per_second() -> float:
    """Multiplications and additions a second in float32 matrix products, as measured just now."""
    import jax
    import jax.numpy as jnp

    a, b = jnp.ones((1024, 784)), jnp.ones((784, 512))
    product = jax.jit(jnp.dot)
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(10):
            result = product(a, b)
        result.block_until_ready()
        seconds.append((time.perf_counter() - started) / 10)
    return 2 * 1024 * 784 * 512 / statistics.median(seconds)


AROUND_PRODUCTS = 1.5
"""Time of a step or of a likelihood sample, as a multiple of its matrix products' time."""

AROUND_RUN = 30.0
"""Seconds for compiling, drawing and writing a run."""


def estimated_seconds(planned: PlannedRun, speed: float) -> float:
    """Time that the rest of a run takes, by its own epochs so far or by its matrix products."""
    from experiments.store.workdir import read_metrics

    if results_of(planned) is not None:
        return 0.0
    settings = planned.settings
    _, train_images, test_images = SIZES[planned.experiment]
    per_image, per_sample = kernel_sizes(planned)
    samples = settings.mc_samples * settings.iw_samples
    epoch = 6 * train_images * (per_image + samples * per_sample) * AROUND_PRODUCTS / speed
    lines = read_metrics(Path(settings.workdir))
    if len(lines) > 1:
        epoch = statistics.median(line.seconds for line in lines)
    likelihood = 2 * test_images * settings.eval_samples * per_sample * AROUND_PRODUCTS / speed
    return (settings.epochs - len(lines)) * epoch + likelihood + AROUND_RUN


def show_plan(paper: PaperSettings, runs: Sequence[PlannedRun]) -> None:
    """Prints every run, how far it is, and about how long the rest takes."""
    from experiments.store.workdir import read_metrics

    speed = products_per_second()
    total = 0.0
    for planned in runs:
        seconds = estimated_seconds(planned, speed)
        total += seconds
        done = len(read_metrics(Path(planned.settings.workdir)))
        state = "to do" if not done else f"epoch {done}"
        if results_of(planned) is not None:
            state = "finished"
        epochs = f"{planned.settings.epochs:,} epochs"
        print(f"{planned.name:<36} {epochs:>13}  {state:<12} {duration(seconds):>9}")
    print(
        f"{len(runs)} runs, about {duration(total)} on this machine, estimated from its "
        f"{speed / 1e9:.0f} GFLOP/s in float32 matrix products.{scaled(paper)}"
    )


def duration(seconds: float) -> str:
    """For a person: minutes, hours or days."""
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def scaled(paper: PaperSettings) -> str:
    """Said wherever numbers of shortened schedules are shown."""
    if paper.scale == 1.0:
        return ""
    return f" Schedules are shortened to {paper.scale:g} of their length: a smoke run, no result."
