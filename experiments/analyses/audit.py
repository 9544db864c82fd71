"""The audit of a run: some of its pairs, measured again by `tight`, to show how far its margins can be trusted."""

import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

import hmt_jax
from experiments import claims, manipulations, registry, report, store
from experiments.experiment import bar
from experiments.images import Images
from hmt_jax import bounds, data, models, plots, solvers, statistics


def audit(
    path: pathlib.Path,
    *,
    num_images: int = 50,
    effort: str = "thorough",
    num_certified: int = 0,
    data_dir: str | None = None,
) -> str:
    """The report of an audit: the first images of a finished run are measured in all its windows again, and compared.

    Writes `audit.json`, `audit.npz` and the picture `audit.png` into the run's folder, and `audit_baseline.npz`, the
    margins of the run that it is compared with.

    Args:
      path: the folder of a run of the kind `Images`, along the diagonal.
      num_images: how many of its images.
      effort: effort of `hmt_jax.solvers.tight`.
      num_certified: how many of them to prove lower bounds for, at a second or two a window and image for LeNet.
      data_dir: folder of prepared data sets; TFDS's own if not given.

    Returns:
      For every window the median margins, and the medians of certified lower bounds if they are asked for; the ratio of
      the run's margin to the tight one, in the median with its interval and at the 90th percentile; and whether the
      order of the windows, and the run's ratios to the one it is compared with, stand.

    Raises:
      ValueError: if the folder does not hold such a run, another run or audit is at work in it, its files have changed
        since the run wrote them, the data set is not prepared, or the network has no such bounds.
    """
    store.check_finished(path)
    with store.held(path):
        return _audit(path, num_images, effort, num_certified, data_dir)


def _audit(path, num_images, effort, num_certified, data_dir) -> str:
    opened = reopen(path, num_images, data_dir)
    origin = store.baseline(path)
    compared = None if origin is None else reopen(origin, num_images, data_dir)
    measured, tight, certified = _measure(path, opened, effort, num_certified)
    others = None if compared is None else _measure(origin, compared, effort, 0)[:2]
    windows = [f"{row},{column}" for row, column in opened.corners.tolist()]
    arrays = {"corner": opened.corners, "measured": measured, "tight": tight, "certified": certified}
    store.write_arrays(path / "audit.npz", arrays)
    certified = certified[:, :num_certified]
    _draw(path, opened, measured, tight, certified)
    ratios = [_ratio(*rows) for rows in zip(measured, tight, strict=True)]
    table = _table(windows, measured, tight, certified, ratios)
    lines = [f"{opened.name}: {measured.shape[1]} images, {effort} effort", table, "", order(measured, tight)]
    found: dict[str, Any] = {"effort": effort, "num_images": measured.shape[1], "windows": ratios}
    if others is not None:
        store.write_arrays(path / "audit_baseline.npz", dict(zip(("measured", "tight"), others, strict=True)))
        with np.errstate(invalid="ignore"):  # of censored medians: infinity over infinity is no number
            growth = [
                statistics.percentile(ours, 50) / statistics.percentile(theirs, 50)
                for ours, theirs in zip((measured, tight), others, strict=True)
            ]
        numbers = [[report.number(value) for value in values] for values in growth]
        found["over_baseline"] = dict(zip(("run", "tight"), numbers, strict=True))
        lines.append(_over_baseline(opened.config.baseline, windows, *growth))
    store.write_json(path / "audit.json", found)
    return "\n".join(lines)


class Opened(NamedTuple):
    """A finished run, ready to be measured again."""

    name: str
    config: Images
    classifier: models.Normalized
    images: np.ndarray
    corners: np.ndarray  # of its windows


def reopen(path: pathlib.Path, num_images: int, data_dir: str | None) -> Opened:
    """A finished run in a folder, with the first of its images.

    Raises:
      ValueError: if the folder is that of no such run, or the data set is not prepared.
    """
    store.check_finished(path)
    name, found = registry.reopen(path)
    if not isinstance(found, Images) or found.windows != "diagonal":
        raise ValueError(
            f"{path} is the folder of {name}, which does not measure a data set of hmt_jax.data along the diagonal"
        )
    images = found.load(data_dir).test_images[: min(num_images, found.num_images)]
    classifier = store.read_classifier(path / store.CLASSIFIER)
    corners = store.read_arrays(path / "margins.npz")["corner"]
    return Opened(name, found, classifier, data.as_floats(manipulations.apply(found.manipulation, images)), corners)


