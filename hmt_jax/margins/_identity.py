"""Checksums that tell classifiers and subspaces apart, and that are the same in every process."""

import functools
import hashlib
import re
from typing import Any

import jax
import jaxlib
import numpy as np

from hmt_jax import _programs
from hmt_jax.classifiers import Classifier, traced_logits_of
from hmt_jax.models import TorchClassifier

ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")  # of an object, as Python writes it
_SET = re.compile(r"\{([^{}]*)\}")  # the items of a set, in an order that differs between processes
_CALLBACK = re.compile(r"index = \d+ : ui64")  # its number in this process, as JAX writes it


def of_classifier(classifier: Classifier, images: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Checksums of the parameters and of the code of a classifier, as JSON can hold them.

    The code is what the classifier is lowered to for these images, with the values that a function closes over. It
    depends on the versions of JAX and on the platform, which are stored with it: only code from the same ones can be
    compared. It also depends on the backend of a PyTorch module, which is stored if there is one.

    Args:
      classifier: a classifier as `as_pytree` returns it.
      images: shape (N, height, width, channels) and dtype of images.
    """
    # Only shapes, because lowered code names the devices that hold the parameters.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), classifier)
    lowered = _logits_of_all.lower(shapes, images)
    backend = {"backend": classifier.backend_for(images.shape[1:])} if isinstance(classifier, TorchClassifier) else {}
    return {
        "num_classes": lowered.out_info.shape[1],
        "dtype": lowered.out_info.dtype.name,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(classifier)),
        "parameters_sha256": _of_leaves(classifier),
        **backend,
        "code_sha256": hashlib.sha256(_CALLBACK.sub("", lowered.as_text()).encode()).hexdigest(),
        "code_of": f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, {jax.default_backend()}",
    }


@functools.partial(_programs.jit, keep_unused=True)
def _logits_of_all(classifier, images):
    """The logits, by a program that takes all parameters, so that its code shows which of them are used."""
    return traced_logits_of(classifier, images)


def kind_of(classifier: Any) -> str:
    """The name of the user's class or function."""
    while not hasattr(classifier, "__qualname__") and hasattr(classifier, "func"):
        classifier = classifier.func  # of a Partial
    classifier = getattr(classifier, "__self__", classifier)  # of a bound method, such as that of a Linen module
    return getattr(classifier, "__qualname__", type(classifier).__qualname__)


def of_subspace(subspace: Any, dimension: int) -> dict[str, Any]:
    """The kind and the dimension of a subspace, and a checksum of all its values, as JSON can hold them."""
    structure = ADDRESS.sub("", str(jax.tree.structure(subspace)))
    structure = _SET.sub(lambda found: str(sorted(found[1].split(", "))), structure)
    kind = type(subspace).__qualname__
    return {
        "kind": kind,
        "dimension": dimension,
        "sha256": hashlib.sha256(f"{kind} {structure} {_of_leaves(subspace)}".encode()).hexdigest(),
    }


def of_images(images: np.ndarray) -> list[str]:
    """The SHA-256 of each image, in hexadecimal digits."""
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in images]


def _of_leaves(tree: Any) -> str:
    """The SHA-256 of the arrays of a tree, with their types and shapes."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
