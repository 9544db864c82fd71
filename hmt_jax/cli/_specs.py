"""Subspaces and solvers that texts on the command line name."""

import inspect
import math
import re
from collections.abc import Sequence
from typing import Any

import hmt_jax

# How many numbers may follow each name, at least and at most.
_SUBSPACES = {"dct-diagonal": (1, 2), "dct-grid": (1, 2), "dct-window": (3, 3), "random": (1, 2), "full": (0, 0)}
SUBSPACES = (
    "dct-diagonal:SIZE[:STEP], dct-grid:SIZE[:STEP], dct-window:ROW:COLUMN:SIZE, random:DIMENSION[:SEED] or full"
)
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


def subspaces_of(texts: Sequence[str], image_shape: tuple[int, int, int]) -> tuple[list[Any], list[str]]:
    """The subspaces that texts such as `dct-diagonal:8:2` name, and a name for each.

    Raises:
      ValueError: for an unknown text; the message lists the known ones.
    """
    found: list[Any] = []
    names: list[str] = []
    origins: list[str] = []
    for text in texts:
        if text in origins:
            raise ValueError(f"--subspaces has {text} twice: leave one of them out")
        kind, *parts = text.split(":")
        least, most = _SUBSPACES.get(kind, (0, -1))
        if not least <= len(parts) <= most:
            raise ValueError(f"unknown subspaces {text!r}: use {SUBSPACES}")
        if not all(re.fullmatch(r"-?\d{1,9}", part) for part in parts):
            raise ValueError(f"{text!r} must have whole numbers after {kind}, of up to 9 digits: use {SUBSPACES}")
        try:
            members = _made(kind, [int(part) for part in parts], image_shape)
        except ValueError as error:
            raise ValueError(f"{text} does not fit images of shape {image_shape}: {error}") from error
        found += members
        origins += [text] * len(members)
        names += [_name_of(kind, member) for member in members]
    if len(set(names)) < len(names):  # such as windows of two sizes
        names = [f"{text} {name}" for text, name in zip(origins, names, strict=True)]
    return found, names


def _made(kind: str, numbers: list[int], image_shape) -> list[Any]:
    import jax

    subspaces = hmt_jax.subspaces
    match kind:
        case "full":
            return [subspaces.full(image_shape)]
        case "random":
            dimension, seed = (*numbers, 0)[:2]
            return [subspaces.random(jax.random.key(seed), image_shape, dimension)]
        case "dct-window":
            row, column, size = numbers
            return [subspaces.dct_window(image_shape, row=row, column=column, size=size)]
    size, step = (*numbers, 1)[:2]
    function = subspaces.dct_diagonal if kind == "dct-diagonal" else subspaces.dct_grid
    return function(image_shape, size, step)


def _name_of(kind: str, subspace: Any) -> str:
    """The name of a subspace in tables and pictures."""
    if kind == "full":
        return "full"
    if kind == "random":
        return f"random {subspace.dimension}"
    row, column = map(int, subspace.corner)
    return f"{row},{column}" if row != column or kind != "dct-diagonal" else f"{row}"


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
