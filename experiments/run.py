"""A run of any experiment, into a folder of its own."""

import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import checks, folder
from experiments.config import Config

_VERDICTS = "checks.json"  # the last file of a run


def run(
    name: str,
    config: Config,
    path: pathlib.Path,
    *,
    claims: Sequence[checks.Check] = (),
    is_quick: bool = False,
    data_dir: str | None = None,
    fresh: bool = False,
) -> None:
    """Runs an experiment into a folder, or what is left of it to do, and checks its claims.

    Args:
      name: of the experiment.
      config: its configuration.
      path: the folder; made if it is not there.
      claims: to be checked when it is finished.
      is_quick: whether it is a quick form, whose claims prove nothing.
      data_dir: where prepared data sets are; where TFDS keeps them if not given.
      fresh: whether to start over, though results are there.

    Raises:
      ValueError: if the folder belongs to another configuration, another run is at work in it, its files have changed
        since the run wrote them, the data set is not prepared, or the seed is out of range.
      FloatingPointError: if training diverges.
      OSError: if the folder can't be written.
    """
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed must be between 0 and {2**32 - 1}, got {config.seed}")
    with folder.held(path):
        folder.check(path, name, config)
        if not fresh:
            folder.verify(path)
        if is_finished(path) and not fresh:
            print(f"{name} is finished already; --fresh starts over")
        else:
            config.check(data_dir)
            folder.start(path, name, config, fresh=fresh)
            with folder.timed(path):
                config.run(name, path, data_dir=data_dir)
            applied = [claim.apply(path) for claim in claims]
            folder.write_json(path / _VERDICTS, {"is_quick": is_quick, "checks": applied})
    print(config.report(path))
    found = verdicts(path)
    if found["checks"]:
        print("\n" + checks.align([checks.HEADER, *map(checks.row, found["checks"])]))
    for verdict in found["checks"]:
        if "undecided" in verdict:
            print(f"not decided, {verdict['claim']}: {verdict['undecided']}")
    if found["is_quick"]:
        print("a quick run: its claims prove nothing")
    print(f"\nresults: {path}")


def verdicts(path: pathlib.Path) -> dict[str, Any]:
    """The checked claims of a finished run, "checks", and "is_quick"."""
    return folder.read_json(path / _VERDICTS)


def check_finished(path: pathlib.Path) -> None:
    """Raises ValueError unless a folder holds a finished run whose files have not changed since it wrote them."""
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}: give that of a finished run, such as results/NAME")
    if not folder.is_of_run(path):
        raise ValueError(
            f"{path} is not the folder of a run: give that of a finished one, such as results/NAME (folders of many "
            "runs go behind --root of `scorecard`)"
        )
    if not is_finished(path):
        raise ValueError(f"the run in {path} is not finished: finish it with the command that began it")
    folder.verify(path)


def is_finished(path: pathlib.Path) -> bool:
    """Whether a folder is that of a run that came to its end. Without this file, a run only checks its claims anew."""
    return (path / _VERDICTS).exists()
