"""The experiment on T1: one direction tells the classes apart, and margins are small there and nowhere else."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax

from experiments import config, folder, summary, synthetic
from experiments.checks import from_medians
from experiments.synthetic import Row, Statistic
from hmt_jax import data, plots, statistics, subspaces, training

NETWORKS = ("mlp", "logistic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearMargins(synthetic.Synthetic):
    """Margins of an MLP and of logistic regression on T1: along u1, in its complement, along others, at random.

    Attributes:
      epsilon: distance of the samples from the hyperplane between the classes, along u1.
      num_others: how many of the other directions u2, u3, ... are measured.
      random_dimensions: of the random subspaces.
    """

    epsilon: float = 1.0
    num_others: int = 3
    random_dimensions: tuple[int, ...] = (1, 3, 10, 30, 90)

    def __post_init__(self):
        super().__post_init__()
        num_directions = self.side**2
        if not 0 <= self.num_others < num_directions:
            raise ValueError(f"num_others must be between 0 and {num_directions - 1}, got {self.num_others}")
        if not all(1 <= dimension <= num_directions for dimension in self.random_dimensions):
            raise ValueError(
                f"random_dimensions must be between 1 and {num_directions}, as many as a sample has pixels, got "
                f"{self.random_dimensions}"
            )

    def check(self, data_dir: str | None) -> None:
        jax.eval_shape(self.samples)  # refuses settings out of range, and computes nothing

    def samples(self) -> data.Samples:
        return data.synthetic_linear(
            self.keys.samples,
            self.num_train + self.num_observed,
            epsilon=self.epsilon,
            noise=self.noise,
            image_shape=self.image_shape,
        )

    def run(self, name: str, path: pathlib.Path, *, data_dir: str | None) -> None:
        samples = self.samples()
        rows = _rows(self, samples)
        for network in NETWORKS:
            if not (path / f"{network}.npz").exists():
                print(f"{name}: {network}", flush=True)
                classifier = training.train(
                    self.create(network),
                    samples.images[: self.num_train],
                    samples.labels[: self.num_train],
                    self.recipe,
                    self.keys.training,
                    devices=config.training_devices(self.batch_size),
                )
                with folder.reserved(path):
                    observed = synthetic.observe(self, classifier, samples, rows)
                folder.write_arrays(path / f"{network}.npz", observed)
        found = {network: folder.read_arrays(path / f"{network}.npz") for network in NETWORKS}
        names = [row.name for row in rows]
        percentiles = {
            network: statistics.summarize(synthetic.result_of(arrays)).percentiles for network, arrays in found.items()
        }
        folder.write_picture(path / "margins.png", plots.margin_intervals(names, percentiles, title=name))
        described = {network: synthetic.describe(arrays) for network, arrays in found.items()}
        test_accuracy = described["mlp"]["test_accuracy"]
        folder.write_json(
            path / "summary.json", {"experiment": name, "test_accuracy": test_accuracy, "networks": described}
        )

    def report(self, path: pathlib.Path) -> str:
        lines = []
        for network, found in folder.read_json(path / "summary.json")["networks"].items():
            lines += [
                f"{network}: train accuracy {found['train_accuracy']:.2%}, test accuracy {found['test_accuracy']:.2%}",
                f"{'subspace':<14}{'dimension':>10}{'5%':>10}{'median':>10}{'95%':>10}{'no margin':>11}",
            ]
            for row in found["rows"]:
                ranks = "".join(f"{summary.text(value):>10}" for value in row["percentiles"].values())
                num_without = sum(count for status, count in row["counts"].items() if status != "converged")
                lines.append(f"{row['subspace']:<14}{row['dimension']:>10}{ranks}{num_without:>11}")
        return "\n".join(lines)


def network(name: str) -> Callable[[pathlib.Path], pathlib.Path]:
    """Finds what was observed of a network in a run's folder."""
    return lambda path: path / f"{name}.npz"


def complement_over_u1(name: str) -> Statistic:
    """A network's median margin in the complement of span{u1}, over that in span{u1}."""

    def statistic(path):
        found = [synthetic.margins(network(name)(path), row) for row in ("complement", "u1")]
        return from_medians(lambda complement, u1: complement[0] / u1[0], *found)

    return statistic


def _rows(settings, samples) -> list[Row]:
    u1, *others = synthetic.directions(samples, 1, 1 + settings.num_others)
    keys = jax.random.split(settings.keys.subspaces, len(settings.random_dimensions))
    return [
        u1,
        synthetic.scanned(u1, settings.scan),
        Row("complement", subspaces.orthogonal_complement(u1.subspace)),
        *others,
        *(
            Row(f"random {dimension}", subspaces.random(key, settings.image_shape, dimension))
            for key, dimension in zip(keys, settings.random_dimensions, strict=True)
        ),
    ]
