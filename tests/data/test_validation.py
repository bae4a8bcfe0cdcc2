"""Images held out for validation."""

import numpy as np
import pytest

from lvae_jax.data import DataError, Dataset
from lvae_jax.data.validation import hold_out


def numbered(n=20):
    images = np.arange(n, dtype=np.uint8).reshape(n, 1)
    labels = np.arange(n, dtype=np.int32)
    return Dataset("numbered", images, labels, images[:3], labels[:3], "bernoulli", "dynamic")


def test_every_training_image_is_either_kept_or_held_out_and_the_test_images_stay():
    rest, validation = hold_out(numbered(), 6)
    kept, held = rest.train_labels.tolist(), validation.test_labels.tolist()
    assert (len(kept), len(held)) == (14, 6)
    assert sorted(kept + held) == list(range(20))
    assert kept == sorted(kept)
    np.testing.assert_array_equal(rest.train_images[:, 0], kept)
    np.testing.assert_array_equal(validation.test_images[:, 0], held)
    assert rest.test_labels.tolist() == [0, 1, 2]


def test_the_same_images_are_held_out_every_time():
    first, second = (hold_out(numbered(), 6)[1].test_labels.tolist() for _ in range(2))
    assert first == second


def test_the_images_held_out_are_those_of_earlier_versions():
    # NumPy's frozen stream of the seed: if it fails, runs of earlier versions no longer compare.
    held = np.random.RandomState(1509).permutation(20)[:6]
    assert hold_out(numbered(), 6)[1].test_labels.tolist() == sorted(held.tolist())


@pytest.mark.parametrize("number", [0, -1, 20, 21])
def test_a_number_that_leaves_nothing_on_either_side_is_refused(number):
    with pytest.raises(DataError) as refusal:
        hold_out(numbered(), number)
    assert str(refusal.value) == (
        f"numbered: {number} of its 20 training images cannot be held out; give at least 1 and at "
        "most 19"
    )
