"""Comparison of networks with state dicts: which array is which, what does not fit, and what architecture would."""

import bisect
import difflib
import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
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

_MOST_ROWS = 8  # of the table of arrays in an error
_MOST_COMPARED = 64  # missing arrays, for which a counterpart is looked for
_LEAST_SIMILARITY = 0.5  # of the names of arrays that are shown side by side
_GREATEST_SIZE = 1024  # of the images that are tried for weights
_LEAST_NAMED = 0.125  # the least share of its names that the shallowest network of a form shares with deeper ones
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
      shapes: the shape that PyTorch's array of each variable must have, with "?" for an unknown number of classes.
      names: the name of each variable in the dialect that most names of the state dict follow.
      num_classes: number of logits.
    """

    found: _state_dicts.Found
    entries: dict[tuple, list[_state_dicts.Entry]]
    shapes: dict[tuple, tuple]
    names: dict[tuple, str]
    num_classes: int

    @classmethod
    def of(
        cls, network: nnx.Module, state_dict: Mapping[str, Any], weights: str | None, *, has_any_head: bool
    ) -> "Match":
        """The match of a network, whose number of classes is taken from the state dict if `has_any_head`."""
        variables = dict(nnx.to_flat_state(nnx.state(network)))
        named = [{path: torch_name(path, dialect) for path in variables} for dialect in dialects(network)]
        found = _state_dicts.find(state_dict, {name: path for names in named for path, name in names.items()}, weights)
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
            # It may be elsewhere, where it counts as unexpected.
            ends = tuple(f".{names[*head, 'kernel']}" for names in named)
            heads = entries[*head, "kernel"] or [entry for entry in found.others if entry.key.endswith(ends)]
            num_classes = next((shape[0] for entry in heads if (shape := _state_dicts.shape(entry.value))), "?")
            for variable in ("kernel", "bias"):
                _, *rest = shapes[*head, variable]
                shapes[*head, variable] = (num_classes, *rest)
        usual = max(named, key=lambda names: sum(name in found.entries for name in names.values()))
        return cls(found, entries, shapes, usual, num_classes)

    @property
    def fits(self) -> bool:
        """Whether the state dict holds all of the network's arrays, in the right shapes, and no others."""
        return self.num_fitting == len(self.shapes) and not self.found.others

    @property
    def has_all_names(self) -> bool:
        """Whether the state dict holds all of the network's arrays, in any shapes, and no others."""
        return self.num_named == len(self.shapes) and not self.found.others

    def table(self, name: str) -> str:
        """The arrays that do not fit, for a message: those of the network beside those of the state dict.

        A missing array is beside the unexpected one of the same shape with the most similar name. The first of each
        kind of fault are shown, and the rest are counted.
        """
        misshapen = [
            (_named((entry.key, self.shapes[path])), _named((entry.key, shape)))
            for path, entries in self.entries.items()
            for entry in entries
            if (shape := _state_dicts.shape(entry.value)) != self.shapes[path]
        ]
        missing = [
            (f"{self.found.prefix}{self.names[path]}", shape)
            for path, shape in self.shapes.items()
            if not self.entries[path]
        ]
        unexpected = [(entry.key, _state_dicts.shape(entry.value)) for entry in self.found.others]
        counterparts = _counterparts(missing[:_MOST_COMPARED], unexpected)
        kinds = {
            "of another shape": misshapen,
            "missing": sorted(
                ((_named(one), _named(counterparts[one]) if one in counterparts else "-") for one in missing),
                key=lambda row: row[1] == "-",
            ),
            "unexpected": [("-", _named(one)) for one in unexpected if one not in counterparts.values()],
        }
        num_rows, num_left = {}, _MOST_ROWS
        for i, what in enumerate(sorted(kinds, key=lambda what: len(kinds[what]))):
            num_rows[what] = min(len(kinds[what]), num_left // (len(kinds) - i))
            num_left -= num_rows[what]
        rows = [(name, "the state dict"), *(row for what, kind in kinds.items() for row in kind[: num_rows[what]])]
        width = max(len(left) for left, _ in rows)
        lines = [f"  {left:{width}}  {right}" for left, right in rows]
        rest = [f"{len(kind) - num_rows[what]} more {what}" for what, kind in kinds.items() if kind[num_rows[what] :]]
        return "\n".join([*lines, f"  and {', '.join(rest)}"] if rest else lines)

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


def hidden_widths(name: str, state_dict: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """The option `num_hidden`, from the weights; empty if there are no hidden layers, or no such option."""
    build: Any = _create.architecture(name)
    layers = _HIDDEN.get(getattr(build, "func", build))
    if layers is None:
        return {}
    widths: defaultdict[tuple, dict[int, int]] = defaultdict(dict)
    for path, entries in _state_dicts.mappings(state_dict):
        for key, (entry, *_) in entries.items():
            match = re.search(rf"(.*\.|^){layers}\.(\d+)\.weight$", key)
            is_chosen = weights is None or _state_dicts.is_within(_state_dicts.joined(path, entry.key), weights)
            if match and is_chosen and len(shape := _state_dicts.shape(entry.value)) == 2:
                widths[path, match[1]][int(match[2])] = shape[0]
    deepest = max(widths.values(), key=len, default={})
    return {"num_hidden": tuple(deepest[index] for index in sorted(deepest)[:-1])} if deepest else {}


class Request(NamedTuple):
    """The arguments of `from_torch` that its caller chose."""

    name: str
    state_dict: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    weights: str | None
    num_classes: int | None
    options: Mapping[str, Any]


def misfit(asked: Request, match: Match) -> str:
    """The message for a state dict that does not fit: the cause, if it can be told, and a table of what differs."""
    if not _state_dicts.has_arrays(asked.state_dict):
        return (
            "the state dict holds no arrays by name: pass the weights of the network, as its state_dict() returns them"
        )
    start, table = f"the state dict does not fit {asked.name}", match.table(asked.name)
    if contradicted := _contradicted(asked):
        return f"{start} with {contradicted}"
    if match.has_all_names and (shape := _fitting_shape(asked, match)):
        return f"{start} with image_shape={asked.image_shape}: it fits image_shape={shape}\n{table}"
    if len(match.found.outside()) == len(match.found.others) and match.num_fitting == len(match.shapes):
        return (
            f"the state dict holds more than {asked.name}: pass weights={match.found.name!r} to take only what is "
            f"there, if the rest is not part of the network\n{table}"
        )
    return f"{start}{_nearest(asked) or ':'}\n{table}"


def _contradicted(asked):
    """The options that differ from what the weights hold, if they fit without these options; else ""."""
    if asked.num_classes is None and not asked.options:
        return ""
    inferred = hidden_widths(asked.name, asked.state_dict, asked.weights)
    free = {option: value for option, value in asked.options.items() if option != "num_hidden"}
    network = _create.abstract(asked.name, asked.image_shape, 2, **free, **inferred)
    match = Match.of(network, asked.state_dict, asked.weights, has_any_head=True)
    if not match.fits:
        return ""
    own = {"num_classes": match.num_classes, "num_hidden": inferred.get("num_hidden", ())}
    given = {"num_classes": asked.num_classes, "num_hidden": tuple(asked.options.get("num_hidden", own["num_hidden"]))}
    wrong = [option for option in own if given[option] not in (None, own[option])]
    if not wrong:
        return ""
    return (
        f"{', '.join(f'{option}={given[option]}' for option in wrong)}: its weights have "
        f"{', '.join(f'{option}={own[option]}' for option in wrong)}; leave {' and '.join(wrong)} out to take that"
    )


def _fitting_shape(asked, match):
    """An image shape that the weights fit, with other channels or the smallest square; None if there is none."""
    pairs = [(match.shapes[path], _state_dicts.shape(held[0].value)) for path, held in match.entries.items()]
    # The second length of a kernel is its number of inputs. In the first layer, it depends on the image shape.
    wrong = [(ours, theirs) for ours, theirs in pairs if ours != theirs and len(ours) > 1]
    if any((ours[0], *ours[2:]) != (theirs[:1] + theirs[2:]) for ours, theirs in wrong):
        return None
    convolved = {theirs[1] for _, theirs in wrong if len(theirs) > 2}
    is_flattened = any(len(theirs) == 2 for _, theirs in wrong)
    num_numbers = sum(math.prod(theirs) for _, theirs in pairs)

    def outline(shape):
        try:
            return _create.abstract(asked.name, shape, match.num_classes, **asked.options)
        except ValueError:  # images of that size are too small or too large
            return None

    def num_numbers_of(shape):
        network = outline(shape)
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network))) if network else 0

    *size, channels = asked.image_shape
    for num_channels in convolved or dict.fromkeys((channels, 1, 3)):
        shapes = [(*size, num_channels)]
        if is_flattened:  # the weights grow with the size of images
            squares = [(length, length, num_channels) for length in range(1, _GREATEST_SIZE + 1)]
            position = bisect.bisect_left(squares, num_numbers, key=num_numbers_of)
            shapes += squares[position : position + 1]
        for shape in shapes:
            network = outline(shape)
            if network and Match.of(network, asked.state_dict, asked.weights, has_any_head=True).fits:
                return shape
    return None


