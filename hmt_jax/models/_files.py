"""Classifiers in files: safetensors, with a JSON header that says what the arrays are."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from hmt_jax import _disk
from hmt_jax._paths import expand
from hmt_jax.models import _create
from hmt_jax.models._normalization import Normalized
from hmt_jax.models._weight_files import HEADER, REMEDIES, SAFETENSORS, RefusedError, kind_of, read_tensors, readable

# The entry of the metadata of files that `hmt_jax.save_exported` writes.
EXPORTED_HEADER = "hmt_jax_exported"


def save(file: str | os.PathLike, classifier: Normalized, *, architecture: Mapping[str, Any], **header: Any) -> None:
    """Writes a classifier made by `create` or `from_torch` to a safetensors file, in one piece or not at all.

    Arrays have dotted names such as `network.conv1.kernel`, in Flax's layout, with the normalisation as `mean` and
    `std`. The file opens with the safetensors library alone.

    Args:
      file: path of the file.
      classifier: the classifier.
      architecture: the keyword arguments with which `create` makes such a classifier, without the statistics:
        `{"name": "lenet", "image_shape": [28, 28, 1], "num_classes": 10}`.
      **header: other values that JSON can hold, kept beside `architecture` in the file's metadata.

    Raises:
      ValueError: if the architecture is incomplete, or not that of the classifier, or the file's folder does not exist.

    >>> import tempfile
    >>> import jax
    >>> architecture = {"name": "logistic", "image_shape": (2, 2, 1), "num_classes": 3}
    >>> classifier = _create.create(**architecture, key=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "logistic.safetensors")
    ...     save(file, classifier, architecture=architecture, epoch=5)
    ...     loaded, header = load(file)
    >>> header
    {'architecture': {'name': 'logistic', 'image_shape': [2, 2, 1], 'num_classes': 3}, 'epoch': 5}
    """
    file = expand("file", file)
    if not (parent := pathlib.Path(file).parent).is_dir():
        raise ValueError(f"there is no folder {parent} to write {file} into: make it first")
    _disk.write(file, to_bytes(classifier, architecture=architecture, **header))


def to_bytes(classifier: Normalized, *, architecture: Mapping[str, Any], **header: Any) -> bytes:
    """The content of the file that `save` writes."""
    # Not with safetensors' own `save_file`, whose files only their owner can read.
    from safetensors.numpy import save as serialize

    if missing := {"name", "image_shape", "num_classes"} - set(architecture):
        raise ValueError(
            f"architecture must hold name, image_shape and num_classes, but lacks {', '.join(sorted(missing))}"
        )
    # safetensors writes arrays that are not contiguous as if they were.
    arrays = {_name(path): np.ascontiguousarray(variable[...]) for path, variable in _variables(classifier)}
    _, variables = _outline(architecture)
    if not _fit(variables, arrays):
        raise ValueError(
            f"the classifier is not of the architecture {dict(architecture)}: pass the arguments that `create` made it "
            "with, including num_hidden"
        )
    return serialize(arrays, metadata={HEADER: json.dumps({"architecture": dict(architecture), **header})})


def _outline(architecture: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """The structure of a network, and the path and the variable, without its array, of each dotted name."""
    try:
        graphdef, abstract = nnx.split(_create.abstract(**architecture))
    except TypeError as error:
        raise ValueError(
            f"the architecture {dict(architecture)} has an option that it does not take: {error}"
        ) from None
    return graphdef, {_name(("network", *path)): (path, variable) for path, variable in nnx.to_flat_state(abstract)}


def _fit(variables, arrays) -> bool:
    """Whether arrays are those of a network's variables, with the statistics beside them."""
    return {name: variable.shape for name, (_, variable) in variables.items()} == {
        name: array.shape for name, array in arrays.items() if name not in {"mean", "std"}
    }


def load(file: str | os.PathLike) -> tuple[Normalized, dict[str, Any]]:
    """The classifier and the header of a file that `save` wrote.

    Args:
      file: path of the file.

    Raises:
      ValueError: if the file can't be read or was not written by `save`, or its arrays do not fit its architecture.

    >>> import tempfile
    >>> import jax
    >>> architecture = {"name": "logistic", "image_shape": (2, 2, 1), "num_classes": 3}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "logistic.safetensors")
    ...     save(file, _create.create(**architecture, key=jax.random.key(0)), architecture=architecture, epoch=5)
    ...     classifier, header = load(file)
    >>> classifier(jnp.zeros((1, 2, 2, 1))).shape, header["epoch"]
    ((1, 3), 5)
    """
    from safetensors import safe_open

    path = pathlib.Path(expand("file", file))
    if (kind := kind_of(path)) != SAFETENSORS:
        remedy = REMEDIES.get(kind, "read PyTorch's weights with hmt_jax.models.from_torch(name, file, ...)")
        raise ValueError(f"{file} is {kind}, and was not written by hmt_jax.models.save: {remedy}")
    with readable(file), safe_open(path, framework="numpy") as tensors:
        metadata = tensors.metadata() or {}
        if EXPORTED_HEADER in metadata:
            raise RefusedError(f"{file} was written by hmt_jax.save_exported: read it with hmt_jax.load_exported")
        if HEADER not in metadata:
            raise RefusedError(f"{file} was not written by hmt_jax.models.save: its metadata has no {HEADER!r} entry")
        header = json.loads(metadata[HEADER])
        if not isinstance(header, dict) or not isinstance(header.get("architecture"), dict):
            raise RefusedError(f"{file} has no architecture in its metadata: write it again with hmt_jax.models.save")
        arrays = read_tensors(file, tensors)
    with readable(file):
        graphdef, variables = _outline(header["architecture"])
    if not _fit(variables, arrays) or not {"mean", "std"} <= set(arrays):
        raise ValueError(f"the arrays of {file} do not fit its architecture {header['architecture']}")
    for name in variables:
        if not jnp.issubdtype(arrays[name].dtype, jnp.floating):
            raise ValueError(f"{name} of {file} holds {arrays[name].dtype}, and weights must be floating point")
    with readable(file):
        _create.check_statistics(header["architecture"]["image_shape"], arrays["mean"], arrays["std"])
    state = nnx.from_flat_state([(p, v.replace(jnp.asarray(arrays[name]))) for name, (p, v) in variables.items()])
    classifier = _create.in_evaluation_mode(nnx.merge(graphdef, state), arrays["mean"], arrays["std"])
    return classifier, header


def _variables(classifier):
    return nnx.to_flat_state(nnx.state(classifier))


def _name(path) -> str:
    return ".".join(map(str, path))
