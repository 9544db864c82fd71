"""Networks by name, with weights drawn at random."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from hmt_jax._checks import ImageShape, as_array, check_image_shape, check_key
from hmt_jax.models._normalization import Normalized, check_numbers
from hmt_jax.models.densenet import CifarDenseNet, DenseNet
from hmt_jax.models.lenet import LeNet
from hmt_jax.models.mlp import MLP, Logistic
from hmt_jax.models.resnet import CifarResNet, ResNet
from hmt_jax.models.vgg import VGG, CifarVGG

_ARCHITECTURES: dict[str, Callable[..., nnx.Module]] = {
    "lenet": LeNet,
    "logistic": Logistic,
    "mlp": MLP,
    **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in (18, 34, 50, 101)},
    **{f"resnet{depth}_cifar": partial(CifarResNet, depth=depth) for depth in (18, 34, 50, 101)},
    **{f"resnet{depth}_mnist": partial(ResNet, depth=depth) for depth in (18, 34, 50, 101)},
    **{f"vgg{depth}": partial(VGG, depth=depth) for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_cifar": partial(CifarVGG, depth=depth) for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn": partial(VGG, depth=depth, use_batch_norm=True) for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn_cifar": partial(CifarVGG, depth=depth, use_batch_norm=True) for depth in (11, 13, 16, 19)},
    **{f"densenet{depth}": partial(DenseNet, depth=depth) for depth in (121, 169, 201)},
    **{f"densenet{depth}_cifar": partial(CifarDenseNet, depth=depth) for depth in (121, 169, 201)},
}


def names() -> tuple[str, ...]:
    """The names that `create` and `from_torch` accept.

    >>> names()[-1]
    'vgg19_cifar'
    """
    return tuple(sorted(_ARCHITECTURES))


def create(
    name: str,
    key: jax.Array,
    *,
    image_shape: ImageShape,
    num_classes: int,
    mean: ArrayLike | Sequence[float] = (0.0,),
    std: ArrayLike | Sequence[float] = (1.0,),
    **options: Any,
) -> Normalized:
    """A classifier with random weights, initialised as PyTorch initialises its layers, in evaluation mode.

    Names without a suffix (`resnet50`) are the ImageNet forms, as in torchvision; `_cifar` marks the forms of
    kuangliu/pytorch-cifar, `_mnist` the paper's forms for MNIST, and `_bn` batch norm.

    Args:
      name: one of `names()`.
      key: random key of the weights.
      image_shape: (height, width, channels) of the images.
      num_classes: number of logits.
      mean: subtracted from images: a number, one per channel, or an image, such as the flipped mean image of flipped
        data.
      std: divides images after that: a number, or one per channel.
      **options: options of the architecture: `num_hidden=(100, 100)` for `mlp` and the VGG networks for CIFAR.

    Returns:
      A Flax module from images (N, height, width, channels) in [0, 1] to logits (N, num_classes).

    Raises:
      ValueError: if the name is unknown, or the architecture can't take the image shape or the statistics.
      TypeError: if the key is no random key, or the architecture does not take an option.

    >>> classifier = create("mlp", jax.random.key(0), image_shape=(8, 8, 1), num_classes=10)
    >>> classifier(jnp.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """
    check_key(key)
    build = architecture(name)
    check_statistics(image_shape, mean, std)
    network = build(check_image_shape(image_shape), num_classes, rngs=nnx.Rngs(key), **options)
    return in_evaluation_mode(network, mean, std)


def abstract(name: str, image_shape: ImageShape, num_classes: int, **options: Any) -> nnx.Module:
    """The network of a name with shapes in place of arrays, as `nnx.eval_shape` returns it: nothing is computed."""
    build, image_shape = architecture(name), check_image_shape(image_shape)
    return nnx.eval_shape(lambda: build(image_shape, num_classes, rngs=_OneKey(), **options))


class _OneKey:
    """A stand-in for `nnx.Rngs` where only shapes matter: counting keys would take most of the time of tracing."""

    def params(self) -> jax.Array:
        """The same key in every call."""
        return jax.random.key(0)


def in_evaluation_mode(
    network: nnx.Module, mean: ArrayLike | Sequence[float], std: ArrayLike | Sequence[float]
) -> Normalized:
    """The network with its normalisation; batch norm uses its running statistics, and nothing is dropped out."""
    statistics = jnp.atleast_1d(as_array("mean", mean)), jnp.atleast_1d(as_array("std", std))
    classifier = Normalized(network, *statistics)
    classifier.eval()
    return classifier


def architecture(name: str) -> Callable[..., nnx.Module]:
    """The function that builds the networks of a name.

    Raises:
      ValueError: if the name is unknown.
    """
    if name not in _ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}; the known ones are {', '.join(names())}")
    return _ARCHITECTURES[name]


def check_statistics(
    image_shape: ImageShape, mean: ArrayLike | Sequence[float], std: ArrayLike | Sequence[float]
) -> None:
    """Raises ValueError unless images of this shape can be normalised with these statistics."""
    image_shape = check_image_shape(image_shape)
    for argument, value in (("mean", mean), ("std", std)):
        shape = np.shape(value) or (1,)  # a number is that of every channel
        if shape not in {(1,), image_shape[2:], image_shape}:
            raise ValueError(
                f"{argument} must have one number for each of {image_shape[2]} channels, or be an image of shape "
                f"{image_shape}, got shape {shape}"
            )
    check_numbers(mean, std)
