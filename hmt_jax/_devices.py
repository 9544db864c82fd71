"""Where things run."""

import re
from collections.abc import Sequence

import jax

# XLA reports lack of memory under several codes: RESOURCE_EXHAUSTED on accelerators; on CPU also INTERNAL, if the
# computation was started before its arguments were computed. Libraries of vendors and of C++ have their own words.
_OUT_OF_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED|out[ _]?of[ _]?memory|failed to allocate|alloc_failed|bad_alloc", re.IGNORECASE
)


def as_list(devices: Sequence[jax.Device] | None) -> list[jax.Device]:
    """Those given, or all local devices in place of None.

    Raises:
      ValueError: for no devices at all.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices is empty: give at least one, or None for all local devices")
    return devices


def mesh(devices: Sequence[jax.Device] | None, axis: str) -> jax.sharding.Mesh:
    """The devices in a row, along an axis of that name."""
    devices = as_list(devices)
    return jax.make_mesh((len(devices),), (axis,), (jax.sharding.AxisType.Auto,), devices=devices)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the machine ran out of memory."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return _OUT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)
