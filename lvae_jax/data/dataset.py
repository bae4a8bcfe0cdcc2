"""What a data set is: labelled images for training and testing, and how the model observes them."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lvae_jax.data.binarisation import as_stored, binarise, binarise_once, flatten
from lvae_jax.data.dequantisation import dequantise, dequantise_once

ObservationName = Literal["bernoulli", "gaussian", "discretized_logistic"]
Binarisation = Literal["dynamic", "fixed", "none"]


class DataError(ValueError):
    """A data set cannot be loaded or used; the message is one line and says what to do."""


def check_choice(name: str, field: str, value: Any, choices: Sequence[str]) -> None:
    """Refuses a value of a data set's field that is none of the choices.

    Raises:
      DataError: It is none of them.
    """
    if value not in choices:
        raise DataError(f"{name}: {field} is {value!r}; it must be one of {', '.join(choices)}")


def shown_nonfinite(images: np.ndarray) -> str:
    """How many values are not finite and where the first is, for an error message."""
    bad = ~np.isfinite(images)
    first = [int(i) for i in np.unravel_index(bad.argmax(), bad.shape)]
    return f"values that are not finite, {bad.sum():,} of {bad.size:,}, the first at {first}"


def shown_reason(error: Exception) -> str:
    """An error of another package in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def shown_range(images: np.ndarray) -> str:
    """The smallest and the largest value, with enough digits to tell close values apart.

    Example:
      >>> shown_range(np.array([0.1, 1.0000001], np.float32))
      '0.1 to 1.0000001'
    """
    return " to ".join(str(value).removesuffix(".0") for value in (images.min(), images.max()))


