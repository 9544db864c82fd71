"""Weights from PyTorch and back: layouts, and the names that public code gives to tensors."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from hmt_jax._checks import ImageShape
from hmt_jax.models import _create
from hmt_jax.models._files import read_state_dict
from hmt_jax.models._normalization import Normalized
from hmt_jax.models.densenet import CifarDenseNet, DenseNet
from hmt_jax.models.resnet import CifarResNet, ResNet

# A dialect turns our names of tensors into those of other code, by regular expressions.
_Dialect = tuple[tuple[str, str | Callable[[re.Match], str]], ...]

_RESNET_TORCHVISION: _Dialect = ()
_RESNET_KUANGLIU: _Dialect = ((r"\.downsample\.", ".shortcut."), (r"^fc\.", "linear."))
_DENSENET_KUANGLIU: _Dialect = ()
_DENSENET_TORCHVISION: _Dialect = (
    (r"^conv1\.", "features.conv0."),
    (r"^bn1\.", "features.norm0."),
    (r"^dense(\d)\.(\d+)\.", lambda match: f"features.denseblock{match[1]}.denselayer{int(match[2]) + 1}."),
    (r"(denselayer\d+)\.bn", r"\1.norm"),
    (r"^trans(\d)\.bn\.", r"features.transition\1.norm."),
    (r"^trans(\d)\.conv\.", r"features.transition\1.conv."),
    (r"^bn\.", "features.norm5."),
    (r"^linear\.", "classifier."),
)
# The checkpoints of torchvision are older than PyTorch's rule against dots in names.
_DENSENET_OLD: _Dialect = (*_DENSENET_TORCHVISION, (r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2"))

# What `from_torch` understands. `to_torch` writes the first.
_DIALECTS: dict[type, tuple[_Dialect, ...]] = {
    ResNet: (_RESNET_TORCHVISION, _RESNET_KUANGLIU),
    CifarResNet: (_RESNET_KUANGLIU, _RESNET_TORCHVISION),
    DenseNet: (_DENSENET_TORCHVISION, _DENSENET_OLD, _DENSENET_KUANGLIU),
    CifarDenseNet: (_DENSENET_KUANGLIU, _DENSENET_TORCHVISION, _DENSENET_OLD),
}

_MOST_FAULTS = 6  # named in an error
_VARIABLES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def from_torch(
    name: str,
    state_dict: Mapping[str, Any] | str | os.PathLike,
    *,
    image_shape: ImageShape,
    mean: ArrayLike | Sequence[float],
    std: ArrayLike | Sequence[float],
    num_classes: int | None = None,
    **options: Any,
) -> Normalized:
    """A classifier with weights in PyTorch's layout, in evaluation mode.

    Tensors may have the names of torchvision (also of its old DenseNet checkpoints), of kuangliu/pytorch-cifar or of
    the paper's code, behind any of `module.` and `model.`, and the state dict may lie under a key `state_dict`, `net`
    or `model`. PyTorch itself is needed only for its own kinds of files.

    Args:
      name: one of `names()`.
      state_dict: arrays or tensors by PyTorch's names: convolutions (out, in, height, width), linear layers (out, in).
        Or a file with them: .safetensors, .npz, or .pt, .pth and .t7, from which no code is run.
      image_shape: (height, width, channels) of the images.
      mean: subtracted from images in [0, 1]: a number a channel, or an image.
      std: what images are divided by after that, a number a channel.
      num_classes: number of logits; that of the last layer's weights if not given.
      **options: of the architecture, as in `create`.

    Returns:
      As `create`, in the precision of the weights.

    Raises:
      ValueError: for an unknown name, a file that can't be read or holds more than tensors; or one that lists all
        missing, unexpected and wrongly shaped arrays.
      ImportError: for a file of PyTorch's if that is not installed.
      TypeError: for anything else than a mapping or the name of a file, such as a module.
    """
    network = _create.outline(name, image_shape, num_classes or 2, **options)
    _create.check_statistics(image_shape, mean, std)
    if not isinstance(state_dict, Mapping | str | os.PathLike):
        raise TypeError(
            f"state_dict must be a mapping or the name of a file, got {type(state_dict).__name__}: give a module's "
            "weights with module.state_dict()"
        )
    given = state_dict if isinstance(state_dict, Mapping) else read_state_dict(state_dict)
    arrays = {key: _as_array(value) for key, value in _unwrapped(given).items()}
    keys = _keys(network, arrays)
    if num_classes is None:
        *_, head = (path for path, part in nnx.iter_modules(network) if isinstance(part, nnx.Linear))
        key = keys[(*head, "kernel")]
        num_classes = len(arrays[key]) if key in arrays and arrays[key].ndim else 2
        network = _create.outline(name, image_shape, num_classes, **options)
    graphdef, abstract = nnx.split(network)
    variables = nnx.to_flat_state(abstract)
    _check_arrays(name, arrays, {keys[path]: _torch_shape(variable) for path, variable in variables})
    weights = [(path, variable.replace(_from_torch(arrays[keys[path]]))) for path, variable in variables]
    return _create.in_evaluation_mode(nnx.merge(graphdef, nnx.from_flat_state(weights)), mean, std)


def to_torch(classifier: Normalized) -> dict[str, np.ndarray]:
    """The weights of a classifier of `create` or `from_torch` in PyTorch's layout, for `load_state_dict`.

    Names are torchvision's for the ImageNet and MNIST forms, and those of kuangliu/pytorch-cifar and of the paper's
    code for the CIFAR forms. The normalisation is left out: `classifier.mean` and `classifier.std` are it.

    >>> import jax
    >>> from hmt_jax import models
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 3), num_classes=5)
    >>> {name: array.shape for name, array in to_torch(classifier).items()}
    {'linear.bias': (5,), 'linear.weight': (5, 12)}
    """
    network = classifier.network
    dialect = _dialects(network)[0]
    variables = nnx.to_flat_state(nnx.state(network))
    return {_torch_name(path, dialect): _to_torch(np.asarray(variable[...])) for path, variable in variables}


def _dialects(network) -> tuple[_Dialect, ...]:
    return _DIALECTS.get(type(network), ((),))


def _torch_name(path, dialect: _Dialect) -> str:
    *parts, variable = path
    name = ".".join(map(str, [*parts, _VARIABLES.get(variable, variable)]))
    for pattern, replacement in dialect:
        name = re.sub(pattern, replacement, name)
    return name


def _keys(network, arrays) -> dict[tuple, str]:
    """The key of each variable's array: its name in the first dialect that has one here, or in the first of all."""
    dialects = _dialects(network)
    candidates = {
        path: [_torch_name(path, dialect) for dialect in dialects] for path, _ in nnx.to_flat_state(nnx.state(network))
    }
    return {path: next((key for key in keys if key in arrays), keys[0]) for path, keys in candidates.items()}


