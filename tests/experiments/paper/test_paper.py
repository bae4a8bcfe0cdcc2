"""The paper's tables and figures: the plan, all of them made (tiny, on digits), going on."""

import contextlib
import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import records
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from small_runs import SMALL

import experiments.digits
from experiments import published, registry
from experiments import settings as settings_lib
from experiments.errors import Interrupted, NonFiniteError, SettingsError, WorkdirError
from experiments.paper import __main__ as paper
from experiments.paper import claims, tables
from experiments.paper import plan as paper_plan
from experiments.paper.plan import PaperSettings, plan, planned_runs
from experiments.published import VARIANTS
from experiments.run import draws, loop
from experiments.run.setup import make_config
from experiments.show import drawing, page
from experiments.store.workdir import Workdir

FIGURES = ("figure2", "figure3", "figure4", "figure5", "figure6")

LADDER = "digits-lvae-bn-wu-2"
"""The one run of `tiny` that is trained. The slow test trains all."""


def record(settings, dataset, command):
    """Leaves what the tables and figures read of a finished run, with numbers made up by its name.

    Its picture of latents is that of the ladder, which is made first.
    """
    settings_lib.check(settings)
    folder = Path(settings.workdir)
    generator = np.random.default_rng(list(folder.name.encode()))

    def numbers():
        kl = [generator.uniform(0, 3, units).tolist() for units in settings.layers()[0]]
        train_elbo, test_elbo = generator.uniform(-40, -30, 2).tolist()
        return {
            "train_elbo": train_elbo, "test_elbo": test_elbo, "kl_per_unit": kl,
            "kl_per_layer": list(map(sum, kl)), "active_units": list(map(len, kl)),
        }  # fmt: skip

    workdir = Workdir(folder, make_config(settings, dataset, command))
    workdir.create()
    for i in range(settings.epochs):
        workdir.append_metrics(records.epoch(i, **numbers()))
    shutil.copytree(folder.parent / LADDER / "figures", folder / "figures")
    results = records.run_results(
        dataset=dataset.name, model=settings.model, epochs=settings.epochs,
        eval_samples=settings.eval_samples, eval_images=len(dataset.test_images),
        chosen_epoch=settings.epochs, test_log_likelihood=generator.uniform(-30, -25), **numbers(),
    )  # fmt: skip
    workdir.write_results(results)
    workdir.close()


IN_FIGURE_6 = ("digits-vae-2", "digits-vae-bn-2", "digits-vae-bn-wu-2", "digits-lvae-bn-wu-2")
"""The runs whose pictures of latents it stacks."""


@contextlib.contextmanager
def made(workdir, is_trained):
    """Everything, made on digits with two layers and schedules of a few epochs.

    Args:
      workdir: where.
      is_trained: whether the run of a name is trained; else it is a `record`.
    """
    settings = PaperSettings(on="digits", scale=0.0075, eval_samples=3, workdir=str(workdir))
    shallow = dataclasses.replace(
        experiments.digits.DEFAULTS,
        depth=2,
        latent_sizes=SMALL.latent_sizes,
        hidden_sizes=SMALL.hidden_sizes,
    )
    train, draw, draw_model = loop.run, draws.draw, drawing.draw_model

    def run(settings, dataset, command):
        make = train if is_trained(Path(settings.workdir).name) else record
        make(settings, dataset, command)

    def draw_for_figure_6(experiment, variables):
        if Path(experiment.settings.workdir).name in IN_FIGURE_6:
            return draw(experiment, variables)
        return None

    with pytest.MonkeyPatch.context() as patch:
        small = registry.EXPERIMENTS["digits"]._replace(defaults=shallow)
        patch.setitem(registry.EXPERIMENTS, "digits", small)
        patch.setattr(loop, "run", run)
        # What no test looks at, which takes longer than such runs train.
        patch.setattr(draws, "draw", draw_for_figure_6)
        patch.setattr(drawing, "draw_model", lambda *a: a[0] and draw_model(*a))
        patch.setattr(page, "write", lambda *_: None)
        paper.main(settings)
        yield settings


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """`made` with as few trained runs as the tests need."""
    with made(tmp_path_factory.mktemp("paper"), LADDER.__eq__) as settings:
        yield settings


def results_of(settings: PaperSettings) -> dict[str, dict]:
    """results.json by the name of the run."""
    files = (Path(settings.workdir) / "runs").glob("*/results.json")
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def shown(results: dict) -> str:
    error = results["test_log_likelihood_standard_error"]
    return f"{results['test_log_likelihood']:.2f} ± {error:.2f}"


def bounds(results: dict) -> list[str]:
    """L_K, L_1, and by how much the latter is less tight."""
    gap = results["test_log_likelihood"] - results["test_elbo"]
    return [shown(results), f"{results['test_elbo']:.2f}", f"{gap:.2f}"]


