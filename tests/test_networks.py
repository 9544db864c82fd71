"""The paper's networks against PyTorch: logits, gradients, margins, and weights in and out."""

import pathlib
import pickle
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_twins
from flax import nnx
from safetensors.numpy import save_file

import hmt_jax
from hmt_jax import models, subspaces
from hmt_jax.classifiers import as_pytree
from hmt_jax.models import _create, _layers

MEAN, STD = np.array([0.4, 0.5, 0.3]), np.array([0.2, 0.3, 0.25])

# Two sizes of images for each form. The second ones are neither square nor multiples of any stride, and leave rows over
# in poolings; 9 columns of features are not a multiple of VGG's 7 windows, and 1 row is less.
SIZES = {
    "resnet": [(64, 64), (49, 70)],
    "resnet_cifar": [(32, 32), (27, 40)],
    "resnet_mnist": [(28, 28), (35, 41)],
    "vgg": [(64, 64), (32, 288)],
    "vgg_cifar": [(32, 32), (40, 63)],
    "densenet": [(64, 64), (29, 50)],
    "densenet_cifar": [(32, 32), (47, 36)],
}
DEEP = ("resnet101", "densenet169", "densenet201", "vgg13", "vgg16", "vgg19")


def form(name):
    return re.sub(r"\d+|_bn", "", name)


def all_names():
    """Every network but those of `test_models.py`; deep ones, and VGG with its 100 million weights, are slow."""
    params = []
    for name in models.names():
        if form(name) in SIZES:
            is_slow = name.startswith(DEEP) and not (name.startswith("vgg") and name.endswith("cifar"))
            params.append(pytest.param(name, marks=[pytest.mark.slow] if is_slow else []))
    return params


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape)


def twin_of(name, channels=3, num_classes=7, seed=0):
    """A PyTorch network with random weights in float32."""
    with torch.device("meta"):
        network = torch_twins.build(name, channels, num_classes)
    return torch_twins.randomize(network.to_empty(device="cpu"), seed)


def imported(name, network, image_shape, **options):
    channels = image_shape[-1]
    state_dict = network if isinstance(network, dict) else network.state_dict()
    return models.from_torch(
        name, state_dict, image_shape=image_shape, mean=MEAN[:channels], std=STD[:channels], **options
    )


def torch_input(images):
    channels = images.shape[-1]
    return torch.tensor(np.moveaxis((images - MEAN[:channels]) / STD[:channels], -1, 1))


def torch_logits_and_gradients(network, images):
    """In float64: logits, and the gradients of their sum with weights 1, 2, ... over the normalised images."""
    normalized = torch_input(images).requires_grad_()
    logits = network(normalized)
    (logits * torch.arange(1, logits.shape[1] + 1)).sum().backward()
    return logits.detach().numpy(), np.moveaxis(normalized.grad.numpy(), 1, -1) / STD[: images.shape[-1]]


@jax.jit
def logits_and_gradients(classifier, images):
    logits, pull_back = jax.vjp(classifier, images)
    weights = jnp.broadcast_to(jnp.arange(1, logits.shape[1] + 1, dtype=logits.dtype), logits.shape)
    return logits, pull_back(weights)[0]


def check_against_twin(name, network, images, dtype, tolerance):
    network = network.double()
    weights = {key: value.numpy().astype(dtype) for key, value in network.state_dict().items()}
    classifier = as_pytree(imported(name, weights, images.shape[1:]))
    ours = logits_and_gradients(classifier, jnp.asarray(images, dtype))
    for value, expected in zip(ours, torch_logits_and_gradients(network, images), strict=True):
        assert value.dtype == dtype
        # Relative to the largest: every value is a sum of thousands of terms of that order.
        scale = np.abs(expected).max()
        assert 1e-3 < scale < 1e3
        print(f"DEVIATION {name} {np.dtype(dtype).name} {scale:.1e} {np.abs(value - expected).max() / scale:.1e}")
        np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", all_names())
def test_networks_agree_with_pytorch(name, x64):
    channels = 1 if name.endswith("mnist") else 3
    network = twin_of(name, channels)
    first, second = SIZES[form(name)]
    check_against_twin(name, network, random_images(2, *first, channels), np.float64, 1e-10)
    check_against_twin(name, network, random_images(2, *second, channels), np.float32, 1e-4)
