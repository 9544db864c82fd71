"""Subspaces and solvers that texts on the command line name."""

import functools
import inspect
import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hmt_jax
from hmt_jax._npy import map_npy


class _Kind(NamedTuple):
    """The parts that may follow the name of subspaces: how many, at least and at most, and which."""

    least: int
    most: int
    usage: str
    is_whole: bool = True  # whether all parts are whole numbers


_KINDS = {
    "dct-diagonal": _Kind(1, 2, ":SIZE[:STEP]"),
    "dct-grid": _Kind(1, 2, ":SIZE[:STEP]"),
    "dct-window": _Kind(3, 3, ":ROW:COLUMN:SIZE"),
    "wavelet-bands": _Kind(2, 2, ":WAVELET:LEVELS", is_whole=False),
    "fourier-rings": _Kind(2, 100, ":EDGE:EDGE[:EDGE...]", is_whole=False),
    "patches": _Kind(1, 1, ":SIZE"),
    "pixels": _Kind(1, 100, ":FILE", is_whole=False),  # whose path may have colons
    "channels": _Kind(0, 0, ""),
    "luma-chroma": _Kind(0, 0, ""),
    "principal-components": _Kind(1, 2, ":FIRST[:STOP]"),
    "class-means": _Kind(0, 0, ""),
    "random": _Kind(1, 2, ":DIMENSION[:SEED]"),
    "full": _Kind(0, 0, ""),
}
SUBSPACES = " or ".join(", ".join(f"{name}{kind.usage}" for name, kind in _KINDS.items()).rsplit(", ", 1))
_OF_FEATURES = ("principal-components", "class-means")
# The function or class of hmt_jax.solvers that makes each solver.
_SOLVERS = {
    "deepfool": "DeepFool",
    "tight": "tight",
    "ddn": "DDN",
    "fmn": "FMN",
    "superdeepfool": "SuperDeepFool",
    "closest-point": "ClosestPoint",
    "linear": "Linear",
}
SOLVERS = ", ".join(_SOLVERS)
_MOST_STEPS = 20
_LARGE = 128  # pixels along the shorter side from which windows are larger


def default_subspaces(image_shape: tuple[int, int, int]) -> str:
    """The windows of the paper for images of this size: 8:1 for 28 pixels, 8:2 for 32 and 16:16 for 224."""
    side = min(image_shape[:2])
    if side >= _LARGE:
        return "dct-diagonal:16:16"
    size = min(8, side)
    return f"dct-diagonal:{size}:{max(math.ceil((side - size) / _MOST_STEPS), 1)}"


def subspaces_of(
    texts: Sequence[str], image_shape: tuple[int, int, int], features: Callable[[], Any] | None = None
) -> tuple[list[Any], list[str]]:
    """The subspaces that texts such as `dct-diagonal:8:2` name, and a name for each.

    Args:
      texts: the texts.
      image_shape: (height, width, channels) of the images.
      features: a function that returns the images (`hmt_jax.cli._images.Images`) whose components or class means are
        meant.

    Raises:
      ValueError: for an unknown text; the message lists the known ones. If a text needs other images, and there are
        none, or they don't fit.
    """
    families = families_of(texts, image_shape, features)
    found = [each for family in families for each in family.subspaces]
    names = [name for family in families for name in family.names]
    if len(set(names)) < len(names):  # such as windows of two sizes
        names = [f"{family.text} {name}" for family in families for name in family.names]
    return found, names


class Family(NamedTuple):
    """The subspaces that one text names, with their names in tables and pictures."""

    text: str
    subspaces: list[Any]
    names: list[str]


def families_of(
    texts: Sequence[str], image_shape: tuple[int, int, int], features: Callable[[], Any] | None = None
) -> list[Family]:
    """The subspaces of each text; arguments and errors are those of `subspaces_of`."""
    found: list[Family] = []
    data = _Features(features, tuple(image_shape), texts)
    for text in texts:
        if text in (family.text for family in found):
            raise ValueError(f"--subspaces has {text} twice: leave one of them out")
        name, *parts = text.split(":")
        kind = _KINDS.get(name)
        if kind is None or not kind.least <= len(parts) <= kind.most:
            raise ValueError(f"unknown subspaces {text!r}: use {SUBSPACES}")
        if kind.is_whole and not all(re.fullmatch(r"-?\d{1,9}", part) for part in parts):
            raise ValueError(f"{text!r} must have whole numbers after {name}, of up to 9 digits: use {SUBSPACES}")
        if name in _OF_FEATURES:
            data.check(name)
        try:
            values = [int(part) for part in parts] if kind.is_whole else parts
            found.append(Family(text, *_made(name, values, image_shape, data)))
        except (ValueError, OSError) as error:
            raise ValueError(f"{text} does not fit images of shape {image_shape}: {error}") from error
    return found


def absolute(text: str) -> str:
    """The text with the absolute path of its file, if it has one, so that it means the same in other folders."""
    kind, _, path = text.partition(":")
    return f"{kind}:{os.path.abspath(os.path.expanduser(path))}" if kind == "pixels" else text


def need_features(texts: Sequence[str]) -> bool:
    """Whether some of the subspaces that texts name are those of other images."""
    return any(text.partition(":")[0] in _OF_FEATURES for text in texts)


def are_windows(texts: Sequence[str]) -> bool:
    """Whether the subspaces that texts name are DCT windows."""
    return all(text.startswith("dct-") for text in texts)


