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


def test_read_idx_reads_images_in_row_major_order(path):
    path.write_bytes(PACKED)
    images = read_idx(path)
    assert images.dtype == np.uint8
    assert images.tolist() == [[[0, 1, 2], [3, 4, 5]], [[250, 251, 252], [253, 254, 255]]]


def test_read_idx_reads_labels(path):
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 1, 1]) + bytes(257)))
    assert read_idx(path).shape == (257,)  # 0x0101: the byte order shows


def test_a_missing_file_is_named(path):
    with pytest.raises(DataError) as caught:
        read_idx(path)
    assert str(caught.value) == (
        f"{path} cannot be read ([Errno 2] No such file or directory: '{path}'); give one that can "
        "be read"
    )
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_an_unpacked_file_is_read_too(path):
    path.write_bytes(HEADER + VALUES)
    assert read_idx(path).tolist()[0] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "content",
    [PACKED[:-9], PACKED[:-4], PACKED[:20], PACKED[:12] + b"\xff" + PACKED[13:]],
    ids=["no-crc", "no-length", "cut", "flipped"],
)
def test_a_damaged_gzip_file_is_named(path, content):
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read (")
    assert message.endswith("); download it again")
