"""What holds for the builders of all data sets; their files are tested one data set at a time."""

import numpy as np
import pytest
import small_files
import tensorflow_datasets as tfds
from small_files import WRITERS, small_source

from lvae_jax.data.builders import builder_class
from lvae_jax.data.prepared import load_arrays


@pytest.fixture(params=WRITERS, ids=[module.__name__.rpartition(".")[2] for module in WRITERS])
def module(request):
    return request.param


@pytest.fixture
def data_dir(module, tmp_path):
    return WRITERS[module](tmp_path / "original")


def test_users_of_tensorflow_datasets_prepare_it_from_a_manual_dir(module, data_dir, tmp_path):
    source = small_source(data_dir, module.SOURCE)
    builder = builder_class(source)(data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=data_dir, try_download_gcs=False)
    )
    records = builder.as_data_source("train")
    assert len(records) == small_files.NUM_TRAIN
    arrays = load_arrays(source, None, tmp_path / "tfds")  # the same records
    assert tmp_path.joinpath("tfds", source.name, source.version, "arrays.npz").is_file()
    np.testing.assert_array_equal(records[3]["image"], arrays["train_images"][3], strict=True)
    assert records[3]["label"] == arrays["train_labels"][3]
    assert arrays["train_labels"].dtype == np.int32


def test_the_builder_says_what_the_source_declares(module, tmp_path):
    builder = builder_class(module.SOURCE)(data_dir=tmp_path)
    assert builder.name == module.SOURCE.name
    assert str(builder.version) == "1.0.0"
    assert builder.info.homepage == module.SOURCE.homepage
    assert builder.info.features["image"].shape == module.SOURCE.image_shape
    assert builder.info.features["label"].num_classes == module.SOURCE.num_classes


def test_files_are_downloaded_where_no_folder_is_given(serve, module, data_dir, tmp_path):
    arrays = load_arrays(
        small_source(data_dir, module.SOURCE, url=serve(data_dir)), None, tmp_path / "downloaded"
    )
    given = load_arrays(small_source(data_dir, module.SOURCE), data_dir, tmp_path / "given")
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, given[name], strict=True)


def test_a_wrong_download_is_not_used_again(serve, module, data_dir, tmp_path):
    source = small_source(data_dir, module.SOURCE, url=serve(data_dir))
    path = data_dir / source.files[0].name
    content = path.read_bytes()
    path.write_bytes(b"<html>log in first</html>")
    with pytest.raises(ValueError, match="is not the original file"):
        load_arrays(source, None, tmp_path / "tfds")
    path.write_bytes(content)
    arrays = load_arrays(source, None, tmp_path / "tfds")
    assert len(arrays["test_images"]) == small_files.NUM_TEST
