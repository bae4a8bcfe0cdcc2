import os
import zipfile

import jax
import numpy as np
import pytest
from tolerances import assert_close

from lvae_jax.data import DataError, arrays, dequantise_once

GENERATOR = np.random.default_rng(0)
GREY = GENERATOR.integers(0, 256, (20, 4, 3), np.uint8)
UNIT = GENERATOR.random((20, 4, 3))
BINARY = GENERATOR.integers(0, 2, (20, 4, 3), np.uint8)


@pytest.fixture
def save(tmp_path):
    """Saves an array and returns the path of its file."""

    def save_as(array, name="a.npy"):
        np.save(tmp_path / name, array)
        return tmp_path / name

    return save_as


def failure(*args, **kwargs):
    with pytest.raises(DataError) as caught:
        arrays.load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What comes of which values


@pytest.mark.parametrize(
    ("images", "observation", "expected", "binarisation", "dequantisation"),
    [
        (GREY, "bernoulli", GREY, "dynamic", 0),
        (GREY, "gaussian", GREY, "none", 1 / 256),
        (UNIT, "bernoulli", UNIT.astype(np.float32), "dynamic", 0),
        (UNIT * 100 - 50, "gaussian", (UNIT * 100 - 50).astype(np.float32), "none", 0),
        (UNIT.astype(np.float16), "bernoulli", UNIT.astype(np.float16), "dynamic", 0),
        (GREY, "discretized_logistic", GREY, "none", 0),
        (BINARY, "bernoulli", BINARY, "fixed", 0),
        (BINARY.astype(np.int64), "bernoulli", BINARY, "fixed", 0),
        (BINARY.astype(np.float64), "bernoulli", BINARY, "fixed", 0),
        (BINARY.astype(bool), "bernoulli", BINARY, "fixed", 0),
        (BINARY.astype(bool), "gaussian", BINARY, "none", 0),
        (BINARY, "gaussian", BINARY, "none", 0),
        (GREY.astype(">i4"), "gaussian", GREY, "none", 0),
        (UNIT.astype(">f8"), "bernoulli", UNIT.astype(np.float32), "dynamic", 0),
        (np.asfortranarray(UNIT), "bernoulli", UNIT.astype(np.float32), "dynamic", 0),
    ],
)
def test_values_decide_how_they_are_observed(
    save, images, observation, expected, binarisation, dequantisation
):
    dataset = arrays.load(save(images), save(images[:7], "b.npy"), observation)
    assert dataset.name == "a"
    assert dataset.observation == observation
    assert dataset.binarisation == binarisation
    assert dataset.dequantisation == dequantisation
    np.testing.assert_array_equal(dataset.train_images, expected)
    np.testing.assert_array_equal(dataset.test_images, expected[:7])
    is_grey = images is GREY
    assert dataset.train_images.dtype == (np.uint8 if is_grey else np.float32)
    assert dataset.train_labels.tolist() == [-1] * 20
    assert dataset.test_labels.tolist() == [-1] * 7


@pytest.mark.parametrize("images", [GREY, BINARY, BINARY.astype(bool), UNIT, np.ones((1, 2))])
def test_images_of_one_file_are_those_of_a_data_set_in_their_order(save, images):
    path = save(images)
    loaded = arrays.load_images(path)
    expected = arrays.load(path, path).test_images
    np.testing.assert_array_equal(loaded, expected, strict=True)
    np.testing.assert_array_equal(loaded, images.astype(expected.dtype))


@pytest.mark.parametrize("array", [np.arange(5), np.eye(4, 6, dtype=bool), np.float64(3)])
def test_an_array_of_any_shape_is_loaded_as_it_is(save, array, tmp_path):
    np.testing.assert_array_equal(arrays.load_array(save(array)), array, strict=True)
    np.savez(tmp_path / "b.npz", a=array, b=GREY)
    np.testing.assert_array_equal(arrays.load_array(f"{tmp_path}/b.npz:a"), array, strict=True)


def test_black_and_full_grey_values_are_fixed(save):
    dataset = arrays.load(save(BINARY * np.uint8(255)))
    assert dataset.binarisation == "fixed"
    assert dataset.train_images.dtype == np.uint8
    assert set(np.unique(dataset.test_x())) == {0, 1}


