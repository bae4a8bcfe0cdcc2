import gzip
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import small_files
from small_files import WRITERS, small_source

from lvae_jax.data import DataError, builders, idx, mnist, prepared
from lvae_jax.data.prepared import load_arrays, tfds_root

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
ORIGINAL = "https://storage.googleapis.com/cvdf-datasets/mnist/"


@pytest.fixture
def data_dir(tmp_path):
    return small_files.write_mnist(tmp_path / "original")


@pytest.fixture
def tfds_dir(tmp_path):
    return tmp_path / "tfds"


@pytest.fixture
def folder(tfds_dir):
    """Where the prepared data set lives."""
    return tfds_dir / "lvae_mnist" / "1.0.0"


def failure(*args):
    """The message of the DataError of loading with these arguments."""
    with pytest.raises(DataError) as caught:
        load_arrays(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_nothing_prepared(folder):
    assert not folder.exists()
    assert not list(folder.parent.glob("incomplete.*"))


def assert_same(arrays, others):
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], strict=True)


# Preparing


def test_files_in_the_given_folder_keep_the_network_unused(data_dir, tfds_dir):
    source = small_source(data_dir, url="http://127.0.0.1:9/")  # where nothing answers
    assert len(load_arrays(source, data_dir, tfds_dir)["train_images"]) == small_files.NUM_TRAIN


def test_both_folders_may_start_with_a_tilde(data_dir, tfds_dir, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tfds_dir.parent))
    load_arrays(small_source(data_dir), "~/original", "~/tfds")
    assert (folder / "arrays.npz").is_file()


def test_the_records_say_what_they_are(data_dir, tfds_dir, folder):
    load_arrays(small_source(data_dir), data_dir, tfds_dir)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["name"] == "lvae_mnist"
    assert info["version"] == "1.0.0"
    assert info["fileFormat"] == "array_record"
    assert [split["shardLengths"] for split in info["splits"]] == [["30"], ["20"]]


