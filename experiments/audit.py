"""How far the margins of a run can be trusted: some of its pairs, measured again by `tight`."""

import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

import hmt_jax
from experiments import baseline, checks, config, folder, manipulations, pictures, run, stages, summary
from experiments.diagonal import DiagonalMargins
from hmt_jax import bounds, data, models, plots, solvers, statistics


def audit(
    path: pathlib.Path,
    *,
    num_images: int = 50,
    effort: str = "thorough",
    num_certified: int = 0,
    data_dir: str | None = None,
) -> str:
    """Measures the first images of a finished run in all its windows again, and compares.

    Writes `audit.json`, `audit.npz` and the picture `audit.png` into the run's folder, and `audit_baseline.npz`, the
    margins of the run that it is compared with.

    Args:
      path: the folder of a run of the kind `DiagonalMargins`.
      num_images: how many of its images.
      effort: of `hmt_jax.solvers.tight`.
      num_certified: how many of them to prove lower bounds for, at a second or two a window and image for LeNet.
      data_dir: where prepared data sets are; where TFDS keeps them if not given.

    Returns:
      For every window the median margins, and that of certified lower bounds of the first images where they are asked
      for; the ratio of the run's margin to the tight one, in the median with its interval and at the 90th percentile;
      and whether the order of the windows, and the run's ratios to the one it is compared with, stand.

    Raises:
      ValueError: if the folder does not hold such a run, another run or audit is at work in it, its files have changed
        since the run wrote them, the data set is not prepared, or the network has no such bounds.
    """
    run.check_finished(path)
    with folder.held(path):
        return _audit(path, num_images, effort, num_certified, data_dir)


def _audit(path, num_images, effort, num_certified, data_dir) -> str:
    opened = reopen(path, num_images, data_dir)
    other = opened.config.baseline_config
    origin = None if other is None else baseline.recorded(path, other)
    compared = None if origin is None else reopen(origin, num_images, data_dir)
    with folder.reserved(path):
        measured, tight, certified = _measure(path, opened, effort, num_certified)
        others = None if compared is None else _measure(origin, compared, effort, 0)[:2]
    windows = [f"{row},{column}" for row, column in opened.corners.tolist()]
    arrays = {"corner": opened.corners, "measured": measured, "tight": tight, "certified": certified}
    folder.write_arrays(path / "audit.npz", arrays)
    certified = certified[:, :num_certified]
    _draw(path, opened, measured, tight, certified)
    ratios = [_ratio(*rows) for rows in zip(measured, tight, strict=True)]
    table = _table(windows, measured, tight, certified, ratios)
    lines = [f"{opened.name}: {measured.shape[1]} images, {effort} effort", table, "", order(measured, tight)]
    report: dict[str, Any] = {"effort": effort, "num_images": measured.shape[1], "windows": ratios}
    if others is not None:
        folder.write_arrays(path / "audit_baseline.npz", dict(zip(("measured", "tight"), others, strict=True)))
        with np.errstate(invalid="ignore"):  # of censored medians: infinity over infinity is no number
            growth = [
                statistics.percentile(ours, 50) / statistics.percentile(theirs, 50)
                for ours, theirs in zip((measured, tight), others, strict=True)
            ]
        numbers = [[summary.number(value) for value in values] for values in growth]
        report["over_baseline"] = dict(zip(("run", "tight"), numbers, strict=True))
        lines.append(_over_baseline(opened.config.baseline, windows, *growth))
    folder.write_json(path / "audit.json", report)
    return "\n".join(lines)


class Opened(NamedTuple):
    """A finished run, ready to be measured again."""

    name: str
    config: DiagonalMargins
    classifier: models.Normalized
    images: np.ndarray
    corners: np.ndarray  # of its windows


def reopen(path: pathlib.Path, num_images: int, data_dir: str | None) -> Opened:
    """A finished run in a folder, with the first of its images.

    Raises:
      ValueError: if the folder is that of no such run, or the data set is not prepared.
    """
    run.check_finished(path)
    name, found = config.described(folder.read_config(path))
    if type(found) is not DiagonalMargins:  # kinds made of it measure other subspaces, or keep no margins
        raise ValueError(
            f"{path} is the folder of {name}, which does not measure a data set of hmt_jax.data along the diagonal"
        )
    images = stages.load(found, data_dir).test_images[: min(num_images, found.num_images)]
    classifier = folder.read_classifier(path / stages.CLASSIFIER)
    corners = folder.read_arrays(path / "margins.npz")["corner"]
    return Opened(name, found, classifier, data.as_floats(manipulations.apply(found.manipulation, images)), corners)


def _measure(path, opened, effort, num_certified) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Censored margins (R, N) of the run and of `tight`, and lower bounds."""
    _, found, classifier, images, _ = opened
    result, _ = summary.read_margins(found, path)
    with stages.pixels_of(found):
        windows = found.windows(images.shape[1:])
        certified = _certified(classifier, images, windows, num_certified)
        again = hmt_jax.measure_margins(classifier, images, windows, solvers.tight(effort))
    measured, tight = statistics.censored_margins(result)[:, : len(images)], statistics.censored_margins(again)
    # A smaller margin of the run is one, too.
    return measured, np.fmin(measured, tight), certified


def _draw(path, opened, measured, tight, certified) -> None:
    curves = {"DeepFool": pictures.percentiles(measured), "tight": pictures.percentiles(tight)}
    if certified.size:
        curves[f"certified, first {certified.shape[1]}"] = pictures.percentiles(certified)
    labels = pictures.labels(opened.config, opened.corners)
    title = f"{opened.name}: audit of {measured.shape[1]} images"
    panels = plots.margin_curves(range(len(measured)), {"": curves}, title=title, **labels)
    folder.write_picture(path / "audit.png", panels)


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
    median = checks.from_resampling(lambda values: float(statistics.percentile(values, 50)), ratios)
    found = {**median._asdict(), "90%": float(statistics.percentile(ratios, 90))}
    return {key: summary.number(value) for key, value in found.items()}


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
            *(summary.text(summary.number(column[r])) for column in medians),
            summary.text(ratio["value"]),
            f"{summary.text(ratio['low'])} to {summary.text(ratio['high'])}",
            summary.text(ratio["90%"]),
        )
        for r, (window, ratio) in enumerate(zip(windows, ratios, strict=True))
    ]
    return checks.align([header, *rows])


def order(measured, tight) -> str:
    """How many pairs of windows have the same order in both, of those that the tight margins tell apart.

    Pairs that the run does not order, for it has a median for neither, are told beside.
    """
    medians, told_apart, alike, unordered = statistics.percentile(measured, 50), 0, 0, 0
    for one, other in itertools.combinations(range(len(tight)), 2):
        estimate = checks.from_medians(lambda curve: curve[1] / curve[0], tight[[one, other]])
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
        (window, *map(summary.text, map(summary.number, pair)))
        for window, *pair in zip(windows, measured, tight, strict=True)
    ]
    is_known = ~np.isnan(measured) & ~np.isnan(tight)
    verdict = "stands" if ((measured > 1) == (tight > 1))[is_known].all() else "DOES NOT STAND"
    table = checks.align([("window", "DeepFool", "tight"), *rows])
    return f"\nmedians over those of {name.replace('_', ' ')}\n{table}\nwhere they are larger and smaller: {verdict}"
