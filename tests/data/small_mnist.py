"""MNIST in small: IDX files written by hand, and a source whose checksums are theirs."""

import dataclasses
import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo

from lvae_jax.data import mnist
from lvae_jax.data.mnist_builder import LvaeMnist
from lvae_jax.data.prepared import Source

NUM_TRAIN, NUM_TEST = 30, 20


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim)
    return header + b"".join(struct.pack(">I", n) for n in array.shape) + array.tobytes()


def write_files(folder: Path, num_train_labels: int = NUM_TRAIN) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for prefix, images, labels in (
        ("train", NUM_TRAIN, num_train_labels),
        ("t10k", NUM_TEST, NUM_TEST),
    ):
        grey = generator.integers(0, 256, (images, 28, 28), np.uint8)
        digit = (np.arange(labels) * 7 % 10).astype(np.uint8)
        for kind, array in (("images-idx3", grey), ("labels-idx1", digit)):
            content = gzip.compress(idx_bytes(array), mtime=0)
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(content)
    return folder


def builder_class(
    folder: Path, url: str = mnist.SOURCE.url, base: type = LvaeMnist
) -> type[tfds.core.GeneratorBasedBuilder]:
    """The builder, expecting the checksums that the files in `folder` have now."""
    infos = {}
    for file in mnist.SOURCE.files:
        content = (folder / file).read_bytes()
        infos[url + file] = UrlInfo(len(content), hashlib.sha256(content).hexdigest(), file)

    class Small(base, skip_registration=True):
        name = mnist.SOURCE.name
        base_url = url
        url_infos = infos

    return Small


def small_source(folder: Path, url: str = mnist.SOURCE.url, base: type = LvaeMnist) -> Source:
    builder = builder_class(folder, url, base)
    return dataclasses.replace(mnist.SOURCE, url=url, builder_class=lambda: builder)
