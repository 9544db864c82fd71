"""VGG networks (Simonyan and Zisserman, 2015, https://arxiv.org/abs/1409.1556) of 11, 13, 16 and 19 layers."""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx

from hmt_jax.models import _layers

__all__ = ["NUM_CONVS", "VGG", "CifarVGG"]

# 3 x 3 convolutions before each of the five poolings, for configurations A, B, D and E: Table 1 of the paper.
NUM_CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

# The variance is that of torchvision and of the paper's networks (He et al., 2015). With PyTorch's default, a sixth of
# it, the signal dies away in deep networks without batch norm, which then do not train. Uniform, not normal: XLA can
# take minutes to compile millions of normal numbers on CPU.
_KERNEL_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "uniform")


class VGG(nnx.Module):
    """The ImageNet form, as in torchvision: means over 7 x 7 windows, then two hidden layers with dropout.

    It takes images of at least 32 x 32. For training, dropout takes its key with
    `classifier.set_attributes(nnx.Dropout, rngs=nnx.Rngs(key))`; without it the network holds no random state.

    >>> network = nnx.eval_shape(lambda: VGG((224, 224, 3), 1000, depth=11, rngs=nnx.Rngs(0)))  # without its arrays
    >>> [layer.kernel.shape for layer in network.classifier if isinstance(layer, nnx.Linear)]
    [(25088, 4096), (4096, 4096), (4096, 1000)]
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int,
        use_batch_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        _layers.check_image_size("VGG", image_shape, 32)
        self.features = _features(image_shape[-1], depth, use_batch_norm, rngs)
        self.classifier = _head((512 * 7 * 7, 4096, 4096, num_classes), rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = _layers.flatten(_layers.adaptive_avg_pool(_apply(self.features, images), 7))
        return _apply(self.classifier, x)


class CifarVGG(nnx.Module):
    """The CIFAR form: one linear layer, as in kuangliu/pytorch-cifar; `num_hidden` adds hidden ones with dropout.

    The paper's VGG-19 for CIFAR-10 has `num_hidden=(512, 512)`. Five poolings must leave one pixel: images of 32 x 32
    to 63 x 63.

    >>> network = nnx.eval_shape(lambda: CifarVGG((32, 32, 3), 10, depth=11, rngs=nnx.Rngs(0)))  # without its arrays
    >>> network.classifier.kernel.shape
    (512, 10)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int,
        use_batch_norm: bool = False,
        num_hidden: Sequence[int] = (),
        rngs: nnx.Rngs,
    ):
        _layers.check_image_size("the CIFAR form of VGG", image_shape, 32, 63)
        self.features = _features(image_shape[-1], depth, use_batch_norm, rngs)
        if num_hidden:
            self.classifier = _head((512, *num_hidden, num_classes), rngs)
        else:
            self.classifier = _layers.linear(512, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = _layers.flatten(_apply(self.features, images))
        return _apply(self.classifier, x) if isinstance(self.classifier, nnx.List) else self.classifier(x)


def _features(num_in, depth, use_batch_norm, rngs):
    layers: nnx.List = nnx.List()
    for num_convs, num_filters in zip(NUM_CONVS[depth], (64, 128, 256, 512, 512), strict=True):
        for _ in range(num_convs):
            layers.append(_conv(num_in, num_filters, rngs))
            if use_batch_norm:
                layers.append(_layers.batch_norm(num_filters, rngs=rngs))
            layers.append(jax.nn.relu)
            num_in = num_filters
        layers.append(_layers.max_pool)
    return layers


def _conv(num_in, num_out, rngs):
    zeros = nnx.initializers.zeros_init()
    return _layers.conv(num_in, num_out, 3, padding=1, kernel_init=_KERNEL_INIT, bias_init=zeros, rngs=rngs)


def _head(widths, rngs):
    """Linear layers, with ReLU and dropout between. Dropout gets no key: random state is no part of a classifier."""
    layers: nnx.List = nnx.List()
    for pair in itertools.pairwise(widths):
        layers += [_layers.linear(*pair, rngs=rngs), jax.nn.relu, nnx.Dropout(0.5)]
    del layers[-2:]
    return layers


def _apply(layers, x):
    for layer in layers:
        x = layer(x)
    return x
