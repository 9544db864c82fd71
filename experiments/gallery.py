"""Pictures of what the experiments do to images: manipulated images, and minimal perturbations by window."""

import dataclasses
import pathlib
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import hmt_jax
from experiments import baseline, folder, manipulations, pictures, stages
from experiments.checks import Estimate, Statistic, from_resampling
from experiments.diagonal import DiagonalMargins
from hmt_jax import data, frequency

_NUM_WINDOWS = 7  # of the diagonal that are shown, evenly from the lowest to the highest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery(DiagonalMargins):
    """Images manipulated, and the least perturbations that change what a network says of them.

    The network is that of a run along the diagonal with the same fields, which is made if there is none.

    Attributes:
      shown: manipulations, as `experiments.manipulations` names them.
      num_shown: test images in the pictures: the first ones.
    """

    results: ClassVar[tuple[str, ...]] = (
        "baseline",
        "baseline.json",
        "manipulated.npz",
        "manipulated.png",
        "perturbations.npz",
        "perturbations.png",
    )

    shown: tuple[str, ...]
    num_shown: int = 5

    def __post_init__(self):
        super().__post_init__()
        if self.num_shown < 1:
            raise ValueError(f"num_shown must be at least 1, got {self.num_shown}")
        for manipulation in self.shown:
            manipulations.check(manipulation)

    @property
    def of_network(self) -> DiagonalMargins:
        """The run that trains the network."""
        fields = dataclasses.fields(DiagonalMargins)
        return DiagonalMargins(**{field.name: getattr(self, field.name) for field in fields})

    def check(self, data_dir: str | None) -> None:
        super().check(data_dir)
        if self.num_shown > self.num_images:
            raise ValueError(
                f"num_shown={self.num_shown} is more than num_images={self.num_images}: set num_shown to at most that"
            )
        for manipulation in self.shown:
            manipulations.apply(manipulation, stages.load(self, data_dir).test_images[:1])

    def run(self, name: str, path: pathlib.Path, *, data_dir: str | None) -> None:
        origin = baseline.provide(name, self.of_network, path, data_dir)
        images = data.as_floats(stages.load(self, data_dir).test_images[: self.num_images])
        manipulated = {"plain": images, **{text: manipulations.apply(text, images) for text in self.shown}}
        energy = np.array([(each**2).sum((1, 2, 3)) for each in manipulated.values()])
        folder.write_arrays(path / "manipulated.npz", {"manipulation": np.array(list(manipulated)), "energy": energy})
        shown = {text: _stretched(each[: self.num_shown]) for text, each in manipulated.items()}
        folder.write_picture(path / "manipulated.png", pictures.image_grid(shown, title=f"{name}: manipulated images"))

        classifier = folder.read_classifier(origin / stages.CLASSIFIER)
        few = data.as_floats(manipulations.apply(self.manipulation, images[: self.num_shown]))
        with folder.reserved(path, 2 * few.nbytes * _NUM_WINDOWS):
            found = self.perturb(classifier, few)
        folder.write_arrays(path / "perturbations.npz", found)
        folder.write_picture(path / "perturbations.png", _picture(name, few, found))
        accuracy = folder.read_json(origin / "summary.json")["test_accuracy"]
        folder.write_json(path / "summary.json", {"experiment": name, "test_accuracy": accuracy})

    def perturb(self, classifier, images: np.ndarray) -> dict[str, np.ndarray]:
        """The least perturbations (R, N, height, width, channels) of N images in R windows, and what they do."""
        windows = self.windows(images.shape[1:])
        chosen = np.linspace(0, len(windows) - 1, min(_NUM_WINDOWS, len(windows))).round().astype(int)
        windows = [windows[r] for r in chosen]
        result = hmt_jax.measure_margins(classifier, images, windows, self.solver, keep_coordinates=True)
        assert result.coordinates is not None
        found = zip(windows, result.coordinates, strict=True)
        perturbations = np.stack([jax.vmap(window.embed)(jnp.asarray(z)) for window, z in found])
        perturbed = (images + perturbations).reshape(-1, *images.shape[1:])
        return {
            "corner": np.stack([window.corner for window in windows]),
            "perturbation": perturbations,
            "margin": result.margin,
            "label": result.label,
            "label_of_perturbed": np.asarray(classifier(perturbed).argmax(1)).reshape(result.label.shape),
        }

    def report(self, path: pathlib.Path) -> str:
        found = folder.read_arrays(path / "perturbations.npz")
        lines = ["window, and for each image the L2 norm of its perturbation and the label before and after"]
        for (row, column), captions in zip(found["corner"].tolist(), _captions(found), strict=True):
            lines.append(f"{row:>4},{column:>3}" + "".join(f"{caption:>18}" for caption in captions))
        return "\n".join(lines)


def energy_left(manipulation: str) -> Statistic:
    """The energy of manipulated images over that of the plain ones."""

    def statistic(path):
        arrays = folder.read_arrays(path / "manipulated.npz")
        energies = dict(zip(arrays["manipulation"].tolist(), arrays["energy"], strict=True))
        if manipulation not in energies:
            raise ValueError(f"{manipulation} is not among the manipulations: add it to shown")
        return from_resampling(lambda part, whole: part.sum() / whole.sum(), energies[manipulation], energies["plain"])

    return statistic


def share_of_changed_labels(path: pathlib.Path) -> Estimate:
    """The share of perturbed images, over all windows, that the network gives another label."""
    arrays = folder.read_arrays(path / "perturbations.npz")
    return from_resampling(np.mean, (arrays["label"] != arrays["label_of_perturbed"]).mean(0))


def greatest_energy_outside(path: pathlib.Path) -> Estimate:
    """The greatest share of a perturbation's energy that lies outside its window."""
    arrays, size = folder.read_arrays(path / "perturbations.npz"), folder.read_config(path)["window_size"]
    energy = np.asarray(frequency.dct(jnp.asarray(arrays["perturbation"]))) ** 2
    inside = [
        each[:, row : row + size, column : column + size].sum((1, 2, 3))
        for each, (row, column) in zip(energy, arrays["corner"].tolist(), strict=True)
    ]
    return from_resampling(np.max, np.max(1 - np.array(inside) / energy.sum((2, 3, 4)), axis=0))


def _picture(name: str, images: np.ndarray, found: dict[str, np.ndarray]) -> Figure:
    """Images beside their perturbations, which are drawn around grey, each as strong as it can be."""
    reach = np.abs(found["perturbation"]).max((2, 3, 4), keepdims=True)
    windows = [f"window {row}, {column}" for row, column in found["corner"].tolist()]
    columns = dict(zip(windows, 0.5 + found["perturbation"] / (2 * reach), strict=True))
    captions = [[str(label) for label in found["label"][0]], *_captions(found)]
    return pictures.image_grid({"image": _stretched(images), **columns}, captions, title=f"{name}: perturbations")


def _captions(found: dict[str, np.ndarray]) -> list[list[str]]:
    """What to say of each perturbation, by windows and images."""
    parts = zip(found["margin"], found["label"], found["label_of_perturbed"], strict=True)
    return [[f"{m:.3g}: {before} to {after}" for m, before, after in zip(*row, strict=True)] for row in parts]


def _stretched(images: np.ndarray) -> np.ndarray:
    """Images (N, height, width, channels), each from its least value, as 0, to its greatest, as 1."""
    least, greatest = (function(axis=(1, 2, 3), keepdims=True) for function in (images.min, images.max))
    return (images - least) / (greatest - least)
