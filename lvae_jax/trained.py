"""A trained model as a folder: `model.json` describes it, `weights.safetensors` holds its arrays.

Neither file can run code: one is JSON, the other holds arrays and their names.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from flax.core import unfreeze

from lvae_jax._files import expanded, sync
from lvae_jax.models import VAE, HierarchicalVAE, LadderVAE

FORMAT = 1
"""The folder's format; increased if older versions of lvae_jax could not read a new folder."""

CLASSES: dict[str, type[HierarchicalVAE]] = {"LadderVAE": LadderVAE, "VAE": VAE}
"""The classes that a folder may name."""

DTYPES = {
    "BOOL": np.dtype(bool),
    "I8": np.dtype("int8"),
    "I16": np.dtype("int16"),
    "I32": np.dtype("int32"),
    "I64": np.dtype("int64"),
    "U8": np.dtype("uint8"),
    "U16": np.dtype("uint16"),
    "U32": np.dtype("uint32"),
    "U64": np.dtype("uint64"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(jnp.bfloat16),
    "F32": np.dtype("float32"),
    "F64": np.dtype("float64"),
    "C64": np.dtype("complex64"),
}
"""The dtypes that a folder may hold, by the names of safetensors."""

_OF_FLAX = ("parent", "name")
_NOT_STORED = "not stored"


class ModelFolderError(ValueError):
    """A folder that `load` cannot use: damaged, incomplete, not a model's, or of a newer format."""


def save(
    folder: str | os.PathLike[str],
    model: HierarchicalVAE,
    variables: Any,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes a model and its variables to a folder, which is created if it does not exist.

    `model.json` holds the class, every field and the metadata; `weights.safetensors` the parameters
    and batch statistics by names such as `params/generative/mlps_0/Linear_0/Dense_0/kernel`. Fields
    that are functions or your own objects are not stored; pass them to `load`.

    Args:
      folder: where to write; an existing model is replaced, once the new one is on the disk.
      model: a `LadderVAE` or a `VAE`.
      variables: the variables for evaluation, batch statistics included
        (`evaluation.reestimate_batch_stats`).
      metadata: anything that JSON can hold, for readers of `model.json`.

    Raises:
      ValueError: the model is of another class, the variables are not this model's, one of them has
        a dtype that the file cannot hold, the metadata cannot be written as JSON, or the folder
        is in an unknown home directory.
      OSError: the folder cannot be written.

    Example:
      >>> import tempfile
      >>> model = VAE(data_dim=5, latent_sizes=(3,), hidden_sizes=(4,), batch_norm=False)
      >>> keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
      >>> variables = model.init(keys, jnp.zeros((1, 5)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(folder, model, variables, metadata={"trained on": "nothing yet"})
      ...     same_model, same_variables = load(folder)
      >>> same_model == model
      True
    """
    if CLASSES.get(type(model).__name__) is not type(model):
        raise ValueError(
            f"save stores models of the classes {', '.join(CLASSES)}, not {type(model).__name__}; "
            "give the ladder within it and that ladder's variables"
        )
    weights = {name: np.asarray(jax.device_get(leaf)) for name, leaf in _flat(variables).items()}
    difference = _difference(weights, model)
    if difference:
        raise ValueError(
            f"these are not the model's variables: {difference}; give its parameters and batch "
            "statistics, as evaluation.reestimate_batch_stats returns them, in the dtypes of init"
        )
    for name, weight in weights.items():
        if weight.dtype not in DTYPES.values():
            raise ValueError(
                f"{name} is {weight.dtype}, which weights.safetensors cannot hold; give the model "
                "float32 parameters"
            )
    described = {
        "format": FORMAT,
        "class": type(model).__name__,
        "fields": {name: _stored(getattr(model, name)) for name in _field_names(type(model))},
        "metadata": {} if metadata is None else metadata,
    }
    try:
        # As it will be read: tuples become lists, and what JSON cannot hold is an error.
        described = json.loads(json.dumps(described, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the model's fields or metadata cannot be written as JSON: {error}"
        ) from error
    # np.ascontiguousarray would add an axis to an array that has none.
    contiguous = {name: np.asarray(weight, order="C") for name, weight in weights.items()}
    encoded = safetensors.numpy.save(contiguous)
    described["sha256"] = _checksum(described, encoded)
    path = expanded(folder, ModelFolderError)
    path.mkdir(parents=True, exist_ok=True)
    written = [
        _write_beside(path / "weights.safetensors", encoded),
        _write_beside(path / "model.json", (json.dumps(described, indent=2) + "\n").encode()),
    ]
    for temporary in written:
        temporary.replace(temporary.with_suffix(""))
    sync(path)


def load(folder: str | os.PathLike[str], **fields: Any) -> tuple[HierarchicalVAE, dict[str, Any]]:
    """Reads a model and its variables from a folder made by `save`, or from a trained run.

    Args:
      folder: a folder made by `save`, or a run's folder, whose `model/` is read.
      **fields: the model's fields that are not stored, functions and objects, such as
        `activation=jax.nn.gelu`.

    Returns:
      The model and its variables, on the default device: {"params", "batch_stats"}, ready for
      `evaluation` and `model.apply`.

    Raises:
      ModelFolderError: there is no model in the folder, it is damaged, or of a newer format; or a
        field that is not stored was not given.

    Example:
      See `save`.
    """
    path = _model_folder(expanded(folder, ModelFolderError))
    described = _read_json(path / "model.json")
    model_class = _class_of(described, path)
    encoded = _read(path / "weights.safetensors")
    if _checksum(described, encoded) != described.get("sha256"):
        raise ModelFolderError(
            f"{path} is damaged: model.json and weights.safetensors do not match the checksum; "
            "copy or save the model again"
        )
    try:
        weights = _arrays(encoded)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelFolderError(
            f"{path / 'weights.safetensors'} is damaged ({error}); copy or save the model again"
        ) from error
    model = _make(model_class, described.get("fields"), fields, path)
    try:
        difference = _difference(weights, model)
    except Exception as error:  # of any kind: the fields come from a foreign folder
        raise _no_model(path, fields, error) from error
    if difference and fields:
        raise ModelFolderError(
            f"{path} holds another model: {difference}; give load the {', '.join(fields)} that the "
            "model was made with"
        )
    if difference:
        raise ModelFolderError(
            f"{path} is damaged: {difference}, by model.json; copy or save the model again"
        )
    return model, traverse_util.unflatten_dict(
        {name: jnp.asarray(weight) for name, weight in weights.items()}, sep="/"
    )


def _arrays(encoded: bytes) -> dict[str, np.ndarray]:
    """The arrays of weights.safetensors; `safetensors.numpy.load` does not read bfloat16."""
    return {
        name: np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in safetensors.deserialize(encoded)
    }


def _model_folder(folder: Path) -> Path:
    """The folder itself, or the `model` folder of a run."""
    for path in (folder, folder / "model"):
        if (path / "model.json").exists():
            return path
    replicas = sorted(
        (path.parent for path in folder.glob("model/*/model.json")), key=lambda path: path.name
    )
    if replicas:
        raise ModelFolderError(
            f"{folder} holds {len(replicas)} models, one per replica; give one of them, such as "
            f"{replicas[0]}"
        )
    if not folder.is_dir():
        raise ModelFolderError(
            f"{folder} is not a folder; give one made by lvae_jax.save, or a run's"
        )
    raise ModelFolderError(
        f"{folder} holds no model.json; give a folder made by lvae_jax.save, or a finished run's"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFolderError(
            f"cannot read {path} ({error.strerror or error}); copy or save the model again"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(_read(path))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ModelFolderError(
            f"{path} is damaged ({error}); copy or save the model again"
        ) from error
    if not isinstance(described, dict) or "format" not in described:
        raise ModelFolderError(f"{path} was not written by lvae_jax.save; give another folder")
    return described


def _class_of(described: dict[str, Any], path: Path) -> type[HierarchicalVAE]:
    version, name = described["format"], described.get("class")
    if not isinstance(version, int) or version > FORMAT:
        raise ModelFolderError(
            f"{path} has format {version!r}, and this version of lvae_jax reads up to {FORMAT}; "
            "install a newer lvae_jax"
        )
    if not isinstance(name, str) or name not in CLASSES:
        raise ModelFolderError(
            f"{path} holds a model of class {name!r}; this version of lvae_jax knows "
            f"{', '.join(CLASSES)}"
        )
    return CLASSES[name]


def _make(
    model_class: type[HierarchicalVAE], stored: Any, given: dict[str, Any], path: Path
) -> HierarchicalVAE:
    """The model with the stored fields and the given ones."""
    names = _field_names(model_class)
    if not isinstance(stored, dict) or stored.keys() - set(names):
        raise ModelFolderError(
            f"{path / 'model.json'} has fields that {model_class.__name__} does not know; "
            "it may be of a newer lvae_jax"
        )
    not_stored = {name: v[_NOT_STORED] for name, v in stored.items() if _is_not_stored(v)}
    missing = [f"{name} ({not_stored[name]})" for name in not_stored if name not in given]
    if missing:
        raise ModelFolderError(
            f"{path} does not store {', '.join(missing)}; give load what the model was made with, "
            "by the name of the field"
        )
    excess = [name for name in given if name not in not_stored]
    if excess:
        raise ModelFolderError(
            f"{path}: load was given {', '.join(excess)}, which the folder stores or the model "
            "does not have; leave it out"
        )
    try:
        return model_class(**{name: _tuples(value) for name, value in stored.items()} | given)
    except (TypeError, ValueError) as error:
        raise _no_model(path, given, error) from error


def _no_model(path: Path, given: dict[str, Any], error: Exception) -> ModelFolderError:
    with_given = f" with the given {', '.join(given)}" if given else ""
    return ModelFolderError(f"{path / 'model.json'}{with_given} describes no model: {error}")


def _field_names(model_class: type[HierarchicalVAE]) -> list[str]:
    return [f.name for f in dataclasses.fields(model_class) if f.name not in _OF_FLAX]


def _stored(value: Any) -> Any:
    """A field as a JSON value; for a function or an object, only its name."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) in (tuple, list):  # an object of your own may be a NamedTuple
        return [_stored(entry) for entry in value]
    return {_NOT_STORED: getattr(value, "__qualname__", type(value).__qualname__)}


def _is_not_stored(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {_NOT_STORED}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _flat(variables: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(unfreeze(variables), sep="/")


def _difference(weights: dict[str, np.ndarray], model: HierarchicalVAE) -> str:
    """The first difference between weights and a model's; empty if there is none."""

    def init() -> Any:
        keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
        return model.init(keys, jnp.zeros((1, model.data_dim), jnp.float32))

    expected = _flat(jax.eval_shape(init))
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            return f"{name} is missing"
        if name not in expected:
            return f"the model has no {name}"
        now, then = weights[name], expected[name]
        if (now.shape, now.dtype) != (then.shape, then.dtype):
            return (
                f"{name} is {now.dtype} of shape {list(now.shape)} and should be {then.dtype} of "
                f"shape {list(then.shape)}"
            )
    return ""


def _checksum(described: dict[str, Any], encoded: bytes) -> str:
    """The checksum of a folder: of the weights, and of model.json without the checksum itself."""
    rest = {name: value for name, value in described.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode() + encoded).hexdigest()


def _write_beside(path: Path, content: bytes) -> Path:
    """Writes what is to replace a file into another one beside it, and returns that."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    sync(temporary)
    return temporary