def test_zeros_and_ones_of_two_dtypes_are_alike(save):
    dataset = arrays.load(save(BINARY.astype(bool)), save(BINARY, "b.npy"))
    assert dataset.binarisation == "fixed"
    np.testing.assert_array_equal(dataset.test_images, BINARY)


def test_values_in_fortran_order_are_the_same_data(save):
    plain = arrays.load(save(UNIT), save(UNIT, "b.npy"))
    fortran = arrays.load(save(np.asfortranarray(UNIT), "c.npy"), save(UNIT, "d.npy"))
    assert plain.sha256() == fortran.sha256()


def test_grey_values_of_a_gaussian_are_dequantised(save):
    dataset = arrays.load(save(GREY), save(GREY[:7], "b.npy"), "gaussian")
    np.testing.assert_array_equal(dataset.test_x(), dequantise_once(GREY[:7]))


@pytest.mark.parametrize("shape", [(20, 12), (20, 2, 2, 3), (20, 1)])
def test_images_have_any_shape(save, shape):
    dataset = arrays.load(save(np.zeros(shape)))
    assert dataset.image_shape == shape[1:]
    assert dataset.data_dim == np.prod(shape[1:])


def test_paths_may_be_strings_and_start_with_a_tilde(save, monkeypatch):
    path = save(GREY)
    monkeypatch.setenv("HOME", str(path.parent))
    np.testing.assert_array_equal(arrays.load("~/a.npy", str(path)).train_images, GREY)


# Holding out


def test_a_seeded_tenth_is_held_out(save):
    path = save(np.arange(20.0).reshape(20, 1))
    dataset = arrays.load(path, observation="gaussian")
    train, test = dataset.train_images[:, 0].tolist(), dataset.test_images[:, 0].tolist()
    assert len(test) == 2
    assert sorted(train + test) == list(range(20))
    assert train == sorted(train)
    assert test == sorted(test)
    again = arrays.load(path, observation="gaussian")
    np.testing.assert_array_equal(again.test_images, dataset.test_images)
    other = arrays.load(path, observation="gaussian", seed=1)
    assert not np.array_equal(other.test_images, dataset.test_images)


@pytest.mark.parametrize(("holdout", "number"), [(0.5, 10), (0.01, 1), (0.94, 19)])
def test_the_fraction_held_out_is_rounded(save, holdout, number):
    assert len(arrays.load(save(GREY), holdout=holdout).test_images) == number


def test_images_that_are_all_alike_can_be_held_out(save):
    dataset = arrays.load(save(np.full((4, 3), 0.5)), holdout=0.5)
    assert len(dataset.train_images) == len(dataset.test_images) == 2


def test_labels_stay_with_their_images(save):
    images = np.arange(60.0).reshape(20, 3)
    train, labels = save(images), save(np.float64(100 + np.arange(20)), "labels.npy")
    dataset = arrays.load(train, observation="gaussian", train_labels=labels)
    for part, found in (
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
    ):
        np.testing.assert_array_equal(found, 100 + part[:, 0] / 3)
    test, test_labels = save(images[:4] + 0.5, "b.npy"), save(np.arange(4) % 2, "c.npy")
    dataset = arrays.load(
        train, test, observation="gaussian", train_labels=labels, test_labels=test_labels
    )
    assert dataset.train_labels.tolist() == list(range(100, 120))
    assert dataset.test_labels.tolist() == [0, 1, 0, 1]


def test_labels_of_a_part_and_what_are_no_labels_are_refused(save):
    train, test, good = save(GREY), save(GREY[:4], "b.npy"), save(np.arange(20), "good.npy")
    for given in (
        {"test": test, "train_labels": good}, {"test": test, "test_labels": good},
        {"train_labels": good, "test_labels": good},
    ):  # fmt: skip
        assert failure(train, **given).startswith("give labels of all images or of none: train_lab")
    short = save(np.arange(19), "short.npy")
    assert failure(train, train_labels=short) == (
        f"{short} has the shape [19]; expected [20], a label for every image"
    )
    flat = save(np.zeros((20, 1)), "flat.npy")
    assert failure(train, train_labels=flat) == (
        f"{flat} has the shape [20, 1]; expected [20], a label for every image"
    )
    for bad in (
        np.arange(20) / 2, np.full(20, np.nan), np.full(20, 2**31), np.full(20, -(2**63)),
    ):  # fmt: skip
        path = save(bad, "bad.npy")
        assert failure(train, train_labels=path) == (
            f"{path} holds labels that are no int32; number the classes"
        )


