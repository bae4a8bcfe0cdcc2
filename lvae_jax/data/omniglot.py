"""OMNIGLOT: 24,345 training and 8,070 test images of characters of 50 alphabets, 28×28.

A MATLAB file with the split and the reduction to 28×28 of Burda et al. (2015), which the paper
uses. Another file in the same format can be used under the name `chardata_standin.mat`. The data
set then has another name, because its numbers cannot be compared with published ones.
"""

import os
from pathlib import Path

import numpy as np

from lvae_jax.data.dataset import DataError, Dataset
from lvae_jax.data.matlab import read_matrices
from lvae_jax.data.prepared import as_arrays, load_arrays
from lvae_jax.data.source import File, Source, Splits, user_path

NUM_ALPHABETS = 50
STANDIN = "chardata_standin.mat"
"""The name of a file that is used in place of the original one."""

_SAVE_AGAIN = "save it with -v7, like the original: see lvae_jax.data.omniglot.read_chardata"


def read_chardata(path: Path, advice: str = "download it again") -> Splits:
    """Reads the MATLAB file.

    Args:
      path: The file. It holds `data` [784, n], each column an image in column-major order with
        values in [0, 1], and `target` [50, n], a 1 for the image's alphabet; `testdata` and
        `testtarget` likewise.
      advice: What to do about a file that is not like that.

    Returns:
      float32 images [n, 28, 28] and alphabets [n], for "train" and "test".

    Raises:
      DataError: The file is missing, truncated or of another kind.
    """
    splits = {}
    for split, data_key, target_key in (
        ("train", "data", "target"),
        ("test", "testdata", "testtarget"),
    ):
        data, target = read_matrices(
            path, {data_key: (28 * 28, "n"), target_key: (NUM_ALPHABETS, "n")}, advice
        )
        if data.shape[1] != target.shape[1]:
            raise DataError(
                f"{path} holds {data.shape[1]} images in {data_key} but {target.shape[1]} "
                f"alphabets in {target_key}; {advice}"
            )
        if not np.all((data >= 0) & (data <= 1)):
            raise DataError(f"{path}: {data_key} has values outside [0, 1]; {advice}")
        if not (np.all((target == 0) | (target == 1)) and np.all(target.sum(0) == 1)):
            raise DataError(f"{path}: {target_key} does not have one 1 in each column; {advice}")
        # Column-major: the first 28 values of a column are the image's left edge.
        images = data.T.reshape(-1, 28, 28).transpose(0, 2, 1)
        splits[split] = np.ascontiguousarray(images, np.float32), target.argmax(0)
    return splits


SOURCE = Source(
    name="lvae_omniglot",
    homepage="https://github.com/yburda/iwae",
    url="https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/",
    files=(File("chardata.mat", "md5:21ecaf34373511aa7691cf2e0802aa3d"),),
    read=lambda paths: read_chardata(paths["chardata.mat"]),
    image_shape=(28, 28),
    num_classes=NUM_ALPHABETS,
    image_dtype=np.float32,
)


def load(
    data_dir: str | os.PathLike[str] | None = None,
    tfds_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads OMNIGLOT; the first time, it is downloaded and prepared, which takes seconds.

    Args:
      data_dir: A folder with the original file, `chardata.mat`, used instead of the network and
        ignored once the data set is prepared. If it holds `chardata_standin.mat` and no
        `chardata.mat`, the stand-in is read.
      tfds_dir: The folder of prepared data sets; None is tensorflow-datasets' default,
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
      The data set, "omniglot" or "omniglot-standin", in the order of the file, to be binarised
      dynamically. A label is the index of the image's alphabet.

    Raises:
      DataError: The file is neither given nor can be downloaded, `chardata.mat` is not the
        original, or `tfds_dir` cannot be written to.
    """
    name = "omniglot"
    folder = None if data_dir is None else user_path(data_dir)
    if folder is not None and (folder / STANDIN).is_file() and not SOURCE.find(folder):
        name, arrays = "omniglot-standin", as_arrays(read_chardata(folder / STANDIN, _SAVE_AGAIN))
    else:
        arrays = load_arrays(SOURCE, folder, tfds_dir)
    return Dataset(
        name=name,
        **arrays,
        observation="bernoulli",
        binarisation="dynamic",
    )
