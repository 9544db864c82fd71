"""Programs for devices that are not here: lowered for TPUs and GPUs, and searched for what is slow on them.

`python tests/test_lowering.py` prints the table in docs/how-to/accelerators.md.
"""

import contextlib
import functools
import math
import re
import unittest.mock
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import mlir
from jax.extend.mlir import ir

from hmt_jax import _devices, attacks, classifiers, lanes, models, solvers, subspaces, training
from hmt_jax.margins import _driver
from hmt_jax.training import _state, _step, _train

pytestmark = pytest.mark.slow

PLATFORMS = ("tpu", "cuda")
NUM_IMAGES = NUM_LANES = BATCH_SIZE = 128
PRODUCTS = ("dot_general", "convolution")


class Program(NamedTuple):
    function: Any
    arguments: Any  # shapes and dtypes; no array is ever made


class Array(NamedTuple):
    shape: tuple[int | None, ...]  # None for a length that depends on values
    dtype: str  # as MLIR writes it: f32, bf16, i32, i1, ui8

    @property
    def num_bytes(self):
        return math.prod(self.shape) * int(re.search(r"\d+", self.dtype).group()) / 8


class Operation(NamedTuple):
    name: str
    is_in_loop: bool
    operands: list[Array]
    results: list[Array]
    slice_sizes: tuple[int, ...] | None  # of a gather


# The programs, as they are traced in a process with accelerators


@contextlib.contextmanager
def on_accelerator():
    with (
        unittest.mock.patch.object(jax, "default_backend", return_value="tpu"),
        jax.default_matmul_precision("highest"),
    ):
        yield


def measurement(network, solver, image_shape, dtype="float32", num_devices=1, family=None):
    """The programs of `measure_margins` in subspaces of one kind, windows if not given, by their names."""
    mesh = _devices.mesh(jax.devices()[:num_devices], lanes._AXIS)
    family = subspaces.dct_diagonal(image_shape, size=8, step=8) if family is None else family
    num_pairs = len(family) * NUM_IMAGES
    num_slots = -(-num_pairs // num_devices) * num_devices
    with on_accelerator():
        classifier = jax.eval_shape(lambda: classifiers.as_pytree(create(network, image_shape)))
    classifier = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), classifier)
    images = jax.ShapeDtypeStruct((NUM_IMAGES, *image_shape), dtype)
    items = jax.ShapeDtypeStruct((NUM_LANES * num_devices,), jnp.int32)
    pairs = _driver.Pairs(classifier, images, jax.tree.map(stacked, *family), None)

    def evaluation(function, pairs):
        return Program(functools.partial(lanes._evaluate._function, function, mesh), (pairs, items))

    def results(program, number):
        with on_accelerator():
            return _driver._resized(jax.eval_shape(program.function, *program.arguments), number)

    linearize = evaluation(_driver._Linearize(solver.num_candidates), pairs)
    begin = evaluation(_driver._Begin(solver), pairs._replace(rows=results(linearize, NUM_IMAGES)))
    runs, _, ends = results(begin, num_pairs)
    method, pairs = _driver._Continue(solver), pairs._replace(rows=runs)
    with on_accelerator():
        idle = shapes_of(lanes._idle(method, mesh, NUM_LANES, pairs, num_slots))
    advance = functools.partial(lanes._advance._function, method, mesh, lanes._STEPS_PER_CALL)
    queue = jax.ShapeDtypeStruct((num_slots,), jnp.int32)
    return {
        "linearize": linearize,
        "begin": begin,
        "continue": Program(advance, (pairs, queue, idle)),
        "diagnose": evaluation(_driver._diagnose, pairs._replace(rows=ends)),
    }