@pytest.mark.parametrize("holdout", [0, 1, -0.1, 2, float("nan")])
def test_a_fraction_must_be_one(save, holdout):
    path = save(GREY)
    assert failure(path, holdout=holdout) == (
        f"{path}: {holdout} of it cannot be held out; give a fraction between 0 and 1, or a file "
        "of test images"
    )


def test_too_few_images_to_hold_some_out_are_refused(save):
    path = save(GREY[:1])
    assert failure(path) == (
        f"{path} holds too few images (1) to hold out 0.1 of them; give more, or a file of test "
        "images"
    )


# .npz files


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "both.npz"
    np.savez(path, train=GREY, test=GREY[:7])
    return path


def test_arrays_of_an_npz_file_are_named_after_a_colon(npz):
    dataset = arrays.load(f"{npz}:train", f"{npz}:test")
    assert dataset.name == "both"
    np.testing.assert_array_equal(dataset.train_images, GREY)
    np.testing.assert_array_equal(dataset.test_images, GREY[:7])


def test_the_only_array_of_an_npz_file_need_not_be_named(tmp_path):
    np.savez_compressed(tmp_path / "one.npz", GREY)
    assert len(arrays.load(tmp_path / "one.npz").train_images) == 18


def test_an_npz_file_with_several_arrays_asks_for_one(npz):
    assert failure(npz) == f"{npz} holds train, test; name one array, as in both.npz:train"


def test_an_npz_file_may_have_any_name(npz):
    path = npz.rename(npz.with_name("kerasdata"))
    assert failure(path) == f"{path} holds train, test; name one array, as in kerasdata:train"
    np.testing.assert_array_equal(arrays.load(f"{path}:train", f"{path}:test").train_images, GREY)


def test_a_name_without_its_suffix_is_completed_in_the_advice(npz, tmp_path):
    path = tmp_path / "both"
    assert failure(path) == f"{path} is not a file; give {path}.npz"


def test_a_colon_may_be_part_of_a_name(save):
    assert len(arrays.load(save(GREY, "a:b.npy")).train_images) == 18


def test_a_missing_array_of_an_npz_file_is_named(npz):
    assert failure(f"{npz}:valid") == (
        f"{npz} holds train, test, not valid; name one of these after the colon"
    )


def test_an_empty_npz_file_is_named(tmp_path):
    np.savez(tmp_path / "none.npz")
    assert failure(tmp_path / "none.npz") == (
        f"{tmp_path}/none.npz holds no arrays; write it with numpy.savez"
    )


def test_a_member_that_is_not_an_array_is_named(tmp_path):
    path = tmp_path / "text.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme", "no array")
    assert failure(path) == f"{path} holds no arrays; write it with numpy.savez"


# Files that cannot be used


def test_a_missing_file_is_named(tmp_path):
    advice = "give an .npy or .npz file"
    assert failure(tmp_path / "no.npy") == f"{tmp_path}/no.npy is not a file; {advice}"
    assert failure(tmp_path) == f"{tmp_path} is not a file; {advice}"


def test_a_missing_test_file_is_named(save, tmp_path):
    assert failure(save(GREY), tmp_path / "no.npy").startswith(f"{tmp_path}/no.npy is not a file")


