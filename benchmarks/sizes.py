"""The sizes of a model, and the shapes of its matrix products."""

from typing import NamedTuple

Shape = tuple[int, int]
"""(inputs, outputs) of a linear layer."""


class Sizes(NamedTuple):
    """A ladder's sizes, bottom to top. Mean and variance heads are one linear layer."""

    data_dim: int
    latent: tuple[int, ...]
    hidden: tuple[int, ...]

    def lowest(self, depth: int) -> "Sizes":
        """The model of the lowest `depth` layers."""
        return Sizes(self.data_dim, self.latent[:depth], self.hidden[:depth])

    def widened(self, factor: int) -> "Sizes":
        """The model with every MLP `factor` times as wide."""
        return self._replace(hidden=tuple(factor * h for h in self.hidden))

    def upward(self) -> list[Shape]:
        """The linear layers of the deterministic upward pass in order, (13)-(15)."""
        shapes = []
        below = self.data_dim
        for units, hidden in zip(self.latent, self.hidden, strict=True):
            shapes += [(below, hidden), (hidden, hidden), (hidden, 2 * units)]
            below = hidden
        return shapes

    def downward(self) -> list[Shape]:
        """The linear layers of p(z_i | z_{i+1}) and p(x | z_1), from the top down, (10)-(12)."""
        outputs = [self.data_dim, *(2 * units for units in self.latent[:-1])]
        shapes = []
        for units, hidden, below in reversed(
            list(zip(self.latent, self.hidden, outputs, strict=True))
        ):
            shapes += [(units, hidden), (hidden, hidden), (hidden, below)]
        return shapes

    def step_flops(self, batch_size: int) -> int:
        """Operations of a training step's matrix products: forward and both backward ones.

        The gradient with respect to the images is not needed.
        """
        layers = self.upward() + self.downward()
        images = self.data_dim * self.hidden[0]
        return 2 * batch_size * (3 * sum(n * m for n, m in layers) - images)


PAPER = Sizes(784, (64, 32, 16, 8, 4), (512, 256, 128, 64, 32))
"""The five-layer model of MNIST."""
