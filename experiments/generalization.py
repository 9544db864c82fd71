"""The experiment on margins and generalization: many small networks, ordered by their margins and by test accuracy.

A run trains and measures one network after another. Each leaves a file, and a network whose file is there is not
trained again.
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import hmt_jax
from experiments import report, small_networks, store
from experiments.claims import for_json
from experiments.experiment import Config, Run, check_at_least, check_at_most
from experiments.small_networks import Settings
from hmt_jax import _progress, _tables, data, plots, solvers, statistics, subspaces, training
from hmt_jax._checks import integer
from hmt_jax._looks import LOOKS
from hmt_jax.data import Dataset
from hmt_jax.estimates import Estimate, from_samples
from hmt_jax.report import Measurement
from hmt_jax.subspaces import Subspace
from hmt_jax.subspaces._base import basis_of

WHOLE, LOW_BAND, COMPONENTS, RANDOM = "whole space", "low band of the DCT", "leading components", "random directions"
SUBSPACES = (WHOLE, LOW_BAND, COMPONENTS, RANDOM)
SOLVERS = ("tight", "DeepFool")
_KINDS: tuple[Literal["cnn", "mlp"], ...] = ("cnn", "mlp")
_NUM_PERMUTATIONS = 999
_CONFIDENCE = 95  # percent


class Found(NamedTuple):
    """The findings of a run on the K networks that have reached the target loss."""

    numbers: list[int]  # (K,), counted over all networks that were trained
    settings: list[Settings]
    test_accuracy: np.ndarray  # (K,)
    train_loss: np.ndarray  # (K,)
    num_epochs: np.ndarray  # (K,)
    margins: dict[str, np.ndarray]  # (K, subspaces, images) by solver, infinite if none was found
    dimensions: list[int]  # of the subspaces
    num_failed: int  # networks that have not reached the target loss
    seconds: float

    def mean_margins(self, subspace: str, solver: str) -> np.ndarray:
        """The mean margin of each network, (K,), over the images whose margin was found; infinite if none was."""
        margins = self.margins[solver][:, SUBSPACES.index(subspace)]
        return np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else row.max() for row in margins])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generalization(Config):
    """Kendall's rank correlation of mean margins with test accuracy, over small networks trained to one loss.

    Half of the networks are convolutional, half have only linear layers. The values of a setting are spread evenly over
    the networks, at random and for each setting on its own: each is that of as many as another, or of one more.

    Attributes:
      data: data set.
      num_networks: networks to train, at least as many as a setting has values.
      num_train: training images, from the first one, at least as many as a batch.
      num_images: training images whose margins are measured, from the first one.
      num_test: test images; 0 for all.
      widths: numbers of filters of a convolution. Hidden linear layers have eight times as many units.
      depths: numbers of hidden layers, not counting the linear one of a convolutional network.
      batch_sizes: images in a step of training.
      dropout_rates: probabilities that a unit of a hidden linear layer is dropped.
      weight_decays: weight decays of AdamW.
      wrong_shares: shares of the training images that are given a wrong label.
      target_loss: mean loss on the training images, in nats, at which training ends.
      max_epochs: epochs after which a network that has not reached that loss is left out.
      learning_rate: learning rate of AdamW.
      low_band: number of frequencies along each axis in the low band of the DCT.
      effort: effort of `hmt_jax.solvers.tight`.
    """

    data: str
    num_networks: int = 48
    num_train: int = 2000
    num_images: int = 200
    num_test: int = 0
    widths: tuple[int, ...] = (16, 32)
    depths: tuple[int, ...] = (1, 2, 3)
    batch_sizes: tuple[int, ...] = (32, 64, 128)
    dropout_rates: tuple[float, ...] = (0.0, 0.2, 0.4)
    weight_decays: tuple[float, ...] = (0.0, 0.01, 0.1)
    wrong_shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4)
    target_loss: float = 0.05
    max_epochs: int = 500
    learning_rate: float = 1e-3
    low_band: int = 8
    effort: Literal["quick", "fast", "normal", "thorough"] = "fast"

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "num_images", "max_epochs", "low_band")
        check_at_least(self, 2, "num_networks", "num_train")
        check_at_least(self, 0, "num_test")
        for field in ("target_loss", "learning_rate"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        for field in ("widths", "depths", "batch_sizes", "dropout_rates", "weight_decays", "wrong_shares"):
            _check_values(field, getattr(self, field), self.num_networks)
        if len(self.wrong_shares) > len(LOOKS):
            raise ValueError(
                f"wrong_shares are {len(self.wrong_shares)} values, of which a picture tells {len(LOOKS)} apart: leave "
                "some out"
            )
        check_at_most("batch_sizes", max(self.batch_sizes), self.num_train, "training images")
        check_at_most("num_images", self.num_images, self.num_train, "training images")

    def check(self, data_dir: str | None) -> None:
        dataset = data.load(self.data, data_dir)
        check_at_most("num_train", self.num_train, len(dataset.train_images), f"training images of {self.data}")
        check_at_most("num_test", self.num_test, len(dataset.test_images), f"test images of {self.data}")
        check_at_most("low_band", self.low_band, min(dataset.image_shape[:2]), f"frequencies of {self.data}")

    def settings(self) -> list[Settings]:
        """The settings of each network."""
        rng = np.random.default_rng(self.seed)
        known = (self.widths, self.depths, self.batch_sizes, self.dropout_rates, self.weight_decays, self.wrong_shares)
        drawn = [
            [values[place] for place in rng.permutation(np.resize(np.arange(len(values)), self.num_networks))]
            for values in known
        ]
        kinds = [_KINDS[number % len(_KINDS)] for number in range(self.num_networks)]
        return [Settings(*each) for each in zip(kinds, *drawn, strict=True)]

    def run(self, run: Run) -> None:
        dataset = data.load(self.data, run.data_dir).first(self.num_train, self.num_test)
        files = [_file(run.path, number) for number in range(self.num_networks)]
        missing = [number for number, file in enumerate(files) if not file.exists()]
        measured = self.subspaces(dataset) if missing else []
        settings = self.settings()
        with _progress.bar("networks", run.name) as show:
            for done, number in enumerate(missing, self.num_networks - len(missing)):
                show(done, self.num_networks)
                self.train_and_measure(files[number], number, settings[number], dataset, measured)
            show(self.num_networks, self.num_networks)
        found = read(run.path)
        store.write_json(run.path / "summary.json", {"experiment": run.name, **describe(found)})
        store.write_picture(run.path / "margins.png", _picture(run.name, found))

    def subspaces(self, dataset: Dataset) -> list[Subspace]:
        """The subspaces in which margins are measured, in the order of `SUBSPACES`."""
        shape, images = dataset.image_shape, dataset.train_images
        [components] = subspaces.principal_components(images, [(0, None)])
        basis = basis_of(components)
        rows = data.as_floats(images).reshape(len(images), -1)
        number = elbow(np.var(rows @ basis, axis=0))
        noise = jax.random.normal(jax.random.key(self.seed), (len(basis), number))
        return [
            subspaces.full(shape),
            subspaces.dct_window(shape, 0, 0, self.low_band),
            *(subspaces.from_basis(jnp.asarray(part), shape) for part in (basis[:, :number], jnp.linalg.qr(noise)[0])),
        ]

    def train_and_measure(
        self,
        file: pathlib.Path,
        number: int,
        settings: Settings,
        dataset: Dataset,
        measured: Sequence[Subspace],
    ) -> None:
        """Trains a network, measures its margins, and writes its accuracies and margins into a file."""
        started = time.perf_counter()
        labels_key, train_key = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), number))
        images = data.as_floats(dataset.train_images)
        trained = small_networks.train(
            settings,
            images,
            with_wrong_labels(dataset.train_labels, settings.wrong_share, dataset.num_classes, labels_key),
            dataset.num_classes,
            target_loss=self.target_loss,
            max_epochs=self.max_epochs,
            learning_rate=self.learning_rate,
            key=train_key,
        )
        test = training.evaluate(trained.classifier, dataset.test_images, dataset.test_labels)
        first = images[: self.num_images]
        tight = hmt_jax.measure_margins(trained.classifier, first, measured, solvers.tight(self.effort))
        deepfool = hmt_jax.measure_margins(trained.classifier, first, measured, solvers.DeepFool())
        store.write_margins(
            file,
            tight,
            **{f"setting_{name}": value for name, value in settings._asdict().items()},
            deepfool=statistics.censored_margins(deepfool),
            dimension=[each.dimension for each in measured],
            num_epochs=trained.num_epochs,
            train_loss=trained.metrics.loss,
            train_accuracy=trained.metrics.accuracy,
            test_accuracy=test.accuracy,
            is_trained=trained.metrics.loss <= self.target_loss,
            seconds=time.perf_counter() - started,
        )

    def measurements(self, path: pathlib.Path) -> list[Measurement]:
        found = read(path)
        order = np.argsort(found.test_accuracy)
        return [
            Measurement(
                name=f"network {found.numbers[place]}, test accuracy {found.test_accuracy[place]:.2%}",
                result=store.read_margins(_file(path, found.numbers[place]))[0],
                subspaces=SUBSPACES,
                is_ordered=False,
                image_ids=[f"{self.data} train {number}" for number in range(self.num_images)],
                no_pictures="the perturbations were not kept",
            )
            for place in dict.fromkeys((order[-1], order[0]))
        ]

    def report(self, path: pathlib.Path) -> str:
        summary = store.read_json(path / "summary.json")
        low, high = summary["test_accuracies"]
        lines = [
            f"{summary['num_networks']} networks; test accuracy {low:.2%} to {high:.2%}; {summary['num_failed']} more "
            f"have not reached the target loss; {summary['seconds']:.0f} s",
            "Kendall's tau: rank correlation of test accuracies and mean margins of training images; by chance: its "
            f"{_CONFIDENCE}% interval if accuracies are exchanged at random; equal shares: its mean within groups "
            "of networks with equal shares of wrong labels; same kind: the same among cnn and among mlp",
        ]
        headings = ("margins in", "dimension", "solver", "mean", "no margin", "Kendall's tau", "by chance")
        rows = [(*headings, "equal shares", "same kind")]
        for each in summary["measures"]:
            margin = _tables.number(float(each["mean_margin"]))
            taus = [f"{float(tau):.2f}" for tau in (each["tau"], *each["within"].values())]
            chance = " to ".join(f"{float(end):.2f}" for end in each["by_chance"])
            cells = (margin, f"{each['share_without']:.1%}", taus[0], chance, *taus[1:])
            rows.append((each["subspace"], str(each["dimension"]), each["solver"], *cells))
        return "\n".join([*lines, report.aligned(rows)])


def with_wrong_labels(labels: np.ndarray, share: float, num_classes: int, key: jax.Array) -> np.ndarray:
    """The labels (N,), with wrong ones for a share drawn at random; all wrong classes are equally likely."""
    order_key, class_key = jax.random.split(key)
    chosen = np.asarray(jax.random.permutation(order_key, len(labels)))[: round(share * len(labels))]
    wrong = np.array(labels)
    wrong[chosen] += np.asarray(jax.random.randint(class_key, chosen.shape, 1, num_classes), wrong.dtype)
    return wrong % num_classes


def elbow(variances: np.ndarray) -> int:
    """The number of leading components at the elbow of the curve of explained variance.

    The curve is the share of the variance that the first k of D components explain, over k / D. Its elbow is where it
    is furthest above the diagonal, at the last component that explains more than the mean one does.
    """
    shares = np.cumsum(variances) / np.sum(variances)
    return int(np.argmax(shares - np.arange(1, len(variances) + 1) / len(variances))) + 1


# Findings


def read(path: pathlib.Path) -> Found:
    """The findings of the run in a folder, once all its networks have been trained."""
    files = [_file(path, number) for number in range(store.settings(path)["num_networks"])]
    results, arrays = zip(*(store.read_margins(file) for file in files), strict=True)
    kept = [number for number, each in enumerate(arrays) if each["is_trained"]]
    if len(kept) < 2:
        raise ValueError(
            f"{len(kept)} of {len(files)} networks have reached target_loss, but at least 2 must: raise target_loss or "
            "max_epochs"
        )
    tight = np.stack([statistics.censored_margins(results[number]) for number in kept])

    def of_all(name: str) -> np.ndarray:
        return np.array([arrays[number][name] for number in kept])

    return Found(
        numbers=kept,
        settings=[
            Settings(**{name: arrays[number][f"setting_{name}"].item() for name in Settings._fields}) for number in kept
        ],
        test_accuracy=of_all("test_accuracy"),
        train_loss=of_all("train_loss"),
        num_epochs=of_all("num_epochs"),
        margins=dict(zip(SOLVERS, (tight, of_all("deepfool")), strict=True)),
        dimensions=arrays[kept[0]]["dimension"].tolist(),
        num_failed=len(files) - len(kept),
        seconds=float(sum(each["seconds"] for each in arrays)),
    )


def kendall(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's rank correlation, tau-b; NaN if all values of one are equal."""
    import scipy.stats  # which takes a second

    return float(scipy.stats.kendalltau(first, second).statistic)


