"""Replicas: what is said of several runs at once, from their numbers to a real run's report."""

import dataclasses
import html
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import experiments.run.loop
from experiments import compare, digits, registry, report
from experiments.progress import Progress
from experiments.replicas import each, of_the_first, summarize
from experiments.run.loop import describe, run
from experiments.settings import Command
from experiments.show.shown import count_with_deviation, part_of_the_test_set, seeds, with_deviation

DIGITS = Command("digits", digits.DEFAULTS)

SETTINGS = dataclasses.replace(
    digits.DEFAULTS,
    replicas=2,
    seed=4,
    depth=2,
    latent_sizes=(4, 2),
    hidden_sizes=(16, 8),
    epochs=3,
    warmup_epochs=2,
    learning_rate=(1e-30, 1e-3),  # the first stays where it began: its best epoch is by chance
    validation=100,
    eval_every=1,
    eval_samples=3,
    eval_subset=40,
    checkpoint_seconds=0.0,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    run(
        dataclasses.replace(SETTINGS, workdir=str(workdir)),
        digits.load(SETTINGS),
        DIGITS,
    )
    return workdir


def files_of(path: Path) -> tuple[dict, list[dict], dict]:
    """config.json, metrics.jsonl and results.json."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    config, results = (
        json.loads((path / f"{name}.json").read_text()) for name in ("config", "results")
    )
    return config, [json.loads(line) for line in lines], results


def page_of(workdir: Path) -> str:
    return html.unescape((workdir / "report.html").read_text(encoding="utf-8"))


def expected(values: list[float], form: str = ".2f") -> str:
    """Mean and standard deviation by the standard library."""
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


def test_no_mean_is_taken_of_units_that_do_not_correspond():
    by_replica = [
        {"elbo": -3.0, "kl_per_unit": [[2.0, 0.0]], "active_units": [1]},
        {"elbo": -5.0, "kl_per_unit": [[0.0, 2.0]], "active_units": [2]},
    ]
    line = {"epoch": 7, **summarize(by_replica)}
    assert line == {
        "epoch": 7,
        "elbo": -4.0,
        "active_units": [1.5],
        "standard_deviation": {"elbo": 2**0.5, "active_units": [0.5**0.5]},
        "replicas": by_replica,
    }
    assert each(line) == by_replica
    (first,) = of_the_first([line])
    assert first["epoch"] == 7
    assert by_replica[0].items() <= first.items()
    one = {"epoch": 7, **summarize(by_replica[:1])}
    assert of_the_first([one]) == [one] == each(one) == [{"epoch": 7, **by_replica[0]}]


def test_of_one_number_there_is_no_deviation_and_of_several_that_of_a_sample():
    assert with_deviation([-1.254]) == "-1.25"
    assert with_deviation([1.0, 2.0, 6.0]) == "3.00 ± 2.65"  # sqrt((4 + 1 + 9) / 2)
    assert with_deviation([1.0, float("nan")]) == "nan ± nan"
    assert count_with_deviation([7]) == "7"
    assert count_with_deviation([7, 8]) == "7.5 ± 0.7"


def test_seeds_count_up_from_the_first_and_a_run_of_an_older_version_has_one():
    assert seeds({"seed": 5}) == "5"
    assert seeds({"seed": 5, "replicas": 1}) == "5"
    assert seeds({"seed": 5, "replicas": 8}) == "5-12"


def test_part_of_the_test_set_is_named_where_it_is_not_the_whole():
    assert part_of_the_test_set({}, {}) == ""
    assert part_of_the_test_set({"eval_subset": 0}, {"eval_images": 10_000}) == ""
    assert part_of_the_test_set({"eval_subset": 500}, {"eval_images": 360}) == ""
    images = part_of_the_test_set({"eval_subset": 1000}, {"eval_images": 1000})
    assert images == "the first 1,000 test images"
    images = part_of_the_test_set({"eval_subset": 1}, {"eval_images": 1})
    assert images == "the first test image"


def test_results_hold_each_replica_with_its_seed_and_their_mean_and_deviation(finished):
    _, lines, results = files_of(finished)
    assert [replica["seed"] for replica in results["replicas"]] == [4, 5]
    for numbers in (results, *lines):
        assert "kl_per_unit" not in numbers
        for name in ("train_elbo", "test_elbo"):
            values = [replica[name] for replica in numbers["replicas"]]
            assert len(set(values)) == 2
            assert numbers[name] == pytest.approx(statistics.mean(values))
            deviation = numbers["standard_deviation"][name]
            assert deviation == pytest.approx(statistics.stdev(values))
    assert [replica["learning_rate"] for replica in lines[0]["replicas"]] == [1e-30, 1e-3]


def test_a_finished_run_with_values_by_replica_is_found_finished(finished, capsys):
    run(
        dataclasses.replace(SETTINGS, workdir=str(finished)),
        digits.load(SETTINGS),
        DIGITS,
    )
    assert f"{finished} is finished." in capsys.readouterr().out


def test_the_command_gives_the_values_by_replica(finished):
    command = registry.command(files_of(finished)[0], finished)
    assert "--learning_rate=1e-30,0.001" in command
    assert "--replicas=2" in command
    assert f"<pre>{command}</pre>" in page_of(finished)


def test_a_run_is_described_by_mean_and_deviation_and_each_replica(finished):
    config, _, results = files_of(finished)
    replicas = results["replicas"]
    text = describe(results, config)
    likelihoods = [replica["test_log_likelihood"] for replica in replicas]
    assert f"test log-likelihood {expected(likelihoods)} nats (L_3 of 40 images; " in text
    for replica in replicas:
        assert f"  seed {replica['seed']}: test log-likelihood " in text
        assert f"{replica['test_log_likelihood']:.2f} ± " in text
    chosen = ", ".join(str(replica["chosen_epoch"]) for replica in replicas)
    assert f"epoch {chosen} chosen by validation" in text
    used = [sum(kl > 0.01 for kl in replica["kl_per_unit"][0]) for replica in replicas]
    assert f"{expected(used, '.1f')} with KL > 0.01" in text


def test_of_one_image_no_standard_error_is_described(finished):
    config, _, results = files_of(finished)
    one = {**results, **results["replicas"][0], "eval_images": 1}
    del one["replicas"], one["standard_deviation"]
    one["test_log_likelihood_standard_error"] = None
    text = describe(one, config)
    assert f"test log-likelihood {one['test_log_likelihood']:.2f} nats (L_3 of 1 image)" in text
    for replica in results["replicas"]:
        replica["test_log_likelihood_standard_error"] = None
    results["test_log_likelihood_standard_error"] = None
    assert "None" not in describe(results, config)


def test_tensorboard_holds_a_histogram_of_the_units_of_all_replicas(finished):
    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"histograms": 0})
    histograms = events.Reload().Histograms("kl_per_unit/z_1")
    _, lines, _ = files_of(finished)
    assert [histogram.step for histogram in histograms] == [0, 1, 2]
    for histogram, line in zip(histograms, lines, strict=True):
        units = np.concatenate([replica["kl_per_unit"][0] for replica in line["replicas"]])
        assert histogram.histogram_value.num == len(units) == 8
        np.testing.assert_allclose(histogram.histogram_value.sum, sum(units), rtol=1e-6)


def test_the_replicas_have_chosen_different_epochs_and_are_drawn_again_byte_for_byte(
    finished, tmp_path
):
    # The pictures are of the first replica, whose epoch is not the one that was saved last.
    _, _, results = files_of(finished)
    first, second = (replica["chosen_epoch"] for replica in results["replicas"])
    assert first != second
    copied = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.rmtree(copied / "figures")
    (copied / "report.html").unlink()
    report.report(copied)
    for file in (finished / "figures").iterdir():
        assert (copied / "figures" / file.name).read_bytes() == file.read_bytes(), file.name
    assert page_of(copied) == page_of(finished).replace(str(finished), str(copied))


def test_a_run_with_replicas_that_is_not_finished_is_reported(tmp_path):
    class Interrupted(Progress):
        def update(self, done: int, note: str = "") -> None:
            if done == 2:
                raise KeyboardInterrupt

    settings = dataclasses.replace(SETTINGS, workdir=str(tmp_path / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.run.loop, "Progress", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(settings, digits.load(settings), DIGITS)
    report.report(tmp_path / "run")
    text = page_of(tmp_path / "run")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    elbos = expected([replica["train_elbo"] for replica in last["replicas"]])
    assert f"Not finished: 2 of 3 epochs. Train ELBO of the last one {elbos} nats (mean" in text
    assert text.count("<img ") == 8
    row = compare.table([compare.read(tmp_path / "run")]).splitlines()[-1]
    assert "| 2 of 3 | 4-5 |" in row
    assert expected([replica["test_elbo"] for replica in last["replicas"]]) in row
