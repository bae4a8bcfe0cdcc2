"""How much memory a run needs on each device, estimated from its sizes, before any is taken.

What is counted is what training cannot do without: parameters, Adam's two moments and the gradient;
what a step keeps of its forward pass for the backward one; and the data. A compiler needs somewhat
more or less; evaluation, which keeps nothing, needs less.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.errors import SettingsError
from experiments.settings import Settings

FLOAT = 4
"""Bytes of a float32."""

MEMINFO = Path("/proc/meminfo")


class Estimate(NamedTuple):
    """Bytes by what they are for."""

    parameters: int
    """Parameters, Adam's two moments of them, and the gradient."""
    activations: int
    """What a training step keeps of its forward pass."""
    data: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def linear_layers(
    settings: Settings, data_dim: int, observation: str
) -> Iterator[tuple[int, int, bool, bool]]:
    """Inputs and outputs of every linear layer, whether it has batch norm, and if it generates.

    Args:
      settings: of the run.
      data_dim: D.
      observation: "bernoulli" or "gaussian".

    Yields:
      (inputs, outputs, batch_norm, generative). Those that are not generative belong to inference.
    """
    latent, hidden = settings.layers()
    norm = settings.batch_norm

    def mlp(inputs: int, size: int, generative: bool) -> Iterator[tuple[int, int, bool, bool]]:
        yield inputs, size, norm, generative
        yield size, size, norm, generative

    # Generation: from each layer to the one below; a head has means and variances.
    for i, (units, size) in enumerate(zip(latent, hidden, strict=True)):
        yield from mlp(units, size, True)
        if i:
            yield size, 2 * latent[i - 1], norm, True
    yield hidden[0], data_dim * (2 if observation == "gaussian" else 1), False, True

    # Inference: from x upward.
    below = data_dim
    for units, size in zip(latent, hidden, strict=True):
        yield from mlp(below, size, False)
        yield size, 2 * units, norm, False
        below = units if settings.model == "vae" or settings.mean_upward else size
    if settings.own_top_down:
        for i in range(1, len(latent)):
            yield from mlp(latent[i], hidden[i], False)
            yield hidden[i], 2 * latent[i - 1], norm, False


def number_of_parameters(settings: Settings, data_dim: int, observation: str) -> int:
    """How many parameters the model of the settings has; batch norm has a scale and a shift."""
    return sum(
        inputs * outputs + (2 * outputs if norm else outputs)
        for inputs, outputs, norm, _ in linear_layers(settings, data_dim, observation)
    )


def estimate(
    settings: Settings,
    data_dim: int,
    observation: str,
    data_bytes: int,
    by_replica: int = 1,
    by_data: int = 1,
) -> Estimate:
    """What a run needs on a device at its peak.

    Args:
      settings: of the run.
      data_dim: D.
      observation: "bernoulli" or "gaussian".
      data_bytes: of the images that stay on the device.
      by_replica: devices that the replicas are split over.
      by_data: devices that the examples of a batch are split over.

    Returns:
      Bytes.
    """
    replicas = settings.replicas // by_replica
    images = settings.batch_size // by_data
    samples = images * settings.mc_samples * settings.iw_samples
    # The ladder's upward pass is made once an image, all else once a sample.
    once = settings.model == "lvae" and not settings.own_top_down
    outputs = sum(
        out * (images if once and not generative else samples)
        for _, out, _, generative in linear_layers(settings, data_dim, observation)
    )
    return Estimate(
        parameters=4 * FLOAT * replicas * number_of_parameters(settings, data_dim, observation),
        # Of every output: itself, normalised, after the nonlinearity, and its gradient.
        activations=4 * FLOAT * replicas * outputs,
        data=data_bytes,
    )


def available(device: jax.Device) -> int | None:
    """Bytes that a device has left, a CPU its part of the host's; None where nobody says."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if device.platform != "cpu":
        return None
    host = _available_on_the_host()
    return None if host is None else host // jax.local_device_count("cpu")


def _available_on_the_host() -> int | None:
    if MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def check(needed: Estimate, there: int | None) -> None:
    """Refuses a run that needs more memory than there is.

    Args:
      needed: on a device, of `estimate`.
      there: of `available`; None: nothing is refused.

    Raises:
      SettingsError: one line: what was estimated, what is there, and what makes it less.
    """
    if there is None or needed.total <= there:
        return
    advice = {
        "parameters": "give smaller --hidden_sizes, or images of fewer values",
        "activations": "give a smaller --batch_size, --mc_samples or --iw_samples",
        "data": "give fewer images, or images of fewer values",
    }
    parts = needed._asdict()
    largest = max(parts, key=lambda name: parts[name])
    raise SettingsError(
        f"the run needs about {in_words(needed.total)} of memory "
        f"({', '.join(f'{name} {in_words(size)}' for name, size in parts.items())}) and "
        f"{in_words(there)} are available; {advice[largest]}"
    )


def in_words(size: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
