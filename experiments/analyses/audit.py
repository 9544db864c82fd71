"""The audit of a run: some of its pairs, measured again by `tight`, to show how far its margins can be trusted."""

import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

import hmt_jax
from experiments import claims, manipulations, page, registry, report, store, tables
from experiments.images import Images
from hmt_jax import _progress, _tables, bounds, data, estimates, models, plots, solvers, statistics


class Opened(NamedTuple):
    """A finished run, ready to be measured again on the first N of its images in its R windows."""

    name: str
    config: Images
    classifier: models.Normalized
    test_images: np.ndarray  # all of them, as they were loaded
    corners: np.ndarray  # (R, 2)
    margins: np.ndarray  # (R, N), censored

    @property
    def images(self) -> np.ndarray:
        """The first N images, as the network sees them."""
        return self._seen(self.test_images[: self.margins.shape[1]])

    def last_images(self, number: int) -> np.ndarray:
        """The last images for testing, as the network sees them."""
        return self._seen(self.test_images[-number:])

    def _seen(self, images):
        return data.as_floats(manipulations.apply(self.config.manipulation, images))


def audit(
    path: pathlib.Path,
    *,
    num_images: int = 50,
    effort: str = "normal",
    num_certified: int = 0,
    data_dir: str | None = None,
) -> str:
    """The report of an audit: the first images of a finished run are measured in all its windows again, and compared.

    For every window it shows the median margins, with certified lower bounds of the first images if they are asked for,
    and the ratios of the run's margins, and of those of `tight("quick")`, to those of `tight` with an effort; and
    whether the order of the windows, and the run's ratios to the one that it is compared with, stand. `audit.json`,
    `audit.npz`, `audit_baseline.npz` and `audit.png` are written into the run's folder, and its page shows the audit,
    too.

    Raises:
      ValueError: if the folder does not hold a run of the kind `Images` along the diagonal, another run or audit is at
        work in it, its files have changed since the run wrote them, the data set is not prepared, or the network has no
        such bounds.
    """
    store.check_finished(path)
    with store.held(path):
        opened, origin = reopen(path, num_images, data_dir), store.baseline(path)
        compared = None if origin is None else reopen(origin, num_images, data_dir)
        certified = _certify(opened, num_certified)
        quick, again = _tight(opened, "quick"), _tight(opened, effort)
        measured, tight = opened.margins, _least(opened, again)
        quick_margins = statistics.censored_margins(quick)
        windows = [f"{row},{column}" for row, column in opened.corners.tolist()]
        shown, drawn = {"tight": tight, "deepfool": measured}, {"tight": tight, "DeepFool": measured}
        if num_certified:
            shown |= {"tight_of_certified": tight[:, :num_certified], "certified": certified[:, :num_certified]}
            drawn[f"certified, first {num_certified}"] = shown["certified"]
        found: dict[str, Any] = {
            "effort": effort,
            "num_images": len(opened.images),
            "num_certified": num_certified,
            "windows": [
                {
                    "window": window,
                    **{name: claims.for_json(report.percentiles(each)[r, 1]) for name, each in shown.items()},
                    "ratio": _ratio(measured[r], tight[r]),
                    "quick_ratio": _ratio(quick_margins[r], tight[r]),
                }
                for r, window in enumerate(windows)
            ],
        }
        lines = [f"{opened.name}: {len(opened.images)} images, {effort} effort", tables.aligned(tables.audits(found))]
        lines += ["", order(measured, tight)]
        others = None
        if compared is not None:
            others = {"measured": compared.margins, "tight": _least(compared, _tight(compared, effort))}
            pairs = {"run": (measured, others["measured"]), "tight": (tight, others["tight"])}
            growth = {name: report.median_ratios(*pair) for name, pair in pairs.items()}
            found["over_baseline"] = {name: [*map(claims.for_json, ratios)] for name, ratios in growth.items()}
            lines.append(_over_baseline(opened.config.baseline, windows, **growth))
        # The last file of an audit. Without it, the others count for nothing: they may be those of two audits.
        (path / "audit.json").unlink(missing_ok=True)
        arrays = {
            "corner": opened.corners,
            "measured": measured,
            "quick": quick_margins,
            "tight": tight,
            "certified": certified,
        }
        store.write_margins(path / "audit.npz", again, **arrays)
        title = f"{opened.name}: audit of {len(opened.images)} images"
        named = report.axis(opened.corners, opened.config.window_size)
        store.write_picture(path / "audit.png", plots.compare(drawn, title=title, **named))
        if others is not None:
            store.write_arrays(path / "audit_baseline.npz", others)
        store.write_json(path / "audit.json", found)
        page.write(path, opened.config, store.verdicts(path))
        return "\n".join(lines)


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
    images = found.load(data_dir).test_images
    result, corners = report.read_margins(path)
    margins = statistics.censored_margins(result)[:, :num_images]
    return Opened(name, found, store.read_classifier(path), images, corners, margins)