def run_python(code, *arguments):
    """Runs code in a process of its own, where every warning is an error."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(Path(prepared.__file__).parents[2])])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_all_are_prepared_silently_and_without_tensorflow(tmp_path):
    finished = run_python(
        """
        import pathlib, sys
        from small_files import NUM_TEST, NUM_TRAIN, WRITERS, small_source
        from lvae_jax.data.prepared import load_arrays

        root = pathlib.Path(sys.argv[1])
        for module, write in WRITERS.items():
            folder = write(root / module.__name__)
            arrays = load_arrays(small_source(folder, module.SOURCE), folder, root / "tfds")
            assert len(arrays["train_images"]) == len(arrays["train_labels"]) == NUM_TRAIN
            assert len(arrays["test_images"]) == len(arrays["test_labels"]) == NUM_TEST
        assert "tensorflow_datasets" in sys.modules
        assert "tensorflow" not in sys.modules
        """,
        tmp_path,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_all_are_loaded_again_without_tensorflow_datasets_and_scipy(tmp_path):
    for module, write in WRITERS.items():
        folder = write(tmp_path / module.__name__)
        load_arrays(small_source(folder, module.SOURCE), folder, tmp_path / "tfds")
    finished = run_python(
        """
        import sys
        from lvae_jax.data import binarized_mnist, fashion_mnist, mnist, omniglot, small_norb

        before = "scipy.io" in sys.modules  # of JAX
        for module in (mnist, fashion_mnist, binarized_mnist, omniglot, small_norb):
            dataset = module.load(tfds_dir=sys.argv[1])
            assert (len(dataset.train_images), len(dataset.test_images)) == (30, 20)
        assert not {"tensorflow_datasets", "tensorflow", "sklearn"} & sys.modules.keys()
        assert ("scipy.io" in sys.modules) == before
        """,
        tmp_path / "tfds",
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_a_preparation_killed_half_way_is_started_anew(data_dir, tfds_dir, folder):
    killed = run_python(
        """
        import os, signal, sys
        from lvae_jax.data import idx
        from small_files import Path, small_source
        from lvae_jax.data.prepared import load_arrays

        def killed(images):
            yield from images[:-1]
            os.kill(os.getpid(), signal.SIGKILL)

        def read(paths):
            splits = idx.read_splits(paths)
            images, labels = splits["test"]
            return splits | {"test": (killed(images), labels)}

        data_dir, tfds_dir = map(Path, sys.argv[1:])
        load_arrays(small_source(data_dir, read=read), data_dir, tfds_dir)
        """,
        data_dir,
        tfds_dir,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()
    assert list(folder.parent.glob("incomplete.*"))  # it had begun

    arrays = load_arrays(small_source(data_dir), data_dir, tfds_dir)
    assert len(arrays["train_images"]) == small_files.NUM_TRAIN
    assert len(arrays["test_images"]) == small_files.NUM_TEST


def test_an_interrupted_preparation_is_started_anew(data_dir, tfds_dir, folder):
    def interrupted(images):
        yield from images[:3]
        raise KeyboardInterrupt

    def read(paths):
        splits = idx.read_splits(paths)
        return splits | {"train": (interrupted(splits["train"][0]), splits["train"][1])}

    with pytest.raises(KeyboardInterrupt):
        load_arrays(small_source(data_dir, read=read), data_dir, tfds_dir)
    assert_nothing_prepared(folder)
    arrays = load_arrays(small_source(data_dir), data_dir, tfds_dir)
    assert len(arrays["test_images"]) == small_files.NUM_TEST


def test_two_processes_may_prepare_at_once(data_dir, tfds_dir):
    def slower(paths):
        load_arrays(small_source(data_dir), data_dir, tfds_dir)  # the other one finishes
        return idx.read_splits(paths)

    arrays = load_arrays(small_source(data_dir, read=slower), data_dir, tfds_dir)
    assert len(arrays["train_images"]) == small_files.NUM_TRAIN


def test_a_folder_that_another_process_completes_while_files_are_looked_up_is_used(
    data_dir, tfds_dir, monkeypatch
):
    source = small_source(data_dir)
    look = prepared._check_files

    def slower(*given):
        monkeypatch.setattr(prepared, "_check_files", look)
        load_arrays(source, data_dir, tfds_dir)  # the other one finishes
        look(*given)

    monkeypatch.setattr(prepared, "_check_files", slower)
    arrays = load_arrays(source, data_dir, tfds_dir)
    assert len(arrays["train_images"]) == small_files.NUM_TRAIN


# Loading what is prepared


def test_a_folder_without_permission_is_named(data_dir, tfds_dir, folder, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied", os.fspath(self))

    monkeypatch.setattr(type(folder), "is_file", denied)
    assert failure(small_source(data_dir), data_dir, tfds_dir) == (
        f"{folder}/dataset_info.json cannot be used (Permission denied); give other folders as "
        "data_dir and tfds_dir"
    )


def test_a_second_load_needs_neither_files_nor_network_nor_builder(data_dir, tfds_dir, monkeypatch):
    source = small_source(data_dir)
    first = load_arrays(source, data_dir, tfds_dir)
    monkeypatch.setattr(builders, "builder_class", None)
    assert_same(load_arrays(source, None, tfds_dir), first)
    assert_same(load_arrays(source, "/no/such/folder", tfds_dir), first)


@pytest.mark.parametrize(
    "damage", ["missing", "cut", "flipped", "pickled", "another's", "floats", "fewer"]
)
def test_arrays_are_rebuilt_from_the_records(data_dir, tfds_dir, folder, damage):
    source = small_source(data_dir)
    first = load_arrays(source, data_dir, tfds_dir)
    path = folder / "arrays.npz"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = content.index(first["train_images"].tobytes()) + 5000
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "another's":
        images = {name: np.zeros((7, 9, 9), np.float32) for name in first if "images" in name}
        np.savez(path, **first | images)
    elif damage == "floats":
        images = {name: np.float32(first[name]) for name in first if "images" in name}
        np.savez(path, **first | images)
    elif damage == "fewer":
        np.savez(path, **first | {"train_images": first["train_images"][:-1]})
    else:
        np.savez(path, **{name: np.array([None], object) for name in first})
    assert_same(load_arrays(source, None, tfds_dir), first)
    assert path.read_bytes() == content


def test_records_are_read_part_by_part(data_dir, tfds_dir, folder, monkeypatch):
    source = small_source(data_dir)
    monkeypatch.setattr(prepared, "_RECORDS_AT_ONCE", 7)  # of 30 and of 20
    arrays = load_arrays(source, data_dir, tfds_dir)
    splits = idx.read_splits(source.find(data_dir))
    for split, (images, labels) in splits.items():
        np.testing.assert_array_equal(arrays[f"{split}_images"], images, strict=True)
        np.testing.assert_array_equal(arrays[f"{split}_labels"], labels.astype(np.int32))


def test_records_are_enough_where_the_arrays_cannot_be_written(
    data_dir, tfds_dir, folder, monkeypatch, caplog
):
    def refuse(path, arrays):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prepared, "write_arrays", refuse)
    with caplog.at_level(logging.WARNING, "lvae_jax"):
        arrays = load_arrays(small_source(data_dir), data_dir, tfds_dir)
    assert len(arrays["train_images"]) == small_files.NUM_TRAIN
    assert not (folder / "arrays.npz").exists()
    (record,) = [record for record in caplog.records if record.name == prepared.__name__]
    assert record.message == (
        f"{folder} cannot be written ([Errno 13] Permission denied): loading stays slow"
    )


def test_damaged_records_are_named(data_dir, tfds_dir, folder):
    load_arrays(small_source(data_dir), data_dir, tfds_dir)
    (folder / "arrays.npz").unlink()
    (records,) = folder.glob("*-train.array_record*")
    records.write_bytes(records.read_bytes()[:100])
    message = failure(small_source(data_dir), None, tfds_dir)
    assert message.startswith(f"the records in {folder} cannot be read (")
    assert message.endswith("); delete that folder and run again")


def test_the_default_folder_is_that_of_tensorflow_datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert tfds_root(None) == tmp_path / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "shared"))
    assert tfds_root(None) == tmp_path / "shared"
    assert tfds_root(tmp_path / "own") == tmp_path / "own"


# Refusals


def test_a_folder_elsewhere_is_refused(monkeypatch, data_dir):
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/data")
    assert failure(small_source(data_dir)) == (
        "tfds_dir is gs://bucket/data, which is not a local folder; give the path of one"
    )


def test_a_user_without_a_home_directory_is_asked_for_a_folder(monkeypatch, data_dir):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert failure(small_source(data_dir)) == (
        "~/tensorflow_datasets: its home directory is not known; give a path without ~"
    )


def test_without_network_and_files_the_message_says_how_to_get_them(
    monkeypatch, data_dir, tfds_dir, folder
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        message = failure(small_source(data_dir, url=url), None, tfds_dir)
    assert message == (
        f"lvae_mnist is not in {folder} and {url}{FILES[0]} cannot be reached (ConnectionError); "
        f"download {', '.join(FILES)} from {url} and give their folder as data_dir, or use the "
        "digits, which need no files"
    )
    assert_nothing_prepared(folder)


def test_an_address_that_has_no_such_file_is_named(serve, data_dir, tfds_dir, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    url = serve(empty)
    message = failure(small_source(data_dir, url=url), None, tfds_dir)
    assert f"{url}{FILES[0]} cannot be reached (HTTPError)" in message


@pytest.mark.parametrize("module", WRITERS)
@pytest.mark.parametrize("damage", ["other", "cut", "empty"])
def test_a_damaged_file_is_named(module, tmp_path, tfds_dir, damage):
    data_dir = WRITERS[module](tmp_path / "files")
    source = small_source(data_dir, module.SOURCE)
    for file in source.files:
        path = data_dir / file.name
        content = path.read_bytes()
        path.write_bytes({"other": content[:-1] + b"x", "cut": content[:-20], "empty": b""}[damage])
        message = failure(source, data_dir, tfds_dir)
        assert str(path) in message
        assert "is not the original file" in message or f"{path} cannot be read (" in message
        assert "again" in message
        assert_nothing_prepared(tfds_dir / source.name / source.version)
        path.write_bytes(content)
    assert len(load_arrays(source, data_dir, tfds_dir)["test_images"]) == small_files.NUM_TEST


def test_files_of_another_data_set_are_named_with_both_checksums(data_dir, tfds_dir, folder):
    path = data_dir / FILES[0]
    found = hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
    assert failure(mnist.SOURCE, data_dir, tfds_dir) == (  # the checksums of the real files
        f"lvae_mnist: {path} is not the original file: its sha256 is {found}, expected "
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db; download "
        f"{FILES[0]} again from {ORIGINAL}"
    )
    assert_nothing_prepared(folder)


def test_a_download_that_breaks_off_is_made_again_the_next_time(serve, data_dir, tfds_dir, folder):
    url = serve(data_dir, broken=(FILES[2],))
    message = failure(small_source(data_dir, url=url), None, tfds_dir)
    assert "lvae_mnist" in message
    assert "run again" in message or "download it again" in message
    assert_nothing_prepared(folder)

    url = serve(data_dir)
    arrays = load_arrays(small_source(data_dir, url=url), None, tfds_dir)
    assert len(arrays["test_images"]) == small_files.NUM_TEST


def test_a_missing_file_is_named(data_dir, tfds_dir, folder):
    source = small_source(data_dir)
    (data_dir / FILES[1]).unlink()
    (data_dir / FILES[3]).unlink()
    assert failure(source, data_dir, tfds_dir) == (
        f"data_dir={data_dir} lacks {FILES[1]}, {FILES[3]} (packed with gzip or not); download "
        f"the missing files from {ORIGINAL} into it"
    )
    assert_nothing_prepared(folder)


def test_a_missing_data_dir_is_named(data_dir, tfds_dir, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert failure(small_source(data_dir), nowhere, tfds_dir) == (
        f"data_dir={nowhere} is not a folder; expected one that holds {', '.join(FILES)} from "
        f"{ORIGINAL}"
    )


def test_a_tfds_dir_that_cannot_be_made_is_named(data_dir, tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "tfds"
    assert failure(small_source(data_dir), data_dir, below) == (
        f"{below} cannot be created (Not a directory); give a folder that can be written to as "
        "tfds_dir"
    )


def test_a_tfds_dir_that_cannot_be_written_to_is_named(data_dir, tfds_dir, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert failure(small_source(data_dir), data_dir, tfds_dir) == (
        f"{tfds_dir} cannot be written to; give a folder that can be written to as tfds_dir"
    )


def test_a_folder_without_a_whole_data_set_is_named(data_dir, tfds_dir, folder):
    folder.mkdir(parents=True)
    assert failure(small_source(data_dir), data_dir, tfds_dir) == (
        f"{folder} holds an incomplete data set (dataset_info.json is missing); delete that folder "
        "and run again"
    )


def test_a_preparation_that_fails_keeps_nothing_and_the_cause(data_dir, tfds_dir, folder):
    def read(paths):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError) as caught:
        load_arrays(small_source(data_dir, read=read), data_dir, tfds_dir)
    assert str(caught.value) == (
        f"lvae_mnist could not be prepared in {folder}: [Errno 28] No space left on device; "
        "nothing was kept, run again"
    )
    assert isinstance(caught.value.__cause__, OSError)
    assert_nothing_prepared(folder)


@pytest.mark.parametrize("module", ["tensorflow_datasets", "array_record.python"])
def test_a_missing_package_is_named(data_dir, tfds_dir, monkeypatch, module):
    source = small_source(data_dir)
    monkeypatch.setitem(sys.modules, module, None)
    message = failure(source, data_dir, tfds_dir)
    assert message.startswith("lvae_mnist needs tensorflow-datasets and array-record (")
    assert module in message
    assert message.endswith('); pip install "lvae-jax[experiments]"')