class _Features:
    """The images of --features-of, loaded when a text first needs them, and their components that texts name."""

    def __init__(self, load: Callable[[], Any] | None, image_shape: tuple[int, ...], texts: Sequence[str]):
        self._load, self._image_shape = load, image_shape
        found = [re.fullmatch(r"principal-components:(-?\d{1,9})(?::(-?\d{1,9}))?", text) for text in texts]
        self._groups = [(int(each[1]), int(each[2]) if each[2] else None) for each in found if each]

    @functools.cached_property
    def images(self) -> Any:
        if self._load is None:
            raise ValueError(f"{' and '.join(_OF_FEATURES)} need --features-of: name the images that they are of")
        images = self._load()
        if images.image_shape != self._image_shape:
            raise ValueError(
                f"the images of --features-of have shape {images.image_shape}: name others, or resize them"
            )
        return images

    @functools.cached_property
    def components(self) -> dict[tuple[int, int | None], Any]:
        """The span of each group of components that a text names; the images are read once for all."""
        spans = hmt_jax.subspaces.principal_components(self.images.read(), self._groups)
        return dict(zip(self._groups, spans, strict=True))

    def check(self, name: str) -> None:
        """Raises ValueError if there are no images for subspaces of a name, or their classes are needed and unknown."""
        images = self.images
        if name == "class-means":
            images.labels()


def _made(kind: str, values: list[Any], image_shape, data: _Features) -> tuple[list[Any], list[str]]:
    """The subspaces of one text, and their names in tables and pictures."""
    import jax

    subspaces = hmt_jax.subspaces
    match kind:
        case "full":
            return [subspaces.full(image_shape)], ["full"]
        case "random":
            dimension, seed = (*values, 0)[:2]
            return [subspaces.random(jax.random.key(seed), image_shape, dimension)], [f"random {dimension}"]
        case "wavelet-bands":
            wavelet, levels = values
            bands = subspaces.wavelet_bands(image_shape, wavelet, _whole("LEVELS", levels))
            details = itertools.product(range(int(levels), 0, -1), ("horizontal", "vertical", "diagonal"))
            return bands, ["approximation", *(f"level {level} {orientation}" for level, orientation in details)]
        case "fourier-rings":
            rings = subspaces.fourier_rings(image_shape, [_edge(edge) for edge in values])
            return rings, [f"{inner} to {outer}" for inner, outer in itertools.pairwise(values)]
        case "patches":
            size = values[0]
            patches = subspaces.patches(image_shape, size)
            places = itertools.product(range(0, image_shape[0], size), range(0, image_shape[1], size))
            return patches, [f"{row},{column}" for row, column in places]
        case "pixels":
            path = ":".join(values)
            if not os.path.isfile(path):
                raise ValueError("there is no such file: write a mask there with numpy.save")
            mask = map_npy(path)
            if mask.shape != tuple(image_shape):
                raise ValueError(f"the mask has shape {mask.shape}: write one with numpy.save, of True and False")
            return [subspaces.pixels(mask)], [f"pixels of {os.path.basename(path)}"]
        case "channels":
            return subspaces.channels(image_shape), [f"channel {number}" for number in range(image_shape[2])]
        case "luma-chroma":
            return subspaces.luma_chroma(image_shape), ["luma", "chroma"]
        case "principal-components":
            first, stop = (*values, None)[:2]
            numbers = range(math.prod(image_shape))[first:stop]
            return [data.components[first, stop]], [f"components {numbers[0]} to {numbers[-1]}"]
        case "class-means":
            means = subspaces.class_means(data.images.read(), data.images.labels())
            names = ("class means", "Fisher's directions")
            return means, [each for name in names for each in (name, f"complement of {name}")]
        case "dct-window":
            row, column, size = values
            return [subspaces.dct_window(image_shape, row=row, column=column, size=size)], [f"{row},{column}"]
    size, step = (*values, 1)[:2]
    windows = (subspaces.dct_diagonal if kind == "dct-diagonal" else subspaces.dct_grid)(image_shape, size, step)
    corners = [tuple(map(int, window.corner)) for window in windows]
    return windows, [f"{row}" if kind == "dct-diagonal" else f"{row},{column}" for row, column in corners]


def _edge(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        raise ValueError(f"edges must be numbers such as 0 or 2.5, got {text!r}")
    return float(text)


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError(f"{name} must be a whole number, got {text!r}")
    return int(text)


def axis_of(texts: Sequence[str]) -> str:
    """The label of an axis of the subspaces that texts name."""
    if len(texts) != 1 or not texts[0].startswith("dct-diagonal:"):
        return "subspace"
    size = texts[0].split(":")[1]
    return f"first frequency of the {size} x {size} DCT window, from low to high"


def solver_of(text: str) -> Any:
    """The solver that a text such as `deepfool`, `tight:fast` or `deepfool:max_steps=50,overshoot=0.01` names.

    Raises:
      ValueError: for an unknown solver or setting; the message lists the known ones.
    """
    kind, _, rest = text.partition(":")
    if kind not in _SOLVERS:
        raise ValueError(f"unknown solver {text!r}: use {SOLVERS}, with settings as in deepfool:max_steps=50")
    function = getattr(hmt_jax.solvers, _SOLVERS[kind])
    if kind == "tight" and "=" not in (rest := rest.removeprefix("effort=")):
        return function(rest or "normal")
    settings = {}
    for part in filter(None, rest.split(",")):
        name, is_setting, value = part.partition("=")
        if not is_setting or name not in inspect.signature(function).parameters:
            known = ", ".join(inspect.signature(function).parameters) or "none"
            raise ValueError(f"{kind} has no setting {part!r}: its settings are {known}, as in {kind}:NAME=VALUE")
        settings[name] = _number(part, value)
    try:
        return function(**settings)
    except TypeError as error:
        raise ValueError(f"{text!r} has a wrong setting: {error}") from error


def _number(part: str, value: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    raise ValueError(f"{part!r} must have a number after =")
