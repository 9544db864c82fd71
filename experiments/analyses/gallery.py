"""Pictures of a finished run: its images manipulated, and the least perturbations of its network by window."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

import hmt_jax
from experiments import manipulations, report, store
from experiments.experiment import Config, Run, check_at_least, check_at_most
from experiments.images import Images, trained
from hmt_jax import _tables, data, plots
from hmt_jax.report import Measurement

_PERTURBATIONS = "perturbations.npz"
_NUM_WINDOWS = 7  # of the diagonal that are shown, evenly from the lowest to the highest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery(Config):
    """Images manipulated, and the least perturbations that change the labels of a network.

    Attributes:
      baseline: experiment that trains the network. Its folder beside this one's is used; it is run first if it is not
        finished there.
      shown: manipulations, such as flip or low_pass:14.
      num_shown: number of test images in the pictures, from the first one.
    """

    shown: tuple[str, ...]
    baseline: str
    num_shown: int = 5

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "num_shown")
        for manipulation in self.shown:
            manipulations.check(manipulation)

    def baseline_config(self, other: Config, changes: dict[str, Any]) -> Config:
        if not isinstance(other, Images):
            raise ValueError(f"baseline={self.baseline} trains no network on images: name an experiment that does")
        check_at_most("num_shown", self.num_shown, other.num_images, f"images of {self.baseline}")
        return dataclasses.replace(other, seed=self.seed)

    def run(self, run: Run) -> None:
        config = trained(run)
        assert run.baseline is not None
        images = data.as_floats(config.load(run.data_dir).test_images[: config.num_images])
        manipulated = {"plain": images, **{text: manipulations.apply(text, images) for text in self.shown}}
        energy = np.array([(each**2).sum((1, 2, 3)) for each in manipulated.values()])
        names = np.array(list(manipulated))
        store.write_arrays(run.path / "manipulated.npz", {"manipulation": names, "energy": energy})
        shown = {text: _stretched(each[: self.num_shown]) for text, each in manipulated.items()}
        drawn = plots.image_grid(shown, title=f"{run.name}: manipulated images")
        store.write_picture(run.path / "manipulated.png", drawn)

        classifier = store.read_classifier(run.baseline)
        few = data.as_floats(manipulations.apply(config.manipulation, images[: self.num_shown]))
        found = perturb(run, config, classifier, few)
        store.write_picture(run.path / "perturbations.png", _picture(run.name, few, found))
        accuracy = store.read_json(run.baseline / "summary.json")["test_accuracy"]
        store.write_json(run.path / "summary.json", {"experiment": run.name, "test_accuracy": accuracy})

    def measurements(self, path: pathlib.Path) -> list[Measurement]:
        measured = store.read_measurement(path)
        return [dataclasses.replace(measured, name=f"{measured.name}, few images")]

    def report(self, path: pathlib.Path) -> str:
        found = store.read_arrays(path / _PERTURBATIONS)
        captions = zip(*_captions(found), strict=True)
        windows = ("window", [f"{row},{column}" for row, column in found["corner"].tolist()])
        table = _tables.table([windows, *((f"image {n}", each) for n, each in enumerate(captions))])
        return f"for each image the L2 norm of its perturbation, and the label before and after\n{table}"


def perturb(run: Run, config: Images, classifier: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """The least perturbations (R, N, height, width, channels) of N images in R windows, and their effects (R, N).

    Writes them into a folder.
    """
    windows = config.measured(images.shape[1:])
    chosen = np.linspace(0, len(windows) - 1, min(_NUM_WINDOWS, len(windows))).round().astype(int)
    windows = [windows[r] for r in chosen]
    result = hmt_jax.measure_margins(classifier, images, windows, config.solver, keep_coordinates=True)
    assert result.coordinates is not None
    found = zip(windows, result.coordinates, strict=True)
    perturbations = np.stack([jax.vmap(window.embed)(jnp.asarray(z)) for window, z in found])
    perturbed = (images + perturbations).reshape(-1, *images.shape[1:])
    names = [f"{config.data} test {number}" for number in range(len(images))]
    report.write_measurement(run, result, windows, images, names)
    store.write_margins(
        run.path / _PERTURBATIONS,
        result,
        corner=np.stack([window.corner for window in windows]),
        size=config.window_size,
        image=names,
        perturbation=perturbations,
        label_of_perturbed=np.asarray(classifier(perturbed).argmax(1)).reshape(result.label.shape),
    )
    return store.read_arrays(run.path / _PERTURBATIONS)


def _picture(name: str, images: np.ndarray, found: dict[str, np.ndarray]) -> list[Axes]:
    """Images beside their perturbations, which are drawn around grey, each as strong as it can be."""
    windows = [f"window {row}, {column}" for row, column in found["corner"].tolist()]
    columns = dict(zip(windows, report.around_grey(found["perturbation"]), strict=True))
    captions = [[str(label) for label in found["label"][0]], *_captions(found)]
    shown = {"image": _stretched(images), **columns}
    return plots.image_grid(shown, captions=captions, title=f"{name}: perturbations")


def _captions(found: dict[str, np.ndarray]) -> list[list[str]]:
    """The captions of perturbations, by windows and images."""
    parts = zip(found["margin"], found["label"], found["label_of_perturbed"], strict=True)
    return [[f"{m:.3g}: {before} to {after}" for m, before, after in zip(*row, strict=True)] for row in parts]


def _stretched(images: np.ndarray) -> np.ndarray:
    """Images (N, height, width, channels), each from its smallest value, as 0, to its largest, as 1."""
    least, largest = (function(axis=(1, 2, 3), keepdims=True) for function in (images.min, images.max))
    return (images - least) / (largest - least)
