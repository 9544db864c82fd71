"""The experiment on images: a network is trained, and its margins are measured along the diagonal of the DCT."""

import dataclasses
import pathlib
from typing import Any, ClassVar

from experiments import config, folder, manipulations, pictures, stages, summary
from hmt_jax import attacks, data, models, solvers, subspaces, training

_AUGMENTATIONS = {"none": None, "crop_and_mirror": training.crop_and_mirror}
# What is compared with, by the field that is "none" there.
_BASELINES = {"standard_training": "attack", "plain_data": "manipulation"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiagonalMargins(config.Config):
    """Trains a network on a data set, and measures its margins along the diagonal of the DCT.

    Attributes:
      data: name of a data set of `hmt_jax.data`.
      manipulation: what is done to all its images, as `experiments.manipulations` names it.
      network: name of an architecture of `hmt_jax.models`.
      num_hidden: widths of its hidden layers, for the networks that take them; empty for those it has by itself.
      num_train: training images that are used: the first ones; 0 for all.
      num_test: test images that are used: the first ones; 0 for all.
      num_epochs: of training.
      batch_size: of training.
      max_learning_rate: of training.
      compute_dtype: of training, `float32` or `bfloat16`.
      augmentation: of training, `none` or `crop_and_mirror`, which is for plain images alone.
      attack: for adversarial training: `none`, `pgd` or `deepfool`.
      norm: of perturbations, `l2` or `linf`.
      epsilon: their greatest norm, in pixels in [0, 1].
      attack_steps: of the attack in training; a step of PGD is 2.5 * epsilon / steps long.
      attack_band: the frequencies that the attack in training may use, `all` or a band of
        `experiments.manipulations`. In a band, pixels may leave [0, 1]: where many are black, hardly a perturbation of
        few frequencies would stay inside.
      evaluation_steps: of the PGD under which accuracy is measured after training; 0 to leave that out.
      evaluation_restarts: of that PGD.
      baseline: what the margins are compared with: `none`; `standard_training`, the same without the attack; or
        `plain_data`, the same without the manipulation.
      measure_every: epochs from one measurement of margins while training to the next; 0 for none.
      num_monitored: test images whose margins, and robustness, are measured while training.
      num_images: test images whose margins are measured: the first ones.
      window_size: frequencies along each side of a window.
      window_step: frequencies from one window of the diagonal to the next.
      num_candidates: of DeepFool.
      overshoot: of DeepFool.
      max_steps: of DeepFool.
    """

    results: ClassVar[tuple[str, ...]] = (
        "history.json",
        "checkpoints",
        "checkpoint.safetensors",
        "best.safetensors",
        "monitored",
        "robustness.json",
        "measurement.json",
        "margins.npz",
        "margins.zarr",
        "history.png",
        "spectrum.png",
        "margins.png",
        "compared.png",
        "baseline",
        "baseline.json",
        "baseline_robustness.json",
    )

    data: str
    network: str
    window_size: int
    window_step: int
    manipulation: str = "none"
    num_hidden: tuple[int, ...] = ()
    num_train: int = 0
    num_test: int = 0
    num_epochs: int = 30
    batch_size: int = 128
    max_learning_rate: float = 0.21
    compute_dtype: str = "float32"
    augmentation: str = "none"
    attack: str = "none"
    norm: str = "l2"
    epsilon: float = 1.0
    attack_steps: int = 7
    attack_band: str = "all"
    evaluation_steps: int = 0
    evaluation_restarts: int = 1
    baseline: str = "none"
    measure_every: int = 0
    num_monitored: int = 100
    num_images: int = 1000
    num_candidates: int = 10
    overshoot: float = 0.02
    max_steps: int = 100

    def __post_init__(self):
        for field, known in (
            ("data", data.names()),
            ("network", models.names()),
            ("attack", ("none", "pgd", "deepfool")),
            ("augmentation", tuple(_AUGMENTATIONS)),
            ("baseline", ("none", *_BASELINES)),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}; the known ones are {', '.join(known)}")
        for least, fields in (
            (1, ("num_epochs", "attack_steps", "evaluation_restarts")),
            (1, ("num_images", "num_monitored", "window_size", "window_step")),
            (0, ("evaluation_steps", "measure_every", "num_train", "num_test")),
        ):
            for field in fields:
                if getattr(self, field) < least:
                    raise ValueError(f"{field} must be at least {least}, got {getattr(self, field)}")
        if any(width < 1 for width in self.num_hidden):
            raise ValueError(f"num_hidden must be widths of at least 1, got {self.num_hidden}")
        if self.attack == "deepfool" and self.norm != "l2":
            raise ValueError(f"attack=deepfool goes by norm=l2, got norm={self.norm}: set attack=pgd")
        if self.augmentation != "none" and self.manipulation != "none":
            raise ValueError(
                f"augmentation={self.augmentation} is for plain images, and would undo manipulation="
                f"{self.manipulation}: set one of them to none"
            )
        if self.baseline != "none" and getattr(self, _BASELINES[self.baseline]) == "none":
            raise ValueError(
                f"baseline={self.baseline} would compare the run with itself, for its {_BASELINES[self.baseline]} is "
                "none: set baseline=none"
            )
        # Settings out of range fail here, before any work.
        manipulations.check(self.manipulation)
        _ = self.recipe, self.solver, self.evaluation_attack, self.training_attack((256, 256, 1))

    def check(self, data_dir: str | None) -> None:
        # Not at once, so that older runs can be read.
        if self.measure_every and self.num_epochs % self.measure_every:
            raise ValueError(
                f"measure_every must divide num_epochs, or the end is not measured; got {self.measure_every} and "
                f"{self.num_epochs}"
            )
        stages.check(self, data_dir)

    def run(self, name: str, path: pathlib.Path, *, data_dir: str | None) -> None:
        stages.run(name, self, path, data_dir)
        self.summarize(name, path)
        pictures.draw(name, self, path)
        if self.measure_every:
            pictures.draw_training(name, self, path)

    def report(self, path: pathlib.Path) -> str:
        return summary.report(path)

    def summarize(self, name: str, path: pathlib.Path) -> None:
        """Writes the summary of a measured run."""
        last = folder.read_json(path / "history.json")[-1]
        num_test = folder.read_json(path / "measurement.json")["num_test"]
        summary.write(
            name,
            self,
            path,
            test_accuracy=last["test_accuracy"],
            num_test=num_test,
            training_seconds=last["seconds"],
        )

    def windows(self, image_shape: tuple[int, int, int]) -> list[subspaces.DCTWindow]:
        """The windows in which margins are measured, from low to high."""
        return subspaces.dct_diagonal(image_shape, self.window_size, self.window_step)

    @property
    def recipe(self) -> training.Recipe:
        return training.Recipe(
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            max_learning_rate=self.max_learning_rate,
            compute_dtype=self.compute_dtype,
            augment=_AUGMENTATIONS[self.augmentation],
        )

    @property
    def solver(self) -> solvers.DeepFool:
        return solvers.DeepFool(num_candidates=self.num_candidates, overshoot=self.overshoot, max_steps=self.max_steps)

    @property
    def domain(self) -> str:
        """Where perturbed images have their pixels in [0, 1], as `hmt_jax.attacks` names it."""
        return {"none": "pixels", "flip": "flipped"}.get(self.manipulation, "unbounded")

    def training_attack(self, image_shape: tuple[int, int, int]) -> attacks.Attack | None:
        """The attack of adversarial training on images of a shape; None for standard training."""
        band, domain = None, self.domain
        if self.attack_band != "all":
            band, domain = manipulations.band(self.attack_band, image_shape), "unbounded"
        if self.attack == "deepfool":
            return attacks.DeepFool(epsilon=self.epsilon, num_steps=self.attack_steps, subspace=band, domain=domain)
        pgd = attacks.PGD(
            norm=self.norm, epsilon=self.epsilon, num_steps=self.attack_steps, subspace=band, domain=domain
        )
        return pgd if self.attack == "pgd" else None

    @property
    def evaluation_attack(self) -> attacks.Attack | None:
        """The attack under which accuracy is measured; None if it is not."""
        if not self.evaluation_steps:
            return None
        return attacks.PGD(
            norm=self.norm,
            epsilon=self.epsilon,
            num_steps=self.evaluation_steps,
            num_restarts=self.evaluation_restarts,
            domain=self.domain,
        )

    @property
    def baseline_config(self) -> "DiagonalMargins | None":
        """What the margins are compared with; None for nothing."""
        if self.baseline == "none":
            return None
        changes: dict[str, Any] = {"baseline": "none", "evaluation_steps": 0, "measure_every": 0}
        changes[_BASELINES[self.baseline]] = "none"
        return dataclasses.replace(self, **changes)
