"""The charts of a page, as specifications of Vega-Lite that hold their data.

Colours are variables of the page's style sheet, which has one set of them for light and one for dark. Names that users
gave are data, never expressions. A logarithmic axis has its ends written down, so that the page can make it linear.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from hmt_jax import _looks
from hmt_jax._extras import require
from hmt_jax._looks import LOOKS
from hmt_jax.report._content import Measurement
from hmt_jax.report._numbers import RANKS, Numbers, Pair, grid_of, subset

require("a report", "report", "altair", "jinja2", "vl_convert")
import altair as alt  # noqa: E402

_HEIGHT, _LOW = 320, 220  # pixels
_CELL, _WIDEST = 44, 640  # pixels, of heat maps
_MOST_DOTS = 3000  # in the chart of a measurement
_MOST_DOTS_OF_A_WINDOW = 300
_DASH_SCALE = 1.5
_TITLE_LENGTH = 44  # characters in a line below an axis, which fit on a phone
_HALF_WIDTH = 0.3  # of what a swarm of dots takes, of the distance between subspaces
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        **dict.fromkeys(("labelColor", "titleColor", "domainColor", "tickColor", "gridColor"), "currentColor"),
        **{"gridOpacity": 0.15, "domainOpacity": 0.5, "tickOpacity": 0.5, "titleFontWeight": "normal"},
        **{"labelFontSize": 12, "titleFontSize": 12, "labelLimit": 110},
    },
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "titleFontWeight": "normal"},
}


def exact(value: float) -> str:
    """A number with the digits that float32 holds."""
    return f"{value:.6g}"


def num_dots(num_subspaces: int, num_images: int) -> int:
    """The number of images whose margins are drawn as dots."""
    return min(num_images, _MOST_DOTS_OF_A_WINDOW, max(_MOST_DOTS // num_subspaces, 1))


def is_joined(measurement: Measurement) -> bool:
    """Whether a line joins the medians."""
    return measurement.is_ordered and grid_of(measurement.corners) is None


def curves(measurements: Mapping[int, Measurement], numbers: Mapping[int, Numbers]) -> dict[str, Any]:
    """Median margins over each other, with their intervals, bands, and the samples of a subspace on demand.

    Args:
      measurements: those with the same subspaces, by their numbers on the page.
      numbers: by the same numbers.
    """
    first = next(iter(measurements.values()))
    limits = _limits([n.percentiles for n in numbers.values()] + [n.bounds for n in numbers.values()])
    joined = is_joined(first)
    rows, dots, bounds = [], [], []
    for place, (m, measurement) in enumerate(measurements.items()):
        shift = 0.0 if joined else 0.14 * (place - (len(measurements) - 1) / 2)
        rows += [{"m": m, "x": r["r"] + shift, **r} for r in _rows(measurement, numbers[m], limits)]
        dots += _dots(m, measurement, numbers[m], limits)
        bounds += _bounds(m, measurement, numbers[m], limits)
    x, along = _x_of(first), _log(limits, _looks.MARGIN)
    opacity = min(0.15, 0.3 / len(measurements))
    layers = [*_spreads(x, along, opacity, is_joined=joined), *(_certified(x, along) if bounds else ())]
    layers += _medians(x, along)
    text = f"Median margins in {len(first.subspaces)} subspaces, by {first.axis}. " + " ".join(
        f"{measurement.name}: {_in_words(measurement, numbers[m])}." for m, measurement in measurements.items()
    )
    names = {m: measurement.name for m, measurement in measurements.items()}
    params = {"shown": list(measurements), "window": -1, "names": names, "subspaces": list(first.subspaces)}
    return _spec(layers, {"rows": rows, "dots": dots, "bounds": bounds}, text, params=params)


def _spreads(x: alt.X, along: Callable[[str], alt.Y], opacity: float, *, is_joined: bool) -> list[alt.Chart]:
    """The spread of samples and the interval of each median, as bands with a line of medians, or as bars."""
    base = alt.Chart(_data("rows")).transform_filter(_IS_SHOWN).encode(x=x, color=_look("color"))
    samples, interval = {"y": along("low"), "y2": "high:Q"}, {"y": along("from"), "y2": "to:Q"}
    bars = base.mark_rule(strokeWidth=1.5, aria=False, clip=True).encode(**interval)
    if not is_joined:
        return [base.mark_rule(strokeWidth=4, opacity=0.3, aria=False, clip=True).encode(**samples), bars]
    return [
        base.mark_area(opacity=opacity, aria=False, clip=True).encode(**samples),
        base.mark_area(opacity=0.25, aria=False, clip=True).encode(**interval),
        base.mark_line(strokeWidth=1.8, aria=False).encode(y=along("y"), strokeDash=_look("dash")),
        bars,
    ]


def _certified(x: alt.X, along: Callable[[str], alt.Y]) -> list[alt.Chart]:
    """Medians of certified lower bounds, joined by dotted lines."""
    base = alt.Chart(_data("bounds")).transform_filter(_IS_SHOWN).encode(x=x, y=along("bound"), color=_look("color"))
    tooltip = _tooltip("name", "subspace", "certified:certified lower bound, median")
    return [
        base.mark_line(strokeWidth=1.2, opacity=0.7, strokeDash=[2, 2], aria=False),
        base.mark_tick(thickness=2, size=10).encode(tooltip=tooltip, description=_TEXT),
    ]


def _medians(x: alt.X, along: Callable[[str], alt.Y]) -> list[alt.Chart]:
    """Medians as markers, triangles at the upper edge where they are censored, and samples of the chosen subspace."""
    tooltip = _tooltip(
        *("name", "subspace", "median", "interval:95% interval of the median", "band:5% to 95%"),
        *("quartiles:25% to 75%", "images", "failed:without a margin"),
    )
    base = alt.Chart(_data("rows")).transform_filter(_IS_SHOWN).encode(x=x, tooltip=tooltip)
    is_there = base.transform_filter("isValid(datum.y)").encode(y=along("y"))
    dots = _named_dots().transform_filter(f"{_IS_SHOWN} && datum.r == window")
    color = _look("color")
    return [
        # Invisible, so that the mouse need not hit a marker, and below all of them.
        is_there.mark_circle(size=350, opacity=0, aria=False),
        dots.mark_circle(size=14, opacity=0.55, aria=False).encode(x=x, y=along("y"), color=color, tooltip=_DOT),
        is_there.mark_point(filled=True, size=55, opacity=1).encode(
            color=color, shape=_look("shape"), description=_TEXT
        ),
        base.transform_filter("datum.is_censored")
        .mark_point(filled=True, size=70, shape="triangle-up", opacity=1)
        .encode(y=alt.value(4), color=color, description=_TEXT),
    ]


def distribution(m: int, measurement: Measurement, numbers: Numbers) -> dict[str, Any]:
    """The margins of a measurement in every subspace: quantiles of all samples, and some samples as dots."""
    dots = _dots(m, measurement, numbers, limits := _limits([numbers.percentiles]))
    drawn = [dot["y"] for dot in dots]
    limits = (min([limits[0], *(y / 1.1 for y in drawn)]), max([limits[1], *(y * 1.1 for y in drawn)]))
    rows = [{"x": row["r"], **row} for row in _rows(measurement, numbers, limits)]
    x, along = _x_of(measurement), _log(limits, _looks.MARGIN)
    y = along("y")
    base, color = alt.Chart(_data("rows")), alt.value(f"var(--curve-{m})")
    tooltip = _tooltip(
        *("subspace", "median", "interval:95% interval of the median", "quartiles:25% to 75%", "band:5% to 95%"),
        *("images", "failed:without a margin"),
    )
    width = {"size": alt.value(7 if len(rows) <= 30 else 3)}
    layers = [
        _named_dots().mark_circle(size=9, opacity=0.35, aria=False).encode(x=x, y=y, color=color, tooltip=_DOT),
        base.mark_rule(strokeWidth=1.5, aria=False, clip=True).encode(
            x=x, y=along("low"), y2="high:Q", color=alt.value("currentColor")
        ),
        base.mark_bar(opacity=0.9, aria=False, clip=True, cornerRadius=2).encode(
            x=x, y=along("q25"), y2="q75:Q", color=color, **width
        ),
        base.transform_filter("isValid(datum.y)")
        .mark_point(filled=True, size=28, opacity=1, stroke="currentColor", strokeWidth=1)
        .encode(x=x, y=y, color=alt.value("var(--background)"), tooltip=tooltip, description=_TEXT),
        base.transform_filter("datum.failed > 0")
        .mark_text(dy=-6, fontSize=11, aria=False)
        .encode(x=x, y=alt.value(0), text="failed:Q", color=alt.value("var(--censored)"), tooltip=tooltip),
    ]
    text = f"Distribution of margins. {_in_words(measurement, numbers)}."
    params = {"names": {m: measurement.name}, "subspaces": list(measurement.subspaces)}
    return _spec(layers, {"rows": rows, "dots": dots}, text, params=params)


def heat_map(measurement: Measurement, numbers: Numbers) -> dict[str, Any]:
    """Median margins over both frequencies of the windows of a grid, with low ones in the upper left corner."""
    assert measurement.corners is not None
    rows = [
        {**row, "row": int(corner[0]), "column": int(corner[1])}
        for row, corner in zip(
            _rows(measurement, numbers, _limits([numbers.percentiles])), measurement.corners, strict=True
        )
    ]
    base = alt.Chart(_data("rows")).encode(
        x=alt.X("column:O", title="first horizontal frequency", axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("row:O", title="first vertical frequency"),
        tooltip=_tooltip(
            *("row:first vertical frequency", "column:first horizontal frequency", "median"),
            *("interval:95% interval of the median", "band:5% to 95%", "images", "failed:without a margin"),
        ),
    )
    values = [row["y"] for row in rows if row["y"]]
    ends = (min(values), max(values)) if values else (0.1, 1.0)
    color = alt.Color(
        "y:Q",
        title="median margin",
        scale=alt.Scale(type="log", scheme="viridis", domain=list(ends)),
        legend=alt.Legend(format="~g", orient="bottom", gradientLength=220, tickCount=4),
    )
    layers = [
        base.transform_filter("isValid(datum.y)").mark_rect().encode(color=color, description=_TEXT),
        base.transform_filter("!isValid(datum.y)")
        .mark_text(text="\u221e", aria=False)
        .encode(color=alt.value("currentColor")),
    ]
    text = f"Heat map of median margins over both frequencies. {_in_words(measurement, numbers)}."
    num_rows, num_columns = (len({row[axis] for row in rows}) for axis in ("row", "column"))
    cell = min(_CELL, _WIDEST // num_columns)  # square; the page makes it smaller where it does not fit
    return _spec(layers, {"rows": rows}, text, width=cell * num_columns, height=cell * num_rows)


def ratios(pairs: Sequence[Pair], measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Median ratios of the margins of pairs of measurements, with their intervals, on a logarithmic axis."""
    first = measurements[pairs[0].first]
    values = [p.ratios.median_ratio_interval for p in pairs] + [p.ratios.median_ratio for p in pairs] + [np.ones(1)]
    limits = _limits(values)
    rows = [row for pair in pairs for row in _ratio_rows(pair, measurements, limits)]
    x, along = _x_of(first), _log(limits, "median ratio of margins")
    tooltip = _tooltip(
        *("name:ratio of", "subspace", "ratio:median ratio", "interval:95% interval"),
        *("larger:share with a larger margin", "images:images compared"),
    )
    base = alt.Chart(_data("rows")).encode(x=x, color=_look("color"))
    medians = base.encode(y=along("y"))
    is_there = medians.transform_filter("isValid(datum.y)").encode(tooltip=tooltip)
    equal = alt.Chart(_data("one")).encode(y=along("y"))
    line = medians.mark_line(strokeWidth=1.2, opacity=0.7, aria=False).encode(strokeDash=_look("dash"))
    layers = [
        equal.mark_rule(strokeWidth=1, strokeDash=[4, 3], color="currentColor", aria=False),
        base.mark_rule(strokeWidth=2, aria=False, clip=True).encode(y=along("from"), y2="to:Q"),
        *([line] if is_joined(first) else []),
        is_there.mark_circle(size=350, opacity=0, aria=False),
        is_there.mark_point(filled=True, size=50, opacity=1).encode(shape=_look("shape"), description=_TEXT),
    ]
    of_what = ", ".join(f"{measurements[p.second].name} over {measurements[p.first].name}" for p in pairs)
    text = f"Median ratios of margins, by {first.axis}: {of_what}."
    params = {"subspaces": list(first.subspaces)}
    return _spec(layers, {"rows": rows, "one": [{"y": 1}]}, text, params=params, height=_LOW + 40)


