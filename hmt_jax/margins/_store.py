"""Margins on a disk or in a bucket, written chunk by chunk, so that a measurement that was cut off can go on."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from hmt_jax import _paths, lanes
from hmt_jax._checks import integer
from hmt_jax.margins._result import MarginResult
from hmt_jax.solvers import Status

_FORMAT = 1
_NOT_MEASURED = 255
_METADATA = "zarr.json"
# With axes (subspace, image). The status is written last: once it is there, everything else is.
_FLOATING = ("margin", "gap", "alignment")
_INTEGERS = ("label", "adversarial_label", "num_steps")
_STATUS = "status"


class MarginStore:
    """Margins of N images in R subspaces, in a Zarr v3 group that is written chunk by chunk.

    A chunk is a number of images in all subspaces. Its status is written last, so a chunk either is there whole or
    counts as missing, even if the process is killed. Every array has checksums. The path is a local folder, or an
    address that TensorStore knows, such as `gs://bucket/margins.zarr` or `s3://bucket/margins.zarr`.

    The group has an array for each field of `MarginResult`, with axes (subspace, image); `coordinates_0`,
    `coordinates_1` and so on if they are kept; `work`, the cost of each chunk; and `image_sha256`, the SHA-256 of the
    images of each chunk. The status of a pair that has not been measured is 255. xarray and zarr-python read it without
    this library: `xarray.open_zarr("margins.zarr", consolidated=False).margin.median("image")`, or
    `zarr.open_group("margins.zarr", mode="r")["margin"][:]`.

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

    def __init__(self, path: str, attributes: dict[str, Any]):
        self.path = path
        self.attributes = attributes
        self._layout = _Layout(**attributes["layout"])
        self._files = _Files(path)

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
          ValueError: for sizes below 1, another dtype, or attributes that JSON can't hold.
          FileExistsError: if there is something at the path already.
          OSError: if the store can't be written.
        """
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
        num_images = integer("num_images", num_images, at_least=1)
        layout = _Layout(
            num_subspaces=integer("num_subspaces", num_subspaces, at_least=1),
            num_images=num_images,
            chunk_size=min(integer("chunk_size", chunk_size, at_least=1), num_images),
            dtype=np.dtype(dtype).name,
            dimensions=None if dimensions is None else [integer("dimensions", each, at_least=1) for each in dimensions],
        )
        if dimensions is not None and len(dimensions) != num_subspaces:
            raise ValueError(f"dimensions must name one for each of {num_subspaces} subspaces, got {len(dimensions)}")
        own = {"layout": dataclasses.asdict(layout), "solver": solver, "precision": precision}
        store = cls(_expanded(path), {**(attributes or {}), **own})
        there = set(store._files.names())
        # Metadata of arrays alone were left by a process that was killed before it wrote those of the group.
        if _METADATA in there or not there <= set(layout.metadata):
            kind = "a store" if _METADATA in there else "something else"
            raise FileExistsError(f"there is {kind} at {store.path} already: choose another path, or move it away")
        store._write_metadata()
        store.set_attributes({})
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """The store at a path.

        Args:
          path: the folder or the address.

        Raises:
          FileNotFoundError: if there is none.
          ValueError: if another version of this library wrote it, or its attributes are damaged.
          OSError: if it can't be read.
        """
        path = _expanded(path)
        content = _Files(path).read(_METADATA)
        if content is None:
            raise FileNotFoundError(f"there is no store of margins at {path}: measure them with measure_to_store")
        return cls(path, _attributes_in(path, content))

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
        """
        return self._layout.images_of(chunk)

    def missing(self) -> list[int]:
        """The numbers of the chunks that have not been measured."""
        there = set(self._files.names())
        return [chunk for chunk in range(self.num_chunks) if f"{_STATUS}/c/0/{chunk}" not in there]

    def write(self, chunk: int, result: MarginResult, image_sha256: str | None = None) -> None:
        """Writes the result of a chunk, in place of what was there.

        Args:
          chunk: the number of the chunk, from 0.
          result: margins of its images in all subspaces.
          image_sha256: the SHA-256 of its images, in hexadecimal digits.

        Raises:
          ValueError: if the result does not fit the store.
          OSError: if it can't be written. The chunk then counts as missing; all others stay.
        """
        layout = self._layout
        if not 0 <= integer("chunk", chunk) < self.num_chunks:
            raise ValueError(f"chunk must be from 0 to {self.num_chunks - 1}, got {chunk}")
        images = layout.images_of(chunk)
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
        if layout.dimensions is not None and (
            result.coordinates is None or [rows.shape[1] for rows in result.coordinates] != layout.dimensions
        ):
            raise ValueError("result must have the coordinates of all subspaces: measure with keep_coordinates=True")
        content: dict[str, np.ndarray] = {name: getattr(result, name) for name in (*_FLOATING, *_INTEGERS)}
        content |= {f"coordinates_{r}": rows for r, rows in enumerate(result.coordinates or []) if layout.dimensions}
        content["work"] = np.array([dataclasses.astuple(result.work)])
        content["image_sha256"] = np.frombuffer(bytes.fromhex(image_sha256 or 64 * "0"), np.uint8)[None]
        # If the chunk is written again, it is missing until all of it is there.
        self._files.remove(f"{_STATUS}/{layout.key_of(_STATUS, chunk)}")
        self._write_arrays(chunk, content)
        if self._files.read(_METADATA) is None:
            raise FileNotFoundError(
                f"{self.path} was removed or moved while it was measured: move it back, or measure again from the start"
            )
        self._write_arrays(chunk, {_STATUS: result.status})

    def read(self, *, partial: bool = False) -> MarginResult:
        """The margins of all images.

        Args:
          partial: whether to return the images measured so far, in their order, if there are others. `missing` and
            `images_of` say which they are.

        Raises:
          ValueError: if chunks are damaged, or chunks are missing and `partial` is False.
          OSError: if the store can't be read.
        """
        missing = self.missing()
        if missing and (not partial or len(missing) == self.num_chunks):
            raise ValueError(
                f"{len(missing)} of {self.num_chunks} chunks of {self.path} have not been measured: go on with "
                "measure_to_store" + ("" if len(missing) == self.num_chunks else ", or read(partial=True)")
            )
        if damaged := self._damaged_chunks(missing):
            raise ValueError(f"{self._said_of(damaged)}: measure_to_store sets them aside and measures them again")
        chunks = [chunk for chunk in range(self.num_chunks) if chunk not in set(missing)]
        found = {name: self._read_array(name) for name in self._layout.arrays if name != "image_sha256"}
        is_measured = found[_STATUS][0] != _NOT_MEASURED
        work = [lanes.Work(*found["work"][chunk].tolist()) for chunk in chunks]
        return MarginResult(
            **{name: found[name][:, is_measured] for name in (*_FLOATING, *_INTEGERS)},
            status=found[_STATUS][:, is_measured].astype(np.int32),
            solver=self.attributes["solver"],
            precision=self.attributes["precision"],
            work=sum(work[1:], start=work[0]),
            coordinates=None
            if self._layout.dimensions is None
            else [found[f"coordinates_{r}"][is_measured] for r in range(self._layout.num_subspaces)],
        )

    def image_sha256(self, chunk: int) -> str:
        """The SHA-256 of the images of a chunk that has been measured, in hexadecimal digits.

        Args:
          chunk: the number of the chunk, from 0.
        """
        return self._array("image_sha256")[chunk].read().result().tobytes().hex()

    def verify(self) -> list[str]:
        """The names of all damaged files, relative to the path; empty if the store is whole.

        Raises:
          OSError: if the store can't be read.
        """
        expected = {_METADATA: _group_of(self.attributes), **self._layout.metadata}
        wrong = [name for name, content in expected.items() if self._files.read(name) != content]
        return wrong + self._damaged_chunks(self.missing())

    def set_damaged_aside(self) -> list[str]:
        """The names of all damaged files, after moving them out of the store, so that their chunks count as missing.

        They are then in a folder next to the store, whose name ends in `-damaged`. Damaged metadata of arrays are
        written anew, since the attributes determine them.

        Raises:
          OSError: if it can't be written.
        """
        damaged = self.verify()
        aside = _Files(self.path.rstrip("/") + "-damaged")
        for name in damaged:
            if (content := self._files.read(name)) is not None:
                aside.write(name, content)
            if not name.endswith(_METADATA):
                self._files.remove(name)
                chunk = int(name.partition("/c/")[2].split("/")[self._layout.image_axis_of(name.partition("/")[0])])
                self._files.remove(f"{_STATUS}/{self._layout.key_of(_STATUS, chunk)}")
        if any(name.endswith(_METADATA) for name in damaged):
            self._write_metadata()
            self.set_attributes({})
        return damaged

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Adds attributes to those of the group, or replaces them.

        Args:
          attributes: by name, anything that JSON can hold.

        Raises:
          ValueError: for what JSON can't hold.
          OSError: if they can't be written.
        """
        known = {**self.attributes, **attributes}
        self._files.write(_METADATA, _group_of(known))
        self.attributes = known

    def __repr__(self) -> str:
        layout, num_missing = self._layout, len(self.missing())
        state = f", {num_missing} of {self.num_chunks} chunks missing" if num_missing else ""
        return f"MarginStore({self.path}: {layout.num_subspaces} subspaces x {layout.num_images} images{state})"

    def _write_metadata(self) -> None:
        for name, content in self._layout.metadata.items():
            self._files.write(name, content)

    def _array(self, name: str) -> Any:
        return self._files.array(name, self._layout.arrays[name])

    def _read_array(self, name: str) -> np.ndarray:
        with self._files.errors("read"):
            return self._array(name).read().result()

    def _write_arrays(self, chunk: int, content: Mapping[str, np.ndarray]) -> None:
        remedy = "; what was measured before is kept, and the same call goes on from there"
        with self._files.errors("written", remedy):
            futures = []
            for name, rows in content.items():
                array = np.asarray(rows, self._layout.dtype_of(name))
                futures.append(self._array(name)[self._layout.place_of(name, chunk)].write(array))
            for future in futures:
                future.result()

    def _damaged_chunks(self, missing: Sequence[int]) -> list[str]:
        """The names of damaged files among those of chunks that have been measured."""
        there, damaged = set(self._files.names()), []
        for chunk in sorted(set(range(self.num_chunks)) - set(missing)):
            waiting = []
            for name in self._layout.arrays:
                key = f"{name}/{self._layout.key_of(name, chunk)}"
                if key in there:
                    waiting.append((key, self._array(name)[self._layout.place_of(name, chunk)].read()))
                else:
                    damaged.append(key)
            for key, future in waiting:
                try:
                    future.result()
                except ValueError as error:  # TensorStore's for other checksums and lengths
                    if not _is_damage(error):
                        raise
                    damaged.append(key)
        return damaged

    def _said_of(self, damaged: Sequence[str]) -> str:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        return f"files of {self.path} are damaged, {', '.join(damaged[:5])}{more}"


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The lengths of the axes and the dtype, which determine the metadata of all arrays."""

    num_subspaces: int
    num_images: int
    chunk_size: int
    dtype: str
    dimensions: list[int] | None

    @property
    def num_chunks(self) -> int:
        return -(-self.num_images // self.chunk_size)

    def images_of(self, chunk: int) -> slice:
        return slice(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, self.num_images))

    @property
    def arrays(self) -> dict[str, dict[str, Any]]:
        """The metadata of every array in Zarr's words, by name."""
        pairs = (self.num_subspaces, self.num_images), (self.num_subspaces, self.chunk_size), ("subspace", "image")
        found = {
            "image_sha256": _array_of("uint8", (self.num_chunks, 32), (1, 32), ("chunk", "byte"), 0),
            "work": _array_of("int64", (self.num_chunks, 3), (1, 3), ("chunk", "count"), 0),
        }
        for r, dimension in enumerate(self.dimensions or ()):
            shape, chunk = (self.num_images, dimension), (self.chunk_size, dimension)
            found[f"coordinates_{r}"] = _array_of(self.dtype, shape, chunk, ("image", f"coordinate_{r}"), "NaN")
        found |= {name: _array_of(self.dtype, *pairs, "NaN") for name in _FLOATING}
        found |= {name: _array_of("int32", *pairs, -2) for name in _INTEGERS}
        found["margin"]["attributes"] = {"long_name": "L2 norm of the smallest perturbation found", "units": "pixels"}
        found[_STATUS] = _array_of("uint8", *pairs, _NOT_MEASURED)
        found[_STATUS]["attributes"] = {
            "flag_values": [*map(int, Status), _NOT_MEASURED],
            "flag_meanings": " ".join([*(status.name.lower() for status in Status), "not_measured"]),
        }
        return found

    @property
    def metadata(self) -> dict[str, bytes]:
        """The files of metadata of all arrays, by name."""
        return {f"{name}/{_METADATA}": _as_json(array) for name, array in self.arrays.items()}

    def dtype_of(self, name: str) -> np.dtype:
        return np.dtype(self.arrays[name]["data_type"])

    def image_axis_of(self, name: str) -> int:
        """The axis of an array that is cut into chunks of images."""
        return 1 if self.arrays[name]["dimension_names"][0] == "subspace" else 0

    def place_of(self, name: str, chunk: int) -> tuple[slice, ...]:
        """The entries of a chunk in an array."""
        first = self.arrays[name]["dimension_names"][0]
        place = slice(chunk, chunk + 1) if first == "chunk" else self.images_of(chunk)
        return (slice(None), place) if first == "subspace" else (place,)

    def key_of(self, name: str, chunk: int) -> str:
        """The name of the file of a chunk, within its array."""
        return f"c/0/{chunk}" if self.image_axis_of(name) else f"c/{chunk}/0"


