"""The weights of a network in a state dict, where they may be nested, behind prefixes, or present more than once."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hmt_jax._misc import warn
from hmt_jax._paths import reason

# Parts that PyTorch's own wrappers put into names, at any depth: DataParallel, compile, FSDP, checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Counters that PyTorch keeps beside the weights, for batch norm and for averages over training.
_COUNTERS = ("num_batches_tracked", "n_averaged")
# Found in the keys of averages over training, but not in words such as semantic, schema, email or swap.
_AVERAGES = re.compile("(?<![a-z])(ema|swa)s?(?![a-z])|shadow|averag", re.IGNORECASE)
# What else a training checkpoint notes beside the weights: an epoch, an accuracy, a name.
_NO_ARRAYS = (int, float, str, bytes, type(None))
_FLOATING = ("float16", "bfloat16", "float32", "float64")
# Last parts of the names that public code uses for a normalisation within the network, as in `pixel_mean`.
_STATISTIC_NAMES = {"mean": "mean|mu", "std": "std|sigma"}
_STATISTICS = {argument: rf"((new|pixel|image|img|input)_)?({names})" for argument, names in _STATISTIC_NAMES.items()}
_MOST_CHANNELS = 4
# Statistics are published with three or four digits.
_STATISTICS_TOLERANCE = 1e-3
# Strides of 0 let a tensor have more bytes than its memory or its file: such tensors are accepted up to this size.
_MOST_REPEATED = 2**16

_BEFORE_QUANTIZATION = "save the state dict of the network before it was quantized"
# Ends of the names of entries from which weights are only computed: what they belong to, and the remedy.
_PARTS_OF_WEIGHTS = (
    (r"\.lora_\w+(\.\w+)*|\.base_layer\.\w+", "a LoRA adapter", "save the network of merge_and_unload()"),
    (
        r"\.parametrizations\.\w+\.\w+(\.\w+)*",
        "a parametrization",
        "call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') on every such layer before saving",
    ),
    (r"weight_g", "weight norm", "call torch.nn.utils.remove_weight_norm(layer) on every such layer before saving"),
    (r"weight_u", "spectral norm", "call torch.nn.utils.remove_spectral_norm(layer) on every such layer before saving"),
    (
        r"_?flat_param(_\d+)?",
        "FSDP's flattened weights",
        "save the full state dict, with torch.distributed.checkpoint.state_dict.get_model_state_dict and "
        "StateDictOptions(full_state_dict=True)",
    ),
    (
        r"weight_mask",
        "pruning",
        "call torch.nn.utils.prune.remove(layer, 'weight') on every such layer before saving",
    ),
    (
        r"\.(qweight|qzeros|zero_point|SCB|weight_scale\w*|scale_weight|weight\.(absmax|quant_map|quant_state\.\w+))",
        "quantized weights",
        _BEFORE_QUANTIZATION,
    ),
)


class Entry(NamedTuple):
    """One array of a state dict, with its key."""

    key: str
    value: Any


class Place(NamedTuple):
    """A place in a state dict: the keys that lead to a mapping in it, and a prefix of names in that mapping."""

    path: tuple
    prefix: str


class Found(NamedTuple):
    """The place of a network's arrays in a state dict, and what else the state dict holds.

    Attributes:
      place: their place.
      entries: their entries, keyed by the network's names; more than one if names differ only by wrappers.
      copies: the entries of every other place that may be meant, and holds at least half of the arrays.
      statistics: the entries of a normalisation beside the weights.
      others: all other arrays in the same mapping, without counters.
    """

    place: Place
    entries: dict[str, list[Entry]]
    copies: dict[Place, dict[str, list[Entry]]]
    statistics: list[Entry]
    others: list[Entry]

    @property
    def prefix(self) -> str:
        """The part of the keys before the network's names, with wrappers."""
        return _prefix_of(self.entries)

    @property
    def name(self) -> str:
        """The place as the argument `weights` of `from_torch` names it."""
        return _name(self.place, self.entries)

    def outside(self) -> list[Entry]:
        """The other entries whose keys do not begin with the prefix."""
        return [entry for entry in self.others if not entry.key.startswith(self.prefix)]


