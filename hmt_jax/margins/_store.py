"""Margins on a disk or in a bucket, written chunk by chunk, so that an interrupted measurement can go on."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hmt_jax import _paths, _tables, lanes
from hmt_jax._checks import integer
from hmt_jax.margins._result import MarginResult
from hmt_jax.margins._store_files import SECONDS_TO_OPEN, Files, is_damage
from hmt_jax.margins._store_layout import (
    FLOATING,
    INTEGERS,
    METADATA,
    STATUS,
    Layout,
    attributes_in,
    group_of,
    is_group,
)

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = 64 * "0"  # the SHA-256 of images that a chunk was written without
_RESERVED = ("layout", "solver", "precision", "hmt_jax_format", "sha256")  # attributes that the store sets itself


class MarginStore:
    """Margins of N images in R subspaces, in a Zarr v3 group that is written chunk by chunk.

    A chunk is a range of images in all subspaces. Its status is written last, so a chunk is either there whole or
    counts as missing, even if the process is killed. Every chunk has checksums. The path is a local folder, or an
    address that TensorStore knows, such as `gs://bucket/margins.zarr` or `s3://bucket/margins.zarr`.

    The group has the arrays of a `MarginResult`, with axes (subspace, image); `coordinates_0`, `coordinates_1` and so
    on if they are kept; `image_sha256`, the SHA-256 of each image; and `work`, the cost of each chunk. The status of a
    pair that has not been measured is 255. xarray and zarr-python read a store without this library:

        margins = xarray.open_zarr("margins.zarr")
        margins.margin.where(margins.status == hmt_jax.Status.CONVERGED).median("image")

        zarr.open_group("margins.zarr", mode="r")["margin"][:]

    `hmt_jax.measure_to_store` makes a store and fills it. `create` and `write` are for results from elsewhere.

    Attributes:
      path: the folder or the address.
      attributes: what is known about the measurement, as the group's attributes hold it.

    >>> import tempfile
    >>> import jax, jax.numpy as jnp
    >>> import hmt_jax
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(16, 2))
    >>> images = jax.random.uniform(jax.random.key(0), (5, 4, 4, 1))
    >>> whole = hmt_jax.subspaces.full((4, 4, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = hmt_jax.measure_to_store(classifier, images, whole, hmt_jax.solvers.DeepFool(), f"{folder}/m.zarr")
    ...     MarginStore.open(f"{folder}/m.zarr").read().margin.shape, store.missing()
    ((1, 5), [])
    """

    def __init__(self, files: Files, attributes: dict[str, Any]):
        self.path = files.path
        self.attributes = attributes
        self._files = files
        self._layout = Layout(**attributes["layout"])

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        num_subspaces: int,
        num_images: int,
        chunk_size: int,
        solver: str,
        precision: str,
        dtype: Any = np.float32,
        dimensions: Sequence[int] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Self:
        """A new store in which nothing has been measured.

        Args:
          path: a folder that is empty or does not exist, or an address.
          num_subspaces: the number R of subspaces.
          num_images: the number N of images.
          chunk_size: the number of images in a chunk; the last one may have fewer.
          solver, precision: as in the results that will be written.
          dtype: of margins, gaps, alignments and coordinates: float32 or float64.
          dimensions: the dimensions of the subspaces, to keep coordinates; None to keep none.
          attributes: anything else about the measurement that JSON can hold.

        Raises:
          ValueError: for sizes below 1, another dtype, or attributes that JSON can't hold or that the store sets.
          FileExistsError: if there is something at the path already.
          OSError: if the store can't be written, or does not answer within 15 seconds.
        """
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
        num_images = integer("num_images", num_images, at_least=1)
        layout = Layout(
            num_subspaces=integer("num_subspaces", num_subspaces, at_least=1),
            num_images=num_images,
            chunk_size=min(integer("chunk_size", chunk_size, at_least=1), num_images),
            dtype=np.dtype(dtype).name,
            dimensions=None if dimensions is None else [integer("dimensions", each, at_least=1) for each in dimensions],
        )
        if dimensions is not None and len(dimensions) != num_subspaces:
            raise ValueError(
                f"dimensions must be those of the {num_subspaces} subspaces, got {len(dimensions)} numbers"
            )
        files = Files(path)
        store = cls(files, {"layout": dataclasses.asdict(layout), "solver": solver, "precision": precision})
        store.attributes = store._with(attributes or {})
        store._check_is_free()
        # The attributes come first: only one process can make their file, and they determine all other files.
        if not files.create(METADATA, group_of(store.attributes)):
            raise store._taken("a store")
        files.write(layout.files)
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """The store at a path.

        Args:
          path: the folder or the address.

        Raises:
          FileNotFoundError: if there is none.
          ValueError: if another version of this library wrote it, or its attributes are damaged.
          OSError: if it can't be read, or does not answer within 15 seconds.
        """
        files = Files(path)
        [content] = files.read(METADATA, seconds=SECONDS_TO_OPEN)
        if content is None:
            raise FileNotFoundError(f"there is no store of margins at {files.path}: measure them with measure_to_store")
        return cls(files, attributes_in(files.path, content))

    @property
    def num_chunks(self) -> int:
        """The number of chunks."""
        return self._layout.num_chunks

    @property
    def chunk_size(self) -> int:
        """The number of images in a chunk; the last one may have fewer."""
        return self._layout.chunk_size

    @property
    def num_images(self) -> int:
        """The number of images, measured or not."""
        return self._layout.num_images

    def images_of(self, chunk: int) -> slice:
        """The images of a chunk, as a slice.

        Args:
          chunk: the number of the chunk, from 0.

        Raises:
          ValueError: if there is no such chunk.
        """
        if not 0 <= integer("chunk", chunk) < self.num_chunks:
            raise ValueError(f"chunk must be from 0 to {self.num_chunks - 1}, got {chunk}")
        return self._layout.images_of(chunk)

    def missing(self) -> list[int]:
        """The numbers of the chunks that have not been measured.

        Raises:
          OSError: if the store can't be read.
        """
        there = set(self._files.names(f"{STATUS}/"))
        return [chunk for chunk in range(self.num_chunks) if self._layout.file_of(STATUS, chunk) not in there]

    def write(self, chunk: int, result: MarginResult, image_sha256: Sequence[str] | None = None) -> None:
        """Writes the result of a chunk, in place of what was there.

        Args:
          chunk: the number of the chunk, from 0.
          result: margins of its images in all subspaces.
          image_sha256: the SHA-256 of each of its images, as 64 hexadecimal digits; zeros are written if it is not
            given.

        Raises:
          ValueError: if the result does not fit the store.
          OSError: if it can't be written. The chunk then counts as missing; all others stay.
        """
        layout, images = self._layout, self.images_of(chunk)
        shape = (layout.num_subspaces, images.stop - images.start)
        if result.margin.shape != shape:
            raise ValueError(
                f"result must have margins {shape} for (subspaces, images) of chunk {chunk}, got {result.margin.shape}"
            )
        for name in ("solver", "precision"):
            if getattr(result, name) != self.attributes[name]:
                raise ValueError(
                    f"result has {name} {getattr(result, name)!r}, but the store has {self.attributes[name]!r}"
                )
        if not np.can_cast(result.margin.dtype, layout.dtype):
            raise ValueError(f"result has margins in {result.margin.dtype}, but the store holds {layout.dtype}")
        if layout.dimensions is not None and (
            result.coordinates is None or [rows.shape[1] for rows in result.coordinates] != layout.dimensions
        ):
            raise ValueError("result must have the coordinates of all subspaces: measure with keep_coordinates=True")
        hashes = shape[1] * [UNKNOWN] if image_sha256 is None else list(image_sha256)
        if len(hashes) != shape[1] or not all(re.fullmatch("[0-9a-fA-F]{64}", each) for each in hashes):
            raise ValueError(
                f"image_sha256 must be 64 hexadecimal digits for each of the {shape[1]} images, got {image_sha256!r}"
            )
        content: dict[str, np.ndarray] = {name: getattr(result, name) for name in (*FLOATING, *INTEGERS)}
        content |= {f"coordinates_{r}": rows for r, rows in enumerate(result.coordinates or []) if layout.dimensions}
        content["work"] = np.array([dataclasses.astuple(result.work)])
        content["image_sha256"] = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)
        # If the folder was moved away, TensorStore would make it anew, without metadata.
        self._check_is_there()
        try:
            # A chunk that is written again counts as missing until all of it is there.
            self._files.write({layout.file_of(STATUS, chunk): None})
            self._write_arrays(chunk, content)
            self._check_is_there()
            self._write_arrays(chunk, {STATUS: result.status})
        except OSError:
            self._check_is_there()
            raise

    def read(self, *, partial: bool = False) -> MarginResult:
        """The margins of all images.

        Args:
          partial: whether to return the images measured so far, in their order, if some are missing. `missing` and
            `images_of` say which ones.

        Raises:
          ValueError: if chunks are damaged, or nothing has been measured, or some chunks are missing and `partial` is
            False.
          OSError: if the store can't be read.
        """
        missing = set(self.missing())
        if missing and (not partial or len(missing) == self.num_chunks):
            raise ValueError(
                f"{len(missing)} of {self.num_chunks} chunks of {self.path} have not been measured: go on with "
                "measure_to_store" + ("" if len(missing) == self.num_chunks else ", or read(partial=True)")
            )
        results, damaged = [], []
        for chunk in range(self.num_chunks):
            if chunk not in missing:
                content, names = self._read_chunk(chunk)
                damaged += names
                results += [] if damaged else [self._result_of(content)]
        if damaged:
            raise ValueError(
                f"{self.path} has {damaged_in(damaged)}: measure_to_store sets them aside and measures their chunks "
                "again"
            )
        return MarginResult.concatenate(results)

    def __getitem__(self, index: Any) -> MarginResult:
        """The margins in some subspaces, or of some images, selected as in a `MarginResult`: `store[:5, mask]`.

        Args:
          index: the subspaces, or the subspaces and the images.

        Raises:
          ValueError, OSError: as `read`.
          IndexError, TypeError: as a `MarginResult`.
        """
        return self.read()[index]

    def to_dataframe(self) -> "pd.DataFrame":
        """A pandas table of the margins of all images, as `MarginResult.to_dataframe` returns it.

        Raises:
          ValueError, OSError: as `read`.
          ModuleNotFoundError: if pandas is not installed.
        """
        return self.read().to_dataframe()

    def image_sha256(self, chunk: int) -> list[str]:
        """The SHA-256 of each image of a chunk that has been measured, in hexadecimal digits; zeros if it is not known.

        Args:
          chunk: the number of the chunk, from 0.

        Raises:
          ValueError: if there is no such chunk, or it is missing or damaged.
          OSError: if the store can't be read.
        """
        self.images_of(chunk)
        content, damaged = self._read_chunk(chunk, ["image_sha256"])
        if damaged:
            raise ValueError(f"chunk {chunk} of {self.path} is missing or damaged: go on with measure_to_store")
        return [row.tobytes().hex() for row in content["image_sha256"]]

    def verify(self) -> list[str]:
        """The names of all damaged files, relative to the path; empty if the store is whole.

        Raises:
          OSError: if the store can't be read.
        """
        return list(self._damaged(range(self.num_chunks)))

    def set_damaged_aside(self, chunks: Sequence[int] | None = None) -> list[str]:
        """The names of all damaged files, after moving them out of the store, so that their chunks count as missing.

        They are then in a folder next to the store, whose name ends in `-damaged`. Damaged metadata are written anew.
        So are metadata that are absent because a process was killed while it made the store; these are not named.

        Args:
          chunks: the numbers of the chunks whose files are read; all chunks if not given.

        Raises:
          OSError: if they can't be moved.
        """
        aside = Files(self.path.rstrip("/") + "-damaged")
        found = {}
        for name, chunk in self._damaged(range(self.num_chunks) if chunks is None else chunks).items():
            [content] = self._files.read(name)
            if chunk is None and self._is_whole(name, content):
                continue  # another process is making the store, and has written this file in the meantime
            if content is not None:
                aside.write({name: content})
            found[name] = chunk, content
        for name, (chunk, _) in found.items():
            if chunk is not None:
                self._files.write({name: None, self._layout.file_of(STATUS, chunk): None})
            else:
                self._files.write({name: self._layout.files.get(name, group_of(self.attributes))})
        return [name for name, (chunk, content) in found.items() if chunk is not None or content is not None]

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Adds attributes to those of the group, or replaces them.

        Args:
          attributes: by name, anything that JSON can hold.

        Raises:
          ValueError: for what JSON can't hold, and for attributes that the store sets itself.
          OSError: if they can't be written.
        """
        known = self._with(attributes)
        self._files.write({METADATA: group_of(known)})
        self.attributes = known

    def __repr__(self) -> str:
        subspaces = _tables.counted(self._layout.num_subspaces, "subspace")
        state = f", {num_missing} of {self.num_chunks} chunks missing" if (num_missing := len(self.missing())) else ""
        return f"MarginStore({self.path}: {subspaces} x {_tables.counted(self.num_images, 'image')}{state})"

    def _with(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes of the store, updated by the given ones, as they will be read."""
        if taken := [name for name in _RESERVED if name in attributes]:
            raise ValueError(f"attributes must not be named {', '.join(taken)}, which the store sets: rename them")
        try:
            return json.loads(json.dumps({**self.attributes, **attributes}, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"attributes must be what JSON can hold: {_paths.reason(error)}") from error

    def _check_is_free(self) -> None:
        """Raises FileExistsError if there is something at the path, except array metadata, which hold no margins."""
        if self._files.read(METADATA, seconds=SECONDS_TO_OPEN) != [None]:
            raise self._taken("a store")
        # If the folder holds something else, its subfolders are not listed, because that may take hours.
        own = {*self._layout.arrays, f"{METADATA}.__lock"}
        is_free = not os.path.lexists(self.path) or (os.path.isdir(self.path) and own.issuperset(os.listdir(self.path)))
        if not is_free or not self._layout.files.keys() >= set(self._files.names()):
            raise self._taken("something else")

    def _taken(self, what: str) -> FileExistsError:
        return FileExistsError(f"there is {what} at {self.path} already: choose another path, or move it away")

    def _check_is_there(self) -> None:
        if self._files.read(METADATA) == [None]:
            raise FileNotFoundError(
                f"{self.path} was removed or moved while it was measured: move it back, in place of what is there now, "
                "or measure to another path"
            )

    def _array(self, name: str, chunk: int) -> Any:
        """A chunk of an array, as an array of TensorStore."""
        return self._files.array(name, self._layout.arrays[name])[self._layout.entries_of(name, chunk)]

    def _write_arrays(self, chunk: int, content: Mapping[str, np.ndarray]) -> None:
        with self._files.errors("written", "; what was measured before is kept, and the same call goes on from there"):
            arrays = [(self._array(name, chunk), rows) for name, rows in content.items()]
            for future in [array.write(np.asarray(rows, array.dtype.numpy_dtype)) for array, rows in arrays]:
                future.result()

    def _read_chunk(self, chunk: int, names: Sequence[str] = ()) -> tuple[dict[str, np.ndarray], list[str]]:
        """The arrays of a chunk by their names, all of them if none are given, and the names of damaged files."""
        content, damaged = {}, []
        with self._files.errors("read"):
            futures = {name: self._array(name, chunk).read() for name in names or self._layout.arrays}
            for name, future in futures.items():
                try:
                    content[name] = future.result()
                except ValueError as error:
                    if not is_damage(error):
                        raise
                    damaged.append(self._layout.file_of(name, chunk))
        return content, damaged

    def _result_of(self, content: Mapping[str, np.ndarray]) -> MarginResult:
        """The result in the arrays of a chunk."""
        is_kept = self._layout.dimensions is not None
        return MarginResult(
            **{name: content[name] for name in (*FLOATING, *INTEGERS)},
            status=content[STATUS].astype(np.int32),
            solver=self.attributes["solver"],
            precision=self.attributes["precision"],
            work=lanes.Work(*content["work"][0].tolist()),
            coordinates=[content[f"coordinates_{r}"] for r in range(self._layout.num_subspaces)] if is_kept else None,
        )

    def _damaged(self, chunks: Sequence[int]) -> dict[str, int | None]:
        """The chunk of each damaged file of some chunks by the name of that file; None for metadata."""
        metadata = [METADATA, *self._layout.files]
        found = zip(metadata, self._files.read(*metadata), strict=True)
        damaged: dict[str, int | None] = {name: None for name, content in found if not self._is_whole(name, content)}
        missing = set(self.missing())
        for chunk in chunks:
            if chunk not in missing:
                damaged |= dict.fromkeys(self._read_chunk(chunk)[1], chunk)
        return damaged

    def _is_whole(self, name: str, content: bytes | None) -> bool:
        """Whether this is what a file of metadata should hold."""
        return is_group(content) if name == METADATA else content == self._layout.files[name]


def damaged_in(files: Sequence[str]) -> str:
    """The number of damaged files and the names of some, for a message."""
    return f"{_tables.counted(len(files), 'damaged file')} ({', '.join(files[:5])}{', ...' if len(files) > 5 else ''})"
