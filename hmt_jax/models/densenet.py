"""Densely connected networks (Huang et al., 2017, https://arxiv.org/abs/1608.06993) of 121, 169 and 201 layers."""

import jax
import jax.numpy as jnp
from flax import nnx

from hmt_jax.models import _layers

__all__ = ["GROWTH_RATE", "NUM_LAYERS", "CifarDenseNet", "DenseNet"]

# Layers in each of the four blocks, Table 1 of the paper, and the channels that each layer adds.
NUM_LAYERS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
GROWTH_RATE = 32


class _Layer(nnx.Module):
    """A 1 x 1 and a 3 x 3 convolution, each after batch norm and ReLU: from (..., num_in) to (..., GROWTH_RATE)."""

    def __init__(self, num_in: int, *, rngs: nnx.Rngs):
        self.bn1 = _layers.batch_norm(num_in, rngs=rngs)
        self.conv1 = _layers.conv_for_norm(num_in, 4 * GROWTH_RATE, 1, rngs=rngs)
        self.bn2 = _layers.batch_norm(4 * GROWTH_RATE, rngs=rngs)
        self.conv2 = _layers.conv_for_norm(4 * GROWTH_RATE, GROWTH_RATE, 3, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.conv1(jax.nn.relu(self.bn1(images)))
        return self.conv2(jax.nn.relu(self.bn2(x)))


class _Transition(nnx.Module):
    """Halves the number of channels, and height and width."""

    def __init__(self, num_in: int, *, rngs: nnx.Rngs):
        self.bn = _layers.batch_norm(num_in, rngs=rngs)
        self.conv = _layers.conv_for_norm(num_in, num_in // 2, 1, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return _layers.avg_pool(self.conv(jax.nn.relu(self.bn(images))), 2)


class DenseNet(nnx.Module):
    """The ImageNet form, as in torchvision: a 7 x 7 stem of stride 2 with max-pooling, and a global mean at the end.

    Three more halvings must leave a pixel, so images must have at least 29 x 29.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, depth: int, rngs: nnx.Rngs):
        num_features = 2 * GROWTH_RATE
        self._build_stem(image_shape, num_features, rngs)
        blocks, transitions = [], []
        for i, num_layers in enumerate(NUM_LAYERS[depth]):
            widths = range(num_features, num_features + num_layers * GROWTH_RATE, GROWTH_RATE)
            blocks.append(nnx.List([_Layer(width, rngs=rngs) for width in widths]))
            num_features += num_layers * GROWTH_RATE
            if i < 3:
                transitions.append(_Transition(num_features, rngs=rngs))
                num_features //= 2
        self.dense1, self.dense2, self.dense3, self.dense4 = blocks
        self.trans1, self.trans2, self.trans3 = transitions
        self.bn = _layers.batch_norm(num_features, rngs=rngs)
        self.linear = _layers.linear(num_features, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self._stem(images)
        x = self.trans1(self._append(self.dense1, x))
        x = self.trans2(self._append(self.dense2, x))
        x = self.trans3(self._append(self.dense3, x))
        x = self._append(self.dense4, x)
        return self.linear(self._pool(jax.nn.relu(self.bn(x))))

    def _build_stem(self, image_shape, num_features, rngs):
        _layers.check_image_size("DenseNet", image_shape, 29)
        self.conv1 = _layers.conv_for_norm(image_shape[-1], num_features, 7, stride=2, rngs=rngs)
        self.bn1 = _layers.batch_norm(num_features, rngs=rngs)

    def _stem(self, images):
        return _layers.max_pool(jax.nn.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)

    def _append(self, layers, images):
        for layer in layers:
            images = jnp.concatenate([images, layer(images)], -1)
        return images

    def _pool(self, images):
        return _layers.global_avg_pool(images)


class CifarDenseNet(DenseNet):
    """The CIFAR form, as in kuangliu/pytorch-cifar and the paper: a 3 x 3 stem of stride 1 without pooling.

    New channels come before the old ones. The mean at the end is over 4 x 4 pixels, and there must be one such window:
    images of 32 x 32 to 63 x 63.
    """

    def _build_stem(self, image_shape, num_features, rngs):
        _layers.check_image_size("the CIFAR form of DenseNet", image_shape, 32, 63)
        self.conv1 = _layers.conv_for_norm(image_shape[-1], num_features, 3, rngs=rngs)

    def _stem(self, images):
        return self.conv1(images)

    def _append(self, layers, images):
        for layer in layers:
            images = jnp.concatenate([layer(images), images], -1)
        return images

    def _pool(self, images):
        return _layers.flatten(_layers.avg_pool(images, 4))
