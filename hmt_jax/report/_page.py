"""The page itself, from measurements to HTML."""

import csv
import functools
import importlib.resources
import io
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import hmt_jax
from hmt_jax import _looks, _tables
from hmt_jax._extras import require
from hmt_jax.report import _charts, _gallery
from hmt_jax.report._content import Measurement, Progress, plain
from hmt_jax.report._numbers import Numbers, Pair, grid_of, numbers_of, pairs_of, subset
from hmt_jax.solvers import Status

require("a report", "report", "altair", "jinja2", "vl_convert", "PIL")
import jinja2  # noqa: E402
import vl_convert  # noqa: E402

_MOST_ROWS = 40_000  # of samples as CSV, in all measurements together
_MOST_TABLE_ROWS = 4000  # of tables of samples, in all together
_REFRESH = 30  # seconds after which a reader of a measurement that goes on sees a newer page
_MARKS = {True: "✓ holds", False: "✗ does not hold", None: "? undecided"}


def page(measurements: Sequence[Measurement], title: str, command: str, progress: Progress | None) -> str:
    """The page, as `hmt_jax.report.html` describes it."""
    measurements = list(measurements)
    if not measurements and progress is None:
        raise ValueError("measurements is empty: pass at least one")
    _looks.check_number(len(measurements), "measurements")
    names = [measurement.name for measurement in measurements]
    if len(set(names)) < len(names):
        raise ValueError(f"measurements must have different names, got {', '.join(names)}")
    numbers = [numbers_of(measurement) for measurement in measurements]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hmt_jax.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": _tables.number,
        "exact": _charts.exact,
        "share": lambda share: f"{share:.1%}",
        "commas": "{:,}".format,
        "doubled": lambda length: 2 * length,
    }
    pairs = pairs_of(measurements)
    return environment.get_template("page.html.j2").render(
        title=title,
        command=command,
        progress=progress,
        refresh=_REFRESH,
        measurements=measurements,
        numbers=numbers,
        looks=_looks.LOOKS,
        marks=_MARKS,
        groups=[_group(members, measurements, numbers) for members in _groups(measurements)],
        distributions=[_distribution(m, each, numbers[m]) for m, each in enumerate(measurements)],
        samples=_samples(measurements, numbers),
        galleries=[_gallery.rows(measurement) for measurement in measurements],
        comparisons=_comparisons(pairs, measurements),
        histories=_histories(measurements),
        facts=[_flat(json.loads(json.dumps(dict(each.attributes), default=plain))) for each in measurements],
        tables=[_files_of(m, measurements, numbers) for m in range(len(measurements))],
        statuses=[status.name.lower() for status in Status],
        style=_read("page.css"),
        script=_read("page.js"),
        library=_library(),
        version=hmt_jax.__version__,
    )


def _groups(measurements) -> list[list[int]]:
    """The numbers of measurements with the same subspaces, which are drawn over each other."""
    found: dict[tuple[str, ...], list[int]] = {}
    for m, measurement in enumerate(measurements):
        found.setdefault((measurement.axis, *measurement.subspaces), []).append(m)
    return list(found.values())


def _group(members: list[int], measurements, numbers) -> dict[str, Any]:
    own = {m: measurements[m] for m in members}
    first = measurements[members[0]]
    return {
        "members": members,
        "subspaces": first.subspaces,
        "axis": first.axis,
        "is_joined": _charts.is_joined(first),
        "curves": _charts.curves(own, {m: numbers[m] for m in members}),
        "maps": {m: _charts.heat_map(own[m], numbers[m]) for m in members if grid_of(own[m].corners) is not None},
        "num_images": sorted({numbers[m].margins.shape[1] for m in members}),
        "num_bounds": sorted({each.bounds.shape[1] for each in own.values() if each.bounds is not None}),
    }


def _distribution(m: int, measurement: Measurement, numbers: Numbers) -> dict[str, Any]:
    num_images = numbers.margins.shape[1]
    return {
        "chart": _charts.distribution(m, measurement, numbers),
        "num_images": num_images,
        "num_dots": _charts.num_dots(len(measurement.subspaces), num_images),
    }


