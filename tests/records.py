"""Records of runs that nobody made: every field has a value, and a test names those it is about."""

from typing import Any

from experiments.results import EpochRecord, ReplicaEpoch, ReplicaResults, RunResults


def tuples(value: Any) -> Any:
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def replica_epoch(**fields: Any) -> ReplicaEpoch:
    """One replica's numbers of an epoch; evaluated if any number of an evaluation is given."""
    values = {
        "beta": 1.0, "learning_rate": 1e-3, "train_elbo": -90.0, "log_px": -70.0,
        "kl_per_layer": (20.0,),
    }  # fmt: skip
    if fields.keys() & {"test_elbo", "active_units", "kl_per_unit"}:
        units = fields.get("kl_per_unit", ((20.0,),))
        values |= {"test_elbo": -91.0, "kl_per_unit": units, "active_units": (1,) * len(units)}
    return ReplicaEpoch(**{name: tuples(value) for name, value in (values | fields).items()})


def epoch(number: int, *replicas: ReplicaEpoch, seconds: float = 1.0, **fields: Any) -> EpochRecord:
    """An epoch of these replicas, or of one with these fields."""
    return EpochRecord(number, 10 * number + 10, replicas or (replica_epoch(**fields),), seconds)


def replica_results(**fields: Any) -> ReplicaResults:
    """What one replica found."""
    values = {
        "chosen_epoch": 2000, "test_log_likelihood": -82.3456,
        "test_log_likelihood_standard_error": 0.2345, "effective_sample_size": 123.4,
        "train_elbo": -83.2109, "kl_per_layer": (1.751, 2.009, 3.0, 0.5, 0.0),
        "test_elbo": -85.4321, "active_units": (3, 1, 1, 0, 0),
        "kl_per_unit": ((1.5, 0.25, 0.001), (2.0, 0.009), (3.0,), (0.5,), (0.0,)), "seed": 0,
    }  # fmt: skip
    return ReplicaResults(**{name: tuples(value) for name, value in (values | fields).items()})


RUN_FIELDS = {
    "dataset": "mnist", "model": "lvae", "epochs": 2000, "seed": 0, "eval_samples": 5000,
    "eval_images": 10_000, "training_seconds": 3600.4, "wall_seconds": 4000.6,
    "device": "1 x cpu (2 cores)",
}  # fmt: skip


def run_results(*replicas: ReplicaResults, **fields: Any) -> RunResults:
    """Results of these replicas, or of one; the other fields are the replica's or the run's."""
    run = {name: fields.pop(name) for name in RUN_FIELDS if name in fields}
    values = RUN_FIELDS | {"seed": replicas[0].seed if replicas else 0} | run
    return RunResults(**values, replicas=replicas or (replica_results(**fields),))
