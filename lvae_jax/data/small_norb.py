"""Small NORB: 24,300 training and 24,300 test pairs of images of toys, reduced to 32×32, uint8.

A pair is one toy seen by two cameras. The original files are in NORB's own format for matrices:
little-endian int32s for the type, the number of dimensions and at least three sizes, then the
values in row-major order. Each pixel of the reduced images is the mean of 3×3 original pixels.

The paper used other files: MATLAB files of images that were resized bicubically. If a user has
them, they are read instead, and the data set is called "small_norb-resized".
"""

import math
import os
import struct
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lvae_jax.data.dataset import DataError, Dataset, check_choice
from lvae_jax.data.matlab import read_matrices
from lvae_jax.data.prepared import as_arrays, load_arrays
from lvae_jax.data.source import File, Source, Splits, open_content, user_path

NUM_CATEGORIES = 5
IMAGE_SHAPE = (32, 32)
RESIZED = {
    "smallnorb-5x46789x9x18x6x2x32x32-training-dat-matlab-bicubic.mat": "smallnorb_train_x.mat",
    "smallnorb-5x46789x9x18x6x2x96x96-training-cat-matlab.mat": "smallnorb_train_t.mat",
    "smallnorb-5x01235x9x18x6x2x32x32-testing-dat-matlab-bicubic.mat": "smallnorb_test_x.mat",
    "smallnorb-5x01235x9x18x6x2x96x96-testing-cat-matlab.mat": "smallnorb_test_t.mat",
}
"""The paper's files at github.com/gwtaylor/convnet_matlab, and their names in the authors' code."""
Cameras = Literal["one", "both"]

_PAIRS_AT_ONCE = 500  # 9 MB; all of them are 448 MB
_TRAIN = "smallnorb-5x46789x9x18x6x2x96x96-training-{}.mat.gz"
_TEST = "smallnorb-5x01235x9x18x6x2x96x96-testing-{}.mat.gz"


def read_pairs(path: Path) -> np.ndarray:
    """Reads a `-dat` file of uint8 images [n, 2, 96, 96] and reduces them.

    Returns:
      uint8 images [n, 2, 32, 32], each pixel the rounded mean of 3×3.
    """
    with open_content(path) as file:
        shape = _read_sizes(file)
        reduced = np.empty((*shape[:2], *IMAGE_SHAPE), np.uint8)
        for start in range(0, len(reduced), _PAIRS_AT_ONCE):
            part = reduced[start : start + _PAIRS_AT_ONCE]
            content = file.read(len(part) * math.prod(shape[1:]))
            full = np.frombuffer(content, np.uint8).reshape(len(part), *shape[1:])
            triples = full[:, :, 0::3].astype(np.uint16) + full[:, :, 1::3] + full[:, :, 2::3]
            sums = triples[..., 0::3] + triples[..., 1::3] + triples[..., 2::3]
            part[...] = (sums + 4) // 9  # a ninth is never halfway between two whole numbers
    return reduced


def read_categories(path: Path) -> np.ndarray:
    """Reads a `-cat` file: categories 0 to 4, int32 [n]."""
    with open_content(path) as file:
        _read_sizes(file)
        return np.frombuffer(file.read(), "<i4")


def _read_sizes(file: BufferedIOBase) -> tuple[int, ...]:
    """Reads the header of a NORB matrix and returns its shape."""
    _, ndim = struct.unpack("<2i", file.read(8))
    number = max(3, ndim)  # sizes beyond the dimensions mean nothing
    sizes: tuple[int, ...] = struct.unpack(f"<{number}i", file.read(4 * number))
    return sizes[:ndim]


