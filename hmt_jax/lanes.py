"""Runs an iterative solver over many items in a fixed number of lanes, each lane refilled as soon as it is free.

Batched under `jax.vmap`, a loop runs until its slowest item is done, and every other lane waits. Here B lanes advance
together by one compiled step; a lane whose item is done writes the result and takes up the next item within that step,
so that nothing travels to the host. Items are dealt out over the devices of a mesh, each of which works through its
own queue without a word to the others.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from hmt_jax import _checks, _devices, _programs
from hmt_jax._numbers import whole_number

_AXIS = "lanes"
# Steps between two looks of the host at a loop on an accelerator: rare enough to cost nothing, for progress and errors.
_STEPS_PER_CALL = 32


class Method(Protocol):
    """A hashable value (a frozen dataclass, say) that solves one item at a time; all methods are traced.

    `data` is a pytree of arrays that all items share, `item` a scalar integer. `step` keeps the shapes and dtypes of
    the state. A lane is refilled in every step, so that `start` is paid for in every step: let it do no work.
    """

    def start(self, data: Any, item: jax.Array) -> Any: ...

    def step(self, data: Any, item: jax.Array, state: Any) -> Any: ...

    def done(self, state: Any) -> jax.Array: ...

    def result(self, state: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Work:
    """What a run cost. A lane-step is one lane taking part in one compiled step, busy or not."""

    num_lanes: int
    num_lane_steps: int
    num_busy_lane_steps: int

    @property
    def utilization(self) -> float:
        """Busy lane-steps over lane-steps."""
        return self.num_busy_lane_steps / max(self.num_lane_steps, 1)

    def __add__(self, later: "Work") -> "Work":
        """The work so far with that of a later run, whose number of lanes is the last one."""
        return Work(
            later.num_lanes,
            self.num_lane_steps + later.num_lane_steps,
            self.num_busy_lane_steps + later.num_busy_lane_steps,
        )


class _Lanes(NamedTuple):
    """The lanes of one device. A slot is a position in the device's queue; idle lanes point behind its end."""

    slots: jax.Array  # (B,)
    states: Any  # leaves (B, ...)
    next_slot: jax.Array  # (1,)
    results: Any  # leaves (Q, ...)
    is_solved: jax.Array  # (Q,)
    num_solved: jax.Array  # (1,)
    num_steps: jax.Array  # (1,) compiled steps of the last call
    num_busy: jax.Array  # (1,) busy lane-steps of the last call


