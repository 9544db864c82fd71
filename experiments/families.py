"""The experiment on families of features: margins in their members, beside what a linear classifier makes of each.

A run goes from top to bottom. Each stage leaves a file, and a stage whose file is there is not run again.
"""

import dataclasses
import itertools
import math
import pathlib
import re
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import hmt_jax
from experiments import manipulations, report, store
from experiments.claims import for_json
from experiments.experiment import Run
from experiments.images import OnNetwork, summarize, trained
from hmt_jax import _progress, _tables, data, plots, solvers, statistics
from hmt_jax._images import Images as ImagesToRead
from hmt_jax._looks import LOOKS, check_number
from hmt_jax.cli import _images, _specs
from hmt_jax.estimates import Estimate, from_medians
from hmt_jax.report import Measurement
from hmt_jax.subspaces import _rows
from hmt_jax.subspaces._base import basis_of

_LINEAR, _MARGINS, _PARTS = "linear.npz", "margins.npz", "parts.npz"
_NUM_SHOWN = 7  # members of a family in its picture at most, evenly from the first to the last
_ROUNDING = 1 / (12 * 255**2)  # the variance that rounding to 8 bits gives a pixel
_LEAST_BANDS = 3  # the fewest that have an order worth a number
_OTHERS_COLOR = "#cccccc"
_HEADING_WIDTH = 16  # characters in a line above an image
_LABEL_HEIGHT = 0.036  # of a panel
_COLUMN, _WIDTH = 0.94, 1.4  # where names on the right begin and end


class Member(NamedTuple):
    """A subspace of a family."""

    family: str
    name: str
    subspace: Any


