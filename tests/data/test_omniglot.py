"""The real format is tested too where LVAE_JAX_TEST_DATA names a folder with omniglot/."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import io
from small_files import chardata, small_source, write_omniglot

from lvae_jax.data import DataError, omniglot
from lvae_jax.data.omniglot import read_chardata

DATA = os.environ.get("LVAE_JAX_TEST_DATA")
SIZES = {"small": (30, 20), "real": (24_345, 8_070)}


@pytest.fixture(scope="module")
def tfds_dirs(tmp_path_factory):
    return {kind: tmp_path_factory.mktemp(kind) for kind in SIZES}


@pytest.fixture(params=["small", "real"] if DATA else ["small"])
def standin(request, tmp_path_factory, tfds_dirs):
    """Which file, its path and its data set."""
    kind = request.param
    folder = Path(DATA or "") / "omniglot"
    if kind == "small":
        folder = write_omniglot(tmp_path_factory.mktemp("original"), "chardata_standin.mat")
    return kind, folder / "chardata_standin.mat", omniglot.load(folder, tfds_dirs[kind])


def test_the_stand_in_is_never_called_omniglot(standin, tfds_dirs):
    kind, _, dataset = standin
    assert dataset.name == "omniglot-standin"
    assert (dataset.observation, dataset.binarisation) == ("bernoulli", "dynamic")
    assert not list(tfds_dirs[kind].iterdir())


def test_images_are_columns_in_column_major_order(standin):
    kind, path, dataset = standin
    content = io.loadmat(path)
    assert (len(dataset.train_images), len(dataset.test_images)) == SIZES[kind]
    for images, key in ((dataset.train_images, "data"), (dataset.test_images, "testdata")):
        assert images.dtype == np.float32
        for index in (0, 7, len(images) - 1):
            upright = content[key][:, index].reshape(28, 28, order="F")
            np.testing.assert_array_equal(images[index], upright.astype(np.float32))


def test_labels_are_alphabets(standin):
    _, path, dataset = standin
    content = io.loadmat(path)
    for labels, key in ((dataset.train_labels, "target"), (dataset.test_labels, "testtarget")):
        assert labels.dtype == np.int32
        assert np.all(content[key][labels, np.arange(len(labels))] == 1)


def test_the_original_is_called_omniglot(tmp_path, monkeypatch):
    folder = write_omniglot(tmp_path / "original")
    write_omniglot(folder, "chardata_standin.mat", data=1 - chardata()["data"])  # not looked at
    monkeypatch.setattr(omniglot, "SOURCE", small_source(folder, omniglot.SOURCE))
    dataset = omniglot.load(folder, tmp_path / "tfds")
    assert dataset.name == "omniglot"
    first = chardata()["data"][:, 0].reshape(28, 28).T
    np.testing.assert_array_equal(dataset.train_images[0], first.astype(np.float32))


def test_a_stand_in_under_the_name_of_the_original_is_refused(tmp_path):
    folder = write_omniglot(tmp_path / "original")
    with pytest.raises(DataError) as caught:
        omniglot.load(folder, tmp_path / "tfds")
    message = str(caught.value)
    assert message.startswith(
        f"lvae_omniglot: {folder}/chardata.mat is not the original file: its md5 is "
    )
    assert message.endswith(
        ", expected 21ecaf34373511aa7691cf2e0802aa3d; download chardata.mat again from "
        "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/"
    )
    assert not (tmp_path / "tfds" / "lvae_omniglot" / "1.0.0").exists()


def test_a_stand_in_loaded_once_is_not_taken_for_the_original(tmp_path, monkeypatch):
    folder = write_omniglot(tmp_path / "original", "chardata_standin.mat")
    omniglot.load(folder, tmp_path / "tfds")
    (folder / "chardata_standin.mat").unlink()
    with pytest.raises(DataError, match=r"lacks chardata\.mat"):
        omniglot.load(folder, tmp_path / "tfds")


def test_a_damaged_stand_in_is_named(tmp_path):
    folder = write_omniglot(tmp_path / "original", "chardata_standin.mat")
    path = folder / "chardata_standin.mat"
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(DataError) as caught:
        omniglot.load(folder, tmp_path / "tfds")
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read (")
    assert message.endswith("download it again")
    assert "\n" not in message


@pytest.mark.parametrize(
    "changes",
    [
        {"data": np.zeros((30, 784))},  # transposed
        {"testdata": np.full((784, 20), 255.0)},
        {"target": np.zeros((50, 30))},
        {"target": "none"},
    ],
)
def test_a_stand_in_of_another_form_is_to_be_saved_again(tmp_path, changes):
    folder = write_omniglot(tmp_path / "original", "chardata_standin.mat", **changes)
    with pytest.raises(DataError) as caught:
        omniglot.load(folder, tmp_path / "tfds")
    advice = "save it with -v7, like the original: see lvae_jax.data.omniglot.read_chardata"
    assert str(caught.value).endswith(advice)


def message_for(folder, **changes):
    path = write_omniglot(folder, **changes) / "chardata.mat"
    with pytest.raises(DataError) as caught:
        read_chardata(path)
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": np.zeros((783, 30))},
            ": data has the shape [783, 30]; expected [784, n]: download it again",
        ),
        (
            {"testdata": np.zeros((784, 0))},
            ": testdata has the shape [784, 0]; expected [784, n]: download it again",
        ),
        (
            {"target": np.eye(50)[:, :29]},
            " holds 30 images in data but 29 alphabets in target; download it again",
        ),
        (
            {"data": np.full((784, 30), 255.0)},
            ": data has values outside [0, 1]; download it again",
        ),
        (
            {"data": np.full((784, 30), np.nan)},
            ": data has values outside [0, 1]; download it again",
        ),
        (
            {"testdata": np.full((784, 20), -0.5)},
            ": testdata has values outside [0, 1]; download it again",
        ),
        (
            {"target": np.zeros((50, 30))},
            ": target does not have one 1 in each column; download it again",
        ),
        (
            {"target": np.ones((50, 30))},
            ": target does not have one 1 in each column; download it again",
        ),
        (
            {"target": np.full((50, 30), 1 / 64) * np.repeat([2, 1], [14, 36])[:, None]},
            ": target does not have one 1 in each column; download it again",
        ),
        (
            {"data": np.array([["a", 1.0]], object)},
            " has no matrix of numbers called data; download it again",
        ),
        (
            {"data": np.zeros((784, 30), complex)},
            " has no matrix of numbers called data; download it again",
        ),
    ],
)
def test_a_matrix_that_does_not_fit_is_named(tmp_path, changes, message):
    assert message_for(tmp_path, **changes) == message


def test_a_missing_matrix_is_named(tmp_path):
    path = tmp_path / "chardata.mat"
    io.savemat(path, {"data": chardata()["data"]})
    with pytest.raises(DataError) as caught:
        read_chardata(path)
    assert str(caught.value) == f"{path} has no matrix of numbers called target; download it again"


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x04pickle" * 100])
def test_a_file_that_is_not_matlab_is_named(tmp_path, content):
    path = tmp_path / "chardata.mat"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_chardata(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read (")
    assert message.endswith("); expected a MATLAB file: download it again")
    assert "\n" not in message
