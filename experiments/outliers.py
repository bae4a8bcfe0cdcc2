"""Is an image unusual for a model? `python -m experiments.outliers RUN --against=fashion_mnist`.

Compares log-likelihood, ELBO and likelihood ratios as scores, on the run's test images and on other
images that are preprocessed in the same way.
"""

import dataclasses
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, finished, registry
from experiments.errors import SettingsError
from experiments.finished import Finished, UseSettings
from experiments.settings import PATH, TEXT, setting, whole
from experiments.show import numbers, uses
from lvae_jax import bounds, evaluation
from lvae_jax.data import DataError, arrays
from lvae_jax.data.dataset import shown_range
from lvae_jax.data.source import UNKNOWN
from lvae_jax.keys import image_keys

RESAMPLES = 100
TRUE_POSITIVES = 0.8


@dataclasses.dataclass(frozen=True)
class OutlierSettings(UseSettings):
    """The other images, and how many samples estimate the scores."""

    against: str = setting(
        "", TEXT, "the other images: a data set's name, or FILE.npy, or FILE.npz:KEY"
    )
    against_dir: str = setting("", PATH, "folder of the other data set's files")
    images: int = setting(1000, whole(2), "use the first N test images of each data set")
    samples: int = setting(500, whole(1), "importance samples of the log-likelihood")
    elbo_samples: int = setting(16, whole(2), "samples of the ELBO and of the ratios")


def other_images(run: Finished, settings: OutlierSettings) -> np.ndarray:
    """x of the other data set's images, preprocessed like the run's test images.

    Raises:
      SettingsError: no images were named.
      DataError: the images cannot be read, are fewer than two, or have another shape.
    """
    name = settings.against
    datasets = [known for known in registry.EXPERIMENTS if known != "arrays"]
    if not name:
        raise SettingsError("name the other images: --against=fashion_mnist or --against=FILE.npy")
    if name in datasets:
        tfds_dir = settings.tfds_dir or run.tfds_dir
        folders = {"data_dir": settings.against_dir, "tfds_dir": tfds_dir}
        try:
            images = registry.load({"experiment": name, "settings": folders}, run.path).test_images
        except DataError as error:
            message = re.sub(r"(?<!\S)data_dir\b", "--against_dir", str(error))
            raise DataError(message) from error
    elif arrays.file_and_key(name)[0].suffix in (".npy", ".npz"):
        own = run.dataset.train_images
        grey = own.dtype == np.uint8 and run.dataset.observation != "bernoulli"
        images = arrays.load_images(name, grey)
        if images.dtype == own.dtype and arrays.on_another_scale(images, own):
            print(
                f"warning: {name} runs from {shown_range(images)} but the images of "
                f"{run.dataset.name} from {shown_range(own)}; rescale them if the scales differ",
                file=sys.stderr,
            )
    else:
        raise SettingsError(
            f"--against={name} is neither one of {', '.join(datasets)} nor an .npy or .npz file"
        )
    shape = run.dataset.image_shape
    if images.shape[1:] != shape:
        raise DataError(
            f"{name} has images of shape {list(images.shape[1:])}, but {run.dataset.name} of shape "
            f"{list(shape)}; reshape or resize them"
        )
    if len(images) < 2:
        raise DataError(f"{name} has one image; a standard error over images needs at least two")
    images = images[: settings.images]
    labels = np.full(len(images), UNKNOWN, np.int32)
    if run.dataset.observation != "bernoulli":
        dtype = run.dataset.train_images.dtype
        if images.dtype != dtype:
            raise DataError(
                f"{name} holds {images.dtype} but {run.dataset.name} {dtype}; give a file of "
                f"{dtype} on the scale of {run.dataset.name}"
            )
        return run.as_test_images(images, labels, name).test_x()
    if images.dtype == np.float32 and not (images.min() >= 0 and images.max() <= 1):
        raise DataError(
            f"{name} has values from {images.min():g} to {images.max():g}; give grey values in "
            "uint8, or values from 0 to 1"
        )
    # They may be grey where the run's are binary, and of its dtype or of the other.
    fixed = run.dataset.binarisation == "fixed"
    return dataclasses.replace(
        run.dataset,
        name=name,
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
        binarisation="dynamic" if fixed else run.dataset.binarisation,
    ).test_x()


