"""Holds out training images for validation: for choosing, never for reporting."""

import dataclasses

import numpy as np

from lvae_jax.data.dataset import DataError, Dataset

VALIDATION_SEED = 1509
"""Seed of the choice of images; independent of a run's seed, so all runs hold out the same ones."""


def hold_out(dataset: Dataset, number: int) -> tuple[Dataset, Dataset]:
    """Splits a data set's training images; its test images are not touched.

    Args:
      dataset: The data set.
      number: How many training images to hold out: a random choice, the same in every run.

    Returns:
      The data set without them, in the same order; and one in which they replace the test images,
      so that they are binarised or dequantised once, like test images.

    Raises:
      DataError: `number` is not at least 1 and below the number of training images.
    """
    images = len(dataset.train_images)
    if not 0 < number < images:
        raise DataError(
            f"{dataset.name}: {number} of its {images} training images cannot be held out; give at "
            f"least 1 and at most {images - 1}"
        )
    # NumPy's legacy generator, because its stream is frozen.
    order = np.random.RandomState(VALIDATION_SEED).permutation(images)
    held, kept = np.sort(order[:number]), np.sort(order[number:])
    images_held, labels_held = dataset.train_images[held], dataset.train_labels[held]
    rest = dataclasses.replace(
        dataset,
        train_images=dataset.train_images[kept],
        train_labels=dataset.train_labels[kept],
    )
    return rest, dataclasses.replace(rest, test_images=images_held, test_labels=labels_held)