def mappings(state_dict: Mapping) -> Iterator[tuple[tuple, dict[str, list[Entry]]]]:
    """All mappings within a mapping, itself first: the keys that lead there, and entries by names without wrappers."""
    for path, container in _containers(state_dict):
        if isinstance(container, Mapping):
            entries: defaultdict[str, list[Entry]] = defaultdict(list)
            for key, value in container.items():
                holds_mappings = any(isinstance(part, Mapping) for _, part in _containers(value))
                if isinstance(key, str) and not holds_mappings:
                    entries[_without_wrappers(key)].append(Entry(key, value))
            yield path, entries


def _containers(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """All mappings, lists and tuples within a value, itself first, with the keys and positions that lead there."""
    if isinstance(value, Mapping | list | tuple):
        yield path, value
        for key, part in _items(value):
            yield from _containers(part, (*path, key))


def _items(container):
    return container.items() if isinstance(container, Mapping) else enumerate(container)


def find(state_dict: Mapping, names: Mapping[str, Any], weights: str | None) -> Found:
    """The arrays of a network in a state dict.

    A place is a mapping, which may be nested in others, and a prefix of names. The one with most of the network's
    arrays is taken; if several have equally many, averages come first. Others with at least half of the arrays are
    copies.

    Args:
      state_dict: arrays or tensors by name, or mappings that hold them.
      names: the array of the network for every name that it may have in a state dict.
      weights: the name of a place. Places within it count as well, unless it holds at least half of the arrays itself.
    """
    every = dict(mappings(state_dict))
    everywhere: defaultdict[Place, dict[str, list[Entry]]] = defaultdict(dict)
    for path, by_name in every.items():
        for name, entries in by_name.items():
            parts = name.split(".")
            for i in range(len(parts)):
                if (short := ".".join(parts[i:])) in names:
                    everywhere[Place(path, name.removesuffix(short))][short] = entries
    arrays = {place: {names[short] for short in held} for place, held in everywhere.items()}
    large = {place for place in everywhere if 2 * len(arrays[place]) >= len(set(names.values()))}
    places = everywhere if weights is None else _within(weights, everywhere)
    is_named = {place: place in large and weights == _name(place, held) for place, held in places.items()}
    ranked = sorted(places, key=lambda place: (is_named[place], len(arrays[place]), _is_averaged(place)), reverse=True)
    main = ranked[0] if ranked else Place(max(every, key=lambda path: len(every[path])), "")
    doubles = {place for place in large if place != main and arrays[place] & arrays.get(main, set())}
    copies = {place: places[place] for place in ranked if place in doubles and not is_named[main]}
    taken = {
        entry.key
        for place in (main, *doubles)
        if place.path == main.path
        for entry in itertools.chain(*everywhere[place].values())
    }
    left = [
        entry
        for name, entries in every[main.path].items()
        for entry in entries
        if entry.key not in taken and not name.endswith(_COUNTERS) and not isinstance(entry.value, _NO_ARRAYS)
    ]
    others = [
        entry
        for entry in left
        if not _statistic(entry) and (weights is None or is_within(joined(main.path, entry.key), weights))
    ]
    return Found(main, places.get(main, {}), copies, [entry for entry in left if _statistic(entry)], others)


def has_arrays(state_dict: Mapping) -> bool:
    """Whether a state dict holds an array by name, of any network."""
    values = (entry.value for _, by_name in mappings(state_dict) for entry in itertools.chain(*by_name.values()))
    return not all(isinstance(value, _NO_ARRAYS) for value in values)


def _within(weights, places):
    """The places with only those entries that are in the place of this name."""
    narrowed = {
        place: {
            short: kept
            for short, entries in held.items()
            if (kept := [e for e in entries if is_within(joined(place.path, _prefix(e.key, short)), weights)])
        }
        for place, held in places.items()
    }
    return {place: held for place, held in narrowed.items() if held}


def check_is_there(found: Found, anywhere: Found, weights: str) -> None:
    """Raises ValueError if the chosen place holds no array of the network; `anywhere` is found without a choice."""
    if not found.entries:
        remedy = "it holds none elsewhere, either"
        if anywhere.entries:
            remedy = f"pass weights={_either(_told_apart({anywhere.place: anywhere.entries, **anywhere.copies}))}"
        raise ValueError(f"weights is {weights!r}, and the state dict holds no array of the network there: {remedy}")


def check_copies(found: Found) -> None:
    """Raises ValueError if copies of the weights differ, because either could be meant; warns if one is an average."""
    differing: dict[Place, str] = {}
    for copy, held in found.copies.items():
        for short in filter(held.__contains__, found.entries):
            first, second = found.entries[short][0], held[short][0]
            if shape(first.value) != shape(second.value) or not _are_equal(_as_array(first), _as_array(second)):
                differing[copy] = short
                break
    if not differing:
        return
    own, *others = _told_apart({found.place: found.entries, **{copy: found.copies[copy] for copy in differing}})
    if _is_averaged(found.place) and not any(map(_is_averaged, differing)):
        warn(
            f"the state dict holds averages of the weights beside the weights themselves: the averages are taken; pass "
            f"weights={own!r} to confirm this, or weights={_either(others)} to take the others"
        )
    else:
        raise ValueError(
            f"the state dict holds the weights more than once, and their {next(iter(differing.values()))} differ: pass "
            f"weights={_either([own, *others])}"
        )


def refuse_nameless_averages(state_dict: Mapping, found: Found, num_arrays: int) -> None:
    """Raises ValueError if averages of the weights stand beside them in a list, without names, as in some libraries.

    Args:
      state_dict: the state dict.
      found: the result of `find` for it.
      num_arrays: number of the network's arrays; at least half as many arrays without names count as averages.
    """
    for path, container in _containers(state_dict):
        for key, part in _items(container):
            is_averaged = any(isinstance(step, str) and _AVERAGES.search(step) for step in (*path, key))
            if is_averaged and 2 * sum(hasattr(value, "dtype") for value in _nameless(part)) >= num_arrays:
                raise ValueError(
                    f"{joined((*path, key), '')!r} holds arrays without names, which seem to be averages of the "
                    "weights: to take them, put them into the model and save its state_dict(); to take the others, "
                    f"pass weights={found.name!r}"
                )


def _nameless(value) -> list:
    """The values of a list or tuple, nested ones included, of a mapping keyed by numbers, or of a module; else none."""
    if isinstance(value, Mapping):
        return [part for key, part in value.items() if str(key).isdecimal()]
    if callable(parameters := getattr(value, "parameters", None)):
        return list(parameters())
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _nameless(part) or [part]]
    return []


