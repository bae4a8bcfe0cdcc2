"""Imputes missing values: `python -m experiments.impute RUN --missing=0.5|bottom|FILE.npy`.

Compares with independent pixels and with the nearest training images.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import cli, finished
from experiments.errors import SettingsError
from experiments.finished import Finished, UseSettings
from experiments.settings import TEXT, setting, whole
from experiments.show import numbers, pictures, uses
from experiments.show.figures import labelled_rows
from lvae_jax import evaluation
from lvae_jax.data import arrays
from lvae_jax.distributions import Bernoulli, Gaussian
from lvae_jax.imputation import masked_log_prob

LEAST_VARIANCE = 1e-4
"""Variance added to every pixel in the comparisons."""

SHOWN = 10
SHOWN_DRAWS = 3
MOST_REDRAWS = 1000


@dataclasses.dataclass(frozen=True)
class ImputeSettings(UseSettings):
    """What is missing, and how many samples impute it."""

    missing: str = setting(
        "0.5",
        TEXT,
        "values to remove: a fraction, chosen at random; bottom: the lower half; or an .npy file, "
        "of the images' shape or [n, *shape], that is true where values are missing",
    )
    images: int = setting(100, whole(2), "use the first N test images")
    samples: int = setting(1024, whole(32), "importance samples, a multiple of 32")
    rounds: int = setting(5, whole(0), "largest number of rounds of Metropolis-within-Gibbs")
    neighbours: int = setting(10, whole(1), "number of nearest training images in the comparison")


def observed_entries(missing: str, shape: tuple[int, ...], images: int, seed: int) -> np.ndarray:
    """Which values are observed: bool [images, data_dim].

    Raises:
      SettingsError: `missing` does not fit the images, or marks every value of an image as missing,
        or none.
      DataError: the file of `missing` cannot be read.
    """
    if missing == "bottom":
        axis = _height_axis(shape)
        lower = np.indices(shape)[axis] >= shape[axis] // 2
        gone = np.broadcast_to(lower, (images, *shape))
    elif missing.endswith(".npy"):
        given = arrays.load_array(missing)
        if given.shape not in (shape, (images, *shape)):
            raise SettingsError(
                f"--missing={missing} has the shape {list(given.shape)}; give {list(shape)}, or "
                f"{[images, *shape]} for one per image"
            )
        gone = np.broadcast_to(given != 0, (images, *shape))
    else:
        try:
            share = float(missing)
        except ValueError:
            share = -1.0
        if not 0 < share < 1:
            raise SettingsError(
                f"--missing={missing} is neither a fraction between 0 and 1, nor bottom, nor an "
                ".npy file"
            )
        gone = _drawn(share, (images, math.prod(shape)), np.random.default_rng(seed))
    gone = gone.reshape(images, -1)
    if math.prod(shape) == 1:
        raise SettingsError("images of a single value have nothing left to impute it from")
    if not np.all(gone.any(1) & ~gone.all(1)):
        raise SettingsError(f"--missing={missing} leaves an image with all or no values; change it")
    return ~gone


def _height_axis(shape: tuple[int, ...]) -> int:
    """The axis of an image's height: the second one where the first one holds colours."""
    channels_first = len(shape) == 3 and shape[0] in (1, 3) and shape[-1] not in (1, 3)
    return next((axis for axis in range(channels_first, len(shape)) if shape[axis] > 1), 0)