def solve(
    method: Method,
    data: Any,
    items: Sequence[int] | np.ndarray,
    *,
    num_lanes: int,
    devices: Sequence[jax.Device] | None = None,
    steps_per_call: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, Work]:
    """Solves every item and returns the results in the order of `items`, with the work done.

    For each item, `state = start(data, item)`, then `state = step(data, item, state)` until `done(state)`, and
    the answer is `result(state)`. Answers do not depend on the number of lanes or devices or on the order, but for
    the rounding of batched products.

    If the device runs out of memory, the number of lanes is halved with a warning and the unsolved items go on.

    Args:
      method: the solver, as `Method` describes; equal methods share compiled code.
      data: pytree of arrays that all items share, copied to every device.
      items: whole numbers that `start` and `step` understand. Those below zero are passed over, and their results are
        zeros: with them, lists of different lengths share compiled code.
      num_lanes: lanes on each device.
      devices: where to run; all local devices if not given.
      steps_per_call: steps in one call of compiled code. 1 runs the loop on the host, more runs it on the device. If
        not given: 1 on CPU, where XLA compiles convolutions badly inside loops, and 32 elsewhere.
      progress: called with the numbers of items solved and of all items after every call.

    Returns:
      A pytree like `result`'s with NumPy leaves of shape (len(items), ...), and the `Work`.

    Raises:
      ValueError: if there are no items (at or above zero) or no devices, or num_lanes or steps_per_call is below 1.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Halve:
    ...     def start(self, data, item):
    ...         return data[item], 0
    ...     def step(self, data, item, state):
    ...         return state[0] / 2, state[1] + 1
    ...     def done(self, state):
    ...         return state[0] < 1
    ...     def result(self, state):
    ...         return state[1]
    >>> halvings, work = solve(Halve(), jnp.array([8.0, 0.5, 3.0]), [0, 1, 2], num_lanes=2)
    >>> halvings.tolist()
    [4, 0, 2]
    """
    _checks.check_callback("progress", progress, "the numbers of items solved and of all items")
    items = np.asarray(items, np.int32)
    if items.ndim != 1 or not (items >= 0).any():
        raise ValueError(f"items must be a sequence of at least one number from 0 on, got shape {items.shape}")
    devices = _devices.as_list(devices)
    if steps_per_call is None:
        steps_per_call = 1 if devices[0].platform == "cpu" else _STEPS_PER_CALL
    for argument, number in (("num_lanes", num_lanes), ("steps_per_call", steps_per_call)):
        if whole_number(argument, number) < 1:
            raise ValueError(f"{argument} must be at least 1, got {number}")

    mesh = _devices.mesh(devices, _AXIS)
    data = jax.device_put(data, NamedSharding(mesh, PartitionSpec()))
    solved = _Solved(items)
    num_items = solved.num_missing
    work = Work(num_lanes, 0, 0)
    while solved.num_missing:
        positions = _deal(solved.missing(), -(-len(items) // len(devices)), len(devices))
        queue = jax.device_put(
            np.where(positions >= 0, items[positions], -1), NamedSharding(mesh, PartitionSpec(_AXIS))
        )
        lanes = None
        try:
            lanes = _init(method, mesh, num_lanes, data, queue)
            num_solved = 0
            while num_solved < solved.num_missing:
                advanced = _advance(method, mesh, steps_per_call, data, queue, lanes)
                num_solved = int(np.sum(advanced.num_solved))  # waits, so that a failed call shows here
                lanes = advanced
                work += Work(num_lanes, num_lanes * int(np.sum(lanes.num_steps)), int(np.sum(lanes.num_busy)))
                if progress is not None:
                    progress(num_items - solved.num_missing + num_solved, num_items)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not _devices.is_out_of_memory(error) or num_lanes == 1:
                raise
            num_lanes //= 2
            warnings.warn(f"out of memory: going on with {num_lanes} lanes on each device", stacklevel=2)
        if lanes is not None:
            solved.store(positions, lanes)
    return solved.results, work


def evaluate(
    function: Callable[[Any, jax.Array], Any],
    data: Any,
    items: Sequence[int] | np.ndarray,
    *,
    num_lanes: int,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Any, Work]:
    """`function(data, item)` of every item, in the order of `items`: what `solve` is where one step does it all.

    The function must be hashable; equal ones share compiled code. All else is as in `solve`.

    >>> squares, work = evaluate(lambda data, item: data[item] ** 2, jnp.array([1.0, 2.0, 3.0]), [2, 0], num_lanes=2)
    >>> squares.tolist(), work.num_busy_lane_steps
    ([9.0, 1.0], 2)
    """
    return solve(_Once(function), data, items, num_lanes=num_lanes, devices=devices)


@dataclasses.dataclass(frozen=True)
class _Once:
    """A function as a method of one step."""

    function: Callable[[Any, jax.Array], Any]

    def start(self, data, item):
        # A new function, because JAX keeps traces as long as the function lives.
        answer = jax.eval_shape(lambda: self.function(data, item))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), answer), jnp.asarray(False)

    def step(self, data, item, state):
        return self.function(data, item), jnp.asarray(True)

    def done(self, state):
        return state[1]

    def result(self, state):
        return state[0]


class _Solved:
    """The results gathered on the host."""

    def __init__(self, items):
        self.is_solved = items < 0
        self.results = None

    @property
    def num_missing(self) -> int:
        return int(np.sum(~self.is_solved))

    def missing(self) -> np.ndarray:
        return np.flatnonzero(~self.is_solved)

    def store(self, positions, lanes):
        is_new = np.asarray(lanes.is_solved)
        rows = jax.tree.map(np.asarray, lanes.results)
        if self.results is None:
            self.results = jax.tree.map(lambda row: np.zeros((self.is_solved.size, *row.shape[1:]), row.dtype), rows)
        targets = positions[is_new]
        jax.tree.map(lambda result, row: result.__setitem__(targets, row[is_new]), self.results, rows)
        self.is_solved[targets] = True