def refuse_encoded(found: Found) -> None:
    """Raises ValueError for entries that are not plain arrays, or only parts from which weights are computed."""
    for entry in itertools.chain(found.others, *found.entries.values()):
        if getattr(entry.value, "is_nested", False):
            raise ValueError(
                f"{entry.key} is a nested tensor, and weights must be single arrays: save the tensors of its unbind() "
                "under separate names"
            )
        if getattr(entry.value, "is_quantized", False) or entry.key.endswith("_packed_params"):
            raise ValueError(
                f"{entry.key} is quantized, and weights must be floating point: {_BEFORE_QUANTIZATION}, or call "
                "dequantize() on each quantized tensor"
            )
    for entry in found.others:
        for end, owner, remedy in _PARTS_OF_WEIGHTS:
            if re.search(f"({end})$", entry.key):
                raise ValueError(f"{entry.key} belongs to {owner}, and weights must be single arrays: {remedy}")
    for entry in itertools.chain(*found.entries.values()):
        if hasattr(entry.value, "dtype"):
            _check_numbers(entry)


def take(entries: list[Entry]) -> np.ndarray:
    """The one array that all these entries hold.

    Raises:
      ValueError: if they differ, or can't be weights.
    """
    arrays = [_as_array(entry) for entry in entries]
    for entry, array in zip(entries[1:], arrays[1:], strict=True):
        if not _are_equal(arrays[0], array):
            raise ValueError(
                f"the state dict holds {entries[0].key} and {entry.key}, which are two names of one array, but their "
                "numbers differ: leave one of them out"
            )
    return arrays[0]


