"""Saving and loading: nothing is lost, and a folder that is not intact is one clear error."""

import errno
import json
import os
import pickle
import shutil
import struct
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn
from full_disk import no_room_beyond
from on_disk import Disk

from lvae_jax import VAE, LadderVAE, load, save
from lvae_jax.trained import ModelFolderError

MODELS = {
    "ladder": LadderVAE(5, (3, 2), (4, 6), own_top_down=True, variance_floor=1e-3),
    "mean_upward": LadderVAE(5, (3, 2), (4, 6), mean_upward=True, activation="tanh"),
    "vae": VAE(5, (3, 2), (4, 6), observation="gaussian"),
    "no_batch_norm": VAE(5, (3,), (4,), batch_norm=False),
}


def made_up_variables(model):
    """Variables of a model with numbers that no initialiser gives."""
    keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
    like = jax.eval_shape(model.init, keys, jax.ShapeDtypeStruct((1, model.data_dim), jnp.float32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.gamma(1.0, size=leaf.shape).astype(leaf.dtype), like)


def by_path(tree):
    return {jax.tree_util.keystr(path): a for path, a in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(actual, expected):
    actual, expected = by_path(actual), by_path(expected)
    assert actual.keys() == expected.keys()
    for name, leaf in expected.items():
        assert isinstance(actual[name], jax.Array)
        assert actual[name].dtype == leaf.dtype
        np.testing.assert_array_equal(actual[name], leaf)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "model"
    save(folder, MODELS["ladder"], made_up_variables(MODELS["ladder"]), {"epochs": 7})
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_load_gives_what_save_was_given(model, tmp_path):
    variables = made_up_variables(model)
    save(tmp_path / "a" / "b", model, variables)
    loaded_model, loaded = load(str(tmp_path / "a" / "b"))
    assert loaded_model == model
    assert hash(loaded_model) == hash(model)  # a static argument of compiled functions
    assert_same(loaded, variables)


def test_infinite_variances_of_constant_units_are_kept(tmp_path):
    model = MODELS["ladder"]
    variables = made_up_variables(model)
    variables["batch_stats"]["inference"]["heads_0"]["Linear_0"]["BatchNorm_0"]["variance"][1] = (
        np.inf
    )
    save(tmp_path, model, variables)
    assert_same(load(tmp_path)[1], variables)


def array_of(folder, name):
    """The dtype, the shape and the bytes of an array, read without this library or safetensors."""
    # The format: the header's length, the header as JSON, the arrays.
    content = (folder / "weights.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entry = json.loads(content[8 : 8 + length])[name]
    start, end = (8 + length + offset for offset in entry["data_offsets"])
    return entry["dtype"], entry["shape"], content[start:end]


def test_the_files_say_what_they_hold_without_this_library(saved):
    described = json.loads((saved / "model.json").read_text())
    assert described["class"] == "LadderVAE"
    assert described["format"] == 1
    assert described["metadata"] == {"epochs": 7}
    assert described["fields"]["latent_sizes"] == [3, 2]
    assert described["fields"]["own_top_down"] is True
    dtype, shape, kernel = array_of(saved, "params/generative/mlps_0/Linear_0/Dense_0/kernel")
    assert (dtype, shape) == ("F32", [3, 4])
    expected = made_up_variables(MODELS["ladder"])["params"]["generative"]["mlps_0"]["Linear_0"]
    np.testing.assert_array_equal(
        np.frombuffer(kernel, np.float32).reshape(3, 4), expected["Dense_0"]["kernel"]
    )
    array_of(saved, "batch_stats/inference/heads_0/Linear_0/BatchNorm_0/variance")


class Scaled(nn.Module):
    """An MLP of the user's own, whose parameters have no axes, or are of another dtype."""

    dtype: str

    @nn.compact
    def __call__(self, y, train):
        def values(key, shape):
            return (1 + jnp.arange(np.prod(shape)) / 128).reshape(shape).astype(self.dtype)

        scale, row = self.param("scale", values, ()), self.param("row", values, (3,))
        return y * scale.astype("float32") + jnp.sum(row.astype("float32"))


class OneLayer(nn.Module):
    """An MLP of one layer."""

    units: int

    @nn.compact
    def __call__(self, y, train):
        return nn.relu(nn.Dense(self.units)(y))


def scaled(dtype, **fields):
    def mlp(layer, direction):
        return Scaled(dtype)

    return VAE(5, (3,), (4,), mlp=mlp, batch_norm=False, **fields)


def initial(model):
    keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
    return jax.jit(model.init)(keys, jnp.zeros((1, model.data_dim)))


def initial_of_dtype(dtype):
    """Variables of `scaled(dtype)`, converted by NumPy: XLA cannot do it on every processor."""

    def converted(path, leaf):
        is_scaled = path[-1].key in ("row", "scale")
        return np.asarray(leaf).astype(jnp.dtype(dtype)) if is_scaled else leaf

    return jax.tree_util.tree_map_with_path(converted, initial(scaled("float32")))


@pytest.mark.parametrize(
    ("dtype", "stored_as", "row"),
    [
        ("float32", "F32", struct.pack("<3f", 1, 129 / 128, 130 / 128)),
        # The upper half of the float32's bits: the last of 7 bits of the fraction is 1 / 128.
        ("bfloat16", "BF16", struct.pack("<3H", 0x3F80, 0x3F81, 0x3F82)),
        ("float16", "F16", struct.pack("<3e", 1, 129 / 128, 130 / 128)),
    ],
    ids=["float32", "bfloat16", "float16"],
)
def test_parameters_without_axes_and_of_other_dtypes_are_kept(dtype, stored_as, row, tmp_path):
    model, variables = scaled(dtype), initial_of_dtype(dtype)
    save(tmp_path, model, variables)
    place = "params/generative/mlps_0"
    assert array_of(tmp_path, f"{place}/row") == (stored_as, [3], row)
    assert array_of(tmp_path, f"{place}/scale") == (stored_as, [], row[: len(row) // 3])
    assert_same(load(tmp_path, mlp=model.mlp)[1], variables)


def test_arrays_that_are_not_contiguous_are_kept(tmp_path):
    model = MODELS["ladder"]
    variables = made_up_variables(model)
    save(tmp_path, model, jax.tree.map(np.asfortranarray, variables))
    assert_same(load(tmp_path)[1], variables)


def test_a_dtype_that_no_file_holds_is_refused_before_anything_is_written(tmp_path):
    dtype = "float8_e4m3b11fnuz"
    message = (
        r"params/\S+ is float8_e4m3b11fnuz, which weights.safetensors cannot hold; give the model "
        "float32 parameters"
    )
    with pytest.raises(ValueError, match=message) as raised:
        save(tmp_path / "model", scaled(dtype), initial_of_dtype(dtype))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "model").exists()


class Shifted(NamedTuple):
    """An observation of the user's own that happens to be a tuple."""

    shift: float
    head_size: int = 1

    def log_prob(self, head, x):
        return -jnp.sum((x - head[0] - self.shift) ** 2, axis=-1)

    def mean(self, head):
        return head[0] + self.shift


def test_an_observation_that_is_a_tuple_is_the_users_own_object(tmp_path):
    model = VAE(5, (3,), (4,), observation=Shifted(0.5))
    variables = made_up_variables(model)
    save(tmp_path, model, variables)
    with pytest.raises(ModelFolderError, match=r"does not store observation \(Shifted\); give"):
        load(tmp_path)
    loaded_model, loaded = load(tmp_path, observation=Shifted(0.5))
    assert loaded_model == model
    assert_same(loaded, variables)


def test_fields_may_be_numpy_scalars(tmp_path, monkeypatch):
    # More is taken than the annotations say.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    fields = {"variance_floor": np.float32(1e-4), "batch_norm": np.bool_(True)}
    fields |= {"activation": np.str_("tanh"), "variance_bias": np.float64(0.5)}
    model = VAE(np.int64(5), (3,), (4,), **fields)
    save(tmp_path, model, made_up_variables(model))
    stored = json.loads((tmp_path / "model.json").read_text())["fields"]
    # The float32 next to 1e-4 is 13743895 / 2^37.
    assert stored["variance_floor"] == 13743895 / 2**37
    assert (stored["batch_norm"], stored["activation"]) == (True, "tanh")
    assert (stored["data_dim"], stored["variance_bias"]) == (5, 0.5)
    assert load(tmp_path)[0] == model


def test_save_replaces_a_model(saved, copied):
    save(copied, MODELS["vae"], made_up_variables(MODELS["vae"]))
    assert load(copied)[0] == MODELS["vae"]
    assert {path.name for path in copied.iterdir()} == {"model.json", "weights.safetensors"}


def test_a_save_without_room_leaves_the_model_that_was_there(saved, copied):
    size = max(path.stat().st_size for path in copied.iterdir())
    larger = LadderVAE(64, (32,), ((32,),))
    with no_room_beyond(size), pytest.raises(OSError, match="File too large"):
        save(copied, larger, made_up_variables(larger))
    described = MODELS["ladder"]
    with no_room_beyond(size), pytest.raises(OSError, match="File too large"):
        # The weights have room, model.json has not.
        save(copied, described, made_up_variables(described), metadata={"notes": size * "a"})
    assert load(copied)[0] == load(saved)[0]


@pytest.mark.faults
def test_a_model_is_replaced_once_the_new_one_is_on_the_disk(copied, monkeypatch):
    disk = Disk(monkeypatch)
    save(copied, MODELS["vae"], made_up_variables(MODELS["vae"]))
    assert disk.missing_when_named == {
        copied / "weights.safetensors": [],
        copied / "model.json": [],
    }
    assert disk.missing(copied) == []


def test_a_model_is_saved_where_nothing_can_be_synced(copied, monkeypatch):
    def unsupported(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unsupported)
    save(copied, MODELS["vae"], made_up_variables(MODELS["vae"]))
    assert load(copied)[0] == MODELS["vae"]


def test_a_save_that_was_cut_short_is_found_damaged(saved, copied, tmp_path):
    """The weights are written first: with the old model.json they make no model."""
    other = made_up_variables(MODELS["ladder"])
    other["params"]["generative"]["mlps_0"]["Linear_0"]["Dense_0"]["kernel"] += 1.0
    save(tmp_path / "other", MODELS["ladder"], other)
    shutil.copy(tmp_path / "other" / "weights.safetensors", copied)
    with pytest.raises(ModelFolderError, match="is damaged"):
        load(copied)


def test_every_flipped_bit_and_every_truncation_is_an_error(saved, copied):
    rng = np.random.default_rng(1)
    for name in ("model.json", "weights.safetensors"):
        content = (saved / name).read_bytes()
        for place in rng.choice(len(content), 60, replace=False):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
            for bytes_ in (bytes(damaged), content[:place]):
                (copied / name).write_bytes(bytes_)
                try:
                    model, variables = load(copied)
                except ModelFolderError:
                    continue
                # What does not change what JSON says, such as the final line break, is no damage.
                assert model == MODELS["ladder"]
                assert_same(variables, made_up_variables(MODELS["ladder"]))
        (copied / name).write_bytes(content)


def test_other_networks_than_those_of_a_model_are_named_as_the_cause(tmp_path):
    def dense(units):
        return lambda layer, direction: OneLayer(units)

    model = LadderVAE(5, (2,), (3,), mlp=dense(4), activation=jnp.tanh)
    save(tmp_path, model, made_up_variables(model))
    with pytest.raises(ModelFolderError) as raised:
        load(tmp_path, mlp=dense(6), activation=jnp.tanh)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path} holds another model: params/")
    assert message.endswith("give load the mlp, activation that the model was made with")
    with pytest.raises(ModelFolderError, match="with the given mlp, activation describes no model"):
        load(tmp_path, mlp=model.mlp, activation="unknown")
    no_module = r"with the given mlp, activation describes no model: mlp\(1, 'up'\) returned"
    with pytest.raises(ModelFolderError, match=no_module):
        load(tmp_path, mlp=lambda layer, direction: jnp.tanh, activation=jnp.tanh)


def rewritten(folder, **changes):
    """A folder whose model.json someone has changed."""
    described = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(described | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"has format 2, .* up to 1; install a newer lvae_jax"),
        ({"format": "1"}, "has format '1'"),
        ({"class": "os.system"}, "class 'os.system'; .* knows LadderVAE, VAE"),
        ({"class": ["VAE"]}, r"class \['VAE'\]"),
        ({"class": "HierarchicalVAE"}, "class 'HierarchicalVAE'"),
        ({"class": "VAE"}, "is damaged"),
        ({"fields": {}}, "is damaged"),
    ],
)
def test_foreign_and_newer_folders_are_refused(copied, changes, message):
    with pytest.raises(ModelFolderError, match=message) as raised:
        load(rewritten(copied, **changes))
    assert "\n" not in str(raised.value)
    assert str(copied) in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_a_model_json_that_is_none_is_refused(copied, content):
    (copied / "model.json").write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"model\.json (is damaged|was not written)"):
        load(copied)


