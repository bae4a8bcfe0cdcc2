"""Preparing a data set with tensorflow-datasets once, and loading it as arrays ever after.

tensorflow-datasets (tfds) fetches and checks the original files and writes them as records of its
array_record format, into `<tfds_dir>/<name>/<version>/`; it works in a folder called `incomplete.*`
and renames it when done, so a preparation that is cut short leaves nothing that passes for whole.
Reading the records takes seconds; the arrays read from them are kept beside them as `arrays.npz`,
and with that file in place tfds is not even imported.
"""

import contextlib
import dataclasses
import io
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from lvae_jax.data.array_file import read_arrays, write_arrays
from lvae_jax.data.dataset import DataError

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


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
      name: Its name in tfds.
      version: Its version in tfds.
      url: The address of the folder that holds the files, ending in "/".
      files: The names of the original files. Their SHA-256 are in `checksums.tsv`.
      read: Reads the files, given where each of them is: images [n, *image_shape] and integer
        labels [n], -1 where unknown, for "train" and "test".
      builder_class: Returns its tfds builder, a `builders.SourceBuilder`. A function, because
        importing it imports tfds.
      md5: The MD5 of the file, where only that is known and not its SHA-256.
      may_be_packed: Whether a file given may be packed with gzip, `.gz` added to its name.
    """

    name: str
    version: str
    url: str
    files: tuple[str, ...]
    read: Callable[[Mapping[str, Path]], dict[str, tuple[np.ndarray, np.ndarray]]]
    builder_class: Callable[[], Any]
    md5: str = ""
    may_be_packed: bool = False

    def find(self, folder: Path, file: str) -> Path | None:
        """Where in a folder the file is, packed or not, or None."""
        for name in (file, f"{file}.gz") if self.may_be_packed else (file,):
            if (folder / name).is_file():
                return folder / name
        return None

    def not_the_original(self, what: str) -> str:
        """The message where a checksum is wrong."""
        return (
            f"{self.name}: {what} has wrong checksum: it is cut short or not the original; delete "
            f"it and download it again from {self.url}"
        )


def load_arrays(
    source: Source,
    data_dir: str | os.PathLike[str] | None = None,
    tfds_dir: str | os.PathLike[str] | None = None,
) -> Arrays:
    """Loads a data set, preparing it first if it is not there.

    Args:
      source: The data set.
      data_dir: A folder with the original files under their original names, used instead of the
        network. Not looked at once the data set is prepared.
      tfds_dir: The folder of prepared data sets; None is tfds' default, `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Returns:
      The arrays, each [n, ...] in the order of the records.

    Raises:
      DataError: The data set is neither there nor can be prepared; one line says why.
    """
    root = tfds_root(tfds_dir)
    folder = root / source.name / source.version
    arrays = read_arrays(folder / ARRAYS_FILE, ARRAY_NAMES)
    if arrays is None:
        arrays = _load_records(source, root, folder, data_dir)
    return Arrays(
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"].astype(np.int32),
        test_images=arrays["test_images"],
        test_labels=arrays["test_labels"].astype(np.int32),
    )


def _load_records(
    source: Source, root: Path, folder: Path, data_dir: str | os.PathLike[str] | None
) -> dict[str, np.ndarray]:
    """Reads the records, which are prepared first if need be, and keeps them as arrays."""
    if not _is_prepared(folder):
        _prepare(source, root, folder, None if data_dir is None else Path(data_dir).expanduser())
    arrays = _read_records(source, root, folder)
    try:
        write_arrays(folder / ARRAYS_FILE, arrays)
    except OSError as error:  # such as a shared folder: the records are enough, only slower
        _logger.warning("%s cannot be written (%s): loading stays slow", folder, error)
    return arrays


def tfds_root(tfds_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of prepared data sets, found as tfds does but without importing it.

    Raises:
      DataError: It is an address, not a local folder.
    """
    chosen = os.fspath(tfds_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if "://" in chosen:
        raise DataError(
            f"prepared data sets are to be kept in {chosen}, which is not a local folder; give one "
            "with --tfds_dir"
        )
    return Path(chosen).expanduser()


def _is_prepared(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file()


def _prepare(source: Source, root: Path, folder: Path, data_dir: Path | None) -> None:
    """Has tfds write the records into `folder`, from `data_dir` or else from the network."""
    if data_dir is not None:
        _check_files_are_there(source, data_dir)
    if folder.exists():
        raise DataError(
            f"{folder} holds no whole data set (dataset_info.json is missing); delete that folder "
            "and run again"
        )
    _make_writable(root)
    tfds, builder_class = _import_builder(source)
    if data_dir is None and source.files:
        _check_network(source, folder)

    tfds.display_progress_bar(False)
    config = tfds.download.DownloadConfig(
        manual_dir=data_dir,
        force_checksums_validation=not source.md5,  # which the builder checks
        try_download_gcs=False,
        compute_stats=tfds.download.ComputeStatsMode.SKIP,
    )
    try:
        builder = builder_class(data_dir=root, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # tfds announces itself on stdout
            builder.download_and_prepare(download_config=config)
    except DataError:
        raise
    except Exception as error:  # of tfds, requests, gzip, the file system, ...
        if _is_prepared(folder):  # another process prepared it meanwhile
            return
        raise DataError(_explain(error, source, folder)) from error


def _check_files_are_there(source: Source, data_dir: Path) -> None:
    if not data_dir.is_dir():
        raise DataError(
            f"--data_dir={data_dir} is not a folder; expected one that holds "
            f"{', '.join(source.files)} from {source.url}"
        )
    missing = [file for file in source.files if source.find(data_dir, file) is None]
    if missing:
        raise DataError(
            f"--data_dir={data_dir} lacks {', '.join(missing)}; download what is missing from "
            f"{source.url} into it, under the same names and "
            + ("packed with gzip or not" if source.may_be_packed else "not unpacked")
        )


def _make_writable(root: Path) -> None:
    advice = "give a folder that can be written to with --tfds_dir"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{root} cannot be made ({error.strerror}); {advice}") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise DataError(f"{root} cannot be written to; {advice}")


def _import_builder(source: Source) -> tuple[Any, Any]:
    try:
        import tensorflow_datasets as tfds
        from array_record.python import array_record_module  # noqa: F401  (else found out later)

        return tfds, source.builder_class()
    except ImportError as error:
        raise DataError(
            f"{source.name} needs tensorflow-datasets and array-record ({error}); "
            'pip install "lvae-jax[experiments]"'
        ) from error


def _check_network(source: Source, folder: Path) -> None:
    """Finds out in seconds what tfds, which waits and tries again, would find out in minutes."""
    import requests

    url = source.url + source.files[0]
    try:
        requests.head(url, timeout=_CONNECTION_TIMEOUT).raise_for_status()
    except requests.RequestException as error:
        raise DataError(
            f"{source.name} is not in {folder} and {url} cannot be reached "
            f"({type(error).__name__}); download {', '.join(source.files)} from {source.url} and "
            "give their folder with --data_dir, or run experiments.digits, which needs no files"
        ) from error


def _explain(error: Exception, source: Source, folder: Path) -> str:
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    if isinstance(error, NonMatchingChecksumError):
        what = str(error).splitlines()[0]  # names the address and the file
        return source.not_the_original(what.removesuffix(" has wrong checksum:"))
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{source.name} could not be prepared in {folder}: {reason}; nothing was kept, run again"


def _read_records(source: Source, root: Path, folder: Path) -> dict[str, np.ndarray]:
    """Reads every record of a prepared data set."""
    _, builder_class = _import_builder(source)
    arrays = {}
    try:
        builder = builder_class(data_dir=root, file_format="array_record")
        for split in ("train", "test"):
            records = builder.as_data_source(split)
            for feature, values in _stack(records).items():
                arrays[f"{split}_{feature}s"] = values  # image -> train_images
    except Exception as error:  # of tfds, array_record, protobuf, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"the records in {folder} cannot be read ({reason}); delete that folder and run again"
        ) from error
    return arrays


def _stack(records: Any) -> dict[str, np.ndarray]:
    """One array a feature, filled many records at a time: one at a time is five times slower."""
    number = len(records)
    first = records[0]
    arrays = {
        feature: np.empty((number, *np.shape(value)), np.asarray(value).dtype)
        for feature, value in first.items()
    }
    for start in range(0, number, _RECORDS_AT_ONCE):
        stop = min(start + _RECORDS_AT_ONCE, number)
        batch = records.__getitems__(list(range(start, stop)))
        for feature, array in arrays.items():
            array[start:stop] = [record[feature] for record in batch]
    return arrays
