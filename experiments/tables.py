"""The tables of `experiments/README.md`, made from the JSON files in `experiments/results`.

A table stands between two comments. The first one names the table and the files that it is made from, all of them if it
names none; `update` writes anew whatever is between the two:

    <!-- table: claims mnist_* digits -->
    <!-- end of table -->

The tables are those of `_KINDS`, at the end of this file.
"""

import collections
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from experiments import records, report
from hmt_jax import estimates

README = pathlib.Path(__file__).parent / "README.md"

_TABLE = re.compile(r"(<!-- table: (\w+)([^>\n]*) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_HOLDS, _FAILS = "holds", "DOES NOT HOLD"
_NUM_SEEDS = 3  # the least for which the spread between them is shown
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
    return _TABLE.sub(lambda found: f"{found[1]}{table(found[2], found[3].split() or ['*'], root)}\n{found[4]}", text)


def table(kind: str, patterns: Sequence[str] = ("*",), root: pathlib.Path = records.ROOT) -> str:
    """A table in Markdown, of the files in the store whose names fit a pattern, in the order of the patterns.

    Raises:
      ValueError: if there is no such table, or nothing in the store fits a pattern.
    """
    if kind not in _KINDS:
        raise ValueError(f"there is no table {kind!r}: the known ones are {', '.join(_KINDS)}")
    folder, lines_of, num_sparse = root / _KINDS[kind][0], *_KINDS[kind][1:]
    paths: list[pathlib.Path] = []
    for pattern in patterns:
        paths += (found := sorted(folder.glob(f"{pattern}.json"), key=lambda path: path.stem))
        if not found:
            raise ValueError(f"nothing in {folder} fits {pattern!r} of the table {kind}: correct or remove it")
    files = [json.loads(path.read_text()) for path in dict.fromkeys(paths)]
    if folder.name == "runs":
        forms = json.loads((root / "forms.json").read_text())
        files = [{**file, "runs": list(_labelled(file["runs"], forms))} for file in files]
    (header, *_), *_ = tables = [list(lines_of(file)) for file in files]
    rows = [row for _, *rows in tables for row in rows]
    if kind in ("benchmark", "training"):
        rows.sort(key=lambda row: row.partition(" |")[0])  # the workload
    return markdown([header, *rows], num_sparse)


def markdown(lines: Iterable[str], num_sparse: int = 0) -> str:
    """A table in Markdown, of lines with " | " between their cells, the header first.

    In the first columns, as many as `num_sparse`, cells that only repeat those above them are left empty.
    """
    above, shown = [""] * num_sparse, []
    for cells in map(_split, lines):
        num_same = next((k for k in range(num_sparse) if cells[k] != above[k]), num_sparse)
        shown.append(re.sub(" +", " ", f"| {' | '.join([''] * num_same + cells[num_same:])} |"))
        above = cells
    return "\n".join([shown[0], "|" + "---|" * len(above), *shown[1:]])


def aligned(lines: Iterable[str]) -> str:
    """The same table for the terminal."""
    return report.aligned(map(_split, lines))


def _split(line) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


# Runs of experiments


def _labelled(runs, forms) -> Iterator[dict[str, Any]]:
    """Runs with "form", the name of what they changed, and "label", which tells apart those with the same seed, too."""
    counts: collections.Counter[tuple[str, int]] = collections.Counter()
    for run in runs:
        names = [name for name, fields in forms.items() if fields == run["changes"]]
        form = names[0] if names else _assignments(run["changes"]) if run["changes"] else "full"
        form += f", {run['note']}" if run["note"] else ""
        counts[form, run["seed"]] += 1
        number = counts[form, run["seed"]]
        yield {**run, "form": form, "label": form if number == 1 else f"{form}, run {number}"}


def _assignments(changes) -> str:
    return f"`{' '.join(f'{field}={value}' for field, value in changes.items())}`"


def _forms(forms) -> Iterator[str]:
    yield "form | fields"
    for name, changes in forms.items():
        yield f"{name} | {_assignments(changes)}"


def _runs(file) -> Iterator[str]:
    yield (
        "experiment | form | seed | hardware | training | margins | in all | test accuracy "
        "| lowest window | smallest median | highest window | claims that hold"
    )
    for run in file["runs"]:
        hardware = "; ".join(filter(None, [run["hardware"], run["jax"] and f"JAX {run['jax']}"]))
        times = (_number(run[f"{part}seconds"], ",.0f", " s") for part in ("training_", "measurement_", ""))
        where = f" ({run['least_window']})" if run["least_window"] else ""
        verdicts = [found["holds"] for found in run["found"] if _threshold(found)]
        yield (
            f"`{file['experiment']}` | {run['label']} | {run['seed']} | {hardware} | {' | '.join(times)} "
            f"| {_number(run['test_accuracy'], '.2%')} | {_number(run['lowest'])} | {_number(run['least'])}{where} "
            f"| {_number(run['highest'])} | {_score(verdicts)}"
        )


def _score(verdicts) -> str:
    """The number of claims that hold, of those that a run decides."""
    num_open = verdicts.count(None)
    score = f"{verdicts.count(True)} of {len(verdicts) - num_open}" if len(verdicts) > num_open else ""
    return ", ".join(filter(None, [score, f"{num_open} open" if num_open else ""]))


def _claims(file) -> Iterator[str]:
    """Claims, then numbers without a threshold; each with all the forms in which something is known of it."""
    yield "experiment | claim | threshold | form | seeds | found | 95% interval |"
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for run in file["runs"]:
        for found in run["found"]:
            if found["value"] is not None or found["holds"] is not None:
                labels = groups.setdefault((found["claim"], _threshold(found)), {})
                labels.setdefault(run["label"], []).append({"seed": run["seed"], **found})
    for (claim, threshold), labels in sorted(groups.items(), key=lambda item: not item[0][1]):
        for label, group in labels.items():
            seeds = ", ".join(str(found["seed"]) for found in group)
            numbers = _joined(", ", [_number(found["value"], ",.4g") for found in group])
            intervals = _joined("; ", [_interval(found) for found in group])
            outcomes = [_outcome(found).replace(_FAILS, "**does not hold**") for found in group]
            common = f"{outcomes.count(_HOLDS)} of {len(group)} hold" if len({*outcomes}) > 1 else outcomes[0]
            yield (
                f"`{file['experiment']}` | {claim} | {threshold} | {label} | {seeds} | {numbers} | {intervals} "
                f"| {common}"
            )


def _joined(separator: str, cells: Sequence[str]) -> str:
    return separator.join(cell or "?" for cell in cells) if any(cells) else ""


def _seeds(file) -> Iterator[str]:
    """The mean and spread of each number of a form that was run with three seeds or more.

    The last of several runs with the same seed counts.
    """
    yield "experiment | form | seeds | found | mean | 95% interval of one more"
    values: dict[str, dict[str, dict[int, float]]] = {}
    for run in file["runs"]:
        ends = {f"median margin in the {end} window": run[end] for end in ("lowest", "highest")}
        for quantity, value in {**ends, **{found["claim"]: found["value"] for found in run["found"]}}.items():
            if value is not None:
                values.setdefault(run["form"], {}).setdefault(quantity, {})[run["seed"]] = float(value)
    for form, quantities in values.items():
        for quantity, of_seeds in quantities.items():
            if len(of_seeds) >= _NUM_SEEDS:
                seeds, found = (
                    ", ".join(map(str, sorted(of_seeds))),
                    estimates.from_runs([*of_seeds.values()])._asdict(),
                )
                cells = f"{seeds} | {quantity} | {_number(found['value'])} | {_interval(found)}"
                yield f"`{file['experiment']}` | {form} | {cells}"


def verdicts(tested: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of tested claims."""
    yield "claim | found | 95% interval | threshold |"
    yield from (" | ".join(verdict(found)) for found in tested)


def verdict(found: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """The claim, its number, interval, threshold and outcome, as texts."""
    return found["claim"], _number(found["value"]), _interval(found), _threshold(found), _outcome(found)


def _threshold(found) -> str:
    ends = (("at least", found["at_least"]), ("at most", found["at_most"]))
    return ", ".join(f"{words} {end:g}" for words, end in ends if end is not None)


def _outcome(found) -> str:
    if found["value"] == "nan":
        return "undecided"
    return {True: _HOLDS, False: _FAILS, None: ""}[found["holds"]]


# Measured again on the network of a run


def audits(file: Mapping[str, Any]) -> Iterator[str]:
    """The lines of an audit: medians of windows, and the run's margins and quick ones over the tight ones."""
    number = file["num_certified"]
    certified = f" | tight, first {number} | certified, first {number}" if number else ""
    fields = ("tight", "deepfool", *(("tight_of_certified", "certified") if number else ()))
    ratios = {"DeepFool": "ratio", "quick": "quick_ratio"}
    headings = " | ".join(f"{name} / tight | 95% interval | 90th percentile" for name in ratios)
    yield f"window | tight | DeepFool{certified} | {headings}"
    for window in file["windows"]:
        cells = [_number(window[field], ",.4g") for field in fields]
        for ratio in (window[field] for field in ratios.values()):
            cells += [_number(ratio["value"], ",.4g"), _interval(ratio, ",.4g"), _number(ratio["90%"], ",.4g")]
        yield f"{window['window']} | {' | '.join(cells)}"


def solvers(file: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a comparison of solvers: medians and 90th percentiles of ratios to the least margins, and costs."""
    yield f"solver | {' | '.join(file['rows'][0]['ratios'])} | no margin | forward | backward | ms a pair"
    for row in file["rows"]:
        ratios = " | ".join(f"{float(median):.3f} / {float(rest):.2f}" for median, rest in row["ratios"].values())
        costs = f"{row['forward']:.1f} | {row['backward']:.1f} | {row['milliseconds']:.2f}"
        yield f"{row['solver']} | {ratios} | {row['num_without_margin']} | {costs}"


# Speed


def _benchmark(file) -> Iterator[str]:
    yield (
        "workload | hardware | JAX | matrix GFLOP/s | pairs | ms a pair | steps | forward | backward | of matrix rate "
        "| lanes | utilization | authors' ms | ratio"
    )
    for row in file.get("rows", []):
        yield (
            f"{_WORKLOADS[row['workload']]} (d = {row['dimension']}) | {_where(file)} "
            f"| {_number(file['matrix_flops_per_s'] / 1e9)} | {row['num_pairs']:,} "
            f"| {_number(1e3 * row['seconds_per_pair'])} | {row['steps_per_pair']:.2f} | {row['forward_per_pair']:.1f} "
            f"| {row['backward_per_pair']:.1f} | {row['share_of_matrix_rate']:.0%} | {row['num_lanes']} "
            f"| {row['utilization']:.1%} | {_number(row.get('reference_seconds_per_pair'), scale=1e3)} "
            f"| {_number(row.get('times_faster'))}"
        )


def _scaling(file) -> Iterator[str]:
    yield "hardware | JAX | pairs | devices | seconds | utilization | peak memory"
    for row in file.get("scaling", []):
        yield (
            f"{_where(file)} | {row['num_pairs']:,} | {row['num_devices']} | {_number(row['seconds'])} "
            f"| {row['utilization']:.1%} | {row['peak_memory'] / 2**20:,.0f} MiB"
        )


def _tradeoffs(file) -> Iterator[str]:
    yield (
        "hardware | JAX | setting | ms a pair | medians of the windows | margins changed by over 1% | without a margin"
    )
    for row in file.get("tradeoffs", []):
        (name, value), ratios = next(iter(row.items())), row["median_ratios"]
        setting = f"{value} candidates" if name == "num_candidates" else f"{name} {value}"
        medians = f"{min(ratios):.3f} to {max(ratios):.3f} times" if ratios else ""
        yield (
            f"{_where(file)} | {setting} | {_number(1e3 * row['seconds_per_pair'])} | {medians} "
            f"| {_number(row['share_changed'], '.1%')} | {row['num_without_margin']}"
        )


def _training(file) -> Iterator[str]:
    yield "workload | hardware | JAX | images/s | PyTorch's | ResNet-50 trains on | of matrix rate"
    for row in file.get("training", []):
        speeds = (_number(row.get(f"{prefix}images_per_s"), ",.4g") for prefix in ("", "pytorch_", "step_"))
        share = _number(row.get("share_of_matrix_rate"), ".0%")
        yield f"{_WORKLOADS[row['workload']]} | {_where(file)} | {' | '.join(speeds)} | {share}"


def _suite(file) -> Iterator[str]:
    """A line for each row that was planned, measured or not."""
    yield "hardware | JAX | measurement | found | images | note"
    found = {row["measurement"]: row for row in file.get("suite", [])}
    for name in file.get("planned", []):
        row = found.get(name, {})
        value = f"{_number(row['value'], ',.4g')} {row['unit']}" if "value" in row else "not measured"
        note = row.get("note") or row.get("not_measured", "")
        yield f"{_where(file)} | {name} | {value} | {_number(row.get('num_images'), ',.0f')} | {note}"


def _where(file) -> str:
    """Hardware, and the version of JAX. "hardware" in a file is written by hand, and says more than the devices."""
    environment = file["environment"]
    return f"{file.get('hardware') or records.devices(environment)} | {environment['packages']['jax'] or ''}"


def _number(value: float | str | None, spec: str = ",.3g", unit: str = "", *, scale: float = 1) -> str:
    """A number as text, without an exponent; an empty text if it is not known."""
    if value is None:
        return ""
    number = scale * float(value)
    text = f"{number:{spec}}"
    return (f"{number:,.0f}" if "e+" in text else text) + unit


def _interval(found: Mapping[str, Any], spec: str = ",.3g") -> str:
    return "" if found["low"] is None else f"{_number(found['low'], spec)} to {_number(found['high'], spec)}"


# Of each table: the folder of its files, the lines that a file makes, and the first columns whose repetitions are left
# out.
_KINDS: dict[str, tuple[str, Callable[[Any], Iterable[str]], int]] = {
    "forms": ("", _forms, 0),  # the names of some configurations
    "runs": ("runs", _runs, 2),
    "claims": ("runs", _claims, 3),
    "seeds": ("runs", _seeds, 3),
    "audits": ("audits", audits, 0),
    "solvers": ("solvers", solvers, 0),
    "benchmark": ("speed", _benchmark, 1),  # files that `python -m experiments benchmark` writes
    "scaling": ("speed", _scaling, 2),
    "tradeoffs": ("speed", _tradeoffs, 2),
    "training": ("speed", _training, 1),
    "suite": ("speed", _suite, 2),
}
