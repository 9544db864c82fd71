"""The experiment on images: a network is trained, attacked, and measured in windows of the DCT.

A run goes from top to bottom. Each stage leaves a file, and a stage whose file is there is not run again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

import hmt_jax
from experiments import manipulations, report, store
from experiments.experiment import Config, Run, check_at_least, check_at_most, check_known, check_measure_every
from hmt_jax import _progress, attacks, checkpoints, data, models, solvers, statistics, subspaces, training
from hmt_jax.cli import _process
from hmt_jax.data import Dataset
from hmt_jax.models import _files
from hmt_jax.report import Measurement

_AUGMENTATIONS = {"none": None, "crop_and_mirror": training.crop_and_mirror}
# Fields that each of two compared runs has for itself; they share all others.
_OF_ITS_OWN = {"manipulation", "attack", "norm", "epsilon", "attack_steps", "attack_band", "evaluation_steps"}
_OF_ITS_OWN |= {"evaluation_restarts", "baseline", "measure_every", "num_monitored"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured(Config):
    """The settings that both kinds on images share: those of a network and of the measurement of its margins.

    Attributes:
      network: architecture of `hmt_jax.models`.
      baseline: experiment that the margins are compared with, or none. Its folder beside this one's is used; it is run
        first if it is not finished there.
      num_images: images whose margins are measured: the first ones for testing, or drawn from a folder at random.
      window_size: frequencies along each side of a window.
      window_step: frequencies from one window to the next.
      num_candidates: candidate classes of DeepFool.
      overshoot: overshoot of DeepFool.
      max_steps: most steps of DeepFool.
    """

    network: str
    window_size: int
    window_step: int
    baseline: str = "none"
    num_images: int = 1000
    num_candidates: int = 10
    overshoot: float = 0.02
    max_steps: int = 100

    def __post_init__(self):
        super().__post_init__()
        check_known("network", self.network, models.names())
        check_at_least(self, 1, "num_images", "window_size", "window_step")
        _ = self.solver  # settings out of range fail here

    def measurements(self, path: pathlib.Path) -> list[Measurement]:
        return [store.read_measurement(path)]

    def measure(
        self, run: Run, classifier: Any, images: np.ndarray, labels: np.ndarray, names: list[str], classifier_id: str
    ) -> None:
        """Measures images in all windows, from where an interrupted run stopped.

        Writes `margins.npz`, which `hmt_jax.MarginResult.load` reads, with the corners of the windows and their size,
        the names, true labels and shape of the images, and the seconds that it took beside the margins. For the page,
        `classifier_id` is a text that is equal for the same network.
        """
        started, windows = time.perf_counter(), self.measured(images.shape[1:])
        with _progress.bar("pairs", "margins") as show:
            options: Any = {"keep_coordinates": True, "progress": show}
            path = run.path / store.MARGINS
            result = hmt_jax.measure_to_store(classifier, images, windows, self.solver, path, **options).read()
        report.write_measurement(run, result, windows, images, names, classifier_id)
        store.write_margins(
            run.path / "margins.npz",
            result,
            image=names,
            size=self.window_size,
            corner=np.stack([window.corner for window in windows]),
            true_label=labels,
            image_shape=images.shape[1:],
            seconds=time.perf_counter() - started,
        )

    def measured(self, image_shape: tuple[int, int, int]) -> list[subspaces.DCTWindow]:
        """The windows in which margins are measured, from low to high."""
        return subspaces.dct_diagonal(image_shape, self.window_size, self.window_step)

    @property
    def solver(self) -> solvers.DeepFool:
        return solvers.DeepFool(num_candidates=self.num_candidates, overshoot=self.overshoot, max_steps=self.max_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Measured):
    """Trains a network on a data set, and measures its margins in windows of the DCT.

    Attributes:
      data: data set of `hmt_jax.data`.
      manipulation: what is done to all its images: none, flip, or a band such as low_pass:16.
      num_hidden: widths of its hidden layers, for networks that take them; the network's own if empty.
      num_train: number of training images, from the first one; 0 for all.
      num_test: number of test images, from the first one; 0 for all.
      num_epochs: epochs of training.
      batch_size: images in a step of training.
      max_learning_rate: highest learning rate of training.
      compute_dtype: precision of training, float32 or bfloat16.
      augmentation: augmentation of training images, which is for plain images only.
      attack: attack of adversarial training.
      norm: norm of perturbations.
      epsilon: largest norm of perturbations, in pixels in [0, 1].
      attack_steps: steps of the attack in training; a step of PGD is 2.5 * epsilon / steps long.
      attack_band: frequencies that the attack in training may use: all, or a band such as low_pass:14. In a band,
        pixels may leave [0, 1]: if many are black, hardly any perturbation of few frequencies would stay inside.
      evaluation_steps: steps of the PGD under which accuracy is measured after training; 0 to leave that out.
      evaluation_restarts: restarts of that PGD.
      measure_every: epochs from one measurement of margins while training to the next; 0 for none.
      num_monitored: test images whose margins and robustness are measured while training.
      windows: windows along the diagonal of the DCT, or over its whole grid.
    """

    data: str
    windows: Literal["diagonal", "grid"] = "diagonal"
    manipulation: str = "none"
    num_hidden: tuple[int, ...] = ()
    num_train: int = 0
    num_test: int = 0
    num_epochs: int = 30
    batch_size: int = 128
    max_learning_rate: float = 0.21
    compute_dtype: str = "float32"
    augmentation: Literal["none", "crop_and_mirror"] = "none"
    attack: Literal["none", "pgd", "deepfool"] = "none"
    norm: Literal["l2", "linf"] = "l2"
    epsilon: float = 1.0
    attack_steps: int = 7
    attack_band: str = "all"
    evaluation_steps: int = 0
    evaluation_restarts: int = 1
    measure_every: int = 0
    num_monitored: int = 100

    def __post_init__(self):
        super().__post_init__()
        check_known("data", self.data, data.names())
        check_at_least(self, 1, "num_epochs", "attack_steps", "evaluation_restarts", "num_monitored")
        check_at_least(self, 0, "evaluation_steps", "num_train", "num_test")
        check_measure_every(self)
        if any(width < 1 for width in self.num_hidden):
            raise ValueError(f"num_hidden must be widths of at least 1, got {self.num_hidden}")
        if self.attack == "deepfool" and self.norm != "l2":
            raise ValueError(f"attack=deepfool goes by norm=l2, got norm={self.norm}: set attack=pgd")
        if self.augmentation != "none" and self.manipulation != "none":
            raise ValueError(
                f"augmentation={self.augmentation} is for plain images, and would undo manipulation="
                f"{self.manipulation}: set one of them to none"
            )
        manipulations.check(self.manipulation)
        _ = self.recipe, self.evaluation_attack(1), self.training_attack((256, 256, 1))  # settings out of range

    def check(self, data_dir: str | None) -> None:
        dataset = self.load(data_dir)
        self.measured(dataset.image_shape)
        self.training_attack(dataset.image_shape)
        manipulations.apply(self.manipulation, dataset.test_images[:1])
        try:
            nnx.eval_shape(lambda: models.create(**self.architecture(dataset), key=jax.random.key(0)))
        except TypeError as error:  # num_hidden, for a network that takes none
            raise ValueError(f"network={self.network} does not go with the other settings: {error}") from None

    def baseline_config(self, other: Config, changes: dict[str, Any]) -> Config:
        if not isinstance(other, Images):
            raise ValueError(f"baseline={self.baseline} trains no network on images: name an experiment that does")
        return dataclasses.replace(other, **{f: value for f, value in changes.items() if f not in _OF_ITS_OWN})

    def run(self, run: Run) -> None:
        dataset, mean, std = manipulations.manipulate(self.manipulation, self.load(run.data_dir))
        images, labels = data.as_floats(dataset.test_images[: self.num_images]), dataset.test_labels[: self.num_images]
        with self.pixels_explained():
            file = run.path / store.CLASSIFIER
            if not file.exists():
                train(self, run.path, dataset, mean, std)
            if self.evaluation_steps:
                evaluate(self, run, images, labels)
            if not (run.path / "margins.npz").exists():
                names = [f"{self.data} test {number}" for number in range(len(images))]
                checksum = hashlib.sha256(file.read_bytes()).hexdigest()
                self.measure(run, store.read_classifier(run.path), images, labels, names, checksum)
        last = store.read_json(run.path / "history.json")[-1]
        report.summarize(
            run,
            test_accuracy=last["test_accuracy"],
            num_test=len(dataset.test_images),
            training_seconds=last["seconds"],
        )
        draw = report.draw if self.windows == "diagonal" else report.draw_grid
        draw(run, self.window_size)

    def report(self, path: pathlib.Path) -> str:
        return report.table(path) if self.windows == "diagonal" else report.table_of_grid(path)

    # The parts that the fields describe

    def load(self, data_dir: str | None) -> Dataset:
        """The images that are used, not manipulated.

        Raises:
          ValueError: for more images than there are.
        """
        used = _load_all(self.data, data_dir).first(self.num_train, self.num_test)
        left = f"test images that num_test={self.num_test} leaves" if self.num_test else "test images"
        for field in ("num_images", *(["num_monitored"] if self.measure_every else [])):
            check_at_most(field, getattr(self, field), len(used.test_images), f"{left} of {self.data}")
        return used

    def architecture(self, dataset: Dataset) -> dict[str, Any]:
        """The arguments of `hmt_jax.models.create` that make the network."""
        options = {"num_hidden": self.num_hidden} if self.num_hidden else {}
        shape = {"image_shape": dataset.image_shape, "num_classes": dataset.num_classes}
        return {"name": self.network, **shape, **options}

    @property
    def keys(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Random keys of the weights, of training, and of attacks in evaluation."""
        init_key, train_key = jax.random.split(jax.random.key(self.seed))
        return init_key, train_key, jax.random.fold_in(train_key, self.num_epochs)

    @property
    def recipe(self) -> training.Recipe:
        return training.Recipe(
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            max_learning_rate=self.max_learning_rate,
            compute_dtype=self.compute_dtype,
            augment=_AUGMENTATIONS[self.augmentation],
        )

    def measured(self, image_shape: tuple[int, int, int]) -> list[subspaces.DCTWindow]:
        """The windows in which margins are measured, from low to high, or row by row."""
        if self.windows == "diagonal":
            return super().measured(image_shape)
        return subspaces.dct_grid(image_shape, self.window_size, self.window_step)

    @property
    def domain(self) -> str:
        """The domain in which perturbed images have their pixels in [0, 1], as `hmt_jax.attacks` names it."""
        return {"none": "pixels", "flip": "flipped"}.get(self.manipulation, "unbounded")

    def pixels_explained(self) -> contextlib.AbstractContextManager:
        """Leaves out warnings of the pixels' range if the settings explain it: bands of images have pixels below 0."""
        if self.domain != "unbounded":
            return contextlib.nullcontext()
        return warnings.catch_warnings(action="ignore", category=hmt_jax.PixelRangeWarning)

    def training_attack(self, image_shape: tuple[int, int, int]) -> attacks.Attack | None:
        """The attack of adversarial training on images of a shape; None for standard training."""
        options: Any = {"epsilon": self.epsilon, "num_steps": self.attack_steps, "domain": self.domain}
        if self.attack_band != "all":
            options |= {"subspace": manipulations.band(self.attack_band, image_shape), "domain": "unbounded"}
        if self.attack == "deepfool":
            return attacks.DeepFool(**options)
        return attacks.PGD(norm=self.norm, **options) if self.attack == "pgd" else None

    def evaluation_attack(self, num_steps: int) -> attacks.PGD:
        """The attack under which accuracy is measured, of so many steps."""
        options: Any = {"norm": self.norm, "epsilon": self.epsilon, "domain": self.domain}
        return attacks.PGD(**options, num_steps=num_steps, num_restarts=self.evaluation_restarts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnNetwork(Config):
    """The settings shared by kinds that measure the network of another experiment on test images.

    Attributes:
      baseline: experiment that trains the network. Its folder beside this one's is used; it is run first if it is not
        finished there.
      data: data set of that experiment.
      num_images: test images whose margins are measured, from the first one.
    """

    baseline: str
    data: str
    num_images: int

    # The name of the field with the number of test images that are needed; of several such fields, the greatest.
    most_images = "num_images"

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "num_images")

    def check(self, data_dir: str | None) -> None:
        number = len(data.load(self.data, data_dir).test_images)
        check_at_most(self.most_images, getattr(self, self.most_images), number, f"test images of {self.data}")

    def baseline_config(self, other: Config, changes: dict[str, Any]) -> Config:
        if not isinstance(other, Images):
            raise ValueError(f"baseline={self.baseline} trains no network on images: name an experiment that does")
        if other.data != self.data:
            raise ValueError(f"baseline={self.baseline} is on {other.data}, got data={self.data}: change one of them")
        if other.num_test:
            number = getattr(self, self.most_images)
            check_at_most(self.most_images, number, other.num_test, f"test images of {self.baseline}")
        return dataclasses.replace(other, seed=self.seed)