class Found(NamedTuple):
    """The findings of a run in the R members of its families."""

    families: list[str]  # of each member
    names: list[str]
    dimension: np.ndarray  # (R,)
    is_band: np.ndarray  # (R,)
    accuracy: np.ndarray  # (R,) of linear classifiers
    chance: float  # the accuracy of a classifier that sees nothing, and always chooses the most frequent class
    result: hmt_jax.MarginResult
    seconds: float

    def bands_of(self, family: str) -> np.ndarray:
        """Which members are bands of a family, (R,) truth values."""
        return self.is_band & (np.array(self.families) == family)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Families(OnNetwork):
    """Margins of a network in families of subspaces, and the accuracy of a linear classifier on each member alone.

    Linear classifiers are fitted to all training images of the network. Principal components and class means are those
    of the same images.

    Attributes:
      families: subspaces, as `hmt measure --subspaces` takes them, except `pixels`, which needs a file.
      effort: effort of `hmt_jax.solvers.tight`.
    """

    families: tuple[str, ...]
    num_images: int = 500
    effort: Literal["quick", "fast", "normal", "thorough"] = "normal"

    def __post_init__(self):
        super().__post_init__()
        if not self.families or len(set(self.families)) < len(self.families):
            raise ValueError(f"families must be one or more different texts, got {self.families}")
        if files := [text for text in self.families if text.startswith("pixels:")]:
            raise ValueError(f"families has {files[0]}, a file that no run keeps: name patches:SIZE, or leave it out")

    def check(self, data_dir: str | None) -> None:
        super().check(data_dir)
        dataset = data.load(self.data, data_dir)
        for text in self.families:
            if not _specs.need_features([text]):
                _specs.subspaces_of([text], dataset.image_shape)

    def run(self, run: Run) -> None:
        config = trained(run)
        assert run.baseline is not None
        if not (run.path / _PARTS).exists():
            dataset = config.load(run.data_dir)
            parts = dataset.train_images, dataset.test_images
            train, test = (manipulations.apply(config.manipulation, images) for images in parts)
            members = self.members(train, dataset.train_labels)
            if not (run.path / _LINEAR).exists():
                linear = linear_accuracies(members, train, dataset.train_labels, test, dataset.test_labels)
                store.write_arrays(run.path / _LINEAR, linear)
            with config.pixels_explained():
                classifier, images = store.read_classifier(run.baseline), data.as_floats(test[: self.num_images])
                if not (run.path / _MARGINS).exists():
                    self.measure(run, classifier, members, images, dataset.test_labels[: self.num_images])
                self.perturb(run, classifier, members, images[0])
        found = read(run.path)
        summarize(run, found.result, found.seconds, describe(found))
        store.write_picture(run.path / "accuracy.png", _accuracy_picture(run.name, found))
        store.write_picture(run.path / "margins.png", _margins_picture(run.name, found))
        shown = store.read_arrays(run.path / _PARTS)
        for family, name in _file_names(dict.fromkeys(found.families)).items():
            store.write_picture(run.path / f"family-{name}.png", _parts_picture(family, shown))

    def members(self, images: np.ndarray, labels: np.ndarray) -> list[Member]:
        """The members of all families. Texts that name one subspace each, of one kind, make a family together."""
        shape: tuple[int, int, int] = images.shape[1:]
        of_data = _images.Images(self.data, shape, len(images), images, classes=labels)
        found = []
        for text, subspaces, names in _specs.families_of(self.families, shape, lambda: of_data):
            family = text if len(subspaces) > 1 else text.partition(":")[0]
            found += [Member(family, *each) for each in zip(names, subspaces, strict=True)]
        bands = {each.family for each in found if _is_band(each.subspace.dimension, shape)}
        check_number(len(bands), "families")  # before hours of work, rather than when they are drawn
        return found

    def measure(
        self, run: Run, classifier: Any, members: Sequence[Member], images: np.ndarray, labels: np.ndarray
    ) -> None:
        """Measures images in all members, from where an interrupted run stopped, and writes `margins.npz`."""
        started, solver = time.perf_counter(), solvers.tight(self.effort)
        subspaces = [member.subspace for member in members]
        with _progress.bar("pairs", "margins") as show:
            path = run.path / store.MARGINS
            result = hmt_jax.measure_to_store(classifier, images, subspaces, solver, path, progress=show).read()
        store.write_margins(
            run.path / _MARGINS,
            result,
            family=[member.family for member in members],
            member=[member.name for member in members],
            dimension=[member.subspace.dimension for member in members],
            true_label=labels,
            image_shape=images.shape[1:],
            seconds=time.perf_counter() - started,
        )

    def perturb(self, run: Run, classifier: Any, members: Sequence[Member], image: np.ndarray) -> None:
        """Writes the parts of an image in some members of each family, and the smallest perturbations there."""
        shown = []
        for _, own in itertools.groupby(members, lambda member: member.family):
            family = list(own)
            places = np.linspace(0, len(family) - 1, min(_NUM_SHOWN, len(family))).round().astype(int)
            shown += [family[place] for place in places]
        subspaces, solver = [member.subspace for member in shown], solvers.tight(self.effort)
        result = hmt_jax.measure_margins(classifier, image[None], subspaces, solver, keep_coordinates=True)
        assert result.coordinates is not None
        found = list(zip(subspaces, result.coordinates, strict=True))
        perturbations = np.stack([subspace.embed(jnp.asarray(rows[0])) for subspace, rows in found])
        arrays = {
            "family": [member.family for member in shown],
            "member": [member.name for member in shown],
            "image": image,
            "part": np.stack([subspace.embed(subspace.coordinates(jnp.asarray(image))) for subspace in subspaces]),
            "perturbation": perturbations,
            "margin": result.margin[:, 0],
            "label": result.label[:, 0],
            "label_of_perturbed": np.asarray(classifier(image + perturbations).argmax(1)),
        }
        store.write_arrays(run.path / _PARTS, arrays)

    def measurements(self, path: pathlib.Path) -> list[Measurement]:
        found = read(path)
        names = np.array(found.names)
        ids = [f"{self.data} test {number}" for number in range(found.result.margin.shape[1])]
        shared: Any = {"is_ordered": False, "image_ids": ids, "no_pictures": "the perturbations were not kept"}
        return [
            Measurement(
                name=f"{store.read_config(path)['experiment']}, {family}",
                result=_part(found.result, is_member),
                subspaces=names[is_member].tolist(),
                axis=f"member of {family}",
                **shared,
            )
            for family, is_member in _members_of(found).items()
        ]

    def report(self, path: pathlib.Path) -> str:
        summary = store.read_json(path / "summary.json")
        lines = [
            f"test accuracy {summary['test_accuracy']:.2%}; {summary['num_images']} images; margins "
            f"{summary['measurement_seconds']:.0f} s; a linear classifier that sees nothing: {summary['chance']:.2%}",
            "members in brackets have more than half of all dimensions, and are no bands",
        ]
        for family in summary["families"]:
            members = [_row(member) for member in summary["members"] if member["family"] == family]
            headings: tuple[str, ...] = ("member", "dimension", "linear accuracy", "5%", "median", "95%", "no margin")
            lines += ["", family, report.aligned([headings, *members])]
        families = [_order(family, part) for family, part in {"all": summary["all"], **summary["families"]}.items()]
        headings = ("family", "bands", "rank correlation", "95% interval")
        lines += ["", "linear accuracy and median margin, over the bands of", report.aligned([headings, *families]), ""]
        for kind, text in (("small", "the third of least accuracy"), ("large", "the third of greatest accuracy")):
            misfits = [each for each in summary["misfits"] if each["margin"] == kind]
            lines.append(f"bands in {text} that are in the third of {kind} margins: {len(misfits)}")
            if misfits:
                bands = [(f"{each['family']} {each['member']}", *_cells(each)) for each in misfits]
                lines.append(report.aligned([("band", "dimension", "linear accuracy", "median margin"), *bands]))
        return "\n".join(lines)


