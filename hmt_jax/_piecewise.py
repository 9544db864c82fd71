"""Networks of ReLU and max-pooling as matrices in float64, from which exact margins and lower bounds are computed."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax.classifiers import logits_of
from hmt_jax.models import MLP, LeNet, Logistic, Normalized


class Layer(NamedTuple):
    """Units h_i = max(0, max_j weight_ij . x + bias_ij): one j makes a ReLU, several a pool of them."""

    weight: Any  # (units, options, inputs)
    bias: Any  # (units, options)


class Network(NamedTuple):
    """Layers, then logits weight . h + bias."""

    hidden: tuple[Layer, ...]
    weight: Any  # (L, inputs)
    bias: Any  # (L,)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All maps in turn; in the last one the logits are the options of one unit."""
        return *self.hidden, Layer(self.weight[None], self.bias[None])

    def with_first(self, weight: Any, bias: Any) -> "Network":
        """The network with another first map."""
        if not self.hidden:
            return Network((), weight[0], bias[0])
        return self._replace(hidden=(Layer(weight, bias), *self.hidden[1:]))


def network_of(classifier: Any, image_shape: tuple[int, int, int]) -> Network:
    """The classifier's layers on images flattened in row-major order, its normalisation in the first of them.

    Raises:
      TypeError: if the classifier is none of the known architectures.
      ValueError: if it was made for other images.
    """
    network, mean, std = classifier, np.zeros(1), np.ones(1)
    if isinstance(classifier, Normalized):
        network, mean, std = classifier.network, np.asarray(classifier.mean[...]), np.asarray(classifier.std[...])
    if not isinstance(network, Logistic | MLP | LeNet):
        raise TypeError(
            "the classifier must be a network of hmt_jax.models named 'logistic', 'mlp' or 'lenet', made by create, "
            f"load or from_torch, whose layers are known; got {type(network).__name__}"
        )
    jax.eval_shape(functools.partial(logits_of, classifier), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    maps = _maps(network, image_shape)
    weight, bias = maps[0]
    mean, std = (np.broadcast_to(value, image_shape).reshape(-1).astype(np.float64) for value in (mean, std))
    maps[0] = weight / std, bias - weight @ (mean / std)
    *hidden, (weight, bias) = maps
    return Network(tuple(Layer(*pair) for pair in hidden), weight[:, 0], bias[:, 0])


def around(network: Network, image: np.ndarray) -> Network:
    """The network as a function of the perturbation of an image; both are flattened."""
    weight, bias = network.layers[0]
    return network.with_first(weight, bias + weight @ image)


def in_coordinates(network: Network, basis: np.ndarray) -> Network:
    """The network as a function of coordinates z, which stand for basis z; (D, d) from `basis_of`."""
    weight, bias = network.layers[0]
    return network.with_first(weight @ basis, bias)


def basis_of(subspace: Any, image_shape: tuple[int, int, int]) -> np.ndarray:
    """The images of unit coordinates as columns (D, d), in float64."""
    dimension = jax.eval_shape(subspace.coordinates, jax.ShapeDtypeStruct(image_shape, jnp.float32)).shape[0]
    with jax.enable_x64(True):
        return np.asarray(jax.vmap(subspace.embed)(jnp.eye(dimension))).reshape(dimension, -1).T


def label_of(network: Network) -> int:
    """The label at the origin."""
    units = np.zeros(network.layers[0].weight.shape[-1])
    for weight, bias in network.hidden:
        units = np.maximum((weight @ units + bias).max(1), 0)
    return int(np.argmax(network.weight @ units + network.bias))


def _maps(network, image_shape):
    """Weights (units, options, inputs) and biases (units, options) of all layers, the last one included."""
    height, width, _ = image_shape
    match network:
        case Logistic():
            return [_dense(network.linear, image_shape)]
        case MLP():
            first, *rest = network.layers
            return [_dense(first, image_shape), *(_dense(layer) for layer in rest)]
        case _:
            shape = (height // 2, width // 2, 6)
            pooled = ((shape[0] - 4) // 2, (shape[1] - 4) // 2, 16)
            return [
                _convolution(network.conv1, image_shape, padding=2),
                _convolution(network.conv2, shape, padding=0),
                _dense(network.fc1, pooled),
                _dense(network.fc2),
                _dense(network.fc3),
            ]


def _dense(linear, shape=None):
    """A linear layer; if it reads images of this shape, its inputs are reordered from channels first."""
    weight = np.asarray(linear.kernel[...], np.float64).T
    if shape is not None:
        height, width, channels = shape
        weight = np.moveaxis(weight.reshape(-1, channels, height, width), 1, -1).reshape(-1, math.prod(shape))
    return weight[:, None], np.asarray(linear.bias[...], np.float64)[:, None]


def _convolution(conv, shape, padding):
    """A convolution whose responses are pooled by 2 x 2, row-major with the filters last."""
    kernel = np.moveaxis(np.asarray(conv.kernel[...], np.float64), -1, 0)
    num_filters, size, _, channels = kernel.shape
    height, width = (length + 2 * padding for length in shape[:2])
    rows, columns = (height - size + 1) // 2, (width - size + 1) // 2
    weight = np.zeros((rows, columns, num_filters, 2, 2, height, width, channels))
    for row, column, i, j in np.ndindex(rows, columns, 2, 2):
        top, left = 2 * row + i, 2 * column + j
        weight[row, column, :, i, j, top : top + size, left : left + size] = kernel
    weight = weight[..., padding : height - padding, padding : width - padding, :]
    bias = np.broadcast_to(np.asarray(conv.bias[...], np.float64)[:, None], (rows, columns, num_filters, 4))
    return weight.reshape(rows * columns * num_filters, 4, -1), bias.reshape(-1, 4)
