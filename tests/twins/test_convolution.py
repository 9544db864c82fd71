"""The fast convolution with ReLU and pooling, against plain loops and against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from hmt_jax.models import _convolution

# (height, width, channels, filters, kernel size, padding): LeNet's layers, then odd and uneven sizes.
SHAPES = [(28, 28, 1, 6, 5, 2), (14, 14, 6, 16, 5, 0), (9, 12, 2, 3, 3, 1), (11, 8, 1, 2, 5, 1), (7, 7, 3, 2, 1, 0)]


def torch_conv_relu_pool(images, kernel, bias, padding, gradient):
    """Values and gradients by PyTorch, in the layout of this library."""
    x, k, b = (
        torch.tensor(np.asarray(array), requires_grad=True)
        for array in (images.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), bias)
    )
    y = torch.nn.functional.max_pool2d(torch.relu(torch.nn.functional.conv2d(x, k, b, padding=padding)), 2)
    y.backward(torch.tensor(np.asarray(gradient).transpose(0, 3, 1, 2)))
    values = (y.detach().permute(0, 2, 3, 1), x.grad.permute(0, 2, 3, 1), k.grad.permute(2, 3, 1, 0), b.grad)
    return [value.numpy() for value in values]


@functools.partial(jax.jit, static_argnames="padding")
def value_and_gradients(images, kernel, bias, gradient, padding):
    value, pull_back = jax.vjp(lambda *arrays: _convolution.conv_relu_pool(*arrays, padding), images, kernel, bias)
    return value, *pull_back(gradient)


def pooled_size(shape):
    height, width, _, _, size, padding = shape
    return [(length + 2 * padding - size + 1) // 2 for length in (height, width)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_flat", [False, True])
def test_values_and_gradients_are_pytorchs(shape, is_flat, x64):
    height, width, channels, num_filters, size, padding = shape
    rng = np.random.default_rng(0)
    # Eighths, so that all sums are exact: PyTorch's own rounding breaks ties of flat backgrounds elsewhere.
    draw = (lambda shape: rng.integers(-8, 9, shape) / 8) if is_flat else (lambda shape: rng.normal(size=shape))
    images = draw((3, height, width, channels))
    if is_flat:  # a background that ties in every window, with one object on it
        images[:, :3] = images[:, 6:] = images[:, :, :2] = images[:, :, 5:] = 0.25
    kernel, bias = draw((size, size, channels, num_filters)), draw((num_filters,))
    gradient = rng.normal(size=(3, *pooled_size(shape), num_filters))
    found = value_and_gradients(images, kernel, bias, gradient, padding)
    expected = torch_conv_relu_pool(images, kernel, bias, padding, gradient)
    for ours, theirs in zip(found, expected, strict=True):
        # float64; on a flat background any other choice of the winner changes gradients by their own size
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_by_windows_are_those_of_other_devices(shape, x64):
    height, width, channels, num_filters, size, padding = shape
    rng = np.random.default_rng(1)
    images, kernel = rng.normal(size=(2, height, width, channels)), rng.normal(size=(size, size, channels, num_filters))
    gradient = rng.normal(size=(2, *pooled_size(shape), num_filters))
    winner = rng.integers(0, 5, gradient.shape).astype(np.int8)
    for by_windows, default, other in (
        (_convolution._image_gradient_by_windows, _convolution._image_gradient, (kernel, padding, images.shape)),
        (_convolution._kernel_gradient_by_windows, _convolution._kernel_gradient, (images, padding, kernel.shape)),
    ):
        found, expected = (jax.jit(f, static_argnums=(3, 4))(gradient, winner, *other) for f in (by_windows, default))
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


ONE_CHANNEL = [shape for shape in SHAPES if shape[2] == 1]


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [(0, None, None), (0, 0, 0), (None, None, None)], ids=str)
@pytest.mark.parametrize("shape", ONE_CHANNEL)
def test_pooling_by_taps_is_that_of_other_devices(shape, mapped, x64):
    height, width, _, num_filters, size, padding = shape
    rng = np.random.default_rng(2)
    shapes = (2, height, width, 1), (size, size, 1, num_filters), (num_filters,)
    arrays = [
        rng.normal(size=shape if axis is None else (3, *shape)) for shape, axis in zip(shapes, mapped, strict=True)
    ]
    maxima, winners = [], []
    for pool in (_convolution._pool_taps, _convolution._pool_convolution):
        pool = functools.partial(pool, padding=padding)
        maximum, winner = jax.jit(pool if mapped[0] is None else jax.vmap(pool, mapped))(*arrays)
        maxima.append(maximum)
        winners.append(winner)
    np.testing.assert_allclose(*maxima, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(*winners)


def test_equal_patches_tie():
    # Rounding that differs from place to place would break the ties of flat backgrounds.
    images = jnp.full((3, 28, 28, 1), -0.4242, jnp.float32)
    kernel = jnp.asarray(np.random.default_rng(3).normal(size=(5, 5, 1, 6)), jnp.float32)
    pool = jax.jit(_convolution._pool_taps, static_argnums=3)
    maximum, winner = map(np.asarray, pool(images, kernel, jnp.zeros(6), 0))
    np.testing.assert_array_equal(maximum, np.broadcast_to(maximum[:1, :1, :1], maximum.shape))
    assert set(winner.ravel().tolist()) == {0, 1}  # the first of equal ones, or none of those below zero


def test_nan_pixels_are_not_pooled_away():
    images = jnp.zeros((1, 6, 6, 1)).at[0, 2, 3, 0].set(jnp.nan)
    kernel = jnp.ones((1, 1, 1, 2))
    value = np.asarray(jax.jit(_convolution.conv_relu_pool, static_argnums=3)(images, kernel, jnp.zeros(2), 0))
    assert np.isnan(value[0, 1, 1]).all()
    assert np.isnan(value).sum() == 2
