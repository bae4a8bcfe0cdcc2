import gzip

import numpy as np
import pytest

from lvae_jax.data import DataError
from lvae_jax.data.idx import read_idx

# Two images of 2×3: bytes 0, 0; type 8 (uint8); 3 dimensions; 2, 2 and 3 as big-endian int32.
HEADER = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3])
VALUES = bytes([0, 1, 2, 3, 4, 5, 250, 251, 252, 253, 254, 255])
PACKED = gzip.compress(HEADER + VALUES)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "images.gz"


def message_for(path, content, ndim=3):
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path, ndim)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_read_idx_reads_images_in_row_major_order(path):
    path.write_bytes(PACKED)
    images = read_idx(path, ndim=3)
    assert images.dtype == np.uint8
    assert images.tolist() == [[[0, 1, 2], [3, 4, 5]], [[250, 251, 252], [253, 254, 255]]]


def test_read_idx_reads_labels(path):
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 1, 1]) + bytes(257)))
    assert read_idx(path, ndim=1).shape == (257,)  # 0x0101: the byte order shows


def test_a_missing_file_is_named(path):
    with pytest.raises(DataError) as caught:
        read_idx(path, ndim=3)
    assert str(caught.value) == (
        f"{path} cannot be read ([Errno 2] No such file or directory: '{path}'); download it again"
    )
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_an_unpacked_file_is_read_too(path):
    path.write_bytes(HEADER + VALUES)
    assert read_idx(path, ndim=3).tolist()[0] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "content",
    [PACKED[:-9], PACKED[:-4], PACKED[:20], PACKED[:12] + b"\xff" + PACKED[13:]],
    ids=["no-crc", "no-length", "cut", "flipped"],
)
def test_a_damaged_gzip_file_is_named(path, content):
    message = message_for(path, content)
    assert message.startswith(f"{path} cannot be read (")
    assert message.endswith("); download it again")


def test_another_kind_of_file_is_named(path):
    assert message_for(path, PACKED, ndim=1) == (
        f"{path} starts with the bytes 00000803; expected 00000801, IDX with 1 dimensions of "
        "uint8: download it again"
    )


def test_an_empty_file_is_named(path):
    assert message_for(path, gzip.compress(b"")) == (
        f"{path} starts with the bytes (none); expected 00000803, IDX with 3 dimensions of uint8: "
        "download it again"
    )


def test_a_file_that_ends_within_its_header_is_named(path):
    assert message_for(path, gzip.compress(HEADER[:10])) == (
        f"{path} ends within its header; download it again"
    )


@pytest.mark.parametrize("values", [VALUES[:-1], VALUES + b"\0"])
def test_a_file_of_the_wrong_size_is_named(path, values):
    assert message_for(path, gzip.compress(HEADER + values)) == (
        f"{path} holds {len(values)} values; its header [2, 2, 3] says 12: download it again"
    )
