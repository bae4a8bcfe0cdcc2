"""The tensorflow-datasets builder of MNIST; importing this module imports tensorflow-datasets.

tensorflow-datasets has an MNIST builder, but it unpacks the files with TensorFlow. This one needs
gzip and NumPy. The files' SHA-256 are in `checksums.tsv`, which tensorflow-datasets finds beside
this module.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lvae_jax.data.dataset import DataError
from lvae_jax.data.idx import read_idx
from lvae_jax.data.mnist import SOURCE


class LvaeMnist(tfds.core.GeneratorBasedBuilder):
    """MNIST from its four original files, in their order."""

    name = SOURCE.name
    VERSION = tfds.core.Version(SOURCE.version)
    RELEASE_NOTES = {SOURCE.version: "The four original files."}  # noqa: RUF012  (tfds' interface)
    base_url = SOURCE.url

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 28×28 grey values.",
            homepage="https://storage.googleapis.com/cvdf-datasets/mnist/",
            features=tfds.features.FeaturesDict(
                {
                    # Raw bytes; tfds' Image would pack each image as PNG, which is slow.
                    "image": tfds.features.Tensor(
                        shape=(28, 28), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
                    ),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            disable_shuffling=True,  # keeps the order of the files
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        paths = dl_manager.download({file: self.base_url + file for file in SOURCE.files})
        splits = {}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            image_path = Path(paths[f"{prefix}-images-idx3-ubyte.gz"])
            label_path = Path(paths[f"{prefix}-labels-idx1-ubyte.gz"])
            images, labels = read_idx(image_path, ndim=3), read_idx(label_path, ndim=1)
            if len(images) != len(labels):
                raise DataError(
                    f"{image_path} holds {len(images)} images but {label_path} {len(labels)} "
                    "labels; download both again"
                )
            splits[split] = self._generate_examples(images, labels)
        return splits

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}