def _nearest(asked):
    """The end of a message, which names the architecture that a state dict fits best, if that is another one."""
    state_dict, image_shape, weights = asked.state_dict, asked.image_shape, asked.weights
    num_arrays = max(len(entries) for _, entries in _state_dicts.mappings(state_dict))
    own = asked.name.removesuffix("_mnist")
    matches: dict[str, Match] = {}
    # Outlines of deep networks take long, so those of the same form are tried first, and the search ends with a fit.
    for family in sorted(_families(), key=lambda family: own not in family):
        # Every layer has at least two arrays: its weights and a bias, or its weights and a norm.
        greatest_depth = num_arrays / 2
        for other in family:
            if _depth(other) > greatest_depth:
                break
            match = matches[other] = _match_outline(other, state_dict, image_shape, weights)
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
        f"; the nearest architecture is {best}: {matches[best].num_fitting} of its {len(matches[best].shapes)} arrays "
        "are there"
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


def _match_outline(name, state_dict, image_shape, weights):
    widths = hidden_widths(name, state_dict, weights)
    return Match.of(_outline(name, image_shape, **widths), state_dict, weights, has_any_head=True)


@functools.lru_cache
def _outline(name, image_shape, **widths):
    try:
        return _create.abstract(name, image_shape, 2, **widths)
    except ValueError:  # networks for CIFAR take few image sizes, but the size does not change their weights
        return _create.abstract(name, (32, 32, image_shape[2]), 2, **widths)


def _counterparts(missing, unexpected):
    """The unexpected array with the shape and a name similar to that of each missing one, where there is one."""
    pairs = sorted(
        (
            (difflib.SequenceMatcher(None, one[0], other[0], autojunk=False).ratio(), one, other)
            for one in missing
            for other in unexpected
            if one[1] == other[1]
        ),
        reverse=True,
    )
    found: dict[tuple, tuple] = {}
    for similarity, one, other in pairs:
        if similarity >= _LEAST_SIMILARITY and one not in found and other not in found.values():
            found[one] = other
    return found


def _named(array):
    name, shape = array
    return f"{name} {shape}".replace("'?'", "?")


def _torch_shape(shape):
    if len(shape) < 2:
        return shape
    *window, num_in, num_out = shape
    return (num_out, num_in, *window)