def table_in(path: Path) -> list[list[str]]:
    """The rows of the Markdown table of a file, without its ruler."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if not row[0].startswith("---")]


def test_every_run_of_the_plan_is_made_with_its_schedule_shortened(tiny):
    results = results_of(tiny)
    assert results.keys() == {
        "digits-vae-1", "digits-vae-bn-1", "digits-vae-bn-wu-1",
        "digits-vae-2", "digits-vae-bn-2", "digits-vae-bn-wu-2", "digits-lvae-bn-wu-2",
        "digits-lvae-wu-2", "digits-fine-tuning-2", "digits-fine-tuning-iw-10-2",
    }  # fmt: skip
    assert {found["epochs"] for found in results.values()} == {3}  # of 400
    settings = {
        name: json.loads((Path(tiny.workdir) / "runs" / name / "config.json").read_text())[
            "settings"
        ]
        for name in results
    }
    assert [settings[f"digits-vae{bn}-2"]["batch_norm"] for bn in ("", "-bn", "-bn-wu")] == [
        False,
        True,
        True,
    ]
    assert [settings[f"digits-vae{bn}-2"]["warmup_epochs"] for bn in ("", "-bn", "-bn-wu")] == [
        0,
        0,
        1,
    ]
    tuned = settings["digits-fine-tuning-iw-10-2"]
    assert (tuned["mc_samples"], tuned["iw_samples"], tuned["schedule"]) == (10, 10, "staircase")
    assert Path(tuned["init_from"]).name == "digits-lvae-bn-wu-2"


def test_table_1_holds_the_papers_numbers_beside_those_of_the_runs(tiny):
    path = Path(tiny.workdir) / "table1.md"
    results = results_of(tiny)
    names = ("digits-lvae-bn-wu-2", "digits-fine-tuning-2", "digits-fine-tuning-iw-10-2")
    _, *rows = table_in(path)
    assert [row[2] for row in rows] == [
        "-85.10", "-85.33", "-82.90", "-81.90", "-82.12", "-81.84", "-81.74",
    ]  # fmt: skip
    assert [row[1] for row in rows][:4] == [
        "Rezende and Mohamed, 2015", "Burda et al., 2015", "Burda et al., 2015",
        "Tran et al., 2015",
    ]  # fmt: skip
    assert [row[3:6] for row in rows] == [["", "", ""]] * 4 + [bounds(results[n]) for n in names]
    assert "shortened to 0.0075 of their length, so these models" in path.read_text()
    assert "`python -m experiments.paper --on=digits --scale=0.0075 --eval_samples=3`" in (
        path.read_text()
    )


def test_table_2_holds_every_model_at_every_depth(tiny):
    path = Path(tiny.workdir) / "table2.md"
    results = results_of(tiny)
    header, *rows = table_in(path)
    assert header == ["units", "VAE", "VAE+BN", "VAE+BN+WU", "LVAE+BN+WU"]
    assert [row[0] for row in rows] == ["4", "4-2"]
    for depth, row in enumerate(rows, start=1):
        for model, cell in zip(("vae", "vae-bn", "vae-bn-wu", "lvae-bn-wu"), row[1:], strict=True):
            name = f"digits-{model}-{depth}"
            # A ladder of one layer is the VAE; digits are not in the paper, so no number of its.
            assert cell == (shown(results[name]) if name in results else "")
    assert "shortened to 0.0075" in path.read_text()
    assert "Brackets hold" not in path.read_text()


def test_figure_3_has_its_numbers_in_a_table(tiny):
    path = Path(tiny.workdir) / "figure3.md"
    results = results_of(tiny)
    _, *rows = table_in(path)
    assert len(rows) == 8
    assert rows[-1][0] == "LVAE+WU"
    for row in rows:
        slug = row[0].lower().replace("+", "-")
        found = results[f"digits-{slug}-{row[1]}"]
        assert row[2:6] == [f"{found['train_elbo']:.2f}", *bounds(found)]
        assert row[6:] == ["", ""]  # digits are not in the paper


def test_several_seeds_of_a_run_are_shown_by_their_mean_and_deviation():
    settings = PaperSettings(
        seed=4, replicas=2, eval_subset=2000, matmul_precision="tf32", only=("figure3",)
    )
    runs = plan(settings, "figure3")
    for planned in runs:
        made = planned.settings
        assert (made.seed, made.replicas, made.eval_subset) == (4, 2, 2000)
        assert made.matmul_precision == "tf32"
    seeds = [
        records.replica_results(
            test_log_likelihood=-82.0 + offset, test_elbo=-85.0 + 2 * offset, train_elbo=-84.0,
            subset_elbo=-84.5 + offset, seed=4 + i,
        )
        for i, offset in enumerate((-0.3, 0.3))
    ]  # fmt: skip
    text = tables.figure_3(settings, [(runs[0], records.run_results(*seeds))])
    assert "of the first 2,000 test images" in text
    assert "L_1 is of all test images, its difference from L_K of these." in text
    assert "± is the standard deviation over the seeds" in text
    assert "mean over the seeds 4 to 5" in text
    assert "--seed=4 --replicas=2 --matmul_precision=tf32 --eval_subset=2000" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| VAE")]
    # Two values that differ by d deviate by d / sqrt(2).
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # The difference is of the same images.
    assert cells[2:6] == ["-84.00 ± 0.00", "-82.00 ± 0.42", "-85.00 ± 0.85", "2.50"]
    small = records.run_results(*seeds, eval_images=297)
    assert "of the first" not in tables.figure_3(settings, [(runs[0], small)])


def test_claims_are_judged_by_the_runs(tiny):
    text = (Path(tiny.workdir) / "claims.md").read_text()
    results = results_of(tiny)
    ladder, vae = (results[f"digits-{name}-2"]["test_elbo"] for name in ("lvae-bn-wu", "vae"))
    verdict = "It holds" if ladder > vae else "It does not hold"
    assert (
        f"- The LVAE improves performance over the regular VAE. {verdict} here: test L_1 is "
        f"{ladder:.2f} for the LVAE and {vae:.2f} for the VAE.\n"
    ) in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## Figure {i}" for i in (2, 3, 4, 5, 6)
    ]
    assert "shortened to 0.0075" in text


def model(test_elbo: float, kl_per_unit=((1.0,), (1.0,)), log_likelihood: float = 0.0):
    return records.run_results(
        test_elbo=test_elbo,
        train_elbo=test_elbo + 1,
        test_log_likelihood=log_likelihood,
        kl_per_unit=kl_per_unit,
    )


@pytest.mark.parametrize(
    ("ladder", "holds"), [((-87.0, -86.0), True), ((-85.0, -86.0), False), ((-89.5, -86.0), False)]
)
def test_a_ladder_improves_with_every_layer_from_the_vae_of_one_layer_on(ladder, holds):
    models = {("VAE+BN+WU", 1): model(-88.0)}
    models |= {("LVAE+BN+WU", i): model(elbo) for i, elbo in enumerate(ladder, start=2)}
    (sentence,) = (s for s in claims.of("figure3", models, 3) if "with every layer" in s)
    assert sentence == (
        "The LVAE improves with every layer. "
        f"{'It holds' if holds else 'It does not hold'} here: test L_1 by layers is "
        f"-88.00, {ladder[0]:.2f}, {ladder[1]:.2f}."
    )


@pytest.mark.parametrize(
    ("one_layer", "without", "holds"),
    [(-87.0, -88.0, True), (-89.0, -88.0, False), (-87.0, -86.4, False)],
    ids=["all", "hurts-one-layer", "vae-more"],
)
def test_batch_norm_improves_all_models_if_it_does_at_every_depth(one_layer, without, holds):
    models = {
        ("VAE", 1): model(-88.0), ("VAE+BN", 1): model(one_layer),
        ("VAE", 2): model(-88.0), ("VAE+BN", 2): model(-87.0),
        ("LVAE+WU", 2): model(without), ("LVAE+BN+WU", 2): model(-86.0),
    }  # fmt: skip
    (sentence,) = (s for s in claims.of("figure3", models, 2) if s.startswith("Batch norm"))
    assert sentence == (
        "Batch norm improves all models, the LVAE especially. "
        f"{'It holds' if holds else 'It does not hold'} here: it adds {-86.0 - without:.2f} nats "
        f"to the deepest LVAE, {one_layer + 88:.2f}, 1.00 to the VAE by layers."
    )


def judged(holds: bool) -> str:
    return "It holds here" if holds else "It does not hold here"


@pytest.mark.parametrize(("widest", "holds"), [(1.75, True), (2.0, False)])
def test_there_is_no_over_fitting_if_every_model_has_train_and_test_within_2_nats(widest, holds):
    gaps = {"VAE": 0.5, "VAE+BN": widest, "VAE+BN+WU": 1.0, "LVAE+BN+WU": -0.25}
    models = {
        (name, 5): records.run_results(train_elbo=gap - 88.0, test_elbo=-88.0)
        for name, gap in gaps.items()
    }
    (sentence,) = (s for s in claims.of("figure2", models, 5) if "over-fitting" in s)
    assert sentence == (
        "There are no signs of over-fitting (here: train L_1 less than 2 nats above test L_1). "
        f"{judged(holds)}: train minus test L_1 is VAE 0.50, VAE+BN {widest:.2f}, "
        "VAE+BN+WU 1.00, LVAE+BN+WU -0.25."
    )


def by_depth(variant: str, elbos):
    return {(variant, i): model(elbo) for i, elbo in enumerate(elbos, start=1)}


@pytest.mark.parametrize(
    ("elbos", "holds"),
    [((-86.0, -87.0, -86.5), True), ((-86.0, -86.0, -87.0), True), ((-86.0, -87.0, -85.5), False)],
    ids=["worse", "as-good", "better"],
)
def test_a_vae_needs_one_layer_if_no_deeper_one_is_better(elbos, holds):
    (sentence,) = claims.of("figure3", by_depth("VAE", elbos), 3)
    assert sentence == (
        "The VAE without batch norm and warm-up does not improve beyond one layer. "
        f"{judged(holds)}: test L_1 by layers is {elbos[0]:.2f}, {elbos[1]:.2f}, {elbos[2]:.2f}."
    )


@pytest.mark.parametrize(
    ("elbos", "holds"),
    [
        ((-88.0, -87.0, -86.0, -86.5), True),
        ((-87.0, -88.0, -86.0, -86.5), False),
        ((-88.0, -86.0, -87.0, -87.5), False),
        ((-88.0, -87.0, -86.0, -85.5), False),
    ],
    ids=["up-to-three", "worse-with-two", "worse-with-three", "better-with-four"],
)
def test_a_vae_improves_up_to_three_layers_if_each_is_better_and_the_third_is_best(elbos, holds):
    (sentence,) = claims.of("figure3", by_depth("VAE+BN+WU", elbos), 4)
    assert sentence == (
        "With batch norm and warm-up the VAE improves up to three layers. "
        f"{judged(holds)}: test L_1 by layers is {', '.join(f'{elbo:.2f}' for elbo in elbos)}."
    )


@pytest.mark.parametrize(("gap", "holds"), [(2.5, True), (3.0, False), (3.5, False)])
def test_a_ladders_bound_is_tighter_if_it_is_nearer_to_its_log_likelihood(gap, holds):
    models = {
        ("LVAE+BN+WU", 5): model(-85.0, log_likelihood=-85.0 + gap),
        ("VAE+BN+WU", 5): model(-87.0, log_likelihood=-84.0),
    }
    (sentence,) = claims.of("figure3", models, 5)
    assert sentence == (
        f"The LVAE's bound is tighter. {judged(holds)}: "
        f"L_K - L_1 is {gap:.2f} for LVAE+BN+WU and 3.00 for VAE+BN+WU."
    )


@pytest.mark.parametrize(
    ("ladder", "holds"), [((3, 2), True), ((4, 3), True), ((4, 1), False), ((2, 3), False)]
)
def test_a_ladder_uses_most_units_if_no_model_uses_more_in_any_layer(ladder, holds):
    used = {"VAE": (2, 0), "VAE+BN": (1, 2), "VAE+BN+WU": (3, 1), "LVAE+BN+WU": ladder}
    models = {
        (name, 2): model(-88.0, [[0.02] * units + [0.01] for units in layers])
        for name, layers in used.items()
    }
    (sentence,) = claims.of("figure4", models, 2)
    assert sentence == (
        "The LVAE activates the highest number of units in each layer. "
        f"{judged(holds)}: units with KL > 0.01 are VAE 2, 0; VAE+BN 1, 2; VAE+BN+WU 3, 1; "
        f"LVAE+BN+WU {ladder[0]}, {ladder[1]}."
    )


def test_layers_in_use_and_their_share_of_the_kl_are_counted():
    used = {"VAE": 2, "VAE+BN": 3, "VAE+BN+WU": 4, "LVAE+BN+WU": 5}
    units = {n: [[0.5, 0.001]] * layers + [[0.001]] * (5 - layers) for n, layers in used.items()}
    models = {(name, 5): model(-80.0, kl) for name, kl in units.items()}
    (sentence,) = claims.of("figure6", models, 5)
    assert sentence.endswith(
        "It holds here: layers with a unit of KL > 0.01: "
        "VAE 2, VAE+BN 3, VAE+BN+WU 4, LVAE+BN+WU 5."
    )
    (sentence,) = claims.of("figure5", models, 5)
    share = 3 * 0.501 / (5 * 0.501)
    assert f"LVAE+BN+WU {share:.0%} of the KL" in sentence
    assert "It holds here: z_3 and above have VAE 0%," in sentence
    models["VAE", 5] = model(-80.0, units["LVAE+BN+WU"])
    (sentence,) = claims.of("figure6", models, 5)
    assert "It does not hold here" in sentence
    del models["VAE", 5]
    assert claims.of("figure6", models, 5) == claims.of("figure6", {}, 5) == []


def test_claims_are_about_the_mean_of_the_replicas():
    high, low = [[0.5], [1.5]], [[2.0], [0.001]]
    models = {
        (name, 2): records.run_results(
            records.replica_results(kl_per_unit=high), records.replica_results(kl_per_unit=other)
        )
        for name, other in zip(VARIANTS, (high, high, high, low), strict=True)
    }
    (sentence,) = claims.of("figure5", models, 2)
    # (1.5 + 0.001) / (0.5 + 1.5 + 2.0 + 0.001)
    assert "It does not hold here" in sentence
    assert "VAE+BN+WU 75%, LVAE+BN+WU 38% of the KL" in sentence
    (sentence,) = claims.of("figure4", models, 2)
    assert "VAE+BN+WU 1, 1; LVAE+BN+WU 1, 0.5" in sentence
    (sentence,) = claims.of("figure6", models, 2)
    assert sentence.endswith("VAE+BN+WU 2, LVAE+BN+WU 1.5.")


def test_results_csv_holds_a_row_a_run_with_what_its_results_say(tiny):
    with (Path(tiny.workdir) / "results.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    results = results_of(tiny)
    assert rows.keys() == results.keys()
    for name, row in rows.items():
        assert row["finished"] == "True"
        assert float(row["scale"]) == 0.0075
        for column in ("test_log_likelihood", "test_elbo", "train_elbo", "training_seconds"):
            assert float(row[column]) == results[name][column]
        kl = [float(value) for value in row["kl_per_layer"].split()]
        # Written with six digits.
        np.testing.assert_allclose(kl, results[name]["kl_per_layer"], rtol=0.5e-5)
        assert (row["device"], row["paper_log_likelihood"]) == (results[name]["device"], "")


def test_what_is_made_for_one_item_leaves_the_runs_and_claims_of_the_others(tiny):
    folder = Path(tiny.workdir)
    before = {name: (folder / name).read_text() for name in ("results.csv", "claims.md")}
    tables.write_tables(dataclasses.replace(tiny, only=("table1",)))
    after = {name: (folder / name).read_text() for name in before}
    tables.write_tables(tiny)
    assert after["results.csv"] == before["results.csv"]
    # But for the command that made them.
    assert after["claims.md"].splitlines()[3:] == before["claims.md"].splitlines()[3:]


def test_only_chosen_runs_must_have_the_settings_of_the_plan(tiny, monkeypatch):
    chosen = dataclasses.replace(tiny, only=("figure6",))
    names = {planned.name for planned in planned_runs(chosen)}
    runs = planned_runs(tiny)
    refused = {planned.name for planned in runs} - names

    def results_of(planned):
        if planned.name in refused:
            raise WorkdirError("other settings")
        return planned.name

    monkeypatch.setattr(tables, "results_of", results_of)
    found = dict(tables._found(chosen, runs))
    assert {planned.name for planned, results in found.items() if results} == names
    refused = names
    with pytest.raises(WorkdirError, match="other settings"):
        tables._found(chosen, runs)


@pytest.mark.parametrize("item", ["figure2", "figure5", "figure6"])
def test_the_whole_title_of_a_shortened_figure_can_be_read(tiny, item, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(tables.figures, "write_png", lambda path, figure: drawn.append(figure))
    tables.write_figures(dataclasses.replace(tiny, only=(item,)))
    (figure,) = drawn
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    extent = figure._suptitle.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= canvas.get_width_height()[0]


def test_results_csv_holds_the_mean_and_deviation_of_replicas():
    settings = PaperSettings(replicas=2)
    (planned, *_) = plan(settings, "figure3")
    replicas = [records.replica_results(test_log_likelihood=value) for value in (-80.0, -84.0)]
    text = tables.results_csv(settings, [(planned, records.run_results(*replicas))])
    (row,) = csv.DictReader(text.splitlines())
    assert (row["replicas"], row["test_log_likelihood"]) == ("2", "-82.0")
    deviation = float(row["test_log_likelihood_standard_deviation"])
    np.testing.assert_allclose(deviation, 8**0.5, rtol=1e-15)


def test_the_curves_of_figure_3_are_the_runs_and_its_lines_the_numbers_of_the_papers_text():
    runs = {planned.name: planned for planned in plan(PaperSettings(), "figure3")}
    found = [
        (
            runs[name],
            records.run_results(
                *(
                    records.replica_results(
                        train_elbo=first + i, test_elbo=first + 2 + i, test_log_likelihood=first + 4
                    )
                    for i in range(seeds)
                )
            ),
        )
        for name, first, seeds in (
            ("mnist-vae-bn-wu-2", -93.0, 1),
            ("mnist-vae-bn-wu-3", -92.0, 1),
            ("mnist-lvae-bn-wu-5", -91.0, 2),
        )
    ]
    curves, lines = tables._by_depth(found)
    assert curves == {
        "train, $L_1$": {
            "VAE+BN+WU": {2: [-93.0], 3: [-92.0]}, "LVAE+BN+WU": {5: [-91.0, -90.0]},
        },
        "test, $L_1$": {
            "VAE+BN+WU": {2: [-91.0], 3: [-90.0]}, "LVAE+BN+WU": {5: [-89.0, -88.0]},
        },
        "test, $L_{5000}$": {
            "VAE+BN+WU": {2: [-89.0], 3: [-88.0]}, "LVAE+BN+WU": {5: [-87.0, -87.0]},
        },
    }  # fmt: skip
    assert lines == {
        "test, $L_1$": {"the paper's LVAE, 5 layers": -85.23, "the paper's best VAE": -87.49},
        "test, $L_{5000}$": {"the paper's LVAE, 5 layers": -82.12, "the paper's best VAE": -82.74},
    }


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_picture_of_something(tiny, name):
    with Image.open(Path(tiny.workdir) / f"{name}.png") as image:
        pixels = np.asarray(image.convert("L"))
    height, width = pixels.shape
    assert width > 600
    assert height > 400
    # White paper, black text, and marks in every quarter of it.
    assert pixels.max() == 255
    assert pixels.min() < 60
    for rows in (pixels[: height // 2], pixels[height // 2 :]):
        for quarter in (rows[:, : width // 2], rows[:, width // 2 :]):
            assert np.mean(quarter < 200) > 0.002


@pytest.mark.slow
def test_all_runs_of_the_plan_are_trained_and_shown(tmp_path):
    with made(tmp_path, lambda name: True) as settings:
        test_every_run_of_the_plan_is_made_with_its_schedule_shortened(settings)
        test_table_1_holds_the_papers_numbers_beside_those_of_the_runs(settings)
        test_table_2_holds_every_model_at_every_depth(settings)
        test_figure_3_has_its_numbers_in_a_table(settings)
        test_claims_are_judged_by_the_runs(settings)
        test_results_csv_holds_a_row_a_run_with_what_its_results_say(settings)
        for name in FIGURES:
            test_every_figure_is_a_picture_of_something(settings, name)


def test_what_is_finished_is_not_made_again_and_what_was_broken_off_is_gone_on_with(tiny, capsys):
    folder = Path(tiny.workdir) / "runs"
    broken = folder / LADDER
    before = (broken / "results.json").read_text()
    (broken / "results.json").unlink()
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if broken not in p.parents}
    times.pop(broken)
    capsys.readouterr()

    paper.main(dataclasses.replace(tiny, dry_run=True))
    out = capsys.readouterr().out
    shown_plan = out[: out.index("\n\n")].splitlines()
    states = {line.split()[0]: line for line in shown_plan if not line.split()[0].endswith(":")}
    assert "epoch 3" in states.pop(LADDER)
    assert states.pop("10").startswith("10 runs. ")  # no epoch is left
    assert all(line.endswith("  finished") for line in states.values())
    assert len(states) == 9
    written = (Path(tiny.workdir) / "table1.md").read_text()
    table = tables.markdown_tables(tiny)["table1.md"]
    assert table in out
    # Without the numbers of the run that has none now.
    assert shown(json.loads(before)) in written
    assert shown(json.loads(before)) not in table
    assert not (broken / "results.json").exists()

    paper.main(tiny)
    errors = capsys.readouterr().err
    announced = [line for line in errors.splitlines() if line.startswith("[")]
    assert announced == ["[1/10] digits-lvae-bn-wu-2"]
    assert "resuming after epoch 3" in errors
    again = json.loads((broken / "results.json").read_text())
    times_aside = ("training_seconds", "wall_seconds")
    for name, value in json.loads(before).items():
        assert name in times_aside or again[name] == value
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_figure_of_a_part_of_its_runs_says_so(tiny, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "experiments.show.figures.write_png",
        lambda path, figure: titles.append((path.name, figure.get_suptitle().split(".")[0])),
    )
    shutil.copytree(tiny.workdir, tmp_path / "paper")
    copied = dataclasses.replace(tiny, workdir=str(tmp_path / "paper"), only=("figure5",))
    tables.write_figures(copied)
    (tmp_path / "paper" / "runs" / "digits-vae-bn-2" / "results.json").unlink()
    tables.write_figures(copied)
    assert titles == [("figure5.png", "digits"), ("figure5.png", "digits, 3 of 4 runs")]


def test_a_run_that_diverges_is_left_out_and_the_others_are_made(
    tiny, tmp_path, monkeypatch, capsys
):
    made = []

    def run(settings, dataset, experiment_name):
        made.append(Path(settings.workdir).name)
        if settings.model == "vae":
            raise NonFiniteError("epoch 1: the training ELBO is nan")

    monkeypatch.setattr("experiments.run.loop.run", run)
    settings = dataclasses.replace(tiny, only=("figure6",), workdir=str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        paper.main(settings)
    assert stopped.value.code == 3
    names = ["digits-vae-2", "digits-vae-bn-2", "digits-vae-bn-wu-2"]
    assert made == [*names, "digits-lvae-bn-wu-2"]
    errors = capsys.readouterr().err
    assert "digits-vae-bn-wu-2 diverged: epoch 1: the training ELBO is nan" in errors
    assert errors.splitlines()[-1] == (
        f"error: left out, since they diverged or continue a run that did: {', '.join(names)}"
    )
    (row, *_) = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    assert (row["finished"], row["test_log_likelihood"]) == ("False", "")


def test_no_run_continues_one_that_diverged(tiny, tmp_path, monkeypatch, capsys):
    made = []

    def run(settings, dataset, experiment_name):
        made.append(Path(settings.workdir).name)
        raise NonFiniteError("epoch 1: the training ELBO is nan")

    monkeypatch.setattr("experiments.run.loop.run", run)
    with pytest.raises(SystemExit):
        paper.main(dataclasses.replace(tiny, only=("table1",), workdir=str(tmp_path)))
    assert made == ["digits-lvae-bn-wu-2"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("digits-lvae-bn-wu-2, digits-fine-tuning-2, digits-fine-tuning-iw-10-2")


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"eval_samples": 4}, "eval_samples was 3 and is now 4"), ({"seed": 1}, "seed was 0 and is ")],
)
def test_results_of_other_settings_are_not_taken_for_these(tiny, changed, named):
    with pytest.raises(WorkdirError, match=named) as refusal:
        paper.main(dataclasses.replace(tiny, dry_run=True, **changed))
    assert str(refusal.value).endswith("Give another --workdir")


def test_a_run_of_other_settings_is_not_continued(tiny, tmp_path):
    name = "digits-lvae-bn-wu-2"
    shutil.copytree(Path(tiny.workdir) / "runs" / name, tmp_path / "runs" / name)
    (tmp_path / "runs" / name / "results.json").unlink()
    table = dataclasses.replace(tiny, only=("table1",), workdir=str(tmp_path))
    with pytest.raises(WorkdirError, match=f"{name} holds a run with other .*Give another --workd"):
        paper.main(dataclasses.replace(table, seed=1))


def test_claims_wait_for_the_runs_that_they_are_about():
    models = {(name, 1): model(-88.0) for name in ("VAE", "VAE+BN", "VAE+BN+WU")}
    assert claims.of("figure3", models, 5) == []
    assert any("with every layer" in sentence for sentence in claims.of("figure3", models, 1))


def test_the_full_plan_is_the_papers():
    settings = PaperSettings()
    counts = {item: len(plan(settings, item)) for item in paper_plan.ITEMS}
    # Three VAEs at five depths and the ladder at four, on two data sets or on one; on MNIST also
    # the ladder without batch norm.
    assert counts == {
        "table1": 3, "table2": 38, "figure2": 4, "figure3": 20, "figure4": 4, "figure5": 4,
        "figure6": 4,
    }  # fmt: skip
    runs = {planned.name: planned.settings for planned in planned_runs(settings)}
    assert len(runs) == 38 + 20 + 2
    for name, epochs, warmup_epochs in (
        ("mnist-lvae-bn-wu-5", 2000, 200),
        ("mnist-vae-bn-3", 2000, 0),
        ("omniglot-lvae-bn-wu-5", 1500, 200),
        ("norb-vae-bn-wu-4", 2000, 200),
        ("mnist-fine-tuning-5", 2000, 0),
    ):
        assert (runs[name].epochs, runs[name].warmup_epochs) == (epochs, warmup_epochs)
        assert runs[name].eval_samples == 5000
    assert {run.learning_rate for run in runs.values()} == {1e-3}
    ladder = runs["mnist-lvae-wu-5"]
    assert (ladder.model, ladder.batch_norm, ladder.warmup_epochs) == ("lvae", False, 200)


def test_the_shortest_schedule_has_an_epoch_of_warm_up_where_the_models_have_one():
    runs = {planned.name: planned.settings for planned in planned_runs(PaperSettings(scale=1e-3))}
    assert (runs["mnist-lvae-bn-wu-5"].epochs, runs["mnist-lvae-bn-wu-5"].warmup_epochs) == (2, 1)
    assert runs["mnist-vae-bn-5"].warmup_epochs == 0
    # So it is the model that the paper's number belongs to.
    cells = tables.markdown_tables(PaperSettings(scale=1e-3, only=("table2",)))["table2.md"]
    printed = published.TABLE_2["omniglot"][5]
    assert all(f"({number})" in cells for number in printed)


def test_seeds_that_no_run_can_have_are_refused():
    last = settings_lib.MOST_SEEDS - 1
    assert planned_runs(PaperSettings(seed=last))
    with pytest.raises(SettingsError, match=f"--seed={last} --replicas=2: seeds end at {last}"):
        planned_runs(PaperSettings(seed=last, replicas=2))


def test_a_stopped_plan_goes_on_with_its_own_command(tmp_path, monkeypatch):
    def stopped(settings, dataset, command):
        raise Interrupted(15, "stopped after step 3; resume with: python -m experiments.digits")

    monkeypatch.setattr(loop, "run", stopped)
    settings = PaperSettings(on="digits", only=("table1",), scale=0.01, workdir=str(tmp_path))
    with pytest.raises(Interrupted) as stop:
        paper.main(settings)
    assert stop.value.status == 143
    ladder = plan(settings, "table1")[0].name
    assert str(stop.value) == f"SIGTERM: {ladder} is stopped and saved; the same command resumes it"


def lines_of_dry_run(capsys, **settings) -> list[str]:
    paper.main(PaperSettings(dry_run=True, **settings))
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_the_plan_shows_all_that_the_paper_shows_before_a_run_is_made(tmp_path, capsys):
    lines = lines_of_dry_run(capsys, workdir=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    four = "mnist-vae-5, mnist-vae-bn-5, mnist-vae-bn-wu-5, mnist-lvae-bn-wu-5"
    assert {f"figure{i}: {four}" for i in (2, 4, 5, 6)} < set(lines)
    assert any(line.startswith("figure3: ") and line.endswith("mnist-lvae-wu-5") for line in lines)
    assert "norb-lvae-bn-wu-5 2,000 epochs to do" in lines
    assert "omniglot-lvae-bn-wu-5 1,500 epochs to do" in lines
    # Table 1 whole, with its sources.
    for row in (
        "| VAE 1-layer + NF | Rezende and Mohamed, 2015 | -85.10 |",
        "| IWAE, 2-layer + IW=1 | Burda et al., 2015 | -85.33 |",
        "| IWAE, 2-layer + IW=50 | Burda et al., 2015 | -82.90 |",
        "| VAE, 2-layer + VGP | Tran et al., 2015 | -81.90 |",
        "| LVAE, 5-layer | the paper | -82.12 |",
        "| LVAE, 5-layer + finetuning | the paper | -81.84 |",
        "| LVAE, 5-layer + finetuning + IW=10 | the paper | -81.74 |",
    ):
        assert any(line.startswith(row) for line in lines), row
    # Figure 3's numbers of the text, a column for how tight the bound is, and the notes.
    assert any(line.endswith("| L_1 | L_5000 - L_1 | the paper's L_1 | the paper's L_5000 |")
               for line in lines)  # fmt: skip
    assert "| VAE+BN+WU | 3 | | | | | -87.49 | |" in lines
    assert "| LVAE+BN+WU | 5 | | | | | -85.23 | -82.12 |" in lines
    assert "The paper's best VAE, whose depth is not stated: L_5000 -82.74." in lines
    for note in (published.OMNIGLOT_NOTE, published.NORB_NOTE, published.PARAMETERS_NOTE):
        assert note in lines
    assert "-103.38" in published.OMNIGLOT_NOTE
    assert "189 steps" in published.NORB_NOTE


def test_the_papers_numbers_beside_shorter_runs_are_said_to_be_at_its_own_settings(
    tmp_path, capsys
):
    lines = lines_of_dry_run(capsys, workdir=str(tmp_path), scale=0.1, only=("table2", "figure3"))
    own = "Brackets hold the paper's numbers, at its own settings."
    assert lines.count(own) == 2
    assert any(line.endswith("| the paper's L_5000, at its own settings |") for line in lines)


def test_table_2_shows_the_papers_numbers_before_a_run_is_made(tmp_path):
    from experiments.paper.tables import table_2

    settings = PaperSettings(workdir=str(tmp_path))
    text = table_2(settings, [(planned, None) for planned in plan(settings, "table2")])
    words = " ".join(text.split())  # columns are aligned by spaces
    assert "| 64-32-16-8-4 | (-110.46) | (-105.45) | (-102.48) | (-102.11) |" in words
    assert "| 64-32 | (2792) | (3224) | (3483) | (3272) |" in words
    assert published.OMNIGLOT_NOTE in text
    assert published.NORB_NOTE in text
    assert "shortened" not in text


def test_unfinished_runs_on_a_stand_in_do_not_get_the_papers_numbers(tmp_path):
    paper = PaperSettings(on="omniglot", eval_subset=2, workdir=str(tmp_path))
    first, *others = plan(paper, "table2")
    unfinished = [(planned, None) for planned in others]
    for dataset, has_numbers in ("omniglot", True), ("omniglot-standin", False):
        results = records.run_results(dataset=dataset, eval_images=2, test_log_likelihood=-99.0)
        found = [(first, results), *unfinished]
        table = tables.table_2(paper, found)
        assert f"## {dataset}\n" in table
        assert "-99.00" in table
        assert "L_1" not in table
        rows = csv.DictReader(io.StringIO(tables.results_csv(paper, found)))
        assert {(row["dataset"], row["paper_log_likelihood"] != "") for row in rows} == {
            (dataset, has_numbers)
        }
        for text in ("(-102.11)", "Brackets", "Burda et al."):
            assert (text in table) is has_numbers


def test_the_time_left_is_that_of_the_epochs_so_far_times_the_samples(tmp_path):
    runs = plan(PaperSettings(workdir=str(tmp_path)), "table1")
    assert paper_plan.time_left(runs) is None
    ladder, tuned, tuned_more = (planned.settings for planned in runs)
    Path(ladder.workdir).mkdir(parents=True)
    lines = [json.dumps(records.epoch(i, seconds=2.0).to_json()) + "\n" for i in range(10)]
    (Path(ladder.workdir) / "metrics.jsonl").write_text("".join(lines))
    # 10 of 2,000 epochs are done; tuning has 10 and 10 × 10 samples per image.
    assert (tuned.mc_samples, tuned_more.iw_samples) == (10, 10)
    assert paper_plan.time_left(runs) == 1990 * 2.0 + 2000 * 2.0 * 10 + 2000 * 2.0 * 100


def test_each_run_is_announced_with_the_time_left_once_one_is_made(
    tiny, tmp_path, monkeypatch, capsys
):
    def run(settings, dataset, command):
        Path(settings.workdir).mkdir(parents=True)
        lines = [json.dumps(records.epoch(i, seconds=60.0).to_json()) for i in range(3)]
        (Path(settings.workdir) / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        if settings.workdir.endswith("digits-vae-bn-2"):
            raise NonFiniteError("epoch 4: the training ELBO is nan")

    monkeypatch.setattr("experiments.run.loop.run", run)
    with pytest.raises(SystemExit):
        paper.main(dataclasses.replace(tiny, only=("figure6",), workdir=str(tmp_path)))
    announced = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    left = "of training left in all"
    assert announced == [
        "[1/4] digits-vae-2",
        f"[2/4] digits-vae-bn-2; about 9 min {left}",
        f"[3/4] digits-vae-bn-wu-2; about 6 min {left}",
        f"[4/4] digits-lvae-bn-wu-2; about 3 min {left}",
    ]
