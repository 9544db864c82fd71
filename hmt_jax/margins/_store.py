"""Margins on a disk or in a bucket, written chunk by chunk, so that a measurement that was cut off can go on."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hmt_jax import _paths, _tables, lanes
from hmt_jax._checks import integer
from hmt_jax.margins._result import MarginResult
from hmt_jax.solvers import Status

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = 1
_NOT_MEASURED = 255
_METADATA = "zarr.json"
# With axes (subspace, image). The status is written last: once it is there, everything else is.
_FLOATING = ("margin", "gap", "alignment")
_INTEGERS = ("label", "adversarial_label", "num_steps")
_STATUS = "status"
_RESERVED = ("layout", "solver", "precision", "hmt_jax_format", "sha256")  # attributes that the store sets itself


class MarginStore:
    """Margins of N images in R subspaces, in a Zarr v3 group that is written chunk by chunk.

    A chunk is a range of images in all subspaces. Its status is written last, so a chunk is either there whole or
    counts as missing, even if the process is killed. Every chunk has checksums. The path is a local folder, or an
    address that TensorStore knows, such as `gs://bucket/margins.zarr` or `s3://bucket/margins.zarr`.

    The group has an array for each field of `MarginResult`, with axes (subspace, image); `coordinates_0`,
    `coordinates_1` and so on if they are kept; `work`, the cost of each chunk; and `image_sha256`, the SHA-256 of the
    images of each chunk. The status of a pair that has not been measured is 255. xarray and zarr-python read a store
    without this library:

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
          ValueError: for sizes below 1, another dtype, or attributes that JSON can't hold or that the store sets.
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
            raise ValueError(
                f"dimensions must be those of the {num_subspaces} subspaces, got {len(dimensions)} numbers"
            )
        store = cls(_expanded(path), {"layout": dataclasses.asdict(layout), "solver": solver, "precision": precision})
        known = store._with(attributes or {})
        store._check_is_free()
        store._write_metadata()
        store._write_attributes(known)
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
        there = set(self._files.names(f"{_STATUS}/"))
        return [chunk for chunk in range(self.num_chunks) if self._layout.file_of(_STATUS, chunk) not in there]

    def write(self, chunk: int, result: MarginResult, image_sha256: str | None = None) -> None:
        """Writes the result of a chunk, in place of what was there.

        Args:
          chunk: the number of the chunk, from 0.
          result: margins of its images in all subspaces.
          image_sha256: the SHA-256 of its images, as 64 hexadecimal digits; zeros are written if it is not given.

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
        if not re.fullmatch("[0-9a-fA-F]{64}", image_sha256 := image_sha256 or 64 * "0"):
            raise ValueError(f"image_sha256 must be 64 hexadecimal digits, got {image_sha256!r}")
        content: dict[str, np.ndarray] = {name: getattr(result, name) for name in (*_FLOATING, *_INTEGERS)}
        content |= {f"coordinates_{r}": rows for r, rows in enumerate(result.coordinates or []) if layout.dimensions}
        content["work"] = np.array([dataclasses.astuple(result.work)])
        content["image_sha256"] = np.frombuffer(bytes.fromhex(image_sha256), np.uint8)[None]
        # TensorStore would make a folder that was moved away anew, without metadata.
        self._check_is_there()
        try:
            # If the chunk is written again, it is missing until all of it is there.
            self._files.remove(layout.file_of(_STATUS, chunk))
            self._write_arrays(chunk, content)
            self._check_is_there()
            self._write_arrays(chunk, {_STATUS: result.status})
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

    def image_sha256(self, chunk: int) -> str:
        """The SHA-256 of the images of a chunk that has been measured, in hexadecimal digits.

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
        return content["image_sha256"].tobytes().hex()

    def verify(self) -> list[str]:
        """The names of all damaged files, relative to the path; empty if the store is whole.

        Raises:
          OSError: if the store can't be read.
        """
        return list(self._damaged())

    def set_damaged_aside(self) -> list[str]:
        """The names of all damaged files, after moving them out of the store, so that their chunks count as missing.

        They are then in a folder next to the store, whose name ends in `-damaged`. Damaged metadata are written anew.

        Raises:
          OSError: if they can't be moved.
        """
        damaged = self._damaged()
        aside = _Files(self.path.rstrip("/") + "-damaged")
        for name in damaged:
            if (content := self._files.read(name)) is not None:
                aside.write(name, content)
        for name, chunk in damaged.items():
            if chunk is not None:
                self._files.remove(name)
                self._files.remove(self._layout.file_of(_STATUS, chunk))
        if None in damaged.values():
            self._write_metadata()
            self._write_attributes(self.attributes)
        return list(damaged)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Adds attributes to those of the group, or replaces them.

        Args:
          attributes: by name, anything that JSON can hold.

        Raises:
          ValueError: for what JSON can't hold, and for attributes that the store sets itself.
          OSError: if they can't be written.
        """
        self._write_attributes(self._with(attributes))

    def __repr__(self) -> str:
        subspaces = _tables.counted(self._layout.num_subspaces, "subspace")
        state = f", {num_missing} of {self.num_chunks} chunks missing" if (num_missing := len(self.missing())) else ""
        return f"MarginStore({self.path}: {subspaces} x {_tables.counted(self.num_images, 'image')}{state})"

    def _with(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes of the store and these, as they will be read."""
        if taken := [name for name in _RESERVED if name in attributes]:
            raise ValueError(f"attributes must not be named {', '.join(taken)}, which the store sets: rename them")
        try:
            return json.loads(json.dumps({**self.attributes, **attributes}, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"attributes must be what JSON can hold: {_paths.reason(error)}") from error

    def _check_is_free(self) -> None:
        # Metadata of arrays alone were left by a process that was killed before it wrote those of the group. A folder
        # of something else is not listed with all its subfolders, which may take hours.
        own = {*self._layout.arrays, _METADATA, f"{_METADATA}.__lock"}
        is_free = not os.path.lexists(self.path) or (os.path.isdir(self.path) and own.issuperset(os.listdir(self.path)))
        there = set(self._files.names()) if is_free else set()
        if not is_free or not there <= set(self._layout.metadata):
            kind = "a store" if _METADATA in there else "something else"
            raise FileExistsError(f"there is {kind} at {self.path} already: choose another path, or move it away")

    def _check_is_there(self) -> None:
        if self._files.read(_METADATA) is None:
            raise FileNotFoundError(
                f"{self.path} was removed or moved while it was measured: move it back, in place of what is there now, "
                "or measure to another path"
            )

    def _write_metadata(self) -> None:
        for name, content in self._layout.metadata.items():
            self._files.write(name, content)

    def _write_attributes(self, attributes: dict[str, Any]) -> None:
        self._files.write(_METADATA, _group_of(attributes))
        self.attributes = attributes

    def _write_arrays(self, chunk: int, content: Mapping[str, np.ndarray]) -> None:
        with self._files.errors("written", "; what was measured before is kept, and the same call goes on from there"):
            futures = []
            for name, rows in content.items():
                array = self._files.array(name, self._layout.arrays[name])
                place = array[self._layout.place_of(name, chunk)]
                futures.append(place.write(np.asarray(rows, array.dtype.numpy_dtype)))
            for future in futures:
                future.result()

    def _read_chunk(self, chunk: int, names: Sequence[str] = ()) -> tuple[dict[str, np.ndarray], list[str]]:
        """The arrays of a chunk by their names, all of them if none are given, and the names of damaged files."""
        content, damaged = {}, []
        with self._files.errors("read"):
            futures = {
                name: self._files.array(name, self._layout.arrays[name])[self._layout.place_of(name, chunk)].read()
                for name in names or self._layout.arrays
            }
            for name, future in futures.items():
                try:
                    content[name] = future.result()
                except ValueError as error:
                    if not _is_damage(error):
                        raise
                    damaged.append(self._layout.file_of(name, chunk))
        return content, damaged

    def _result_of(self, content: Mapping[str, np.ndarray]) -> MarginResult:
        """The result in the arrays of a chunk."""
        is_kept = self._layout.dimensions is not None
        return MarginResult(
            **{name: content[name] for name in (*_FLOATING, *_INTEGERS)},
            status=content[_STATUS].astype(np.int32),
            solver=self.attributes["solver"],
            precision=self.attributes["precision"],
            work=lanes.Work(*content["work"][0].tolist()),
            coordinates=[content[f"coordinates_{r}"] for r in range(self._layout.num_subspaces)] if is_kept else None,
        )

    def _damaged(self) -> dict[str, int | None]:
        """The chunk of each damaged file by the name of that file; None for metadata."""
        damaged: dict[str, int | None] = {}
        if not _is_group(self._files.read(_METADATA)):
            damaged[_METADATA] = None
        for name, expected in self._layout.metadata.items():
            if self._files.read(name) != expected:
                damaged[name] = None
        missing = set(self.missing())
        for chunk in range(self.num_chunks):
            if chunk not in missing:
                damaged |= dict.fromkeys(self._read_chunk(chunk)[1], chunk)
        return damaged


def damaged_in(files: Sequence[str]) -> str:
    """The number of damaged files and the names of some, for a message."""
    return f"{_tables.counted(len(files), 'damaged file')} ({', '.join(files[:5])}{', ...' if len(files) > 5 else ''})"


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

    @functools.cached_property
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

    def place_of(self, name: str, chunk: int) -> tuple[slice, ...]:
        """The entries of a chunk in an array."""
        images = self.images_of(chunk)
        places = {"subspace": (slice(None), images), "image": (images,), "chunk": (slice(chunk, chunk + 1),)}
        return places[self.arrays[name]["dimension_names"][0]]

    def file_of(self, name: str, chunk: int) -> str:
        """The file of a chunk of an array."""
        return f"{name}/c/0/{chunk}" if self.arrays[name]["dimension_names"][0] == "subspace" else f"{name}/c/{chunk}/0"


class _Files:
    """The files below a path, by TensorStore, with errors of one kind: OSErrors that name the path."""

    def __init__(self, path: str):
        self.path = path
        with self.errors("opened"):
            folder = path.rstrip("/") + "/"
            self._files = (
                _tensorstore().KvStore.open(folder if "://" in path else {"driver": "file", "path": folder}).result()
            )

    def names(self, prefix: str = "") -> list[str]:
        with self.errors("read"):
            keys = _tensorstore().KvStore.KeyRange(prefix, prefix and prefix[:-1] + chr(ord(prefix[-1]) + 1))
            return [key.decode() for key in self._files.list(keys).result()]

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is no such file."""
        with self.errors("read"):
            found = self._files.read(name).result()
        return found.value if found.state == "value" else None

    def write(self, name: str, content: bytes) -> None:
        # TensorStore writes into the lock file that a killed process left, and keeps its end if that is longer. The
        # second time, the lock file is new.
        for _ in range(2):
            with self.errors("written"):
                self._files.write(name, content).result()
            if self.read(name) == content:
                break

    def remove(self, name: str) -> None:
        with self.errors("written"):
            self._files.write(name, None).result()

    def array(self, name: str, metadata: dict[str, Any]) -> Any:
        # The metadata are known, so damaged ones do no harm. Chunks of fill values are written like all others, so that
        # a chunk without a file is known to be damaged.
        spec = {
            "driver": "zarr3",
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
            "fill_missing_data_reads": False,
        }
        return _tensorstore().open(spec, kvstore=self._files / f"{name}/", open=True, assume_metadata=True).result()

    @contextlib.contextmanager
    def errors(self, done: str, remedy: str = "") -> Iterator[None]:
        try:
            yield
        except (ValueError, RuntimeError) as error:  # TensorStore has no class of its own
            raise OSError(f"{self.path} can't be {done} ({_reason(error)}): {_REMEDIES[done]}{remedy}") from error


_REMEDIES = {
    "opened": "pass a folder, or an address that TensorStore knows, such as gs://bucket/margins.zarr",
    "read": "make sure that it can be reached and that you may read it",
    "written": "make sure that there is space and that you may write there",
}


def _tensorstore() -> Any:
    import tensorstore  # here, because its import takes as long as a quarter of this library's

    return tensorstore


def _expanded(path: str | os.PathLike[str]) -> str:
    """The address, or the absolute path of the folder."""
    text = _paths.expand("path", path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"path is {_paths.shown(text)}, but TensorStore takes only names in UTF-8: rename it"
        ) from None
    return text if "://" in text else os.path.abspath(text)


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
    """The metadata of the group: attributes with their checksum, and the metadata of all arrays once more.

    xarray opens a store without a warning only if they are there.
    """
    own = {"hmt_jax_format": _FORMAT, "sha256": hashlib.sha256(_as_json(attributes)).hexdigest()}
    arrays = {"kind": "inline", "must_understand": False, "metadata": _Layout(**attributes["layout"]).arrays}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {**attributes, **own}}
    return _as_json({**group, "consolidated_metadata": arrays})


def _attributes_in(path: str, content: bytes) -> dict[str, Any]:
    """The attributes in the metadata of a group."""
    try:
        # What follows is the rest of a longer file, from a process that was killed.
        group, _ = json.JSONDecoder().raw_decode(content.decode())
        attributes = group["attributes"]
        version, checksum = attributes.pop("hmt_jax_format"), attributes.pop("sha256")
        is_whole = version != _FORMAT or checksum == hashlib.sha256(_as_json(attributes)).hexdigest()
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


def _is_group(content: bytes | None) -> bool:
    """Whether this is what `_group_of` returns for some attributes."""
    try:
        return content is not None and _group_of(_attributes_in("", content)) == content
    except ValueError:
        return False


def _as_json(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False).encode()


def _reason(error: BaseException) -> str:
    """What TensorStore says, without its codes and the specification that it appends."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return re.sub("^[A-Z_]+: ", "", _paths.reason(error)).partition(" [")[0]


def _is_damage(error: ValueError) -> bool:
    """Whether an error of TensorStore is about what a file holds: another checksum or length, or no file at all."""
    codes = ("DATA_LOSS", "FAILED_PRECONDITION", "NOT_FOUND")
    return str(error).startswith(codes) and "os_error_code" not in str(error)
