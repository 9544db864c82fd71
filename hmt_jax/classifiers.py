"""Classifiers as pytrees, and their restrictions to subspaces.

A classifier is any callable pytree from images (N, height, width, channels) in [0, 1] to logits (N, L). Its parameters
are data and not constants of a compiled function, so two networks of one architecture share every such function.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, linen, nnx
from jax.interpreters import partial_eval
from jax.typing import ArrayLike

from hmt_jax import _programs
from hmt_jax._checks import as_array, check_image_shape
from hmt_jax._paths import short
from hmt_jax._programs import NewFunction
from hmt_jax.solvers import Restriction
from hmt_jax.subspaces import Subspace

__all__ = ["Classifier", "as_pytree", "logits_of", "logits_on_plane", "restrict"]

#: A callable from images (N, height, width, channels) in [0, 1] to logits (N, L).
Classifier = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Module:
    """A callable pytree taken apart: arrays as data, all else (activation functions, flags) as static structure."""

    arrays: list[jax.Array]
    structure: Any = dataclasses.field(metadata={"static": True})

    @property
    def module(self) -> Callable:
        """The callable pytree, put together again."""
        treedef, others, _ = self.structure
        arrays = iter(self.arrays)
        return jax.tree.unflatten(treedef, [next(arrays) if leaf is _ARRAY else leaf for leaf in others])

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.module(images)


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


class LogitsError(ValueError):
    """An error whose message is finished: other classifiers around the one it is about pass it on unchanged."""


class _Array:
    """A placeholder for an array in the static structure of a module."""


_ARRAY = _Array()


def as_pytree(classifier: Classifier) -> Classifier:
    """The classifier as a callable pytree whose leaves are all arrays, fit to be an argument of `jax.jit`.

    Takes plain functions, Flax NNX modules, bound Flax Linen modules, `jax.tree_util.Partial`s, Equinox modules and
    any other callable pytree. A plain function, or any other object that is not a pytree, is compiled anew in every
    call, because what it closes over is compiled in and may have changed; its programs are dropped at the end of the
    call. `jax.tree_util.Partial(function, parameters)`, with parameters as data, is compiled once: its programs, about
    20 MB for a small network, serve all calls with the same function, whatever the parameters. So define that function
    once, outside any loop. The function of a Partial, functions that a module holds as attributes, and functions made
    by `jax.jit` keep the values that they read when they were compiled: pass values that may change as parameters.

    Args:
      classifier: callable on images (N, height, width, channels), returning logits (N, L).

    Raises:
      TypeError: if it can't be called, or is a module of PyTorch.
      ValueError: if a module is in training mode, where predictions depend on the batch or on chance.

    >>> def linear(weights, images):
    ...     return images.reshape(len(images), -1) @ weights
    >>> [leaf.shape for leaf in jax.tree.leaves(as_pytree(jax.tree_util.Partial(linear, jnp.ones((4, 3)))))]
    [(4, 3)]
    """
    if not callable(classifier):
        raise TypeError(
            f"classifier must be callable on images (N, height, width, channels), got {type(classifier)}"
            f"{_remedy_for_no_callable(classifier)}"
        )
    if any(base.__module__.startswith("torch.nn.") for base in type(classifier).__mro__):
        raise TypeError(
            "classifier is a PyTorch module, which JAX can't differentiate: pass hmt_jax.from_torch_module(module), or "
            "hmt_jax.models.from_torch(name, module.state_dict(), ...) if hmt_jax has its architecture"
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
    """A callable pytree that JAX takes for a new function in every call, unless `jax.jit` made the function.

    Args:
      function: any function.
    """
    return jax.tree_util.Partial(function) if isinstance(function, jax.stages.Wrapped) else NewFunction(function)


def restrict(classifier: Classifier, image: jax.Array, subspace: Subspace) -> Restriction:
    """The restriction g(z) = classifier(image + embed(z)) of a classifier around one image: (d,) to (L,).

    The logits of an image with a NaN or infinite pixel are NaN, whatever the classifier makes of it.

    Args:
      classifier: a classifier as `as_pytree` returns it.
      image: (height, width, channels).
      subspace: a single subspace.

    Returns:
      A function, which raises what `logits_of` raises when it is called.

    >>> from hmt_jax import subspaces
    >>> classifier = as_pytree(lambda images: images.reshape(len(images), -1))
    >>> pixel = subspaces.from_basis(jnp.eye(2, 1), (1, 2, 1))
    >>> restrict(classifier, jnp.zeros((1, 2, 1)), pixel)(jnp.array([3.0])).tolist()
    [3.0, 0.0]
    """
    is_finite = jnp.isfinite(image).all()

    def restriction(z: jax.Array) -> jax.Array:
        logits = traced_logits_of(classifier, (image + subspace.embed(z))[None])
        return jnp.where(is_finite, logits[0], jnp.nan)

    return restriction


def logits_of(classifier: Classifier, images: jax.Array) -> jax.Array:
    """The logits (N, L) that a classifier returns for images (N, height, width, channels).

    Args:
      classifier: callable on images.
      images: (N, height, width, channels).

    Raises:
      ValueError: if it can't be applied to images of this shape, or returns anything but an array (N, L) in floating
        point with L at least 2.

    >>> logits_of(lambda images: images.reshape(len(images), -1), jnp.ones((1, 1, 2, 1))).tolist()
    [[1.0, 1.0]]
    """
    attributes = _attributes_of_modules_within(classifier)
    try:
        logits = classifier(images)
    except LogitsError:
        raise
    except errors.TraceContextError as error:
        for module, values in attributes:  # Flax removes attributes before it finds that it can't write them
            vars(module).clear()
            vars(module).update(values)
        reason = str(error).partition(" (http")[0]
        raise LogitsError(
            f"the classifier is a function that changes a Flax NNX module when it is called ({reason}): call "
            "module.eval() first if the module is in training mode, or pass the module itself as the classifier"
        ) from error
    except (TypeError, ValueError, NotImplementedError) as error:  # JAX's: products, convolutions, missing rules
        raise _cannot_be_applied(classifier, images, error) from error
    if not isinstance(logits, jax.Array | np.ndarray):
        raise LogitsError(
            f"classifier must return one array, its logits (N, L), got {type(logits).__name__}: wrap it in a function "
            "that returns them alone"
        )
    if logits.ndim != 2 or logits.shape[0] != len(images):
        raise LogitsError(
            f"classifier must map images (N, height, width, channels) to logits (N, L); for N = {len(images)} it "
            f"returned {logits.shape}{_remedy_for_shape(classifier, images, logits)}"
        )
    if logits.shape[1] < 2:
        raise LogitsError(
            "classifier has one class only, so that no label can change; return two logits for a binary classifier, "
            "such as (0, logit)"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise LogitsError(f"classifier must return logits in floating point, before any argmax, got {logits.dtype}")
    return jnp.asarray(logits)


def logits_on_plane(
    classifier: Classifier, plane: ArrayLike, x: ArrayLike, y: ArrayLike, image_shape: tuple[int, int, int]
) -> np.ndarray:
    """The logits (H, W, L) at the points x[j] u + y[i] v of a plane.

    `hmt_jax.plots.cross_sections` draws their differences.

    Args:
      classifier: callable on images.
      plane: (D, 2), the directions u and v as columns, each an image in a row.
      x: (W,) coordinates along u.
      y: (H,) coordinates along v.
      image_shape: the (height, width, channels) of images, of D numbers.

    Raises:
      ValueError: if the plane is no such array, and as `logits_of`.

    >>> network = lambda images: images.reshape(len(images), -1)
    >>> logits_on_plane(network, np.eye(2), x=[0, 1, 2], y=[5], image_shape=(1, 2, 1)).tolist()
    [[[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]]]
    """
    directions = np.asarray(as_array("plane", plane))
    num_pixels = math.prod(check_image_shape(image_shape))
    if directions.shape != (num_pixels, 2):
        raise ValueError(
            f"plane must have two columns of {num_pixels} pixels, as many as an image of shape {image_shape}, got "
            f"{directions.shape}: stack two images with np.stack([u.ravel(), v.ravel()], axis=1)"
        )
    first, second = np.meshgrid(x, y)
    points = np.stack([first.ravel(), second.ravel()], axis=1) @ directions.T
    logits = logits_of(classifier, jnp.asarray(points.reshape(-1, *image_shape), jnp.float32))
    return np.asarray(logits).reshape(*first.shape, -1)


# Traces are kept, so that a network is traced once for all programs that call it.
traced_logits_of = _programs.jit(logits_of)
shape_of_logits = traced_logits_of.eval_shape


@contextlib.contextmanager
def differentiated(classifier: Classifier, images: Any) -> Iterator[None]:
    """A context in which JAX's errors for want of a derivative become a `ValueError` that names the remedy.

    They arise outside `logits_of` wherever its trace is used again.
    """
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        if isinstance(error, LogitsError) or not re.search(_NO_DERIVATIVE, str(error)):
            raise
        raise _cannot_be_applied(classifier, images, error) from error


def _cannot_be_applied(classifier, images, error) -> LogitsError:
    return LogitsError(
        f"classifier can't be applied to images of shape (N, {', '.join(map(str, images.shape[1:]))}): "
        f"{_reason_of(error)}; {_remedy(classifier, images, error)}"
    )


def _reason_of(error) -> str:
    """The first line of an error's message, which Equinox splits into several strings in some errors."""
    is_in_parts = len(error.args) > 1 and all(isinstance(part, str) for part in error.args)
    text = "".join(error.args) if is_in_parts else str(error)
    return short(text.strip().partition("\n")[0].rstrip("."))


