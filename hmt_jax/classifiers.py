"""Classifiers as pytrees, and their restrictions to subspaces.

A classifier is any callable pytree from images (N, height, width, channels) in [0, 1] to logits (N, L). Its parameters
travel as data: two networks of one architecture share every compiled function.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, linen, nnx
from jax.interpreters import partial_eval

from hmt_jax import _programs
from hmt_jax._programs import NewFunction
from hmt_jax.solvers import Restriction
from hmt_jax.subspaces import Subspace

Classifier = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Module:
    """A callable pytree apart: the arrays as data, all else (activation functions, flags) as its static structure."""

    arrays: list[jax.Array]
    structure: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, images: jax.Array) -> jax.Array:
        treedef, others, _ = self.structure
        arrays = iter(self.arrays)
        return jax.tree.unflatten(treedef, [next(arrays) if leaf is _ARRAY else leaf for leaf in others])(images)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Linen:
    """A Linen module and its variables. Equal modules share compiled code; their bound methods would not be equal."""

    module: linen.Module = dataclasses.field(metadata={"static": True})
    variables: Any

    def __call__(self, images: jax.Array) -> Any:
        try:
            return self.module.apply(self.variables, images)
        except (errors.ModifyScopeVariableError, errors.InvalidRngError) as error:
            reason = str(error).partition(" (http")[0].rstrip(".")
            raise ValueError(
                f"the classifier is in training mode ({reason}): make its module with use_running_average=True for "
                "BatchNorm and deterministic=True for Dropout"
            ) from error


class _LogitsError(ValueError):
    """Of a classifier: not to be taken for an error within another one that is around it."""


class _Array:
    """Stands for an array in the static structure of a module."""


_ARRAY = _Array()


def as_pytree(classifier: Classifier) -> Classifier:
    """The classifier as a callable pytree with nothing but arrays for leaves, fit to be an argument of `jax.jit`.

    Takes plain functions, Flax NNX modules, bound Flax Linen modules, `jax.tree_util.Partial`s, Equinox modules and
    any other callable pytree. A plain function, or another object that is no pytree, is compiled anew in every call,
    because what it closes over is compiled in and may have changed; at the end of the call its programs are dropped.
    `jax.tree_util.Partial(function, parameters)`, with parameters as data, is compiled once: its programs, about
    20 MB for a small network, are kept for all calls with the same function, whatever its parameters. So define that
    function once, and not anew in a loop. A function of `jax.jit` is compiled once, too, and goes on by what it closed
    over first.

    Raises:
      TypeError: if it can't be called, or is a module of PyTorch.
      ValueError: if a module is in training mode, where predictions depend on the batch or on chance.
    """
    if not callable(classifier):
        remedy = "; give its first item" if isinstance(classifier, tuple) and callable(classifier[0]) else ""
        raise TypeError(
            f"classifier must be callable on images (N, height, width, channels), got {type(classifier)}{remedy}"
        )
    if any(base.__module__.startswith("torch.nn.") for base in type(classifier).__mro__):
        raise TypeError(
            "classifier is a PyTorch module, which JAX can't differentiate: give hmt_jax.models.from_torch(name, "
            "module.state_dict(), ...), with the name of its architecture"
        )
    if isinstance(classifier, linen.Module):
        return _linen_classifier(classifier)
    if isinstance(classifier, nnx.Module):
        _check_evaluation_mode(classifier)
        return jax.tree_util.Partial(_call_nnx, *nnx.split(classifier))
    leaves, treedef = jax.tree.flatten(classifier)
    if jax.tree_util.all_leaves([classifier]):
        return as_new_function(classifier)
    _check_inference_mode(classifier)
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    if len(arrays) == len(leaves):
        return classifier
    others = tuple(_ARRAY if _is_array(leaf) else leaf for leaf in leaves)
    # Numbers that are equal may not be the same: True and 1, or 0.0 and -0.0.
    numbers = tuple(repr(leaf) for leaf in others if isinstance(leaf, int | float | complex))
    return _Module(arrays, (treedef, others, numbers))


def as_new_function(function: Callable) -> Callable:
    """A callable pytree that JAX takes for another function in every call, but for what `jax.jit` has made."""
    return jax.tree_util.Partial(function) if isinstance(function, jax.stages.Wrapped) else NewFunction(function)


def restrict(classifier: Classifier, image: jax.Array, subspace: Subspace) -> Restriction:
    """The restriction g(z) = classifier(image + embed(z)) of a classifier around one image: (d,) to (L,).

    The logits of an image with a NaN or infinite pixel are NaN, whatever the classifier makes of it.

    Raises:
      ValueError: as `logits_of`.
    """
    is_finite = jnp.isfinite(image).all()

    def restriction(z):
        logits = logits_of(classifier, (image + subspace.embed(z))[None])
        return jnp.where(is_finite, logits[0], jnp.nan)

    return restriction


def logits_of(classifier: Classifier, images: jax.Array) -> jax.Array:
    """The logits (N, L) that a classifier gives images (N, height, width, channels).

    Raises:
      ValueError: if it can't be applied to images of this shape, or gives anything but an array (N, L) in floating
        point with L at least 2.
    """
    try:
        logits = classifier(images)
    except _LogitsError:
        raise
    except (TypeError, ValueError) as error:  # of JAX, that of products and that of convolutions
        reason = str(error).splitlines()[0].rstrip(".")
        raise _LogitsError(
            f"classifier can't be applied to images of shape (N, {', '.join(map(str, images.shape[1:]))}): {reason}; "
            f"{_remedy(classifier, images, error)}"
        ) from error
    if not isinstance(logits, jax.Array | np.ndarray):
        raise _LogitsError(
            f"classifier must give one array, its logits (N, L), got {type(logits).__name__}: wrap it in a function "
            "that returns them alone"
        )
    if logits.ndim != 2 or logits.shape[0] != len(images):
        raise _LogitsError(
            f"classifier must map images (N, height, width, channels) to logits (N, L); for N = {len(images)} it gave "
            f"{logits.shape}"
        )
    if logits.shape[1] < 2:
        raise _LogitsError(
            "classifier has one class only, so that no label can change; give a binary classifier two logits, such as "
            "(0, logit)"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise _LogitsError(f"classifier must give logits in floating point, before any argmax, got {logits.dtype}")
    return jnp.asarray(logits)


# Traces are kept, for all networks of one architecture.
shape_of_logits = _programs.jit(logits_of).eval_shape


def _remedy(classifier, images, error) -> str:
    """What helps where a classifier could not be applied."""
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return "compute with jax.numpy, since NumPy can't be differentiated"
    if isinstance(error, jax.errors.TracerBoolConversionError):
        return "choose by jax.numpy.where, since values are not known when it is compiled"
    if isinstance(error, jax.errors.ConcretizationTypeError):
        return "leave out float(), int() and item(), since values are not known when it is compiled"
    try:
        inspect.signature(classifier).bind(images)
    except TypeError:  # it takes something else, or more
        return "give a function of images alone, jax.tree_util.Partial(function, parameters) for instance"
    except ValueError:  # it has no signature that Python knows
        pass
    return "give it images of the shape that it was made for"


def _call_nnx(graphdef, state, images):
    # Variables of its own, which a call may change within any transformation.
    module = nnx.merge(graphdef, state, copy=True)
    before = _changed_by_training(module)
    logits = module(images)
    is_written = any(old is not new for old, new in zip(before, _changed_by_training(module), strict=True))
    if is_written and _is_training(graphdef, state, images):
        raise _LogitsError(
            "the classifier is in training mode: a call updates its batch statistics, or draws random numbers; give a "
            "function that calls it with what turns that off, such as train=False"
        )
    return logits


def _is_training(graphdef, state, images) -> bool:
    """Whether random numbers reach the logits, or batch statistics do not: some calls write back what they read."""
    keys, statistics, rest = nnx.split_state(state, nnx.RngState, nnx.BatchStat, ...)

    def call(keys, statistics):
        return nnx.merge(graphdef, keys, statistics, rest, copy=True)(images)

    program = jax.make_jaxpr(call)(keys, statistics).jaxpr
    _, is_used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    num_keys = len(jax.tree.leaves(keys))
    return any(is_used[:num_keys]) or not all(is_used[num_keys:])


def _changed_by_training(module: nnx.Module) -> list[jax.Array]:
    return jax.tree.leaves(nnx.state(module, nnx.filterlib.Any(nnx.BatchStat, nnx.RngState)))


def _linen_classifier(module: linen.Module) -> Classifier:
    if module.scope is None:
        raise ValueError(
            "a Flax Linen module has no parameters of its own: give module.bind(variables), or "
            "jax.tree_util.Partial(module.apply, variables)"
        )
    return _Linen(*module.unbind())


def _check_evaluation_mode(module: nnx.Module):
    for path, part in nnx.iter_modules(module):
        if getattr(part, "use_running_average", None) is False or getattr(part, "deterministic", None) is False:
            name = ".".join(map(str, path)) or type(part).__name__
            raise ValueError(f"the classifier's {name} is in training mode: call classifier.eval() first")


def _check_inference_mode(classifier):
    """Equinox modules that are something else in training have a leaf `inference`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(classifier):
        if leaf is False and path[-1] == jax.tree_util.GetAttrKey("inference"):
            name = jax.tree_util.keystr(path[:-1], simple=True, separator=".") or type(classifier).__name__
            raise ValueError(
                f"the classifier's {name} is in training mode: give equinox.nn.inference_mode(classifier) instead"
            )


def _is_array(leaf) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