def trained(run: Run) -> "Images":
    """The configuration of the experiment that trained the network of a run."""
    if run.baseline is None:
        raise ValueError("baseline=none has no network: name an experiment that trains one")
    return Images(**store.settings(run.baseline))


def summarize(run: Run, result: hmt_jax.MarginResult, seconds: float, findings: Mapping[str, Any]) -> None:
    """Writes the summary of a run on the network of another: its accuracy, the measurement, and the findings."""
    assert run.baseline is not None
    network = store.read_json(run.baseline / "summary.json")
    summary = {
        "experiment": run.name,
        "test_accuracy": network["test_accuracy"],
        "num_test": network["num_test"],
        "measurement_seconds": round(seconds, 2),
        "num_images": result.margin.shape[1],
        **findings,
    }
    store.write_json(run.path / "summary.json", summary)


@functools.lru_cache(maxsize=1)  # for a run and its baseline
def _load_all(name, data_dir):
    return data.load(name, data_dir)


# Train


def train(config: Images, path: pathlib.Path, dataset: Dataset, mean: np.ndarray, std: np.ndarray) -> None:
    """Trains a network, from its last checkpoint if there is one, and writes its history and its weights."""
    init_key, train_key, _ = config.keys
    architecture = config.architecture(dataset)

    def on_epoch(classifier, history):
        if config.measure_every and len(history) % config.measure_every == 0:
            found = monitor(config, classifier, dataset)
            store.write_arrays(path / store.MONITORED / f"{len(history):03}.npz", found)
        show(len(history), config.num_epochs, test_accuracy=f"{history[-1]['test_accuracy']:.2%}")

    with _progress.bar("epochs", "training") as show, _process.putting_off() as should_stop:
        trained = checkpoints.train(
            path / store.CHECKPOINTS,
            models.create(**architecture, key=init_key, mean=mean, std=std),
            dataset.train_images,
            dataset.train_labels,
            config.recipe,
            train_key,
            test_images=dataset.test_images,
            test_labels=dataset.test_labels,
            attack=config.training_attack(dataset.image_shape),
            run=store.identity(store.read_config(path)),
            on_epoch=on_epoch,
            should_stop=should_stop,
        )
    store.write_json(path / "history.json", trained.history)
    header: dict[str, Any] = {"architecture": architecture, "data": config.data, "manipulation": config.manipulation}
    for file, classifier, epoch in (("best", trained.best, trained.best_epoch), ("checkpoint", trained.last, -1)):
        content = _files.to_bytes(classifier, **header, training=trained.history[epoch])
        store.write(path / f"{file}.safetensors", content)