@pytest.mark.parametrize(
    ("content", "shown", "how"),
    [
        (b"", "(none)", ""),
        (b"\x89HDF\r\n\x1a\n", "894844460d0a", ""),
        (
            b"1,2,3\n",
            "312c322c330a",
            ", as in numpy.save('a.npy', numpy.loadtxt('a.csv', delimiter=','))",
        ),
        (
            "\ufeffGröße;b\r\n1;2\r\n".encode(),
            "efbbbf4772c3",
            ", as in numpy.save('a.npy', numpy.loadtxt('a.csv', delimiter=';', skiprows=1))",
        ),
        (b"1 -2.5e3\n", "31202d322e35", ", as in numpy.save('a.npy', numpy.loadtxt('a.csv'))"),
        (
            b"label\t0\t1\n5\t0\t9\n",
            "6c6162656c09",
            ", as in numpy.save('a.npy', numpy.loadtxt('a.csv', delimiter='\\t', skiprows=1))",
        ),
        (b"\0\1\2,\3\n", "0001022c030a", ""),
    ],
    ids=["empty", "hdf", "text", "header", "spaces", "numbered columns", "control characters"],
)
def test_a_file_that_is_not_numpys_is_named(tmp_path, content, shown, how):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    how = how.replace("'a.", f"'{tmp_path}/a.")
    assert failure(path) == (
        f"{path} starts with the bytes {shown}, so it is not an .npy or .npz file; write it with "
        f"numpy.save or numpy.savez{how}"
    )
    if how:
        exec(how.removeprefix(", as in "), {"numpy": np})
        assert np.isfinite(np.load(tmp_path / "a.npy")).all()


@pytest.mark.parametrize("value", [b"0,", b"0.5,", b"1e-5,"])
def test_a_long_row_of_numbers_is_not_taken_for_a_header(tmp_path, value):
    path = tmp_path / "a.csv"
    path.write_bytes(value * 12_288 + b"1\n")
    assert failure(path).endswith(f"numpy.loadtxt('{path}', delimiter=','))")


def test_what_numpy_refuses_in_two_lines_is_one(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1), }".ljust(20_000) + b"\n"
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\2\0" + len(header).to_bytes(4, "little") + header + bytes(16))
    assert "max_header_size" in failure(path)


def test_a_pytorch_file_is_named_with_what_converts_it(tmp_path):
    path = tmp_path / "t.pt"
    message = (
        f"{path} is a pickle, as PyTorch writes, not an .npy or .npz file; a pickle can run code "
        "when it is opened, so it is never loaded: if you trust it, convert it, as in "
        f"numpy.save('{tmp_path}/t.npy', torch.load('{path}').numpy(force=True))"
    )
    with zipfile.ZipFile(path, "w") as file:  # the layout of torch.save
        file.writestr("t/data.pkl", b"\x80\x02.")
        file.writestr("t/data/0", bytes(16))
    assert failure(path) == message
    path.write_bytes(b"\x80\x02\x8a\nl\xfc")  # and of old versions
    assert failure(path) == message


@pytest.mark.parametrize("length", [7, 9, 50, 200, -1])
def test_a_file_cut_short_is_named(save, length):
    path = save(GREY)
    path.write_bytes(path.read_bytes()[:length])
    message = failure(path)
    assert message.startswith(f"{path} cannot be read (")
    assert message.endswith("); it is truncated or damaged: save it again")


@pytest.mark.parametrize("length", [5, 100, 500, -10])
def test_an_npz_file_cut_short_is_named(npz, length):
    npz.write_bytes(npz.read_bytes()[:length])
    message = failure(f"{npz}:train")
    assert message.startswith(f"{npz}:train cannot be read (")
    assert message.endswith("); it is truncated or damaged: save it again")


def test_a_flipped_byte_in_an_npz_file_is_found(npz):
    content = bytearray(npz.read_bytes())
    content[300] ^= 1
    npz.write_bytes(content)
    assert "Bad CRC-32" in failure(f"{npz}:train")


def test_an_impossible_shape_is_named(save):
    path = save(GREY)
    path.write_bytes(path.read_bytes().replace(b"(20, 4, 3)", b"(9**9,4,3)"))
    assert failure(path).startswith(f"{path} cannot be read (")


class Bomb:
    opened: list = []  # noqa: RUF012

    def __reduce__(self):
        return (Bomb.opened.append, ("unpickled",))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_pickled_objects_are_never_loaded(tmp_path, name):
    path = tmp_path / name
    (np.save if name == "a.npy" else np.savez)(path, np.array([[Bomb()]], object))
    assert failure(path) == (
        f"{path} holds Python objects, which are never loaded; save an array of numbers"
    )
    assert Bomb.opened == []


