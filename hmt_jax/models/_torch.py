"""Weights in PyTorch's layout, converted to classifiers and back."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from hmt_jax._checks import ImageShape, check_image_shape, integer
from hmt_jax.models import _create, _state_dicts
from hmt_jax.models._match import Match, Request, dialects, hidden_widths, misfit, torch_name
from hmt_jax.models._normalization import Normalized
from hmt_jax.models._weight_files import read_state_dict


def from_torch(
    name: str,
    state_dict: Mapping[str, Any] | str | os.PathLike,
    *,
    image_shape: ImageShape,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
    weights: str | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> Normalized:
    """A classifier with weights in PyTorch's layout, in evaluation mode.

    Tensors may have the names of torchvision (also of its old DenseNet checkpoints), of kuangliu/pytorch-cifar or of
    the paper's code, behind any prefix that they share, such as `module.`, `_orig_mod.`, `net.` or `backbone.`. The
    state dict may be nested in mappings, lists and tuples, as in training checkpoints. PyTorch is needed only to read
    its own files.

    A state dict may hold the weights more than once. Equal copies count as one. If it holds both the weights and their
    averages over training, such as `state_dict` and `state_dict_ema`, the averages are taken, with a warning. timm's
    `load_checkpoint` does so as well, because published accuracies are mostly those of averages. Other copies that
    differ are an error. In both cases, `weights` chooses.

    Args:
      name: one of `names()`.
      state_dict: arrays or tensors by PyTorch's names: convolutions (out, in, height, width), linear layers (out, in).
        Or the path of a file that holds them, in safetensors, NumPy's .npz or PyTorch's format, whatever its name. No
        code in the file is run.
      image_shape: (height, width, channels) of the images.
      mean: subtracted from images in [0, 1]: a number, one per channel, or an image. If not given, it is taken from a
        normalisation among the weights, such as `normalize.mean`. If both are there, they must be equal.
      std: divides images after that: a number, or one per channel. If not given, it is taken from the weights, as
        `mean` is.
      weights: the place of the weights: the keys that lead to them, joined by dots, such as `state_dict_ema` or
        `model.module.attacker.model`. What is elsewhere is ignored. This argument is needed only if there is a choice.
      num_classes: number of logits; taken from the last layer's weights if not given.
      **options: options of the architecture, as in `create`; `num_hidden` is taken from the weights if not given.

    Returns:
      A classifier as `create` returns it, in the precision of the weights.

    Raises:
      ValueError: for an unknown name; a file that can't be read or holds more than tensors; weights that are not
        floating point; copies that differ; averages without names beside the weights; no normalisation, or another one
        than the given one; or weights that do not fit, with a table of missing, unexpected and wrongly shaped arrays,
        and the option, the image shape or the architecture that would fit, if there is one.
      ImportError: if the file is PyTorch's, and PyTorch is not installed.
      TypeError: if `state_dict` is neither a mapping nor the name of a file, but a module for example.

    >>> state_dict = {"linear.weight": np.ones((2, 4), np.float32), "linear.bias": np.zeros(2, np.float32)}
    >>> classifier = from_torch("logistic", state_dict, image_shape=(2, 2, 1), mean=(0.5,), std=(0.5,))
    >>> classifier(np.ones((1, 2, 2, 1), np.float32)).tolist()
    [[4.0, 4.0]]
    """
    image_shape = check_image_shape(image_shape)
    num_classes = None if num_classes is None else integer("num_classes", num_classes, at_least=1)
    network = _create.abstract(name, image_shape, num_classes or 2, **options)
    _create.check_statistics(image_shape, (0.0,) if mean is None else mean, (1.0,) if std is None else std)
    if not isinstance(state_dict, Mapping | str | os.PathLike):
        raise TypeError(
            f"state_dict must be a mapping or the name of a file, got {type(state_dict).__name__}: pass a module's "
            "weights with module.state_dict()"
        )
    if not isinstance(weights, str | None):
        raise TypeError(
            f"weights must be the place of the weights in the state dict, such as 'state_dict_ema', or None, got "
            f"{type(weights).__name__}: pass the weights themselves as state_dict"
        )
    given = state_dict if isinstance(state_dict, Mapping) else read_state_dict(state_dict, name, _num_bytes(network))
    if widths := hidden_widths(name, given, weights):
        options = {**widths, **options}
        network = _create.abstract(name, image_shape, num_classes or 2, **options)
    match = Match.of(network, given, weights, has_any_head=num_classes is None)
    found = match.found
    if weights is not None:
        _state_dicts.check_is_there(found, Match.of(network, given, None, has_any_head=True).found, weights)
    _state_dicts.refuse_encoded(found)
    if not match.fits:
        raise ValueError(misfit(Request(name, given, image_shape, weights, num_classes, options), match))
    _state_dicts.check_copies(found)
    if weights is None:
        _state_dicts.refuse_nameless_averages(given, found, len(match.shapes))
    mean, std = _state_dicts.statistics(found, {"mean": mean, "std": std}, image_shape[2])
    if num_classes is None:
        network = _create.abstract(name, image_shape, match.num_classes, **options)
    graphdef, abstract = nnx.split(network)
    variables = [
        (path, variable.replace(_from_torch(_state_dicts.take(match.entries[path]))))
        for path, variable in nnx.to_flat_state(abstract)
    ]
    return _create.in_evaluation_mode(nnx.merge(graphdef, nnx.from_flat_state(variables)), mean, std)


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
    """A kernel with its output axis last, as in Flax. It is copied, because PyTorch may go on training."""
    return jax.device_put(_copy(np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array))


def _to_torch(array):
    return _copy(np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array)


def _copy(array):
    return np.array(array, order="C")
