"""Comparison of networks with state dicts: which array is which, what does not fit, and which architecture would."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from hmt_jax.models import _create, _state_dicts
from hmt_jax.models.densenet import CifarDenseNet, DenseNet
from hmt_jax.models.mlp import MLP
from hmt_jax.models.resnet import CifarResNet, ResNet
from hmt_jax.models.vgg import CifarVGG

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

# The dialects that `from_torch` reads. `to_torch` writes the first.
_DIALECTS: dict[type, tuple[_Dialect, ...]] = {
    ResNet: (_RESNET_TORCHVISION, _RESNET_KUANGLIU),
    CifarResNet: (_RESNET_KUANGLIU, _RESNET_TORCHVISION),
    DenseNet: (_DENSENET_TORCHVISION, _DENSENET_OLD, _DENSENET_KUANGLIU),
    CifarDenseNet: (_DENSENET_KUANGLIU, _DENSENET_TORCHVISION, _DENSENET_OLD),
}

_MOST_NAMED = 4  # arrays in an error, for each kind of fault
_LEAST_NAMED = 0.125  # the part of its names that the shallowest network of a form shares with deeper ones, at least
_VARIABLES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# The attribute that holds the linear layers of networks with `num_hidden`.
_HIDDEN: dict[Any, str] = {MLP: "layers", CifarVGG: "classifier"}


def dialects(network: nnx.Module) -> tuple[_Dialect, ...]:
    """The dialects in which state dicts of such a network are written, the one of `to_torch` first."""
    return _DIALECTS.get(type(network), ((),))


def torch_name(path: tuple, dialect: _Dialect) -> str:
    """The name of a network's variable in a dialect."""
    *parts, variable = path
    name = ".".join(map(str, [*parts, _VARIABLES.get(variable, variable)]))
    for pattern, replacement in dialect:
        name = re.sub(pattern, replacement, name)
    return name


class Match(NamedTuple):
    """The match of a network with a state dict.

    Attributes:
      found: where the state dict holds the network's arrays.
      entries: the entries of each variable; an empty list if it is missing.
      shapes: the shape that PyTorch's array of each variable must have.
      names: the name of each variable in the dialect that most names of the state dict follow.
      num_classes: number of logits.
    """

    found: _state_dicts.Found
    entries: dict[tuple, list[_state_dicts.Entry]]
    shapes: dict[tuple, tuple[int, ...]]
    names: dict[tuple, str]
    num_classes: int

    @classmethod
    def of(cls, network: nnx.Module, state_dict: Mapping[str, Any], *, has_any_head: bool) -> "Match":
        """The match of a network, whose number of classes is taken from the state dict if `has_any_head`."""
        variables = dict(nnx.to_flat_state(nnx.state(network)))
        named = [{path: torch_name(path, dialect) for path in variables} for dialect in dialects(network)]
        found = _state_dicts.find(state_dict, {name: path for names in named for path, name in names.items()})
        entries = {
            path: [
                entry for name in dict.fromkeys(names[path] for names in named) for entry in found.entries.get(name, ())
            ]
            for path in variables
        }
        shapes = {path: _torch_shape(variable.shape) for path, variable in variables.items()}
        *_, head = (path for path, part in nnx.iter_modules(network) if isinstance(part, nnx.Linear))
        num_classes, *_ = shapes[*head, "kernel"]
        if has_any_head:
            for entry in entries[*head, "kernel"]:
                num_classes, *_ = _state_dicts.shape(entry.value) or (num_classes,)
            for variable in ("kernel", "bias"):
                _, *rest = shapes[*head, variable]
                shapes[*head, variable] = (num_classes, *rest)
        usual = max(named, key=lambda names: sum(name in found.entries for name in names.values()))
        return cls(found, entries, shapes, usual, num_classes)

    def faults(self) -> str:
        """The names of missing, unexpected and wrongly shaped arrays, for a message; empty if there are none."""
        missing = [
            f"{self.found.prefix}{self.names[path]} {self.shapes[path]}"
            for path in self.shapes
            if not self.entries[path]
        ]
        unexpected = [f"{entry.key} {_state_dicts.shape(entry.value)}" for entry in self.found.others]
        misshapen = [
            f"{entry.key} {shape} instead of {self.shapes[path]}"
            for path, entries in self.entries.items()
            for entry in entries
            if (shape := _state_dicts.shape(entry.value)) != self.shapes[path]
        ]
        kinds = {"missing": missing, "unexpected": unexpected, "wrongly shaped": misshapen}
        return "; ".join(f"{kind}: {_first(names)}" for kind, names in kinds.items() if names)

    @property
    def num_named(self) -> int:
        """The number of the network's arrays that the state dict holds."""
        return sum(map(bool, self.entries.values()))

    @property
    def num_fitting(self) -> int:
        """The number of the network's arrays that the state dict holds in the right shape."""
        return sum(
            all(_state_dicts.shape(entry.value) == self.shapes[path] for entry in entries)
            for path, entries in self.entries.items()
            if entries
        )

    @property
    def share(self) -> float:
        """The share of arrays that fit, among all that the network or the state dict has."""
        return self.num_fitting / (len(self.shapes) + len(self.found.others))