@pytest.mark.parametrize(
    ("images", "shown"),
    [
        (np.zeros((3, 2), complex), "complex128"),
        (np.full((3, 2), "a"), "<U1"),
        (np.full((3, 2), b"a"), "|S1"),
        (np.zeros((3, 2), "datetime64[s]"), "datetime64[s]"),
        (np.zeros((3, 2), [("r", "u1")]), "[('r', 'u1')]"),
    ],
    ids=["complex", "text", "bytes", "dates", "records"],
)
def test_values_that_are_not_real_numbers_are_refused(save, images, shown):
    path = save(images)
    assert failure(path) == f"{path} holds {shown}; save an array of bools or real numbers"


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (5, 0)])
def test_shapes_that_are_not_those_of_images_are_refused(save, shape):
    path = save(np.zeros(shape))
    assert failure(path) == (
        f"{path} has the shape {list(shape)}; expected at least [n, values], with at least one "
        "image of at least one value"
        + "; save array[:, None] if each number is an image"
        * (len(shape) == 1)
    )


@pytest.mark.parametrize("observation", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(save, observation, value):
    images = UNIT.copy()
    images[3, 2, 1] = images[5, 0, 0] = value
    path = save(images)
    what = (
        "holds values that are not finite, 2 of 240, the first at [3, 2, 1]; remove or replace them"
    )
    assert failure(path, save(UNIT, "b.npy"), observation) == f"{path} {what}"
    assert failure(save(UNIT, "b.npy"), path, observation) == f"{path} {what}"
    assert failure(path, observation=observation) == f"{path} {what}"


@pytest.mark.parametrize(
    ("images", "shown"),
    [
        (np.array([[0.5, -0.5]]), "-0.5 to 0.5"),
        (np.array([[0.5, 2.0]]), "0.5 to 2"),
        (np.array([[0, 256]], np.int64), "0 to 256"),
    ],
)
def test_bernoulli_values_outside_the_unit_interval_are_refused(save, images, shown):
    path = save(images)
    assert failure(path, path) == (
        f"a: train_images run from {shown}; a bernoulli observation needs values in [0, 1], so "
        "rescale them or use observation='gaussian'"
    )


def test_images_of_two_shapes_are_refused(save):
    assert failure(save(GREY), save(GREY[:, :3], "b.npy")) == (
        "a: train_images are uint8 [4, 3] but test_images are uint8 [3, 3]; both must have the "
        "same dtype and image shape"
    )


def test_one_ulp_too_much_is_shown(save):
    images = np.array([[0.0, 1.0000001]], np.float32)
    assert failure(save(images), save(images, "b.npy")) == (
        "a: train_images run from 0 to 1.0000001; a bernoulli observation needs values in [0, 1], "
        "so clip them or use observation='gaussian'"
    )


def test_grey_values_and_fractions_are_refused(save):
    train, test = save(GREY), save(UNIT, "b.npy")
    assert failure(train, test) == (
        f"{train} holds uint8 but {test} float64, which may be on another scale; save both with "
        "the same dtype"
    )


APART = [
    (UNIT, UNIT * 255),
    (UNIT * 255, UNIT),
    (UNIT, UNIT + 10),
    (UNIT, UNIT * 2 - 1),
    (GENERATOR.standard_normal((20, 12)), 100 + 15 * GENERATOR.standard_normal((20, 12))),
    (np.abs(UNIT - 0.9), 255 * np.abs(UNIT - 0.9) * (UNIT > 0.8)),
]


@pytest.mark.parametrize(("train", "test"), APART)
def test_images_on_two_scales_are_refused_unless_told(save, train, test):
    paths = save(train), save(test, "b.npy")
    ranges = [f"{v.min().astype('f4')!s} to {v.max().astype('f4')!s}" for v in (train, test)]
    assert failure(*paths, "gaussian") == (
        f"{paths[0]} runs from {ranges[0]} but {paths[1]} from {ranges[1]}: they are on different "
        "scales; rescale one of them, or set check_scale=False to use them as they are"
    ).replace("0.0 to", "0 to")
    arrays.load(*paths, "gaussian", check_scale=False)


@pytest.mark.parametrize(
    ("largest", "images", "refused"), [(10, 10, True), (8, 10, False), (10, 9, False)]
)
def test_ten_images_are_enough_to_be_of_a_much_smaller_scale(save, largest, images, refused):
    # Values from -1 to 1 have a width of 2: another scale begins 4 widths further, at 9.
    train, test = np.tile([-largest, largest], (10, 1)), np.linspace(-1, 1, 2 * images)
    paths = save(train), save(test.reshape(images, 2), "b.npy")
    if refused:
        assert "they are on different scales" in failure(*paths, "gaussian")
    else:
        arrays.load(*paths, "gaussian")


def test_an_image_unlike_all_others_of_its_file_may_be_held_out(save):
    images = UNIT.copy()
    images[7] += 100
    path = save(images)
    highest = {
        arrays.load(path, observation="gaussian", holdout=0.05, seed=seed).test_images.max() > 100
        for seed in range(100)
    }
    assert highest == {False, True}


def test_the_largest_values_of_float32_are_compared_too(save):
    arrays.load(save(UNIT * 3e38), save(UNIT * 3e38, "b.npy"), "gaussian")


def test_zeros_and_ones_are_not_grey_values(save):
    assert "runs from 0 to 1 but" in failure(save(BINARY), save(GREY, "b.npy"))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (UNIT, np.zeros((12, 4, 3))),  # black images, which are of any scale
        (np.zeros((20, 4, 3)), np.ones((20, 4, 3))),  # zeros and ones, whose scale is known
    ],
)
def test_images_that_say_nothing_of_their_scale_are_not_refused(save, train, test):
    dataset = arrays.load(save(train), save(test, "b.npy"))
    np.testing.assert_array_equal(dataset.test_images, test)