def monitor(config: Images, classifier: Any, dataset: Dataset) -> dict[str, np.ndarray]:
    """The measurements of the first N = `num_monitored` test images after an epoch.

    Returns:
      margin: (R, N) margins in the R windows, infinite where they are censored.
      In adversarial training also is_right (N,) and is_right_under_attack (N,), of labels; energy (R, N), the squared
      L2 norm of the perturbation's part in each window; and total_energy (N,), that of the whole perturbation.
    """
    images: Any = data.as_floats(dataset.test_images[: config.num_monitored])
    labels: Any = dataset.test_labels[: config.num_monitored]
    windows, attack = config.measured(dataset.image_shape), config.training_attack(dataset.image_shape)
    result = hmt_jax.measure_margins(classifier, images, windows, config.solver)
    found = {"margin": statistics.censored_margins(result)}
    if attack is not None:
        perturbed = attack(classifier, images, labels, config.keys[2])
        changes = perturbed - images
        found |= {
            "is_right": np.asarray(classifier(images).argmax(-1)) == labels,
            "is_right_under_attack": np.asarray(classifier(perturbed).argmax(-1)) == labels,
            "energy": np.stack([_energy(window, changes) for window in windows]),
            "total_energy": np.asarray((changes**2).sum((1, 2, 3))),
        }
    return found