def gain(found: Found, subspace: str, solver: str = "tight") -> Estimate:
    """Kendall's rank correlation of the margins in a subspace with test accuracy, less that in the whole space.

    The interval is a bootstrap over the networks.
    """
    margins = [found.mean_margins(name, solver) for name in (subspace, WHOLE)]
    return from_samples(
        lambda constrained, whole, accuracy: kendall(constrained, accuracy) - kendall(whole, accuracy),
        *margins,
        found.test_accuracy,
    )


def by_chance(margins: np.ndarray, accuracy: np.ndarray) -> tuple[float, float]:
    """The 95% interval of Kendall's rank correlation if accuracies are exchanged among networks at random."""
    import scipy.stats  # which takes a second

    result = scipy.stats.permutation_test(
        (margins,),
        lambda exchanged: kendall(exchanged, accuracy),
        permutation_type="pairings",
        n_resamples=_NUM_PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    outside = (100 - _CONFIDENCE) / 2
    low, high = np.percentile(result.null_distribution, [outside, 100 - outside])
    return float(low), float(high)


def within(found: Found, margins: np.ndarray, setting: str) -> float:
    """The mean of Kendall's rank correlations within groups of networks that have the same value of a setting.

    It is weighted by the number of pairs in each group. Groups in which all margins or accuracies are equal have none,
    and are left out. NaN if no group is left.
    """
    values = np.array([getattr(each, setting) for each in found.settings])
    groups = [values == value for value in np.unique(values)]
    taus = [kendall(margins[is_same], found.test_accuracy[is_same]) for is_same in groups if is_same.sum() > 1]
    weights = [is_same.sum() * (is_same.sum() - 1) for is_same in groups if is_same.sum() > 1]
    kept = np.isfinite(taus)
    return float(np.average(np.array(taus)[kept], weights=np.array(weights)[kept])) if kept.any() else math.nan


def describe(found: Found) -> dict[str, Any]:
    """The findings for a summary in JSON."""
    measures = []
    for r, subspace in enumerate(SUBSPACES):
        for solver in SOLVERS:
            margins = found.mean_margins(subspace, solver)
            measures.append(
                {
                    "subspace": subspace,
                    "dimension": found.dimensions[r],
                    "solver": solver,
                    "mean_margin": for_json(margins.mean()),
                    "share_without": float(np.mean(~np.isfinite(found.margins[solver][:, r]))),
                    "tau": for_json(kendall(margins, found.test_accuracy)),
                    "by_chance": [for_json(end) for end in by_chance(margins, found.test_accuracy)],
                    "within": {name: for_json(within(found, margins, name)) for name in ("wrong_share", "kind")},
                }
            )
    return {
        "num_networks": len(found.numbers),
        "num_failed": found.num_failed,
        "test_accuracies": [float(found.test_accuracy.min()), float(found.test_accuracy.max())],
        "seconds": round(found.seconds, 2),
        "measures": measures,
        "networks": [
            {
                "number": number,
                **found.settings[k]._asdict(),
                "num_epochs": int(found.num_epochs[k]),
                "train_loss": float(found.train_loss[k]),
                "test_accuracy": float(found.test_accuracy[k]),
            }
            for k, number in enumerate(found.numbers)
        ],
    }


def _file(path: pathlib.Path, number: int) -> pathlib.Path:
    return path / f"network_{number:03d}.npz"


def _check_values(field: str, values: Sequence[float], num_networks: int) -> None:
    """Raises ValueError unless these are different values that the setting may have, for as many networks at least."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{field} must be one or more different values, got {values}")
    if len(values) > num_networks:
        raise ValueError(
            f"{field} are {len(values)} values, more than the {num_networks} networks: raise num_networks, or leave "
            "some out"
        )
    if field in ("widths", "depths", "batch_sizes"):
        for value in values:
            integer(field, value, at_least=1)
    elif min(values) < 0:
        raise ValueError(f"{field} must not be negative, got {min(values)}")
    elif field != "weight_decays" and max(values) >= 1:
        raise ValueError(f"{field} must be below 1, got {max(values)}")


# Picture


def _picture(title: str, found: Found) -> Any:
    """Test accuracies and mean margins: one panel per subspace and solver, one marker per share of wrong labels."""
    shares = sorted({each.wrong_share for each in found.settings})
    figure = Figure(figsize=(3.6 * len(SUBSPACES), 3.4 * len(SOLVERS)), dpi=150, layout="constrained")
    panels = figure.subplots(len(SOLVERS), len(SUBSPACES), sharey=True, sharex="col", squeeze=False)
    for row, solver in zip(panels, SOLVERS, strict=True):
        for axes, subspace, dimension in zip(row, SUBSPACES, found.dimensions, strict=True):
            margins = found.mean_margins(subspace, solver)
            for look, share in zip(LOOKS[: len(shares)], shares, strict=True):
                for kind, is_filled in zip(_KINDS, (True, False), strict=True):
                    places = [
                        k for k, each in enumerate(found.settings) if each.wrong_share == share and each.kind == kind
                    ]
                    axes.scatter(
                        margins[places],
                        found.test_accuracy[places],
                        s=26,
                        marker=look.marker,
                        edgecolors=look.color,
                        facecolors=look.color if is_filled else "none",
                        label=f"{share:.0%} wrong, {kind}",
                    )
            tau = kendall(margins, found.test_accuracy)
            axes.set_title(f"{subspace} ({dimension}), {solver}: τ = {tau:.2f}", fontsize=9)
            if not np.isfinite(margins).any():
                axes.set_xlim(0.1, 1)  # of nothing, there is no logarithmic scale
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
            axes.tick_params(labelsize=7, which="both")
            axes.grid(alpha=0.3, which="both")
    for axes in panels[-1]:
        axes.set_xlabel("mean margin of training images (L2)", fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy", fontsize=8)
    title = f"{title}: {len(found.numbers)} networks of one training loss"
    plots.frame(figure, title, *panels[0, 0].get_legend_handles_labels())
    return panels