def _ratio_rows(pair: Pair, measurements: Sequence[Measurement], limits) -> list[dict[str, Any]]:
    """A row of data for each subspace."""
    found, first = pair.ratios, measurements[pair.first]
    name = f"{measurements[pair.second].name} / {first.name}"
    rows = []
    for r, (value, ends) in enumerate(zip(found.median_ratio, found.median_ratio_interval, strict=True)):
        places = {
            "x": r,
            "y": _finite(value),
            **{key: _finite(e, limits) for key, e in zip(("from", "to"), ends, strict=True)},
        }
        texts = {
            "subspace": first.subspaces[r],
            "ratio": exact(value),
            "interval": f"{exact(ends[0])} to {exact(ends[1])}",
            "larger": f"{found.larger[r]:.1%}",
            "text": f"{name}, subspace {first.subspaces[r]}: median ratio {exact(value)}",
        }
        rows.append({"m": pair.second, "name": name, **places, **texts, "images": int(found.counts["compared"][r])})
    return rows


def history(name: str, curves: Mapping[int, Sequence[float]], names: Mapping[int, str]) -> dict[str, Any]:
    """A number over the epochs of training, with a line for each measurement.

    Args:
      name: what it is.
      curves: by the number of the measurement.
      names: of the measurements.
    """
    rows: list[dict[str, Any]] = [
        {"m": m, "epoch": epoch + 1, "name": names[m], "value": exact(value)}
        | {"y": float(exact(value)) if np.isfinite(value) else None}
        | {"text": f"{names[m]}, epoch {epoch + 1}: {exact(value)}"}
        for m, values in curves.items()
        for epoch, value in enumerate(values)
    ]
    num_epochs = max(map(len, curves.values()))
    step = next(
        step for power in range(9) for step in (10**power, 2 * 10**power, 5 * 10**power) if num_epochs / step <= 8
    )
    ticks = sorted({1, *range(step, num_epochs + 1, step)})
    values = {float(exact(value)) for each in curves.values() for value in each if np.isfinite(value)}
    ends: dict[str, Any] = {}
    if len(values) == 1:  # around which Vega-Lite would label the axis with the nearest whole number
        (only,) = values
        half = abs(only) / 4 or 1.0
        ends = {"domain": [only - half, only + half]}
    base = alt.Chart(_data("rows")).encode(
        x=alt.X(
            "epoch:Q",
            title="epochs of training",
            axis=alt.Axis(format="d", values=ticks, grid=False),
            scale=alt.Scale(zero=False, nice=False),
        ),
        y=alt.Y("y:Q", title=name, scale=alt.Scale(zero=False, **ends)),
        color=_look("color"),
    )
    layers = [
        base.mark_line(strokeWidth=1.8, aria=False).encode(strokeDash=_look("dash")),
        base.mark_point(filled=True, size=40, opacity=1).encode(
            shape=_look("shape"),
            tooltip=_tooltip("name", "epoch", "value"),
            description=_TEXT,
        ),
    ]
    text = f"{name} over {num_epochs} epochs of training."
    return _spec(layers, {"rows": rows}, text, height=_LOW)


