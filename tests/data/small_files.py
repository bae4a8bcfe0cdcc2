"""The data sets in small: files in the original formats, and sources whose checksums are theirs."""

import dataclasses
import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
from scipy import io

from lvae_jax.data import binarized_mnist, fashion_mnist, mnist, omniglot, small_norb
from lvae_jax.data.source import Source

NUM_TRAIN, NUM_TEST = 30, 20
NUM_VALID = 10
"""Of the training images of binarised MNIST."""


def small_source(
    folder: Path, source: Source = mnist.SOURCE, url: str | None = None, **changes
) -> Source:
    """The source, expecting the checksums that the files in `folder` have now."""
    files = []
    for file in source.files:
        content = (folder / file.name).read_bytes()
        if content.startswith(b"\x1f\x8b") and not file.of_packed:
            content = gzip.decompress(content)
        algorithm = file.checksum.partition(":")[0]
        checksum = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
        files.append(file._replace(checksum=checksum))
    return dataclasses.replace(
        source, files=tuple(files), url=source.url if url is None else url, **changes
    )


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim)
    return header + b"".join(struct.pack(">I", n) for n in array.shape) + array.tobytes()


def write_mnist(folder: Path) -> Path:
    """MNIST, and Fashion-MNIST too, whose files are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for prefix, number in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        grey = generator.integers(0, 256, (number, 28, 28), np.uint8)
        digit = (np.arange(number) * 7 % 10).astype(np.uint8)
        for kind, array in (("images-idx3", grey), ("labels-idx1", digit)):
            content = gzip.compress(idx_bytes(array), mtime=0)
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(content)
    return folder


def write_binarized_mnist(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for split, images in (
        ("train", NUM_TRAIN - NUM_VALID),
        ("valid", NUM_VALID),
        ("test", NUM_TEST),
    ):
        rows = generator.integers(0, 2, (images, 784))
        text = "".join(" ".join(map(str, row)) + "\n" for row in rows.tolist())
        (folder / f"binarized_mnist_{split}.amat").write_text(text)
    return folder


def chardata() -> dict[str, np.ndarray]:
    """What is in OMNIGLOT's file."""
    generator = np.random.default_rng(0)
    content = {}
    for prefix, images in (("", NUM_TRAIN), ("test", NUM_TEST)):
        content[f"{prefix}data"] = generator.random((784, images))
        content[f"{prefix}target"] = np.eye(50)[:, np.arange(images) * 7 % 50]
    return content


def write_omniglot(folder: Path, name: str = "chardata.mat", **changes: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    io.savemat(folder / name, chardata() | changes)
    return folder


def norb_bytes(array: np.ndarray) -> bytes:
    """NORB's format: type, number of dimensions, at least three sizes, values."""
    magic = {"uint8": b"\x55\x4c\x3d\x1e", "int32": b"\x54\x4c\x3d\x1e"}[str(array.dtype)]
    sizes = [*array.shape, 1, 1][: max(3, array.ndim)]
    return magic + struct.pack(f"<{1 + len(sizes)}i", array.ndim, *sizes) + array.tobytes()


def write_small_norb(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    train, train_category, test, test_category = (file.name for file in small_norb.SOURCE.files)
    for name, array in (
        (train, generator.integers(0, 256, (NUM_TRAIN, 2, 96, 96), np.uint8)),
        (train_category, np.arange(NUM_TRAIN, dtype=np.int32) % 5),
        (test, generator.integers(0, 256, (NUM_TEST, 2, 96, 96), np.uint8)),
        (test_category, np.arange(NUM_TEST, dtype=np.int32) % 5),
    ):
        (folder / name).write_bytes(gzip.compress(norb_bytes(array), 1, mtime=0))
    return folder


WRITERS = {
    mnist: write_mnist,
    fashion_mnist: write_mnist,
    binarized_mnist: write_binarized_mnist,
    omniglot: write_omniglot,
    small_norb: write_small_norb,
}
"""What writes the files of each data set."""
