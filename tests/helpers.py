"""Functions that several test files use: random inputs, small classifiers, and what SciPy makes of images.

Numbers come from NumPy, so that making them compiles nothing and is the same in every version of JAX.
"""

import functools
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from flax import nnx

import hmt_jax
from hmt_jax import classifiers, models, solvers


def shared_folder(text: str | None) -> pathlib.Path | None:
    """The folder that `--shared` or HMT_JAX_SHARED names; None where it is unset or empty."""
    return pathlib.Path(text).expanduser() if text else None


def slow_except(values: Iterable[Any], *quick: Any) -> list[Any]:
    """The values of a parameter of tests, of which all but the given ones are marked slow.

    A value that is a tuple holds one of each parameter.
    """
    values = list(values)
    if unknown := [each for each in quick if each not in values]:
        raise ValueError(f"{unknown} are not among {values}")
    return [
        pytest.param(*(each if isinstance(each, tuple) else (each,)), marks=[] if each in quick else pytest.mark.slow)
        for each in values
    ]


# Images and bases


def random_images(*shape, seed=0, dtype="float64"):
    """Pixels between 0 and 1, in an array of the given shape: `random_images(7, 4, 5, 2)` are seven images."""
    return np.random.default_rng(seed).uniform(size=shape).astype(dtype)


def random_basis(num_pixels, dimension, seed=5):
    """Orthonormal columns (num_pixels, dimension)."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(num_pixels, dimension)))[0]


def window_basis(image_shape, row, column, size):
    """The pixels of each frequency of a DCT window, as columns in the order of its coordinates, by SciPy."""
    num_pixels = int(np.prod(image_shape))
    numbers = np.arange(num_pixels).reshape(image_shape)[row : row + size, column : column + size].ravel()
    units = np.eye(num_pixels)[numbers].reshape(-1, *image_shape)
    return scipy_inverse_dct(units).reshape(-1, num_pixels).T


def basis_of(subspace):
    """The images that `subspace` embeds the unit vectors in, flattened, as columns."""
    return np.asarray(_images_of_units(subspace)).reshape(subspace.dimension, -1).T


@jax.jit
def _images_of_units(subspace):
    return jax.vmap(subspace.embed)(jnp.eye(subspace.dimension))


def scipy_dct(images):
    """DCT coefficients of images (..., height, width, channels), by SciPy."""
    return scipy.fft.dctn(images, axes=(-3, -2), norm="ortho")


def scipy_inverse_dct(coefficients):
    """Images (..., height, width, channels) with the given DCT coefficients, by SciPy."""
    return scipy.fft.idctn(coefficients, axes=(-3, -2), norm="ortho")


def scipy_flip(images):
    """Images with high and low frequencies exchanged, in float64, by SciPy."""
    return scipy_inverse_dct(scipy_dct(np.asarray(images, np.float64))[..., ::-1, ::-1, :])


class Line(NamedTuple):
    """A subspace of one dimension that is no class of hmt_jax; the direction is an image of norm 1."""

    direction: jax.Array

    def coordinates(self, image):
        return jnp.vdot(self.direction, image)[None]

    def embed(self, z):
        return z[0] * self.direction


# Classifiers


def linear_logits(parameters, images):
    """Logits W x + b of parameters (W, b), of shapes (num_classes, num_pixels) and (num_classes,)."""
    weights, biases = parameters
    return images.reshape(len(images), -1) @ weights.T + biases[None]


def linear_parameters(num_classes, num_pixels, seed=None):
    """Weights and biases of unequal sizes, so that no two boundaries are alike; seeded by the number of classes."""
    rng = np.random.default_rng(num_classes if seed is None else seed)
    scales = rng.uniform(0.3, 3, size=(num_classes, 1))
    return scales * rng.normal(size=(num_classes, num_pixels)), 2 * rng.normal(size=num_classes)


def tanh_logits(parameters, images):
    """Logits of two layers with tanh between them; `tanh_parameters` has the order of the parameters."""
    first, first_bias, second, second_bias = parameters
    hidden = jnp.tanh(images.reshape(len(images), -1) @ first.T + first_bias[None])
    return hidden @ second.T + second_bias[None]


def tanh_parameters(seed=0, *, num_pixels=40, num_hidden=8, num_classes=5):
    """Weights and biases of two layers, whose boundaries bend within a step of DeepFool."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(num_hidden, num_pixels)) / 2,
        rng.normal(size=num_hidden),
        rng.normal(size=(num_classes, num_hidden)),
        rng.normal(size=num_classes),
    )


def with_parameters(logits, parameters, dtype=None):
    """The classifier `logits(parameters, images)`, its parameters arrays of JAX; float64 only where it is enabled."""
    arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), parameters)
    return jax.tree_util.Partial(logits, arrays)


def tanh_classifier(parameters=None, dtype=None):
    """The classifier `tanh_logits` with these parameters, or with those of `tanh_parameters()`."""
    return with_parameters(tanh_logits, tanh_parameters() if parameters is None else parameters, dtype)


def random_network(name, image_shape, *, mean, std, seed=0, gain=2.0, num_hidden=(8, 6), num_classes=4):
    """A network of hmt_jax, its weights larger than when training starts, so that its boundary bends.

    Weights come from NumPy: those of `models.create` take seconds to compile.
    """
    rng = np.random.default_rng(seed)
    options = {"num_hidden": num_hidden} if name == "mlp" else {}
    classifier = nnx.eval_shape(
        lambda: models.create(name, jax.random.key(0), image_shape=image_shape, num_classes=num_classes, **options)
    )
    graph, parameters = nnx.split(classifier.network)

    def weights(leaf):
        bound = gain / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else gain / 4
        return jnp.asarray(rng.uniform(-bound, bound, leaf.shape), jnp.float32)

    network = nnx.merge(graph, jax.tree.map(weights, parameters))
    return models.Normalized(network, jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))


@jax.jit
def labels_of(classifier, images):
    """The classes of the greatest logits."""
    return classifier(images).argmax(1)


# Measuring


def solve_all(classifier, images, subspace, solver=None):
    """Solutions of images in one subspace, in one program without lanes, which compiles soon; DeepFool by default."""
    classifier = classifiers.as_pytree(classifier)
    return jax.tree.map(np.asarray, _solve_all(solver or solvers.DeepFool(), classifier, jnp.asarray(images), subspace))


@functools.partial(jax.jit, static_argnums=0)
def _solve_all(solver, classifier, images, subspace):
    return jax.vmap(lambda image: hmt_jax.measure_margin(classifier, image, subspace, solver))(images)