def shape(value: Any) -> tuple[int, ...]:
    """The shape of a tensor, an array, or anything that NumPy can convert to one; () for anything else."""
    # A nested tensor raises an error, or has sizes that are not numbers.
    if getattr(value, "is_nested", False):
        return ()
    if hasattr(value, "shape"):
        return tuple(value.shape)
    # NumPy would write out the numbers that tensors in lists only repeat.
    if isinstance(value, list | tuple):
        parts = {shape(part) for part in value} or {()}
        return (len(value), *parts.pop()) if len(parts) == 1 else ()
    try:
        return np.shape(value)
    except (ValueError, TypeError, RuntimeError):
        return ()


def statistics(found: Found, given: Mapping[str, Any], num_channels: int) -> list[Any]:
    """The statistics of images, "mean" and "std": the given ones, or those that the state dict holds.

    Raises:
      ValueError: if it holds none or several, some that are not of pixels in [0, 1], or others than the given ones.
    """
    held = {
        argument: {
            entry.key: _as_array(entry).astype(np.float64).ravel()
            for entry in found.statistics
            if _statistic(entry) == argument
        }
        for argument in given
    }
    if missing := [argument for argument, value in given.items() if value is None and not held[argument]]:
        are, those = ("is", "the one") if len(missing) == 1 else ("are", "those")
        neutral = " and ".join({"mean": "mean=(0,)", "std": "std=(1,)"}[argument] for argument in missing)
        raise ValueError(
            f"{' and '.join(missing)} {are} not given, and the state dict holds none: pass {those} that the network "
            f"was trained with, or {neutral} if it was trained on images in [0, 1] as they are"
        )
    return [
        _own_statistic(argument, held[argument], num_channels)
        if value is None
        else _checked_statistic(argument, value, held[argument], num_channels)
        for argument, value in given.items()
    ]


def _own_statistic(argument, held, num_channels) -> np.ndarray:
    """The statistic that a state dict holds."""
    (key, numbers), *others = held.items()
    for other, values in others:
        if len(values) != len(numbers) or not _are_close(values, numbers):
            raise ValueError(f"{key} and {other} of the state dict differ: pass {argument}")
    if len(numbers) not in (1, num_channels):
        raise ValueError(
            f"{key} of the state dict has {len(numbers)} numbers, and the images have {num_channels} channels: pass "
            f"{argument}"
        )
    if np.abs(numbers).max() > 1:
        raise ValueError(
            f"{key} of the state dict is {_rounded(numbers)}, which is not of pixels in [0, 1]: pass {argument}, "
            f"{argument}={_rounded(numbers / 255)} if its pixels are from 0 to 255"
        )
    return numbers


def _checked_statistic(argument, given, held, num_channels) -> Any:
    """The given statistic, which must be that of the state dict, if it holds one."""
    for key, own in held.items():
        scales = (1, 255) if np.abs(own).max() > 1 else (1,)  # it may be of pixels from 0 to 255
        if len(own) not in (1, num_channels) or not any(_are_close(own / scale, given) for scale in scales):
            raise ValueError(
                f"{key} of the state dict is {_rounded(own)}, but {argument} is {_shortened(np.asarray(given))}: pass "
                f"the normalisation that the network was trained with, {argument}={_rounded(own)}, or leave that entry "
                "out"
            )
    return given


def _are_close(statistic, other):
    return np.allclose(statistic, other, rtol=0, atol=_STATISTICS_TOLERANCE)


def _rounded(numbers):
    return tuple(round(number, 4) for number in numbers.tolist())


def _statistic(entry):
    """The statistic of images, "mean" or "std", that an entry seems to be by its name and size; None if neither."""
    last = entry.key.split(".")[-1]
    is_small = math.prod(shape(entry.value)) <= _MOST_CHANNELS
    found = (argument for argument, pattern in _STATISTICS.items() if re.fullmatch(pattern, last))
    return next(found, None) if is_small else None


def _shortened(given):
    return tuple(given.tolist()) if given.ndim == 1 else f"an image with a mean of {given.mean():.4g}"


