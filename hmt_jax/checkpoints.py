"""Checkpoints of training in a folder: the last two, from which training can resume, and the best one.

`train` is a training that keeps and uses them. `Checkpoints` is the folder itself, for loops of your own.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from hmt_jax import _batches, _disk, _locks, _processes, training
from hmt_jax._checks import check_key
from hmt_jax._misc import differences, warn
from hmt_jax._paths import expand, reason
from hmt_jax.attacks import Attack
from hmt_jax.margins._identity import ADDRESS
from hmt_jax.training import Metrics, Recipe, TrainState
from hmt_jax.training._recipe import steps_per_epoch
from hmt_jax.training._train import Module

__all__ = ["Checkpoints", "PreemptedError", "Trained", "train"]

_CHECKSUMS = "files.sha256"
_UNFINISHED = "unfinished"  # the folder of a checkpoint within an epoch


class Checkpoints:
    """A folder that keeps the last two states of training and the best one, through Orbax.

    A checkpoint appears under its name once all of it is written, and only then are older ones removed. So if the
    process is killed or the disk is full, the previous checkpoint is still there. A checkpoint holds the arrays of the
    state by their dotted names (`parameters.network.conv1.kernel.value`), a history that JSON can hold, and the
    checksums of its files, in `files.sha256`. When the folder is opened, a checkpoint whose files do not match their
    checksums is renamed as damaged, and training can resume from the one before it.

    If JAX runs in several processes, each of them makes the same calls, with a folder on a drive that they share. If
    one can't read or write, all of them raise an error; those that wait for it do so after some minutes.

    Attributes:
      directory: the folder, as an absolute path.
      damaged: the new folders of checkpoints that were found damaged when the folder was opened, keyed by epoch.

    Args:
      path: the folder; made if it does not exist.

    >>> import tempfile
    >>> from hmt_jax import models, training
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)
    >>> state = training.start(classifier, training.Recipe(), num_samples=10)
    >>> with tempfile.TemporaryDirectory() as path, Checkpoints(path) as checkpoints:
    ...     checkpoints.save(0, state, score=0.9, history=[{"loss": 0.5}])
    ...     checkpoints.save(1, state, score=0.8, history=[{"loss": 0.5}, {"loss": 0.4}])
    ...     last, history = checkpoints.restore(state)
    ...     (checkpoints.last_epoch, checkpoints.best_epoch, len(history))
    (1, 0, 2)
    """

    def __init__(self, path: str | os.PathLike):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy

        class Manager(ocp.CheckpointManager):
            def reached_preemption(self, step: int) -> bool:
                """False: a save would ask JAX by the number of an epoch, but `_processes.is_preempted` counts calls."""
                return False

        self._ocp = ocp
        self.directory = directory = pathlib.Path(expand("path", path)).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        damaged = _processes.once(lambda: _set_damaged_aside(directory))
        self.damaged: dict[int, pathlib.Path] = {int(epoch): directory / name for epoch, name in damaged.items()}
        best = preservation_policy.BestN(n=1, get_metric_fn=_score)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(n=2), best]),
            best_fn=_score,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
            # Named, they wait for each other on their hosts and with a limit, not on their devices and for ever.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes=set(range(jax.process_count()))
            ),
            create=False,
        )
        try:
            self._manager = Manager(
                directory,
                options=options,
                item_handlers={"state": ocp.StandardCheckpointHandler(), "history": ocp.JsonCheckpointHandler()},
            )
            self._manager.best_step()
        except (ValueError, LookupError, TypeError) as error:  # damaged scores, in a checkpoint without checksums
            raise ValueError(
                f"the scores of the checkpoints in {directory} can't be read ({reason(error)}): move away the one "
                "whose file metrics/metrics is damaged"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def last_epoch(self) -> int | None:
        """The epoch after which the last state was saved; None if there is none."""
        return self._manager.latest_step()

    @property
    def best_epoch(self) -> int | None:
        """The epoch after which the best state was saved; None if there is none."""
        return self._manager.best_step()

    def save(self, epoch: int, state: TrainState, *, score: float, history: Any = None) -> None:
        """Saves the state after an epoch, with its score (the highest is the best) and its history, fit for JSON.

        Earlier checkpoints stay until this one is written.

        Args:
          epoch: number of the epoch; must be greater than `last_epoch`.
          state: the state to save; every process has all of it.
          score: the score of the state.
          history: any value that JSON can hold.

        Raises:
          ValueError: if the epoch is not after the last one saved, or the score is NaN.
          OSError: if it can't be written, for instance because the disk is full.
        """
        if self.last_epoch is not None and epoch <= self.last_epoch:
            raise ValueError(
                f"epoch {epoch} is not after {self.last_epoch}, the last one saved in {self.directory}: go on "
                "from there with restore, or choose another folder"
            )
        if math.isnan(score):
            raise ValueError(f"score must be a number, and the highest is the best, got {score}")
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(_arrays(_processes.everywhere(state))),
            history=self._ocp.args.JsonSave({"history": history}),
        )
        with _processes.alike():
            try:
                self._manager.save(epoch, args=items, metrics={"score": score})
                self._manager.wait_until_finished()
            except (OSError, ValueError, RuntimeError) as error:  # whatever Orbax and its libraries raise
                raise OSError(
                    f"the checkpoint {self.directory / str(epoch)} can't be written ({reason(error)}): make sure that "
                    "there is space and that the folder can be written, and go on from the previous checkpoint"
                ) from error
        step = self.directory / str(epoch)
        _processes.once(lambda: _disk.write(step / _CHECKSUMS, _disk.checksums(step, without=_CHECKSUMS).encode()))

    def restore(self, like: TrainState, epoch: int | None = None) -> tuple[TrainState, Any]:
        """The state of a checkpoint, in the structure of the given one, and the history saved with it.

        Args:
          like: a state of the same kind of training, for example `training.start(...)`.
          epoch: `last_epoch` or `best_epoch`; the last if not given.

        Raises:
          ValueError: if there is no such checkpoint, it is damaged, or it is of another network.
        """
        epoch = self.last_epoch if epoch is None else epoch
        if epoch is None or epoch not in self._manager.all_steps():
            there = ", ".join(map(str, self._manager.all_steps())) or "none"
            raise ValueError(f"no checkpoint of epoch {epoch} in {self.directory}; it has {there}")
        expected = _arrays(like)
        # Shapes are compared first, because a failed restoration leaves threads behind.
        with self._readable(epoch):
            shapes = {name: found.shape for name, found in self._manager.item_metadata(epoch)["state"].items()}
        here = {name: _shape_there(array) for name, array in expected.items()}
        if differing := differences(shapes, here):
            raise ValueError(f"the checkpoint in {self.directory} is not of this network and recipe: {differing}")
        with self._readable(epoch):
            found = self._manager.restore(
                epoch,
                args=self._ocp.args.Composite(
                    state=self._ocp.args.StandardRestore(expected), history=self._ocp.args.JsonRestore()
                ),
            )
            arrays, history = [found["state"][name] for name in expected], found["history"]["history"]
        return jax.tree.unflatten(jax.tree.structure(like), arrays), history

    @contextlib.contextmanager
    def _readable(self, epoch):
        with _processes.alike():
            try:
                yield
            except jax.errors.JaxRuntimeError:  # such as a device out of memory: the checkpoint is sound
                raise
            except Exception as error:  # whatever a damaged file makes Orbax raise
                raise ValueError(
                    f"the checkpoint {self.directory / str(epoch)} can't be read ({reason(error)}): move it "
                    "away, to go on from the one before it"
                ) from error


class PreemptedError(Exception):
    """A training was told to stop, and has kept the step that it had reached: the same call goes on from there.

    A script that then ends with exit code 75 tells schedulers that it can be started again.

    >>> try:
    ...     raise PreemptedError("training stopped after step 7")
    ... except PreemptedError as stopped:
    ...     print(stopped)
    training stopped after step 7
    """


class Trained(NamedTuple, Generic[Module]):
    """A training that has ended.

    Attributes:
      last: the classifier after the last epoch.
      best: the classifier after the epoch with the highest test accuracy.
      best_epoch: the number of that epoch, counted from 0.
      history: for each epoch, "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", and "seconds", the
        time since training began, without interruptions.

    >>> Trained(last=None, best=None, best_epoch=0, history=[{"epoch": 0, "test_accuracy": 0.5}]).history[-1]
    {'epoch': 0, 'test_accuracy': 0.5}
    """

    last: Module
    best: Module
    best_epoch: int
    history: list[dict[str, Any]]


def train(
    path: str | os.PathLike,
    classifier: Module,
    images: ArrayLike,
    labels: ArrayLike,
    recipe: Recipe,
    key: jax.Array,
    *,
    test_images: ArrayLike,
    test_labels: ArrayLike,
    attack: Attack | None = None,
    devices: Sequence[jax.Device] | None = None,
    run: Mapping[str, Any] | None = None,
    on_epoch: Callable[[Module, list[dict[str, Any]]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Trained[Module]:
    """A training that saves a checkpoint in a folder after every epoch, and resumes there when it is called again.

    The result is the same as without the interruption. A training that is told to stop also keeps the step that it has
    reached, in the folder `unfinished` there, until the next epoch is kept. If JAX runs in several processes, each
    calls this function with the same arguments, and the folder is on a drive that they share. It may be called again in
    another number of processes: with as many devices in all, the result is the same.

    Args:
      path: the folder; made if it does not exist.
      classifier, images, labels, recipe, key, attack, devices: as in `hmt_jax.training.train`.
      test_images: (M, height, width, channels), on which the network is evaluated after every epoch.
      test_labels: (M,) their labels.
      run: what else tells this training from others, such as the name of the network, fit for JSON. A checkpoint of
        another run is refused, as are those with another recipe, attack or key, or of other samples. Functions are
        compared by their names.
      on_epoch: called after every epoch, in every process, with the classifier and the history so far, before they are
        kept. The classifier's buffers live until the next step: copy anything that you want to keep.
      should_stop: asked before every step, on accelerators before every 32 steps, whether to stop there. Several
        processes don't ask: they stop together, when one of them gets SIGTERM.

    Raises:
      PreemptedError: if it was told to stop. All that was trained is kept.
      ValueError: if the folder holds a checkpoint of another run or of another network, or one that can't be read, or
        another process trains in it.
      FloatingPointError: if a loss or a gradient is not finite; it says which state was the last good one.
      OSError: if a checkpoint can't be written.

    Warns:
      UserWarning: if a checkpoint is damaged, so that training goes on from the one before it; if a process that was at
        work in the folder has died.

    >>> import tempfile
    >>> import numpy as np
    >>> from hmt_jax import models
    >>> classifier = models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2)
    >>> images, labels = np.stack([np.zeros((2, 2, 1)), np.ones((2, 2, 1))]), np.array([0, 1])
    >>> tested = {"test_images": images, "test_labels": labels}
    >>> recipe = Recipe(num_epochs=3, batch_size=2)
    >>> with tempfile.TemporaryDirectory() as path:
    ...     found = train(path, classifier, images, labels, recipe, jax.random.key(1), **tested, run={"seed": 0})
    >>> [epoch["epoch"] for epoch in found.history]
    [0, 1, 2]
    """
    check_key(key)
    history: list[dict[str, Any]] = []
    pixels, targets = _batches.check_samples(images, labels)
    state = training.start(classifier, recipe, len(pixels))
    described = {**(run or {}), **_described(recipe, attack, key)}
    described["samples"] = _hash_of(images, labels, test_images, test_labels)
    described = json.loads(json.dumps(described))  # tuples as lists, as they will be read
    directory = pathlib.Path(expand("path", path))
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        _processes.once(lambda: stack.enter_context(_locks.locked(directory)))
        kept = stack.enter_context(Checkpoints(directory))
        for epoch, damaged in kept.damaged.items():
            last = kept.last_epoch
            further = "starts over" if last is None else f"goes on from the checkpoint of epoch {last}"
            warn(f"the checkpoint of epoch {epoch} is damaged and was moved to {damaged}: training {further}")
        seconds = 0.0
        if kept.last_epoch is not None:
            _of_run(kept, described, state, kept.best_epoch)  # first: a score of another run hides the best of this one
            state, history = _of_run(kept, described, state, kept.last_epoch)
            seconds = history[-1]["seconds"]
        unfinished = directory / _UNFINISHED
        if _processes.once(unfinished.exists):
            state, seconds = _of_unfinished(unfinished, described, state, len(history), seconds)
        started = time.perf_counter() - seconds

        def stop(state: TrainState) -> None:
            is_asked = jax.process_count() == 1 and should_stop is not None and should_stop()
            if not _processes.is_preempted() and not is_asked:
                return
            num_steps = int(state.num_steps)
            if num_steps % steps_per_epoch(recipe, len(pixels)):
                found = {"run": described, "num_epochs": len(history), "seconds": time.perf_counter() - started}
                with Checkpoints(unfinished) as partial:
                    if partial.last_epoch != num_steps:  # stopped again before the first step
                        partial.save(num_steps, state, score=0, history=found)
            raise PreemptedError(
                f"training stopped after step {num_steps}, kept in {directory}: the same call goes on from there"
            )

        def keep(epoch: int, state: TrainState, metrics: Metrics) -> None:
            classifier = training.classifier_of(state)
            test = training.evaluate(classifier, test_images, test_labels)
            history.append(
                {
                    "epoch": epoch,
                    "train_loss": metrics.loss,
                    "train_accuracy": metrics.accuracy,
                    "test_loss": test.loss,
                    "test_accuracy": test.accuracy,
                    "seconds": round(time.perf_counter() - started, 2),
                }
            )
            if on_epoch is not None:
                with _processes.alike():
                    on_epoch(classifier, history)
            kept.save(epoch, state, score=test.accuracy, history={"run": described, "epochs": history})
            _processes.once(lambda: shutil.rmtree(unfinished, ignore_errors=True))

        options: Any = {"attack": attack, "devices": devices, "state": state, "on_epoch": keep, "on_step": stop}
        try:
            training.train(classifier, pixels, targets, recipe, key, **options)
        except FloatingPointError as error:
            last = kept.last_epoch
            good = "the one before training" if last is None else f"that after epoch {last}, in {kept.directory}"
            raise FloatingPointError(f"{error}; the last good state is {good}") from None
        best_epoch = kept.best_epoch
        assert best_epoch is not None  # a recipe has at least one epoch
        last, best = (
            training.classifier_of(_of_run(kept, described, state, epoch)[0]) for epoch in (kept.last_epoch, best_epoch)
        )
        return Trained(last, best, best_epoch, history)


def _of_run(kept: Checkpoints, run, like, epoch) -> tuple[TrainState, list[dict[str, Any]]]:
    """The state after an epoch and the history until then; ValueError if they are of another run or another epoch."""
    state, found = kept.restore(like, epoch)
    checkpoint = kept.directory / str(epoch)
    _check_run(checkpoint, found["run"], run)
    if (last := found["epochs"][-1]["epoch"]) != epoch:
        raise ValueError(
            f"{checkpoint} is the checkpoint of epoch {last} under another name: rename it to {last}, or start over in "
            "an empty folder"
        )
    return state, found["epochs"]


def _of_unfinished(directory, run, state, num_epochs, seconds) -> tuple[TrainState, float]:
    """The state and the time at a step that was kept within this epoch; the given ones if it is damaged or passed."""
    with Checkpoints(directory) as partial:
        for damaged in partial.damaged.values():
            warn(f"the unfinished epoch in {damaged} is damaged: training goes on from the end of the one before")
        if partial.last_epoch is None:
            return state, seconds
        later, found = partial.restore(state)
        _check_run(directory, found["run"], run)
    if found["num_epochs"] == num_epochs:
        return later, found["seconds"]
    _processes.once(lambda: shutil.rmtree(directory))  # or a stop before its step could not be kept
    return state, seconds


def _check_run(checkpoint, found, run) -> None:
    """Raises ValueError if a checkpoint is of another run."""
    if differing := differences(found, run):
        raise ValueError(
            f"{checkpoint} belongs to another run ({differing}): put that of this run back, or start over in an empty "
            "folder"
        )


def _described(recipe: Recipe, attack: Attack | None, key: jax.Array) -> dict[str, Any]:
    """The settings of a recipe, and texts that differ for other attacks and keys."""
    settings = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    texts = {"augment": recipe.augment, "attack": attack}
    settings |= {name: ADDRESS.sub("", repr(value)) for name, value in texts.items()}
    return {**settings, "key": str(np.asarray(jax.random.key_data(key)).tolist())}


def _hash_of(*arrays: ArrayLike) -> str:
    """A text that differs for other arrays."""
    found = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]


def _set_damaged_aside(directory) -> dict[str, str]:
    """The new names of damaged checkpoints by their old ones, after renaming those that do not match their checksums.

    A checkpoint without checksums stays: its process was killed before it wrote them.
    """
    damaged = {}
    for step in sorted(directory.glob("[0-9]*")):
        if step.name.isdigit() and (step / _CHECKSUMS).exists() and not _is_whole(step):
            names = (f"damaged-{step.name}" + f"-{n}" * (n > 1) for n in itertools.count(1))
            free = next(name for name in names if not (directory / name).exists())
            step.rename(directory / free)
            damaged[step.name] = free
    return damaged


def _is_whole(step) -> bool:
    return _disk.checksums(step, without=_CHECKSUMS).encode() == (step / _CHECKSUMS).read_bytes()


def _shape_there(array: jax.Array) -> tuple[int, ...]:
    """The shape that an array has in a checkpoint, where random keys are stored as the numbers they are made of."""
    is_key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    return (jax.random.key_data(array) if is_key else array).shape


def _arrays(state: TrainState) -> dict[str, jax.Array]:
    """The arrays of a state by their dotted names."""
    leaves, _ = jax.tree.flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]
