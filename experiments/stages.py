"""From data to margins: each stage leaves a file, and a stage whose file is there is not run again."""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from flax import nnx

import hmt_jax
from experiments import baseline, evaluation, folder, manipulations, summary
from experiments.config import training_devices
from hmt_jax import checkpoints, data, models, training

CLASSIFIER = "checkpoint.safetensors"
STORE = "margins.zarr"


def check(config, data_dir: str | None) -> None:
    """Raises ValueError if the data are not there, or the configuration does not fit them."""
    dataset = load(config, data_dir)
    _check_numbers(config, _load_all(config.data, data_dir), dataset)
    config.windows(dataset.image_shape)
    config.training_attack(dataset.image_shape)
    manipulations.apply(config.manipulation, dataset.test_images[:1])
    architecture = _architecture(config, dataset)
    try:
        nnx.eval_shape(lambda: models.create(**architecture, key=jax.random.key(0)))
    except TypeError as error:  # num_hidden, for a network that takes none
        raise ValueError(f"network={config.network} does not go with the other settings: {error}") from None


def _check_numbers(config, whole, used) -> None:
    """Raises ValueError if a configuration asks for more images than there are. Older versions silently used fewer."""
    test_images = f"test images that num_test={config.num_test} leaves" if config.num_test else "test images"
    numbers = {
        "num_train": (len(whole.train_images), "training images"),
        "num_test": (len(whole.test_images), "test images"),
        "num_images": (len(used.test_images), test_images),
    }
    if config.measure_every:
        numbers["num_monitored"] = numbers["num_images"]
    for field, (num_there, images) in numbers.items():
        if getattr(config, field) > num_there:
            raise ValueError(
                f"{field}={getattr(config, field)} is more than the {num_there} {images} of {config.data}: set {field} "
                f"to at most {num_there}"
            )


def run(name: str, config, path: pathlib.Path, data_dir: str | None) -> None:
    """Trains, attacks and measures, as far as that is not done."""
    if config.baseline_config is not None:
        baseline.provide(name, config.baseline_config, path, data_dir)
    dataset, mean, std = manipulations.manipulate(config.manipulation, load(config, data_dir))
    windows = config.windows(dataset.image_shape)
    with pixels_of(config):
        if not (path / CLASSIFIER).exists():
            _train(config, dataset, mean, std, windows, path)
        if config.evaluation_attack is not None:
            _evaluate_robustness(config, dataset, windows, path)
        if not (path / "margins.npz").exists():
            classifier = folder.read_classifier(path / CLASSIFIER)
            measure(config, classifier, *observed(dataset, config.num_images), path, num_test=len(dataset.test_images))


@contextlib.contextmanager
def pixels_of(config) -> Iterator[None]:
    """Where a configuration explains the pixels of its images, no warning of their range."""
    with warnings.catch_warnings():
        if config.domain == "unbounded":  # a band of an image has pixels below 0
            warnings.simplefilter("ignore", hmt_jax.PixelRangeWarning)
        yield


def load(config, data_dir) -> data.Dataset:
    """The images that a configuration uses, as they are."""
    dataset = _load_all(config.data, data_dir)
    train, test = slice(config.num_train or None), slice(config.num_test or None)
    return dataclasses.replace(
        dataset,
        train_images=dataset.train_images[train],
        train_labels=dataset.train_labels[train],
        test_images=dataset.test_images[test],
        test_labels=dataset.test_labels[test],
    )


@functools.lru_cache(maxsize=1)  # of what is run, and what it is compared with
def _load_all(name, data_dir):
    return data.load(name, data_dir)


def _architecture(config, dataset) -> dict[str, Any]:
    """What makes the network, as `hmt_jax.models.create` takes it."""
    options = {"num_hidden": config.num_hidden} if config.num_hidden else {}
    return {
        "name": config.network,
        "image_shape": dataset.image_shape,
        "num_classes": dataset.num_classes,
        **options,
    }


