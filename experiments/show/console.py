"""What a run prints: its progress and its results."""

from collections.abc import Mapping
from typing import Any

from experiments import published
from experiments.results import USED_KL, EpochRecord, RunResults
from experiments.show import numbers


def progress(epoch: EpochRecord) -> str:
    """The note beside the progress bar."""
    return f"beta {epoch.mean('beta'):.2f}  ELBO {numbers.number(epoch, 'train_elbo')}"


def describe(found: RunResults, config: Mapping[str, Any]) -> str:
    """The results of a finished run, on several lines."""
    seeds = f"seed {found.seed}"
    if len(found.replicas) > 1:
        seeds = f"{len(found.replicas)} replicas, seeds {found.seed} to {found.replicas[-1].seed}"
    layers = len(found.replicas[0].active_units)
    return "\n".join(
        [
            f"{found.dataset}, {found.model} with {layers} layer{'s' * (layers != 1)}, "
            f"{found.epochs} epoch{'s' * (found.epochs != 1)}{_chosen(found)}, {seeds}",
            f"test log-likelihood {_log_likelihood(found)}{_paper(config, 'log_likelihood')}",
            f"test ELBO {numbers.number(found, 'test_elbo')} nats"
            f"{_paper(config, 'test_elbo')}, "
            f"train ELBO {numbers.number(found, 'train_elbo')} nats",
            *(_replicas(found) if len(found.replicas) > 1 else ()),
            f"effective sample size {found.mean('effective_sample_size'):.0f} "
            f"of {found.eval_samples}",
            *(
                f"  {layer.name}: KL {layer.kl:>6} nats; of {layer.units} units {layer.active} "
                f"active, {layer.used} with KL > {USED_KL}"
                for layer in numbers.layers(found)
            ),
            f"{found.training_seconds:.0f} s of training, {found.wall_seconds:.0f} s in all, on "
            f"{found.device}",
        ]
    )


def _chosen(found: RunResults) -> str:
    epochs = found.each("chosen_epoch")
    if set(epochs) == {found.epochs}:
        return ""
    return f", epoch {', '.join(map(str, epochs))} chosen by validation"


def _log_likelihood(found: RunResults) -> str:
    """The test log-likelihood, its samples and images, and its uncertainty."""
    images = f"{found.eval_images:,} image{'s' * (found.eval_images != 1)}"
    uncertainty = "; the standard error is over the test images"
    if len(found.replicas) > 1:
        uncertainty = f"; mean and {numbers.OVER_REPLICAS}"
    elif found.replicas[0].test_log_likelihood_standard_error is None:
        uncertainty = ""
    number = numbers.log_likelihood(found)
    return f"{number} nats (L_{found.eval_samples} of {images}{uncertainty})"


def _paper(config: Mapping[str, Any], name: str) -> str:
    """The paper's number for a field, if there is one."""
    paper = published.find(config)
    number = paper and getattr(paper, name)
    if paper is None or number is None:
        return ""
    return f" (the paper{paper.qualifier}: {number})"


def _replicas(found: RunResults) -> list[str]:
    return [
        f"  seed {each.seed}: test log-likelihood {number}"
        + " (over the images)" * ("±" in number)
        + f", test ELBO {each.test_elbo:.2f}"
        for each, number in zip(found.replicas, numbers.log_likelihoods(found), strict=True)
    ]
