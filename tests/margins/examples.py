"""Images, subspaces and classifiers that several files of this folder measure."""

import jax
import numpy as np
from helpers import linear_logits, random_images

import hmt_jax
from hmt_jax import solvers, subspaces

SHAPE = (4, 5, 2)
NUM_PIXELS = 40

# The arrays of a result, all with axes (R, N).
ARRAYS = ("margin", "label", "adversarial_label", "num_steps", "status", "gap", "alignment")
WHOLE_NUMBERS = ("label", "adversarial_label", "num_steps", "status")


def diagonal():
    """Three windows of two by two frequencies, of dimension 8."""
    return subspaces.dct_diagonal(SHAPE, size=2, step=1)


def images_of_two_classes(num_images=4, dtype="float32"):
    """Images that use all of [0, 1]."""
    images = random_images(num_images, *SHAPE, dtype=dtype)
    images[:, 0, 0, 0], images[:, 3, 4, 1] = 0, 1
    return images


def two_classes(bias=0.0):
    """A linear classifier: half the first pixel against the second one and a bias.

    Equal classifiers share their programs, because all that differs are arrays.
    """
    weights = np.zeros((2, NUM_PIXELS), np.float32)
    weights[0, 0], weights[1, 1] = 0.5, 1
    return jax.tree_util.Partial(linear_logits, (weights, np.array([0, bias], np.float32)))


def distances_of_two_classes(images, bias=0.0):
    """Distances (N,) of the images to the boundary of `two_classes`."""
    pixels = images.reshape(len(images), -1).astype(float)
    return np.abs(pixels[:, 0] / 2 - pixels[:, 1] - bias) / np.sqrt(1.25)


def measure_two(images, solver=solvers.DeepFool(), **settings):  # noqa: B008 - immutable
    """Margins of `two_classes` in the whole space, on one device."""
    settings = {"devices": jax.devices()[:1]} | settings
    return hmt_jax.measure_margins(two_classes(), images, subspaces.full(images.shape[1:]), solver, **settings)


def assert_same(result, expected, rows=slice(None), columns=slice(None), rtol=1e-10):
    """The results are those of `expected` in some of its rows and columns.

    Batches of other sizes round differently, and every step of DeepFool amplifies that a little.
    """
    for name in WHOLE_NUMBERS:
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name)[rows][:, columns], err_msg=name)
    np.testing.assert_allclose(result.margin, expected.margin[rows][:, columns], rtol=rtol, atol=0)
