"""Reading matrices from MATLAB files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lvae_jax.data.dataset import DataError, shown_reason
from lvae_jax.data.source import open_content


def read_matrices(
    path: Path, shapes: dict[str, Sequence[int | str]], advice: str = "download it again"
) -> list[np.ndarray]:
    """Reads matrices of real numbers.

    Args:
      path: The file, packed with gzip or not.
      shapes: The name of each matrix and its expected shape, where a string stands for any size of
        at least 1.
      advice: What to do about a file that is not as expected.

    Returns:
      The matrices in that order.

    Raises:
      DataError: The file is missing, truncated or of another kind, or a matrix is not as expected.
    """
    from scipy import io  # type: ignore[import-untyped]

    try:
        with open_content(path) as file:
            found = io.loadmat(file, variable_names=list(shapes))
    except DataError:
        raise
    except Exception as error:  # scipy raises many types
        raise DataError(
            f"{path} cannot be read ({shown_reason(error)}); expected a MATLAB file: {advice}"
        ) from error

    matrices = []
    for name, shape in shapes.items():
        matrix = found.get(name)
        if not isinstance(matrix, np.ndarray) or matrix.dtype.kind not in "biuf":
            raise DataError(f"{path} has no matrix of numbers called {name}; {advice}")
        if not (
            matrix.ndim == len(shape)
            and matrix.size
            and all(isinstance(e, str) or n == e for n, e in zip(matrix.shape, shape, strict=True))
        ):
            expected = ", ".join(map(str, shape))
            raise DataError(
                f"{path}: {name} has the shape {list(matrix.shape)}; expected [{expected}]: "
                f"{advice}"
            )
        matrices.append(matrix)
    return matrices