def _without_wrappers(key):
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _prefix(key, short):
    """The part of a key before the network's name `short`, with the last dot."""
    parts, num_left = key.split("."), short.count(".") + 1
    while num_left:
        num_left -= parts.pop() not in _WRAPPERS
    return "".join(f"{part}." for part in parts)


def joined(path: tuple, prefix: str) -> str:
    """The name of a place, or of an entry: all keys that lead to it, joined by dots."""
    return ".".join([*map(str, path), *filter(None, [prefix.removesuffix(".")])])


def _name(place, entries):
    return joined(place.path, _prefix_of(entries))


def _prefix_of(entries):
    return next((_prefix(held[0].key, short) for short, held in entries.items()), "")


def is_within(name: str, outer: str) -> bool:
    """Whether the place or entry of a name is the place of another name, or in it."""
    return not outer or name == outer or name.startswith(f"{outer}.")


def _told_apart(places):
    """The names of places with their entries, cut after the first keys that tell them apart."""
    names = [_name(*place) for place in places.items()]
    cut = []
    for (place, entries), name in zip(places.items(), names, strict=True):
        keys = [*map(str, place.path), *_prefix_of(entries).split(".")[:-1]]
        firsts = (".".join(keys[:i]) for i in range(1, len(keys)))
        others = [other for other in names if other != name]
        cut.append(next((first for first in firsts if not any(is_within(other, first) for other in others)), name))
    return cut


def _either(names):
    return " or weights=".join(map(repr, names))


def _is_averaged(place):
    return any(_AVERAGES.search(str(step)) for step in (*place.path, place.prefix))


def _check_numbers(entry: Entry) -> str:
    """The type of an entry's numbers.

    Raises:
      ValueError: if they can't be weights.
    """
    key, value = entry
    is_tensor = hasattr(value, "detach")
    for layout in ("sparse", "mkldnn"):
        if is_tensor and layout in str(value.layout):
            article = "an" if layout == "mkldnn" else "a"
            raise ValueError(f"{key} is {article} {layout} tensor, and weights must be dense: call to_dense() on it")
    if getattr(value, "is_meta", False):
        raise ValueError(f"{key} is a tensor on the meta device, which holds no numbers: load the weights first")
    dtype = str(value.dtype).removeprefix("torch.") if is_tensor else value.dtype.newbyteorder("=").name
    if dtype in _FLOATING:
        return dtype
    remedy = "check what wrote the state dict"
    if dtype.startswith("float"):
        convert = ".float()" if is_tensor else ".astype(np.float32)"
        remedy = f"convert it with {convert}, and multiply by its scale if it has one"
    elif "int" in dtype:
        remedy = "if these are quantized weights, convert them to floating point and multiply by their scales"
    *most, last = _FLOATING
    raise ValueError(f"{key} holds {dtype}, and weights must be {', '.join(most)} or {last}: {remedy}")


def _as_array(entry: Entry) -> np.ndarray:
    key, value = entry
    if not hasattr(value, "detach"):
        array = np.asarray(value)
        _check_numbers(Entry(key, array))
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    dtype = _check_numbers(entry)
    try:
        if value.untyped_storage().nbytes() < value.numel() * value.element_size() > _MOST_REPEATED:
            raise ValueError(
                f"{key} {shape(value)} repeats a few numbers: if that is intended, call .contiguous() on it first"
            )
        # PyTorch may only mark a tensor as negated, which NumPy can't.
        tensor = value.detach().cpu().resolve_neg()
        # NumPy has no bfloat16, and PyTorch does not convert it. The detour through float32 is exact.
        return tensor.float().numpy().astype(jnp.bfloat16) if dtype == "bfloat16" else tensor.numpy()
    except (RuntimeError, TypeError, AttributeError) as error:  # of tensors that only other libraries can compute with
        raise ValueError(
            f"{key} is a {type(value).__name__}, whose numbers can't be read ({reason(error)}): convert it to a plain "
            "tensor, with dequantize() if it is quantized, or full_tensor() if it is distributed"
        ) from error


def _are_equal(first, second):
    return first.shape == second.shape and np.array_equal(first, second, equal_nan=True)
