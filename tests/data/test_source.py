import gzip

import pytest
from small_files import small_source, write_mnist

from lvae_jax.data import DataError, fashion_mnist, mnist
from lvae_jax.data.prepared import load_arrays
from lvae_jax.data.source import open_content

FILES = [file.name for file in mnist.SOURCE.files]


def plain(name):
    return name.removesuffix(".gz")


SPELLINGS = {
    "unpacked": (plain, gzip.decompress),
    "with-a-dot": (lambda name: plain(name).replace("-idx", ".idx"), gzip.decompress),
    "with-a-dot-packed": (lambda name: name.replace("-idx", ".idx"), lambda content: content),
    "packed-again": (lambda name: name, lambda c: gzip.compress(gzip.decompress(c), 1, mtime=7)),
    # What a browser leaves that unpacks on the way.
    "unpacked-under-the-packed-name": (lambda name: name, gzip.decompress),
}


@pytest.mark.parametrize("module", [mnist, fashion_mnist])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_same_content_is_read_however_it_is_packed_and_spelled(module, spelling, tmp_path):
    original = write_mnist(tmp_path / "original")
    source = small_source(original, module.SOURCE)
    rename, repack = SPELLINGS[spelling]
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in FILES:
        (folder / rename(name)).write_bytes(repack((original / name).read_bytes()))
    arrays = load_arrays(source, folder, tmp_path / "tfds")
    expected = load_arrays(source, original, tmp_path / "expected")
    for name, array in expected.items():
        assert (arrays[name] == array).all()


def test_an_unpacked_file_is_verified_too(tmp_path):
    folder = write_mnist(tmp_path / "original")
    source = small_source(folder)
    content = bytearray(gzip.decompress((folder / FILES[0]).read_bytes()))
    content[-1] ^= 1
    (folder / FILES[0]).unlink()
    path = folder / "train-images.idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_arrays(source, folder, tmp_path / "tfds")
    assert str(caught.value).startswith(f"lvae_mnist: {path} is not the original file: ")


def test_a_file_found_damaged_while_reading_is_named(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"content")[:-1])
    with pytest.raises(DataError) as caught, open_content(path) as file:
        file.read()
    assert str(caught.value) == (
        f"{path} cannot be read (Compressed file ended before the end-of-stream marker was "
        "reached); download it again"
    )
    assert isinstance(caught.value.__cause__, EOFError)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError) as caught, open_content(tmp_path / "a.gz"):
        pass
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/a.gz cannot be read ([Errno 2] No such file")
    assert message.endswith("; give one that can be read")  # it was not damaged in transit


def test_mnist_and_fashion_mnist_are_told_apart_by_checksum():
    for one, other in zip(mnist.SOURCE.files, fashion_mnist.SOURCE.files, strict=True):
        assert one.name == other.name
        assert one.checksum != other.checksum
