"""The experiment on ImageNet: margins of a network whose weights are given, on images of a given folder."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import manipulations, report, store
from experiments.experiment import Config, Run, check_at_most
from experiments.images import Measured
from hmt_jax import data, frequency, models

# What torchvision subtracts from images in [0, 1] and divides them by.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenWeights(Measured):
    """Measures a network from a file along the diagonal of the DCT, on images of a folder.

    Attributes:
      weights: file of the network's weights, in PyTorch's layout, as `hmt_jax.models.from_torch` reads it.
      images: folder that holds one folder of images for each class, sorted as the network's logits are.
      manipulation: what was done to the images that it was trained on, and is done to these.
      baseline_weights: file of the weights that the experiment to compare with is run on.
      resize: length to which an image's shorter side is resized, in pixels.
      crop: side of the square cut out of its middle, in pixels.
    """

    weights: str = ""
    images: str = ""
    manipulation: Literal["none", "flip"] = "none"
    baseline_weights: str = ""
    resize: int = 256
    crop: int = 224
    window_size: int = 16
    window_step: int = 16

    def __post_init__(self):
        for field in ("weights", "images", "baseline_weights"):  # shells do not expand ~ after `=`
            object.__setattr__(self, field, os.path.expanduser(getattr(self, field)))
        super().__post_init__()
        self.measured((self.crop, self.crop, 3))  # settings out of range fail here

    def check(self, data_dir: str | None) -> None:
        self._check_paths()
        classifier, source = self.classifier(), self.source()
        num_logits = jax.eval_shape(classifier, jnp.zeros((1, *source.image_shape))).shape[1]
        if source.num_classes != num_logits:
            raise ValueError(
                f"{self.images} holds folders of {source.num_classes} classes, but the network has {num_logits} "
                "logits: give a folder for each logit, which sort in the order of the logits"
            )
        check_at_most("num_images", self.num_images, len(source), f"images in {self.images}")

    def checksums(self) -> dict[str, str]:
        """SHA-256 prefixes of the weights, and of the images' names and sizes, keyed by field."""
        files = {field: pathlib.Path(getattr(self, field)) for field in ("weights", "baseline_weights")}
        found = {field: _checksum(path.read_bytes()) for field, path in files.items() if path.is_file()}
        if pathlib.Path(self.images).is_dir() and self.images:
            source = self.source()
            sizes = ((file, (pathlib.Path(source.path) / file).stat().st_size) for file in source.files)
            found["images"] = _checksum(repr(list(sizes)).encode())
        return found

    def baseline_config(self, other: Config, changes: dict[str, Any]) -> Config:
        if not isinstance(other, GivenWeights):
            raise ValueError(f"baseline={self.baseline} measures no given weights: name an experiment that does")
        of_its_own = {"weights", "baseline_weights", "baseline", "manipulation"}
        shared = {field: value for field, value in changes.items() if field not in of_its_own}
        return dataclasses.replace(other, weights=self.baseline_weights, **shared)

    def run(self, run: Run) -> None:
        if not (run.path / "margins.npz").exists():
            images, labels, names = self.observed()
            classifier_id = store.read_config(run.path)["checksums"]["weights"]
            self.measure(run, self.classifier(), images, labels, names, classifier_id)
        found = store.read_arrays(run.path / "margins.npz")
        is_right = found["label"][0] == found["true_label"]
        report.summarize(run, test_accuracy=float(is_right.mean()), num_test=len(is_right))
        report.draw(run, self.window_size)

    def report(self, path: pathlib.Path) -> str:
        return report.table(path)

    def classifier(self) -> models.Normalized:
        """The network with its weights and its normalisation: on flipped images, the flip of the mean image."""
        mean = np.broadcast_to(np.asarray(_MEAN), (self.crop, self.crop, 3))
        return models.from_torch(
            self.network,
            self.weights,
            image_shape=(self.crop, self.crop, 3),
            mean=_MEAN if self.manipulation == "none" else np.asarray(frequency.flip(jnp.asarray(mean))),
            std=_STD,
        )

    def source(self) -> data.ImageFolder:
        return data.image_folder(self.images, resize=self.resize, crop=self.crop)

    def observed(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """The images that are measured, manipulated and as floats, their labels, and their files."""
        source = self.source()
        drawn = sorted(np.random.default_rng(self.seed).permutation(len(source))[: self.num_images].tolist())
        images, labels = zip(*(source[index] for index in drawn), strict=True)
        files = [str(source.files[index]) for index in drawn]
        return data.as_floats(manipulations.apply(self.manipulation, np.stack(images))), np.array(labels), files

    def _check_paths(self):
        """Raises ValueError for a file or a folder that is not given, or not there."""
        files = {"weights": f"the state dict of a trained {self.network}"}
        if self.baseline != "none":
            files["baseline_weights"] = f"that of the {self.network} to compare with"
        needed = {**files, "images": "a folder with a folder of images for each class"}
        usage = ", ".join(f"--{field.replace('_', '-')} PATH ({what})" for field, what in needed.items())
        for field in needed:
            path = pathlib.Path(getattr(self, field))
            if not getattr(self, field):
                raise ValueError(f"{field} is not given, and nothing is downloaded: give {usage}")
            if not (path.is_file() if field in files else path.is_dir()):
                raise ValueError(f"{field}={path} is not there: give {usage}")


def _checksum(content: bytes) -> str:
    """The first 16 digits of SHA-256, so that people can compare them."""
    return hashlib.sha256(content).hexdigest()[:16]
