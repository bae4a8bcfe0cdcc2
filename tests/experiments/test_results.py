"""Records: means and deviations by the standard library, and JSON that is read as written."""

import dataclasses
import json
import statistics

import pytest
from tolerances import EPSILON_64, assert_close

from experiments.results import EpochRecord, ReplicaEpoch, ReplicaResults, RunResults

ONE = ReplicaEpoch(
    beta=0.5, learning_rate=1e-3, train_elbo=-3.0, log_px=-2.0, kl_per_layer=(0.75, 0.25)
)
OTHER = dataclasses.replace(ONE, train_elbo=-5.0, kl_per_layer=(1.0, 0.5))
MEASURED = {"test_elbo": -4.0, "active_units": (1,), "kl_per_unit": ((2.0, 0.01),)}
EPOCH = EpochRecord(epoch=7, step=16, replicas=(ONE,), seconds=0.5)

REPLICA = ReplicaResults(
    chosen_epoch=20,
    test_log_likelihood=-4.0,
    test_log_likelihood_standard_error=0.5,
    effective_sample_size=9.0,
    train_elbo=-4.5,
    kl_per_layer=(2.0,),
    test_elbo=-5.0,
    active_units=(2,),
    kl_per_unit=((1.75, 0.25),),
    seed=3,
)
RESULTS = RunResults(
    dataset="mnist",
    model="lvae",
    epochs=20,
    seed=3,
    eval_samples=50,
    eval_images=100,
    replicas=(REPLICA,),
    training_seconds=2.0,
    wall_seconds=3.0,
    device="1 x cpu (2 cores)",
)


def through_a_file(record):
    return type(record).from_json(json.loads(json.dumps(record.to_json())))


def test_one_replica_stands_beside_the_numbers_of_the_run():
    assert EPOCH.to_json() == {
        "epoch": 7,
        "step": 16,
        "beta": 0.5,
        "learning_rate": 1e-3,
        "train_elbo": -3.0,
        "log_px": -2.0,
        "kl_per_layer": (0.75, 0.25),
        "seconds": 0.5,
    }
    assert RESULTS.to_json() == {
        "dataset": "mnist", "model": "lvae", "epochs": 20, "seed": 3, "eval_samples": 50,
        "eval_images": 100, "chosen_epoch": 20, "test_log_likelihood": -4.0,
        "test_log_likelihood_standard_error": 0.5, "effective_sample_size": 9.0,
        "train_elbo": -4.5, "kl_per_layer": (2.0,), "test_elbo": -5.0, "active_units": (2,),
        "kl_per_unit": ((1.75, 0.25),), "training_seconds": 2.0, "wall_seconds": 3.0,
        "device": "1 x cpu (2 cores)",
    }  # fmt: skip


def test_several_replicas_stand_below_their_means_and_deviations_but_units_have_none():
    first = dataclasses.replace(ONE, **MEASURED)
    second = dataclasses.replace(OTHER, **MEASURED | {"active_units": (2,)})
    values = dataclasses.replace(EPOCH, replicas=(first, second)).to_json()
    assert "kl_per_unit" not in values
    assert values["train_elbo"] == statistics.mean([-3.0, -5.0]) == -4.0
    assert values["kl_per_layer"] == (0.875, 0.375)
    assert values["active_units"] == (1.5,)
    deviation = values["standard_deviation"]
    assert deviation.keys() == {
        "beta", "learning_rate", "train_elbo", "log_px", "kl_per_layer", "test_elbo",
        "active_units",
    }  # fmt: skip
    train_elbo = statistics.stdev([-3.0, -5.0])
    assert_close(deviation["train_elbo"], train_elbo, roundings=4, epsilon=EPSILON_64)
    kl_per_layer = [0.125 * 2**0.5] * 2
    assert_close(deviation["kl_per_layer"], kl_per_layer, roundings=4, epsilon=EPSILON_64)
    assert deviation["beta"] == 0.0
    assert [each["active_units"] for each in values["replicas"]] == [(1,), (2,)]
    assert [each["kl_per_unit"] for each in values["replicas"]] == [((2.0, 0.01),)] * 2


@pytest.mark.parametrize(
    "record",
    [
        EPOCH,
        dataclasses.replace(EPOCH, replicas=(dataclasses.replace(ONE, **MEASURED),)),
        dataclasses.replace(EPOCH, replicas=(ONE, OTHER), skipped_updates=2),
        dataclasses.replace(EPOCH, replicas=(dataclasses.replace(ONE, train_elbo=None),)),
        RESULTS,
        dataclasses.replace(RESULTS, replicas=(REPLICA, dataclasses.replace(REPLICA, seed=4))),
    ],
)
def test_a_record_is_read_as_it_was_written(record):
    assert through_a_file(record) == record


def test_a_mean_that_a_replica_lacks_is_null_and_what_was_not_measured_is_not_there():
    skipped = dataclasses.replace(ONE, train_elbo=None, kl_per_layer=(None, None))
    record = dataclasses.replace(EPOCH, replicas=(skipped, OTHER))
    values = json.loads(json.dumps(record.to_json()))
    assert values["train_elbo"] is values["standard_deviation"]["train_elbo"] is None
    assert values["kl_per_layer"] == [None, None]
    assert "test_elbo" not in values
    assert "skipped_updates" not in values
    assert not record.evaluated


def test_of_one_replica_there_is_no_deviation():
    assert EPOCH.mean("train_elbo") == -3.0
    assert EPOCH.deviation("train_elbo") is None
    assert EPOCH.each("train_elbo") == [-3.0]


def test_a_unit_is_used_if_its_kl_is_greater_than_a_hundredth():
    results = dataclasses.replace(
        RESULTS, replicas=(dataclasses.replace(REPLICA, kl_per_unit=((0.01, 0.011), (3.0, -1.0))),)
    )
    assert results.used_units() == [(1, 1)]


def test_numbers_of_a_later_version_are_ignored_and_missing_ones_are_named():
    values = RESULTS.to_json()
    assert RunResults.from_json(values | {"of_tomorrow": 1}) == RESULTS
    del values["device"]
    with pytest.raises(ValueError, match="it has no device"):
        RunResults.from_json(values)
    for nothing in ([], None, 3.0):
        with pytest.raises(ValueError, match="not a JSON object"):
            EpochRecord.from_json(nothing)