def _remedy(classifier, images, error) -> str:
    """The remedy, for a message, if a classifier could not be applied."""
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return "compute with jax.numpy, since NumPy can't be differentiated"
    if isinstance(error, jax.errors.TracerBoolConversionError):
        return "choose by jax.numpy.where, since values are not known when it is compiled"
    if isinstance(error, jax.errors.ConcretizationTypeError):
        return "leave out float(), int() and item(), since values are not known when it is compiled"
    if re.search(_NO_DERIVATIVE, str(error)):
        return (
            "it can't be differentiated: compute with jax.numpy, or define a derivative with jax.custom_vjp (a "
            "callback needs a vmap_method, too)"
        )
    if "implicit dtype promotion" in str(error):
        return "convert the images to the type that it computes in, since jax_numpy_dtype_promotion is 'strict'"
    return _remedy_for_arguments(classifier) or _remedy_for_one_image(classifier, images) or _REMEDY_FOR_SHAPES


_NO_DERIVATIVE = "callback|JVP|[Dd]ifferentiation rule"
_REMEDY_FOR_SHAPES = "pass it images of the shape that it was made for"
# Arguments that modules take beside images, with their values for evaluation.
_IN_EVALUATION = {
    **dict.fromkeys(("train", "training", "is_training"), "False"),
    **dict.fromkeys(("deterministic", "use_running_average", "inference"), "True"),
    **dict.fromkeys(("key", "rng", "rngs"), "None"),
}