def _rows(measurement: Measurement, numbers: Numbers, limits) -> list[dict[str, Any]]:
    """A row of data for each subspace."""
    rows = []
    for r, label in enumerate(measurement.subspaces):
        at = dict(zip(RANKS, numbers.percentiles[r].tolist(), strict=True))
        ends = numbers.interval[r].tolist()
        rows.append(
            {
                "r": r,
                "name": measurement.name,
                "subspace": label,
                "y": _finite(at[50]),
                "is_censored": bool(np.isinf(at[50])),
                **{"low": _finite(at[5], limits), "high": _finite(at[95], limits)},
                **{"q25": _finite(at[25], limits), "q75": _finite(at[75], limits)},
                **{"from": _finite(ends[0], limits), "to": _finite(ends[1], limits)},
                "median": exact(at[50]),
                "interval": f"{exact(ends[0])} to {exact(ends[1])}",
                "band": f"{exact(at[5])} to {exact(at[95])}",
                "quartiles": f"{exact(at[25])} to {exact(at[75])}",
                "images": len(numbers.margins[r]),
                "failed": int(numbers.num_failed[r]),
                "text": f"{measurement.name}, subspace {label}: median {exact(at[50])}",
            }
        )
    return rows


def _bounds(m: int, measurement: Measurement, numbers: Numbers, limits) -> list[dict[str, Any]]:
    """The medians of certified bounds, a row of data for each subspace; none if nothing is certified."""
    if numbers.bounds is None:
        return []
    return [
        {"m": m, "x": r, "bound": _finite(value, limits), "name": measurement.name, "subspace": label}
        | {"certified": exact(value), "text": f"{measurement.name}, subspace {label}: certified {exact(value)}"}
        for r, (label, value) in enumerate(zip(measurement.subspaces, numbers.bounds.tolist(), strict=True))
    ]