def hidden_widths(name: str, state_dict: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The option `num_hidden`, from the weights; empty if `options` has it, or the architecture does not take it."""
    build: Any = _create.architecture(name)
    layers = _HIDDEN.get(getattr(build, "func", build))
    if layers is None or "num_hidden" in options:
        return {}
    widths = {}
    for _, entries in _state_dicts.mappings(state_dict):
        for key, (entry, *_) in entries.items():
            match = re.search(rf"(?:^|\.){layers}\.(\d+)\.weight$", key)
            if match and len(shape := _state_dicts.shape(entry.value)) == 2:
                widths[int(match[1])] = shape[0]
    return {"num_hidden": tuple(widths[index] for index in sorted(widths)[:-1])} if widths else {}


def nearest(name: str, state_dict: Mapping[str, Any], image_shape: tuple[int, ...]) -> str:
    """The end of a message, which names the architecture that a state dict fits best, if that is another one."""
    num_arrays = max(len(entries) for _, entries in _state_dicts.mappings(state_dict))
    own = name.removesuffix("_mnist")
    matches: dict[str, Match] = {}
    # Outlines of deep networks are slow: those of the same form are tried first, and the first that fits is returned.
    for family in sorted(_families(), key=lambda family: own not in family):
        # Every layer has at least two arrays: its weights and a bias, or its weights and a norm.
        greatest_depth = num_arrays / 2
        for other in family:
            if _depth(other) > greatest_depth:
                break
            match = matches[other] = _match_outline(other, state_dict, image_shape)
            if match.share == 1:
                return "" if other == own else f"; it fits {other}: pass that name"
            # The shallowest one shows whether the names are of this form, and how many arrays a layer has.
            if other == family[0]:
                is_of_family = match.num_named >= _LEAST_NAMED * len(match.shapes)
                greatest_depth = 2 * num_arrays * _depth(other) / len(match.shapes) if is_of_family else 0
    best = max(matches, key=lambda other: (matches[other].share, other == own), default=own)
    if best == own or matches[best].share < 0.5:
        return ""
    return (
        f"; the nearest architecture is {best}, {matches[best].num_fitting} of whose {len(matches[best].shapes)} "
        "arrays are there"
    )


def _families() -> list[list[str]]:
    """The known networks of each form, shallow ones first, without those for MNIST, which have the ImageNet form."""
    families: dict[str, list[str]] = {}
    for name in sorted(_create.names(), key=_depth):
        if not name.endswith("_mnist"):
            families.setdefault(re.sub(r"\d+", "", name), []).append(name)
    return list(families.values())


def _depth(name):
    return int(re.sub(r"\D", "", name) or 0)


def _match_outline(name, state_dict, image_shape):
    widths = hidden_widths(name, state_dict, {})
    return Match.of(_outline(name, image_shape, **widths), state_dict, has_any_head=True)


@functools.lru_cache
def _outline(name, image_shape, **widths):
    try:
        return _create.abstract(name, image_shape, 2, **widths)
    except ValueError:  # networks for CIFAR take few image sizes, but the size does not change their weights
        return _create.abstract(name, (32, 32, image_shape[2]), 2, **widths)


def _first(names):
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _torch_shape(shape):
    if len(shape) < 2:
        return shape
    *window, num_in, num_out = shape
    return (num_out, num_in, *window)
