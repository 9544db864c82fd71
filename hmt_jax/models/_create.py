"""Networks by name, with weights drawn at random or taken from PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from hmt_jax.models._normalization import Normalized
from hmt_jax.models.lenet import LeNet
from hmt_jax.models.mlp import MLP, Logistic

_ARCHITECTURES: dict[str, Callable[..., nnx.Module]] = {"lenet": LeNet, "logistic": Logistic, "mlp": MLP}

ImageShape = tuple[int, int, int]


def names() -> tuple[str, ...]:
    """The names that `create` and `from_torch` know."""
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
    """A classifier with random weights, initialised as PyTorch initialises its layers.

    Args:
      name: one of `names()`.
      key: random key of the weights.
      image_shape: (height, width, channels) of the images.
      num_classes: number of logits.
      mean: subtracted from images: a number a channel, or an image, such as the flipped mean image of flipped data.
      std: what images are divided by after that, a number a channel.
      **options: of the architecture, such as `num_hidden=(100, 100)` of `mlp`.

    Returns:
      A Flax module from images (N, height, width, channels) in [0, 1] to logits (N, num_classes).

    Raises:
      ValueError: for an unknown name, or an image shape or statistics that the architecture can't take.

    >>> classifier = create("mlp", jax.random.key(0), image_shape=(8, 8, 1), num_classes=10)
    >>> classifier(jnp.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """
    network = _architecture(name)(_check_image_shape(image_shape), num_classes, rngs=nnx.Rngs(key), **options)
    _check_statistics(image_shape, mean, std)
    return Normalized(network, jnp.asarray(mean), jnp.asarray(std))


def from_torch(
    name: str,
    state_dict: Mapping[str, Any],
    *,
    image_shape: ImageShape,
    mean: ArrayLike | Sequence[float],
    std: ArrayLike | Sequence[float],
    num_classes: int | None = None,
    **options: Any,
) -> Normalized:
    """A classifier with weights in PyTorch's layout, without PyTorch.

    Args:
      name: one of `names()`.
      state_dict: arrays (or CPU tensors) by PyTorch's names: convolutions (out, in, height, width), linear layers
        (out, in).
      image_shape: (height, width, channels) of the images.
      mean: subtracted from images in [0, 1]: a number a channel, or an image.
      std: what images are divided by after that, a number a channel.
      num_classes: number of logits; that of the last layer's weights if not given.
      **options: of the architecture, as in `create`.

    Returns:
      As `create`, in the precision of the weights.

    Raises:
      ValueError: for an unknown name; or one that lists all missing, unexpected and wrongly shaped arrays.
    """
    architecture, image_shape = _architecture(name), _check_image_shape(image_shape)
    _check_statistics(image_shape, mean, std)
    arrays = {key: np.asarray(value) for key, value in state_dict.items()}

    def build(num_classes):
        return nnx.eval_shape(lambda: architecture(image_shape, num_classes, rngs=nnx.Rngs(0), **options))

    if num_classes is None:
        *_, head = (_torch_name(path) for path, part in nnx.iter_modules(build(2)) if isinstance(part, nnx.Linear))
        num_classes = len(arrays.get(f"{head}.weight", np.zeros(2)))
    graphdef, abstract = nnx.split(build(num_classes))
    expected = {_torch_name(path): (path, variable) for path, variable in nnx.to_flat_state(abstract)}
    _check_arrays(name, arrays, {key: _torch_shape(variable) for key, (_, variable) in expected.items()})
    weights = [(path, variable.replace(_from_torch(arrays[key]))) for key, (path, variable) in expected.items()]
    return Normalized(nnx.merge(graphdef, nnx.from_flat_state(weights)), jnp.asarray(mean), jnp.asarray(std))


def _architecture(name):
    if name not in _ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}; the known ones are {', '.join(names())}")
    return _ARCHITECTURES[name]


def _torch_name(path) -> str:
    """PyTorch's name of a module or variable: attributes are named alike, but for the kernel."""
    return ".".join("weight" if part == "kernel" else str(part) for part in path)


def _from_torch(array):
    """Kernels with their output axis last, as Flax has them."""
    return jnp.asarray(np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array)


def _torch_shape(variable):
    *window, num_in, num_out = (1, *variable.shape)[-max(variable.ndim, 2) :] if variable.ndim > 1 else (0, 0)
    return (num_out, num_in, *window) if variable.ndim > 1 else variable.shape


def _check_arrays(name, arrays, expected):
    missing = [f"missing: {key} {shape}" for key, shape in expected.items() if key not in arrays]
    unexpected = [f"unexpected: {key} {array.shape}" for key, array in arrays.items() if key not in expected]
    misshapen = [
        f"{key} has shape {arrays[key].shape}, expected {shape}"
        for key, shape in expected.items()
        if key in arrays and arrays[key].shape != shape
    ]
    if faults := missing + unexpected + misshapen:
        raise ValueError(f"the state dict does not fit {name}: {'; '.join(faults)}")


def _check_image_shape(image_shape) -> ImageShape:
    shape = tuple(image_shape)
    if len(shape) != 3 or any(length < 1 for length in shape):
        raise ValueError(f"image_shape must be (height, width, channels), all at least 1, got {shape}")
    return shape


def _check_statistics(image_shape, mean, std):
    for argument, value in (("mean", mean), ("std", std)):
        shape = np.shape(value)
        if shape not in {(1,), image_shape[2:], tuple(image_shape)}:
            raise ValueError(
                f"{argument} must have one number for each of {image_shape[2]} channels, or be an image of shape "
                f"{image_shape}, got shape {shape}"
            )
    if not (np.asarray(std) > 0).all():
        raise ValueError(f"std must be positive, got {std}")