def _dots(m: int, measurement: Measurement, numbers: Numbers, limits) -> list[dict[str, Any]]:
    """Some samples, spread sideways so that they lie over each other less."""
    num_subspaces, num_images = numbers.margins.shape
    drawn = subset(num_images, num_dots(num_subspaces, num_images))
    # Multiples of the golden ratio fill an interval evenly, with no two neighbours close.
    spread = _HALF_WIDTH * (2 * (np.arange(len(drawn)) * 0.6180339887 % 1) - 1)
    result = measurement.result
    return [
        {
            **{"m": m, "r": r, "x": round(r + float(spread[place]), 2), "y": float(exact(margin)), "image": image},
            "label": (
                f"{measurement.label(int(result.label[r, image]))} to "
                f"{measurement.label(int(result.adversarial_label[r, image]))}"
            ),
        }
        for r in range(num_subspaces)
        for place, image in enumerate(drawn.tolist())
        if np.isfinite(margin := float(numbers.margins[r, image])) and margin > 0
    ]


def _in_words(measurement: Measurement, numbers: Numbers) -> str:
    """The medians of a measurement in a sentence, for those who can't see its curve."""
    finite = np.flatnonzero(np.isfinite(numbers.median))
    if not len(finite):
        return "no median is finite"
    low, high = finite[numbers.median[finite].argmin()], finite[numbers.median[finite].argmax()]
    return (
        f"the smallest median is {numbers.median[low]:.3g} in subspace {measurement.subspaces[low]}, the largest "
        f"{numbers.median[high]:.3g} in subspace {measurement.subspaces[high]}"
    )


