"""Preparing a data set with tensorflow-datasets once, and loading it as arrays from then on.

tensorflow-datasets (tfds) fetches the original files and writes them as records of its array_record
format, into `<tfds_dir>/<name>/<version>/`. It works in a folder called `incomplete.*` and renames
it when done, so an interrupted preparation is never mistaken for a complete one. Reading the
records takes seconds. The arrays are therefore kept beside the records in `arrays.npz`; if that
file exists, tfds is not even imported.
"""

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from lvae_jax.data.array_file import read_arrays, write_arrays
from lvae_jax.data.dataset import DataError, shown_reason
from lvae_jax.data.source import Source, Splits, user_path

ARRAYS_FILE = "arrays.npz"
_RECORDS_AT_ONCE = 1000
_CONNECTION_TIMEOUT = 10.0  # seconds

_logger = logging.getLogger(__name__)


class Arrays(TypedDict):
    """A data set's arrays; images in the dtype of the records, labels int32."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


ARRAY_NAMES = tuple(Arrays.__annotations__)


def as_arrays(splits: Splits) -> Arrays:
    """The arrays of "train" and "test", labels as int32."""
    (train_images, train_labels), (test_images, test_labels) = splits["train"], splits["test"]
    return Arrays(
        train_images=train_images,
        train_labels=train_labels.astype(np.int32),
        test_images=test_images,
        test_labels=test_labels.astype(np.int32),
    )


def load_arrays(
    source: Source,
    data_dir: str | os.PathLike[str] | None = None,
    tfds_dir: str | os.PathLike[str] | None = None,
) -> Arrays:
    """Loads a data set, preparing it first if necessary.

    Args:
      source: The data set.
      data_dir: A folder with the original files, packed with gzip or not, used instead of the
        network. Ignored once the data set is prepared.
      tfds_dir: The folder of prepared data sets; None is tfds' default, `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Returns:
      The arrays, each [n, ...] in the order of the records.

    Raises:
      DataError: The data set is not prepared and cannot be; the message says why.
    """
    root = tfds_root(tfds_dir)
    folder = root / source.name / source.version
    arrays = read_arrays(folder / ARRAYS_FILE, ARRAY_NAMES)
    if arrays is None or not _belong_to(source, arrays):
        try:
            if not _is_prepared(folder):
                _prepare(source, root, None if data_dir is None else user_path(data_dir))
        except OSError as error:
            raise DataError(
                f"{error.filename or folder} cannot be used ({error.strerror}); give other folders "
                "as data_dir and tfds_dir"
            ) from error
        arrays = _read_records(source, root)
        try:
            write_arrays(folder / ARRAYS_FILE, arrays)
        except OSError as error:  # such as a read-only folder; reading the records works, too
            _logger.warning("%s cannot be written (%s): loading stays slow", folder, error)
    return as_arrays(
        {split: (arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in _SPLITS}
    )


_SPLITS = ("train", "test")


def _belong_to(source: Source, arrays: dict[str, np.ndarray]) -> bool:
    """Whether the arrays can be those of the source."""
    return all(
        arrays[f"{split}_images"].dtype == source.image_dtype
        and arrays[f"{split}_images"].shape[1:] == source.image_shape
        and arrays[f"{split}_images"].shape[:1] == arrays[f"{split}_labels"].shape
        for split in _SPLITS
    )


def tfds_root(tfds_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of prepared data sets, by the rules of tfds but without importing it.

    Raises:
      DataError: It is an address, not a local folder.
    """
    chosen = os.fspath(tfds_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if "://" in chosen:
        raise DataError(f"tfds_dir is {chosen}, which is not a local folder; give the path of one")
    return user_path(chosen)


def _is_prepared(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file()


def _prepare(source: Source, root: Path, data_dir: Path | None) -> None:
    """Has tfds write the records below `root`, from `data_dir` or else from the network."""
    folder = root / source.name / source.version
    if data_dir is not None:
        _check_files(source, data_dir)
    if folder.exists():
        if _is_prepared(folder):  # another process has prepared it meanwhile
            return
        raise DataError(
            f"{folder} holds an incomplete data set (dataset_info.json is missing); delete that "
            "folder and run again"
        )
    _make_writable(root)
    tfds, builder_class = _import_builders(source)
    if data_dir is None:
        _check_network(source, folder)

    tfds.display_progress_bar(False)
    config = tfds.download.DownloadConfig(
        manual_dir=data_dir,
        try_download_gcs=False,
        compute_stats=tfds.download.ComputeStatsMode.SKIP,
    )
    try:
        builder = builder_class(source)(data_dir=root, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # tfds announces itself on stdout
            builder.download_and_prepare(download_config=config)
    except DataError:
        raise
    except Exception as error:  # tfds, requests, gzip, the file system, ... raise many types
        if _is_prepared(folder):  # another process prepared it meanwhile
            return
        raise DataError(
            f"{source.name} could not be prepared in {folder}: {shown_reason(error)}; nothing was "
            "kept, run again"
        ) from error


def _check_files(source: Source, data_dir: Path) -> None:
    names = [file.name for file in source.files]
    if not data_dir.is_dir():
        raise DataError(
            f"data_dir={data_dir} is not a folder; expected one that holds {', '.join(names)} "
            f"from {source.url}"
        )
    found = source.find(data_dir)
    missing = [name for name in names if name not in found]
    if missing:
        packed = "as published" if any(f.of_packed for f in source.files) else "with gzip or not"
        raise DataError(
            f"data_dir={data_dir} lacks {', '.join(missing)} (packed {packed}); download the "
            f"missing files from {source.url} into it"
        )


def _make_writable(root: Path) -> None:
    advice = "give a folder that can be written to as tfds_dir"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{root} cannot be created ({error.strerror}); {advice}") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise DataError(f"{root} cannot be written to; {advice}")


def _import_builders(source: Source) -> tuple[Any, Any]:
    try:
        import tensorflow_datasets as tfds
        from array_record.python import array_record_module  # noqa: F401  (tfds imports it later)

        from lvae_jax.data.builders import builder_class
    except ImportError as error:
        raise DataError(
            f"{source.name} needs tensorflow-datasets and array-record ({error}); "
            'pip install "lvae-jax[experiments]"'
        ) from error
    return tfds, builder_class


def _check_network(source: Source, folder: Path) -> None:
    """Reports an unreachable network within seconds; tfds would retry for minutes."""
    import requests

    names = [file.name for file in source.files]
    url = source.url + names[0]
    try:
        requests.head(url, timeout=_CONNECTION_TIMEOUT).raise_for_status()
    except requests.RequestException as error:
        raise DataError(
            f"{source.name} is not in {folder} and {url} cannot be reached "
            f"({type(error).__name__}); download {', '.join(names)} from {source.url} and give "
            "their folder as data_dir, or use the digits, which need no files"
        ) from error


def _read_records(source: Source, root: Path) -> dict[str, np.ndarray]:
    """Reads every record of a prepared data set."""
    _, builder_class = _import_builders(source)
    arrays = {}
    try:
        builder = builder_class(source)(data_dir=root, file_format="array_record")
        for split in _SPLITS:
            for feature, values in _stack(builder.as_data_source(split)).items():
                arrays[f"{split}_{feature}s"] = values  # image -> train_images
    except Exception as error:  # tfds, array_record, protobuf, ... raise many types
        raise DataError(
            f"the records in {root / source.name / source.version} cannot be read "
            f"({shown_reason(error)}); delete that folder and run again"
        ) from error
    return arrays


def _stack(records: Any) -> dict[str, np.ndarray]:
    """One array per feature. Reads many records at a time: five times faster than one by one."""
    number = len(records)
    arrays = {
        feature: np.empty((number, *np.shape(value)), np.asarray(value).dtype)
        for feature, value in records[0].items()
    }
    for start in range(0, number, _RECORDS_AT_ONCE):
        stop = min(start + _RECORDS_AT_ONCE, number)
        batch = records.__getitems__(list(range(start, stop)))
        for feature, array in arrays.items():
            array[start:stop] = [record[feature] for record in batch]
    return arrays
