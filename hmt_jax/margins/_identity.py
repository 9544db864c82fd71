"""Checksums that tell classifiers and subspaces apart, and that are the same in every process."""

import hashlib
import re
from typing import Any

import jax
import numpy as np

from hmt_jax.classifiers import Classifier, traced_logits_of

# What differs between processes: addresses of objects, and the numbers of callbacks.
_OF_THIS_PROCESS = re.compile(r"0x[0-9a-f]{6,}|index = \d+")


def of_classifier(classifier: Classifier, images: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """The kind of a classifier, and checksums of its parameters and of its code, as JSON can hold them.

    The code is what the classifier compiles to for these images, with the values that a function closes over. It
    depends on the version of JAX and the kind of device, which are named beside it, so it can be compared only with
    code from the same ones.

    Args:
      classifier: a classifier as `as_pytree` returns it.
      images: shape (N, height, width, channels) and dtype of images.
    """
    lowered = traced_logits_of.lower(classifier, images)
    structure = str(jax.tree.structure(classifier))
    code = _OF_THIS_PROCESS.sub("", structure + lowered.as_text())
    return {
        "kind": _kind(classifier),
        "num_classes": lowered.out_info.shape[1],
        "dtype": lowered.out_info.dtype.name,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(classifier)),
        "parameters_sha256": _of_leaves(classifier),
        "code_sha256": hashlib.sha256(code.encode()).hexdigest(),
        "code_of": f"jax {jax.__version__} {jax.default_backend()}",
    }


def of_subspace(subspace: Any, dimension: int) -> dict[str, Any]:
    """The kind and the dimension of a subspace, and a checksum of all that determines it, as JSON can hold them."""
    kind = f"{type(subspace).__module__}.{type(subspace).__qualname__}"
    structure = _OF_THIS_PROCESS.sub("", str(jax.tree.structure(subspace)))
    return {
        "kind": type(subspace).__qualname__,
        "dimension": dimension,
        "sha256": hashlib.sha256(f"{kind} {structure} {_of_leaves(subspace)}".encode()).hexdigest(),
    }


def of_images(images: np.ndarray) -> str:
    """The SHA-256 of images, in hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def _of_leaves(tree: Any) -> str:
    """The SHA-256 of the arrays of a tree, with their types and shapes."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _kind(classifier: Any) -> str:
    """The name of the user's class or function."""
    module = getattr(classifier, "module", None)
    if isinstance(classifier, jax.tree_util.Partial):
        inner = classifier.func
        return getattr(inner, "__qualname__", type(inner).__qualname__)
    own = getattr(classifier, "__wrapped__", classifier if module is None else module)
    return getattr(own, "__qualname__", type(own).__qualname__)