@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy", "standard_exponential"])
@pytest.mark.parametrize(("train", "test", "values"), [(1000, 100, 4), (30, 30, 50), (50, 1, 1)])
def test_images_of_one_distribution_are_on_one_scale(save, draw, train, test, values):
    # Even one test image is refused with a probability below 2/51 in theory; these seeds are not.
    for seed in range(10):
        images = getattr(np.random.default_rng(seed), draw)((train + test, values))
        arrays.load(save(images[:train]), save(images[train:], "b.npy"), "gaussian")


def test_a_test_set_that_is_the_training_set_is_warned_of(save, caplog):
    path = save(UNIT)
    arrays.load(path, path)
    (record,) = caplog.records
    assert record.message == (
        f"{path} and {path} hold the same images: test numbers will be those of the training images"
    )


@pytest.mark.parametrize("observation", ["bernoulli", "gaussian", "discretized_logistic"])
def test_grey_values_that_are_all_dark_are_warned_of(save, caplog, observation):
    path = save((np.arange(240).reshape(20, 4, 3) % 17).astype(np.uint8))
    arrays.load(path, observation=observation)
    (record,) = caplog.records
    assert record.message == (
        f"{path}: 255 is full in uint8, but the largest value is 16; if that is full, divide the "
        "images by it and save them as float32"
    )


@pytest.mark.parametrize(("largest", "warnings"), [(127, 1), (128, 0)])
def test_grey_values_up_to_half_of_full_are_dark(save, caplog, largest, warnings):
    path = save(np.minimum(GREY, largest).astype(np.uint8))
    arrays.load(path)
    assert len(caplog.records) == warnings
    arrays.load_images(path)
    assert len(caplog.records) == 2 * warnings


@pytest.mark.parametrize("dark", ["a.npy", "b.npy"])
def test_dark_images_beside_light_ones_are_not_warned_of(save, caplog, dark):
    largest = {"a.npy": 140, "b.npy": 140, dark: 120}
    arrays.load(*(save(np.minimum(GREY, n).astype(np.uint8), name) for name, n in largest.items()))
    assert not caplog.records


