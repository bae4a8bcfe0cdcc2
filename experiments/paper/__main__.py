"""The paper's tables and figures, from one command: `python -m experiments.paper --only=table1`.

Plans the required runs, makes or resumes the unfinished ones, and writes tables and figures with
the paper's numbers beside ours. Also checks which of the paper's claims hold.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cli, registry
from experiments.paper.plan import (
    PaperSettings,
    PlannedRun,
    duration,
    planned_runs,
    results_of,
    scaled,
    show_plan,
    time_left,
)


def make(paper: PaperSettings, runs: Sequence[PlannedRun]) -> list[str]:
    """Makes the unfinished runs one after the other, and writes the tables again after each.

    Returns:
      The names of the runs that diverged, or continue one that did; the tables leave their numbers
      empty.
    """
    from experiments.errors import Interrupted, NonFiniteError
    from experiments.paper.tables import write_tables
    from experiments.run import compilation_cache
    from experiments.run.loop import run

    compilation_cache.enable("")
    datasets: dict[str, Any] = {}
    left_out: list[str] = []
    for i, planned in enumerate(runs, start=1):
        if results_of(planned) is None:
            if Path(planned.settings.init_from).name in left_out:
                print(f"{planned.name} continues a run that diverged", file=sys.stderr)
                left_out.append(planned.name)
                continue
            left = time_left([one for one in runs if one.name not in left_out])
            time = f"; about {duration(left)} of training left in all" if left else ""
            print(f"\n[{i}/{len(runs)}] {planned.name}{time}", file=sys.stderr)
            if planned.experiment not in datasets:
                load = registry.experiment(planned.experiment).load
                datasets[planned.experiment] = load(planned.settings)
            try:
                run(planned.settings, datasets[planned.experiment], planned.command)
            except NonFiniteError as error:
                print(f"{planned.name} diverged: {error}", file=sys.stderr)
                left_out.append(planned.name)
            except Interrupted as error:
                message = f"{planned.name} is stopped and saved; the same command resumes it"
                raise Interrupted(error.status - 128, message) from error
            write_tables(paper)
    return left_out


def main(paper: PaperSettings) -> None:
    """Makes the runs and writes tables and figures; with --dry_run only prints plan and tables."""
    runs = planned_runs(paper)
    if paper.dry_run:
        show_plan(paper, runs)
        from experiments.paper.tables import markdown_tables

        print("", *markdown_tables(paper).values(), sep="\n")
        return
    left_out = make(paper, runs)

    from experiments.paper.tables import write_figures, write_tables

    write_tables(paper)
    write_figures(paper)
    written = sorted(path.name for path in Path(paper.workdir).iterdir() if path.is_file())
    print(f"{paper.workdir}: {len(runs)} runs; {', '.join(written)}.{scaled(paper)}")
    if left_out:
        names = ", ".join(left_out)
        cli.fail(f"left out, since they diverged or continue a run that did: {names}", status=3)


if __name__ == "__main__":
    cli.start(main, PaperSettings())