def scores(
    run: Finished, x: np.ndarray, settings: OutlierSettings, name: str
) -> dict[str, np.ndarray]:
    """Log-likelihood, ELBO and the ratio for every k, in nats per image."""
    model, variables = run.model, run.variables
    keys = image_keys(jax.random.key(settings.seed), np.arange(len(x)))
    likelihoods = []
    for rows in finished.chunks(f"log-likelihood of {name}, image", len(x), 100):
        result = evaluation.log_likelihood_program()(
            model, variables, x[rows], keys[rows], settings.samples
        )
        likelihoods.append(result.log_likelihood)
    found = {f"L_{settings.samples}": np.concatenate(likelihoods)}
    key = jax.random.key(settings.seed)
    for k in range(1, model.depth):
        result = evaluation.likelihood_ratio(
            model, variables, jnp.asarray(x), key, above=k, num_samples=settings.elbo_samples
        )
        found.setdefault("ELBO", np.asarray(result.elbo))
        found[f"L - L^>{k}"] = np.asarray(result.ratio)
    if model.depth == 1:

        def elbo(x: jax.Array, key: jax.Array) -> jax.Array:
            rngs = {"sample": key}
            terms: Any = model.apply(variables, x[None], settings.elbo_samples, rngs=rngs)
            return bounds.elbo(terms)[0]

        found["ELBO"] = np.asarray(evaluation.map_images(elbo, 50, jnp.asarray(x), keys))
    return found


def detection(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """AUROC, AUPRC and the false-positive rate at 80 % true positives; outliers are the positives.

    Args:
      inside: scores of the run's own images; lower means more usual.
      outside: scores of the others.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    score = np.concatenate([inside, outside])
    is_outside = np.repeat([0, 1], [len(inside), len(outside)])
    false_positives, true_positives, _ = roc_curve(is_outside, score, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(is_outside, score)),
        "auprc": float(average_precision_score(is_outside, score)),
        "fpr80": float(false_positives[np.searchsorted(true_positives, TRUE_POSITIVES)]),
    }


def with_standard_errors(
    inside: np.ndarray, outside: np.ndarray, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """`detection` with standard errors, from bootstrap samples of the images."""
    drawn = [
        detection(rng.choice(inside, len(inside)), rng.choice(outside, len(outside)))
        for _ in range(RESAMPLES)
    ]
    return {
        name: {
            "mean": value,
            "standard_error": float(np.std([one[name] for one in drawn], ddof=1)),
        }
        for name, value in detection(inside, outside).items()
    }


def _unusual(name: str, values: np.ndarray) -> np.ndarray:
    """The score with the sign that makes it larger for outliers."""
    return values if name.startswith("L - ") else -values


def outliers(settings: OutlierSettings, *workdirs: str) -> None:
    """Prints the table, and writes it and the histograms into the run's folder."""
    run = finished.read(settings, "outliers", workdirs)
    x, other_x = run.dataset.test_x()[: settings.images], other_images(run, settings)
    if len(x) < 2:
        raise DataError(
            f"{run.dataset.name} has one test image; a standard error needs at least two"
        )
    path, array = arrays.file_and_key(settings.against)
    other = f"{path.stem}-{array}" if array else path.stem
    names = (run.dataset.name, other.replace("/", "-"))
    with run.precision():
        inside = scores(run, x, settings, names[0])
        outside = scores(run, other_x, settings, names[1])
    counts = [len(x), len(other_x)]
    rng = np.random.default_rng(settings.seed)
    rows: list[list[str]] = []
    by_score: dict[str, Mapping[str, object]] = {}
    for score in inside:
        found = with_standard_errors(
            _unusual(score, inside[score]), _unusual(score, outside[score]), rng
        )
        means = [finished.mean_and_error(of[score]) for of in (inside, outside)]
        by_score[score] = {**found, "nats": dict(zip(("inside", "outside"), means, strict=True))}
        rows.append([score, *(uses.with_error(n, 3) for n in found.values())])
        rows[-1] += [uses.with_error(n) for n in means]
    header = ["score", "AUROC", "AUPRC", "FPR at 80 % TPR", *(f"{name}, nats" for name in names)]
    print(numbers.markdown(header, *rows))
    print(
        f"{counts[0]} test images of {names[0]} against {counts[1]} of {names[1]}, the "
        f"outliers; ± is the standard error over the images ({RESAMPLES} bootstrap samples)."
    )
    results = {
        "dataset": names[0],
        "against": settings.against,
        "images": counts,
        "samples": settings.samples,
        "elbo_samples": settings.elbo_samples,
        "seed": settings.seed,
        "scores": by_score,
    }
    figure = uses.outliers({s: (inside[s], outside[s]) for s in inside}, names)
    finished.write(run, f"outliers-{names[1]}", results, figure)


if __name__ == "__main__":
    cli.start(outliers, OutlierSettings(), takes_paths=True)