def epoch(network, image_shape, attack=None, **settings):
    """The program of an epoch of `training.train`."""
    num_samples = 4 * BATCH_SIZE
    recipe, functions = _step.functions_of(training.Recipe(batch_size=BATCH_SIZE, **settings), attack)
    state = jax.eval_shape(lambda: _state.start(create(network, image_shape), recipe, num_samples))
    images = jax.ShapeDtypeStruct((num_samples, *image_shape), jnp.uint8)
    samples = images, jax.ShapeDtypeStruct((num_samples,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    rows = jax.eval_shape(functools.partial(_train._order._function, recipe, num_samples), key)
    ends = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    return Program(functools.partial(_train._loop._function, recipe), (functions, state, samples, rows, key, *ends))


def create(network, image_shape):
    return models.create(network, jax.random.key(0), image_shape=image_shape, num_classes=10)


def stacked(*leaves):
    return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)


def shapes_of(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


# Their operations


def operations(program, platforms=PLATFORMS):
    """The operations of a program that is exported for the platforms, with those of functions once for every call."""
    with on_accelerator():
        exported = jax.export.export(jax.jit(program.function), platforms=platforms)(*program.arguments)
    with ir.Context():
        module = mlir.deserialize_portable_artifact(exported.mlir_module_serialized)
        functions = {ir.StringAttr(each.attributes["sym_name"]).value: each.operation for each in module.body}
        return list(_operations(functions["main"], functions, is_in_loop=False))


def _operations(parent, functions, is_in_loop):
    for operation in (each.operation for region in parent.regions for block in region for each in block):
        if operation.name == "func.call":
            callee = ir.FlatSymbolRefAttr(operation.attributes["callee"]).value
            yield from _operations(functions[callee], functions, is_in_loop)
            continue
        name = operation.name.rpartition(".")[2]
        sizes = tuple(ir.DenseI64ArrayAttr(operation.attributes["slice_sizes"])) if name == "gather" else None
        arrays = ([_array(each.type) for each in values] for values in (operation.operands, operation.results))
        yield Operation(name, is_in_loop, *arrays, sizes)
        yield from _operations(operation, functions, is_in_loop or name == "while")


def _array(kind):
    kind = ir.RankedTensorType(kind)
    lengths = (None if kind.is_dynamic_dim(axis) else kind.get_dim_size(axis) for axis in range(kind.rank))
    return Array(tuple(lengths), str(kind.element_type))


def in_loops(found, *names):
    return [each for each in found if each.is_in_loop and each.name in names]


def is_contiguous(gather):
    """Whether every slice is a single stretch of memory."""
    sizes, lengths = gather.slice_sizes, gather.operands[0].shape
    first = next((axis for axis, size in enumerate(sizes) if size > 1), len(sizes))
    return sizes[first + 1 :] == lengths[first + 1 :]


def unsuitable(found):
    """Operations that TPUs lack or emulate, calls of what only one platform has, and messages between devices."""

    def is_unsuitable(each):
        arrays = each.operands + each.results
        # Not `ui64`: JAX's random numbers have counters of 64 bits, which are constants when they are compiled.
        return (
            any(array.dtype in ("f64", "i64") or None in array.shape for array in arrays)
            or each.name in ("custom_call", "infeed", "outfeed", "send", "recv")
            or (each.name.startswith("dynamic_") and each.name not in ("dynamic_slice", "dynamic_update_slice"))
            or each.name.startswith(("all_", "collective_", "reduce_scatter"))
        )

    return [each for each in found if is_unsuitable(each)]


MNIST, CIFAR = (28, 28, 1), (32, 32, 3)
SOLVERS = {
    "DeepFool()": solvers.DeepFool(),
    'tight("quick")': solvers.tight("quick"),
    'tight("normal")': solvers.tight("normal"),
}
REST = ("DeepFool()", 'tight("normal")')


@pytest.mark.parametrize(
    ("network", "image_shape", "dtype", "solver"),
    [
        *(("lenet", MNIST, "float32", name) for name in SOLVERS),
        ("lenet", MNIST, "bfloat16", 'tight("quick")'),
        ("resnet18_cifar", CIFAR, "float32", 'tight("quick")'),
        *(("lenet", MNIST, "bfloat16", name) for name in REST),
        *(("resnet18_cifar", CIFAR, "float32", name) for name in REST),
    ],
)
def test_measurements_fit_other_devices(network, image_shape, dtype, solver):
    programs = {
        name: operations(program) for name, program in measurement(network, SOLVERS[solver], image_shape, dtype).items()
    }
    for found in programs.values():
        assert not unsuitable(found)
        assert any(each.name in PRODUCTS for each in found)
        # Whole rows of tables, one for each lane, and single logits.
        assert all(is_contiguous(each) for each in found if each.name == "gather")
    loop = programs.pop("continue")
    assert in_loops(loop, *PRODUCTS)
    assert in_loops(loop, "gather")
    assert not in_loops(loop, "while", "sort", "top_k")
    assert not any(in_loops(found, *PRODUCTS) for found in programs.values())


def test_lanes_of_several_devices_do_not_communicate():
    program = measurement("mlp", solvers.DeepFool(), MNIST, num_devices=8)["continue"]
    assert not unsuitable(operations(program))


@pytest.mark.parametrize(
    ("network", "image_shape", "settings"),
    [
        ("lenet", MNIST, {}),
        ("lenet", MNIST, {"attack": attacks.PGD(norm="l2", epsilon=0.3, step_size=0.1, num_steps=5)}),
        ("lenet", MNIST, {"augment": training.crop_and_mirror, "compute_dtype": "bfloat16"}),
        ("resnet18_cifar", CIFAR, {}),
    ],
    ids=["plain", "adversarial", "augmented, in bfloat16", "deep"],
)
def test_training_fits_other_devices(network, image_shape, settings):
    found = operations(epoch(network, image_shape, **settings))
    assert not unsuitable(found)
    assert in_loops(found, *PRODUCTS)
    assert not in_loops(found, "sort", "top_k")
    scattered = [each for each in in_loops(found, "gather") if not is_contiguous(each)]
    # Crops begin at random pixels.
    assert len(scattered) == ("augment" in settings)


def test_what_is_unsuitable_is_found():
    """So that the tests above mean something."""

    def function(x, table):
        def body(carry):
            i, x = carry
            corners = i + jnp.arange(3)
            windows = jax.vmap(lambda corner: jax.lax.dynamic_slice(table, (corner, corner), (2, 2)))(corners)
            return i + 1, jnp.sort(x) + windows.sum()

        return jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, x))

    table, x = jax.ShapeDtypeStruct((4, 4), "float32"), jax.ShapeDtypeStruct((3,), "float32")
    found = operations(Program(function, (x, table)))
    assert not unsuitable(found)
    assert [is_contiguous(each) for each in in_loops(found, "gather")] == [False]
    assert in_loops(found, "sort")
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct((3,), "float64")
        assert unsuitable(operations(Program(lambda x: x + 1, (x,))))
        with pytest.raises(NotImplementedError, match="host_callbacks"):
            operations(Program(lambda x: jax.pure_callback(np.sin, x, x), (x,)), ("cpu",))