def _limits(arrays) -> tuple[float, float]:
    """Ends of a logarithmic axis, with room above for what is infinite."""
    values = np.concatenate([np.ravel(array) for array in arrays if array is not None])
    finite = values[np.isfinite(values) & (values > 0)]
    room = 2.0 if np.isinf(values).any() else 1.15
    return (float(finite.min()) / 1.15, float(finite.max()) * room) if finite.size else (0.1, 1.0)


def _finite(value: float, limits: tuple[float, float] | None = None) -> float | None:
    """The number as a chart takes it: with limits, within them; None if it is none, or 0."""
    if np.isnan(value):
        return None
    if limits is not None:
        return float(exact(np.clip(value, *limits)))
    return float(exact(value)) if np.isfinite(value) and value > 0 else None


def _x_of(measurement: Measurement) -> alt.X:
    """The axis of subspaces: their places are numbers, so that dots lie between them."""
    number = len(measurement.subspaces)
    values = list(range(0, number, -(-number // 30)))
    is_long = max(map(len, measurement.subspaces)) > 5
    axis = alt.Axis(
        values=values,
        labelExpr="subspaces[datum.value]",
        grid=False,
        labelOverlap=True,
        labelSeparation=6,
        **({"labelAngle": -40, "labelAlign": "right"} if is_long else {"labelAngle": 0}),
    )
    title = textwrap.wrap(measurement.axis, _TITLE_LENGTH)
    return alt.X("x:Q", title=title, axis=axis, scale=alt.Scale(domain=[-0.5, number - 0.5], nice=False))


def _log(limits: tuple[float, float], title: str) -> Callable[[str], alt.Y]:
    """A logarithmic axis, as a function of the field that is along it: layers share an axis if all describe it."""
    low, high = (float(exact(limit)) for limit in limits)
    scale = alt.Scale(type="log", domain=[low, high], nice=False, clamp=True)
    axis = alt.Axis(format="~g", labelOverlap=True, values=_looks.log_ticks(low, high).tolist())
    return lambda field: alt.Y(f"{field}:Q", title=title, scale=scale, axis=axis)


def _look(kind: Literal["color", "dash", "shape"]) -> Any:
    """The colours, dashes or shapes of measurements, by their numbers on the page."""
    channel: Any = {"color": alt.Color, "dash": alt.StrokeDash, "shape": alt.Shape}[kind]
    looks: dict[str, list[Any]] = {
        "color": [f"var(--curve-{number})" for number in range(len(LOOKS))],
        "dash": [[_DASH_SCALE * length for length in look.dashes] or [1, 0] for look in LOOKS],
        "shape": [look.path for look in LOOKS],
    }
    scale = alt.Scale(domain=list(range(len(LOOKS))), range=looks[kind])
    return channel("m:N", scale=scale, legend=None)


def _tooltip(*fields: str) -> list[alt.Tooltip]:
    """Texts, by `field` or `field:title`."""
    pairs = [(field, title or field) for field, _, title in (text.partition(":") for text in fields)]
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in pairs]


_TEXT = alt.Description("text:N")
_IS_SHOWN = "indexof(shown, datum.m) >= 0"
_DOT = _tooltip("name", "subspace", "image", "y:margin", "label:label before and after")


def _named_dots() -> alt.Chart:
    """Dots with the names of their measurements and subspaces, which are written down once."""
    return alt.Chart(_data("dots")).transform_calculate(name="names[datum.m]", subspace="subspaces[datum.r]")


def _data(name: str) -> alt.NamedData:
    """Data that are added to the finished specification: Altair would check each row, which takes seconds."""
    return alt.NamedData(name=name)


def _spec(
    layers: Sequence[alt.Chart],
    data: Mapping[str, list[dict[str, Any]]],
    text: str,
    *,
    params: Mapping[str, Any] | None = None,
    width: int | Literal["container"] = "container",
    height: int = _HEIGHT,
) -> dict[str, Any]:
    """The specification of some layers, as JSON can hold it.

    Args:
      layers: from the lowest to the topmost.
      data: rows, by the names that the layers have for them.
      text: what is to be seen, for those who can't see it.
      params: values of the parameters, by their names.
      width: in pixels, or all that there is.
      height: in pixels.
    """
    chart = alt.layer(*layers).properties(
        width=width,
        height=height,
        description=text,
        autosize=alt.AutoSizeParams(type="fit-x" if width == "container" else "pad", contains="padding"),
    )
    chart = chart.add_params(*(alt.param(name=name, value=value) for name, value in (params or {}).items()))
    return chart.to_dict() | {"config": _CONFIG, "datasets": dict(data)}
