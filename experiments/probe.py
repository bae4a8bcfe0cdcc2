"""Measures what each layer knows about the class: `python -m experiments.probe RUN`.

Trains classifiers on the frozen latents of every layer, on pixels and on principal components, of
the images whose label is known.
"""

import dataclasses
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import cli, finished
from experiments.errors import SettingsError, WorkdirError
from experiments.finished import Finished, UseSettings
from experiments.progress import Progress
from experiments.settings import setting, whole
from experiments.show import numbers, uses
from lvae_jax import latents
from lvae_jax.data.source import UNKNOWN

LABELS = (100, 1000, 0)
"""Numbers of labelled training images; 0 means all."""
BINS = 32

PUBLISHED = (
    "Published test errors on MNIST with 100 labels: M1+M2 3.33 % (Kingma et al., 2014), ADGM "
    "0.96 % (Maaløe et al., 2016). Those models learn from labels and unlabelled images together; "
    "the latents here were learnt without labels."
)


@dataclasses.dataclass(frozen=True)
class ProbeSettings(UseSettings):
    """The settings of the classifiers."""

    draws: int = setting(10, whole(2), "random choices of the 100 and of the 1,000 labelled images")
    neighbours: int = setting(5, whole(1), "k of the k-nearest-neighbour classifier")
    subset: int = setting(0, whole(0), "use the first N training images; 0: all")


def representations(
    run: Finished, train_x: np.ndarray, test_x: np.ndarray
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[int]]:
    """Training and test features by name, and the number of active units per layer.

    The latents are posterior means, see `latents.encode`.
    """
    train, test = (
        latents.encode(run.model, run.variables, jnp.asarray(x)) for x in (train_x, test_x)
    )
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(train.z, test.z, strict=True)]
    found = {f"z_{i}": pair for i, pair in enumerate(pairs, 1)}
    if len(pairs) > 1:
        found["all z"] = (
            np.concatenate([a for a, _ in pairs], 1),
            np.concatenate([b for _, b in pairs], 1),
        )
    most = train_x.shape[1]  # there are no more principal components
    sizes = sorted({min(pair[0].shape[1], most) for pair in found.values()}, reverse=True)
    found["pixels"] = (train_x, test_x)
    mean = train_x.mean(0)
    # From the smallest variance up.
    _, directions = np.linalg.eigh(np.atleast_2d(np.cov(train_x.T)))
    for size in sizes:
        chosen = directions[:, ::-1][:, :size]
        found[f"PCA {size}"] = ((train_x - mean) @ chosen, (test_x - mean) @ chosen)
    return found, [int(np.sum(active)) for active in train.active]


