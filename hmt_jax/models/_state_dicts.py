"""The weights of a network in a state dict, where they may be nested, behind prefixes, or present more than once."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# Parts that PyTorch's own wrappers put into names, at any depth: DataParallel, compile, FSDP, checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Counters that PyTorch keeps beside the weights, for batch norm and for averages over training.
_COUNTERS = ("num_batches_tracked", "n_averaged")
# Found in the keys of averages over training.
_AVERAGES = re.compile("ema|swa|shadow|averag", re.IGNORECASE)
_FLOATING = ("float16", "bfloat16", "float32", "float64")
# Last parts of the names that public code uses for a normalisation within the network.
_STATISTICS = {"mean": ("mean", "new_mean", "mu"), "std": ("std", "new_std", "sigma")}
_MOST_CHANNELS = 4
# Statistics are published with three or four digits.
_STATISTICS_TOLERANCE = 1e-3
# Strides of 0 let a tensor take more bytes than are in memory or in its file: accepted up to this size.
_MOST_REPEATED = 2**16


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
      copies: the entries of every other place that holds at least half of the arrays.
      statistics: the entries of a normalisation beside the weights.
      others: all other entries in the same mapping, without counters.
    """

    place: Place
    entries: dict[str, list[Entry]]
    copies: dict[Place, dict[str, list[Entry]]]
    statistics: list[Entry]
    others: list[Entry]

    @property
    def prefix(self) -> str:
        """The part of the keys before the network's names, with wrappers."""
        return _raw_prefix(self.place, self.entries)


def mappings(state_dict: Mapping) -> Iterator[tuple[tuple, dict[str, list[Entry]]]]:
    """All mappings within a mapping, itself first: the keys that lead there, and entries by names without wrappers."""
    for path, container in _containers(state_dict):
        if isinstance(container, Mapping):
            entries: defaultdict[str, list[Entry]] = defaultdict(list)
            for key, value in container.items():
                if isinstance(key, str) and not isinstance(value, Mapping):
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


def find(state_dict: Mapping, names: Mapping[str, Any]) -> Found:
    """The arrays of a network in a state dict.

    A place is a mapping, which may be nested in others, and a prefix of names. Places that hold at least half of the
    network's arrays are taken for the network or a copy of it.

    Args:
      state_dict: arrays or tensors by name, or mappings that hold them.
      names: the array of the network for every name that it may have in a state dict.
    """
    every = dict(mappings(state_dict))
    places: defaultdict[Place, dict[str, list[Entry]]] = defaultdict(dict)
    for path, by_name in every.items():
        for name, entries in by_name.items():
            parts = name.split(".")
            for i in range(len(parts)):
                if (short := ".".join(parts[i:])) in names:
                    places[Place(path, name.removesuffix(short))][short] = entries
    sizes = {place: len({names[short] for short in held}) for place, held in places.items()}
    ranked = sorted(sizes, key=lambda place: -sizes[place])
    main = ranked[0] if ranked else Place(max(every, key=lambda path: len(every[path])), "")
    is_most = {place: 2 * sizes[place] >= len(set(names.values())) for place in ranked}
    copies = {place: places[place] for place in ranked[1:] if is_most[place]}
    taken = {place.prefix + short for place in (main, *copies) if place.path == main.path for short in places[place]}
    left = [
        entries[0] for name, entries in every[main.path].items() if name not in taken and not name.endswith(_COUNTERS)
    ]
    statistics = [entry for entry in left if _statistic(entry)]
    return Found(main, places[main], copies, statistics, [entry for entry in left if not _statistic(entry)])


def check_copies(found: Found, *, is_file: bool) -> None:
    """Raises ValueError if copies of the weights differ, because either could be meant."""
    for copy, held in found.copies.items():
        for short in found.entries.keys() & held.keys():
            first, second = found.entries[short][0], held[short][0]
            if shape(first.value) != shape(second.value) or not _are_equal(_as_array(first), _as_array(second)):
                names = _told_apart((found.place, found.entries), (copy, held))
                remedy = "save one of the two to a file by itself" if is_file else "pass one of the two by itself"
                raise ValueError(
                    f"the state dict holds weights twice, and their {short} differ: {remedy}, {' or '.join(names)}"
                )


