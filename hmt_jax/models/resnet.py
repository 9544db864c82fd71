"""Residual networks (He et al., 2016, https://arxiv.org/abs/1512.03385) of 18, 34, 50 and 101 layers."""

import jax
from flax import nnx

from hmt_jax.models import _layers

__all__ = ["NUM_BLOCKS", "CifarResNet", "ResNet"]

# Blocks in each of the four groups: Table 1 of the paper.
NUM_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class _Block(nnx.Module):
    """Two or three convolutions with batch norm, added to their input. `downsample` brings the input to their shape."""

    def __init__(self, num_in: int, num_out: int, stride: int, *, rngs: nnx.Rngs):
        self.downsample: nnx.List = nnx.List()
        if stride != 1 or num_in != num_out:
            self.downsample.append(_layers.conv_for_norm(num_in, num_out, 1, stride=stride, rngs=rngs))
            self.downsample.append(_layers.batch_norm(num_out, rngs=rngs))

    def _add(self, images: jax.Array, residual: jax.Array) -> jax.Array:
        for layer in self.downsample:
            images = layer(images)
        return jax.nn.relu(residual + images)


class _BasicBlock(_Block):
    """Two 3 x 3 convolutions, the first with the stride."""

    expansion = 1

    def __init__(self, num_in: int, num_filters: int, stride: int, *, rngs: nnx.Rngs):
        super().__init__(num_in, num_filters, stride, rngs=rngs)
        self.conv1 = _layers.conv_for_norm(num_in, num_filters, 3, stride=stride, rngs=rngs)
        self.bn1 = _layers.batch_norm(num_filters, rngs=rngs)
        self.conv2 = _layers.conv_for_norm(num_filters, num_filters, 3, rngs=rngs)
        self.bn2 = _layers.batch_norm(num_filters, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        return self._add(images, self.bn2(self.conv2(x)))


class _Bottleneck(_Block):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, the second with the stride, as in PyTorch; in the paper the first has it."""

    expansion = 4

    def __init__(self, num_in: int, num_filters: int, stride: int, *, rngs: nnx.Rngs):
        num_out = self.expansion * num_filters
        super().__init__(num_in, num_out, stride, rngs=rngs)
        self.conv1 = _layers.conv_for_norm(num_in, num_filters, 1, rngs=rngs)
        self.bn1 = _layers.batch_norm(num_filters, rngs=rngs)
        self.conv2 = _layers.conv_for_norm(num_filters, num_filters, 3, stride=stride, rngs=rngs)
        self.bn2 = _layers.batch_norm(num_filters, rngs=rngs)
        self.conv3 = _layers.conv_for_norm(num_filters, num_out, 1, rngs=rngs)
        self.bn3 = _layers.batch_norm(num_out, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        return self._add(images, self.bn3(self.conv3(x)))


class ResNet(nnx.Module):
    """The ImageNet form, as in torchvision: a 7 x 7 stem of stride 2 with max-pooling, and a global mean at the end.

    The paper's ResNet-18 for MNIST is this with one channel. It takes images of any size.

    >>> network = nnx.eval_shape(lambda: ResNet((224, 224, 3), 1000, depth=18, rngs=nnx.Rngs(0)))  # without its arrays
    >>> network.conv1.kernel.shape, network.fc.kernel.shape
    ((7, 7, 3, 64), (512, 1000))
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, depth: int, rngs: nnx.Rngs):
        block = _BasicBlock if depth < 50 else _Bottleneck
        self.conv1 = self._first_conv(image_shape, rngs)
        self.bn1 = _layers.batch_norm(64, rngs=rngs)
        num_features = 64
        groups: list[nnx.List] = []
        for num_blocks, num_filters, stride in zip(NUM_BLOCKS[depth], (64, 128, 256, 512), (1, 2, 2, 2), strict=True):
            groups.append(nnx.List())
            for i in range(num_blocks):
                groups[-1].append(block(num_features, num_filters, 1 if i else stride, rngs=rngs))
                num_features = block.expansion * num_filters
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.fc = _layers.linear(num_features, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self._shrink(jax.nn.relu(self.bn1(self.conv1(images))))
        for group in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in group:
                x = block(x)
        return self.fc(self._pool(x))

    def _first_conv(self, image_shape, rngs):
        return _layers.conv_for_norm(image_shape[-1], 64, 7, stride=2, rngs=rngs)

    def _shrink(self, images):
        return _layers.max_pool(images, 3, stride=2, padding=1)

    def _pool(self, images):
        return _layers.global_avg_pool(images)


class CifarResNet(ResNet):
    """The CIFAR form, as in kuangliu/pytorch-cifar and the paper: a 3 x 3 stem of stride 1 without max-pooling.

    The mean at the end is over 4 x 4 pixels, and there must be one such window: images of 25 x 25 to 56 x 56.

    >>> network = nnx.eval_shape(lambda: CifarResNet((32, 32, 3), 10, depth=18, rngs=nnx.Rngs(0)))  # without its arrays
    >>> network.conv1.kernel.shape
    (3, 3, 3, 64)
    """

    def _first_conv(self, image_shape, rngs):
        _layers.check_image_size("the CIFAR form of ResNet", image_shape, 25, 56)
        return _layers.conv_for_norm(image_shape[-1], 64, 3, rngs=rngs)

    def _shrink(self, images):
        return images

    def _pool(self, images):
        return _layers.flatten(_layers.avg_pool(images, 4))
