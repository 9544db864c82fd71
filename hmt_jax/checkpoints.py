"""Checkpoints of training in a folder: the last two, from which training can resume, and the best one."""

import contextlib
import itertools
import math
import os
import pathlib
from typing import Any

import jax

from hmt_jax import _disk
from hmt_jax._paths import expand, reason
from hmt_jax.training import TrainState

__all__ = ["Checkpoints"]

_CHECKSUMS = "files.sha256"


class Checkpoints:
    """A folder that keeps the last two states of training and the best one, through Orbax.

    A checkpoint appears under its name once all of it is written, and only then are older ones removed. So if the
    process is killed or the disk is full, the previous checkpoint is still there. A checkpoint holds the arrays of the
    state by their dotted names (`parameters.network.conv1.kernel.value`), a history that JSON can hold, and the
    checksums of its files, in `files.sha256`. When the folder is opened, a checkpoint whose files do not match their
    checksums is renamed as damaged, and training can resume from the one before it.

    Attributes:
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

        self._ocp = ocp
        directory = pathlib.Path(expand("path", path)).absolute()
        self.damaged: dict[int, pathlib.Path] = _set_damaged_aside(directory)
        best = preservation_policy.BestN(n=1, get_metric_fn=_score)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(n=2), best]),
            best_fn=_score,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
        )
        try:
            self._manager = ocp.CheckpointManager(
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
          state: the state to save.
          score: the score of the state.
          history: any value that JSON can hold.

        Raises:
          ValueError: if the epoch is not after the last one saved, or the score is NaN.
          OSError: if it can't be written, for instance because the disk is full.
        """
        if self.last_epoch is not None and epoch <= self.last_epoch:
            raise ValueError(
                f"epoch {epoch} is not after {self.last_epoch}, the last one saved in {self._manager.directory}: go on "
                "from there with restore, or choose another folder"
            )
        if math.isnan(score):
            raise ValueError(f"score must be a number, the highest of which is the best, got {score}")
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(_arrays(state)), history=self._ocp.args.JsonSave({"history": history})
        )
        directory = self._manager.directory
        try:
            self._manager.save(epoch, args=items, metrics={"score": score})
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:  # whatever Orbax and its libraries raise
            raise OSError(
                f"the checkpoint of epoch {epoch} can't be written into {directory} ({reason(error)}): make sure "
                "that there is space and that the folder can be written, and go on from the previous checkpoint"
            ) from error
        step = pathlib.Path(directory) / str(epoch)
        _disk.write(step / _CHECKSUMS, _disk.checksums(step, without=_CHECKSUMS).encode())

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
            raise ValueError(f"no checkpoint of epoch {epoch} in {self._manager.directory}; it has {there}")
        expected = _arrays(like)
        # Shapes are compared first, because a failed restoration leaves threads behind.
        with self._readable(epoch):
            shapes = {name: found.shape for name, found in self._manager.item_metadata(epoch)["state"].items()}
        here = {name: _shape_there(array) for name, array in expected.items()}
        differences = [
            f"{name} is {shapes.get(name, 'missing')} there, {here.get(name, 'missing')} here"
            for name in {**shapes, **here}
            if shapes.get(name) != here.get(name)
        ]
        if differences:
            raise ValueError(
                f"the checkpoint in {self._manager.directory} is not of this network and recipe: "
                f"{'; '.join(differences)}"
            )
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
        try:
            yield
        except jax.errors.JaxRuntimeError:  # such as a device out of memory: the checkpoint is sound
            raise
        except Exception as error:  # whatever a damaged file makes Orbax raise
            raise ValueError(
                f"the checkpoint {self._manager.directory / str(epoch)} can't be read ({reason(error)}): move it "
                "away, to go on from the one before it"
            ) from error


def _set_damaged_aside(directory) -> dict[int, pathlib.Path]:
    """The new folders of damaged checkpoints, keyed by epoch, after renaming those that do not match their checksums.

    A checkpoint without checksums stays: its process was killed before it wrote them.
    """
    damaged = {}
    for step in sorted(directory.glob("[0-9]*")):
        if step.name.isdigit() and (step / _CHECKSUMS).exists() and not _is_whole(step):
            names = (f"damaged-{step.name}" + f"-{n}" * (n > 1) for n in itertools.count(1))
            free = next(name for name in names if not (directory / name).exists())
            damaged[int(step.name)] = step.rename(directory / free)
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
