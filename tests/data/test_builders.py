"""What holds for the builders of all data sets; their files are tested one data set at a time."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import small_files
import tensorflow_datasets as tfds
from small_files import WRITERS, small_source

import lvae_jax.data.builders  # noqa: F401  (registers them)
from lvae_jax.data import DataError, digits, mnist, omniglot, prepared
from lvae_jax.data.prepared import load_arrays

NAMES = [module.__name__.rpartition(".")[2] for module in WRITERS]


@pytest.fixture(params=WRITERS, ids=NAMES)
def module(request):
    return request.param


@pytest.fixture
def data_dir(module, tmp_path):
    return WRITERS[module](tmp_path / "original")


@pytest.fixture
def source(module, data_dir):
    return small_source(data_dir, module.SOURCE)


@pytest.fixture
def tfds_dir(tmp_path):
    return tmp_path / "tfds"


def failure(source, data_dir, tfds_dir):
    """The message of the DataError of loading, which leaves nothing behind."""
    with pytest.raises(DataError) as caught:
        load_arrays(source, data_dir, tfds_dir)
    folder = tfds_dir / source.name
    assert not (folder / source.version).exists()
    assert not list(folder.glob("incomplete.*"))
    message = str(caught.value)
    assert "\n" not in message
    return message


def run_python(code, *arguments):
    """Runs code in a process of its own, where every warning is an error; it must be silent."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(prepared.__file__).parents[2])])
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_all_are_prepared_silently_and_without_tensorflow(tmp_path):
    run_python(
        """
        import pathlib, sys
        from small_files import NUM_TEST, NUM_TRAIN, WRITERS, small_source
        from lvae_jax.data.prepared import load_arrays

        root = pathlib.Path(sys.argv[1])
        for module, write in WRITERS.items():
            folder = write(root / module.__name__)
            arrays = load_arrays(small_source(folder, module.SOURCE), folder, root / "tfds")
            assert len(arrays["train_images"]) == len(arrays["train_labels"]) == NUM_TRAIN
            assert len(arrays["test_images"]) == len(arrays["test_labels"]) == NUM_TEST
        assert "tensorflow_datasets" in sys.modules
        assert "tensorflow" not in sys.modules
        """,
        tmp_path,
    )


def test_all_are_loaded_again_without_tensorflow_datasets_and_scipy(tmp_path):
    for module, write in WRITERS.items():
        folder = write(tmp_path / module.__name__)
        load_arrays(small_source(folder, module.SOURCE), folder, tmp_path / "tfds")
    run_python(
        """
        import sys
        from lvae_jax.data import (
            binarized_mnist, digits, fashion_mnist, mnist, omniglot, small_norb
        )

        before = "scipy.io" in sys.modules  # of JAX
        for module in (mnist, fashion_mnist, binarized_mnist, omniglot, small_norb):
            dataset = module.load(tfds_dir=sys.argv[1])
            assert (len(dataset.train_images), len(dataset.test_images)) == (30, 20)
        assert not {"tensorflow_datasets", "tensorflow", "sklearn"} & sys.modules.keys()
        assert ("scipy.io" in sys.modules) == before
        """,
        tmp_path / "tfds",
    )


def test_users_of_tensorflow_datasets_prepare_it_from_a_manual_dir(source, data_dir, tfds_dir):
    builder = source.builder_class()(data_dir=tfds_dir, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=data_dir, try_download_gcs=False)
    )
    records = builder.as_data_source("train")
    assert len(records) == small_files.NUM_TRAIN
    arrays = load_arrays(source, None, tfds_dir)  # the same records
    assert tfds_dir.joinpath(source.name, source.version, "arrays.npz").is_file()
    np.testing.assert_array_equal(records[3]["image"], arrays["train_images"][3], strict=True)
    assert records[3]["label"] == arrays["train_labels"][3]
    assert arrays["train_labels"].dtype == np.int32


@pytest.mark.parametrize("name", [*NAMES, "omniglot_standin", "digits"])
def test_the_builder_is_registered_under_its_name(name, tfds_dir):
    builder = tfds.builder(f"lvae_{name}", data_dir=tfds_dir)
    assert builder.name == f"lvae_{name}"
    assert str(builder.version) == "1.0.0"
    assert builder.info.description
    assert builder.info.homepage.startswith("http")