def _unwrapped(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict proper, without the counters of batch norm, and without prefixes of names."""
    for key in ("state_dict", "net", "model"):
        if isinstance(state_dict.get(key), Mapping):
            return _unwrapped(state_dict[key])
    arrays: dict[str, Any] = {}
    for key, value in state_dict.items():
        short = re.sub(r"^((module|model)\.)+", "", key)
        if not short.endswith("num_batches_tracked"):
            # Of two keys that fall together, the second stays as it is, to be reported.
            arrays[key if short in arrays else short] = value
    return arrays


def _as_array(value) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    # NumPy has no bfloat16 of its own, and PyTorch gives it none. Through float32 every number stays what it is.
    return tensor.float().numpy().astype(jnp.bfloat16) if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()


def _from_torch(array):
    """Kernels with their output axis last, as Flax has them. A copy, for PyTorch may go on training."""
    return jax.device_put(_copy(np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array))


def _to_torch(array):
    return _copy(np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array)


def _copy(array):
    return np.array(array, order="C")


def _torch_shape(variable):
    if variable.ndim < 2:
        return variable.shape
    *window, num_in, num_out = variable.shape
    return (num_out, num_in, *window)


def _check_arrays(name, arrays, expected):
    missing = [f"missing: {key} {shape}" for key, shape in expected.items() if key not in arrays]
    unexpected = [f"unexpected: {key} {array.shape}" for key, array in arrays.items() if key not in expected]
    misshapen = [
        f"{key} has shape {arrays[key].shape}, expected {shape}"
        for key, shape in expected.items()
        if key in arrays and arrays[key].shape != shape
    ]
    if faults := missing + unexpected + misshapen:
        more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise ValueError(f"the state dict does not fit {name}: {'; '.join(faults[:_MOST_FAULTS])}{more}")
