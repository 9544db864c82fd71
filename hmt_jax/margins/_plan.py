"""The checked arguments of a measurement, and the settings that all its chunks share."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from hmt_jax import _devices, _programs, lanes
from hmt_jax._checks import integer, text_of
from hmt_jax._images import Chunk, Images, ImageSource
from hmt_jax.classifiers import Classifier, as_pytree
from hmt_jax.margins import _sizes, _states
from hmt_jax.margins._driver import Ahead, Lanes
from hmt_jax.margins._result import MarginResult
from hmt_jax.solvers import Solution, Solver
from hmt_jax.subspaces import Subspace
from hmt_jax.subspaces._base import as_list
from hmt_jax.subspaces._groups import grouped


class Plan:
    """The checked arguments of a measurement.

    Attributes:
      solver, precision: the arguments of the measurement.
      classifier: the classifier as a pytree, with a copy of its parameters on every device.
      images: the images, to be read chunk by chunk.
      subspaces: the list of subspaces.
      groups: the same subspaces, grouped by structure.
      where: the devices, and the numbers of lanes, which fall if memory runs out.
      chunk_size: number of images in a chunk.
      ahead: the programs that are compiled ahead of time; None before the first chunk.
      programs: the programs of this measurement.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: ArrayLike | ImageSource | Iterable[Any],
        subspaces: Subspace | Sequence[Subspace],
        solver: Solver,
        *,
        precision: str,
        batch_size: int | None,
        devices: Sequence[jax.Device] | None,
    ):
        _states.check_solver(solver)
        self.solver, self.precision = solver, precision
        self._check_precision()
        self.images = Images(images)
        self.subspaces = as_list(subspaces, self.images.image_shape)
        self.groups = grouped(self.subspaces)
        if batch_size is not None:
            integer("batch_size", batch_size, at_least=1)
        devices = _devices.as_list(devices)
        pytree = as_pytree(classifier)
        self.programs = _programs.Programs(pytree)
        self._everywhere = NamedSharding(_devices.mesh(devices, "lanes"), PartitionSpec())
        self.classifier = jax.device_put(pytree, self._everywhere)
        with self.in_use():
            kinds = [(len(places), self.subspaces[places[0]]) for places, _ in self.groups]
            sizes = _sizes.choose(
                solver,
                self.classifier,
                kinds,
                self.images.image_shape,
                self.images.dtype,
                self.images.num_images,
                num_lanes=batch_size,
                devices=devices,
            )
        self.where = Lanes(devices, sizes.num_lanes, sizes.num_lanes_at_end)
        self.chunk_size = sizes.chunk
        self.ahead: Ahead | None = None

    def _check_precision(self) -> None:
        try:
            if not isinstance(self.precision, str):
                raise TypeError
            with jax.default_matmul_precision(self.precision):
                pass
        except (TypeError, ValueError):  # JAX lists more than twenty names
            raise ValueError(
                "precision must be 'highest', 'high', 'default' or another name that jax.default_matmul_precision "
                f"takes, got {text_of(self.precision)}; for float64, pass 'highest' and measure within "
                "jax.enable_x64(True)"
            ) from None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which programs compile and run. Generators must close it before they yield."""
        with self.programs.in_use(), jax.default_matmul_precision(self.precision):
            yield

    def chunks(self) -> Iterator[Chunk]:
        """Chunks of the images, on the host."""
        return self.images.chunks(self.chunk_size)

    def on_devices(self, chunk: Chunk) -> jax.Array:
        """The images of a chunk, copied to every device."""
        return jax.device_put(chunk.images, self._everywhere)

    def result_of(
        self, solutions: Sequence[Solution], num_images: int, solver: str, work: lanes.Work, *, keep_coordinates: bool
    ) -> MarginResult:
        """The result for the last `num_images` images of a chunk, from the solutions (R_g N, ...) of each group."""
        rows: list[Any] = [None] * len(self.subspaces)
        for (places, _), tree in zip(self.groups, solutions, strict=True):
            for r, place in enumerate(places):
                rows[place] = jax.tree.map(functools.partial(_rows_of_member, len(places), r, num_images), tree)
        names = [name for name in Solution._fields if name != "coordinates"]
        return MarginResult(
            **{name: np.stack([getattr(row, name) for row in rows]) for name in names},
            solver=solver,
            precision=self.precision,
            work=work,
            coordinates=[row.coordinates for row in rows] if keep_coordinates else None,
        )


def _rows_of_member(num_members: int, r: int, num_images: int, leaf: np.ndarray) -> np.ndarray:
    """The last rows (num_images, ...) of member r, from the rows (num_members N, ...) of all members."""
    return leaf.reshape(num_members, -1, *leaf.shape[1:])[r, -num_images:]
