"""The experiment on single frequencies: the amplitude of a wave at which a label changes, beside a heat map of errors.

An amplitude is the margin of an image along one basis image. A run goes from top to bottom. Each stage leaves a file,
and a stage whose file is there is not run again.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import hmt_jax
from experiments import manipulations, report, store
from experiments.claims import for_json
from experiments.experiment import Run, check_at_least
from experiments.images import OnNetwork, summarize, trained
from hmt_jax import _progress, _tables, data, plots, solvers, statistics, subspaces
from hmt_jax._looks import LOOKS
from hmt_jax.estimates import Estimate, from_medians, from_samples, from_share
from hmt_jax.report import Measurement

_NOISE, _MARGINS = "noise.npz", "margins.npz"
_ROUNDING = 1e-4  # relative tolerance when margins are compared with norms
_NUM_PLACES = 5  # frequencies listed because their places in the two orders differ most
_HEADINGS = ("norm", "least error", "greatest error", "rank correlation", "95% interval", "former label again")
_SIDES = {
    "at_floor": "frequencies whose error is not above the 95% interval of the error without noise",
    "at_ceiling": "frequencies whose error is not below the 95% interval of that of a classifier that sees nothing",
}
_BEYOND_COLOR = "#cccccc"  # of infinite medians, beyond the reach of the scan
_SILENT_COLOR = "#999999"  # of frequencies at which noise adds no errors


class Found(NamedTuple):
    """The findings of a run along R basis images: the amplitudes of N images, and K heat maps over M images.

    The N images are the first of the M. Errors are counted over both signs of the noise. An image is changed if noise
    of either sign changes its label.
    """

    frequency: np.ndarray  # (R, 2), vertical and horizontal
    norms: np.ndarray  # (K,), of the noise
    errors: np.ndarray  # (K, R), shares of wrong labels under noise
    is_changed: np.ndarray  # (K, R, M)
    error: float  # without noise
    chance: float  # the error of a classifier that sees nothing, and always chooses the most frequent class
    result: hmt_jax.MarginResult
    seconds: float

    @property
    def margins(self) -> np.ndarray:
        """The amplitudes (R, N), infinite if none was found."""
        return statistics.censored_margins(self.result)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrequencyMap(OnNetwork):
    """Margins of a network along single basis images, and its errors under noise along them at fixed norms.

    Attributes:
      basis: orthonormal basis images, of the real Fourier transform (Hartley's) or of the DCT.
      norms: L2 norms of the noise, in ascending order.
      num_tested: test images whose errors under noise are counted, from the first one.
    """

    basis: Literal["fourier", "dct"] = "fourier"
    norms: tuple[float, ...] = (4.0, 8.0, 16.0)
    num_images: int = 25
    num_tested: int = 500

    most_images = "num_tested"

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, self.num_images, "num_tested")
        if not self.norms or min(self.norms) <= 0 or list(self.norms) != sorted(set(self.norms)):
            raise ValueError(f"norms must be one or more positive numbers in ascending order, got {self.norms}")

    def check(self, data_dir: str | None) -> None:
        super().check(data_dir)
        num_channels = data.load(self.data, data_dir).image_shape[2]
        if num_channels != 1:
            raise ValueError(
                f"data={self.data} has {num_channels} channels, but basis images have one: name a data set of grey "
                "images, such as mnist"
            )

    def run(self, run: Run) -> None:
        config = trained(run)
        assert run.baseline is not None
        if not (run.path / _MARGINS).exists():
            dataset = config.load(run.data_dir)
            images = manipulations.apply(config.manipulation, dataset.test_images[: self.num_tested])
            images, labels = data.as_floats(images), dataset.test_labels[: self.num_tested]
            _, lines = basis(self.basis, images.shape[1:])
            classifier = store.read_classifier(run.baseline)
            with config.pixels_explained():
                if not (run.path / _NOISE).exists():
                    store.write_arrays(run.path / _NOISE, add_noise(classifier, images, labels, lines, self.norms))
                self.measure(run, classifier, lines, images[: self.num_images], labels[: self.num_images])
        found = read(run.path)
        summarize(run, found.result, found.seconds, describe(found))
        store.write_picture(run.path / "map.png", _maps_picture(run.name, found, self.basis))
        store.write_picture(run.path / "agreement.png", _agreement_picture(run.name, found))

    def measure(self, run: Run, classifier: Any, lines: Sequence[Any], images: np.ndarray, labels: np.ndarray) -> None:
        """Measures amplitudes along all lines, from where an interrupted run stopped, and writes `margins.npz`."""
        started = time.perf_counter()
        with _progress.bar("pairs", "margins") as show:
            path = run.path / store.MARGINS
            result = hmt_jax.measure_to_store(classifier, images, lines, solvers.Scan(), path, progress=show).read()
        store.write_margins(
            run.path / _MARGINS,
            result,
            frequency=basis(self.basis, images.shape[1:])[0],
            true_label=labels,
            image_shape=images.shape[1:],
            seconds=time.perf_counter() - started,
        )

    def measurements(self, path: pathlib.Path) -> list[Measurement]:
        found = read(path)
        return [
            Measurement(
                name=store.read_config(path)["experiment"],
                result=found.result,
                subspaces=_names(found),
                axis="vertical and horizontal frequency",
                is_ordered=False,
                image_ids=[f"{self.data} test {number}" for number in range(found.result.margin.shape[1])],
                no_pictures="the perturbations were not kept",
            )
        ]

    def report(self, path: pathlib.Path) -> str:
        summary = store.read_json(path / "summary.json")
        order = sorted(summary["frequencies"], key=lambda each: float(each["median"]))
        least, most = (
            f"{_tables.number(float(each['median']))} at {each['vertical']},{each['horizontal']}"
            for each in (order[0], order[-1])
        )
        missed = summary["missed"]
        lines = [
            f"test accuracy {summary['test_accuracy']:.2%}; {summary['num_images']} images; amplitudes "
            f"{summary['measurement_seconds']:.0f} s; median amplitudes from {least} to {most} (vertical, horizontal "
            "frequency)",
            f"errors of {summary['num_tested']} images without noise: {summary['error']:.2%}; of a classifier that "
            f"sees nothing: {summary['chance']:.2%}",
            f"labels that noise changes before the amplitude found: {missed['value']:.3%}",
            "",
            "errors under noise, and their rank correlation with median amplitudes",
            report.aligned([_HEADINGS, *map(_row, summary["norms"])]),
        ]
        for side, text in _SIDES.items():
            deciles = [(f"{each['norm']:g}", *_side(each[side])) for each in summary["norms"]]
            headings = ("norm", "share", "median amplitudes, 10%", "90%")
            lines += ["", text, report.aligned([headings, *deciles])]
        for each in summary["norms"]:
            cells = [
                (far["frequency"], *(f"{float(far[place]):g}" for place in ("place_by_margin", "place_by_error")))
                for far in each["farthest"]
            ]
            lines += [
                "",
                f"frequencies whose places differ most under noise of norm {each['norm']:g}; 1 is the most sensitive",
            ]
            lines.append(report.aligned([("frequency", "by amplitude", "by errors"), *cells]))
        return "\n".join(lines)


# Basis images


def basis(name: str, image_shape: Sequence[int]) -> tuple[np.ndarray, list[Any]]:
    """The frequencies (R, 2) and the lines of an orthonormal basis of grey images, row by row: each image spans a line.

    For "fourier", the basis image at (u, v) is the wave cos(2 pi (u y / H + v x / W) - pi / 4), scaled to norm 1, as in
    Hartley's transform (Bracewell, 1983). The wave at (-u, -v) is the same one shifted by a quarter of a period. u
    begins at -(H // 2) and v at -(W // 2), so that the zero is in the centre of pictures.
    """
    height, width, num_channels = image_shape
    shape = height, width, num_channels
    if name == "dct":
        windows = subspaces.dct_grid(shape, 1, 1)
        return np.stack([window.corner for window in windows]), windows
    top, left = height // 2, width // 2
    frequency = np.mgrid[-top : height - top, -left : width - left].reshape(2, -1).T
    periods = frequency / np.array([height, width]) @ np.mgrid[:height, :width].reshape(2, -1)
    waves = np.cos(2 * np.pi * periods - np.pi / 4) * np.sqrt(2 / (height * width))
    return frequency, [subspaces.from_basis(wave[:, None].astype(np.float32), shape) for wave in waves]


# Noise of one frequency


def add_noise(
    classifier: Any, images: np.ndarray, labels: np.ndarray, lines: Sequence[Any], norms: Sequence[float]
) -> dict[str, np.ndarray]:
    """The arrays of `noise.npz`: labels (K, R, 2, M) of M images with noise of K norms along R lines, and without it.

    Noise is added once and subtracted once. Pixels are not clipped, because that would add other frequencies.
    """
    coordinates = jnp.asarray([[norm, -norm] for norm in norms])
    found = []
    with _progress.bar("frequencies", "noise") as show:
        for number, line in enumerate(lines, start=1):
            found.append(np.asarray(_labels_under_noise(classifier, images, line, coordinates), np.int16))
            show(number, len(lines))
    return {
        "norm": np.array(norms, float),
        "label_under_noise": np.stack(found, axis=1),
        "label": np.asarray(classifier(images).argmax(-1)),
        "true_label": labels,
    }


@jax.jit
def _labels_under_noise(classifier, images, line, coordinates):
    """Labels (K, 2, M) of M images with noise at coordinates (K, 2) on a line."""
    shifts = jax.vmap(line.embed)(coordinates.reshape(-1, 1))
    labels = jax.lax.map(lambda shift: classifier(images + shift[None]).argmax(-1), shifts)
    return labels.reshape(*coordinates.shape, -1)


# Findings


def read(path: pathlib.Path) -> Found:
    """The findings of the run in a folder."""
    result, arrays = store.read_margins(path / _MARGINS)
    noise = store.read_arrays(path / _NOISE)
    labels, before, truth = noise["label_under_noise"], noise["label"], noise["true_label"]
    return Found(
        frequency=arrays["frequency"],
        norms=noise["norm"],
        errors=(labels != truth).mean((2, 3)),
        is_changed=(labels != before).any(2),
        error=float(np.mean(before != truth)),
        chance=1 - np.unique(truth, return_counts=True)[1].max() / len(truth),
        result=result,
        seconds=float(arrays["seconds"]),
    )


def correlation(found: Found, k: int) -> Estimate:
    """Spearman's rank correlation of median amplitudes and errors under noise of a norm.

    The interval is a bootstrap over the images with amplitudes; errors stay as they are.
    """
    return from_medians(lambda medians: report.spearman(medians, found.errors[k]), found.margins)


def is_at_floor(found: Found, k: int) -> np.ndarray:
    """Truth values (R,): whether the error under noise of a norm is no higher than the 95% interval without noise."""
    return found.errors[k] <= from_share(found.error, found.is_changed.shape[2]).high


def is_at_ceiling(found: Found, k: int) -> np.ndarray:
    """Truth values (R,): whether the error is no lower than the 95% interval of a classifier that sees nothing."""
    return found.errors[k] >= from_share(found.chance, found.is_changed.shape[2]).low


def spread(found: Found, is_kept: np.ndarray) -> Estimate:
    """The upper over the lower decile of median amplitudes at the frequencies kept, (R,) truth values."""
    if not is_kept.any():
        raise ValueError("no frequency is kept: noise adds errors at all of them, so set smaller norms")

    def statistic(medians):
        return statistics.percentile(medians, 90) / statistics.percentile(medians, 10)

    return from_medians(statistic, found.margins[is_kept])


def share_missed(found: Found) -> Estimate:
    """The share of labels that noise changes although its norm is below the amplitude, over all pairs and norms."""
    is_changed, is_beyond = _beside(found)
    return from_samples(np.mean, (is_changed & is_beyond).mean((0, 1)))


def share_returned(found: Found, k: int) -> Estimate:
    """The share with the former label again under noise of a norm, among pairs whose amplitude is at most this norm."""
    is_changed, is_beyond = (each[k] for each in _beside(found))
    is_within = ~is_beyond
    arrays = (~is_changed & is_within).sum(0), is_within.sum(0)
    return from_samples(lambda returned, within: returned.sum() / within.sum(), *arrays)


def _beside(found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Whether noise changes the label, and whether the amplitude exceeds the norm of the noise, (K, R, N)."""
    margins = found.margins
    is_beyond = margins > found.norms[:, None, None] * (1 + _ROUNDING)
    return found.is_changed[:, :, : margins.shape[1]], is_beyond


def places(found: Found, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The places (R,) by median amplitude from small to large, and by error from large to small. Ties share one."""
    medians = statistics.percentile(found.margins, 50)
    return report.ranks(medians) + 0.5, report.ranks(-found.errors[k]) + 0.5


def describe(found: Found) -> dict[str, Any]:
    """The findings for a summary in JSON."""
    medians = statistics.percentile(found.margins, 50)
    return {
        "num_tested": found.is_changed.shape[2],
        "error": found.error,
        "chance": found.chance,
        "missed": _numbers(share_missed(found)),
        "norms": [_of_norm(found, medians, k) for k in range(len(found.norms))],
        "frequencies": [
            {"vertical": u, "horizontal": v, "median": for_json(median), "errors": errors.tolist()}
            for (u, v), median, errors in zip(found.frequency.tolist(), medians, found.errors.T, strict=True)
        ],
    }


def _of_norm(found: Found, medians: np.ndarray, k: int) -> dict[str, Any]:
    sides = {"at_floor": is_at_floor(found, k), "at_ceiling": is_at_ceiling(found, k)}
    by_margin, by_error = places(found, k)
    farthest = np.argsort(-np.abs(by_margin - by_error), kind="stable")[:_NUM_PLACES]
    return {
        "norm": float(found.norms[k]),
        "errors": [float(end) for end in (found.errors[k].min(), found.errors[k].max())],
        "correlation": _numbers(correlation(found, k)),
        **{
            side: {
                "share": float(is_there.mean()),
                "deciles": [for_json(float(statistics.percentile(medians[is_there], rank))) for rank in (10, 90)],
            }
            for side, is_there in sides.items()
        },
        "returned": _numbers(share_returned(found, k)),
        "farthest": [
            {"frequency": name, "place_by_margin": for_json(by_margin[r]), "place_by_error": for_json(by_error[r])}
            for r, name in ((r, _names(found)[r]) for r in farthest)
        ],
    }


def _numbers(estimate: Estimate) -> dict[str, Any]:
    return {field: for_json(number) for field, number in estimate._asdict().items()}


def _names(found: Found) -> list[str]:
    return [f"{u},{v}" for u, v in found.frequency.tolist()]


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    value, low, high = (f"{float(each['correlation'][end]):.2f}" for end in ("value", "low", "high"))
    errors = [f"{end:.1%}" for end in each["errors"]]
    return f"{each['norm']:g}", *errors, value, f"{low} to {high}", f"{float(each['returned']['value']):.1%}"


def _side(side: dict[str, Any]) -> tuple[str, ...]:
    return f"{side['share']:.1%}", *_tables.numbers(map(float, side["deciles"]))


# Pictures


def _maps_picture(title: str, found: Found, name: str) -> list[Axes]:
    """Median amplitudes by frequency, and beside them the heat maps of errors, which share one scale."""
    rows, columns = map(np.unique, found.frequency.T)
    shape = len(rows), len(columns)
    figure = Figure(figsize=(3.6 * (len(found.norms) + 1) + 1.4, 4.2), dpi=150, layout="constrained")
    first, *others = panels = list(figure.subplots(1, len(found.norms) + 1))
    medians = statistics.percentile(found.margins, 50).reshape(1, *shape)
    labels = {"xlabel": "horizontal frequency", "ylabel": "vertical frequency"}
    heading = [f"median amplitudes of {found.margins.shape[1]} images"]
    plots.margin_maps(medians, rows, columns, titles=heading, axes=[first], **labels)
    first.set_facecolor(_BEYOND_COLOR)
    for axes, norm, errors in zip(others, found.norms, found.errors, strict=True):
        mesh = axes.imshow(errors.reshape(shape), cmap="magma_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks(first.get_xticks(), first.get_xticklabels())
        axes.set_yticks(first.get_yticks(), first.get_yticklabels())
        axes.set(title=f"errors under noise of norm {norm:g}", xlabel=labels["xlabel"])
    figure.colorbar(mesh, ax=others, shrink=0.8, label=f"share of wrong labels of {found.is_changed.shape[2]} images")
    where = {"fourier": "Fourier waves, frequency 0 in the centre", "dct": "DCT basis, frequency 0 at the upper left"}
    plots.frame(figure, f"{title}: {where[name]}")
    return panels


def _agreement_picture(title: str, found: Found) -> list[Axes]:
    """Errors under noise of each norm against median amplitudes: a point for each basis image."""
    medians = statistics.percentile(found.margins, 50)
    is_finite = np.isfinite(medians)
    ends = medians[is_finite] if is_finite.any() else found.norms
    right = 1.3 * ends.max()
    figure = Figure(figsize=(4 * len(found.norms), 4), dpi=150, layout="constrained")
    panels = list(figure.subplots(1, len(found.norms), sharex=True, sharey=True, squeeze=False)[0])
    panels[0].set(xscale="log", xlim=(min(ends.min(), found.norms[0]) / 1.3, right), ylim=(-0.02, 1))
    panels[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].xaxis.set_major_formatter("{x:g}")
    panels[0].xaxis.set_minor_formatter(NullFormatter())
    for k, axes in enumerate(panels):
        is_silent = is_at_floor(found, k)
        for is_there, color, label in (
            (~is_silent, LOOKS[0].color, "more errors than without noise"),
            (is_silent, _SILENT_COLOR, "no more errors than without noise"),
        ):
            axes.scatter(medians[is_there], found.errors[k][is_there], s=8, color=color, label=label)
            beyond = found.errors[k][is_there & ~is_finite]
            axes.scatter(np.full(len(beyond), right), beyond, s=16, color=color, marker=">", clip_on=False)
        axes.axvline(found.norms[k], color="black", linewidth=1, linestyle="--", label="norm of the noise")
        axes.axhline(
            found.chance, color="black", linewidth=1, linestyle=":", label="error of a classifier that sees nothing"
        )
        axes.set_title(f"noise of norm {found.norms[k]:g}", fontsize=10)
        axes.set_xlabel("median amplitude (L2, pixels in [0, 1])")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of wrong labels")
    plots.frame(figure, f"{title}: errors of the heat maps against amplitudes", *panels[0].get_legend_handles_labels())
    return panels
