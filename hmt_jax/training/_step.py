"""One step of training."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from hmt_jax import _batches, _programs
from hmt_jax._images import as_floats
from hmt_jax.attacks import perturb
from hmt_jax.attacks._evaluate import as_argument
from hmt_jax.classifiers import as_new_function, as_pytree, logits_of
from hmt_jax.training._recipe import Recipe, crop_and_mirror, make_optimizer, steps_per_epoch
from hmt_jax.training._state import (
    NEVER,
    Sums,
    are_same,
    carried,
    classifier_to_compute_with,
    may_be_cast,
    renew_random_streams,
    variables_of,
    zero_sums,
)

AXIS = "data"


class Metrics(NamedTuple):
    """Means over samples.

    Attributes:
      loss: cross-entropy, in nats.
      accuracy: share of samples that are classified correctly, in [0, 1].

    >>> from hmt_jax import training
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> metrics = training.evaluate(classifier, jnp.eye(2, 4).reshape(2, 2, 2, 1), [0, 1])
    >>> metrics.accuracy, f"{metrics.loss:.4f}"  # log(1 + 1 / e)
    (1.0, '0.3133')
    """

    loss: float
    accuracy: float


def count_classes(classifier, images) -> int:
    """The number L of logits (N, L) that the classifier returns for such images in training mode, found by tracing."""
    structure, state = nnx.split(classifier)
    shape = jax.ShapeDtypeStruct((2, *images.shape[1:]), jax.dtypes.canonicalize_dtype(images.dtype))
    return _logits_in_training.eval_shape(structure, state, shape).shape[1]


@functools.partial(jax.jit, static_argnums=0)
def _logits_in_training(structure, state, images):
    classifier = nnx.merge(structure, state, copy=True)
    classifier.train()
    key = jax.random.key(0)
    renew_random_streams(classifier, key, key)
    return logits_of(classifier, as_floats(images))


class _Functions(NamedTuple):
    """The attack and the augmentation of a step, each None or an argument of compiled functions."""

    attack: Any
    augment: Any


def functions_of(recipe, attack) -> tuple[Recipe, _Functions]:
    """The recipe without its augmentation, so that no compiled program keeps it, and the functions of a step."""
    augment = recipe.augment
    if augment is not None:
        # A user's function is compiled anew in every call, because the values it closes over may have changed.
        augment = jax.tree_util.Partial(augment) if augment is crop_and_mirror else as_new_function(augment)
    return dataclasses.replace(recipe, augment=None), _Functions(as_argument(attack), augment)


def step_at(recipe, functions, state, samples, indices, is_counted, key):
    images, labels = samples
    batch = _batches.Batch(images[indices], labels[indices], is_counted)
    return _step(recipe, len(images), functions, state, batch, key)


train_step_at = _programs.jit(step_at, static_argnums=0, donate_argnums=2)


def _step(recipe, num_samples, functions, state, batch, key):
    """The state after one step of SGD on a batch."""
    attack_key, dropout_key, augment_key, stream_key = jax.random.split(jax.random.fold_in(key, state.num_steps), 4)
    images = as_floats(batch.images)
    if functions.augment is not None:
        images = functions.augment(augment_key, images)
    if functions.attack is not None:
        frozen = as_pytree(classifier_to_compute_with(recipe, state))
        computing = jax.tree_util.Partial(_ComputeIn(recipe.compute_dtype), frozen)
        images = perturb(functions.attack, computing, images, batch.labels, attack_key)

    def loss_fn(parameters: nnx.State) -> tuple[jax.Array, tuple]:
        logits, variables = _apply(recipe, state._replace(parameters=parameters), images, dropout_key, stream_key)
        loss, num_correct = _batches.sum_over(logits, batch)
        return loss / jnp.sum(batch.is_counted).astype(loss.dtype), (loss, num_correct, variables)

    gradients, (loss, num_correct, variables) = jax.grad(loss_fn, has_aux=True)(state.parameters)
    updates, optimizer = make_optimizer(recipe, num_samples).update(gradients, state.optimizer, state.parameters)
    is_good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients))
    is_first = state.num_steps % steps_per_epoch(recipe, num_samples) == 0
    sums = jax.tree.map(functools.partial(jnp.where, is_first), zero_sums(), state.sums)
    sums = Sums(
        loss=sums.loss + loss,
        num_correct=sums.num_correct + num_correct,
        num_samples=sums.num_samples + jnp.sum(batch.is_counted, dtype=jnp.int32),
        first_bad_step=jnp.minimum(sums.first_bad_step, jnp.where(is_good, NEVER, state.num_steps)),
    )
    return state._replace(
        parameters=optax.apply_updates(state.parameters, updates),
        variables=variables,
        optimizer=optimizer,
        num_steps=state.num_steps + 1,
        sums=sums,
    )


train_step = _programs.jit(_step, static_argnums=(0, 1), donate_argnums=3)


@dataclasses.dataclass(frozen=True)
class _ComputeIn:
    """A function that applies a classifier to images in a dtype, and returns logits in float32 for the loss."""

    dtype: str

    def __call__(self, classifier, images):
        if self.dtype == "float32":
            return logits_of(classifier, images)
        # Flax's batch norm relies on JAX to promote mixed types, because its statistics stay float32.
        with jax.numpy_dtype_promotion("standard"):
            return logits_of(classifier, images.astype(self.dtype)).astype(jnp.float32)


def _apply(recipe, state, images, dropout_key, stream_key):
    """The logits in training mode, and all variables after the call."""
    written: frozenset[Any] = frozenset()
    flat = nnx.to_flat_state(state.variables)
    if recipe.compute_dtype != "float32" and any(may_be_cast(variable) for _, variable in flat):
        # In lower precision, sums and counts would stop growing. Only a call shows which variables are written.
        exact, called = dataclasses.replace(recipe, compute_dtype="float32"), []
        jax.eval_shape(lambda *keys: called.append(_call(exact, state, images, *keys)[1]), dropout_key, stream_key)
        written = frozenset(called[0])
    logits, changed = _call(recipe, state, images, dropout_key, stream_key, written)
    return logits, carried(state.variables, changed)


def _call(recipe, state, images, dropout_key, stream_key, written=frozenset()):
    """The logits in training mode, and the variables that the call has changed or made, by their paths."""
    classifier = classifier_to_compute_with(recipe, state, written)
    classifier.train()
    renew_random_streams(classifier, dropout_key, stream_key)
    before = {path: jax.tree.leaves(variable) for path, variable in variables_of(classifier)}
    logits = _ComputeIn(recipe.compute_dtype)(classifier, images)
    after = variables_of(classifier)
    return logits, {path: variable for path, variable in after if not are_same(before.get(path), variable)}


def let_finish(arrays, mesh) -> None:
    """Waits for arrays on simulated devices, which share few threads: sums of two steps at a time could deadlock."""
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(arrays)
