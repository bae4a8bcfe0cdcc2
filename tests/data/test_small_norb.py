import gzip

import numpy as np
import pytest
from scipy import io
from small_files import norb_bytes, small_source, write_small_norb

from lvae_jax.data import DataError, small_norb
from lvae_jax.data.small_norb import read_categories, read_pairs

PAIRS = np.random.default_rng(1).integers(0, 256, (3, 2, 96, 96), np.uint8)
CATEGORIES = np.array([4, 0, 2], np.int32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "matrix.mat.gz"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads what `write_small_norb` writes."""
    folder = write_small_norb(tmp_path / "original")
    monkeypatch.setattr(small_norb, "SOURCE", small_source(folder, small_norb.SOURCE))
    return lambda **kwargs: small_norb.load(folder, tmp_path / "tfds", **kwargs)


def test_a_pixel_is_the_rounded_mean_of_nine(path):
    path.write_bytes(gzip.compress(norb_bytes(PAIRS)))
    reduced = read_pairs(path)
    assert reduced.dtype == np.uint8
    assert reduced.shape == (3, 2, 32, 32)
    for image, camera, row, column in [(0, 0, 0, 0), (2, 1, 31, 31), (1, 0, 5, 20)]:
        nine = PAIRS[image, camera, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        assert reduced[image, camera, row, column] == round(sum(nine.reshape(-1).tolist()) / 9)
    blocks = PAIRS.reshape(3, 2, 32, 3, 32, 3).mean((3, 5))
    np.testing.assert_array_equal(reduced, np.rint(blocks))


def test_full_pixels_stay_full(path):
    path.write_bytes(gzip.compress(norb_bytes(np.full((1, 2, 96, 96), 255, np.uint8))))
    assert np.unique(read_pairs(path)).tolist() == [255]


def test_many_pairs_are_read_part_by_part(path, monkeypatch):
    path.write_bytes(gzip.compress(norb_bytes(PAIRS)))
    whole = read_pairs(path)
    monkeypatch.setattr(small_norb, "_PAIRS_AT_ONCE", 2)
    np.testing.assert_array_equal(read_pairs(path), whole)


def test_categories_are_little_endian_int32(path):
    # Written by hand: type, one dimension, sizes 2, 1 and 1, then 4 and 1.
    path.write_bytes(
        gzip.compress(
            bytes.fromhex("544c3d1e 01000000 02000000 01000000 01000000 04000000 01000000")
        )
    )
    assert read_categories(path).tolist() == [4, 1]


def test_the_first_camera_is_the_default(load):
    dataset = load()
    assert dataset.name == "small_norb"
    assert dataset.train_images.shape == (30, 32, 32)
    assert dataset.test_images.shape == (20, 32, 32)
    assert dataset.train_labels.tolist() == [i % 5 for i in range(30)]
    assert (dataset.observation, dataset.binarisation) == ("gaussian", "none")
    assert dataset.dequantisation == 1 / 256
    x = dataset.test_x()
    assert x.shape == (20, 1024)
    assert x.min() >= 0
    assert x.max() <= 1
    np.testing.assert_array_equal(np.floor(256 * x), dataset.test_images.reshape(20, 1024))


def test_both_cameras_make_twice_the_images(load):
    one, both = load(), load(cameras="both")
    assert both.name == "small_norb-both"
    assert both.train_images.shape == (60, 32, 32)
    assert both.test_images.shape == (40, 32, 32)
    np.testing.assert_array_equal(both.train_images[::2], one.train_images)
    assert not np.array_equal(both.train_images[1::2], one.train_images)
    assert both.test_labels.tolist() == [i // 2 % 5 for i in range(40)]


def test_other_cameras_are_refused(load):
    with pytest.raises(DataError) as caught:
        load(cameras="three")
    assert str(caught.value) == "small_norb: cameras is 'three'; it must be one of one, both"


def test_a_damaged_gzip_file_is_named(path):
    path.write_bytes(gzip.compress(norb_bytes(PAIRS))[:-5000])
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    assert str(caught.value) == (
        f"{path} cannot be read (Compressed file ended before the end-of-stream marker was "
        "reached); download it again"
    )


def test_an_unpacked_file_cannot_be_verified_and_is_refused(tmp_path, monkeypatch):
    folder = write_small_norb(tmp_path / "original")
    source = small_source(folder, small_norb.SOURCE)
    monkeypatch.setattr(small_norb, "SOURCE", source)
    packed = folder / source.files[1].name
    unpacked = packed.with_suffix("")
    unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    with pytest.raises(DataError) as caught:
        small_norb.load(folder, tmp_path / "tfds")
    assert str(caught.value).startswith(f"lvae_small_norb: {unpacked} is not the original file: ")
    assert "of the packed file; download " in str(caught.value)


RESIZED = np.random.default_rng(2).integers(0, 256, (1024, 2, 7), np.uint8)


def write_resized(folder, **changes):
    """The files as the authors' code stores them: a column of row-major pixels per image."""
    labels = np.arange(7.0)[:, None] % 5
    content = {"traindata": RESIZED, "trainlabels": labels, "testdata": RESIZED[..., :4]}
    content |= {"testlabels": labels[:4]} | changes
    for file, key in (
        ("smallnorb_train_x.mat", "traindata"),
        ("smallnorb_train_t.mat", "trainlabels"),
        ("smallnorb_test_x.mat", "testdata"),
        ("smallnorb_test_t.mat", "testlabels"),
    ):
        io.savemat(folder / file, {key: content[key]})
    return folder


def test_the_authors_resized_files_are_read_where_a_user_has_them(tmp_path):
    dataset = small_norb.load(write_resized(tmp_path), tmp_path / "tfds")
    assert dataset.name == "small_norb-resized"
    assert dataset.train_images.dtype == np.uint8
    assert (len(dataset.train_images), len(dataset.test_images)) == (7, 4)
    np.testing.assert_array_equal(dataset.train_images[3], RESIZED[:, 0, 3].reshape(32, 32))
    assert dataset.train_labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert dataset.dequantisation == 1 / 256
    both = small_norb.load(tmp_path, tmp_path / "tfds", cameras="both")
    assert both.name == "small_norb-resized-both"
    np.testing.assert_array_equal(both.test_images[5], RESIZED[:, 1, 2].reshape(32, 32))


def test_resized_values_are_rounded_to_the_nearest_grey_value(tmp_path):
    moved = np.clip(RESIZED + np.random.default_rng(5).uniform(-0.4, 0.4, RESIZED.shape), 0, 255)
    dataset = small_norb.load(write_resized(tmp_path, traindata=moved), tmp_path / "tfds")
    np.testing.assert_array_equal(dataset.train_images[3], RESIZED[:, 0, 3].reshape(32, 32))


def test_original_files_are_read_where_a_user_has_both(load, tmp_path):
    write_resized(tmp_path / "original")
    assert load().name == "small_norb"


def test_resized_files_are_read_under_their_own_names_too(tmp_path):
    expected = small_norb.load(write_resized(tmp_path))
    for name, other in small_norb.RESIZED.items():
        (tmp_path / other).rename(tmp_path / name)
    assert small_norb.load(tmp_path).sha256() == expected.sha256()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"traindata": RESIZED[:, 0]},
            "/smallnorb_train_x.mat: traindata has the shape [1024, 7]; expected [1024, 2, n]: "
            "download it again",
        ),
        (
            {"testdata": RESIZED[..., :4] * 2.0},
            "/smallnorb_test_x.mat has values outside [0, 255]; download it again",
        ),
        (
            {"testdata": RESIZED[..., :4] - 1.0},
            "/smallnorb_test_x.mat has values outside [0, 255]; download it again",
        ),
        (
            {"testlabels": np.zeros((3, 1))},
            "/smallnorb_test_t.mat does not hold a category 0 to 4 for each of 4 pairs; "
            "download it again",
        ),
        (
            {"trainlabels": np.arange(7)},
            "/smallnorb_train_t.mat does not hold a category 0 to 4 for each of 7 pairs; "
            "download it again",
        ),
    ],
)
def test_resized_files_that_do_not_fit_are_named(tmp_path, changes, message):
    with pytest.raises(DataError) as caught:
        small_norb.load(write_resized(tmp_path, **changes), tmp_path / "tfds")
    assert str(caught.value) == f"{tmp_path}{message}"


def test_a_missing_resized_file_is_named(tmp_path):
    (write_resized(tmp_path) / "smallnorb_test_t.mat").unlink()
    with pytest.raises(DataError, match=r"smallnorb_test_t\.mat cannot be read \(\[Errno 2\]"):
        small_norb.load(tmp_path, tmp_path / "tfds")
