"""The tensorflow-datasets builder of a data set, made from its declaration.

tensorflow-datasets (tfds) has builders of some of these data sets, but they unpack the files with
TensorFlow. These need gzip, NumPy and SciPy. Importing this module imports tfds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lvae_jax.data.source import Source


def builder_class(source: Source) -> Any:
    """Makes the builder of a data set.

    Args:
      source: The data set's declaration, such as `mnist.SOURCE`.

    Returns:
      A subclass of `tfds.core.GeneratorBasedBuilder` with the splits "train" and "test", whose
      records hold "image" and "label". It is not registered in tfds.

    Example:
      >>> from lvae_jax.data import mnist
      >>> builder = builder_class(mnist.SOURCE)(data_dir="/tmp/data", file_format="array_record")
      >>> builder.info.features["image"].shape
      (28, 28)

      Then call `builder.download_and_prepare()` and `builder.as_data_source("train")`.
    """

    class Builder(_SourceBuilder, skip_registration=True):  # type: ignore[call-arg]
        """The builder of this source."""

        name = source.name
        VERSION = tfds.core.Version(source.version)
        declaration = source

    return Builder


class _SourceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The code that all builders share."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "The original files, under their original names."
    VERSION = tfds.core.Version("0.0.0")
    url_infos: dict[str, Any] = {}  # noqa: RUF012  (checksums are the source's)

    declaration: Source

    def _info(self) -> tfds.core.DatasetInfo:
        source = self.declaration
        features = {
            # Raw bytes; tfds' Image would pack each image as PNG, which is slow.
            "image": tfds.features.Tensor(
                shape=source.image_shape,
                dtype=source.image_dtype,
                encoding=tfds.features.Encoding.BYTES,
            ),
            "label": tfds.features.ClassLabel(num_classes=source.num_classes),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{source.name}, from its original files and in their order.",
            homepage=source.homepage,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # keeps the order of the files
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        splits = self.declaration.read(self._fetch(dl_manager))
        return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}

    def _fetch(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        """The path of each original file, in manual_dir or downloaded; all are verified."""
        source = self.declaration
        try:
            given = source.find(Path(dl_manager.manual_dir))
        except AssertionError:  # tfds raises it for a folder that is missing or empty
            given = {}
        missing = [file.name for file in source.files if file.name not in given]
        downloads = dl_manager.download({name: source.url + name for name in missing})
        downloaded = {name: Path(path) for name, path in downloads.items()}
        for file in source.files:
            path = downloaded.get(file.name)
            try:
                source.verify(file, path or given[file.name])
            except Exception:
                if path is not None:  # else tfds finds its .INFO file and uses it again
                    path.unlink()
                    path.with_name(f"{path.name}.INFO").unlink(missing_ok=True)
                raise
        return given | downloaded