def _measure(path, opened, effort, num_certified) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Censored margins (R, N) of the run and of `tight`, and lower bounds."""
    _, found, classifier, images, _ = opened
    result, _ = report.read_margins(path)
    with found.pixels_explained():
        windows = found.measured(images.shape[1:])
        certified = _certified(classifier, images, windows, num_certified)
        with bar(len(windows) * len(images), "audit", "pairs") as progress:
            again = hmt_jax.measure_margins(
                classifier,
                images,
                windows,
                solvers.tight(effort),
                progress=lambda num_finished, _: progress.update(num_finished - progress.n),
            )
    measured, tight = statistics.censored_margins(result)[:, : len(images)], statistics.censored_margins(again)
    # A smaller margin of the run is one, too.
    return measured, np.fmin(measured, tight), certified


def _draw(path, opened, measured, tight, certified) -> None:
    curves = {"DeepFool": report.percentiles(measured), "tight": report.percentiles(tight)}
    if certified.size:
        curves[f"certified, first {certified.shape[1]}"] = report.percentiles(certified)
    labels = report.axis(opened.corners, opened.config.window_size)
    title = f"{opened.name}: audit of {measured.shape[1]} images"
    panels = plots.margin_curves(range(len(measured)), {"": curves}, title=title, **labels)
    store.write_picture(path / "audit.png", panels)


def _certified(classifier, images, windows, num_certified) -> np.ndarray:
    """Lower bounds (R, N), NaN for images that are not to have any."""
    certified = np.full((len(windows), len(images)), np.nan)
    if num_certified:
        try:
            certified[:, :num_certified] = bounds.certify(classifier, images[:num_certified], windows).radius
        except TypeError as error:
            raise ValueError(str(error)) from None
    return certified


def _ratio(measured: np.ndarray, tight: np.ndarray) -> dict[str, Any]:
    with np.errstate(invalid="ignore"):
        ratios = measured / tight
    median = claims.from_resampling(lambda values: float(statistics.percentile(values, 50)), ratios)
    found = {**median._asdict(), "90%": float(statistics.percentile(ratios, 90))}
    return {key: report.number(value) for key, value in found.items()}


def _table(windows, measured, tight, certified, ratios) -> str:
    """Medians over all images; those of certified bounds over the first ones, beside the tight ones of the same."""
    columns = {"DeepFool": measured, "tight": tight}
    if num_certified := certified.shape[1]:
        first = f"first {num_certified}"
        columns |= {f"tight, {first}": tight[:, :num_certified], f"certified, {first}": certified}
    header = ("window", *columns, "DeepFool / tight", "95% interval", "90th percentile")
    medians = [statistics.percentile(margins, 50).tolist() for margins in columns.values()]
    rows = [
        (
            window,
            *(report.text(report.number(column[r])) for column in medians),
            report.text(ratio["value"]),
            f"{report.text(ratio['low'])} to {report.text(ratio['high'])}",
            report.text(ratio["90%"]),
        )
        for r, (window, ratio) in enumerate(zip(windows, ratios, strict=True))
    ]
    return report.align([header, *rows])


def order(measured, tight) -> str:
    """The number of pairs of windows with the same order in both, among those that the tight margins tell apart.

    Pairs for which the run has no median are counted separately.
    """
    medians, told_apart, alike, unordered = statistics.percentile(measured, 50), 0, 0, 0
    for one, other in itertools.combinations(range(len(tight)), 2):
        estimate = claims.from_medians(lambda curve: curve[1] / curve[0], tight[[one, other]])
        if estimate.low > 1 or estimate.high < 1:  # neither where both medians may be censored
            if not np.isfinite(medians[[one, other]]).any():
                unordered += 1
                continue
            told_apart += 1
            alike += np.sign(estimate.value - 1) == np.sign(medians[other] - medians[one])
    verdict = "stands" if alike == told_apart else "DOES NOT STAND"
    beside = f"; for {unordered} more the run has no median" if unordered else ""
    return f"order of the windows: {alike} of {told_apart} pairs that the tight margins tell apart{beside}: {verdict}"


def _over_baseline(name, windows, measured, tight) -> str:
    rows = [
        (window, *map(report.text, map(report.number, pair)))
        for window, *pair in zip(windows, measured, tight, strict=True)
    ]
    is_known = ~np.isnan(measured) & ~np.isnan(tight)
    verdict = "stands" if ((measured > 1) == (tight > 1))[is_known].all() else "DOES NOT STAND"
    table = report.align([("window", "DeepFool", "tight"), *rows])
    return f"\nmedians over those of {name}\n{table}\nwhere they are larger and smaller: {verdict}"