def _samples(measurements, numbers) -> list[list[dict[str, Any]]]:
    """The samples of each measurement and subspace, from the smallest margin to the largest, and then the failures."""
    num_tables = sum(len(measurement.subspaces) for measurement in measurements)
    half = int(np.clip(_MOST_TABLE_ROWS // max(2 * num_tables, 1), 2, 20))
    return [
        [_sorted(measurement, own.margins, r, half) for r in range(len(measurement.subspaces))]
        for measurement, own in zip(measurements, numbers, strict=True)
    ]


def _sorted(measurement: Measurement, margins: np.ndarray, r: int, half: int) -> dict[str, Any]:
    """The rows at both ends of the samples of a subspace."""
    result = measurement.result
    order = np.argsort(margins[r], kind="stable")  # infinite ones after the others, and NaNs after those
    is_found = np.isfinite(margins[r, order])
    found, failed = order[is_found], order[~is_found]
    parts = [found] if len(found) <= 2 * half else [found[:half], found[-half:]]
    parts = [part for part in [*parts, failed[:half]] if len(part)]

    def row(n: int) -> dict[str, Any]:
        status = Status(result.status[r, n])
        return {
            "image": n,
            "margin": float(result.margin[r, n]) if status == Status.CONVERGED else None,
            "before": measurement.label(int(result.label[r, n])),
            "after": measurement.label(int(result.adversarial_label[r, n])),
            "status": status.name.lower(),
        }

    return {"parts": [[row(n) for n in part.tolist()] for part in parts], "num_shown": sum(map(len, parts))}


def _comparisons(pairs: Sequence[Pair], measurements) -> list[dict[str, Any]]:
    """Pairs with the same subspaces and the same first measurement are in one chart."""
    found: dict[tuple[int, bool], list[Pair]] = {}
    for pair in pairs:
        found.setdefault((pair.first, pair.same_classifier), []).append(pair)
    return [
        {
            "first": first,
            "is_same": is_same,
            "subspaces": measurements[first].subspaces,
            "pairs": members,
            "is_marked": all(
                (np.isfinite(pair.ratios.median_ratio) & (pair.ratios.median_ratio > 0)).all() for pair in members
            ),
            "chart": _charts.ratios(members, measurements),
        }
        for (first, is_same), members in found.items()
    ]


def _histories(measurements) -> list[dict[str, Any]]:
    """The charts of training, one for each number that was recorded."""
    names = dict.fromkeys(name for measurement in measurements for name in measurement.history)
    found = []
    for name in names:
        members = {m: each.history[name] for m, each in enumerate(measurements) if len(each.history.get(name, ()))}
        if members:
            chart = _charts.history(name, members, {m: measurements[m].name for m in members})
            found.append({"name": name, "members": list(members), "chart": chart})
    return found


def _files_of(m: int, measurements, numbers) -> dict[str, Any]:
    """The numbers of a measurement as CSV, in addresses that hold them."""
    measurement, own = measurements[m], numbers[m]
    num_subspaces, num_images = own.margins.shape
    kept = subset(num_images, max(_MOST_ROWS // (num_subspaces * len(measurements)), 1))
    result = measurement.result
    samples = _csv(
        ["subspace", "image", "status", "margin", "label", "adversarial_label", "num_steps"],
        (
            [
                *(r, n, Status(result.status[r, n]).name.lower()),
                _charts.exact(result.margin[r, n]) if result.is_converged[r, n] else "",
                *(result.label[r, n], result.adversarial_label[r, n], result.num_steps[r, n]),
            ]
            for r in range(num_subspaces)
            for n in kept.tolist()
        ),
    )
    windows = _csv(
        ["subspace", "name", "median", "low", "high", "5%", "25%", "75%", "95%", *own.counts],
        (
            [
                *(r, measurement.subspaces[r], *map(_charts.exact, (own.median[r], *own.interval[r]))),
                *map(_charts.exact, own.percentiles[r, [0, 1, 3, 4]]),
                *(counts[r] for counts in own.counts.values()),
            ]
            for r in range(num_subspaces)
        ),
    )
    return {"samples": samples, "windows": windows, "num_kept": len(kept), "num_images": num_images}


def _csv(header: Sequence[str], rows) -> str:
    """A table as an address that holds it."""
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerow(header)
    writer.writerows(rows)
    return "data:text/csv;charset=utf-8," + urllib.parse.quote(content.getvalue(), safe=",:_-. ()", errors="replace")


def _flat(attributes: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of texts. Long lists of equal kind are cut, with their number."""
    found: list[tuple[str, str]] = []
    for name, value in attributes.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{key}.")
        elif isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
            for number, each in enumerate(value[:3]):
                found += _flat(each, f"{key}[{number}].")
            if len(value) > 3:
                found.append((f"{key}[3] to [{len(value) - 1}]", "not shown; they are in the store"))
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found.append((key, text))
    return found


@functools.cache
def _library() -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed, which takes a second to put together."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", r"<\/script")


def _read(name: str) -> str:
    return importlib.resources.files("hmt_jax.report").joinpath(name).read_text(encoding="utf-8")