def _keys(config) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random keys of the weights, of training, and of attacks in evaluation."""
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    return init_key, train_key, jax.random.fold_in(train_key, config.num_epochs)


def _train(config, dataset, mean, std, windows, path) -> None:
    """Trains a classifier, from its last checkpoint if there is one, and writes its history and itself."""
    init_key, train_key, _ = _keys(config)
    architecture, attack = _architecture(config, dataset), config.training_attack(dataset.image_shape)
    classifier = models.create(**architecture, key=init_key, mean=mean, std=std)
    state = training.start(classifier, config.recipe, len(dataset.train_images))
    with checkpoints.Checkpoints(path / "checkpoints") as kept:
        state, history = _last_kept(kept, state, path)
        with _bar(config.num_epochs, "training", "epoch", len(history)) as bar:
            try:
                training.train(
                    classifier,
                    dataset.train_images,
                    dataset.train_labels,
                    config.recipe,
                    train_key,
                    attack=attack,
                    state=state,
                    devices=training_devices(config.batch_size),
                    on_epoch=_keep_epochs(config, dataset, windows, attack, kept, history, bar, path),
                )
            except FloatingPointError as error:
                last = f"after epoch {kept.last_epoch}" if kept.last_epoch is not None else "the one before training"
                raise FloatingPointError(f"{error}; the last good state is {last}, in {path / 'checkpoints'}") from None
        folder.write_json(path / "history.json", history)
        for file, epoch in (("best", kept.best_epoch), ("checkpoint", kept.last_epoch)):
            chosen, until_then = _restored(kept, state, epoch, path)
            folder.write_classifier(
                path / f"{file}.safetensors",
                training.classifier_of(chosen),
                architecture=architecture,
                data=config.data,
                manipulation=config.manipulation,
                training=until_then[-1],
            )


def _last_kept(kept, state, path) -> tuple[training.TrainState, list[dict[str, Any]]]:
    """The state from which training resumes, and its history: those of the last checkpoint, or else the given state."""
    for epoch, damaged in kept.damaged.items():
        last = kept.last_epoch
        further = "training starts over" if last is None else f"training goes on from the checkpoint of epoch {last}"
        print(f"the checkpoint of epoch {epoch} is damaged and was moved to {damaged}: {further}")
    if kept.last_epoch is None:
        return state, []
    if kept.best_epoch != kept.last_epoch:  # told before training: a score of another run hides the best of this one
        _restored(kept, state, kept.best_epoch, path)
    return _restored(kept, state, kept.last_epoch, path)


def _restored(kept, like, epoch, path) -> tuple[training.TrainState, list[dict[str, Any]]]:
    """The state after an epoch, and the history until then.

    Raises:
      ValueError: if the checkpoint of this epoch is of another run, or of another epoch.
    """
    state, found = kept.restore(like, epoch)
    checkpoint = path / "checkpoints" / str(epoch)
    there = found["run"] if isinstance(found, dict) else {}  # earlier versions wrote a list
    differing = folder.differences(there, folder.read_config(path))
    if differing:
        text = "; ".join(f"{field} is {there!r} there, {here!r} here" for field, (there, here) in differing.items())
        raise ValueError(
            f"{checkpoint} belongs to another run ({text}): put that of this run back, or start over with --fresh"
        )
    last = found["epochs"][-1]["epoch"]
    if last != epoch:
        raise ValueError(
            f"{checkpoint} is the checkpoint of epoch {last} under another name: rename it to {last}, or start over "
            "with --fresh"
        )
    return state, found["epochs"]


def _keep_epochs(config, dataset, windows, attack, kept, history, bar, path):
    """The callback after an epoch, which measures it, appends it to the history, and saves a checkpoint with both."""
    described = folder.read_config(path)
    seconds_before = history[-1]["seconds"] if history else 0
    started = time.perf_counter()

    def on_epoch(epoch, state, metrics):
        classifier = training.classifier_of(state)
        test = training.evaluate(classifier, dataset.test_images, dataset.test_labels)
        history.append(
            {
                "epoch": epoch,
                "train_loss": metrics.loss,
                "train_accuracy": metrics.accuracy,
                "test_loss": test.loss,
                "test_accuracy": test.accuracy,
                "seconds": round(seconds_before + time.perf_counter() - started, 2),
            }
        )
        if config.measure_every and (epoch + 1) % config.measure_every == 0:
            samples, (*_, key) = observed(dataset, config.num_monitored), _keys(config)
            found = evaluation.monitor(classifier, *samples, windows, config.solver, attack, key)
            folder.write_arrays(path / "monitored" / f"{epoch + 1:03}.npz", found)
            history[-1] |= evaluation.means(found)
        kept.save(epoch, state, score=test.accuracy, history={"run": described, "epochs": history})
        bar.set_postfix(test_accuracy=f"{test.accuracy:.2%}", refresh=False)
        bar.update()

    return on_epoch


def observed(dataset, num_images) -> tuple[np.ndarray, np.ndarray]:
    """The first test images, as floats, and their labels."""
    return data.as_floats(dataset.test_images[:num_images]), dataset.test_labels[:num_images]


def _evaluate_robustness(config, dataset, windows, path) -> None:
    """Measures the first test images under attack, those of what the run is compared with beside."""
    found = {"robustness.json": path}
    if config.baseline == "standard_training":
        found["baseline_robustness.json"] = baseline.of(path)
    for file, origin in found.items():
        if not (path / file).exists():
            classifier = folder.read_classifier(origin / CLASSIFIER)
            samples, (*_, key) = observed(dataset, config.num_images), _keys(config)
            with folder.reserved(path):
                measured = evaluation.robustness(config, classifier, *samples, windows, key)
            folder.write_json(path / file, measured)


def measure(config, classifier, images: np.ndarray, labels: np.ndarray, path: pathlib.Path, **more: Any) -> None:
    """Measures images in the windows of a configuration, from where an interrupted run stopped.

    Writes the margins with all that they belong to, and how they were measured, with `more` beside.
    """
    windows = config.windows(images.shape[1:])
    started = time.perf_counter()
    num_pairs = len(windows) * len(images)
    with folder.reserved(path, 64 * num_pairs), _bar(num_pairs, "margins", "pair") as bar:  # more than FIELDS take
        store = hmt_jax.measure_to_store(
            classifier,
            images,
            windows,
            config.solver,
            path / STORE,
            progress=lambda num_finished, _: bar.update(num_finished - bar.n),
        )
        result = store.read()
    folder.write_json(
        path / "measurement.json",
        {
            "seconds": time.perf_counter() - started,
            "image_shape": images.shape[1:],
            "precision": result.precision,
            "work": dataclasses.asdict(result.work),
            **more,
        },
    )
    corners = np.stack([window.corner for window in windows])
    arrays = {field: getattr(result, field) for field in summary.FIELDS}
    folder.write_arrays(path / "margins.npz", {"corner": corners, "true_label": labels, **arrays})


def _bar(total, description, unit, initial=0) -> tqdm.tqdm:
    """A progress bar; where no terminal shows it, a line now and then."""
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm.tqdm(
        total=total, desc=description, unit=unit, initial=initial, mininterval=interval, maxinterval=interval
    )
