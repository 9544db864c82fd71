"""All finished runs in one table: what they ran on, and which of their claims hold."""

import collections
import json
import math
import pathlib
from collections.abc import Sequence

from experiments import claims, registry, report, store

_HEADER = ("experiment", "seed", "test accuracy", "device", "wall time", *claims.HEADER)
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
        store.check_finished(path)
    runs = folders or sorted(path.parent for path in root.glob("*/claims.json"))
    for path in runs:
        store.verify(path)
    found = [path for path in runs if not store.verdicts(path)["is_quick"]]
    if not found:
        where = "in these folders" if folders else f"in {root}"
        raise ValueError(
            f"there is no finished run {where} but quick ones: run an experiment with `python -m experiments run "
            "NAME`, or name the folders of its results"
        )
    rows = [row for path in found for row in _rows(path)]
    counts = collections.Counter(row[-1] for row in rows)
    num_decided = counts[claims.HOLDS] + counts[claims.FAILS]
    undecided = f", {num} undecided" if (num := counts[claims.UNDECIDED]) else ""
    total = f"{counts[claims.HOLDS]} of {num_decided} claims hold{undecided}; runs: {len(found)}"
    over_seeds = _rows_over_seeds(found)
    tables = [[_HEADER, *rows], *([[_SEEDS_HEADER, *over_seeds]] if over_seeds else [])]
    store.make(root)
    store.write(root / "scorecard.md", "\n\n".join([*map(report.markdown, tables), f"{total}.\n"]).encode())
    return "\n\n".join([*map(report.align, tables), total])


def _rows(path) -> list[tuple[str, ...]]:
    """A row for each claim of a run, or one if it has none; what is the run's stands in the first one alone."""
    environment = store.read_environment(path)
    accuracy = store.read_json(path / "summary.json").get("test_accuracy")
    run = (
        _name(path),
        str(store.settings(path)["seed"]),
        "-" if accuracy is None else f"{accuracy:.2%}",
        ", then ".join(dict.fromkeys(map(_devices, [*environment.get("earlier", []), environment]))),
        f"{environment['seconds']:,.0f} s",
    )
    tested = [claims.row(verdict) for verdict in store.verdicts(path)["claims"]] or [("",) * len(claims.HEADER)]
    firsts = [run, *[("",) * len(run)] * (len(tested) - 1)]
    return [first + claim for first, claim in zip(firsts, tested, strict=True)]


def _devices(environment) -> str:
    counts = collections.Counter(environment["devices"])
    return ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in counts.items())


def _rows_over_seeds(paths) -> list[tuple[str, ...]]:
    """A row for each number of each experiment with enough seeds; of runs with the same seed, the last one counts."""
    experiments: dict[str, dict[int, pathlib.Path]] = collections.defaultdict(dict)
    for path in paths:
        described = store.read_config(path)
        settings = {**described["settings"], **dict.fromkeys(described["checksums"], "given")}  # wherever files are
        seed = settings.pop("seed")
        described = {"experiment": described["experiment"], "settings": settings, "checksums": described["checksums"]}
        experiments[json.dumps(described, sort_keys=True)][seed] = path
    rows: list[tuple[str, ...]] = []
    for runs in experiments.values():
        if len(runs) < _NUM_SEEDS:
            continue
        name = _name(next(iter(runs.values())))
        found: dict[str, dict[int, float]] = collections.defaultdict(dict)
        for seed, path in runs.items():
            for quantity, value in _numbers(path).items():
                found[quantity][seed] = value
        for quantity, values in found.items():
            if len(values) >= _NUM_SEEDS:  # fewer where runs are older than a claim
                mean, low, high = claims.from_runs(list(values.values()))
                seeds = ", ".join(map(str, sorted(values)))
                rows.append((name, seeds, quantity, f"{mean:.3g}", f"{low:.3g} to {high:.3g}"))
    return rows


def _numbers(path) -> dict[str, float]:
    """The findings of a run: medians at both ends of its windows, if it has any, and the numbers of its claims."""
    windows = store.read_json(path / "summary.json").get("windows", [])
    ends = {
        f"median margin in window {window['row']},{window['column']}": (
            math.inf if window["median"] is None else window["median"]  # censored
        )
        for window in [*windows[:1], *windows[1:][-1:]]
    }
    return ends | {verdict["claim"]: float(verdict["value"]) for verdict in store.verdicts(path)["claims"]}


def _name(path) -> str:
    """The name of a run's experiment, and the settings that differ from it."""
    name = store.read_config(path)["experiment"]
    if name not in registry.names():
        return f"{name} (no longer there)"
    fields = [f"{field}={value}" for field, value in registry.changes(path).items() if field != "seed"]
    return f"{name} ({', '.join(fields)})" if fields else name
