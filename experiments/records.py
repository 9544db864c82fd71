"""Summaries of finished runs, in a JSON file for each experiment in `experiments/results/runs`.

`experiments.tables` makes the tables of `experiments/README.md` from these files. A number that is not known is null.
"""

import collections
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments import registry, store
from hmt_jax import _disk

ROOT = pathlib.Path(__file__).parent / "results"

_OF_CLAIM = ("claim", "value", "low", "high", "at_least", "at_most", "holds")


def add(path: pathlib.Path, *, hardware: str | None = None, root: pathlib.Path = ROOT) -> str:
    """The name of the experiment of a finished run, whose summary is now in the store. Adding it again changes nothing.

    `hardware` is what it ran on, in words, such as "2 CPU cores"; what JAX calls the devices if not given.

    Raises:
      ValueError: if the folder has no finished run, its files have changed, the run is a quick one, or its experiment
        is no longer there.
    """
    store.check_finished(path)
    if store.verdicts(path)["is_quick"]:
        raise ValueError(f"the run in {path} is a quick one, which proves nothing: run its full form, without --quick")
    name, run = store.read_config(path)["experiment"], summary(path, hardware)
    file = root / "runs" / f"{name}.json"
    before = json.loads(file.read_text())["runs"] if file.exists() else []
    if run not in before:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"experiment": name, "runs": [*before, run]}, indent=1, allow_nan=False)
        _disk.write(file, f"{text}\n".encode())
    return name


def summary(path: pathlib.Path, hardware: str | None = None) -> dict[str, Any]:
    """The summary of the finished run in a folder, for JSON.

    "changes" are the fields in which its configuration differs from that of its experiment, other than the seed; the
    checksum of a file stands for its path. "note", which is added by hand, tells the run from others with the same seed
    and changes. "lowest" and "highest" are median margins in the first and the last window, and "least" is the smallest
    of all. "found" lists the tested claims; other numbers worth keeping are added by hand, without thresholds.
    """
    described, environment = store.read_config(path), store.read_environment(path)
    found: dict[str, Any] = store.read_json(path / "summary.json")
    changes = registry.changes(described["experiment"], store.settings(path))
    changes.pop("seed", None)
    medians: Any = {f"{each['row']},{each['column']}": each["median"] for each in found.get("windows", [])}
    ends = list(medians.values()) or [None]
    least_window = min(medians, key=lambda window: float(medians[window]), default=None)
    return {
        "seed": described["settings"]["seed"],
        "changes": {field: described["checksums"].get(field, value) for field, value in changes.items()},
        "hardware": hardware or ", then ".join(dict.fromkeys(map(devices, [*environment["earlier"], environment]))),
        "jax": environment["packages"]["jax"],
        "commit": environment["commit"],
        "note": None,
        "seconds": environment["seconds"],
        **{field: found.get(field) for field in ("training_seconds", "measurement_seconds")},
        **{field: found.get(field) for field in ("test_accuracy", "num_images")},
        "lowest": ends[0],
        "least": medians.get(least_window),
        "least_window": least_window,
        "highest": ends[-1],
        "found": [
            {field: None if field == "holds" and "undecided" in each else each[field] for field in _OF_CLAIM}
            for each in store.verdicts(path)["claims"]
        ],
    }


def devices(environment: Mapping[str, Any]) -> str:
    """The devices of an environment, in words."""
    counts = collections.Counter(environment["devices"])
    return ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in counts.items())
