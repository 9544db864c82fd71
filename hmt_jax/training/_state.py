"""The state of training, and the variables that a call of a network changes."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from hmt_jax import _processes
from hmt_jax.training._recipe import Recipe, make_optimizer, steps_per_epoch

# Random streams get new keys in every step, and the values that a module sows are only for observers.
_NOT_CARRIED = (nnx.RngState, nnx.Intermediate)


NEVER = np.iinfo(np.int32).max


class Sums(NamedTuple):
    """Sums over the samples of an epoch so far."""

    loss: jax.Array
    num_correct: jax.Array
    num_samples: jax.Array
    first_bad_step: jax.Array  # the first step whose loss or gradient is not finite


def zero_sums() -> Sums:
    return Sums(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.asarray(NEVER, jnp.int32))


class TrainState(NamedTuple):
    """The state of a classifier in training, after any step; `classifier_of` returns the classifier.

    >>> from hmt_jax import models
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)
    >>> state = start(classifier, Recipe(), num_samples=10)
    >>> [leaf.shape for leaf in jax.tree.leaves(state.parameters)]
    [(2,), (4, 2)]
    """

    structure: nnx.GraphDef  # the classifier without its variables
    parameters: nnx.State
    variables: nnx.State  # all other variables of the classifier, such as batch-norm statistics
    optimizer: optax.OptState
    num_steps: jax.Array  # steps taken
    sums: Sums  # over the epoch of the last step


def start(classifier: nnx.Module, recipe: Recipe, num_samples: int) -> TrainState:
    """The state before the first step of training.

    Args:
      classifier: a Flax NNX module; it is not changed.
      recipe: the settings of training.
      num_samples: number of training samples.

    Raises:
      TypeError: if the classifier is not a Flax NNX module.

    >>> from hmt_jax import models
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)
    >>> int(start(classifier, Recipe(), num_samples=10).num_steps)
    0
    """
    check_is_module(classifier)
    evaluated = nnx.clone(classifier)
    evaluated.eval()
    # Copies, because the steps take over the buffers of their state, but the classifier belongs to the caller.
    structure, parameters, variables = jax.tree.map(jnp.copy, nnx.split(evaluated, nnx.Param, ...))
    return TrainState(
        structure,
        parameters,
        variables,
        optimizer=make_optimizer(recipe, num_samples).init(parameters),
        num_steps=jnp.zeros((), jnp.int32),
        sums=zero_sums(),
    )


def classifier_of(state: TrainState) -> Any:
    """The classifier at a state of training, in evaluation mode; in several processes, on a device of this one.

    Args:
      state: the state; it is not changed.

    >>> from hmt_jax import models
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)
    >>> classifier_of(start(classifier, Recipe(), num_samples=10))(jnp.ones((1, 2, 2, 1))).shape
    (1, 2)
    """
    # A copy, because modules update their variables in place.
    return nnx.merge(state.structure, *_processes.local((state.parameters, state.variables)), copy=True)


def check_is_module(classifier):
    if not isinstance(classifier, nnx.Module):
        raise TypeError(
            f"training changes the parameters of a Flax NNX module, such as hmt_jax.models.create returns, got "
            f"{type(classifier)}; train other classifiers with their own library, and measure their margins here"
        )


def check_state(state, classifier, recipe, num_samples):
    """Raises ValueError unless the state fits the classifier, the recipe and the number of samples."""
    shapes = jax.eval_shape(lambda: start(classifier, recipe, num_samples)[1:])
    found, expected = (
        {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (tuple(state)[1:], shapes)
    )
    if found != expected:
        raise ValueError(
            "the state is of another network than the classifier, or of another kind of training: go on with the "
            "architecture and the recipe that it was made with"
        )
    num_steps, num_seen = int(state.num_steps), int(state.sums.num_samples)
    of_epoch = num_steps and (num_steps - 1) % steps_per_epoch(recipe, num_samples) + 1
    if num_seen != min(of_epoch * recipe.batch_size, num_samples):
        raise ValueError(
            f"the state is {num_steps} steps into training and has seen {num_seen} samples in its last epoch, which "
            f"does not fit {num_samples} samples in batches of {recipe.batch_size}: go on with the batch_size and the "
            "number of samples that it was trained with"
        )


def may_be_cast(variable) -> bool:
    is_floating = any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(variable))
    return is_floating and not isinstance(variable, nnx.BatchStat)


def variables_of(classifier):
    return nnx.to_flat_state(nnx.state(classifier, nnx.filterlib.Not(nnx.filterlib.Any(*_NOT_CARRIED))))


def are_same(leaves, variable) -> bool:
    """Whether a variable still holds the same array objects."""
    found = jax.tree.leaves(variable)
    return leaves is not None and len(leaves) == len(found) and all(map(operator.is_, leaves, found))


def renew_random_streams(classifier, dropout_key, stream_key):
    """Sets a new key for every random stream, and adds a stream to dropout layers that were made without one."""
    streams = [part for _, part in nnx.iter_graph(classifier) if isinstance(part, nnx.RngStream)]
    for number, stream in enumerate(streams):
        key, shape = jax.random.fold_in(stream_key, number), stream.key.shape
        stream.key.set_value(jax.random.split(key, shape) if shape else key)
        stream.count.set_value(jnp.zeros(shape, jnp.uint32))
    classifier.set_attributes(
        lambda _, part: isinstance(part, nnx.Dropout) and part.rngs is None,
        rngs=nnx.Rngs(dropout_key),
        raise_if_not_found=False,
    )


def carried(variables, changed):
    """The variables with the new values of those that a call has changed, in their former shapes and types.

    Raises:
      ValueError: if the call changed parameters, which only the optimizer may change; made new variables; or changed
        the shape or type of one.
    """
    flat = dict(nnx.to_flat_state(variables))
    for path, variable in changed.items():
        name, reason = ".".join(map(str, path)), None
        if isinstance(variable, nnx.Param):
            reason = "is a parameter, which a call of the classifier changes: make it another kind of nnx.Variable"
        elif path not in flat:
            reason = "is made by a call of the classifier: make it in __init__"
        elif _kinds_of(variable) != _kinds_of(flat[path]):
            reason = "has another shape or type after a call of the classifier: keep the ones it has in __init__"
        if reason is not None:
            raise ValueError(f"training can't carry {name} ({type(variable).__name__}) from step to step: it {reason}")
        flat[path] = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), flat[path], variable)
    return nnx.from_flat_state(flat.items())


def _kinds_of(variable):
    """The structure, shapes and types that a variable must keep. All floating-point types count as the same type."""
    return jax.tree.structure(variable.get_value()), [
        (jnp.shape(leaf), "floating" if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else jnp.result_type(leaf))
        for leaf in jax.tree.leaves(variable)
    ]


def classifier_to_compute_with(recipe, state, written=frozenset()):
    """The classifier at a state, in the recipe's dtype, except batch-norm statistics and the `written` variables."""
    if recipe.compute_dtype == "float32":
        return classifier_of(state)

    def cast(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: leaf.astype(recipe.compute_dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
        )

    variables = nnx.from_flat_state(
        (path, cast(variable) if may_be_cast(variable) and path not in written else variable)
        for path, variable in nnx.to_flat_state(state.variables)
    )
    classifier = classifier_of(state._replace(parameters=cast(state.parameters), variables=variables))
    # Otherwise batch norm would promote its output, and all later layers, to the float32 of its statistics.
    classifier.set_attributes(nnx.BatchNorm, promote_dtype=_as_they_are, raise_if_not_found=False)
    return classifier


def _as_they_are(arrays, **_):
    return arrays