def test_the_records_say_what_they_are(source, data_dir, tfds_dir):
    load_arrays(source, data_dir, tfds_dir)
    info = json.loads((tfds_dir / source.name / source.version / "dataset_info.json").read_text())
    assert info["name"] == source.name
    assert info["fileFormat"] == "array_record"
    assert [split["shardLengths"] for split in info["splits"]] == [["30"], ["20"]]


def test_a_checksum_is_known_of_every_file(module):
    known = module.SOURCE.builder_class().url_infos
    if module is omniglot:
        assert len(module.SOURCE.md5) == 32
        return
    for file in module.SOURCE.files:
        info = known[module.SOURCE.url + file]
        assert info.filename == file
        assert len(info.checksum) == 64
        assert info.size > 300


@pytest.mark.parametrize("damage", ["other", "cut", "empty"])
def test_a_wrong_checksum_names_the_file(source, data_dir, tfds_dir, damage):
    for file in source.files:
        path = data_dir / file
        content = path.read_bytes()
        path.write_bytes({"other": content[:-1] + b"x", "cut": content[:-20], "empty": b""}[damage])
        message = failure(source, data_dir, tfds_dir)
        assert message.startswith(f"{source.name}: ")
        assert str(path) in message
        assert message.endswith(
            "has wrong checksum: it is cut short or not the original; delete it and download it "
            f"again from {source.url}"
        )
        path.write_bytes(content)
    assert len(load_arrays(source, data_dir, tfds_dir)["test_images"]) == small_files.NUM_TEST


def test_files_of_another_data_set_are_refused(module, data_dir, tfds_dir):
    message = failure(module.SOURCE, data_dir, tfds_dir)  # against the checksums of the real files
    assert "has wrong checksum: it is cut short or not the original" in message


def test_a_missing_file_is_named(source, data_dir, tfds_dir):
    (data_dir / source.files[-1]).unlink()
    how = "packed with gzip or not" if source.may_be_packed else "not unpacked"
    assert failure(source, data_dir, tfds_dir) == (
        f"--data_dir={data_dir} lacks {source.files[-1]}; download what is missing from "
        f"{source.url} into it, under the same names and {how}"
    )


def test_files_are_downloaded_where_no_folder_is_given(serve, module, source, data_dir, tfds_dir):
    url = serve(data_dir)
    arrays = load_arrays(small_source(data_dir, module.SOURCE, url=url), None, tfds_dir)
    given = load_arrays(source, data_dir, tfds_dir.with_name("other"))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, given[name], strict=True)


def test_a_wrong_download_is_not_used_again(serve, module, data_dir, tfds_dir):
    url = serve(data_dir)
    small = small_source(data_dir, module.SOURCE, url=url)
    (data_dir / small.files[0]).write_bytes(b"<html>log in first</html>")
    assert "has wrong checksum" in failure(small, None, tfds_dir)
    WRITERS[module](data_dir)
    if small.md5:  # a MATLAB file says when it was written
        small = small_source(data_dir, module.SOURCE, url=url)
    assert len(load_arrays(small, None, tfds_dir)["test_images"]) == small_files.NUM_TEST


def test_an_interrupted_preparation_is_started_anew(source, data_dir, tfds_dir):
    class Interrupted(source.builder_class(), skip_registration=True):
        def _generate_examples(self, images, labels):
            yield from list(super()._generate_examples(images, labels))[:3]
            raise KeyboardInterrupt

    interrupted = dataclasses.replace(source, builder_class=lambda: Interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_arrays(interrupted, data_dir, tfds_dir)
    assert not (tfds_dir / source.name / source.version).exists()
    assert len(load_arrays(source, data_dir, tfds_dir)["test_images"]) == small_files.NUM_TEST


def test_the_builder_of_digits_holds_what_digits_load_gives(tfds_dir):
    arrays = load_arrays(digits.SOURCE, None, tfds_dir)
    dataset = digits.load()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, getattr(dataset, name), strict=True)


def test_what_cannot_be_downloaded_is_asked_for(tfds_dir, tmp_path):
    builder = omniglot.STANDIN.builder_class()(data_dir=tfds_dir, file_format="array_record")
    with pytest.raises(DataError) as caught:
        builder.download_and_prepare()
    assert str(caught.value) == (
        "lvae_omniglot_standin cannot be downloaded; put chardata_standin.mat into manual_dir"
    )


def test_mnist_and_fashion_mnist_are_told_apart_by_checksum(tmp_path):
    infos = mnist.SOURCE.builder_class().url_infos
    for file in mnist.SOURCE.files:
        assert len({info.checksum for url, info in infos.items() if url.endswith(file)}) == 2
