"""A data set of your own: NumPy files of images.

`.npy` files, or `.npz` files with the name of one of their arrays: "images.npz:train". Pickled
objects are never loaded.
"""

import logging
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from lvae_jax.data.array_file import read_member
from lvae_jax.data.dataset import (
    Binarisation,
    DataError,
    Dataset,
    ObservationName,
    shown_nonfinite,
    shown_range,
    shown_reason,
)
from lvae_jax.data.source import UNKNOWN, user_path

_NPY, _NPZ, _PICKLE = b"\x93NUMPY", b"PK", b"\x80"

_VARIANCE_FLOOR = 1e-5
"""The models' default."""

_LARGE = 100.0
"""Gaussian values with a larger mean or standard deviation are warned of."""

_logger = logging.getLogger(__name__)


def load(
    train: str | os.PathLike[str],
    test: str | os.PathLike[str] | None = None,
    observation: ObservationName = "bernoulli",
    holdout: float = 0.1,
    seed: int = 0,
    check_scale: bool = True,
    train_labels: str | os.PathLike[str] | None = None,
    test_labels: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads images of any shape from one or two files.

    Files of zeros and ones, of any dtype, are binary. Other uint8 values are grey values 0..255.
    All other numbers become float32.

    Args:
      train: The `.npy` file of the training images [n, ...], or an `.npz` file and, after a colon,
        the name of the array, which can be omitted if the file holds only one.
      test: The test images, likewise. None: a part of the training images is held out.
      observation: "bernoulli" for values in [0, 1] and uint8; "gaussian" for any;
        "discretized_logistic" for uint8.
      holdout: The fraction of the images that is held out for testing where `test` is None.
      seed: Decides which images are held out.
      check_scale: Refuse training and test images whose ranges of values are far apart.
      train_labels: The file of the training images' labels, whole numbers [n], which no training
        uses: they are for figures and classifiers; -1 is unknown. None: all are unknown.
      test_labels: Those of the test images, where `test` is given.

    Returns:
      The data set, named after the training file. With a Bernoulli observation its binarisation is
      "fixed" if every pixel is 0 or 1, or 0 or 255 in uint8, else "dynamic". With a Gaussian
      observation grey values are dequantised and others are observed as they are; a discretised
      logistic observes grey values as they are.

    Raises:
      DataError: A file or its content cannot be used.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> np.save(f"{folder}/squares.npy", np.linspace(0, 1, 40).reshape(10, 2, 2) ** 2)
      >>> dataset = load(f"{folder}/squares.npy", observation="gaussian", holdout=0.2)
      >>> dataset.name, dataset.train_images.shape, dataset.test_images.shape
      ('squares', (8, 2, 2), (2, 2, 2))
    """
    if (test_labels is not None) != (train_labels is not None and test is not None):
        raise DataError(
            "give labels of all images or of none: train_labels, and test_labels where there are "
            "test images"
        )
    train_images = _read_images(train)
    labels_of_train = _read_labels(train_labels, train_images)
    if test is None:
        held_out = _held_out(train, len(train_images), holdout, seed)
        images = (train_images[~held_out], train_images[held_out])
        labels = (labels_of_train[~held_out], labels_of_train[held_out])
    else:
        images = (train_images, _read_images(test))
        labels = (labels_of_train, _read_labels(test_labels, images[1]))
    train_images, test_images = images

    is_grey = [part.dtype == np.uint8 for part in images]
    if all(map(_is_zeros_and_ones, images)):
        is_grey, is_binary = [False, False], True
    else:
        is_binary = all(is_grey) and all(bool(np.all((p == 0) | (p == 255))) for p in images)
    if is_grey[0] != is_grey[1]:
        raise DataError(
            f"{os.fspath(train)} holds {train_images.dtype} but {os.fspath(test or train)} "
            f"{test_images.dtype}, which may be on another scale; save both with the same dtype"
        )
    if observation != "gaussian" and not is_binary:
        _refuse_other_integers(train, train_images)
        _refuse_other_integers(test or train, test_images)
    if observation == "discretized_logistic" and all(map(_is_zeros_and_ones, images)):
        raise DataError(
            f"{os.fspath(train)} holds zeros and ones, and a discretized_logistic observation "
            "needs grey values 0..255; use observation='bernoulli'"
        )
    if not is_grey[0]:
        images = (_float32(train, train_images), _float32(test or train, test_images))
    if observation == "gaussian" and not is_grey[0]:
        if _is_whole(train_images) and _is_whole(test_images):
            _logger.warning(
                "%s holds whole numbers, whose Gaussian density is unbounded; add noise to them, "
                "or save grey values 0..255 as uint8, which get noise in training",
                os.fspath(train),
            )
        _warn_of_scale(train, train_images)

    binarisation: Binarisation = "none"
    if observation == "bernoulli":
        binarisation = "fixed" if is_binary else "dynamic"
    dataset = Dataset(
        name=file_and_key(train)[0].stem,
        train_images=images[0],
        train_labels=labels[0],
        test_images=images[1],
        test_labels=labels[1],
        observation=observation,
        binarisation=binarisation,
        dequantisation=1 / 256 if observation == "gaussian" and is_grey[0] else 0.0,
    )
    is_checked = check_scale and test is not None and not is_binary
    if is_checked and on_another_scale(dataset.test_images, dataset.train_images):
        raise DataError(
            f"{os.fspath(train)} runs from {shown_range(dataset.train_images)} but "
            f"{os.fspath(test or train)} from {shown_range(dataset.test_images)}: they are on "
            "different scales; rescale one of them, or set check_scale=False to use them as "
            "they are"
        )
    if test is not None and np.array_equal(*images):
        _logger.warning(
            "%s and %s hold the same images: test numbers will be those of the training images",
            os.fspath(train),
            os.fspath(test),
        )
    if is_grey[0]:
        _warn_of_dark(train, max(int(part.max()) for part in images))
    return dataset


def _warn_of_dark(given: str | os.PathLike[str], largest: int) -> None:
    if largest < 128:
        _logger.warning(
            "%s: 255 is full in uint8, but the largest value is %d; if that is full, divide the "
            "images by it and save them as float32",
            os.fspath(given),
            largest,
        )


def on_another_scale(images: np.ndarray, train_images: np.ndarray) -> bool:
    """Whether images are visibly on another scale than the training images."""
    is_apart = _leaves(images, train_images, widths=0.5)
    if len(images) >= 10 and images.min() < images.max():
        # A few images, or black ones, say little about the scale.
        is_apart |= _leaves(train_images, images, widths=4)
    return is_apart


def _leaves(images: np.ndarray, others: np.ndarray, widths: float) -> bool:
    """Whether most images hold a value outside the others' range, widened on both sides.

    The range is widened by `widths` times its width. If all images have the same distribution,
    whatever it is, one of them leaves the range of n others with probability at most 2/(n + 1).
    """
    low, high = float(others.min()), float(others.max())
    margin = widths * (high - low)
    axes = tuple(range(1, images.ndim))
    least, most = images.min(axes).astype(np.float64), images.max(axes).astype(np.float64)
    outside = (least < low - margin) | (most > high + margin)
    return bool(outside.mean() > 0.5)


def _warn_of_scale(given: str | os.PathLike[str], images: np.ndarray) -> None:
    """Warns of values whose mean and deviation do not suit a Gaussian model; one line per kind."""
    values = images.reshape(len(images), -1)
    low, high, mean = values.min(0), values.max(0), values.mean(0, np.float64)
    # In blocks, because `std` copies its argument as float64.
    blocks = np.array_split(values, -(-values.shape[1] // 64), axis=1)
    deviation = np.concatenate([block.std(0, np.float64) for block in blocks])
    constant, largest = low == high, np.maximum(high, -low.astype(np.float64))
    step = np.spacing(np.float32(largest)) * (values.dtype.itemsize > 4)
    worst = int(np.argmax(np.where(constant, 0.0, step) / np.maximum(deviation, 1e-300)))
    standardise = "subtract the mean of each and divide by its standard deviation"
    left = np.ones(len(mean), bool)
    for matches, message in (
        (
            constant,
            "are the same in all training images; their Gaussian density is bounded only by the "
            "variance floor; remove them or add noise",
        ),
        (
            step > 1e-3 * deviation,
            f"lose their differences in float32: near {largest[worst]:g} it resolves only steps of "
            f"{step[worst]:g}, and the standard deviation is {deviation[worst]:g}; {standardise}",
        ),
        (
            deviation**2 <= _VARIANCE_FLOOR,
            f"have a variance of at most {_VARIANCE_FLOOR:g}, the models' variance floor by "
            f"default, which then decides their Gaussian density; {standardise}",
        ),
        (
            np.maximum(np.abs(mean), deviation) > _LARGE,
            f"have a mean or standard deviation beyond {_LARGE:g}, far from what networks are "
            f"initialised for; {standardise}",
        ),
    ):
        if count := int(np.sum(matches & left)):
            _logger.warning("%s: %d of %d values %s", given, count, len(mean), message)
        left &= ~matches


def load_images(given: str | os.PathLike[str], grey: bool = False) -> np.ndarray:
    """Loads the images [n, ...] of one file, in the file's order.

    Args:
      given: The file, as in `load`.
      grey: Whether zeros and ones in uint8 are grey values, too.

    Returns:
      uint8 grey values; zeros and ones of any dtype and all other numbers become float32.

    Raises:
      DataError: The file or its content cannot be used.
    """
    images = _read_images(given)
    if images.dtype != np.uint8 or (_is_zeros_and_ones(images) and not grey):
        return _float32(given, images)
    _warn_of_dark(given, int(images.max()))
    return images


def load_array(given: str | os.PathLike[str]) -> np.ndarray:
    """Loads an array of bools or real numbers of any shape.

    Args:
      given: The `.npy` file, or an `.npz` file and, after a colon, the name of the array, which can
        be omitted if the file holds only one.

    Raises:
      DataError: The file or its content cannot be used.
    """
    try:
        path, key = file_and_key(given)
        start = _first_bytes(path)
    except OSError as error:
        raise DataError(
            f"{os.fspath(given)} cannot be read ({error.strerror}); give one that can be read"
        ) from error
    if start.startswith(_PICKLE):
        raise DataError(_never_unpickled(path))
    if not start.startswith((_NPY, _NPZ)):
        raise DataError(
            f"{path} starts with the bytes {start.hex() or '(none)'}, so it is not an .npy or .npz "
            f"file; write it with numpy.save or numpy.savez{_from_text(path)}"
        )
    try:
        with path.open("rb") as file:
            if start.startswith(_NPZ):
                array = read_member(file, _member(path, key))
            else:
                array = np.load(file, allow_pickle=False)
                if file.read(1):
                    raise DataError(
                        f"{os.fspath(given)} has more bytes than its array of shape "
                        f"{list(array.shape)}; save one array per file"
                    )
    except DataError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise many types
        reason = shown_reason(error)
        if "Object arrays" in reason:
            raise DataError(
                f"{os.fspath(given)} holds Python objects, which are never loaded; save an array "
                "of numbers"
            ) from error
        raise DataError(
            f"{os.fspath(given)} cannot be read ({reason}); it is truncated or damaged: save it "
            "again"
        ) from error

    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{os.fspath(given)} holds {array.dtype}; save an array of bools or real numbers"
        )
    return array


def _from_text(path: Path) -> str:
    """How to convert a file of text, by its first line; nothing for any other file."""
    with path.open("rb") as file:
        line = file.readline(10_000)
    try:
        words = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        return ""
    delimiter = next((d for d in (",", ";", "\t") if d in words), None)
    numbers = words.split(delimiter)
    if len(line) == 10_000:  # the last one may be cut
        del numbers[-1]
    if not words or not all(word.isprintable() for word in numbers):
        return ""
    options = f", delimiter={delimiter!r}" if delimiter else ""
    if not all(map(_is_number, numbers)):
        options += ", skiprows=1"
    npy = str(path.with_suffix(".npy"))
    return f", as in numpy.save({npy!r}, numpy.loadtxt({str(path)!r}{options}))"


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        near = [
            f"{path}{suffix}" for suffix in (".npy", ".npz") if Path(f"{path}{suffix}").is_file()
        ]
        advice = f"give {near[0]}" if near else "give an .npy or .npz file"
        raise DataError(f"{path} is not a file; {advice}")
    with path.open("rb") as file:
        return file.read(len(_NPY))


def _read_images(given: str | os.PathLike[str]) -> np.ndarray:
    """The images [n, ...] of a file, of its dtype."""
    images = load_array(given)
    if images.ndim < 2 or images.size == 0:
        raise DataError(
            f"{os.fspath(given)} has the shape {list(images.shape)}; expected at least "
            "[n, values], with at least one image of at least one value"
            + "; save array[:, None] if each number is an image"
            * (images.ndim == 1)
        )
    if not np.isfinite([images.min(), images.max()]).all():  # NaN if any value is NaN
        raise DataError(
            f"{os.fspath(given)} holds {shown_nonfinite(images)}; remove or replace them"
        )
    return images


def _read_labels(given: str | os.PathLike[str] | None, images: np.ndarray) -> np.ndarray:
    """The labels of a file, int32 [n]; -1 for all images if there is no file."""
    if given is None:
        return np.full(len(images), UNKNOWN, np.int32)
    labels = load_array(given)
    if labels.shape != (len(images),):
        raise DataError(
            f"{os.fspath(given)} has the shape {list(labels.shape)}; expected [{len(images)}], a "
            "label for every image"
        )
    if not _is_whole(labels) or np.abs(labels.astype(np.float64)).max() >= 2**31:
        raise DataError(f"{os.fspath(given)} holds labels that are no int32; number the classes")
    return labels.astype(np.int32)


def _is_zeros_and_ones(images: np.ndarray) -> bool:
    return bool(np.all((images == 0) | (images == 1)))


def _is_whole(images: np.ndarray) -> bool:
    return images.dtype.kind in "biu" or np.array_equal(images, np.rint(images))


def _refuse_other_integers(given: str | os.PathLike[str], images: np.ndarray) -> None:
    """Refuses integers that are grey values but for their dtype."""
    is_other = images.dtype.kind in "iu" and images.dtype != np.uint8
    if is_other and images.min() >= 0 and 1 < images.max() <= 255:
        raise DataError(
            f"{os.fspath(given)} holds {images.dtype} from {shown_range(images)}; save grey values "
            "0..255 as uint8"
        )


def _float32(given: str | os.PathLike[str], images: np.ndarray) -> np.ndarray:
    """The images in float32; refuses values that it cannot hold."""
    if max(-float(images.min()), float(images.max())) > float(np.finfo(np.float32).max):
        raise DataError(
            f"{os.fspath(given)} runs from {shown_range(images)}, beyond float32; rescale it"
        )
    return images.astype(np.float32, copy=False)


def file_and_key(given: str | os.PathLike[str]) -> tuple[Path, str]:
    """The path of the file, and the name of the array in it, or "" if none is given."""
    path = user_path(given)
    before, _, key = os.fspath(path).rpartition(":")
    if not path.is_file() and before.endswith(".npy") and Path(before).is_file():
        raise DataError(f"{before} holds one array; remove :{key}")
    if not path.is_file() and (before.endswith(".npz") or Path(before).is_file()):
        return Path(before), key
    return path, ""


def _member(path: Path, key: str) -> str:
    """The name of the requested array of an .npz file."""
    with zipfile.ZipFile(path) as file:
        members = file.namelist()
    names = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
    if not names and any(name.endswith("data.pkl") for name in members):
        raise DataError(_never_unpickled(path))
    if not names:
        raise DataError(f"{path} holds no arrays; write it with numpy.savez")
    if not key and len(names) > 1:
        raise DataError(
            f"{path} holds {', '.join(names)}; name one array, as in {path.name}:{names[0]}"
        )
    if key and key not in names:
        raise DataError(
            f"{path} holds {', '.join(names)}, not {key}; name one of these after the colon"
        )
    return key or names[0]


def _never_unpickled(path: Path) -> str:
    npy = str(path.with_suffix(".npy"))
    return (
        f"{path} is a pickle, as PyTorch writes, not an .npy or .npz file; a pickle can run code "
        "when it is opened, so it is never loaded: if you trust it, convert it, as in "
        f"numpy.save({npy!r}, torch.load({str(path)!r}).numpy(force=True))"
    )


def _held_out(given: str | os.PathLike[str], images: int, holdout: float, seed: int) -> np.ndarray:
    """Which of so many images are to test on, bool [images]."""
    if not 0 < holdout < 1:
        raise DataError(
            f"{os.fspath(given)}: {holdout} of it cannot be held out; give a fraction between 0 "
            "and 1, or a file of test images"
        )
    number = max(1, math.floor(holdout * images + 0.5))
    if number >= images:
        raise DataError(
            f"{os.fspath(given)} holds too few images ({images}) to hold out {holdout} of "
            "them; give more, or a file of test images"
        )
    order = np.random.RandomState(seed).permutation(images)  # a frozen stream
    held_out = np.zeros(images, bool)
    held_out[order[:number]] = True
    return held_out