def test_pickled_weights_are_not_opened(copied, tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    for name in ("weights.safetensors", "model.json"):
        (copied / name).write_bytes(pickle.dumps(Attack()))
        with pytest.raises(ModelFolderError):
            load(copied)
    assert not (tmp_path / "attacked").exists()


def with_checksum(folder, **fields):
    """A folder whose author gave it a checksum, though the fields are not what was saved."""
    from lvae_jax import trained

    described = json.loads((folder / "model.json").read_text())
    described["fields"] |= fields
    described["sha256"] = trained._checksum(
        described, (folder / "weights.safetensors").read_bytes()
    )
    (folder / "model.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(
    "fields",
    [
        {"data_dim": 6},
        {"data_dim": "784"},
        {"latent_sizes": [3]},
        {"latent_sizes": "ab"},
        {"latent_sizes": None},
        {"hidden_sizes": [4, -1]},
        {"activation": "os.system"},
        {"observation": 3},
        {"observation": {"class": "os.system"}},
        {"variance_floor": "x"},
        {"surprise": 1},
        {"parent": 1},
    ],
    ids=str,
)
def test_fields_that_make_no_model_are_one_error(copied, fields):
    with pytest.raises(ModelFolderError) as raised:
        load(with_checksum(copied, **fields))
    assert str(copied) in str(raised.value)
    assert "given" not in str(raised.value)


def test_weights_of_another_shape_than_the_stored_model_has_are_damage(copied):
    with pytest.raises(ModelFolderError, match=r"is damaged: .*, by model\.json; copy or save the"):
        load(with_checksum(copied, data_dim=6))


def test_a_missing_folder_file_or_model_is_named(saved, copied, tmp_path):
    with pytest.raises(ModelFolderError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelFolderError, match=r"holds no model\.json; give a folder made by"):
        load(tmp_path)
    (copied / "weights.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"cannot read .*weights\.safetensors"):
        load(copied)


def test_a_runs_folder_is_searched_for_its_model(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run" / "model")
    assert load(tmp_path / "run")[0] == MODELS["ladder"]
    for replica in ("0", "1"):
        shutil.copytree(saved, tmp_path / "replicas" / "model" / replica)
    with pytest.raises(
        ModelFolderError, match=r"2 models, one per replica; give one of them, .*/0"
    ):
        load(tmp_path / "replicas")
    assert load(tmp_path / "replicas" / "model" / "1")[0] == MODELS["ladder"]


def test_paths_expand_the_home_folder(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save("~/mine", MODELS["ladder"], made_up_variables(MODELS["ladder"]))
    assert (tmp_path / "mine" / "model.json").exists()
    assert load("~/mine")[0] == MODELS["ladder"]
    with pytest.raises(
        ModelFolderError, match="~no-such-user/mine: its home directory is not known"
    ):
        save("~no-such-user/mine", MODELS["ladder"], made_up_variables(MODELS["ladder"]))
    with pytest.raises(
        ModelFolderError, match="~no-such-user/mine: its home directory is not known"
    ):
        load("~no-such-user/mine")


def test_variables_of_another_model_are_refused(tmp_path):
    model, variables = MODELS["ladder"], made_up_variables(MODELS["ladder"])
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), variables)
    wrong = {
        r"batch_stats/\S+ is missing": {"params": variables["params"]},
        r"is float32 of shape \[2, .*\] and should be": stacked,
        r"is float64 of shape": jax.tree.map(np.float64, variables),
        r"the model has no extra/a": variables | {"extra": {"a": np.float32(1)}},
    }
    for message, given in wrong.items():
        with pytest.raises(ValueError, match=message):
            save(tmp_path / "model", model, given)
    assert not (tmp_path / "model").exists()


def test_models_and_metadata_that_cannot_be_written_are_refused(tmp_path):
    class Mine(LadderVAE):
        pass

    variables = made_up_variables(MODELS["ladder"])
    with pytest.raises(ValueError, match="of the classes LadderVAE, VAE, not Mine"):
        save(tmp_path, Mine(5, (3, 2), (4, 6), own_top_down=True), variables)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        save(tmp_path, MODELS["ladder"], variables, {"array": np.zeros(3)})
    assert not list(tmp_path.iterdir())