def _least(opened: Opened, again: hmt_jax.MarginResult) -> np.ndarray:
    """Censored margins (R, N) that were measured again; those of the run where they are smaller."""
    return np.fmin(opened.margins, statistics.censored_margins(again))


def _tight(opened: Opened, effort: str) -> hmt_jax.MarginResult:
    """Margins (R, N) of `tight`."""
    images, windows = opened.images, opened.config.measured(opened.images.shape[1:])
    with opened.config.pixels_explained(), _progress.bar("pairs", "audit") as show:
        return hmt_jax.measure_margins(opened.classifier, images, windows, solvers.tight(effort), progress=show)


def _certify(opened: Opened, num_certified: int) -> np.ndarray:
    """Lower bounds (R, N), NaN for images that are not to have any."""
    images, certified = opened.images[:num_certified], np.full(opened.margins.shape, np.nan)
    if num_certified:
        try:
            with opened.config.pixels_explained():
                found = bounds.certify(opened.classifier, images, opened.config.measured(images.shape[1:]))
        except TypeError as error:
            raise ValueError(str(error)) from None
        certified[:, :num_certified] = found.radius
    return certified


def _ratio(measured: np.ndarray, tight: np.ndarray) -> dict[str, float | str]:
    with np.errstate(invalid="ignore"):
        ratios = measured / tight
    median = estimates.from_samples(lambda values: float(statistics.percentile(values, 50)), ratios)
    found = {**median._asdict(), "90%": statistics.percentile(ratios, 90)}
    return {name: claims.for_json(value) for name, value in found.items()}


def order(measured: np.ndarray, tight: np.ndarray) -> str:
    """The number of pairs of windows with the same order in both, among those that the tight margins tell apart.

    Pairs for which the run has no median are counted separately.
    """
    medians, alike, unordered = statistics.percentile(measured, 50), [], 0
    for pair in map(list, itertools.combinations(range(len(tight)), 2)):
        estimate = estimates.from_medians(lambda curve: curve[1] / curve[0], tight[pair])
        if not (estimate.low > 1 or estimate.high < 1):  # neither where both medians may be censored
            continue
        if np.isfinite(medians[pair]).any():
            alike.append(np.sign(estimate.value - 1) == np.sign(medians[pair[1]] - medians[pair[0]]))
        else:
            unordered += 1
    beside = f"; for {unordered} more the run has no median" if unordered else ""
    verdict = "stands" if all(alike) else "DOES NOT STAND"
    return (
        f"order of the windows: {sum(alike)} of {len(alike)} pairs that the tight margins tell apart{beside}: {verdict}"
    )


def _over_baseline(name: str, windows: list[str], run: np.ndarray, tight: np.ndarray) -> str:
    columns = [("window", windows), ("DeepFool", _tables.numbers(run)), ("tight", _tables.numbers(tight))]
    is_known = ~np.isnan(run) & ~np.isnan(tight)
    verdict = "stands" if ((run > 1) == (tight > 1))[is_known].all() else "DOES NOT STAND"
    return f"\nmedians over those of {name}\n{_tables.table(columns)}\nwhere they are larger and smaller: {verdict}"