def test_a_second_array_in_one_file_is_not_dropped(tmp_path):
    path = tmp_path / "twice.npy"
    with path.open("wb") as file:
        np.save(file, UNIT)
        np.save(file, UNIT)
    assert failure(path) == (
        f"{path} has more bytes than its array of shape {list(UNIT.shape)}; save one array per file"
    )


@pytest.mark.parametrize(
    "images", [BINARY, BINARY.astype(bool), GREY.astype(np.int16), GREY.astype(np.float64)]
)
def test_whole_numbers_under_a_gaussian_are_warned_of(save, caplog, images):
    path = save(images)
    arrays.load(path, observation="gaussian")
    assert caplog.records[0].message == (
        f"{path} holds whole numbers, whose Gaussian density is unbounded; add noise to them, or "
        "save grey values 0..255 as uint8, which get noise in training"
    )


@pytest.mark.parametrize("observation", ["bernoulli", "discretized_logistic"])
def test_grey_values_of_another_integer_dtype_are_refused(save, observation):
    path = save(np.clip(GREY, 3, 250).astype(np.int32))
    assert failure(path, observation=observation) == (
        f"{path} holds int32 from 3 to 250; save grey values 0..255 as uint8"
    )
    other = save(UNIT, "b.npy")
    assert failure(other, path, observation=observation).startswith(f"{path} holds int32 from 3")
    every = save(np.arange(256).reshape(64, 4), "c.npy")
    assert failure(every, observation=observation) == (
        f"{every} holds int64 from 0 to 255; save grey values 0..255 as uint8"
    )


def test_a_discretised_logistic_of_zeros_and_ones_is_refused(save):
    path = save(BINARY)
    assert failure(path, observation="discretized_logistic") == (
        f"{path} holds zeros and ones, and a discretized_logistic observation needs grey values "
        "0..255; use observation='bernoulli'"
    )


def test_values_that_float32_cannot_tell_apart_are_warned_of(save, caplog):
    # float32 steps by 1 at 10^7; the deviation of uniform values in [0, 1) is 0.29.
    path = save(UNIT + 1e7)
    arrays.load(path, observation="gaussian")
    (record,) = caplog.records
    assert record.message.startswith(
        f"{path}: 12 of 12 values lose their differences in float32: near 1e+07 it resolves only "
        "steps of 1, and the standard deviation is 0."
    )
    assert record.message.endswith("subtract the mean of each and divide by its standard deviation")
    caplog.clear()
    arrays.load(save(UNIT + 10), observation="gaussian")  # steps of 10^-6
    assert not caplog.records


def test_values_far_from_a_mean_of_0_and_a_deviation_of_1_are_counted_by_kind(save, caplog):
    values = np.random.default_rng(1).normal(size=(400, 6))
    values *= [1.0, 1e-3, 0.0, 1e3, 1.0, 1.0]
    values += [0.0, 0.0, 2.0, 0.0, -500.0, 1.7e9]
    path = save(values)
    arrays.load(path, observation="gaussian")
    assert [record.message.split(";")[0] for record in caplog.records] == [
        f"{path}: 1 of 6 values are the same in all training images",
        # float32 steps by 128 from 2^30 to 2^31.
        f"{path}: 1 of 6 values lose their differences in float32: near 1.7e+09 it resolves only "
        f"steps of 128, and the standard deviation is {training_deviation(path, 5):g}",
        f"{path}: 1 of 6 values have a variance of at most 1e-05, the models' variance floor by "
        "default, which then decides their Gaussian density",
        f"{path}: 2 of 6 values have a mean or standard deviation beyond 100, far from what "
        "networks are initialised for",
    ]


def test_values_are_counted_in_every_column_of_a_wide_file(save, caplog):
    values = np.random.default_rng(2).normal(size=(400, 150))
    values[:, [70, 149]] *= 1e-3
    path = save(values)
    arrays.load(path, observation="gaussian")
    (record,) = caplog.records
    assert record.message.startswith(f"{path}: 2 of 150 values have a variance of at most 1e-05")


