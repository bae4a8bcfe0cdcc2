import gzip

import pytest

from lvae_jax.data import DataError
from lvae_jax.data.gzip_file import open_gzip


def test_the_content_comes_back(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"content"))
    with open_gzip(path, "text") as file:
        assert file.read() == b"content"


def test_a_file_found_damaged_while_reading_is_named(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"content")[:-1])
    with pytest.raises(DataError) as caught, open_gzip(path, "text") as file:
        file.read()
    assert str(caught.value) == (
        f"{path} cannot be unpacked (Compressed file ended before the end-of-stream marker was "
        "reached); expected a gzipped text file: download it again"
    )
    assert isinstance(caught.value.__cause__, EOFError)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError) as caught, open_gzip(tmp_path / "a.gz", "text"):
        pass
    assert str(caught.value).startswith(f"{tmp_path}/a.gz cannot be unpacked ([Errno 2] No such")