# Linear classifiers


def linear_accuracies(
    members: Sequence[Member],
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
) -> dict[str, np.ndarray]:
    """The accuracies (R,) on test images of linear discriminant analysis on the coordinates in each subspace alone.

    The variance of rounding to 8 bits is added to the covariance within classes. So a subspace in which images hardly
    vary tells nothing, and the covariance has an inverse. Beyond that, neither scale nor basis of the coordinates
    matters. "chance" is the accuracy of a subspace that tells nothing: the most frequent class is always chosen.
    """
    classes, numbers = np.unique(train_labels, return_inverse=True)
    num_pixels = math.prod(train_images.shape[1:])
    counts, products, means = _rows.moments(_rows.rows_of(ImagesToRead(train_images)), num_pixels, numbers)
    shares, covariance = counts / counts.sum(), products / counts.sum()
    tests, accuracies = np.concatenate([*_rows.rows_of(ImagesToRead(test_images))]), []
    for member in members:
        basis = basis_of(member.subspace)
        within = basis.T @ covariance @ basis + _ROUNDING * np.eye(basis.shape[1])
        weights = basis @ np.linalg.solve(within, (means @ basis).T)  # (D, C)
        biases = np.log(shares) - np.einsum("cd,dc->c", means, weights) / 2
        accuracies.append(np.mean(classes[np.argmax(tests @ weights + biases, axis=1)] == test_labels))
    chance = np.mean(classes[np.argmax(shares)] == test_labels)
    return {"accuracy": np.array(accuracies), "chance": chance}


# Findings


def read(path: pathlib.Path) -> Found:
    """The findings of the run in a folder."""
    result, arrays = store.read_margins(path / _MARGINS)
    linear = store.read_arrays(path / _LINEAR)
    return Found(
        families=arrays["family"].tolist(),
        names=arrays["member"].tolist(),
        dimension=arrays["dimension"],
        is_band=_is_band(arrays["dimension"], arrays["image_shape"]),
        accuracy=linear["accuracy"],
        chance=float(linear["chance"]),
        result=result,
        seconds=float(arrays["seconds"]),
    )


def _is_band(dimension: Any, image_shape: Any) -> Any:
    """Whether a member is a band: one of more than half of all dimensions is what a band leaves."""
    return 2 * dimension <= np.prod(image_shape)


def correlation(found: Found, is_kept: np.ndarray) -> Estimate:
    """Spearman's rank correlation of linear accuracies and median margins over the members kept, (R,) truth values.

    Its interval is over the images whose margins were measured.
    """
    if is_kept.sum() < _LEAST_BANDS:
        raise ValueError(f"{is_kept.sum()} bands have no order, it takes {_LEAST_BANDS}: name more families")
    accuracy = found.accuracy[is_kept]
    margins = statistics.censored_margins(found.result)[is_kept]
    return from_medians(lambda medians: report.spearman(medians, accuracy), margins)


