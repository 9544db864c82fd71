"""Classifiers in files: safetensors, with a JSON header that says what the arrays are."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hmt_jax.models._create import create
from hmt_jax.models._normalization import Normalized

_HEADER = "hmt_jax"


def save(file: str | os.PathLike, classifier: Normalized, *, architecture: Mapping[str, Any], **header: Any) -> None:
    """Writes a classifier made by `create` or `from_torch` to a safetensors file, in one piece or not at all.

    Arrays have dotted names such as `network.conv1.kernel`, in Flax's layout, with the normalisation as `mean` and
    `std`. The file opens with the safetensors library alone.

    Args:
      file: its path.
      classifier: the classifier.
      architecture: the keyword arguments that make such a classifier with `create`, less the statistics:
        `{"name": "lenet", "image_shape": [28, 28, 1], "num_classes": 10}`.
      **header: what else JSON can hold, kept beside `architecture` in the file's metadata.
    """
    from safetensors.numpy import save_file

    # safetensors writes arrays that are not contiguous as if they were.
    arrays = {_name(path): np.ascontiguousarray(variable[...]) for path, variable in _variables(classifier)}
    temporary = pathlib.Path(f"{os.fspath(file)}.part")
    save_file(arrays, temporary, metadata={_HEADER: json.dumps({"architecture": dict(architecture), **header})})
    temporary.replace(file)


def load(file: str | os.PathLike) -> tuple[Normalized, dict[str, Any]]:
    """The classifier and the header of a file that `save` wrote.

    Raises:
      ValueError: if the file is not one of `save`, or its arrays do not fit its architecture.
    """
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        metadata = tensors.metadata() or {}
        if _HEADER not in metadata:
            raise ValueError(f"{file} was not written by hmt_jax.models.save: its metadata have no {_HEADER!r} entry")
        arrays = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a dict)
    header = json.loads(metadata[_HEADER])
    architecture = {**header["architecture"], "image_shape": tuple(header["architecture"]["image_shape"])}
    classifier = create(**architecture, key=jax.random.key(0), mean=arrays["mean"], std=arrays["std"])
    variables = _variables(classifier)
    if {_name(p): v.shape for p, v in variables} != {name: array.shape for name, array in arrays.items()}:
        raise ValueError(f"the arrays of {file} do not fit its architecture {architecture}")
    nnx.update(classifier, nnx.from_flat_state([(p, v.replace(jnp.asarray(arrays[_name(p)]))) for p, v in variables]))
    return classifier, header


def _variables(classifier):
    return nnx.to_flat_state(nnx.state(classifier))


def _name(path) -> str:
    return ".".join(map(str, path))