@jax.jit
def _energy(window, changes):
    """Squared norms (N,) of the parts of changes in a window."""
    return (jax.vmap(window.coordinates)(changes) ** 2).sum(1)


# Attack


def evaluate(config: Images, run: Run, images: np.ndarray, labels: np.ndarray) -> None:
    """Measures accuracy under attack; that of the baseline, too, if only the run itself trains adversarially."""
    origins = {"robustness.json": run.path}
    if config.attack != "none" and run.baseline and store.settings(run.baseline)["attack"] == "none":
        origins["baseline_robustness.json"] = run.baseline
    for file, origin in origins.items():
        if not (run.path / file).exists():
            found = robustness(config, store.read_classifier(origin), images, labels)
            store.write_json(run.path / file, found)


def robustness(config: Images, classifier: Any, images: Any, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy under the attack of an evaluation, and under one of a quarter of the steps, for comparison."""
    windows, found = config.measured(images.shape[1:]), []
    for num_steps in (max(config.evaluation_steps // 4, 1), config.evaluation_steps):
        attack = config.evaluation_attack(num_steps)
        metrics = attacks.evaluate(classifier, images, labels, attack, config.keys[2], subspaces=windows)
        found.append(
            {
                "num_steps": num_steps,
                "num_images": len(images),
                "clean_accuracy": metrics.clean_accuracy,
                "robust_accuracy": metrics.accuracy,
                "perturbation_energy": np.asarray(metrics.energy).tolist(),
            }
        )
    return {"norm": config.norm, "epsilon": config.epsilon, "evaluations": found}
