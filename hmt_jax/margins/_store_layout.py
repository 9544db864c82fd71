"""The contents of the files of a store of margins: arrays and a group in the format of Zarr v3."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hmt_jax.solvers import Status

METADATA = "zarr.json"
# Arrays with axes (subspace, image). The status is written last: once it is there, everything else is.
FLOATING = ("margin", "gap", "alignment")
INTEGERS = ("label", "adversarial_label", "num_steps")
STATUS = "status"

_FORMAT = 2
_NOT_MEASURED = 255


@dataclasses.dataclass(frozen=True)
class Layout:
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
        """The metadata of every array, by name."""
        pairs = (self.num_subspaces, self.num_images), (self.num_subspaces, self.chunk_size), ("subspace", "image")
        found = {
            "image_sha256": _array("uint8", (self.num_images, 32), (self.chunk_size, 32), ("image", "byte"), 0),
            "work": _array("int64", (self.num_chunks, 3), (1, 3), ("chunk", "count"), 0),
        }
        for r, dimension in enumerate(self.dimensions or ()):
            shape, chunk = (self.num_images, dimension), (self.chunk_size, dimension)
            found[f"coordinates_{r}"] = _array(self.dtype, shape, chunk, ("image", f"coordinate_{r}"), "NaN")
        found |= {name: _array(self.dtype, *pairs, "NaN") for name in FLOATING}
        found |= {name: _array("int32", *pairs, -2) for name in INTEGERS}
        found["margin"]["attributes"] = {"long_name": "L2 norm of the smallest perturbation found", "units": "pixels"}
        found[STATUS] = _array("uint8", *pairs, _NOT_MEASURED)
        found[STATUS]["attributes"] = {
            "flag_values": [*map(int, Status), _NOT_MEASURED],
            "flag_meanings": " ".join([*(status.name.lower() for status in Status), "not_measured"]),
        }
        return found

    @property
    def files(self) -> dict[str, bytes]:
        """The files of metadata of all arrays, by name."""
        return {f"{name}/{METADATA}": _as_json(array) for name, array in self.arrays.items()}

    def entries_of(self, name: str, chunk: int) -> tuple[slice, ...]:
        """The entries of a chunk in an array."""
        images = self.images_of(chunk)
        entries = {"subspace": (slice(None), images), "image": (images,), "chunk": (slice(chunk, chunk + 1),)}
        return entries[self.arrays[name]["dimension_names"][0]]

    def file_of(self, name: str, chunk: int) -> str:
        """The file of a chunk of an array."""
        return f"{name}/c/0/{chunk}" if self.arrays[name]["dimension_names"][0] == "subspace" else f"{name}/c/{chunk}/0"


def _array(
    dtype: str, shape: Sequence[int], chunk: Sequence[int], axes: Sequence[str], fill: int | str
) -> dict[str, Any]:
    """The metadata of an array."""
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


def group_of(attributes: Mapping[str, Any]) -> bytes:
    """The metadata of the group: attributes with their checksum, and a copy of the metadata of all arrays.

    Without that copy, xarray would open a store with a warning.
    """
    own = {"hmt_jax_format": _FORMAT, "sha256": hashlib.sha256(_as_json(attributes)).hexdigest()}
    arrays = {"kind": "inline", "must_understand": False, "metadata": Layout(**attributes["layout"]).arrays}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {**attributes, **own}}
    return _as_json({**group, "consolidated_metadata": arrays})


def attributes_in(path: str, content: bytes) -> dict[str, Any]:
    """The attributes in the metadata of a group.

    Raises:
      ValueError: if the metadata are damaged, or of another format.
    """
    try:
        # Anything after it is the rest of a longer file, left by a process that was killed.
        group, _ = json.JSONDecoder().raw_decode(content.decode())
        attributes = group["attributes"]
        version, checksum = attributes.pop("hmt_jax_format"), attributes.pop("sha256")
        is_whole = version != _FORMAT or (
            checksum == hashlib.sha256(_as_json(attributes)).hexdigest()
            and Layout(**attributes["layout"]).num_chunks > 0
        )
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, RecursionError):
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"{METADATA} of {path} is damaged, or not that of a store of margins: put back a copy of that file, or "
            "measure to another path"
        )
    if version != _FORMAT:
        raise ValueError(f"the store at {path} has format {version}, and this version of hmt_jax reads {_FORMAT}")
    return attributes


def is_group(content: bytes | None) -> bool:
    """Whether this is what `group_of` returns for some attributes."""
    try:
        return content is not None and group_of(attributes_in("", content)) == content
    except ValueError:
        return False


def _as_json(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False).encode()
