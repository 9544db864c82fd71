"""Several processes of one job of `jax.distributed`: what each has of an array, and errors that all of them raise.

Nothing here communicates if there is one process.
"""

import contextlib
import functools
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Item = TypeVar("Item")

# The processes agree on the number of a call at which they stop, so that no two calls in a process may share one.
_CALLS = itertools.count()

# The classes of errors that a process raises for another one; for all others, it raises a RuntimeError.
_ERRORS = {kind.__name__: kind for kind in (FloatingPointError, OSError, RuntimeError, TypeError, ValueError)}


def count(mesh: Mesh) -> int:
    """The number of processes that a mesh has devices of."""
    return len({device.process_index for device in mesh.devices.flat})


def check(mesh: Mesh) -> None:
    """Raises ValueError unless the devices are this process's own, or as many of every process."""
    processes = [device.process_index for device in mesh.devices.flat]
    num_each = {processes.count(index) for index in set(processes)}
    if set(processes) != {jax.process_index()} and (count(mesh) < jax.process_count() or len(num_each) > 1):
        raise ValueError(
            f"devices must be as many of each of the {jax.process_count()} processes, or of this one alone, got those "
            f"of processes {processes}: pass jax.devices(), or jax.local_devices()"
        )


def rows(mesh: Mesh, batch_size: int) -> range:
    """The rows of a batch that are on this process's devices."""
    share = batch_size // count(mesh)
    first = share * jax.process_index() if count(mesh) > 1 else 0
    return range(first, first + share)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """The arrays of a tree on the devices of a sharding. Every process passes all of them."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # `device_put` would send whole arrays between processes, to compare them.
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(np.shape(leaf), sharding, lambda index: leaf[index]), local(tree)
    )


def everywhere(tree: Any) -> Any:
    """The arrays of a tree on all devices, as several processes keep them together; unchanged if there is only one."""
    if jax.process_count() == 1:
        return tree
    return put(tree, NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec()))


def local(tree: Any) -> Any:
    """The tree with arrays that every process has all of, on devices of several, on one of this process instead."""

    def on_one_device(leaf: Any) -> Any:
        is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        return leaf.addressable_data(0) if is_array and not leaf.is_fully_addressable else leaf

    return jax.tree.map(on_one_device, tree)


def gather(array: Any) -> np.ndarray:
    """The arrays (P, ...) of all P processes, each of which passes one (...) of the same shape and type."""
    if jax.process_count() == 1:
        return np.asarray(array)[None]
    sharding, replicate = _among_processes()
    return np.asarray(replicate(jax.make_array_from_process_local_data(sharding, np.asarray(array)[None])))


@functools.cache
def _among_processes():
    mesh = Mesh(np.array(jax.devices()).reshape(jax.process_count(), -1), ("processes", "devices"))
    return NamedSharding(mesh, PartitionSpec("processes")), jax.jit(
        lambda array: array, out_shardings=NamedSharding(mesh, PartitionSpec())
    )


def is_preempted() -> bool:
    """Whether all processes are to stop at this call, which they all make, because one of them got SIGTERM.

    JAX's preemption service knows, which `jax.distributed.initialize` starts; without it the answer is False.
    """
    from orbax.checkpoint import multihost

    return multihost.reached_preemption(next(_CALLS))


@contextlib.contextmanager
def alike(mesh: Mesh | None = None) -> Iterator[None]:
    """A block whose error in one process is raised in all, so that none waits for another in vain.

    What communicates within the block has to fail in all processes by itself.

    Args:
      mesh: the devices whose processes run the block; those of all processes if not given.
    """
    if jax.process_count() == 1 or (mesh is not None and count(mesh) == 1):
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if gather(np.int32(error is not None)).any():
        found = _texts("" if error is None else json.dumps(_described(error)))
        if error is not None:
            raise error
        name, message = json.loads(next(filter(None, found)))
        raise _ERRORS[name](message)


def _described(error):
    """The name in `_ERRORS` and the message with which other processes raise an error."""
    for kind in type(error).__mro__:
        if kind.__name__ in _ERRORS:
            return kind.__name__, str(error)
    return "RuntimeError", f"{type(error).__name__}: {error}"


def each_alike(items: Iterable[Item], mesh: Mesh) -> Iterator[Item]:
    """The items. What one process raises instead of an item is raised in all; all have as many items."""
    iterator, end = iter(items), object()
    while True:
        with alike(mesh):
            item: Any = next(iterator, end)
        if item is end:
            return
        yield item


def once(function: Callable[[], Any]) -> Any:
    """Calls a function in the first process only, and returns its result, fit for JSON, in all processes."""
    if jax.process_count() == 1:
        return function()
    found = None
    with alike():
        if jax.process_index() == 0:
            found = function()
    return json.loads(_texts(json.dumps(found))[0])


def check_same(mesh: Mesh, **arguments: Any) -> None:
    """Raises ValueError in all processes of a mesh unless they have passed the same trees of arrays."""
    if count(mesh) == 1:
        return
    sums = gather(np.array([_checksum(argument) for argument in arguments.values()], np.uint32))
    differing = [name for name, found in zip(arguments, sums.T, strict=True) if len(set(found)) > 1]
    if differing:
        raise ValueError(
            f"{', '.join(differing)} differ between the {count(mesh)} processes: pass the same in each, for example "
            "made from the same seed"
        )


def _checksum(tree):
    checksum = 0
    for leaf in jax.tree.leaves(local(tree)):
        is_key = jax.dtypes.issubdtype(jax.numpy.result_type(leaf), jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        checksum = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, checksum)
    return checksum


def _texts(text):
    """The texts of all processes."""
    content = text.encode()
    lengths = gather(np.int32(len(content)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    return [bytes(row[:length]).decode() for row, length in zip(gather(padded), lengths, strict=True)]
