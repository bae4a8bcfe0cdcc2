"""The tensorflow-datasets builders of the data sets; importing this module registers them.

    import tensorflow_datasets as tfds
    import lvae_jax.data.builders

    builder = tfds.builder("lvae_mnist", file_format="array_record")
    builder.download_and_prepare()
    builder.as_data_source("train")[0]["image"]

tensorflow-datasets (tfds) has builders of some of these data sets, but they unpack the files with
TensorFlow. These need gzip, NumPy and SciPy. The files' SHA-256 are in `checksums.tsv`, which tfds
finds beside this module.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lvae_jax.data import binarized_mnist, digits, fashion_mnist, mnist, omniglot, small_norb
from lvae_jax.data.dataset import DataError
from lvae_jax.data.gzip_file import open_gzip
from lvae_jax.data.prepared import Source


class SourceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What the builders share: all but what a class of its own says of each data set."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "The original files, under their original names."

    source: Source
    description: str
    homepage: str
    image_shape: tuple[int, ...]
    image_dtype: type = np.uint8
    num_classes: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls.name = cls.source.name
        cls.VERSION = tfds.core.Version(cls.source.version)
        super().__init_subclass__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            homepage=self.homepage,
            features=tfds.features.FeaturesDict(
                {
                    # Raw bytes; tfds' Image would pack each image as PNG, which is slow.
                    "image": tfds.features.Tensor(
                        shape=self.image_shape,
                        dtype=self.image_dtype,
                        encoding=tfds.features.Encoding.BYTES,
                    ),
                    "label": tfds.features.ClassLabel(num_classes=self.num_classes),
                }
            ),
            disable_shuffling=True,  # keeps the order of the files
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        splits = self.source.read(self._fetch(dl_manager))
        return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}

    def _fetch(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        """Where each original file is, once its checksum is found right."""
        source = self.source
        given = self._given(dl_manager)
        elsewhere = [file for file in source.files if file not in given]
        if elsewhere and not source.url:
            raise DataError(
                f"{source.name} cannot be downloaded; put {', '.join(elsewhere)} into manual_dir"
            )
        # tfds takes a file from manual_dir, too, where it knows its SHA-256, and checks it.
        downloads = dl_manager.download({file: source.url + file for file in elsewhere})
        paths = given | {file: Path(path) for file, path in downloads.items()}
        if source.md5:
            for file, path in paths.items():
                digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
                if digest != source.md5:
                    if file in downloads:
                        # tfds, which cannot tell, would use it again, for what it notes beside it.
                        path.unlink()
                        path.with_name(f"{path.name}.INFO").unlink(missing_ok=True)
                    raise DataError(
                        source.not_the_original(f"{path}, with MD5 {digest} for {source.md5},")
                    )
        return paths

    def _given(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        """The files in manual_dir that tfds itself would not take from there."""
        try:
            folder = Path(dl_manager.manual_dir)
        except AssertionError:  # what tfds raises for a folder that is missing or empty
            return {}
        given = {}
        for file in self.source.files:
            path = self.source.find(folder, file)
            if path is None or (path.name == file and self.source.url and not self.source.md5):
                continue
            if path.name != file:
                with open_gzip(path, Path(file).suffix) as unpacked:
                    digest = hashlib.file_digest(unpacked, "sha256").hexdigest()
                if digest != self.url_infos[self.source.url + file].checksum:
                    raise DataError(self.source.not_the_original(str(path)))
            given[file] = path
        return given


class LvaeMnist(SourceBuilder):
    """MNIST from its four original files, in their order."""

    source = mnist.SOURCE
    description = "Handwritten digits, 28×28 grey values."
    homepage = "https://storage.googleapis.com/cvdf-datasets/mnist/"
    image_shape = (28, 28)
    num_classes = 10


class LvaeFashionMnist(SourceBuilder):
    """Fashion-MNIST from its four original files, in their order."""

    source = fashion_mnist.SOURCE
    description = "Clothes, 28×28 grey values."
    homepage = "https://github.com/zalandoresearch/fashion-mnist"
    image_shape = (28, 28)
    num_classes = 10


class LvaeBinarizedMnist(SourceBuilder):
    """Larochelle's binarised MNIST; its validation images are the last of the training images."""

    source = binarized_mnist.SOURCE
    description = "Handwritten digits, 28×28 pixels that are 0 or 255. Labels are not known (-1)."
    homepage = "http://www.dmi.usherb.ca/~larocheh/mlpython/_modules/datasets/binarized_mnist.html"
    image_shape = (28, 28)
    num_classes = 10


class LvaeOmniglot(SourceBuilder):
    """OMNIGLOT as Burda et al. split it and reduced it to 28×28."""

    source = omniglot.SOURCE
    description = "Handwritten characters of 50 alphabets, 28×28 grey values in [0, 1]."
    homepage = "https://github.com/yburda/iwae"
    image_shape = (28, 28)
    image_dtype = np.float32
    num_classes = omniglot.NUM_ALPHABETS


class LvaeOmniglotStandin(SourceBuilder):
    """A stand-in in the format of the file of `LvaeOmniglot`; never to be taken for it."""

    source = omniglot.STANDIN
    description = "A stand-in for OMNIGLOT in the same format."
    homepage = LvaeOmniglot.homepage
    image_shape = LvaeOmniglot.image_shape
    image_dtype = LvaeOmniglot.image_dtype
    num_classes = LvaeOmniglot.num_classes


class LvaeSmallNorb(SourceBuilder):
    """Small NORB reduced to 32×32; an example is a pair of images, one of each camera."""

    source = small_norb.SOURCE
    description = "Toys of five categories seen by two cameras, 2×32×32 grey values."
    homepage = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/"
    image_shape = (2, *small_norb.IMAGE_SHAPE)
    num_classes = small_norb.NUM_CATEGORIES


class LvaeDigits(SourceBuilder):
    """scikit-learn's digits, split as in `digits.load`."""

    source = digits.SOURCE
    description = "Handwritten digits, 8×8 grey values k/16, k = 0..16."
    homepage = "https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html"
    image_shape = (8, 8)
    image_dtype = np.float32
    num_classes = 10