def read_resized(folder: Path) -> Splits:
    """Reads the four MATLAB files of resized images.

    Args:
      folder: Holds the files of `RESIZED`, under either name. Images are `traindata` and
        `testdata` [1024, 2, n], grey values 0..255, each image in row-major order; categories 0 to
        4 are `trainlabels` and `testlabels`.

    Returns:
      uint8 images [n, 2, 32, 32], rounded to whole grey values, and categories [n].

    Raises:
      DataError: A file is missing, truncated or of another kind.
    """
    paths = iter(_find_resized(folder, name) for name in RESIZED)
    splits = {}
    for split in ("train", "test"):
        image_path, category_path = next(paths), next(paths)
        (values,) = read_matrices(image_path, {f"{split}data": (math.prod(IMAGE_SHAPE), 2, "n")})
        (categories,) = read_matrices(category_path, {f"{split}labels": ("n", "n")})
        categories = categories.reshape(-1)
        if not np.all((values >= 0) & (values <= 255)):
            raise DataError(f"{image_path} has values outside [0, 255]; download it again")
        if len(categories) != values.shape[2] or not set(np.unique(categories)) <= set(range(5)):
            raise DataError(
                f"{category_path} does not hold a category 0 to 4 for each of {values.shape[2]} "
                "pairs; download it again"
            )
        images = np.rint(values.T).astype(np.uint8).reshape(-1, 2, *IMAGE_SHAPE)
        splits[split] = images, categories
    return splits


def _find_resized(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_file() else folder / RESIZED[name]


def _read(paths: Mapping[str, Path]) -> Splits:
    return {
        split: (read_pairs(paths[name.format("dat")]), read_categories(paths[name.format("cat")]))
        for split, name in (("train", _TRAIN), ("test", _TEST))
    }


SOURCE = Source(
    name="lvae_small_norb",
    homepage="https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/",
    url="https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/",
    # The two `-info` files, pose and lighting, are not used.
    files=(
        File(
            _TRAIN.format("dat"),
            "sha256:5ffd6272a07d32695ee1082a26a41a93a37aab8c28da047f8c34ed348d214873",
            of_packed=True,
        ),
        File(
            _TRAIN.format("cat"),
            "sha256:2784e542c1922060691090952b6cd6278879a216c90f81476f0f00256d42cdaa",
            of_packed=True,
        ),
        File(
            _TEST.format("dat"),
            "sha256:cf7104eed3e51174d2f65b66d1e5878b9da233b886f161b0d88f4510ba2c7474",
            of_packed=True,
        ),
        File(
            _TEST.format("cat"),
            "sha256:ecaf6d5bb8c3bc5eab9cf0258f6d2198dd474e016e374836fc097f2e5ff509ff",
            of_packed=True,
        ),
    ),
    read=_read,
    image_shape=(2, *IMAGE_SHAPE),
    num_classes=NUM_CATEGORIES,
)


def load(
    data_dir: str | os.PathLike[str] | None = None,
    tfds_dir: str | os.PathLike[str] | None = None,
    cameras: Cameras = "one",
) -> Dataset:
    """Loads small NORB; the first time, it is downloaded (263 MB) and prepared.

    Args:
      data_dir: A folder with the original `-dat.mat.gz` and `-cat.mat.gz` files, used instead of
        the network and ignored once the data set is prepared. If it holds the files of `RESIZED`
        and no original ones, those are read.
      tfds_dir: The folder of prepared data sets; None is tensorflow-datasets' default,
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      cameras: "one": the images of the first camera, which the authors' code uses, 24,300 to train
        on and 24,300 to test on. "both": 48,600 of each, the two images of a pair one after the
        other.

    Returns:
      The data set in the order of the files, with a Gaussian observation of
      x = (grey + u)/256, u uniform in [0, 1). A label is the toy's category. The name is
      "small_norb" or "small_norb-resized", then "-both" for both cameras.

    Raises:
      DataError: A file is neither given nor can be downloaded, a file is not the original, or
        `tfds_dir` cannot be written to.
    """
    name = "small_norb"
    check_choice(name, "cameras", cameras, get_args(Cameras))
    folder = None if data_dir is None else user_path(data_dir)
    first = next(iter(RESIZED))
    if folder is not None and not SOURCE.find(folder) and _find_resized(folder, first).is_file():
        name, pairs = "small_norb-resized", as_arrays(read_resized(folder))
    else:
        pairs = load_arrays(SOURCE, folder, tfds_dir)
    number = 1 if cameras == "one" else 2
    return Dataset(
        name=name if cameras == "one" else f"{name}-both",
        train_images=pairs["train_images"][:, :number].reshape(-1, *IMAGE_SHAPE),
        train_labels=pairs["train_labels"].repeat(number),
        test_images=pairs["test_images"][:, :number].reshape(-1, *IMAGE_SHAPE),
        test_labels=pairs["test_labels"].repeat(number),
        observation="gaussian",
        binarisation="none",
        dequantisation=1 / 256,
    )