def _drawn(share: float, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Values at random, drawn again for images that would have all or none."""
    gone = rng.random(shape) < share
    for _ in range(MOST_REDRAWS):
        again = gone.all(1) | ~gone.any(1)
        if not again.any():
            break
        gone[again] = rng.random((again.sum(), shape[1])) < share
    return gone


def of_neighbours(
    x: np.ndarray, observed: np.ndarray, train_x: np.ndarray, number: int, observation: str
) -> Bernoulli | Gaussian:
    """Independent pixels with the moments of the nearest training images and one average image.

    The nearest images have the smallest squared distance over the observed values. The average
    image keeps probabilities and variances away from 0; with number = 0 it is all there is.
    """
    average = train_x.mean(0)
    if observation == "gaussian":  # zeros and ones need no centring
        x, train_x = x - average, train_x - average
    distances = observed @ (train_x**2).T - 2 * np.where(observed, x, 0) @ train_x.T
    nearest = train_x[np.argpartition(distances, number - 1, axis=1)[:, :number]]
    if observation == "gaussian":
        mean = nearest.sum(1) / (number + 1)  # the average image is 0, with the variance of all
        squares = ((nearest - mean[:, None]) ** 2).sum(1) + mean**2 + train_x.var(0)
        return Gaussian(average + mean, squares / (number + 1) + LEAST_VARIANCE)
    return Bernoulli(_logit((nearest.sum(1) + _smoothed_mean(train_x)) / (number + 1)))


def comparisons(
    x: np.ndarray, observed: np.ndarray, train_x: np.ndarray, neighbours: int, observation: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What simple models predict: means [images, data_dim], and nats of the missing values."""
    nearest = min(neighbours, len(train_x))
    predictions = {}
    for name, number in (
        (f"{nearest} nearest training images", nearest),
        ("independent pixels", 0),
    ):
        p = of_neighbours(x, observed, train_x, number, observation)
        mean = np.asarray(p.mean if isinstance(p, Gaussian) else 1 / (1 + np.exp(-p.logits)))
        density: Any = jax.tree.map(jnp.float32, p)
        nats = masked_log_prob(density, jnp.asarray(x), jnp.asarray(~observed))
        predictions[name] = mean, np.asarray(nats)
    return predictions


def _smoothed_mean(train_x: np.ndarray) -> np.ndarray:
    """Laplace's rule of succession for every pixel: never 0 or 1."""
    return (train_x.sum(0) + 1) / (len(train_x) + 2)


def _logit(p: np.ndarray) -> Any:
    return np.log(p) - np.log1p(-p)


def wrong(mean: np.ndarray, x: np.ndarray, observed: np.ndarray, observation: str) -> np.ndarray:
    """Per image, the share of missing pixels guessed wrong, or the root mean squared error."""
    if observation == "gaussian":
        error = np.where(observed, 0, (mean - x) ** 2).sum(1) / (~observed).sum(1)
        return np.sqrt(error)
    return np.sum(~observed & ((mean > 0.5) != (x > 0.5)), axis=1) / np.sum(~observed, axis=1)


def draw(
    run: Finished,
    x: np.ndarray,
    observed: np.ndarray,
    filling: np.ndarray,
    settings: ImputeSettings,
) -> tuple[evaluation.Imputation, evaluation.ConditionalLogLikelihood]:
    """Imputations and conditional log-likelihoods of all images, in batches."""
    effort = evaluation.Conditioning(num_samples=settings.samples, rounds=settings.rounds)
    imputed, likelihoods = [], []
    for rows in finished.chunks("imputed, image", len(x), 10):
        key = jax.random.fold_in(jax.random.key(settings.seed), int(rows[0]))
        arguments = (
            run.model,
            run.variables,
            jnp.asarray(x[rows]),
            jnp.asarray(observed[rows]),
            jnp.asarray(filling),
        )
        found = evaluation.impute(
            *arguments, jax.random.fold_in(key, 0), num_draws=SHOWN_DRAWS, effort=effort
        )
        imputed.append(found._replace(draws=jnp.swapaxes(found.draws, 0, 1)))
        likelihoods.append(
            evaluation.conditional_log_likelihood(
                *arguments, jax.random.fold_in(key, 1), effort=effort
            )
        )
    together = jax.tree.map(lambda *parts: np.concatenate(parts), *imputed)
    return together, jax.tree.map(lambda *parts: np.concatenate(parts), *likelihoods)


def impute(settings: ImputeSettings, *workdirs: str) -> None:
    """Prints the table, and writes it and the pictures into the run's folder.

    Raises:
      SettingsError: the number of samples, or what is missing, cannot be used.
      WorkdirError: the folder holds no model of Bernoulli or Gaussian x.
    """
    if settings.samples % 32:
        raise SettingsError(f"--samples={settings.samples}; give a multiple of 32")
    run = finished.read(settings, "impute", workdirs)
    run.check_observation()
    observation = run.dataset.observation
    train_x, x = run.train_x(), run.dataset.test_x()[: settings.images]
    observed = observed_entries(settings.missing, run.dataset.image_shape, len(x), settings.seed)
    with run.precision():
        found, likelihood = draw(run, x, observed, train_x.mean(0), settings)

    model = (np.asarray(found.mean), np.asarray(likelihood.log_likelihood))
    others = comparisons(x, observed, train_x, settings.neighbours, observation)
    predictions = {"model": model, **others}
    what = "RMSE of the mean" if observation == "gaussian" else "missing pixels wrong, %"
    scale = 1 if observation == "gaussian" else 100
    found_by = {
        name: {
            "nats": finished.mean_and_error(nats),
            "error": finished.mean_and_error(scale * wrong(mean, x, observed, observation)),
        }
        for name, (mean, nats) in predictions.items()
    }
    rows = [[name, *map(uses.with_error, of.values())] for name, of in found_by.items()]
    print(numbers.markdown(["", "nats of the missing given the observed", what], *rows))
    monte_carlo = float(np.sqrt(np.sum(np.float64(likelihood.standard_error) ** 2)) / len(x))
    size = np.float64(found.effective_sample_size)
    print(
        f"{len(x)} test images of {run.dataset.name}, {(~observed).mean():.0%} of the values "
        f"missing; ± is the standard error over the images. Importance sampling adds an error of "
        f"{monte_carlo:.2f} nats to the model's mean. The effective sample size is "
        f"{np.median(size):.0f} of {settings.samples} in the median and at least {size.min():.0f}, "
        f"after {np.mean(found.rounds):.1f} rounds on average."
    )
    stem = Path(settings.missing).stem if settings.missing.endswith(".npy") else settings.missing
    results = {
        "dataset": run.dataset.name,
        "missing": settings.missing,
        "images": len(x),
        "samples": settings.samples,
        "seed": settings.seed,
        "numbers": found_by,
        "monte_carlo_standard_error": monte_carlo,
        "effective_sample_size": {"median": float(np.median(size)), "min": float(size.min())},
        "rounds": float(np.mean(found.rounds)),
    }
    means = [mean for mean, _ in predictions.values()]
    figure = _pictures(run, x, observed, [*np.moveaxis(np.asarray(found.draws), 1, 0), *means])
    finished.write(run, f"impute-{stem}", results, figure)


def _pictures(
    run: Finished, x: np.ndarray, observed: np.ndarray, filled: list[np.ndarray]
) -> Figure:
    """The first images, their observed values, and each imputation."""
    low, high = float(x.min()), float(x.max())
    rows = [x, np.where(observed, x, (low + high) / 2)]
    rows += [np.where(observed, x, one) for one in filled]
    names = ["image", "observed", *["draw"] * SHOWN_DRAWS, "mean", "nearest images", "independent"]
    columns = min(SHOWN, len(x))
    together = np.concatenate([row[:columns] for row in rows])
    drawn = pictures.as_pictures(together, run.dataset.image_shape)
    return labelled_rows(pictures.grid(drawn, columns, low, high), names)


if __name__ == "__main__":
    cli.start(impute, ImputeSettings(), takes_paths=True)