def test_the_deviation_of_float32_values_far_from_zero_is_that_of_float64(save, caplog):
    # float32 steps by 1e-4 at 1235, a fraction of the deviation of 1e-3, but by 4 at the sum of the
    # values, 7e7: a deviation from a mean of such sums is larger than that of the floor, 3e-3.
    values = np.float32(1234.567 + 1e-3 * np.random.default_rng(3).normal(size=(60_000, 2)))
    path = save(values)
    arrays.load(path, observation="gaussian")
    assert [record.message.split(",")[0] for record in caplog.records] == [
        f"{path}: 2 of 2 values have a variance of at most 1e-05"
    ]


def training_deviation(path, column):
    """Of a column's training rows: those that are not the test rows of the documented stream."""
    values = np.load(path)
    held_out = np.random.RandomState(0).permutation(len(values))[: len(values) // 10]
    return float(np.delete(values, held_out, axis=0)[:, column].std())


def test_a_file_beyond_float32_is_not_called_whole_numbers(save, caplog):
    failure(save(UNIT * 1e39), observation="gaussian")
    assert not caplog.records


def test_values_beyond_float32_are_refused(save):
    path = save(UNIT * 1e39)
    low, high = float(UNIT.min() * 1e39), float(UNIT.max() * 1e39)
    for train, test in ((path, None), (save(UNIT, "b.npy"), path)):
        assert failure(train, test, "gaussian") == (
            f"{path} runs from {low} to {high}, beyond float32; rescale it"
        )


def test_negative_values_beyond_float32_are_refused(save):
    path = save(-UNIT * 1e39)
    assert failure(path, observation="gaussian").endswith("beyond float32; rescale it")


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ("4, 3", "Bad CRC-32 for file 'images.npy'"),
        # So large that the reader has not read ahead to the end, where the checksum is verified.
        ("400, 300", "images is longer than its header says"),
    ],
)
def test_a_member_longer_than_its_header_says_is_damaged(size, reason, tmp_path):
    shape = (20, *map(int, size.split(", ")))
    path = tmp_path / "a.npz"
    np.savez(path, images=np.random.default_rng(4).integers(0, 256, shape, np.uint8))
    content, header = path.read_bytes(), f"(20, {size})".encode()
    assert content.count(header) == 1
    path.write_bytes(content.replace(header, f"(10, {size})".encode()))
    assert failure(path) == (
        f"{path} cannot be read ({reason}); it is truncated or damaged: save it again"
    )


def test_a_file_without_permission_is_named(save, monkeypatch):
    path = save(UNIT)

    def denied(self, *_):
        raise PermissionError(13, "Permission denied", os.fspath(self))

    monkeypatch.setattr(type(path), "open", denied)
    assert failure(path) == f"{path} cannot be read (Permission denied); give one that can be read"


def test_a_name_after_an_npy_file_is_refused(save):
    path = save(UNIT)
    assert failure(f"{path}:labels") == f"{path} holds one array; remove :labels"


def test_a_constant_pixel_of_a_gaussian_is_warned_of(save, caplog):
    images = UNIT.copy()
    images[:, 2, 1] = 0.25
    path = save(images)
    arrays.load(path, observation="gaussian")
    (record,) = caplog.records
    assert record.message.startswith(f"{path}: 1 of 12 values are the same in all training images")
    caplog.clear()
    arrays.load(path, observation="bernoulli")
    arrays.load(save(UNIT), observation="gaussian")
    assert not caplog.records


def test_other_observations_are_refused(save):
    valid = "bernoulli, gaussian, discretized_logistic"
    line = f"a: observation is 'poisson'; it must be one of {valid}"
    with pytest.raises(DataError, match=f"^{line}$"):
        arrays.load(save(GREY), observation="poisson")


def test_a_discretised_logistic_observes_uint8_grey_values_as_they_are(save):
    dataset = arrays.load(save(GREY), save(GREY, "b.npy"), "discretized_logistic")
    x = GREY.reshape(20, 12) / np.float64(255)
    assert_close(dataset.test_x(), x, roundings=1)
    np.testing.assert_array_equal(dataset.preprocess(jax.random.key(0), GREY), dataset.test_x())
    assert failure(save(UNIT), observation="discretized_logistic") == (
        "a: train_images are float32; a discretized_logistic observation needs grey values 0..255 "
        "as uint8; convert them or use observation='gaussian'"
    )
