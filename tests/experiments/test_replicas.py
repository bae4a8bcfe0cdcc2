"""Replicas: what is said of several runs at once, from their numbers to a real run's report."""

import dataclasses
import html
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from records import replica_results, run_results
from small_runs import PAIR, break_off, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tolerances import EPSILON_64, assert_close

from experiments import compare, registry, report
from experiments.results import RunResults
from experiments.show.console import describe
from experiments.show.numbers import count, part_of_the_test_set, seeds, with_deviation
from experiments.store.workdir import read_run


@pytest.fixture
def finished(finished_pair) -> Path:
    return finished_pair


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


def test_of_one_number_there_is_no_deviation_and_of_several_that_of_a_sample():
    assert with_deviation([-1.254]) == "-1.25"
    assert with_deviation([1.0, 2.0, 6.0]) == "3.00 ± 2.65"  # sqrt((4 + 1 + 9) / 2)
    assert with_deviation([1.0, float("nan")]) == "nan ± nan"
    assert count([7]) == "7"
    assert count([7, 8]) == "7.5 ± 0.7"


def test_seeds_count_up_from_the_first():
    assert seeds({"seed": 5, "replicas": 1}) == "5"
    assert seeds({"seed": 5, "replicas": 8}) == "5-12"


def test_part_of_the_test_set_is_named_where_it_is_not_the_whole():
    for subset, images, part in (
        (0, 10_000, ""),
        (500, 360, ""),
        (1000, 1000, "the first 1,000 test images"),
        (1, 1, "the first test image"),
    ):
        results = run_results(eval_images=images)
        assert part_of_the_test_set({"eval_subset": subset}, results) == part


def test_results_hold_each_replica_with_its_seed_and_their_mean_and_deviation(finished):
    _, lines, results = files_of(finished)
    assert [replica["seed"] for replica in results["replicas"]] == [4, 5]
    for numbers in (results, *lines):
        assert "kl_per_unit" not in numbers
        for name in ("train_elbo", "test_elbo"):
            values = [replica[name] for replica in numbers["replicas"]]
            assert len(set(values)) == 2
            assert_close(numbers[name], statistics.mean(values), 2, epsilon=EPSILON_64)
            deviation, size = numbers["standard_deviation"][name], np.abs(values).max()
            assert_close(deviation, statistics.stdev(values), 4, size, EPSILON_64)
    assert [replica["learning_rate"] for replica in lines[0]["replicas"]] == [1e-30, 1e-3]


def test_a_finished_run_with_values_by_replica_is_found_finished(finished, capsys):
    train(finished, PAIR)
    assert f"{finished} is finished." in capsys.readouterr().out


def test_the_command_gives_the_values_by_replica(finished):
    command = registry.command(files_of(finished)[0], finished)
    assert "--learning_rate=1e-30,0.001" in command
    assert "--replicas=2" in command
    assert f"<pre>{command}</pre>" in page_of(finished)


def test_a_run_is_described_by_mean_and_deviation_and_each_replica(finished):
    config, _, results = files_of(finished)
    replicas = results["replicas"]
    text = describe(RunResults.from_json(results), config)
    likelihoods = [replica["test_log_likelihood"] for replica in replicas]
    assert f"test log-likelihood {expected(likelihoods)} nats (L_20 of 40 images; " in text
    for replica in replicas:
        assert f"  seed {replica['seed']}: test log-likelihood " in text
        assert f"{replica['test_log_likelihood']:.2f} ± " in text
    assert "digits, lvae with 2 layers, 3 epochs, epoch 2, 3 chosen by validation, " in text
    used = [sum(kl > 0.01 for kl in replica["kl_per_unit"][0]) for replica in replicas]
    assert f"{expected(used, '.1f')} with KL > 0.01" in text


def test_of_one_image_no_standard_error_is_described(finished):
    config, _, _ = files_of(finished)
    one = replica_results(test_log_likelihood=-82.25, test_log_likelihood_standard_error=None)
    text = describe(run_results(one, eval_images=1, eval_samples=3), config)
    assert "test log-likelihood -82.25 nats (L_3 of 1 image)" in text
    several = describe(run_results(one, dataclasses.replace(one, seed=1), eval_images=1), config)
    assert "None" not in text + several


def test_tensorboard_holds_the_means_of_the_replicas_and_the_elbos_of_each(finished):
    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    _, lines, _ = files_of(finished)
    expected = {
        name: [line[name] for line in lines]
        for name in (
            "seconds", "beta", "learning_rate", "train_elbo", "log_px", "validation_elbo",
            "test_elbo",
        )
    }  # fmt: skip
    for i in (0, 1):
        for name in ("kl_per_layer", "active_units"):
            expected[f"{name}/z_{i + 1}"] = [line[name][i] for line in lines]
        for name in ("train_elbo", "test_elbo"):
            each = [line["replicas"][i][name] for line in lines]
            expected[f"{name}/replica_{i + 1}"] = each
    assert set(events.Tags()["scalars"]) == expected.keys()
    for name, values in expected.items():
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [0, 1, 2]
        # TensorBoard's are float32.
        assert_close([scalar.value for scalar in scalars], values, roundings=1)


def test_tensorboard_holds_a_histogram_of_the_units_of_all_replicas(finished):
    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"histograms": 0})
    histograms = events.Reload().Histograms("kl_per_unit/z_1")
    _, lines, _ = files_of(finished)
    assert [histogram.step for histogram in histograms] == [0, 1, 2]
    for histogram, line in zip(histograms, lines, strict=True):
        units = np.concatenate([replica["kl_per_unit"][0] for replica in line["replicas"]])
        assert histogram.histogram_value.num == len(units) == 8
        found, size = histogram.histogram_value.sum, np.abs(units).sum()
        assert_close(found, sum(units), len(units), size, EPSILON_64)


def test_each_replica_is_evaluated_after_the_epoch_of_its_own_best_validation_elbo(finished):
    _, lines, results = files_of(finished)
    elbos = [[replica["validation_elbo"] for replica in line["replicas"]] for line in lines]
    assert elbos == [[-42.0, -45.0], [-40.0, -44.0], [-41.0, -43.0]]
    assert [replica["chosen_epoch"] for replica in results["replicas"]] == [2, 3]
    for replica, epoch in enumerate((2, 3)):
        measured = lines[epoch - 1]["replicas"][replica]["test_elbo"]
        assert results["replicas"][replica]["test_elbo"] == measured


def test_replicas_that_have_chosen_different_epochs_are_drawn_again_byte_for_byte(
    finished, tmp_path
):
    # The pictures are of the first replica, whose epoch is not the one that was saved last.
    copied = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.rmtree(copied / "figures")
    (copied / "report.html").unlink()
    report.report(copied)
    for file in (finished / "figures").iterdir():
        assert (copied / "figures" / file.name).read_bytes() == file.read_bytes(), file.name
    assert page_of(copied) == page_of(finished).replace(str(finished), str(copied))


def test_a_run_with_replicas_that_is_not_finished_is_reported(tmp_path):
    break_off(tmp_path / "run", PAIR)
    report.report(tmp_path / "run")
    text = page_of(tmp_path / "run")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    elbos = expected([replica["train_elbo"] for replica in last["replicas"]])
    assert f"Not finished: 2 of 3 epochs. Train ELBO of the last one {elbos} nats (mean" in text
    assert text.count("<img ") == 8
    row = compare.table([read_run(tmp_path / "run")]).splitlines()[-1]
    assert "| 2 of 3 | 4-5 |" in " ".join(row.split())
    assert expected([replica["test_elbo"] for replica in last["replicas"]]) in row
