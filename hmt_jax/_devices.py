"""Where things run."""

from collections.abc import Sequence

import jax


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