def refuse_nameless_averages(state_dict: Mapping, found: Found, num_arrays: int, *, is_file: bool) -> None:
    """Raises ValueError if averages of the weights stand beside them in a list, without names, as in some libraries.

    Args:
      state_dict: the state dict.
      found: the result of `find` for it.
      num_arrays: number of the network's arrays; half as many without names count as averages.
      is_file: whether the state dict is from a file.
    """
    for path, container in _containers(state_dict):
        for key, part in _items(container):
            is_averaged = any(isinstance(step, str) and _AVERAGES.search(step) for step in (*path, key))
            if is_averaged and 2 * sum(hasattr(value, "dtype") for value in _nameless(part)) >= num_arrays:
                remedy = "save the other weights to a file by themselves" if is_file else "pass the other weights alone"
                raise ValueError(
                    f"{_shown((*path, key))} holds arrays without the network's names, which seem to be averages of "
                    f"the weights in {_shown(found.place.path)}: to take them, put them into the model and save its "
                    f"state_dict(), otherwise {remedy}"
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


def refuse_packed(found: Found) -> None:
    """Raises ValueError for entries that are no single arrays: nested tensors, and quantized ones under other names."""
    for entry in itertools.chain(found.others, *found.entries.values()):
        if getattr(entry.value, "is_nested", False):
            raise ValueError(
                f"{entry.key} is a nested tensor, and weights must be single arrays: save the tensors of its unbind() "
                "under separate names"
            )
        if getattr(entry.value, "is_quantized", False) or entry.key.endswith("_packed_params"):
            raise ValueError(
                f"{entry.key} is quantized, and weights must be floating point: pass the state dict of the network "
                "before quantization, or call dequantize() on each quantized tensor"
            )


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
    # A nested tensor raises an error, or has sizes that are no numbers.
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


def check_statistics(found: Found, mean: np.ndarray, std: np.ndarray, num_channels: int) -> None:
    """Raises ValueError if the state dict holds a normalisation other than the given one."""
    for entry in found.statistics:
        argument = _statistic(entry)
        given = mean if argument == "mean" else std
        own = _as_array(entry).astype(np.float64).ravel()
        if len(own) not in (1, num_channels) or not np.allclose(own, given, rtol=0, atol=_STATISTICS_TOLERANCE):
            numbers = tuple(round(number, 4) for number in own.tolist())
            raise ValueError(
                f"{entry.key} of the state dict is {numbers}, but {argument} is {_shortened(given)}: pass the "
                f"normalisation that the network was trained with, {argument}={numbers}, or leave that entry out"
            )


def _statistic(entry):
    """The statistic of images, "mean" or "std", that an entry seems to be by its name and size; None if neither."""
    last = entry.key.split(".")[-1]
    is_small = math.prod(shape(entry.value)) <= _MOST_CHANNELS
    return next((argument for argument, names in _STATISTICS.items() if last in names and is_small), None)


def _shortened(given):
    return tuple(given.tolist()) if given.ndim == 1 else f"an image with a mean of {given.mean():.4g}"


def _without_wrappers(key):
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _raw_prefix(place, entries):
    keys = ((short, held[0].key) for short, held in entries.items())
    return next((key.removesuffix(short) for short, key in keys if key.endswith(short)), place.prefix)


def _told_apart(*places):
    """Distinct names of places, for a message: their mappings, or their prefixes if all are in one mapping."""
    mappings = [_shown(place.path) for place, _ in places]
    if len(set(mappings)) > 1:
        return mappings
    prefixes = [_raw_prefix(place, entries) for place, entries in places]
    return [
        f"the names of {mapping} that begin with {prefix!r}" for mapping, prefix in zip(mappings, prefixes, strict=True)
    ]


def _shown(path):
    return f"checkpoint{''.join(f'[{key!r}]' for key in path)}"


def _as_array(entry: Entry) -> np.ndarray:
    key, value = entry
    is_tensor = hasattr(value, "detach")
    for layout in ("sparse", "mkldnn"):
        if is_tensor and layout in str(value.layout):
            article = "an" if layout == "mkldnn" else "a"
            raise ValueError(f"{key} is {article} {layout} tensor, and weights must be dense: call to_dense() on it")
    if getattr(value, "is_meta", False):
        raise ValueError(f"{key} is a tensor on the device meta, which holds no numbers: load the weights first")
    array = value if is_tensor else np.asarray(value)
    dtype = str(array.dtype).removeprefix("torch.") if is_tensor else array.dtype.newbyteorder("=").name
    if dtype not in _FLOATING:
        remedy = "check what wrote the state dict"
        if dtype.startswith("float"):
            convert = ".float()" if is_tensor else ".astype(np.float32)"
            remedy = f"convert it with {convert}, and multiply by its scale if it has one"
        elif "int" in dtype:
            remedy = "if these are quantized weights, convert them to floating point and multiply by their scales"
        *most, last = _FLOATING
        raise ValueError(f"{key} holds {dtype}, and weights must be {', '.join(most)} or {last}: {remedy}")
    if is_tensor:
        if value.untyped_storage().nbytes() < value.numel() * value.element_size() > _MOST_REPEATED:
            raise ValueError(
                f"{key} {shape(value)} repeats few numbers: call .contiguous() on it before saving, if that is intended"
            )
        # PyTorch may only mark a tensor as negated, which NumPy can't.
        tensor = value.detach().cpu().resolve_neg()
        # NumPy has no bfloat16, and PyTorch does not convert it. The detour through float32 is exact.
        return tensor.float().numpy().astype(jnp.bfloat16) if dtype == "bfloat16" else tensor.numpy()
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _are_equal(first, second):
    return first.shape == second.shape and np.array_equal(first, second, equal_nan=True)