def _deal(positions, length, num_devices):
    """Positions dealt out in turn, as one queue after the other, all of the length given: -1 fills up."""
    padded = np.full(length * num_devices, -1)
    padded[: len(positions)] = positions
    return padded.reshape(length, num_devices).T.reshape(-1)


@functools.partial(_programs.jit, static_argnums=(0, 1, 2))
def _init(method, mesh, num_lanes, data, queue):
    def on_device(data, queue):
        slots = jnp.arange(num_lanes, dtype=jnp.int32)
        states = jax.vmap(method.start, in_axes=(None, 0))(data, _items(queue, slots))
        result = jax.eval_shape(method.result, jax.tree.map(lambda leaf: leaf[0], states))
        zero = jnp.zeros(1, jnp.int32)
        return _Lanes(
            slots=slots,
            states=states,
            next_slot=zero + num_lanes,
            results=jax.tree.map(lambda leaf: jnp.zeros((queue.size, *leaf.shape), leaf.dtype), result),
            is_solved=jnp.zeros(queue.size, bool),
            num_solved=zero,
            num_steps=zero,
            num_busy=zero,
        )

    return _shard(on_device, mesh, (PartitionSpec(), PartitionSpec(_AXIS)))(data, queue)


@functools.partial(_programs.jit, static_argnums=(0, 1, 2))
def _advance(method, mesh, num_steps, data, queue, lanes):
    def on_device(data, queue, lanes):
        lanes = lanes._replace(num_steps=jnp.zeros_like(lanes.num_steps), num_busy=jnp.zeros_like(lanes.num_busy))
        if num_steps == 1:
            return _step(method, data, queue, lanes)
        num_queued = jnp.sum(queue >= 0)
        return jax.lax.while_loop(
            lambda lanes: (lanes.num_steps[0] < num_steps) & (lanes.num_solved[0] < num_queued),
            functools.partial(_step, method, data, queue),
            lanes,
        )

    specs = (PartitionSpec(), PartitionSpec(_AXIS), PartitionSpec(_AXIS))
    return _shard(on_device, mesh, specs)(data, queue, lanes)


def _step(method, data, queue, lanes):
    """One step of all lanes; those that are then done write their results and take up the next items."""
    num_queued = jnp.sum(queue >= 0)
    is_taken = lanes.slots < num_queued
    is_busy = is_taken & ~jax.vmap(method.done)(lanes.states)
    stepped = jax.vmap(method.step, in_axes=(None, 0, 0))(data, _items(queue, lanes.slots), lanes.states)
    states = _where(is_busy, stepped, lanes.states)

    is_finished = is_taken & jax.vmap(method.done)(states)
    rows = jnp.where(is_finished, lanes.slots, queue.size)  # rows behind the end are dropped
    results = jax.tree.map(
        lambda table, row: table.at[rows].set(row, mode="drop"), lanes.results, jax.vmap(method.result)(states)
    )
    slots = jnp.where(is_finished, lanes.next_slot + jnp.cumsum(is_finished) - 1, lanes.slots).astype(jnp.int32)
    started = jax.vmap(method.start, in_axes=(None, 0))(data, _items(queue, slots))
    return _Lanes(
        slots=slots,
        states=_where(is_finished, started, states),
        next_slot=lanes.next_slot + jnp.sum(is_finished, dtype=jnp.int32),
        results=results,
        is_solved=lanes.is_solved.at[rows].set(True, mode="drop"),
        num_solved=lanes.num_solved + jnp.sum(is_finished, dtype=jnp.int32),
        num_steps=lanes.num_steps + 1,
        num_busy=lanes.num_busy + jnp.sum(is_busy, dtype=jnp.int32),
    )


def _items(queue, slots):
    """The items at the slots; idle lanes work on the first one, which every queue with work to do has."""
    item = jnp.where(slots < queue.size, queue[jnp.minimum(slots, queue.size - 1)], -1)
    return jnp.where(item >= 0, item, queue[0])


def _where(condition, new, old):
    def select(new, old):
        return jnp.where(condition.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(select, new, old)


def _shard(function, mesh, in_specs):
    # Classifiers may hold loops whose carry starts from a constant, which the check of varying axes would refuse;
    # it guards collectives, of which there are none here.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=PartitionSpec(_AXIS), check_vma=False)