def describe(found: Found) -> dict[str, Any]:
    """The findings for a summary in JSON."""
    summary = statistics.summarize(found.result)
    members = [
        {
            "family": found.families[r],
            "member": found.names[r],
            "dimension": int(found.dimension[r]),
            "is_band": bool(found.is_band[r]),
            "linear_accuracy": float(found.accuracy[r]),
            **report.statistics_of(summary, r),
        }
        for r in range(len(found.names))
    ]
    return {
        "chance": found.chance,
        "confidence": summary.confidence,
        "all": _described(found, found.is_band),
        "families": {family: _described(found, found.bands_of(family)) for family in _members_of(found)},
        "misfits": [{**members[r], "margin": margin} for r, margin in misfits(found).items()],
        "members": members,
    }


def misfits(found: Found) -> dict[int, str]:
    """The bands whose margin is not what their linear accuracy leads to expect, by their numbers.

    "small" for those in the third of least accuracy and in that of smallest margins, "large" for those in the third of
    greatest accuracy and in that of largest margins. Equal values share their mean rank.
    """
    places = np.flatnonzero(found.is_band)
    medians = statistics.percentile(statistics.censored_margins(found.result)[places], 50)
    accuracy, margin = (report.ranks(values) / len(places) for values in (found.accuracy[places], medians))
    is_small, is_large = (accuracy < 1 / 3) & (margin < 1 / 3), (accuracy > 2 / 3) & (margin > 2 / 3)
    return {int(r): "small" if is_small[n] else "large" for n, r in enumerate(places) if is_small[n] or is_large[n]}


def _described(found: Found, is_kept: np.ndarray) -> dict[str, Any]:
    nothing = Estimate(np.nan, np.nan, np.nan)
    estimate = correlation(found, is_kept) if is_kept.sum() >= _LEAST_BANDS else nothing
    numbers = {field: for_json(number) for field, number in estimate._asdict().items()}
    return {"num_bands": int(is_kept.sum()), **numbers}


def _members_of(found: Found) -> dict[str, np.ndarray]:
    """Which members a family has, (R,) truth values, by its name."""
    families = np.array(found.families)
    return {family: families == family for family in dict.fromkeys(found.families)}


def _file_names(families: Iterable[str]) -> dict[str, str]:
    """A name for the picture of each family: letters and digits, and a number where that of two would be the same."""
    names: dict[str, str] = {}
    for family in families:
        plain = name = re.sub("[^a-z0-9]+", "-", family)
        number = 1
        while name in names.values():
            number += 1
            name = f"{plain}-again-{number}"
        names[family] = name
    return names


def _part(result: hmt_jax.MarginResult, is_kept: np.ndarray) -> hmt_jax.MarginResult:
    """The result in some of its subspaces; its work is that of all."""
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    arrays = {name: value[is_kept] for name, value in values.items() if np.shape(value) == result.margin.shape}
    return dataclasses.replace(result, **arrays)