# The table


def summary(program, share):
    """What the loop of a program does on a TPU: numbers of operations, and kilobytes for each of `share` items."""
    found = operations(program, ("tpu",))
    rows = [gather.results[0] for gather in in_loops(found, "gather")]
    rows += [scatter.operands[2] for scatter in in_loops(found, "scatter")]
    products = [array for each in in_loops(found, *PRODUCTS) for array in each.operands + each.results]
    kilobytes = [sum(array.num_bytes for array in arrays) / share / 1e3 for arrays in (rows, products)]
    counts = [len(in_loops(found, name)) for name in ("gather", "scatter", "while")]
    return *counts, *(f"{number:.3g}" if number < 100 else f"{number:,.0f}" for number in kilobytes)


def main():
    rows = {}
    for network, image_shape in (("lenet", MNIST), ("resnet18_cifar", CIFAR)):
        for name, solver in SOLVERS.items():
            program = measurement(network, solver, image_shape)["continue"]
            rows[f"`{network}`, `{name}`"] = summary(program, NUM_LANES)
        for name, settings in (
            ("training", {}),
            ("training, `crop_and_mirror`", {"augment": training.crop_and_mirror}),
        ):
            rows[f"`{network}`, {name}"] = summary(epoch(network, image_shape, **settings), BATCH_SIZE)
    spans = [subspaces.random(jax.random.key(seed), MNIST, dimension=64) for seed in range(2)]
    program = measurement("lenet", solvers.tight("quick"), MNIST, family=spans)["continue"]
    rows['`lenet`, `tight("quick")`, `subspaces.random`'] = summary(program, NUM_LANES)
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
