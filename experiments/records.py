"""Summaries of finished runs, in a JSON file for each experiment in `experiments/results/runs`.

`experiments.tables` makes the tables of `experiments/README.md` from these files. A number that is not known is null.
"""

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import registry, store
from hmt_jax import _disk

ROOT = pathlib.Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A number of a run, and the claim that it decides.

    Attributes:
      claim: what the number is, in words.
      value: the number; "inf" or "nan" in words, because JSON has no such numbers; None if it is not known.
      low: lower end of its 95% interval, likewise.
      high: upper end.
      at_least: the threshold at the time of the run. A number without thresholds decides nothing.
      at_most: likewise.
      holds: the verdict; None if it is not known, or undecided because the value is "nan".
    """

    claim: str
    value: float | str | None = None
    low: float | str | None = None
    high: float | str | None = None
    at_least: float | None = None
    at_most: float | None = None
    holds: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The summary of a run.

    Attributes:
      seed: of the run.
      changes: the fields in which its configuration differed from that of its experiment, other than the seed; the
        checksum of a file stands for its path.
      hardware: what it ran on.
      jax: the version of JAX.
      commit: of the repository.
      note: a few words that tell the run from others with the same seed and the same changes.
      seconds: wall time of all of it.
      training_seconds: of training.
      measurement_seconds: of measuring margins.
      test_accuracy: share of right labels.
      num_images: images whose margins were measured.
      lowest: median margin in the first window; "inf" if half of the images or more have no margin there.
      least: the smallest median of all windows.
      least_window: the row and column at which that window begins.
      highest: median margin in the last window.
      found: claims, and other numbers worth keeping.
    """

    seed: int
    changes: Mapping[str, Any]
    hardware: str | None = None
    jax: str | None = None
    commit: str | None = None
    note: str | None = None
    seconds: float | None = None
    training_seconds: float | None = None
    measurement_seconds: float | None = None
    test_accuracy: float | None = None
    num_images: int | None = None
    lowest: float | str | None = None
    least: float | str | None = None
    least_window: str | None = None
    highest: float | str | None = None
    found: tuple[Found, ...] = ()


def load(name: str, root: pathlib.Path = ROOT) -> tuple[Run, ...]:
    """The stored runs of an experiment, in the order in which they were added.

    Raises:
      ValueError: if its file has other fields than summaries have.
    """
    path = root / "runs" / f"{name}.json"
    try:
        return tuple(
            Run(**{**run, "found": tuple(Found(**found) for found in run["found"])})
            for run in json.loads(path.read_text())["runs"]
        )
    except FileNotFoundError:
        return ()
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no file of summaries ({error}): put back the one that was committed") from error


def add(path: pathlib.Path, *, hardware: str | None = None, root: pathlib.Path = ROOT) -> str:
    """The name of the experiment of a finished run, whose summary is now in the store. Adding it again changes nothing.

    Args:
      path: the run's folder.
      hardware: what it ran on, in words, such as "2 CPU cores"; what JAX calls the devices if not given.
      root: of the store.

    Raises:
      ValueError: if the folder has no finished run, its files have changed, the run is a quick one, or its experiment
        is no longer there.
    """
    store.check_finished(path)
    verdicts = store.verdicts(path)
    if verdicts["is_quick"]:
        raise ValueError(f"the run in {path} is a quick one, which proves nothing: run its full form, without --quick")
    name, run = _of_folder(path, verdicts["claims"], hardware)
    before = load(name, root)
    if run not in before:
        save(name, (*before, run), root)
    return name


def save(name: str, runs: Sequence[Run], root: pathlib.Path = ROOT) -> None:
    """Writes all runs of an experiment into the store."""
    path = root / "runs" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"experiment": name, "runs": [dataclasses.asdict(run) for run in runs]}
    _disk.write(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _of_folder(path, verdicts, hardware) -> tuple[str, Run]:
    described, environment = store.read_config(path), store.read_environment(path)
    summary: dict[str, Any] = store.read_json(path / "summary.json")
    files = described["checksums"]  # which tell files apart, wherever they are
    changes = {field: files.get(field, value) for field, value in registry.changes(path).items() if field != "seed"}
    medians = {
        f"{window['row']},{window['column']}": math.inf if window["median"] is None else window["median"]  # censored
        for window in summary.get("windows", [])
    }
    least_window, least = min(medians.items(), key=lambda item: item[1], default=(None, None))
    return described["experiment"], Run(
        seed=described["settings"]["seed"],
        changes=changes,
        hardware=hardware or ", then ".join(dict.fromkeys(map(devices, [*environment["earlier"], environment]))),
        jax=environment["packages"]["jax"],
        commit=environment["commit"],
        seconds=environment["seconds"],
        training_seconds=summary.get("training_seconds"),
        measurement_seconds=summary.get("measurement_seconds"),
        test_accuracy=summary.get("test_accuracy"),
        num_images=summary.get("num_images"),
        lowest=_for_json(next(iter(medians.values()), None)),
        least=_for_json(least),
        least_window=least_window,
        highest=_for_json(next(reversed(medians.values()), None)),
        found=tuple(_of_verdict(verdict) for verdict in verdicts),
    )


def _of_verdict(verdict) -> Found:
    fields = {field.name: verdict[field.name] for field in dataclasses.fields(Found)}
    return Found(**{**fields, "holds": None if "undecided" in verdict else verdict["holds"]})


def _for_json(number: float | None) -> float | str | None:
    return number if number is None or math.isfinite(number) else str(number)


def devices(environment: Mapping[str, Any]) -> str:
    """The devices of an environment, in words."""
    counts = collections.Counter(environment["devices"])
    return ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in counts.items())