def _order(family: str, part: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a family's rank correlation; empty ones if too few bands have an order."""
    value, low, high = (float(part[end]) for end in ("value", "low", "high"))
    numbers = (f"{value:.2f}", f"{low:.2f} to {high:.2f}") if part["num_bands"] >= _LEAST_BANDS else ("", "")
    return family, str(part["num_bands"]), *numbers


def _row(member: dict[str, Any]) -> tuple[str, ...]:
    low, median, high = _tables.numbers(map(float, member["percentiles"].values()))
    num_without = sum(member["counts"].values()) - member["counts"]["converged"]
    dimension, accuracy, _ = _cells(member)
    name = member["member"] if member["is_band"] else f"({member['member']})"
    return name, dimension, accuracy, low, median, high, str(num_without)


def _cells(member: dict[str, Any]) -> tuple[str, str, str]:
    return (
        str(member["dimension"]),
        f"{member['linear_accuracy']:.2%}",
        _tables.number(float(member["median"])),
    )


# Pictures


def _accuracy_picture(title: str, found: Found) -> Any:
    """Linear accuracies and median margins of bands: a panel for each family, with the others in grey."""
    families = {family: found.bands_of(family) for family in _members_of(found)}
    families = {family: is_band for family, is_band in families.items() if is_band.any()}
    medians = statistics.percentile(statistics.censored_margins(found.result), 50)
    finite = medians[found.is_band & np.isfinite(medians)]
    limits = (finite.min() / 1.3, finite.max() * 1.3) if finite.size else (0.1, 1.0)
    num_columns = min(3, len(families))
    num_rows = -(-len(families) // num_columns)
    figure = Figure(figsize=(4.2 * num_columns, 3.9 * num_rows), dpi=150, layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(families) :]:
        axes.set_axis_off()
    for axes, look, (family, is_band) in zip(panels, LOOKS, families.items(), strict=False):
        others = found.is_band & ~is_band
        axes.set(xlim=(0, _WIDTH), ylim=limits, yscale="log", xticks=np.linspace(0, 1, 6))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.scatter(found.accuracy[others], medians[others], s=10, color=_OTHERS_COLOR, zorder=1)
        axes.scatter(found.accuracy[is_band], medians[is_band], s=28, color=look.color, marker=look.marker, zorder=3)
        axes.axvline(found.chance, color="black", linestyle=":", linewidth=1, zorder=0)
        is_left = found.accuracy < 0.5
        for side in (is_left, ~is_left):
            _label(axes, found, medians, np.flatnonzero(is_band & side & np.isfinite(medians)))
        axes.set_title(family, fontsize=9)
        axes.grid(alpha=0.3)
    figure.supxlabel("accuracy of a linear classifier on the band alone; dotted: chance")
    figure.supylabel("median margin (L2, pixels in [0, 1])")
    plots.frame(figure, f"{title}: what discriminates, and where the network decides")
    return panels


def _label(axes: Axes, found: Found, medians: np.ndarray, members: np.ndarray) -> None:
    """Writes names to the right of points on one side of a panel, one above the other so that none is hidden."""
    bottom, top = np.log(axes.get_ylim())
    lowest = 0.0
    for r in members[np.argsort(medians[members])]:
        accuracy, median = found.accuracy[r], medians[r]
        height = max((np.log(median) - bottom) / (top - bottom), lowest)
        lowest = height + _LABEL_HEIGHT
        axes.annotate(
            found.names[r],
            (accuracy, median),
            (accuracy + 0.06 if accuracy < 0.5 else max(accuracy + 0.04, _COLUMN), height),
            textcoords=("data", "axes fraction"),
            va="center",
            fontsize=6.5,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#999999", "shrinkA": 0, "shrinkB": 0},
            zorder=4,
        )


def _margins_picture(title: str, found: Found) -> Any:
    """Margins in all members: a panel for each family."""
    families, percentiles = _members_of(found), report.percentiles(found.result)
    names = np.array(found.names)
    figure = Figure(figsize=(14, 4.2 * -(-len(families) // 2)), dpi=150, layout="constrained")
    panels = figure.subplots(-(-len(families) // 2), 2, sharey=True, squeeze=False).ravel()
    for axes in panels[len(families) :]:
        axes.set_axis_off()
    limits = []
    for axes, (family, is_member) in zip(panels, families.items(), strict=False):
        plots.margin_intervals(names[is_member].tolist(), {"": percentiles[is_member]}, axes=axes, title=family)
        limits.append(axes.get_ylim())
    lows, highs = zip(*limits, strict=True)
    panels[0].set_ylim(min(lows), max(highs))
    plots.frame(figure, f"{title}: margins of {found.result.margin.shape[1]} test images")
    return panels


def _parts_picture(family: str, arrays: dict[str, np.ndarray]) -> list[Axes]:
    """The parts of an image in members of a family, the smallest perturbations there, and the perturbed images.

    Parts and perturbations are drawn with grey for 0, each with the strongest contrast that fits.
    """
    image = arrays["image"]
    columns = {"image": np.stack([image, np.full_like(image, 0.5), image])}
    captions = [["", "", f"label {arrays['label'][0]}"]]
    for r in np.flatnonzero(arrays["family"] == family):
        perturbation = arrays["perturbation"][r]
        rows = report.around_grey(arrays["part"][r]), report.around_grey(perturbation), image + perturbation
        columns[textwrap.fill(str(arrays["member"][r]), _HEADING_WIDTH)] = np.stack(rows)
        norm = float(np.linalg.norm(arrays["part"][r]))
        label = f"label {arrays['label_of_perturbed'][r]}"
        captions.append([f"norm {norm:.3g}", f"margin {arrays['margin'][r]:.3g}", label])
    title = f"{family}: parts of an image, its least perturbations, and the perturbed images"
    return plots.image_grid(columns, captions=captions, title=title)