class _Files:
    """The files below a path, by TensorStore, with errors of one kind: OSErrors that name the path."""

    def __init__(self, path: str):
        self.path = path
        with self.errors("opened"):
            self._files = _tensorstore().KvStore.open(_spec(path)).result()

    def names(self) -> list[str]:
        with self.errors("read"):
            return [key.decode() for key in self._files.list().result()]

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is no such file."""
        with self.errors("read"):
            found = self._files.read(name).result()
        return found.value if found.state == "value" else None

    def write(self, name: str, content: bytes) -> None:
        with self.errors("written"):
            self._files.write(name, content).result()

    def remove(self, name: str) -> None:
        with self.errors("written"):
            self._files.write(name, None).result()

    def array(self, name: str, metadata: dict[str, Any]) -> Any:
        # The metadata are known, so damaged ones do no harm. Chunks of fill values are written like all others, so that
        # a chunk without a file is known to be damaged.
        spec = {
            "driver": "zarr3",
            "kvstore": _spec(self.path),
            "path": name,
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        return _tensorstore().open(spec, open=True, assume_metadata=True).result()

    @contextlib.contextmanager
    def errors(self, done: str, remedy: str = "") -> Iterator[None]:
        try:
            yield
        except (ValueError, RuntimeError, OSError) as error:  # TensorStore has no class of its own
            raise OSError(f"{self.path} can't be {done} ({_reason(error)}){remedy}") from error


def _tensorstore() -> Any:
    import tensorstore  # here, because its import takes as long as a quarter of this library's

    return tensorstore


def _expanded(path: str | os.PathLike[str]) -> str:
    """The address, or the absolute path of the folder."""
    text = _paths.expand("path", path)
    return text if "://" in text else os.path.abspath(text)


def _spec(path: str) -> Any:
    """Where the files are, as TensorStore takes it."""
    path = path.rstrip("/") + "/"
    return path if "://" in path else {"driver": "file", "path": path}


def _array_of(
    dtype: str, shape: Sequence[int], chunk: Sequence[int], axes: Sequence[str], fill: int | str
) -> dict[str, Any]:
    """The metadata of an array, as Zarr v3 has them."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "dimension_names": list(axes),
        "attributes": {},
    }


