"""Classifiers as functions of `jax.export`, which need none of the code that they were made from.

A network is exported as two functions, for any number of images: one computes logits and what gradients need; the
other computes gradients. The derivative that `jax.export` itself keeps would repeat the forward pass for the gradient
of every class. Exported functions have no batching rules: here `jax.vmap` becomes one call with more images or
gradients.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from hmt_jax import _devices
from hmt_jax._checks import ImageShape
from hmt_jax._misc import promoted
from hmt_jax._paths import reason
from hmt_jax.classifiers import Classifier, differentiated, logits_of

PLATFORMS = ("cpu", "cuda", "tpu")


class Functions(NamedTuple):
    """The functions of a network, each a `jax.export.Exported` or its serialization.

    Attributes:
      forward: from arrays and images (N, height, width, channels) to logits (N, L), what `backward` needs of each
        image, a list of (N, ...), and what it needs of the arrays, a list.
      backward: from these two lists and K gradients with respect to the logits (K, N, L) to those with respect to the
        images.
    """

    forward: Any
    backward: Any


@dataclasses.dataclass(frozen=True)
class Network:
    """The functions of a network. Networks with equal serializations are equal, and share compiled programs."""

    image_shape: ImageShape
    dtype: str  # of the images
    serialized: Functions = dataclasses.field(repr=False)
    functions: Functions = dataclasses.field(repr=False, compare=False)

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms that it was exported for."""
        return tuple(self.functions.forward.platforms)

    def forward(self, arrays: Any, images: jax.Array) -> tuple[jax.Array, Any, Any]:
        """Logits (N, L), and what `backward` needs: of each image, and of the arrays."""

        def batched(axis_size, is_mapped, arrays, images):
            if any(is_mapped[0]):
                results = _one_by_one(self.forward, is_mapped, arrays, images)
                return results, jax.tree.map(lambda _: True, results)
            logits, of_images, of_arrays = self.forward(arrays, _joined(images))
            results = *(_split(axis_size, tree) for tree in (logits, of_images)), of_arrays
            return results, (True, [True] * len(of_images), [False] * len(of_arrays))

        return _with_rule(self.functions.forward.call, batched)(arrays, images)

    def backward(self, of_images: Any, of_arrays: Any, gradients: jax.Array) -> jax.Array:
        """Gradients (K, N, height, width, channels) by the images, from those by the logits (K, N, L)."""

        def batched(axis_size, is_mapped, of_images, of_arrays, gradients):
            if any(is_mapped[1]):
                return _one_by_one(self.backward, is_mapped, of_images, of_arrays, gradients), True
            if not any(is_mapped[0]):
                return _split(axis_size, self.backward(of_images, of_arrays, _joined(gradients))), True
            arguments = [*of_images, gradients]
            *of_images, gradients = (
                array if mapped else jnp.broadcast_to(array, (axis_size, *array.shape))
                for array, mapped in zip(arguments, [*is_mapped[0], is_mapped[2]], strict=True)
            )
            joined = jax.vmap(_joined, 1)(gradients)  # (K, V N, L)
            results = self.backward(_joined(of_images), of_arrays, joined)
            return jax.vmap(functools.partial(_split, axis_size), 0, 1)(results), True

        return _with_rule(self.functions.backward.call, batched)(of_images, of_arrays, gradients)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ExportedClassifier:
    """A classifier that was loaded from a file: its arrays as data, its functions as static structure."""

    arrays: list[jax.Array]
    network: Network = dataclasses.field(metadata={"static": True})

    def __call__(self, images: jax.Array) -> jax.Array:
        shape = self.network.image_shape
        if jnp.shape(images)[1:] != shape or jnp.ndim(images) != 4:
            raise ValueError(
                f"the classifier was exported for images of shape (N, {', '.join(map(str, shape))}), got "
                f"{jnp.shape(images)}"
            )
        return _compiled_logits(self.network, self.arrays, jnp.asarray(images).astype(self.network.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logits(network, arrays, images):
    return network.forward(arrays, images)[0]


def _forward(network, arrays, images):
    if any(array.perturbed for array in arrays):
        raise ValueError(
            "a classifier of load_exported can be differentiated with respect to images only: train the network that "
            "it was exported from"
        )
    logits, of_images, of_arrays = network.forward([array.value for array in arrays], images.value)
    return logits, (of_images, of_arrays)


def _backward(network, residuals, gradient):
    return None, network.backward(*residuals, gradient[None])[0]


_logits.defvjp(_forward, _backward, symbolic_zeros=True)
# Compiled, so that what only gradients need is not computed for logits alone.
_compiled_logits = jax.jit(_logits, static_argnums=0)


def _with_rule(function: Callable, rule: Callable) -> Callable:
    """The function, batched by a rule as `jax.custom_batching.custom_vmap` describes it."""
    # A function of its own, because attributes of methods can't be set.
    mapped = jax.custom_batching.custom_vmap(lambda *arguments: function(*arguments))
    mapped.def_vmap(rule)
    return mapped


def _one_by_one(function: Callable, is_mapped: Any, *arguments: Any) -> Any:
    """The batched results of a function that is called once for each item of the mapped axis."""
    axes = jax.tree.map(lambda mapped: 0 if mapped else None, tuple(is_mapped))
    return jax.vmap(jax.custom_batching.sequential_vmap(function), axes)(*arguments)


def _joined(tree):
    """The first two axes of all arrays as one."""
    return jax.tree.map(lambda array: array.reshape(array.shape[0] * array.shape[1], *array.shape[2:]), tree)


def _split(axis_size, tree):
    """The inverse of `_joined`."""
    return jax.tree.map(lambda array: array.reshape(axis_size, array.shape[0] // axis_size, *array.shape[1:]), tree)


def export(classifier: Classifier, image_shape: ImageShape) -> tuple[list[np.ndarray], Network, int]:
    """The arrays of a classifier, the network without them, and the number of its classes.

    Everything is computed in the highest precision, because that can't be chosen later.

    Args:
      classifier: a classifier as `as_pytree` returns it.
      image_shape: (height, width, channels).

    Raises:
      ValueError: if the classifier can't be applied to such images, differentiated or exported.
    """
    with _portable():
        arrays, network, image = _taken_apart(classifier, image_shape)
        with differentiated(classifier, jax.ShapeDtypeStruct((1, *image.shape), image.dtype)):
            traced, (logits, pull_back) = jax.make_jaxpr(
                lambda arrays, image: jax.vjp(functools.partial(network, arrays), image), return_shape=True
            )(arrays, image)
        try:
            serialized = _serialized(traced, pull_back, arrays, image, logits)
        except Exception as error:
            raise ValueError(
                f"the classifier can't be exported: {reason(error)}; compute with functions of jax.numpy and jax.lax "
                "alone, without callbacks to Python"
            ) from error
    return arrays, deserialized(image_shape, str(image.dtype), serialized), logits.shape[0]


def deserialized(image_shape: ImageShape, dtype: str, serialized: Functions) -> Network:
    """The network with these functions. If they can't be read, JAX raises an error of any type."""
    functions = Functions(*(jax.export.deserialize(bytearray(function)) for function in serialized))
    for function in functions:
        function.mlir_module()  # otherwise it would be read, and refused, only when it is compiled
    return Network(image_shape, dtype, serialized, functions)


def _taken_apart(classifier, image_shape) -> tuple[list[np.ndarray], Callable, jax.ShapeDtypeStruct]:
    """The arrays of a classifier; its function, from arrays and an image to logits (L,); and the image's type."""
    leaves, treedef = jax.tree.flatten(classifier)
    impls = [jax.random.key_impl(leaf) if _is_key(leaf) else None for leaf in leaves]
    numbers = [leaf if impl is None else jax.random.key_data(leaf) for leaf, impl in zip(leaves, impls, strict=True)]
    arrays = [np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in numbers]
    floating = [array.dtype for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
    image = jax.ShapeDtypeStruct(image_shape, functools.reduce(promoted, floating, np.dtype(np.float32)))

    def logits_of_one(arrays, image):
        leaves = [
            array if impl is None else jax.random.wrap_key_data(array, impl=impl)
            for array, impl in zip(arrays, impls, strict=True)
        ]
        return logits_of(jax.tree.unflatten(treedef, leaves), image[None])[0]

    traced = jax.make_jaxpr(logits_of_one)(arrays, image)

    def network(arrays, image):
        own, closed_over = arrays[: len(leaves)], arrays[len(leaves) :]
        return jax.core.eval_jaxpr(traced.jaxpr, closed_over, *own, image)[0]

    return arrays + [np.asarray(array) for array in traced.consts], network, image


def _serialized(traced, pull_back, arrays, image, logits) -> Functions:
    """The serialized functions of a network.

    Args:
      traced: the program that computes logits and their `pull_back` for one image, from arrays and an image.
      pull_back, arrays, image, logits: the structures, shapes and types of its results and arguments.
    """
    leaves, structure = jax.tree.flatten(pull_back)
    is_of_image = _depends(traced.jaxpr, [False] * len(arrays) + [True])[1:]

    def parts(leaves):
        return (
            [leaf for leaf, of_image in zip(leaves, is_of_image, strict=True) if of_image],
            [leaf for leaf, of_image in zip(leaves, is_of_image, strict=True) if not of_image],
        )

    def forward(arrays, images):
        def of_one(image):
            logits, *leaves = jax.core.eval_jaxpr(traced.jaxpr, traced.consts, *arrays, image)
            return logits, *parts(leaves)

        return jax.vmap(of_one, out_axes=(0, 0, None))(images)

    def backward(of_images, of_arrays, gradients):
        def of_one(of_image, gradient):
            each = {True: iter(of_image), False: iter(of_arrays)}
            return jax.tree.unflatten(structure, [next(each[of_image]) for of_image in is_of_image])(gradient)[0]

        of_every_class = jax.vmap(of_one, (None, 0))
        return jax.vmap(of_every_class, (0, 1), 1)(of_images, gradients)

    num_images, num_gradients = jax.export.symbolic_shape("n, k")

    def many(array, *lengths):
        return jax.ShapeDtypeStruct((*lengths, *array.shape), array.dtype)

    of_image, of_arrays = parts(leaves)
    of_images = [many(leaf, num_images) for leaf in of_image]
    of_gradients = many(logits, num_gradients, num_images)

    def serialized(platforms):
        def export(function, *arguments):
            return bytes(jax.export.export(jax.jit(function), platforms=platforms)(*arguments).serialize())

        return Functions(
            export(forward, [many(array) for array in arrays], many(image, num_images)),
            export(backward, of_images, of_arrays, of_gradients),
        )

    try:
        return serialized(PLATFORMS)
    except NotImplementedError:  # for one of them
        return serialized((jax.export.default_export_platform(),))


def _depends(jaxpr: Jaxpr, is_given: Sequence[bool]) -> list[bool]:
    """Whether the results of a program depend on the given ones among its arguments."""
    known = {variable for variable, given in zip(jaxpr.invars, is_given, strict=True) if given}

    def depends(variables):
        return [not isinstance(variable, Literal) and variable in known for variable in variables]

    for equation in jaxpr.eqns:
        if any(given := depends(equation.invars)):
            inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
            results = [True] * len(equation.outvars) if inner is None else _depends(inner.jaxpr, given)
            known.update(result for result, is_known in zip(equation.outvars, results, strict=True) if is_known)
    return depends(jaxpr.outvars)


@contextlib.contextmanager
def _portable() -> Iterator[None]:
    """A context in which exports are right on every platform, exact, and free of the paths of source files.

    Without these paths, exports of one architecture by two scripts are equal, and share programs.
    """
    limit = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        with _devices.for_all_platforms(), jax.default_matmul_precision("highest"):
            yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
