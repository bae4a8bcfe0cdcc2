"""The runs that the paper's tables and figures need, and how far they are."""

import dataclasses
import math
import statistics
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

WITHOUT_BATCH_NORM = "LVAE+WU"
"""The ladder without batch norm, five layers: the text says that it matters most there."""

ON = tuple(name for name in registry.EXPERIMENTS if name != "arrays")
"""Data sets that everything can be made on."""

TABLE_1_ROWS = {
    "LVAE, 5-layer": VARIANTS[-1],
    "LVAE, 5-layer + finetuning": "fine-tuning",
    "LVAE, 5-layer + finetuning + IW=10": "fine-tuning, IW = 10",
}
"""The rows of Table 1 that are the paper's own, and the variants that make them."""

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
    dry_run: bool = setting(
        False, FLAG, "print the plan, and the tables of what is finished, and make nothing"
    )
    on: str = setting(
        "", choice("", *ON), "make everything on this data set instead of the paper's"
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
    """Every run that is needed, once."""
    runs = [planned for item in paper.items for planned in plan(paper, item)]
    return list({planned.name: planned for planned in runs}.values())


def data_set_of(planned: PlannedRun) -> str:
    """The data set that a run is about; only its files tell a stand-in from the original."""
    return {"norb": "small_norb"}.get(planned.experiment, planned.experiment)


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


def show_plan(paper: PaperSettings, runs: Sequence[PlannedRun]) -> None:
    """Prints every run and how far it is, and what needs which of them."""
    from experiments.store.workdir import read_metrics

    for planned in runs:
        done = len(read_metrics(Path(planned.settings.workdir)))
        state = f"epoch {done}" if done else "to do"
        state = "finished" if results_of(planned) else state
        print(f"{planned.name:<36} {planned.settings.epochs:>5,} epochs  {state}")
    for item in paper.items:
        print(f"{item}: {', '.join(planned.name for planned in plan(paper, item))}")
    left = time_left(runs)
    time = "" if left is None else f", about {duration(left)} of training left"
    print(f"{len(runs)} runs{time}.{scaled(paper)}")


def time_left(runs: Sequence[PlannedRun]) -> float | None:
    """Seconds of training that are left, by the epochs so far; None before the first.

    A run without epochs takes what the median run on its data set takes, times its samples.
    """
    from experiments.store.workdir import read_metrics

    epochs = {planned.name: read_metrics(Path(planned.settings.workdir)) for planned in runs}
    per_sample: dict[str, list[float]] = {}
    for planned in runs:
        if found := epochs[planned.name]:
            seconds = statistics.median(epoch.seconds for epoch in found)
            per_sample.setdefault(planned.experiment, []).append(seconds / _samples(planned))
    if not per_sample:
        return None
    every = [seconds for found in per_sample.values() for seconds in found]
    return sum(
        (planned.settings.epochs - len(epochs[planned.name]))
        * statistics.median(per_sample.get(planned.experiment, every))
        * _samples(planned)
        for planned in runs
    )


def _samples(planned: PlannedRun) -> int:
    return planned.settings.mc_samples * planned.settings.iw_samples


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
