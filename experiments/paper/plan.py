"""Plans the runs for the paper's tables and figures, and reports their progress."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import registry
from experiments.published import VARIANTS
from experiments.results import RunResults
from experiments.settings import (
    FLAG,
    MOST_SEEDS,
    PATH,
    PRECISION,
    Command,
    Kind,
    Settings,
    check,
    choice,
    real,
    setting,
    whole,
)

ITEMS = ("table1", "table2", "figure2", "figure3", "figure4", "figure5", "figure6")

PAPER_DATA = {"table2": ("omniglot", "norb")}
"""The data sets of an item; for other items, MNIST."""

WITHOUT_BATCH_NORM = "LVAE+WU"
"""The five-layer ladder without batch norm, for the claim that batch norm helps it the most."""

ON = tuple(name for name in registry.EXPERIMENTS if name != "arrays")
"""The values of --on."""

TABLE_1_ROWS = {
    "LVAE, 5-layer": VARIANTS[-1],
    "LVAE, 5-layer + finetuning": "fine-tuning",
    "LVAE, 5-layer + finetuning + IW=10": "fine-tuning, IW = 10",
}
"""The paper's own rows of Table 1, each with the variant that makes it."""

OF_RUNS = ("seed", "replicas", "matmul_precision", "eval_samples", "eval_subset")
"""The settings that `PaperSettings` hands to every run."""

MC_SAMPLES = 10
"""Monte Carlo samples of fine-tuning; also the importance samples in the row "IW=10"."""


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
        "fraction of the paper's epochs to train for",
    )
    dry_run: bool = setting(
        False, FLAG, "print the plan and the tables of the finished runs, and make no runs"
    )
    on: str = setting(
        "", choice("", *ON), "make everything on this data set instead of the paper's"
    )
    seed: int = setting(0, whole(0, MOST_SEEDS - 1), "seed of every run, or the first of them")
    replicas: int = setting(
        1, whole(1), "seeds of every run, which one program trains; tables show their mean"
    )
    matmul_precision: str = setting(
        "float32", PRECISION, "precision of matrix products on a GPU or TPU"
    )
    eval_samples: int = setting(5000, whole(1), "importance samples of the test log-likelihoods")
    eval_subset: int = setting(
        0, whole(0), "take the log-likelihood of the first N test images; 0: of all"
    )
    workdir: str = setting("runs/paper", PATH, "folder for the runs, tables and figures")
    data_dir: str = setting(
        "", PATH, "folder of original files, with one folder per data set, such as mnist"
    )
    tfds_dir: str = setting(
        "", PATH, "folder of prepared data sets; the default is tensorflow-datasets' own"
    )

    @property
    def items(self) -> list[str]:
        """What to make, in the paper's order."""
        return [item for item in ITEMS if item in self.only or "all" in self.only]


class PlannedRun(NamedTuple):
    """A run that a table or figure needs."""

    experiment: str
    """A name in `registry.EXPERIMENTS`."""
    variant: str
    """One of `published.VARIANTS` or of `TABLE_1_ROWS`, or `WITHOUT_BATCH_NORM`."""
    settings: Settings

    @property
    def name(self) -> str:
        """The name of its folder."""
        words = "".join(c if c.isalnum() else "-" for c in self.variant.lower())
        slug = "-".join(word for word in words.split("-") if word)
        return f"{self.experiment}-{slug}-{self.settings.depth}"

    @property
    def command(self) -> Command:
        """The command that makes this run alone."""
        return Command(self.experiment, registry.experiment(self.experiment).defaults)


def plan(paper: PaperSettings, item: str) -> list[PlannedRun]:
    """The runs of a table or figure, in an order in which they can be made."""
    runs = []
    for experiment in [paper.on] if paper.on else PAPER_DATA.get(item, ("mnist",)):
        defaults = _defaults(paper, experiment)
        deepest = len(registry.experiment(experiment).defaults.latent_sizes)
        depths = range(1, deepest + 1) if item in ("table2", "figure3") else [deepest]
        if item == "table1":
            runs += _table_1(paper, experiment, defaults, deepest)
            continue
        runs += [
            _variant(paper, experiment, defaults, variant, depth)
            for depth in depths
            for variant in VARIANTS
            # The ladder of one layer is the VAE of one layer.
            if depth > 1 or not variant.startswith("LVAE")
        ]
        if item == "figure3":
            runs.append(_variant(paper, experiment, defaults, WITHOUT_BATCH_NORM, deepest))
    return runs


def planned_runs(paper: PaperSettings) -> list[PlannedRun]:
    """The runs of all chosen items, without repetition.

    Raises:
      SettingsError: settings that no run can have.
    """
    runs = [planned for item in paper.items for planned in plan(paper, item)]
    for planned in runs:
        check(planned.settings)
    return list({planned.name: planned for planned in runs}.values())


