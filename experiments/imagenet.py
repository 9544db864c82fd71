"""The experiment on ImageNet: margins of a network whose weights are given, on images of a given folder."""

import dataclasses
import hashlib
import os
import pathlib
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments import baseline, config, folder, manipulations, pictures, stages, summary
from hmt_jax import data, frequency, models, solvers, subspaces

# What torchvision subtracts from images in [0, 1] and divides them by.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_CHECKSUM_LENGTH = 16  # hexadecimal digits of SHA-256, so that people can compare them

_BASELINES = ("none", "standard_training", "plain_data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenWeights(config.Config):
    """Measures a network from a file along the diagonal of the DCT, on images of a folder.

    Attributes:
      network: name of an architecture of `hmt_jax.models`.
      weights: file of its weights, in PyTorch's layout, as `hmt_jax.models.from_torch` reads it.
      images: folder that holds one folder of images for each class, sorted as the network's logits are.
      manipulation: what was done to the images that it was trained on and is done to these: `none` or `flip`.
      baseline: what the margins are compared with, those of the same network after `standard_training` on plain
        images, or on `plain_data`; `none` for nothing.
      baseline_weights: file of the weights of that network.
      resize: length to which an image's shorter side is resized, in pixels.
      crop: side of the square cut out of its middle, in pixels.
      num_images: images whose margins are measured, drawn from the folder at random.
      window_size: frequencies along each side of a window.
      window_step: frequencies from one window of the diagonal to the next.
      num_candidates: of DeepFool.
      overshoot: of DeepFool.
      max_steps: of DeepFool.
    """

    results: ClassVar[tuple[str, ...]] = (
        "measurement.json",
        "margins.npz",
        "margins.zarr",
        "margins.png",
        "compared.png",
        "baseline",
        "baseline.json",
    )

    network: str
    weights: str = ""
    images: str = ""
    manipulation: str = "none"
    baseline: str = "none"
    baseline_weights: str = ""
    resize: int = 256
    crop: int = 224
    num_images: int = 1000
    window_size: int = 16
    window_step: int = 16
    num_candidates: int = 10
    overshoot: float = 0.02
    max_steps: int = 100

    def __post_init__(self):
        for field in ("weights", "images", "baseline_weights"):  # shells do not expand ~ after `=`
            object.__setattr__(self, field, os.path.expanduser(getattr(self, field)))
        for field, known in (
            ("network", models.names()),
            ("manipulation", ("none", "flip")),
            ("baseline", _BASELINES),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}; the known ones are {', '.join(known)}")
        if self.num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {self.num_images}")
        _ = self.solver, self.windows((self.crop, self.crop, 3))  # settings out of range fail here, before any work

    def check(self, data_dir: str | None) -> None:
        self._check_paths()
        if self.baseline_config is not None:
            self.baseline_config.check(data_dir)
        classifier, source = self.classifier(), self.source()
        num_logits = jax.eval_shape(classifier, jnp.zeros((1, *source.image_shape))).shape[1]
        if source.num_classes != num_logits:
            raise ValueError(
                f"{self.images} holds folders of {source.num_classes} classes, but the network has {num_logits} "
                "logits: give a folder for each logit, which sort in the order of the logits"
            )
        if self.num_images > len(source):
            raise ValueError(
                f"num_images={self.num_images} is more than the {len(source)} images in {self.images}: set num_images "
                f"to at most {len(source)}"
            )

    def checksums(self) -> dict[str, str]:
        """Of the weights, and of the images' names and sizes; without what is not there."""
        files = {field: pathlib.Path(getattr(self, field)) for field in ("weights", "baseline_weights")}
        found = {field: _checksum(path) for field, path in files.items() if path.is_file()}
        if pathlib.Path(self.images).is_dir() and self.images:
            source = self.source()
            sizes = ((file, (pathlib.Path(source.path) / file).stat().st_size) for file in source.files)
            found["images"] = hashlib.sha256(repr(list(sizes)).encode()).hexdigest()[:_CHECKSUM_LENGTH]
        return found

    def run(self, name: str, path: pathlib.Path, *, data_dir: str | None) -> None:
        if self.baseline_config is not None:
            baseline.provide(name, self.baseline_config, path, data_dir)
        if not (path / "margins.npz").exists():
            images, labels = self.observed()
            stages.measure(self, self.classifier(), images, labels, path)
        found = folder.read_arrays(path / "margins.npz")
        is_right = found["label"][0] == found["true_label"]
        summary.write(name, self, path, test_accuracy=float(is_right.mean()), num_test=len(is_right))
        pictures.draw(name, self, path)

    def report(self, path: pathlib.Path) -> str:
        return summary.report(path)

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

    def observed(self) -> tuple[np.ndarray, np.ndarray]:
        """The images that are measured, manipulated and as floats, and their labels."""
        source = self.source()
        drawn = np.random.default_rng(self.seed).permutation(len(source))[: self.num_images]
        images, labels = zip(*(source[index] for index in sorted(drawn.tolist())), strict=True)
        return data.as_floats(manipulations.apply(self.manipulation, np.stack(images))), np.array(labels)

    def windows(self, image_shape: tuple[int, int, int]) -> list[subspaces.DCTWindow]:
        """The windows in which margins are measured, from low to high."""
        return subspaces.dct_diagonal(image_shape, self.window_size, self.window_step)

    @property
    def solver(self) -> solvers.DeepFool:
        return solvers.DeepFool(num_candidates=self.num_candidates, overshoot=self.overshoot, max_steps=self.max_steps)

    @property
    def baseline_config(self) -> "GivenWeights | None":
        """What the margins are compared with; None for nothing."""
        if self.baseline == "none":
            return None
        return dataclasses.replace(
            self, weights=self.baseline_weights, baseline_weights="", baseline="none", manipulation="none"
        )

    def _check_paths(self):
        """Raises ValueError for a file or a folder that is not given, or not there."""
        files = {"weights": f"the state dict of a trained {self.network}"}
        if self.baseline != "none":
            files["baseline_weights"] = f"that of the {self.network} to compare with"
        needed = {**files, "images": "a folder with a folder of images for each class"}
        usage = ", ".join(f"{field}=PATH ({what})" for field, what in needed.items())
        for field in needed:
            path = pathlib.Path(getattr(self, field))
            if not getattr(self, field):
                raise ValueError(f"{field} is not given, and nothing is downloaded: name after --set {usage}")
            if not (path.is_file() if field in files else path.is_dir()):
                raise ValueError(f"{field}={path} is not there: name after --set {usage}")


def _checksum(path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_CHECKSUM_LENGTH]
