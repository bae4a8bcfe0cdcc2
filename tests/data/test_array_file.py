import os
import zipfile

import numpy as np
import pytest

from lvae_jax.data.array_file import read_arrays, write_arrays

ARRAYS = {
    "images": np.arange(4096, dtype=np.uint8).reshape(4, 32, 32),
    "labels": np.array([3, 1, 4, 1], np.int64),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "arrays.npz"
    write_arrays(path, ARRAYS)
    return path


def test_arrays_come_back_as_they_were(path):
    arrays = read_arrays(path, ["labels", "images"])
    assert list(arrays) == ["labels", "images"]
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_nothing_else_is_left_in_the_folder(path):
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_reads_as_none(tmp_path):
    assert read_arrays(tmp_path / "arrays.npz", ["images"]) is None


def test_a_file_without_one_of_the_arrays_reads_as_none(path):
    assert read_arrays(path, ["images", "angles"]) is None


@pytest.mark.parametrize("length", [0, 1, 100, 3000, -1])
def test_a_file_cut_short_reads_as_none(path, length):
    path.write_bytes(path.read_bytes()[:length])
    assert read_arrays(path, ["images", "labels"]) is None


def test_a_flipped_byte_in_the_values_reads_as_none(path):
    content = bytearray(path.read_bytes())
    content[content.index(bytes(range(256))) + 1000] ^= 1
    path.write_bytes(content)
    assert read_arrays(path, ["images", "labels"]) is None


def test_another_kind_of_file_reads_as_none(path):
    path.write_text("not arrays at all")
    assert read_arrays(path, ["images"]) is None
    with path.open("wb") as file:
        np.save(file, ARRAYS["images"])  # one array without a name
    assert read_arrays(path, ["images"]) is None
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images.npy", b"no header")
    assert read_arrays(path, ["images"]) is None


def test_pickled_objects_are_never_loaded(path):
    opened = []

    class Bomb:
        def __reduce__(self):
            return (opened.append, ("unpickled",))

    np.savez(path, images=np.array([Bomb()], object))
    assert read_arrays(path, ["images"]) is None
    assert opened == []


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_arrays(path, {"images": np.zeros(3)})
    assert list(path.parent.iterdir()) == [path]
    np.testing.assert_array_equal(read_arrays(path, ["images"])["images"], ARRAYS["images"])


def test_a_file_system_without_fsync_keeps_the_arrays_too(path, monkeypatch):
    def unsupported(descriptor):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unsupported)
    write_arrays(path, {"images": np.zeros(3)})
    assert read_arrays(path, ["images"])["images"].tolist() == [0, 0, 0]
