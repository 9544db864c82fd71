"""Weights from PyTorch and back."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from hmt_jax._checks import ImageShape
from hmt_jax.models import _create, _state_dicts
from hmt_jax.models._match import Match, dialects, hidden_widths, nearest, torch_name
from hmt_jax.models._normalization import Normalized
from hmt_jax.models._weight_files import read_state_dict


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
    the paper's code, behind any prefix that they share, such as `module.`, `_orig_mod.`, `net.` or `backbone.`. The
    state dict may be nested in mappings, lists and tuples, as in training checkpoints. If it holds copies of the
    weights, they must be equal: if averaged weights are beside the others, pass one of the two. The widths of hidden
    layers are taken from the weights. A normalisation among the weights must equal `mean` and `std`. PyTorch is needed
    only to read its own files.

    Args:
      name: one of `names()`.
      state_dict: arrays or tensors by PyTorch's names: convolutions (out, in, height, width), linear layers (out, in).
        Or the path of a file that holds them, in safetensors, NumPy's .npz or PyTorch's format, whatever its name. No
        code in the file is run.
      image_shape: (height, width, channels) of the images.
      mean: subtracted from images in [0, 1]: one number per channel, or an image.
      std: divides images after that: one number per channel.
      num_classes: number of logits; taken from the last layer's weights if not given.
      **options: options of the architecture, as in `create`.

    Returns:
      A classifier as `create` returns it, in the precision of the weights.

    Raises:
      ValueError: for an unknown name; a file that can't be read or holds more than tensors; weights that are not
        floating point; copies that differ; averages without names beside the weights; another normalisation; or
        weights that do not fit, with a list of missing, unexpected and wrongly shaped arrays, and the nearest
        architecture.
      ImportError: if the file is PyTorch's, and PyTorch is not installed.
      TypeError: if `state_dict` is neither a mapping nor the name of a file, but a module for example.

    >>> weights = {"linear.weight": np.ones((2, 4), np.float32), "linear.bias": np.zeros(2, np.float32)}
    >>> classifier = from_torch("logistic", weights, image_shape=(2, 2, 1), mean=(0.5,), std=(0.5,))
    >>> classifier(np.ones((1, 2, 2, 1), np.float32)).tolist()
    [[4.0, 4.0]]
    """
    network = _create.abstract(name, image_shape, num_classes or 2, **options)
    _create.check_statistics(image_shape, mean, std)
    if not isinstance(state_dict, Mapping | str | os.PathLike):
        raise TypeError(
            f"state_dict must be a mapping or the name of a file, got {type(state_dict).__name__}: pass a module's "
            "weights with module.state_dict()"
        )
    given = state_dict if isinstance(state_dict, Mapping) else read_state_dict(state_dict, name, _num_bytes(network))
    if inferred := hidden_widths(name, given, options):
        options = {**options, **inferred}
        network = _create.abstract(name, image_shape, num_classes or 2, **options)
    match = Match.of(network, given, has_any_head=num_classes is None)
    _state_dicts.refuse_packed(match.found)
    if faults := match.faults():
        raise ValueError(f"the state dict does not fit {name}: {faults}{nearest(name, given, tuple(image_shape))}")
    is_file = given is not state_dict
    _state_dicts.check_copies(match.found, is_file=is_file)
    _state_dicts.refuse_nameless_averages(given, match.found, len(match.shapes), is_file=is_file)
    _state_dicts.check_statistics(match.found, np.asarray(mean), np.asarray(std), image_shape[2])
    if num_classes is None:
        network = _create.abstract(name, image_shape, match.num_classes, **options)
    graphdef, abstract = nnx.split(network)
    weights = [
        (path, variable.replace(_from_torch(_state_dicts.take(match.entries[path]))))
        for path, variable in nnx.to_flat_state(abstract)
    ]
    return _create.in_evaluation_mode(nnx.merge(graphdef, nnx.from_flat_state(weights)), mean, std)


def to_torch(classifier: Normalized) -> dict[str, np.ndarray]:
    """The weights of a classifier of `create` or `from_torch` in PyTorch's layout, for `load_state_dict`.

    Names are torchvision's for the ImageNet and MNIST forms, and those of kuangliu/pytorch-cifar and of the paper's
    code for the CIFAR forms. The normalisation is left out: it is in `classifier.mean` and `classifier.std`.

    Args:
      classifier: the classifier.

    >>> import jax
    >>> from hmt_jax import models
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 3), num_classes=5)
    >>> {name: array.shape for name, array in to_torch(classifier).items()}
    {'linear.bias': (5,), 'linear.weight': (5, 12)}
    """
    network = classifier.network
    dialect = dialects(network)[0]
    variables = nnx.to_flat_state(nnx.state(network))
    return {torch_name(path, dialect): _to_torch(np.asarray(variable[...])) for path, variable in variables}


def _num_bytes(network) -> int:
    """The bytes of a network's arrays in float32."""
    return 4 * sum(math.prod(variable.shape) for _, variable in nnx.to_flat_state(nnx.state(network)))


def _from_torch(array):
    """Kernels with their output axis last, as Flax has them. A copy, because PyTorch may go on training."""
    return jax.device_put(_copy(np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array))


def _to_torch(array):
    return _copy(np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array)


def _copy(array):
    return np.array(array, order="C")
