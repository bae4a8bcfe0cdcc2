"""A data set of your own: NumPy files of images.

`.npy` files, or `.npz` files with the name of one of their arrays: "images.npz:train". Pickled
objects are never loaded.
"""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from lvae_jax.data.dataset import Binarisation, DataError, Dataset, Observation

_NPY, _NPZ = b"\x93NUMPY", b"PK"


def load(
    train: str | os.PathLike[str],
    test: str | os.PathLike[str] | None = None,
    observation: Observation = "bernoulli",
    holdout: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Loads images of any shape from one or two files.

    Args:
      train: The `.npy` file of the training images [n, ...], or a `.npz` file and, after a colon,
        the name of the array, which may be left out where it is the only one. Bools, zeros and
        ones, uint8 grey values 0..255, or any other real numbers.
      test: The test images, likewise. None: a part of the training images is held out.
      observation: "bernoulli" for values in [0, 1] and uint8; "gaussian" for any.
      holdout: The fraction of the images that is held out for testing where `test` is None.
      seed: What decides which are held out.

    Returns:
      The data set, named as the training file; all labels are -1, unknown. Where all values of a
      Bernoulli observation are 0 or 1, its binarisation is "fixed", else "dynamic". uint8 images of
      a Gaussian observation are dequantised; others are observed as they are, as float32.

    Raises:
      DataError: A file or its content cannot be used; one line says why.
    """
    train_images = _read(train)
    if test is None:
        train_images, test_images = _hold_out(train, train_images, holdout, seed)
    else:
        test_images = _read(test)
        kinds = [_kind(images) for images in (train_images, test_images)]
        if kinds[0] != kinds[1]:
            raise DataError(
                f"{os.fspath(train)} holds {train_images.dtype} but {os.fspath(test)} "
                f"{test_images.dtype}, which may be on another scale; save both alike"
            )

    parts = [train_images, test_images]
    binarisation: Binarisation = "none"
    if observation == "bernoulli":
        binary = all(bool(np.all((images == 0) | (images == 1))) for images in parts)
        binarisation = "fixed" if binary else "dynamic"
    if train_images.dtype != np.uint8 or binarisation == "fixed":
        with np.errstate(over="ignore"):  # becomes infinite, and as such is refused
            parts = [images.astype(np.float32) for images in parts]
    return Dataset(
        name=_split(train)[0].stem,
        train_images=parts[0],
        train_labels=np.full(len(parts[0]), -1, np.int32),
        test_images=parts[1],
        test_labels=np.full(len(parts[1]), -1, np.int32),
        observation=observation,
        binarisation=binarisation,
        dequantisation=1 / 255 if observation == "gaussian" and parts[0].dtype == np.uint8 else 0.0,
    )


def _read(given: str | os.PathLike[str]) -> np.ndarray:
    """The images [n, ...] of a file: bools or real numbers."""
    path, key = _split(given)
    if not path.is_file():
        raise DataError(f"{path} is not a file; give an .npy or .npz file of images [n, ...]")
    with path.open("rb") as file:
        start = file.read(len(_NPY))
    if not start.startswith((_NPY, _NPZ)):
        raise DataError(
            f"{path} starts with the bytes {start.hex() or '(none)'}, so it is no .npy or .npz "
            "file; write it with numpy.save or numpy.savez"
        )
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            images = _member(path, loaded, key) if start.startswith(_NPZ) else loaded
    except DataError:
        raise
    except Exception as error:  # NumPy's, zipfile's and zlib's, of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        if "Object arrays" in reason:
            raise DataError(
                f"{os.fspath(given)} holds Python objects, which are never loaded; save an array "
                "of numbers"
            ) from error
        raise DataError(
            f"{os.fspath(given)} cannot be read ({reason}); it is cut short or damaged: save it "
            "again"
        ) from error

    if images.dtype.kind not in "biuf":
        raise DataError(f"{os.fspath(given)} holds {images.dtype}; expected bools or real numbers")
    if images.ndim < 2 or images.size == 0:
        raise DataError(
            f"{os.fspath(given)} has the shape {list(images.shape)}; expected [n, ...], images one "
            "after the other, at least one of at least one value"
        )
    return images


def _split(given: str | os.PathLike[str]) -> tuple[Path, str]:
    """The file, and the name of the array in it or ""."""
    path, _, key = os.fspath(given).rpartition(":")
    if not path.endswith(".npz"):
        path, key = os.fspath(given), ""
    return Path(path).expanduser(), key


def _member(path: Path, loaded: Any, key: str) -> np.ndarray:
    """The array of an .npz file that is meant."""
    names = ", ".join(loaded.files) or "nothing"
    if not key and len(loaded.files) == 1:
        (key,) = loaded.files
    if not key:
        raise DataError(f"{path} holds {names}; name one array, as in {path.name}:NAME")
    if key not in loaded.files:
        raise DataError(f"{path} holds {names}, not {key}; name one of these after the colon")
    array = loaded[key]
    if not isinstance(array, np.ndarray):  # what is in the zip but not an array comes as bytes
        raise DataError(f"{path}: {key} is not an array; write it with numpy.savez")
    return array


def _kind(images: np.ndarray) -> str:
    """uint8 and bools have scales of their own; all other numbers are taken as they are."""
    return str(images.dtype) if images.dtype in (np.uint8, np.bool_) else "real"


def _hold_out(
    given: str | os.PathLike[str], images: np.ndarray, holdout: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images, both in the order of the file."""
    if not 0 < holdout < 1:
        raise DataError(
            f"{os.fspath(given)}: {holdout} of it cannot be held out; give a fraction between 0 "
            "and 1, or a file of test images"
        )
    number = max(1, math.floor(holdout * len(images) + 0.5))
    if number >= len(images):
        raise DataError(
            f"{os.fspath(given)} holds {len(images)} images, too few to hold out {holdout} of "
            "them; give more, or a file of test images"
        )
    order = np.random.RandomState(seed).permutation(len(images))  # a frozen stream
    held_out = np.zeros(len(images), bool)
    held_out[order[:number]] = True
    return images[~held_out], images[held_out]
