"""The experiment on T2, whose classes alternate along u2, and lie 2 epsilon apart along u1: a sweep over epsilon."""

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import config, folder, summary, synthetic
from experiments.checks import Estimate, from_medians
from hmt_jax import data, plots, statistics, training

_GRID = (121, 201)  # points of a cross-section along u1 and u2
_SHOWN = 300  # samples in a cross-section


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternating(synthetic.Synthetic, abc.ABC):
    """An MLP on T2; margins along u1 and u2, and what it says on their plane.

    Attributes:
      period: rho, of the oscillation along u2.
      num_periods: K, on either side of the origin.
    """

    period: float = 5.0
    num_periods: int = 2

    def check_samples(self, epsilon: float) -> None:
        """Raises ValueError for settings out of range, and computes nothing."""
        jax.eval_shape(lambda: self.samples(epsilon))

    def samples(self, epsilon: float) -> data.Samples:
        """T2 with this epsilon; all else is the same for every epsilon."""
        return data.synthetic_nonlinear(
            self.keys.samples,
            self.num_train + self.num_observed,
            epsilon=epsilon,
            noise=self.noise,
            period=self.period,
            num_periods=self.num_periods,
            image_shape=self.image_shape,
        )

    def train(self, classifier, samples: data.Samples, **options: Any):
        """Trains from the parameters that the classifier has."""
        images, labels = samples.images[: self.num_train], samples.labels[: self.num_train]
        devices = config.training_devices(self.batch_size)
        return training.train(classifier, images, labels, self.recipe, self.keys.training, devices=devices, **options)

    def observe(self, file: pathlib.Path, classifier, samples: data.Samples, **more: float) -> None:
        """Writes the margins of a classifier along u1 and u2, found both ways, and its cross-section."""
        rows = synthetic.directions(samples, 1, 2)
        rows += [synthetic.scanned(row, self.scan) for row in rows]
        with folder.reserved(file.parent):
            observed = synthetic.observe(self, classifier, samples, rows)
        plane = np.asarray(samples.basis[:, :2])
        points = np.asarray(samples.images[self.num_train :][:_SHOWN]).reshape(-1, len(plane)) @ plane
        gaps = cross_section(classifier, plane, *self.grid(), self.image_shape)
        extra = {"gaps": gaps, "points": points, "labels": np.asarray(samples.labels[self.num_train :][:_SHOWN])}
        folder.write_arrays(file, {**observed, **extra, **{key: np.array(value) for key, value in more.items()}})

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates along u1 and u2 at which cross-sections are taken, half a period beyond the samples."""
        height = self.period * (self.num_periods + 0.5)
        return np.linspace(-self.period / 2, self.period / 2, _GRID[0]), np.linspace(-height, height, _GRID[1])

    def report(self, path: pathlib.Path) -> str:
        parts = folder.read_json(path / "summary.json")["parts"]
        names = [row["subspace"] for row in parts[0]["rows"]]
        header = "".join(f"{name:>13}" for name in names)
        lines = ["median margins", f"{'epoch':>6}{'epsilon':>9}{'accuracy':>10}{header}"]
        for part in parts:
            medians = "".join(f"{summary.text(row['median']):>13}" for row in part["rows"])
            lines.append(f"{part['epoch']:>6}{part['epsilon']:>9g}{part['test_accuracy']:>10.2%}{medians}")
        return "\n".join(lines)

    def draw_plane(self, name: str, path: pathlib.Path, panels: Mapping[str, dict[str, np.ndarray]]) -> None:
        """Draws the cross-sections that were observed, each under its title."""
        shown = list(panels.values())
        drawn = plots.cross_sections(
            np.stack([arrays["gaps"] for arrays in shown]),
            *self.grid(),
            titles=list(panels),
            points=np.stack([arrays["points"] for arrays in shown]),
            labels=shown[0]["labels"],
            title=f"{name}: the plane of u1 and u2",
        )
        folder.write_picture(path / "cross_sections.png", drawn)

    def summarize(self, name: str, path: pathlib.Path, found: Sequence[dict[str, np.ndarray]]) -> None:
        """Writes the summary of all that was observed."""
        parts = [
            {"epoch": int(arrays["epoch"]), "epsilon": float(arrays["epsilon"]), **synthetic.describe(arrays)}
            for arrays in found
        ]
        # Networks in the midst of their first training do not count.
        accuracy = min(part["test_accuracy"] for part in parts if part["epoch"] >= self.num_epochs)
        folder.write_json(path / "summary.json", {"experiment": name, "test_accuracy": accuracy, "parts": parts})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpsilonSweep(Alternating):
    """A network for each of several epsilons.

    Attributes:
      epsilons: rising.
    """

    epsilons: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)

    def __post_init__(self):
        super().__post_init__()
        names = {f"{epsilon:g}" for epsilon in self.epsilons}  # in files and titles
        if not self.epsilons or list(self.epsilons) != sorted(self.epsilons) or len(names) < len(self.epsilons):
            raise ValueError(f"epsilons must be rising, and different in six digits, got {self.epsilons}")

    def check(self, data_dir: str | None) -> None:
        self.check_samples(self.epsilons[0])

    def run(self, name: str, path: pathlib.Path, *, data_dir: str | None) -> None:
        for epsilon, file in zip(self.epsilons, _files(path, self.epsilons), strict=True):
            if not file.exists():
                print(f"{name}: epsilon = {epsilon:g}", flush=True)
                samples = self.samples(epsilon)
                classifier = self.train(self.create("mlp"), samples)
                self.observe(file, classifier, samples, epsilon=epsilon, epoch=self.num_epochs)
        found = [folder.read_arrays(file) for file in _files(path, self.epsilons)]
        texts = [f"{epsilon:g}" for epsilon in self.epsilons]
        places = np.arange(len(found))
        panels = plots.margin_curves(places, curves(found), title=name, ticks=texts, xlabel="epsilon")
        for axes in panels:  # how far an ideal boundary is along u1
            axes.plot(places, np.where(np.array(self.epsilons) > 0, self.epsilons, np.nan), "k:", zorder=0)
        folder.write_picture(path / "margins.png", panels)
        self.draw_plane(name, path, {f"epsilon = {text}": arrays for text, arrays in zip(texts, found, strict=True)})
        self.summarize(name, path, found)


def cross_section(
    classifier, plane: np.ndarray, x: np.ndarray, y: np.ndarray, image_shape: tuple[int, int, int]
) -> np.ndarray:
    """Logits of class 1 less those of class 0 at the points x[j] u1 + y[i] u2, (len(y), len(x)); plane is (u1, u2)."""
    first, second = np.meshgrid(x, y)
    points = np.stack([first.ravel(), second.ravel()], axis=1) @ plane.T
    logits = classifier(jnp.asarray(points.reshape(-1, *image_shape), jnp.float32))
    return np.asarray(logits[:, 1] - logits[:, 0]).reshape(first.shape)


def curves(found: Sequence[dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Percentiles (E, 3) along u1 and u2 of what was observed E times, by DeepFool and scanned."""
    percentiles = np.stack([statistics.summarize(synthetic.result_of(arrays)).percentiles for arrays in found], axis=1)
    along = dict(zip(found[0]["row"].tolist(), percentiles, strict=True))
    return {
        "DeepFool": {name: along[name] for name in ("u1", "u2")},
        "scanned line": {name: along[f"{name}, scanned"] for name in ("u1", "u2")},
    }


def half_period(config: Mapping[str, Any]) -> float:
    """How far the other class is along u2, by the fields of a run."""
    return config["period"] / 2


def at_epsilon(index: int) -> Callable[[pathlib.Path], pathlib.Path]:
    """Finds what was observed at one of a sweep's epsilons, in a run's folder."""
    return lambda path: _files(path, folder.read_config(path)["epsilons"])[index]


def growth_along_u2(path: pathlib.Path) -> Estimate:
    """The median margin along u2 at the greatest epsilon over that at the least."""
    found = [synthetic.margins(at_epsilon(index)(path), "u2") for index in (0, -1)]
    return from_medians(lambda least, greatest: greatest[0] / least[0], *found)


def _files(path, epsilons):
    return [path / f"epsilon_{epsilon:g}.npz" for epsilon in epsilons]
