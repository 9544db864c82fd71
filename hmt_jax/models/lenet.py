"""LeNet, as the paper trains it on MNIST."""

import jax
import jax.numpy as jnp
from flax import nnx

from hmt_jax.models import _layers
from hmt_jax.models._convolution import conv_relu_pool

__all__ = ["LeNet"]


class LeNet(nnx.Module):
    """Two 5 x 5 convolutions (6 and 16 filters) with max-pooling, then 120-84-L linear units; ReLU between.

    >>> network = nnx.eval_shape(lambda: LeNet((28, 28, 1), 10, rngs=nnx.Rngs(0)))  # without its arrays
    >>> network.conv1.kernel.shape, network.fc1.kernel.shape
    ((5, 5, 1, 6), (400, 120))
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, rngs: nnx.Rngs):
        height, width, channels = image_shape
        # The first convolution keeps the size, the second takes 4 off, and each pooling halves.
        pooled = [(length // 2 - 4) // 2 for length in (height, width)]
        if min(pooled) < 1:
            raise ValueError(f"lenet needs images of at least 12 x 12, got {height} x {width}")
        self.conv1 = _layers.conv(channels, 6, 5, padding=2, rngs=rngs)
        self.conv2 = _layers.conv(6, 16, 5, rngs=rngs)
        self.fc1 = _layers.linear(16 * pooled[0] * pooled[1], 120, rngs=rngs)
        self.fc2 = _layers.linear(120, 84, rngs=rngs)
        self.fc3 = _layers.linear(84, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self._conv_relu_pool(self.conv1, images, padding=2)
        x = self._conv_relu_pool(self.conv2, x, padding=0)
        x = jax.nn.relu(self.fc1(_layers.flatten(x)))
        x = jax.nn.relu(self.fc2(x))
        return self.fc3(x)

    @staticmethod
    def _conv_relu_pool(conv: nnx.Conv, images: jax.Array, *, padding: int) -> jax.Array:
        assert conv.bias is not None
        kernel, bias = conv.kernel[...], conv.bias[...]
        dtype = jnp.promote_types(images.dtype, kernel.dtype)
        return conv_relu_pool(images.astype(dtype), kernel.astype(dtype), bias.astype(dtype), padding)