def _group_of(attributes: Mapping[str, Any]) -> bytes:
    """The metadata of the group, with a checksum of its attributes."""
    try:
        content = _as_json(attributes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"attributes must be what JSON can hold: {_reason(error)}") from error
    own = {"hmt_jax_format": _FORMAT, "sha256": hashlib.sha256(content).hexdigest()}
    return _as_json({"zarr_format": 3, "node_type": "group", "attributes": {**attributes, **own}})


def _attributes_in(path: str, content: bytes) -> dict[str, Any]:
    """The attributes in the metadata of a group."""
    try:
        attributes = json.loads(content)["attributes"]
        version, checksum = attributes.pop("hmt_jax_format"), attributes.pop("sha256")
        is_whole = checksum == hashlib.sha256(_as_json(attributes)).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"{_METADATA} of {path} is damaged, or not that of a store of margins: put back a copy of that file, or "
            "measure to another path"
        )
    if version != _FORMAT:
        raise ValueError(f"the store at {path} has format {version}, and this version of hmt_jax reads {_FORMAT}")
    return attributes


def _as_json(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False).encode()


def _reason(error: BaseException) -> str:
    """What TensorStore says, without the specification that it appends."""
    return _paths.reason(error).partition(" [")[0]


def _is_damage(error: ValueError) -> bool:
    return str(error).startswith(("DATA_LOSS", "OUT_OF_RANGE", "INVALID_ARGUMENT", "FAILED_PRECONDITION"))
