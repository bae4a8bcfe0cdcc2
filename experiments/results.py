"""What an epoch, a run and its model found, as typed records, and the JSON of the numbers.

A run has one or more replicas, and a record always holds a tuple of them. `EpochRecord` is a line
of metrics.jsonl, `RunResults` is results.json. Only this module converts them from and to JSON.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

USED_KL = 0.01
"""In nats. A unit with a greater KL counts as used. A unit of a lower layer can be active (its
posterior mean varies) just because its prior follows the layer above; its KL is what it adds."""

_NO_MEAN = ("kl_per_unit", "seed")
"""Fields without a mean: unit j of one replica does not correspond to unit j of another."""


@dataclasses.dataclass(frozen=True)
class ReplicaEpoch:
    """One replica's numbers of an epoch; all quantities in nats.

    The means over the epoch are None if all its updates were skipped. The last four fields are None
    if the epoch was not evaluated, and `validation_elbo` is None if no images are held out.
    """

    beta: float
    learning_rate: float
    train_elbo: float | None
    log_px: float | None
    kl_per_layer: tuple[float | None, ...]
    validation_elbo: float | None = None
    test_elbo: float | None = None
    active_units: tuple[int, ...] | None = None
    kl_per_unit: tuple[tuple[float, ...], ...] | None = None


@dataclasses.dataclass(frozen=True)
class ReplicaResults:
    """One replica's final numbers; all quantities in nats.

    `test_log_likelihood_standard_error` is over the test images; None for a single image.
    """

    chosen_epoch: int
    test_log_likelihood: float
    test_log_likelihood_standard_error: float | None
    effective_sample_size: float
    train_elbo: float
    kl_per_layer: tuple[float, ...]
    test_elbo: float
    active_units: tuple[int, ...]
    kl_per_unit: tuple[tuple[float, ...], ...]
    seed: int
    subset_elbo: float | None = None
    """L_1 of the images of the log-likelihood, with --eval_subset."""


class Replicated:
    """A record of one or more replicas, read by the names of a replica's fields."""

    replicas: tuple[Any, ...]
    replica_type: ClassVar[type[Any]]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_json` wrote.

        Raises:
          ValueError: a field is missing, or is of another type.
        """
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        each_replica = values.get("replicas", [values])
        if not isinstance(each_replica, list) or not each_replica:
            raise ValueError("its replicas are not a list of at least one")
        replicas = tuple(_make(cls.replica_type, each) for each in each_replica)
        return _make(cls, values | {"replicas": replicas})

    def each(self, name: str) -> list[Any]:
        """The field's value for each replica."""
        return [getattr(replica, name) for replica in self.replicas]

    def mean(self, name: str) -> Any:
        """The mean over the replicas, per layer for fields with layers; None if a value is None."""
        return _elementwise(lambda values: float(np.mean(values)), self.each(name))

    def deviation(self, name: str) -> Any:
        """The replicas' standard deviation (ddof = 1), shaped as `mean`; None for one replica."""
        if len(self.replicas) == 1:
            return None
        return _elementwise(lambda values: float(np.std(values, ddof=1)), self.each(name))

    def used_units(self) -> list[tuple[int, ...]]:
        """[replicas][layers]: the number of units with a KL of more than `USED_KL`."""
        return [
            tuple(sum(kl > USED_KL for kl in layer) for layer in layers)
            for layers in self.each("kl_per_unit")
        ]

    def kl_by_layer(self) -> list[tuple[float, ...]]:
        """[replicas][layers]: the test set's KL, or else the training set's."""
        return [
            replica.kl_per_layer
            if replica.kl_per_unit is None
            else tuple(map(sum, replica.kl_per_unit))
            for replica in self.replicas
        ]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values.

        The top level holds the numbers of a single replica. For several replicas it holds their
        means, "standard_deviation", and "replicas", a list of each replica's numbers.
        """
        values: dict[str, Any] = {}
        for name, value in _fields(self).items():
            values |= self._summary() if name == "replicas" else {name: value}
        return values

    def _summary(self) -> dict[str, Any]:
        each = [_fields(replica) for replica in self.replicas]
        if len(each) == 1:
            return each[0]
        names = [name for name in each[0] if name not in _NO_MEAN]
        return {
            **{name: self.mean(name) for name in names},
            "standard_deviation": {name: self.deviation(name) for name in names},
            "replicas": each,
        }


@dataclasses.dataclass(frozen=True)
class EpochRecord(Replicated):
    """The numbers of an epoch: a line of metrics.jsonl.

    Example:
      >>> one = ReplicaEpoch(1.0, 1e-3, train_elbo=-90.0, log_px=-70.0, kl_per_layer=(16.0, 4.0))
      >>> other = dataclasses.replace(one, train_elbo=-92.0, kl_per_layer=(16.0, 6.0))
      >>> record = EpochRecord(epoch=7, step=80, replicas=(one, other), seconds=1.5)
      >>> record.mean("train_elbo"), record.mean("kl_per_layer")
      (-91.0, (16.0, 5.0))
      >>> EpochRecord.from_json(record.to_json()) == record
      True
    """

    replica_type = ReplicaEpoch

    epoch: int
    step: int
    replicas: tuple[ReplicaEpoch, ...]
    seconds: float
    skipped_updates: int | None = None

    @property
    def evaluated(self) -> bool:
        """Whether the test set was evaluated after this epoch."""
        return self.replicas[0].test_elbo is not None


@dataclasses.dataclass(frozen=True)
class RunResults(Replicated):
    """The numbers of a finished run: results.json."""

    replica_type = ReplicaResults

    dataset: str
    model: str
    epochs: int
    seed: int
    eval_samples: int
    eval_images: int
    replicas: tuple[ReplicaResults, ...]
    training_seconds: float
    wall_seconds: float
    device: str

    @property
    def bound_gap(self) -> float:
        """L_K - L_1 of the same images, the mean over the replicas."""
        subset_elbo = self.mean("subset_elbo")
        elbo = self.mean("test_elbo") if subset_elbo is None else subset_elbo
        return self.mean("test_log_likelihood") - elbo


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as read from its folder: everything that is shown is made from this."""

    path: Path
    config: dict[str, Any]
    epochs: Sequence[EpochRecord]
    results: RunResults | None
    """None while the run is not finished."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings in config.json."""
        return self.config["settings"]

    @property
    def measured(self) -> EpochRecord | RunResults | None:
        """The results, else the last evaluated epoch, else None."""
        evaluated = (epoch for epoch in reversed(self.epochs) if epoch.evaluated)
        return self.results or next(evaluated, None)


@dataclasses.dataclass(frozen=True)
class Draws:
    """What a run's model draws, its first replica's: means of p(x | z_1), and samples of z.

    The figures of the model are made from this. All images are [..., data_dim].
    """

    image_shape: tuple[int, ...]
    """Of one image of the data set."""

    images: np.ndarray
    """[images, data_dim]: the first test images."""

    reconstructions: np.ndarray
    """As `images`: with z drawn from the posterior of each image."""

    first_images: np.ndarray
    """[columns, data_dim]: a test image of each label, for `known` and `interpolations`."""

    known: np.ndarray
    """[depth, draws, columns, data_dim]. For layer i: z_i is a posterior sample, and all layers
    below it are drawn from their priors. What changes between draws is not determined by z_i."""

    layer: int
    """Of the interpolations."""

    interpolations: np.ndarray
    """[pairs, steps, data_dim]: straight lines in one layer's z between posterior samples of two
    of the first images; the noise of the layers below is fixed along each line."""

    samples: np.ndarray
    """[samples, data_dim]: from the prior."""

    z: tuple[np.ndarray, ...]
    """Per layer, a posterior sample of each of many test images, [test images, units]."""

    labels: np.ndarray
    """Of these test images."""


def _elementwise(statistic: Callable[[list[Any]], Any], values: Sequence[Any]) -> Any:
    if isinstance(values[0], tuple):
        return tuple(_elementwise(statistic, parts) for parts in zip(*values, strict=True))
    return None if None in values else statistic(list(values))


def _fields(record: Any) -> dict[str, Any]:
    """A record's fields, without optional ones that are None."""
    return {
        field.name: value
        for field in dataclasses.fields(record)
        for value in [getattr(record, field.name)]
        if not (value is None and field.default is None)
    }


def _make(kind: type[Any], values: Any) -> Any:
    """Makes a record; values that it has no field for are ignored."""
    if not isinstance(values, dict):
        raise ValueError("a replica is not a JSON object")
    fields = dataclasses.fields(kind)
    missing = [f.name for f in fields if f.default is not None and f.name not in values]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    found = {f.name: _tuples(values[f.name]) for f in fields if f.name in values}
    wrong = [f.name for f in fields if f.name in found and not _is_a(f.type, found[f.name])]
    if wrong:
        raise ValueError(f"its {wrong[0]} is of another type")
    return kind(**found)


def _is_a(kind: Any, value: Any) -> bool:
    """Whether a value is of an annotated type; JSON may write a float as a whole number."""
    if isinstance(kind, types.UnionType):
        return any(_is_a(each, value) for each in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(typing.get_args(kind)[0], v) for v in value)
    return isinstance(value, int | float if kind is float else kind)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
