"""Networks of linear layers."""

import itertools
import math
from collections.abc import Sequence

import jax
from flax import nnx

from hmt_jax.models import _layers

__all__ = ["MLP", "Logistic"]


class MLP(nnx.Module):
    """Linear layers with ReLU between, on flattened images.

    >>> network = nnx.eval_shape(lambda: MLP((8, 8, 1), 10, num_hidden=(20,), rngs=nnx.Rngs(0)))  # without its arrays
    >>> [layer.kernel.shape for layer in network.layers]
    [(64, 20), (20, 10)]
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        num_hidden: Sequence[int] = (100, 100),
        rngs: nnx.Rngs,
    ):
        widths = [math.prod(image_shape), *num_hidden, num_classes]
        self.layers = nnx.List([_layers.linear(*pair, rngs=rngs) for pair in itertools.pairwise(widths)])

    def __call__(self, images: jax.Array) -> jax.Array:
        x = _layers.flatten(images)
        *hidden, last = self.layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return last(x)


class Logistic(nnx.Module):
    """Logistic regression: one linear layer on flattened images.

    >>> nnx.eval_shape(lambda: Logistic((8, 8, 1), 10, rngs=nnx.Rngs(0))).linear.kernel.shape
    (64, 10)
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, rngs: nnx.Rngs):
        self.linear = _layers.linear(math.prod(image_shape), num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.linear(_layers.flatten(images))