def _remedy_for_arguments(classifier) -> str | None:
    """The remedy if the user's own callable takes more than images; None if it does not."""
    own, kind = _own_callable(classifier)
    try:
        parameters = inspect.signature(own).parameters.values()
    except ValueError:  # Python knows no signature of it
        return None
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [each.name for each in parameters if each.default is each.empty and each.kind not in many]
    first = next((each.name for each in parameters if each.kind != inspect.Parameter.KEYWORD_ONLY), None)
    others = [name for name in needed if name != first]
    if first in _IN_EVALUATION and others:
        return f"it takes {first} before the images: pass jax.tree_util.Partial(function, parameters, None)"
    if first is not None and not others:
        return None
    if kind == "function" and not (others and all(name in _IN_EVALUATION for name in others)):
        return "pass a function of images alone, jax.tree_util.Partial(function, parameters) for instance"
    settings = ", ".join(f"{name}={_IN_EVALUATION.get(name, name)}" for name in others)
    data = [name for name in others if name not in _IN_EVALUATION]
    data, call = {
        "function": (data, "function(images, "),
        "module": (["module", *data], "module(images, "),
        "Linen": (["variables", *data], "module.apply(variables, images, "),
    }[kind]
    function = f"lambda {', '.join([*data, 'images'])}: {call}{settings}){'[0]' if 'state' in data else ''}"
    remedy = f"jax.tree_util.Partial({', '.join([function, *data])})" if data else function
    return f"it needs {' and '.join(others)}, too: pass {remedy}"


def _own_callable(classifier) -> tuple[Callable, str]:
    """The callable that the user passed, before `as_pytree`, and its kind: function, module or Linen."""
    if isinstance(classifier, NewFunction):
        return classifier.__wrapped__, "function"
    if isinstance(classifier, _Linen):
        return classifier.module.__call__, "Linen"
    if isinstance(classifier, _Module):
        return _own_callable(classifier.module)
    if isinstance(classifier, jax.tree_util.Partial):
        if classifier.func is _call_nnx:
            return nnx.merge(*classifier.args, copy=True).__call__, "module"
        module = getattr(classifier.func, "__self__", None)
        if isinstance(module, linen.Module) and classifier.func.__name__ == "apply":
            return module.__call__, "Linen"
        return classifier, "function"
    return classifier, "module"


def _remedy_for_one_image(classifier, images) -> str | None:
    """The remedy if the classifier takes one image at a time, as Equinox modules do; None if it does not."""
    ways = {
        "images": images,
        "images.transpose(0, 3, 1, 2)": jnp.moveaxis(images, -1, 1),
        "images.reshape(len(images), -1)": images.reshape(len(images), -1),
    }
    for argument, as_taken in ways.items():
        try:
            logits = jax.eval_shape(lambda image: classifier(image), as_taken[0])
        except Exception:  # whatever it raises, this is not the way
            continue
        if isinstance(logits, jax.ShapeDtypeStruct) and len(logits.shape) == 1 and logits.shape[0] > 1:
            remedy = {
                "function": f"lambda images: jax.vmap(function)({argument})",
                "module": f"jax.tree_util.Partial(lambda module, images: jax.vmap(module)({argument}), module)",
                "Linen": "jax.tree_util.Partial(lambda variables, images: jax.vmap(lambda image: "
                f"module.apply(variables, image))({argument}), variables)",
            }[_own_callable(classifier)[1]]
            return f"it takes one image at a time: pass {remedy}"
    return None


