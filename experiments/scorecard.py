"""All finished runs in one table: what they ran on, and which of their claims hold."""

import collections
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import checks, config, folder
from experiments import run as runner

_HEADER = ("experiment", "seed", "test accuracy", "device", "wall time", *checks.HEADER)
_SEEDS_HEADER = ("experiment", "seeds", "found", "mean", "95% interval of one more")
_NUM_SEEDS = 3  # the least for which the spread between them is told


def scorecard(folders: Sequence[pathlib.Path], root: pathlib.Path) -> str:
    """The table of the runs in folders, or of all under a root, for the terminal; written beside as Markdown.

    Quick runs are left out. Where a run's fields differ from those in its experiment's file, but for the seed, they
    stand behind its name. A run's own intervals are over its test images, for the network that it trained. Where there
    are three seeds of an experiment, a second table has what they found and the interval for the network of one more
    seed, or of the same seed on another processor, whose sums round in other ways.

    Args:
      folders: of finished runs; all those right under the root if there are none.
      root: where `scorecard.md` is written.

    Raises:
      ValueError: if a folder does not hold a finished run, the files of a run have changed since it wrote them, or
        there are none but quick runs.
    """
    for path in folders:
        runner.check_finished(path)
    runs = folders or sorted(path.parent for path in root.glob("*/checks.json"))
    for path in runs:
        folder.verify(path)
    found = [path for path in runs if not runner.verdicts(path)["is_quick"]]
    if not found:
        where = "in these folders" if folders else f"in {root}"
        raise ValueError(
            f"there is no finished run {where} but quick ones: run an experiment with `python -m experiments run "
            "NAME`, or name the folders of its results"
        )
    rows = [row for path in found for row in _rows(path)]
    counts = collections.Counter(row[-1] for row in rows)
    num_decided = counts[checks.HOLDS] + counts[checks.FAILS]
    undecided = f", {num} undecided" if (num := counts[checks.UNDECIDED]) else ""
    total = f"{counts[checks.HOLDS]} of {num_decided} claims hold{undecided}; runs: {len(found)}"
    over_seeds = _rows_over_seeds(found)
    tables = [[_HEADER, *rows], *([[_SEEDS_HEADER, *over_seeds]] if over_seeds else [])]
    folder.make(root)
    folder.write(root / "scorecard.md", "\n\n".join([*map(_markdown, tables), f"{total}.\n"]).encode())
    return "\n\n".join([*map(checks.align, tables), total])


def _rows(path) -> list[tuple[str, ...]]:
    """A row for each claim of a run, or one if it has none; what is the run's stands in the first one alone."""
    described, environment = folder.read_config(path), folder.read_environment(path)
    accuracy = folder.read_json(path / "summary.json").get("test_accuracy")
    run = (
        described["experiment"] + _changes(described),
        str(described["seed"]),
        "-" if accuracy is None else f"{accuracy:.2%}",
        ", then ".join(dict.fromkeys(map(_devices, [*environment.get("earlier", []), environment]))),
        f"{environment['seconds']:,.0f} s",
    )
    claims = [checks.row(verdict) for verdict in runner.verdicts(path)["checks"]]
    firsts = [run, *[("",) * len(run)] * (len(claims) - 1)]
    return [first + claim for first, claim in zip(firsts, claims or [("",) * len(checks.HEADER)], strict=True)]


def _devices(environment) -> str:
    counts = collections.Counter(environment["devices"])
    return ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in counts.items())


def _rows_over_seeds(paths) -> list[tuple[str, ...]]:
    """A row for each number of each experiment with enough seeds; of runs with the same seed, the last one counts."""
    experiments: dict[str, dict[int, pathlib.Path]] = collections.defaultdict(dict)
    for path in paths:
        described = folder.read_config(path)
        seed = described.pop("seed")
        for field in described.get("checksums", {}):  # which tell files apart, wherever they are
            described[field] = "given"
        experiments[json.dumps(described, sort_keys=True)][seed] = path
    rows: list[tuple[str, ...]] = []
    for text, runs in experiments.items():
        if len(runs) < _NUM_SEEDS:
            continue
        described = json.loads(text)
        name = described["experiment"] + _changes(described)
        found: dict[str, dict[int, float]] = collections.defaultdict(dict)
        for seed, path in runs.items():
            for quantity, value in _numbers(path).items():
                found[quantity][seed] = value
        for quantity, values in found.items():
            if len(values) >= _NUM_SEEDS:  # fewer where runs are older than a claim
                mean, low, high = checks.from_runs(list(values.values()))
                seeds = ", ".join(map(str, sorted(values)))
                rows.append((name, seeds, quantity, f"{mean:.3g}", f"{low:.3g} to {high:.3g}"))
    return rows


def _numbers(path) -> dict[str, float]:
    """What a run found: medians at both ends of its windows, if it has any, and the numbers of its claims."""
    windows = folder.read_json(path / "summary.json").get("windows", [])
    ends = {
        f"median margin in window {window['row']},{window['column']}": (
            math.inf if window["median"] is None else window["median"]  # censored
        )
        for window in [*windows[:1], *windows[1:][-1:]]
    }
    return ends | {verdict["claim"]: float(verdict["value"]) for verdict in runner.verdicts(path)["checks"]}


def _changes(described: dict[str, Any]) -> str:
    """The fields of a run that are not those of its experiment's file."""
    name = described["experiment"]
    if name not in config.names():
        return " (no longer there)"
    differing = folder.differences(described, folder.described(name, config.load(name)))
    fields = [f"{field}={found}" for field, (found, _) in differing.items() if field not in ("seed", "checksums")]
    return f" ({', '.join(fields)})" if fields else ""


def _markdown(table: Sequence[Sequence[str]]) -> str:
    header, *rows = table
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ("---",) * len(header), *rows))
