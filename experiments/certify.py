"""Bounds the error of the estimated log-likelihood: `python -m experiments.certify RUN`.

Uses images drawn from the model, for which bidirectional Monte Carlo bounds log p(x) from both
sides.
"""

import dataclasses

import jax
import numpy as np

from experiments import cli, finished
from experiments.finished import ModelSettings, Trained
from experiments.settings import setting, whole
from experiments.show import numbers, uses
from lvae_jax import evaluation
from lvae_jax.keys import image_keys


@dataclasses.dataclass(frozen=True)
class CertifySettings(ModelSettings):
    """The number of images, and the effort for their bounds."""

    images: int = setting(100, whole(2), "images drawn from the model")
    samples: int = setting(5000, whole(1), "importance samples of the estimate")
    temperatures: int = setting(500, whole(2), "temperatures between the prior and the posterior")
    chains: int = setting(1, whole(1), "chains per image and direction")
    leapfrog_steps: int = setting(10, whole(1), "leapfrog steps per temperature")
    batch: int = setting(50, whole(1), "images per batch")


def bound(run: Trained, settings: CertifySettings) -> np.ndarray:
    """Draws images and bounds their log p(x).

    Returns:
      [4, images]: the lower bounds, the upper bounds and L_K, in nats; and the fraction of accepted
      proposals.
    """
    keys = image_keys(jax.random.key(settings.seed), np.arange(settings.images))
    found = []
    for rows in finished.chunks("annealing, image", settings.images, settings.batch):
        bounds = evaluation.bidirectional(
            run.model,
            run.variables,
            keys[rows],
            temperatures=settings.temperatures,
            chains=settings.chains,
            leapfrog_steps=settings.leapfrog_steps,
        )
        estimate = evaluation.log_likelihood_program()(
            run.model, run.variables, bounds.x, keys[rows], settings.samples
        ).log_likelihood
        columns = [bounds.lower, bounds.upper, estimate, bounds.acceptance]
        found.append(np.array(columns, np.float64))
    return np.concatenate(found, axis=1)


def certify(settings: CertifySettings, *workdirs: str) -> None:
    """Prints the bounds, and writes them with a figure into the run's folder.

    Raises:
      WorkdirError: the folder holds no model of Bernoulli or Gaussian x.
    """
    run = finished.read_model("certify", workdirs)
    run.check_observation()
    with run.precision():
        lower, upper, estimate, acceptance = bound(run, settings)
    name = f"L_{settings.samples}"
    by_name = {
        "lower bound of log p(x)": lower,
        "upper bound of log p(x)": upper,
        "upper less lower bound": upper - lower,
        name: estimate,
        f"lower bound less {name}": lower - estimate,
        f"upper bound less {name}": upper - estimate,
    }
    summary = {key: finished.mean_and_error(values) for key, values in by_name.items()}
    table = [[key, uses.with_error(number)] for key, number in summary.items()]
    print(numbers.markdown(["nats", "mean"], *table))
    off = summary[f"upper bound less {name}"]
    below = f"at most {uses.with_error(off)} nats below log p(x)"
    if (upper - estimate).mean() < 0:  # both are noisy
        below = "as near to log p(x) as these bounds tell; more temperatures tell more"
    print(
        f"On average over {settings.images} images drawn from the model, {name} is {below}; ± is "
        f"the standard error over the images. {acceptance.mean():.0%} of the Hamiltonian proposals "
        "were accepted."
    )
    results = {
        "images": settings.images,
        "samples": settings.samples,
        "temperatures": settings.temperatures,
        "chains": settings.chains,
        "leapfrog_steps": settings.leapfrog_steps,
        "seed": settings.seed,
        "acceptance": float(acceptance.mean()),
        "nats": summary,
    }
    figure = uses.certify(upper - estimate, lower - estimate, settings.samples)
    finished.write(run, "certify", results, figure)


if __name__ == "__main__":
    cli.start(certify, CertifySettings(), takes_paths=True)