def _remedy_for_shape(classifier, images, logits) -> str:
    if logits.shape == (len(images),):
        return "; return two logits for a binary classifier, jax.numpy.stack([0 * logit, logit], axis=-1)"
    remedy = _remedy_for_one_image(classifier, images)
    return f"; {remedy}" if remedy else ""


def _remedy_for_no_callable(classifier) -> str:
    if callable(getattr(classifier, "init", None)) and callable(getattr(classifier, "apply", None)):
        if type(classifier).__name__ == "TransformedWithState":  # Haiku's, as the one below
            return (
                ": pass jax.tree_util.Partial(lambda parameters, state, images: classifier.apply(parameters, state, "
                "None, images)[0], parameters, state)"
            )
        return ": pass jax.tree_util.Partial(classifier.apply, parameters, None), with None in place of its random key"
    if not isinstance(classifier, tuple | list) or not any(map(callable, classifier)):
        return ""
    function, *others = classifier
    if callable(function) and not any(map(callable, others)):
        try:
            inspect.signature(function).bind(*others, "images")
        except (TypeError, ValueError):  # or Python knows no signature of it
            return "; pass its first item"
        return ": pass jax.tree_util.Partial(*classifier)" if others else "; pass its first item"
    return ": pass jax.tree_util.Partial(function, parameters), with the function that computes the logits"


def _attributes_of_modules_within(function) -> list[tuple[Any, dict[str, Any]]]:
    """The attributes of all NNX modules that a function closes over, directly or through other functions."""
    modules: list[nnx.Module] = []
    waiting, seen = [function], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, nnx.Module):
            modules.append(each)
        elif isinstance(each, functools.partial):
            waiting += [each.func, *each.args, *each.keywords.values()]
        elif inspect.ismethod(each):
            waiting += [each.__self__, each.__func__]
        elif inspect.isfunction(each):
            variables = inspect.getclosurevars(each)
            waiting += variables.nonlocals.values()
            waiting += [one for one in variables.globals.values() if isinstance(one, nnx.Module)]
        if isinstance(each, NewFunction | jax.stages.Wrapped) or inspect.isfunction(each):
            waiting.append(getattr(each, "__wrapped__", None))
    parts = [part for module in modules for _, part in nnx.iter_graph(module) if isinstance(part, nnx.Pytree)]
    return [(part, dict(vars(part))) for part in parts]


def _call_nnx(graphdef, state, images):
    # A copy, whose variables a call may change within any transformation.
    module = nnx.merge(graphdef, state, copy=True)
    before = _changed_by_training(module)
    logits = module(images)
    is_written = any(old is not new for old, new in zip(before, _changed_by_training(module), strict=True))
    if is_written and _is_training(graphdef, state, images):
        raise LogitsError(
            "the classifier is in training mode: a call updates its batch statistics, or draws random numbers; pass a "
            "function that calls it with the argument that turns this off, such as train=False"
        )
    return logits


def _is_training(graphdef, state, images) -> bool:
    """Whether random numbers reach the logits, or stored batch statistics do not.

    Written variables alone do not show this, because some calls write back the values that they read.
    """
    keys, statistics, rest = nnx.split_state(state, nnx.RngState, nnx.BatchStat, ...)

    def call(keys: nnx.State, statistics: nnx.State) -> jax.Array:
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
            "a Flax Linen module has no parameters of its own: pass module.bind(variables), or "
            "jax.tree_util.Partial(module.apply, variables)"
        )
    return _Linen(*module.unbind())


def _check_evaluation_mode(module: nnx.Module):
    for path, part in nnx.iter_modules(module):
        if getattr(part, "use_running_average", None) is False or getattr(part, "deterministic", None) is False:
            name = ".".join(map(str, path)) or type(part).__name__
            raise ValueError(f"the classifier's {name} is in training mode: call classifier.eval() first")


def _check_inference_mode(classifier):
    """Raises ValueError for an Equinox module in training mode: the leaf `inference` of some part of it is False."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(classifier):
        if leaf is False and path[-1] == jax.tree_util.GetAttrKey("inference"):
            name = jax.tree_util.keystr(path[:-1], simple=True, separator=".") or type(classifier).__name__
            raise ValueError(
                f"the classifier's {name} is in training mode: pass equinox.nn.inference_mode(classifier) instead"
            )


def _is_array(leaf) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
