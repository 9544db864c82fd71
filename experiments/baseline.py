"""The run that another one refers to, to be compared with it or for its network: one beside it, or one inside it.

Kinds of experiments differ in their fields, so that only a run of the kind that is wanted is found.
"""

import pathlib
from typing import Any

from experiments import folder
from experiments import run as runner
from experiments.config import Config

# What bears on neither the classifier nor its margins, and what does so under an attack alone.
_INCIDENTAL = {
    "experiment",
    "baseline",
    "baseline_weights",
    "evaluation_steps",
    "evaluation_restarts",
    "measure_every",
    "num_monitored",
}
_OF_ATTACKS = {"norm", "epsilon", "attack_steps", "attack_band"}


def provide(name: str, config: Config, path: pathlib.Path, data_dir: str | None) -> pathlib.Path:
    """The folder of the run that the one in `path` refers to: a finished one beside it, or a new one inside it.

    Which one it is is written down, and stays.
    """
    found = recorded(path, config)
    if found is None:
        found = _find(config, path)
        if found is None:
            print(f"{name}, first the run that it refers to:")
            found = path / "baseline"
            runner.run(name, config, found, data_dir=data_dir)
            print(f"\n{name}:")
        else:
            print(f"{name} refers to the run in {found}")
        folder.refer(path, found)
    return found


def of(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of the run that the one in a folder refers to; None if there is none.

    Raises:
      ValueError: if it is no longer where it was.
    """
    found = folder.referred(path)
    if found is not None and not found.is_dir():
        raise ValueError(f"{path} is compared with {found}, which is gone: put it back, or start over with --fresh")
    return found


def recorded(path: pathlib.Path, config: Config) -> pathlib.Path | None:
    """As `of`, if what is there is a finished run of `config`.

    Raises:
      ValueError: if it is no longer where it was, not finished, or another run.
    """
    found = of(path)
    if found is None:
        return None
    if not _is_finished(found):
        raise ValueError(f"{path} is compared with {found}, which is not finished: finish that run first")
    differing = folder.differences(_decisive(folder.read_config(found)), _decisive(folder.described("", config)))
    if differing:
        text = "; ".join(f"{field} is {there!r} there, was {before!r}" for field, (there, before) in differing.items())
        raise ValueError(
            f"{path} is compared with {found}, which holds another run by now ({text}): put the former back, or start "
            "over with --fresh"
        )
    return found


def _find(config, path) -> pathlib.Path | None:
    """A finished run beside `path`, or made for one beside it, with the classifier and margins of one of `config`."""
    wanted, root = _decisive(folder.described("", config)), path.resolve().parent
    for other in (*sorted(root.iterdir()), *sorted(root.glob("*/baseline"))):
        if other == path.resolve() or not _is_finished(other):
            continue
        if not folder.differences(_decisive(_readable_config(other)), wanted):
            return other
    return None


def _readable_config(other) -> dict[str, Any]:
    """The configuration of a run; empty, and so like no other, where it is damaged."""
    try:
        return folder.read_config(other)
    except ValueError:
        return {}


def _is_finished(other) -> bool:
    try:
        return runner.is_finished(other)
    except PermissionError:  # not a run of this user's
        return False


def _decisive(fields: dict[str, Any]) -> dict[str, Any]:
    ignored = _INCIDENTAL | (_OF_ATTACKS if fields.get("attack") == "none" else set())
    checksums = {field: value for field, value in fields.get("checksums", {}).items() if field not in ignored}
    return {field: value for field, value in fields.items() if field not in ignored} | {"checksums": checksums}
