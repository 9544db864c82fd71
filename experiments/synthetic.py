"""What the experiments on synthetic samples share: samples, training, margins in subspaces, and their summaries."""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

import hmt_jax
from experiments import config, folder
from experiments.checks import Statistic, from_medians, from_share
from experiments.summary import FIELDS, number
from hmt_jax import lanes, models, solvers, statistics, subspaces, training
from hmt_jax.data import Samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthetic(config.Config):
    """Samples with known discriminative directions, and networks of two classes trained on them.

    Attributes:
      num_train: samples to train on.
      num_observed: further samples, on which accuracy and margins are measured.
      side: samples are images of side x side pixels and one channel, so that D is its square.
      noise: sigma, the standard deviation of the samples along all directions that tell nothing.
      num_epochs: of training.
      batch_size: of training.
      max_learning_rate: of training.
      resolution: of the scan of a line that shows by how much DeepFool overstates.
      reach: of that scan, beyond which margins are censored.
    """

    results: ClassVar[tuple[str, ...]] = ("*.npz", "*.png")

    num_train: int = 10_000
    num_observed: int = 1_000
    side: int = 10
    noise: float = 1.0
    num_epochs: int = 30
    batch_size: int = 128
    max_learning_rate: float = 0.1
    resolution: float = 0.02
    reach: float = 20.0

    def __post_init__(self):
        for least, fields in ((1, ("num_train", "num_observed")), (2, ("side",))):
            for field in fields:
                if getattr(self, field) < least:
                    raise ValueError(f"{field} must be at least {least}, got {getattr(self, field)}")
        _ = self.recipe, self.scan  # settings out of range fail here, before any work

    @property
    def recipe(self) -> training.Recipe:
        return training.Recipe(
            num_epochs=self.num_epochs, batch_size=self.batch_size, max_learning_rate=self.max_learning_rate
        )

    @property
    def scan(self) -> solvers.Solver:
        return solvers.Scan(reach=self.reach, resolution=self.resolution)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.side, self.side, 1)

    @property
    def keys(self) -> "Keys":
        return Keys(*jax.random.split(jax.random.key(self.seed), len(Keys._fields)))

    def create(self, network: str) -> models.Normalized:
        """A network of two classes with random weights."""
        return models.create(network, self.keys.weights, image_shape=self.image_shape, num_classes=2)


class Keys(NamedTuple):
    """Random keys of an experiment's parts."""

    samples: jax.Array
    weights: jax.Array
    training: jax.Array
    subspaces: jax.Array


class Row(NamedTuple):
    """A subspace in which margins are measured, and by what."""

    name: str
    subspace: subspaces.Subspace
    solver: solvers.Solver = solvers.DeepFool()


def directions(samples: Samples, first: int, last: int) -> list[Row]:
    """A row for each of the directions u_first to u_last."""
    return [
        Row(f"u{i}", subspaces.from_basis(samples.basis[:, i - 1 : i], samples.image_shape))
        for i in range(first, last + 1)
    ]


def scanned(row: Row, scan: solvers.Solver) -> Row:
    """The same direction, scanned."""
    return Row(f"{row.name}, scanned", row.subspace, scan)


def observe(settings: Synthetic, classifier, samples: Samples, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Accuracies of a classifier, and its margins (R, N) in the subspaces of R rows, on the observed samples."""
    train, test = slice(settings.num_train), slice(settings.num_train, None)
    images = samples.images[test]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hmt_jax.PixelRangeWarning)  # synthetic samples are no images
        results = [hmt_jax.measure_margins(classifier, images, row.subspace, row.solver) for row in rows]
    accuracies = [
        training.evaluate(classifier, samples.images[part], samples.labels[part]).accuracy for part in (train, test)
    ]
    return {
        "row": np.array([row.name for row in rows]),
        "dimension": np.array([row.subspace.dimension for row in rows]),
        "accuracy": np.array(accuracies),
        **{field: np.concatenate([getattr(result, field) for result in results]) for field in FIELDS},
    }


def result_of(arrays: dict[str, np.ndarray]) -> hmt_jax.MarginResult:
    """Observed margins as one result, though several solvers may have found them."""
    fields: dict[str, Any] = {field: arrays[field] for field in FIELDS}
    solver, work = "DeepFool and Scan", lanes.Work(1, 0, 0)  # the work is not kept
    return hmt_jax.MarginResult(**fields, solver=solver, precision="highest", work=work)


def describe(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What was observed of a network, for a summary in JSON."""
    summary = statistics.summarize(result_of(arrays))
    train_accuracy, test_accuracy = arrays["accuracy"].tolist()
    rows = [
        {
            "subspace": name,
            "dimension": int(arrays["dimension"][r]),
            "median": number(summary.median[r]),
            "median_interval": [number(end) for end in summary.median_interval[r]],
            "percentiles": {str(rank): number(summary.percentiles[r, i]) for i, rank in enumerate(summary.ranks)},
            "counts": {status: int(counts[r]) for status, counts in summary.counts.items()},
        }
        for r, name in enumerate(arrays["row"].tolist())
    ]
    return {"train_accuracy": train_accuracy, "test_accuracy": test_accuracy, "rows": rows}


def margins(file: pathlib.Path, row: str) -> np.ndarray:
    """Observed margins in one subspace, (1, N), infinite where they are censored."""
    arrays = folder.read_arrays(file)
    found = statistics.censored(arrays["margin"], arrays["status"])
    return found[arrays["row"] == row]


def median_over(
    length: Callable[[Mapping[str, Any]], float], file: Callable[[pathlib.Path], pathlib.Path], row: str
) -> Statistic:
    """The median margin in a subspace, from the file that `file` finds in a run's folder, over a length of its data.

    The length comes from the fields of the run's configuration.
    """

    def statistic(path):
        unit = length(folder.read_config(path))
        return from_medians(lambda medians: medians[0] / unit, margins(file(path), row))

    return statistic


def accuracy(file: Callable[[pathlib.Path], pathlib.Path]) -> Statistic:
    """The accuracy on the observed samples."""

    def statistic(path):
        arrays = folder.read_arrays(file(path))
        return from_share(float(arrays["accuracy"][1]), arrays["margin"].shape[1])

    return statistic