def unit_information(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mutual information of every unit with the class, in nats, and its standard error.

    Units are cut into `BINS` quantiles. The plug-in estimate is the mean over the images of
    log p(bin, class) / (p(bin) p(class)), and has the standard error of this mean. It is corrected
    for its first-order bias (Miller, 1955), so it is about zero for a unit that is independent of
    the class. Cutting loses information, so the result is a lower bound.

    Args:
      z: [images, units].
      labels: [images].

    Returns:
      [units] each.
    """
    classes, label = np.unique(labels, return_inverse=True)

    def of_unit(unit: np.ndarray) -> tuple[float, float]:
        edges = np.quantile(unit, np.linspace(0, 1, BINS + 1)[1:-1])
        bin_ = np.searchsorted(edges, unit)
        joint = np.zeros((BINS, len(classes)))
        np.add.at(joint, (bin_, label), 1)
        bins, n = joint.sum(1), len(label)
        log_ratio = np.log(joint[bin_, label] * n / (bins[bin_] * joint.sum(0)[label]))
        bias = (np.count_nonzero(joint) - np.count_nonzero(bins) - len(classes) + 1) / (2 * n)
        return log_ratio.mean() - bias, log_ratio.std(ddof=1) / np.sqrt(n)

    information, error = np.transpose([of_unit(unit) for unit in z.T])
    return information, error


def labelled(labels: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `number` images, with classes as equal in number as possible; 0: all rows."""
    if not number:
        return np.arange(len(labels))
    order = rng.permutation(len(labels))
    # Order by rank within the class: the first image of each class, then the second, ...
    rank = np.empty(len(labels), int)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        rank[rows] = np.arange(len(rows))
    return order[np.argsort(rank[order], kind="stable")][:number]


def error_rates(
    features: tuple[np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray],
    choices: list[np.ndarray],
    neighbours: int,
) -> dict[str, dict[str, float]]:
    """Test errors of both classifiers in per cent, with their spread.

    Features are centred and divided by one number, the root of their mean variance over the
    training images. So units keep their relative scales, and a unit that hardly varies counts
    little. Over several choices the spread is the standard deviation, for a single one the standard
    error over the test images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    train, test = features
    mean, scale = train.mean(0), np.sqrt(train.var(0).mean()) or 1.0
    train, test = (train - mean) / scale, (test - mean) / scale
    found: dict[str, list[float]] = {"knn": [], "logistic": []}
    for rows in choices:
        k = min(neighbours, len(rows))
        for name, classifier in (
            ("knn", KNeighborsClassifier(k, algorithm="brute")),
            ("logistic", LogisticRegression(max_iter=100)),
        ):
            with warnings.catch_warnings():
                # The optimiser may reach its last iteration, and joblib may find no physical cores,
                # as in containers without lscpu.
                warnings.simplefilter("ignore")
                predicted = classifier.fit(train[rows], labels[0][rows]).predict(test)
            found[name].append(100 * float(np.mean(predicted != labels[1])))
    results = {}
    for name, errors in found.items():
        rate = float(np.mean(errors))
        if len(errors) > 1:
            spread = {"standard_deviation": float(np.std(errors, ddof=1))}
        else:
            spread = {"standard_error": float(np.sqrt(rate * (100 - rate) / len(test)))}
        results[name] = {"mean": rate, **spread}
    return results


def probe(settings: ProbeSettings, *workdirs: str) -> None:
    """Prints the table, and writes it and its picture into the run's folder.

    Raises:
      WorkdirError: the folder holds no model, or the data have no labels.
      SettingsError: the chosen training images are all of one class.
    """
    run = finished.read(settings, "probe", workdirs)
    train_labels, test_labels = run.dataset.train_labels, run.dataset.test_labels
    rows, test_rows = (np.flatnonzero(labels != UNKNOWN) for labels in (train_labels, test_labels))
    if len(np.unique(train_labels[rows])) < 2 or not len(test_rows):
        raise WorkdirError(
            f"{run.dataset.name} has no labels of at least two classes to probe; own arrays take "
            f"--train_labels and --test_labels, where {UNKNOWN} means unknown"
        )
    rows = rows[rows < (settings.subset or len(train_labels))]
    labels = train_labels[rows], test_labels[test_rows]
    if len(np.unique(labels[0])) < 2:
        raise SettingsError(
            f"--subset={settings.subset}: the first training images have labels of fewer than two "
            "classes; give more images"
        )
    train_x, test_x = run.train_x()[rows], run.dataset.test_x()[test_rows]
    with run.precision():
        features, active = representations(run, train_x, test_x)

    rng = np.random.default_rng(settings.seed)
    choices = {
        n or len(train_x): [labelled(labels[0], n, rng) for _ in range(settings.draws if n else 1)]
        for n in LABELS
        if n < len(train_x)
    }
    results: dict[str, Any] = {
        "dataset": run.dataset.name,
        "train_images": len(train_x),
        "test_images": len(test_x),
        "draws": settings.draws,
        "neighbours": settings.neighbours,
        "seed": settings.seed,
        "active_units": active,
        "representations": [],
    }
    with Progress("probe, representation", len(features)) as progress:
        for done, (name, pair) in enumerate(features.items(), 1):
            entry: dict[str, Any] = {"name": name, "units": pair[0].shape[1], "errors": {}}
            for number, chosen in choices.items():
                rates = error_rates(pair, labels, chosen, settings.neighbours)
                entry["errors"][str(number)] = rates
            if name.startswith("z_"):
                information, error = unit_information(pair[0], labels[0])
                entry["information"] = information.tolist()
                entry["information_standard_error"] = error.tolist()
            results["representations"].append(entry)
            progress.update(done, name)

    print(numbers.markdown(*uses.probe_rows(results)))
    print(uses.probe_note(results))
    if run.dataset.name == "mnist":
        print(PUBLISHED)
    finished.write(run, "probe", results, uses.probe(results))


if __name__ == "__main__":
    cli.start(probe, ProbeSettings(), takes_paths=True)