def _defaults(paper: PaperSettings, experiment: str) -> Settings:
    """The experiment's settings with its schedule shortened by --scale."""
    defaults = registry.experiment(experiment).defaults
    epochs = max(1, round(defaults.epochs * paper.scale))
    folder = str(Path(paper.data_dir) / experiment) if paper.data_dir else ""
    return dataclasses.replace(
        defaults,
        epochs=epochs,
        warmup_epochs=max(1, round(defaults.by_replica("warmup_epochs")[0] * paper.scale)),
        eval_every=math.ceil(epochs / 50),
        data_dir=folder,
        tfds_dir=paper.tfds_dir,
        **{name: getattr(paper, name) for name in OF_RUNS},
    )


def _variant(
    paper: PaperSettings, experiment: str, defaults: Settings, variant: str, depth: int
) -> PlannedRun:
    """One of the models that the paper compares."""
    settings = dataclasses.replace(
        defaults,
        depth=depth,
        model="lvae" if variant.startswith("LVAE") else "vae",
        batch_norm="+BN" in variant,
        warmup_epochs=defaults.warmup_epochs if "+WU" in variant else 0,
    )
    return _in_its_folder(paper, PlannedRun(experiment, variant, settings))


def _table_1(
    paper: PaperSettings, experiment: str, defaults: Settings, depth: int
) -> list[PlannedRun]:
    """The deepest ladder, and two runs that fine-tune it."""
    ladder = _variant(paper, experiment, defaults, VARIANTS[-1], depth)
    tuning = dataclasses.replace(
        ladder.settings,
        init_from=ladder.settings.workdir,
        schedule="staircase",
        warmup_epochs=0,
        mc_samples=MC_SAMPLES,
    )
    weighted = dataclasses.replace(tuning, iw_samples=MC_SAMPLES)
    tuned = PlannedRun(experiment, "fine-tuning", tuning)
    tuned_weighted = PlannedRun(experiment, "fine-tuning, IW = 10", weighted)
    return [ladder, _in_its_folder(paper, tuned), _in_its_folder(paper, tuned_weighted)]


def _in_its_folder(paper: PaperSettings, planned: PlannedRun) -> PlannedRun:
    folder = Path(paper.workdir) / "runs" / planned.name
    return planned._replace(settings=dataclasses.replace(planned.settings, workdir=str(folder)))


def results_of(planned: PlannedRun) -> RunResults | None:
    """The results of a run; None if it is not finished.

    Raises:
      WorkdirError: its folder holds a run with other settings, such as of another --scale.
    """
    from experiments.store.workdir import results_with

    path, defaults = Path(planned.settings.workdir), planned.command.defaults
    return results_with(path, planned.settings, defaults)


def show_plan(paper: PaperSettings, runs: Sequence[PlannedRun]) -> None:
    """Prints the progress of every run, and the runs of every item."""
    from experiments.store.workdir import read_metrics

    for planned in runs:
        done = len(read_metrics(Path(planned.settings.workdir)))
        state = f"epoch {done}" if done else "to do"
        state = "finished" if results_of(planned) else state
        print(f"{planned.name:<36} {planned.settings.epochs:>5,} epochs  {state}")
    for item in paper.items:
        print(f"{item}: {', '.join(planned.name for planned in plan(paper, item))}")
    left = time_left(runs)
    time = f", about {duration(left)} of training left" if left else ""
    print(f"{len(runs)} runs{time}.{scaled(paper)}")


def time_left(runs: Sequence[PlannedRun]) -> float | None:
    """Estimates the remaining seconds of training from the epochs so far; None before the first.

    An epoch's time is taken as proportional to its samples per image.
    """
    from experiments.store.workdir import read_metrics

    seconds, done, left = 0.0, 0, 0
    for planned in runs:
        epochs = read_metrics(Path(planned.settings.workdir))
        samples = planned.settings.mc_samples * planned.settings.iw_samples
        seconds += sum(epoch.seconds for epoch in epochs)
        done += samples * len(epochs)
        left += samples * max(0, planned.settings.epochs - len(epochs))
    return seconds / done * left if done else None


def duration(seconds: float) -> str:
    """A time in minutes, hours or days, whichever suits."""
    if seconds < 60:
        return "a minute"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def scaled(paper: PaperSettings) -> str:
    """A warning that belongs to all numbers of shortened schedules; empty for full ones."""
    if paper.scale == 1.0:
        return ""
    return (
        f" Schedules are shortened to {paper.scale:g} of their length, so these models are trained "
        "less than the paper's."
    )
