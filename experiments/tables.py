"""The tables of `experiments/README.md`, made from the JSON files in `experiments/results`.

A table stands between two comments. The first one names the table and the files that it is made from, all of them if it
names none; `update` writes anew whatever is between the two:

    <!-- table: claims mnist_* digits -->
    <!-- end of table -->

The tables `runs`, `claims` and `seeds` show the runs of experiments; `audits` and `solvers` show what was measured
again on the network of a run; `benchmark`, `scaling`, `tradeoffs` and `training` show the files in `speed`, which
`python -m experiments benchmark` writes; and `forms` shows the names that some configurations have.
"""

import collections
import fnmatch
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments import claims, records
from experiments.records import Found, Run

README = pathlib.Path(__file__).parent / "README.md"

_TABLE = re.compile(r"(<!-- table: (\w+)([^>\n]*) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
_HOLDS, _FAILS = "holds", "**does not hold**"
_NUM_SEEDS = 3  # the least for which the spread between them is shown
_AUDITED = ("deepfool", "tight", "tight_of_certified", "certified", "value")
_WORKLOADS = {
    "lenet_mnist": "LeNet, MNIST",
    "mlp_synthetic": "MLP, T1",
    "resnet18_cifar10": "ResNet-18, CIFAR-10",
    "resnet50_imagenet": "ResNet-50, 224 x 224",
    "resnet18_cifar10_float32": "ResNet-18, CIFAR-10",
    "resnet18_cifar10_bfloat16": "ResNet-18, CIFAR-10, bfloat16",
    "image_folder": "JPEG files of 500 x 375",
}


def scorecard(
    folders: Sequence[pathlib.Path] = (),
    *,
    hardware: str | None = None,
    root: pathlib.Path = records.ROOT,
    page: pathlib.Path = README,
) -> str:
    """The claims of the experiments whose runs are added, or of all, in Markdown; the tables of a page are rewritten.

    Args:
      folders: of finished runs, whose summaries are added to the store.
      hardware: what these ran on, in words; what JAX calls the devices if not given.
      root: of the store.
      page: the Markdown file with the tables.

    Raises:
      ValueError: if a folder has no finished run of a full form, or the page asks for a table that does not exist.
    """
    names = [records.add(path, hardware=hardware, root=root) for path in folders]
    page.write_text(update(page.read_text(encoding="utf-8"), root), encoding="utf-8")
    return table("claims", names or ["*"], root)


def update(text: str, root: pathlib.Path = records.ROOT) -> str:
    """The text of a Markdown file with its tables made anew.

    Raises:
      ValueError: for a table that does not exist, or that does not end.
    """
    num_begun, num_found = text.count("<!-- table:"), len(_TABLE.findall(text))
    if num_begun != num_found:
        raise ValueError(f"{num_begun} tables begin and {num_found} end: close each with <!-- end of table -->")

    def renewed(found: re.Match) -> str:
        begin, kind, patterns, _, end = found.groups()
        return f"{begin}{table(kind, patterns.split() or ['*'], root)}\n{end}"

    return _TABLE.sub(renewed, text)


def table(kind: str, patterns: Sequence[str] = ("*",), root: pathlib.Path = records.ROOT) -> str:
    """A table in Markdown.

    Args:
      kind: one of those that the text at the top of this file names.
      patterns: names of files in the store without `.json`, or patterns of names, in the order of the rows.
      root: of the store.

    Raises:
      ValueError: if there is no such table, or nothing in the store fits a pattern.
    """
    forms = json.loads((root / "forms.json").read_text())
    if kind == "forms":
        return _markdown(("form", "fields"), [(name, _assignments(changes)) for name, changes in forms.items()])
    if kind not in {**_OF_RUNS, **_OF_FILES}:
        known = ", ".join(["forms", *_OF_RUNS, *_OF_FILES])
        raise ValueError(f"there is no table {kind!r}: the known ones are {known}")
    folder = "runs" if kind in _OF_RUNS else _OF_FILES[kind][0]
    stored = sorted(path.stem for path in (root / folder).glob("*.json"))
    for pattern in patterns:
        if not fnmatch.filter(stored, pattern):
            raise ValueError(f"nothing in {root / folder} fits {pattern!r} of the table {kind}: correct or remove it")
    names = dict.fromkeys(name for pattern in patterns for name in fnmatch.filter(stored, pattern))
    if kind in _OF_RUNS:
        header, make, num_sparse = _OF_RUNS[kind]
        rows = [(f"`{name}`", *row) for name in names for row in make(records.load(name, root), forms)]
        return _markdown(header, _sparse(rows, num_sparse))
    return _OF_FILES[kind][1]([json.loads((root / folder / f"{name}.json").read_text()) for name in names])


def _runs(runs, forms) -> Iterable[tuple[str, ...]]:
    for run, label in zip(runs, _labels(runs, forms), strict=True):
        yield (
            label,
            str(run.seed),
            "; ".join([*([run.hardware] if run.hardware else []), *([f"JAX {run.jax}"] if run.jax else [])]),
            *map(_seconds, (run.training_seconds, run.measurement_seconds, run.seconds)),
            _percent(run.test_accuracy, 2),
            _number(run.lowest),
            _number(run.least) + (f" ({run.least_window})" if run.least_window else ""),
            _number(run.highest),
            _score([found for found in run.found if _threshold(found)]),
        )


def _score(claims: Sequence[Found]) -> str:
    """How many claims hold, of those that a run decides."""
    num_open = sum(found.holds is None for found in claims)
    num_holding = sum(found.holds is True for found in claims)
    score = f"{num_holding} of {len(claims) - num_open}" if len(claims) > num_open else ""
    return ", ".join(filter(None, [score, f"{num_open} open" if num_open else ""]))


def _claims(runs, forms) -> Iterable[tuple[str, ...]]:
    """Claims, then numbers without a threshold; each with all the forms in which something is known of it."""
    groups: dict[tuple[str, str], dict[str, list[tuple[Run, Found]]]] = {}
    for run, label in zip(runs, _labels(runs, forms), strict=True):
        for found in run.found:
            if found.value is not None or found.holds is not None:
                forms_of_claim = groups.setdefault((found.claim, _threshold(found)), {})
                forms_of_claim.setdefault(label, []).append((run, found))
    for (claim, threshold), alike in sorted(groups.items(), key=lambda item: not item[0][1]):
        for label, group in alike.items():
            seeds = ", ".join(str(run.seed) for run, _ in group)
            yield (claim, threshold, label, seeds, *_joined([found for _, found in group]))


def _joined(group: Sequence[Found]) -> tuple[str, str, str]:
    """What runs that differ in the seed alone found: numbers, their intervals, and the verdict."""
    numbers = [_number(found.value, 4) or "?" for found in group]
    intervals = [f"{_number(found.low)} to {_number(found.high)}" if found.low is not None else "?" for found in group]
    verdicts = [_verdict(found) for found in group]
    return (
        "" if set(numbers) == {"?"} else ", ".join(numbers),
        "" if set(intervals) == {"?"} else "; ".join(intervals),
        verdicts[0] if len(set(verdicts)) == 1 else f"{verdicts.count(_HOLDS)} of {len(group)} hold",
    )


def _threshold(found: Found) -> str:
    ends = (("at least", found.at_least), ("at most", found.at_most))
    return ", ".join(f"{words} {end:g}" for words, end in ends if end is not None)


def _verdict(found: Found) -> str:
    if found.holds is None:
        return claims.UNDECIDED if found.value == "nan" else ""
    return _HOLDS if found.holds else _FAILS


def _seeds(runs, forms) -> Iterable[tuple[str, ...]]:
    """What is known of a form with three seeds or more; of runs with the same seed, the last one counts."""
    found: dict[str, dict[str, dict[int, float]]] = collections.defaultdict(lambda: collections.defaultdict(dict))
    for run in runs:
        ends = {"median margin in the lowest window": run.lowest, "median margin in the highest window": run.highest}
        for quantity, value in {**ends, **{each.claim: each.value for each in run.found}}.items():
            if value is not None:
                found[_label(run, forms)][quantity][run.seed] = float(value)
    for label, quantities in found.items():
        for quantity, values in quantities.items():
            if len(values) >= _NUM_SEEDS:
                mean, low, high = map(_number, claims.from_runs(list(values.values())))
                yield label, ", ".join(map(str, sorted(values))), quantity, mean, f"{low} to {high}"


def _labels(runs: Sequence[Run], forms) -> list[str]:
    """What tells each run of an experiment from those with the same seed."""
    counts: collections.Counter[tuple[str, int]] = collections.Counter()
    labels = []
    for run in runs:
        label = _label(run, forms)
        counts[label, run.seed] += 1
        number = counts[label, run.seed]
        labels.append(label if number == 1 else f"{label}, run {number}")
    return labels


def _label(run: Run, forms) -> str:
    return _form(run.changes, forms) + (f", {run.note}" if run.note else "")


def _form(changes: Mapping[str, Any], forms) -> str:
    names = [name for name, fields in forms.items() if fields == changes]
    return names[0] if names else _assignments(changes) if changes else "full"


def _assignments(changes) -> str:
    return f"`{' '.join(f'{field}={value}' for field, value in changes.items())}`"


def _audits(files) -> str:
    (file,) = files
    first = f"first {file['num_certified']}"
    rows = [
        (
            window["window"],
            *(_number(window[field], 4) for field in _AUDITED),
            f"{_number(window['low'], 4)} to {_number(window['high'], 4)}",
            _number(window["90%"], 4),
        )
        for window in file["windows"]
    ]
    header = ("window", "DeepFool", "tight", f"tight, {first}", f"certified, {first}", "DeepFool / tight")
    return _markdown((*header, "95% interval", "90th percentile"), rows)


def _solvers(files) -> str:
    (file,) = files
    rows = [
        (
            row["solver"],
            *(f"{median:.3f} / {rest:.2f}" for median, rest in row["ratios"].values()),
            str(row["num_without_margin"]),
            f"{row['forward']:.1f}",
            f"{row['backward']:.1f}",
            f"{row['milliseconds']:.2f}",
        )
        for row in file["rows"]
    ]
    return _markdown(("solver", *file["rows"][0]["ratios"], "no margin", "forward", "backward", "ms a pair"), rows)


def _benchmark(files) -> str:
    rows = [
        (
            f"{_WORKLOADS[row['workload']]} (d = {row['dimension']})",
            *_where(file),
            _number(file["matrix_flops_per_s"] / 1e9),
            f"{row['num_pairs']:,}",
            _number(row["seconds_per_pair"] * 1e3),
            f"{row['steps_per_pair']:.2f}",
            f"{row['forward_per_pair']:.1f}",
            f"{row['backward_per_pair']:.1f}",
            _percent(row["share_of_matrix_rate"]),
            str(row["num_lanes"]),
            _percent(row["utilization"], 1),
            _number(1e3 * row["reference_seconds_per_pair"]) if "times_faster" in row else "",
            _number(row.get("times_faster")),
        )
        for file in files
        for row in file.get("rows", [])
    ]
    header = (
        *("workload", "hardware", "JAX", "matrix GFLOP/s", "pairs", "ms a pair", "steps", "forward", "backward"),
        *("of matrix rate", "lanes", "utilization", "authors' ms", "ratio"),
    )
    return _markdown(header, _sparse(sorted(rows, key=lambda row: row[0]), 1))


def _scaling(files) -> str:
    rows = [
        (
            *_where(file),
            f"{row['num_pairs']:,}",
            str(row["num_devices"]),
            _number(row["seconds"]),
            _percent(row["utilization"], 1),
            f"{row['peak_memory'] / 2**20:,.0f} MiB",
        )
        for file in files
        for row in file.get("scaling", [])
    ]
    header = ("hardware", "JAX", "pairs", "devices", "seconds", "utilization", "peak memory")
    return _markdown(header, _sparse(rows, 2))


def _tradeoffs(files) -> str:
    rows = []
    for file in files:
        for row in file.get("tradeoffs", []):
            name, value = next(iter(row.items()))
            ratios = row["median_ratios"]
            rows.append(
                (
                    *_where(file),
                    f"{value} candidates" if name == "num_candidates" else f"{name} {value}",
                    _number(row["seconds_per_pair"] * 1e3),
                    f"{min(ratios):.3f} to {max(ratios):.3f} times" if ratios else "",
                    _percent(row["share_changed"], 1),
                    str(row["num_without_margin"]),
                )
            )
    header = ("hardware", "JAX", "setting", "ms a pair", "medians of the windows", "margins changed by over 1%")
    return _markdown((*header, "without a margin"), _sparse(rows, 2))


def _training(files) -> str:
    rows = [
        (
            _WORKLOADS[name],
            *_where(file),
            *(_number(row.get(f"{prefix}images_per_s"), 4) for prefix in ("", "pytorch_", "step_")),
            _percent(row.get("share_of_matrix_rate")),
        )
        for file in files
        for name, row in file.get("training", {}).items()
    ]
    header = ("workload", "hardware", "JAX", "images/s", "PyTorch's", "ResNet-50 trains on", "of matrix rate")
    return _markdown(header, _sparse(sorted(rows, key=lambda row: row[0]), 1))


def _where(file: Mapping[str, Any]) -> tuple[str, str]:
    """Hardware, and the version of JAX. "hardware" in a file is written by hand, and says more than the devices."""
    environment = file["environment"]
    return file.get("hardware") or records.devices(environment), environment["packages"]["jax"] or ""


def _number(value: float | str | None, digits: int = 3) -> str:
    if value is None:
        return ""
    text = f"{float(value):,.{digits}g}"
    return f"{float(value):,.0f}" if "e+" in text else text


def _percent(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} s"


def _sparse(rows: Sequence[tuple[str, ...]], num_columns: int) -> list[tuple[str, ...]]:
    """Rows without the cells, in the first columns, that only repeat those above them."""
    shown, above = [], ("",) * num_columns
    for row in rows:
        num_same = next((k for k in range(num_columns) if row[k] != above[k]), num_columns)
        shown.append(("",) * num_same + row[num_same:])
        above = row[:num_columns]
    return shown


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head, *body = (re.sub(" +", " ", f"| {' | '.join(cells)} |") for cells in (header, *rows))
    return "\n".join([head, "|" + "---|" * len(header), *body])


# Of each table: its columns, what makes the rows of an experiment, and the columns whose repetitions are left out.
_OF_RUNS: dict[str, tuple[tuple[str, ...], Callable[..., Iterable[tuple[str, ...]]], int]] = {
    "runs": (
        (
            *("experiment", "form", "seed", "hardware", "training", "margins", "in all", "test accuracy"),
            *("lowest window", "least median", "highest window", "claims that hold"),
        ),
        _runs,
        2,
    ),
    "claims": (("experiment", "claim", "threshold", "form", "seeds", "found", "95% interval", ""), _claims, 3),
    "seeds": (("experiment", "form", "seeds", "found", "mean", "95% interval of one more"), _seeds, 3),
}
# Of each table: the folder of its files, and what makes it of them.
_OF_FILES: dict[str, tuple[str, Callable[[list[Any]], str]]] = {
    "audits": ("audits", _audits),
    "solvers": ("solvers", _solvers),
    "benchmark": ("speed", _benchmark),
    "scaling": ("speed", _scaling),
    "tradeoffs": ("speed", _tradeoffs),
    "training": ("speed", _training),
}