@functools.cache
def _dequantiser(width: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return functools.partial(dequantise, width=width)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels as host arrays.

    Images are uint8 grey values 0..255 or float32; float32 images of a Bernoulli observation are
    grey values in [0, 1]. A discretised logistic observes uint8 grey values, as x = grey / 255.

    Attributes:
      name: The name in reported results, such as "mnist".
      train_images: [n_train, *image_shape].
      train_labels: int32 [n_train].
      test_images: [n_test, *image_shape], of the same dtype as `train_images`.
      test_labels: int32 [n_test].
      observation: The distribution p(x | z_1).
      binarisation: "dynamic": the images are grey, training images are binarised anew every epoch
        and test images once. "fixed": the images are binary, every pixel is 0 or full (255 in
        uint8, 1.0 in float32). "none": the model sees the values as they are.
      dequantisation: Distance between two grey levels in x, for a Gaussian observation: training
        images get uniform noise of that width anew every epoch and test images once. 1/256 puts
        uint8 images into [0, 1]. 0: no noise.

    Raises:
      DataError: The fields do not fit together.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    observation: ObservationName
    binarisation: Binarisation
    dequantisation: float = 0.0

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.train_images.shape[1:]

    @property
    def data_dim(self) -> int:
        """Number of values in one image."""
        return int(np.prod(self.image_shape))

    @property
    def preprocess(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The function from a key and training images to `x` [batch, data_dim].

        A pure JAX function, called with a new key at every step. Data sets that are treated alike
        share one object, so that a compiled program is reused.
        """
        if self.binarisation == "dynamic":
            return binarise
        return _dequantiser(self.dequantisation) if self.dequantisation else as_stored

    def test_x(self) -> np.ndarray:
        """`x` of the test images, float32 [n_test, data_dim]: the same in every run."""
        if self.binarisation == "dynamic":
            return binarise_once(self.test_images).astype(np.float32)
        if self.dequantisation:
            return dequantise_once(self.test_images, self.dequantisation)
        return np.asarray(flatten(jnp.asarray(self.test_images)))

    def sha256(self) -> str:
        """SHA-256 of the bytes of the training images, followed by those of the test images.

        Names, paths and labels do not count. With the two numbers of images it identifies the data,
        see `identity`.
        """
        data = hashlib.sha256()
        for images in (self.train_images, self.test_images):
            data.update(np.ascontiguousarray(images).data.cast("B"))
        return data.hexdigest()

    def identity(self) -> dict[str, str | int]:
        """The data's identity: the checksum, and where the training images end, by name."""
        return {
            "data_sha256": self.sha256(),
            "train_images": len(self.train_images),
            "test_images": len(self.test_images),
        }

    def __post_init__(self) -> None:
        for field, value, choices in (
            ("observation", self.observation, get_args(ObservationName)),
            ("binarisation", self.binarisation, get_args(Binarisation)),
        ):
            check_choice(self.name, field, value, choices)
        if self.observation != "bernoulli" and self.binarisation != "none":
            raise DataError(
                f"{self.name}: binarisation is {self.binarisation!r} with a {self.observation} "
                "observation; "
                "zeros and ones need observation='bernoulli', other data binarisation='none'"
            )
        if not (math.isfinite(self.dequantisation) and self.dequantisation >= 0):
            raise DataError(
                f"{self.name}: dequantisation is {self.dequantisation}; it must be the distance "
                "between two grey levels, such as 1/256, or 0"
            )
        if self.dequantisation and self.observation != "gaussian":
            raise DataError(
                f"{self.name}: dequantisation is {self.dequantisation:g} with a "
                f"{self.observation} observation; continuous values need observation='gaussian'"
            )
        self._check_split("train", self.train_images, self.train_labels)
        self._check_split("test", self.test_images, self.test_labels)
        train, test = self.train_images, self.test_images
        if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
            raise DataError(
                f"{self.name}: train_images are {train.dtype} {list(train.shape[1:])} but "
                f"test_images are {test.dtype} {list(test.shape[1:])}; both must have the same "
                "dtype and image shape"
            )
        is_grey = self.observation == "bernoulli" and train.dtype == np.uint8
        if is_grey and max(train.max(), test.max()) == 1:
            raise DataError(
                f"{self.name}: images are zeros and ones in uint8, where 255 is full; give them as "
                "float32 with binarisation='fixed'"
            )

    def _check_split(self, split: str, images: np.ndarray, labels: np.ndarray) -> None:
        where = f"{self.name}: {split}_images"
        if isinstance(images, np.ma.MaskedArray):
            raise DataError(f"{where} are masked; fill the missing values or drop the images")
        if not isinstance(images, np.ndarray) or images.dtype not in (np.uint8, np.float32):
            given = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise DataError(f"{where} are {given}; give a NumPy array of uint8 or float32")
        if images.ndim < 2 or images.size == 0:
            raise DataError(
                f"{where} have the shape {list(images.shape)}; expected [n, *image_shape] with at "
                "least one image of at least one value"
            )
        if not isinstance(labels, np.ndarray) or labels.dtype != np.int32:
            given = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
            raise DataError(f"{self.name}: {split}_labels are {given}; give a NumPy array of int32")
        if self.observation == "discretized_logistic" and images.dtype != np.uint8:
            raise DataError(
                f"{where} are {images.dtype}; a discretized_logistic observation needs grey values "
                "0..255 as uint8; convert them or use observation='gaussian'"
            )
        if labels.shape != images.shape[:1]:
            raise DataError(
                f"{self.name}: {split}_labels have the shape {list(labels.shape)}; expected "
                f"[{images.shape[0]}], one label per image"
            )
        if images.dtype == np.float32:
            low, high = float(images.min()), float(images.max())  # NaN if any value is NaN
            if not (np.isfinite(low) and np.isfinite(high)):
                raise DataError(f"{where} hold {shown_nonfinite(images)}; remove or replace them")
            if self.observation == "bernoulli" and (low < 0 or high > 1):
                how = "clip" if low > -1e-3 and high < 1 + 1e-3 else "rescale"
                raise DataError(
                    f"{where} run from {shown_range(images)}; a bernoulli observation needs values "
                    f"in [0, 1], so {how} them or use observation='gaussian'"
                )
        if self.dequantisation and images.dtype == np.float32:
            levels = images / np.float64(self.dequantisation)
            if not np.allclose(levels, np.rint(levels), rtol=1e-6, atol=1e-3):
                raise DataError(
                    f"{where} are not multiples of dequantisation={self.dequantisation:g}, which "
                    "must be the distance between two grey levels"
                )
        if self.binarisation == "fixed":
            full = 255 if images.dtype == np.uint8 else 1
            if not np.all((images == 0) | (images == full)):
                raise DataError(
                    f"{where} hold values other than 0 and {full}, the two of fixed binarisation "
                    f"in {images.dtype}; rescale them or use binarisation='dynamic'"
                )
