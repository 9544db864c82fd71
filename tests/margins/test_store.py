"""Stores of margins: what is in them, how measurements go on from them, and what happens when something breaks."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import equinox
import google_crc32c
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
import zarr
from bucket import bucket
from examples import ARRAYS, SHAPE, diagonal
from flax import linen, nnx
from helpers import random_images, tanh_classifier, tanh_logits, tanh_parameters, with_parameters

import hmt_jax
from hmt_jax import MarginStore, measure_to_store, models, solvers, subspaces
from hmt_jax.margins import _identity, _sizes, _store, _store_files

IMAGES = random_images(7, *SHAPE, seed=7, dtype="float32")
NAMES = (*ARRAYS, "work", "image_sha256")


def measure(path, images=IMAGES, classifier=None, windows=None, solver=None, **settings):
    """A store of three windows, three images to a chunk, on one device."""
    settings = {"chunk_size": 3, "batch_size": 9, "devices": jax.devices()[:1]} | settings
    classifier = tanh_classifier() if classifier is None else classifier
    return measure_to_store(classifier, images, windows or diagonal(), solver or solvers.DeepFool(), path, **settings)


@functools.cache
def expected(keep_coordinates=True, dtype="float32"):
    return hmt_jax.measure_margins(
        tanh_classifier(),
        IMAGES.astype(dtype),
        diagonal(),
        solvers.DeepFool(),
        batch_size=9,
        devices=jax.devices()[:1],
        keep_coordinates=keep_coordinates,
    )


def assert_equal(result, wanted):
    """The results are the same, bit for bit, and of the same types."""
    for name in ARRAYS:
        assert getattr(result, name).dtype == getattr(wanted, name).dtype
        np.testing.assert_array_equal(getattr(result, name), getattr(wanted, name), err_msg=name)
    assert (result.solver, result.precision) == (wanted.solver, wanted.precision)
    assert (result.coordinates is None) == (wanted.coordinates is None)
    for found, rows in zip(result.coordinates or [], wanted.coordinates or [], strict=True):
        np.testing.assert_array_equal(found, rows)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """The folder of a whole store; tests that change it take `copied`."""
    path = tmp_path_factory.mktemp("filled") / "margins.zarr"
    measure(path, keep_coordinates=True)
    return path


@pytest.fixture
def copied(filled, tmp_path):
    return shutil.copytree(filled, tmp_path / "margins.zarr")


def files_of(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


# What is in a store


def test_a_store_holds_what_measure_margins_returns(filled):
    store = MarginStore.open(filled)
    assert (store.num_images, store.chunk_size, store.num_chunks, store.missing()) == (7, 3, 3, [])
    assert [store.images_of(chunk) for chunk in range(3)] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    result = store.read()
    assert_equal(result, expected())
    assert result.work.num_busy_lane_steps == expected().work.num_busy_lane_steps
    assert store.verify() == []
    assert repr(store) == f"MarginStore({filled}: 3 subspaces x 7 images)"
    assert store.to_dataframe().equals(expected().to_dataframe())


def test_xarray_and_zarr_read_a_store_without_a_warning(filled):
    for settings in ({}, {"consolidated": False}, {"consolidated": True}):
        with xarray.open_zarr(filled, **settings) as found:
            for name in ARRAYS:
                assert found[name].dims == ("subspace", "image")
                np.testing.assert_array_equal(found[name], getattr(expected(), name), err_msg=name)
            for r, rows in enumerate(expected().coordinates):
                np.testing.assert_array_equal(found[f"coordinates_{r}"], rows)
            meanings = found.status.attrs["flag_meanings"].split()
            assert dict(zip(meanings, found.status.attrs["flag_values"], strict=True)) == {
                **{status.name.lower(): status for status in hmt_jax.Status},
                "not_measured": 255,
            }
    group = zarr.open_group(filled, mode="r")
    assert {name for name, _ in group.arrays()} == {*NAMES, *(f"coordinates_{r}" for r in range(3))}
    for name in ARRAYS:
        np.testing.assert_array_equal(group[name][:], getattr(expected(), name), err_msg=name)
    assert group.attrs["solver"] == "DeepFool(num_candidates=10, overshoot=0.02, max_steps=100)"
    assert group.attrs["data"] == {"num_images": 7, "image_shape": [4, 5, 2], "dtype": "float32"}


def test_every_image_has_its_own_hash(filled):
    store = hmt_jax.MarginStore.open(filled)
    found = [digest for chunk in range(store.num_chunks) for digest in store.image_sha256(chunk)]
    assert found == [hashlib.sha256(image.tobytes()).hexdigest() for image in IMAGES]


def test_checksums_of_chunks_are_crc32c(filled):
    """Every chunk is its numbers and their checksum, little-endian, without TensorStore."""
    for name, content in files_of(filled).items():
        if "/c/" in name:
            assert int.from_bytes(content[-4:], "little") == google_crc32c.value(content[:-4]), name
    numbers = np.frombuffer((filled / "margin/c/0/1").read_bytes()[:-4], "<f4")
    np.testing.assert_array_equal(numbers.reshape(3, 3), expected().margin[:, 3:6])


def test_attributes_name_the_measurement(tmp_path):
    store = measure(tmp_path / "m", attributes={"model": "tanh", "tags": ("a", 1)})
    known = MarginStore.open(tmp_path / "m").attributes
    assert known == store.attributes
    assert (known["model"], known["tags"]) == ("tanh", ["a", 1])
    assert known["classifier"]["kind"] == "tanh_logits"
    assert known["classifier"]["num_parameters"] == 40 * 8 + 8 + 8 * 5 + 5
    assert [each["dimension"] for each in known["subspaces"]] == [8, 8, 8]
    assert [run["jax"] for run in known["runs"]] == [jax.__version__]
    store.set_attributes({"model": "other"})
    assert MarginStore.open(tmp_path / "m").attributes["model"] == "other"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"a": np.ones(2)}, "attributes must be what JSON can hold: Object of type ndarray is not JSON serializable"),
        (
            {"a": float("nan")},
            "attributes must be what JSON can hold: Out of range float values are not JSON compliant",
        ),
        ({"layout": 1}, "attributes must not be named layout, which the store sets: rename them"),
        ({"runs": 1, "data": "mnist"}, "attributes must not be named data, runs, which the store sets: rename them"),
    ],
)
def test_attributes_must_fit(attributes, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        measure(tmp_path / "m", attributes=attributes)
    assert not (tmp_path / "m").exists()


def test_numbers_as_names_of_attributes_are_read_as_text(tmp_path):
    """As JSON has them; their order does not disturb the checksum."""
    store = MarginStore.create(
        tmp_path / "m", num_subspaces=1, num_images=1, chunk_size=1, solver="s", precision="p", attributes={2: 1, 10: 2}
    )
    assert (store.attributes["2"], store.attributes["10"]) == (1, 2)
    assert MarginStore.open(tmp_path / "m").verify() == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_other_pixels_give_the_margins_of_measure_margins(dtype, tmp_path, x64):
    images = (255 * IMAGES).astype(dtype) if dtype == "uint8" else IMAGES.astype(dtype)
    classifier = tanh_classifier(dtype="float32")
    settings = {"batch_size": 9, "devices": jax.devices()[:1]}
    wanted = hmt_jax.measure_margins(classifier, images, diagonal(), solvers.DeepFool(), **settings)
    result = measure(tmp_path / "m", images, classifier).read()
    assert result.margin.dtype == wanted.margin.dtype
    np.testing.assert_array_equal(result.margin, wanted.margin)
    np.testing.assert_array_equal(result.gap, wanted.gap)
    if dtype == "float64":
        with (
            jax.enable_x64(False),
            pytest.raises(ValueError, match=r"another classifier: dtype float64 there, float32"),
        ):
            measure(tmp_path / "m", images, classifier)


def test_pixels_without_margins_are_kept(tmp_path):
    """Chunks of fill values alone: NaN margins are results, not missing chunks."""
    images = IMAGES.copy()
    images[:3] = np.nan
    store = measure(tmp_path / "m", images)
    assert (store.missing(), store.verify()) == ([], [])
    result = store.read()
    assert np.isnan(result.margin[:, :3]).all()
    assert (result.status[:, :3] == hmt_jax.Status.NON_FINITE).all()
    np.testing.assert_array_equal(result.margin[:, 3:], expected().margin[:, 3:])


def test_one_image_in_one_subspace(tmp_path):
    store = measure(tmp_path / "m", IMAGES[:1], windows=diagonal()[0])
    assert repr(store).endswith("m: 1 subspace x 1 image)")
    np.testing.assert_allclose(store.read().margin, expected().margin[:1, :1], rtol=1e-5)  # another batch size


# What goes on


def test_a_store_goes_on_with_what_is_missing(copied):
    """Only that is measured, by any devices, batches and streams; the rest is not written again."""
    before = files_of(copied)
    (copied / "status/c/0/1").unlink()
    store = MarginStore.open(copied)
    assert store.missing() == [1]
    assert repr(store).endswith("3 subspaces x 7 images, 1 of 3 chunks missing)")
    times = {name: (copied / name).stat().st_mtime_ns for name in before if name != "status/c/0/1"}
    calls = []
    measure(copied, keep_coordinates=True, chunk_size=None, progress=lambda *numbers: calls.append(numbers))
    assert (calls[0], calls[-1]) == ((12, 21), (21, 21))
    after = files_of(copied)
    assert {name for name in after if after[name] != before[name]} == {"zarr.json"}
    assert len(json.loads(after["zarr.json"])["attributes"]["runs"]) == 2
    again = {name for name, when in times.items() if (copied / name).stat().st_mtime_ns != when}
    assert again == {"zarr.json"} | {name for name in before if re.search("/c/(0/1|1/0)$", name)} - {"status/c/0/1"}
    measure(copied, keep_coordinates=True)
    assert files_of(copied) == after  # nothing was missing


@pytest.mark.slow
def test_a_store_goes_on_on_other_devices_and_with_less_memory(copied, monkeypatch):
    (copied / "status/c/0/0").unlink()
    monkeypatch.setattr(_sizes, "_ON_CPU", _sizes._ON_CPU._replace(bytes_of_chunk=1, pairs_per_lane=1))
    store = measure(copied, keep_coordinates=True, devices=jax.devices()[:2], batch_size=3)
    result = store.read()
    np.testing.assert_array_equal(result.adversarial_label, expected().adversarial_label)
    np.testing.assert_allclose(result.margin, expected().margin, rtol=1e-4)  # other batches round differently
    np.testing.assert_array_equal(result.margin[:, 3:], expected().margin[:, 3:])


def batches(*sizes):
    ends = np.cumsum(sizes)
    return ((IMAGES[end - size : end], np.zeros(size, int)) for size, end in zip(sizes, ends, strict=True))


def test_a_stream_is_measured_and_compared_as_it_is_read(tmp_path):
    path = tmp_path / "m"
    store = measure(path, batches(2, 4, 1), num_images=7, keep_coordinates=True)
    assert_equal(store.read(), expected())
    (path / "status/c/0/1").unlink()
    assert_equal(measure(path, batches(6, 1), num_images=7, keep_coordinates=True).read(), expected())
    for images, message in (
        (batches(6), "images has only 6 images, but num_images is 7: pass their number"),
        (iter([IMAGES, IMAGES]), "images has at least 9 images, but num_images is 7: pass their number"),
        (
            iter([IMAGES[::-1]]),
            "holds margins of other images: some of images 0 to 2 differ; choose another path to measure these",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            measure(path, images, num_images=7, keep_coordinates=True)
    with pytest.raises(
        ValueError, match=r"^images is an iterable of unknown length: pass num_images=, the number of im"
    ):
        measure(path, batches(7))
    with pytest.raises(ValueError, match=r"^num_images must be 7, the number of images, got 6$"):
        measure(path, num_images=6)


def test_images_of_a_stream_that_breaks_are_kept(tmp_path):
    def broken():
        yield IMAGES[:5]
        raise OSError("the drive is gone")

    with pytest.raises(OSError, match=r"the drive is gone"):
        measure(tmp_path / "m", broken(), num_images=7, keep_coordinates=True)
    assert MarginStore.open(tmp_path / "m").missing() == [1, 2]
    assert_equal(measure(tmp_path / "m", keep_coordinates=True).read(), expected())


# Shares


class Noted:
    """Images by number, which remembers those that were read."""

    def __init__(self, images=IMAGES):
        self.images, self.numbers = images, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        self.numbers.append(number)
        return self.images[number]


def test_shares_fill_a_store_as_one_call_does(filled, tmp_path):
    """Chunks are images 0 to 2, 3 to 5, and 6. The other process may be the first one to come."""
    one, other = Noted(), Noted()
    path, shown = tmp_path / "m.zarr", []
    store = measure(path, other, share=(1, 2), keep_coordinates=True, progress=lambda *each: shown.append(each))
    assert (store.missing(), set(other.numbers), store.attributes["runs"]) == ([0, 2], {0, 3, 4, 5}, [])
    assert (shown[0], shown[-1]) == ((0, 9), (9, 9))
    store = measure(path, one, share=(0, 2), keep_coordinates=True)
    assert (store.missing(), set(one.numbers)) == ([], {0, 1, 2, 6})
    assert [run["num_processes"] for run in store.attributes["runs"]] == [2]
    found, wanted = files_of(path), files_of(filled)
    assert {name for name in found if found[name] != wanted.get(name)} == {"zarr.json"}  # the times and the processes
    assert found.keys() == wanted.keys()


def test_a_share_goes_on_and_compares_its_own_images_alone(copied):
    """A damaged file of another's chunk is left to the other one."""
    for number in (0, 1):
        (copied / "status" / "c" / "0" / str(number)).unlink()
    flip(copied / "margin" / "c" / "0" / "2", 0)
    before = files_of(copied)
    images = Noted()
    measure(copied, images, share=(1, 3), keep_coordinates=True)
    assert sorted(images.numbers) == [0, 3, 4, 5]
    after = files_of(copied)
    assert {name for name in after if after[name] != before.get(name)} == {"status/c/0/1"}
    images = Noted(IMAGES.copy())
    images.images[4] += 0.01
    with pytest.raises(ValueError, match="holds margins of other images: some of images 3 to 5 differ"):
        measure(copied, images, share=(1, 3), keep_coordinates=True)
    with pytest.warns(UserWarning, match=r"had 1 damaged file \(margin/c/0/2\)"):
        measure(copied, images, share=(2, 3), keep_coordinates=True)


def test_a_share_of_a_stream(filled, tmp_path):
    """It has to read all of it, and measures its own."""
    path = tmp_path / "m.zarr"
    for number in range(3):
        measure(path, iter([IMAGES[:4], IMAGES[4:]]), share=(number, 3), num_images=7, keep_coordinates=True)
    assert_equal(MarginStore.open(path).read(), expected())


def test_more_shares_than_chunks(tmp_path):
    shown = []
    store = measure(tmp_path / "m.zarr", share=(5, 8), progress=lambda *each: shown.append(each))
    assert store.missing() == [0, 1, 2]
    assert shown == []  # no part of its pairs is done, nor missing


def test_pixels_of_other_shares_give_no_warning(tmp_path):
    images = IMAGES.copy()
    images[0] += 2
    measure(tmp_path / "m.zarr", images, share=(1, 2))  # a warning would be an error here
    with pytest.warns(hmt_jax.PixelRangeWarning, match="^pixels of 1 of 3 images leave"):
        measure(tmp_path / "m.zarr", images, share=(0, 2))


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0), (0,), 3, "01"])
def test_shares_that_are_none(share, tmp_path):
    with pytest.raises(
        ValueError, match=r"^share must be \(i, n\), the number of a process, from 0 to n - 1, and the number"
    ):
        measure(tmp_path / "m.zarr", share=share)
    with pytest.raises(ValueError, match=r"^share must be a whole number, got 0\.5"):
        measure(tmp_path / "m.zarr", share=(0.5, 2))


def test_read_of_a_part(copied):
    (copied / "status/c/0/1").unlink()
    store = MarginStore.open(copied)
    with pytest.raises(
        ValueError, match=r"^1 of 3 chunks of .* have not been measured: go on with measure_to_store, or"
    ):
        store.read()
    measured = [0, 1, 2, 6]
    result = store.read(partial=True)
    np.testing.assert_array_equal(result.margin, expected().margin[:, measured])
    np.testing.assert_array_equal(result.coordinates[1], expected().coordinates[1][measured])
    shutil.rmtree(copied / "status/c")
    with pytest.raises(ValueError, match=r"^3 of 3 chunks of .* have not been measured: go on with measure_to_store$"):
        store.read(partial=True)


# What is refused


@dataclasses.dataclass(frozen=True)
class Steps(solvers.DeepFool):
    """A solver of a user."""


class Nameless(solvers.DeepFool):
    __repr__ = object.__repr__


OTHERS = {
    "images": ({"images": IMAGES[::-1]}, "other images: some of images 0 to 2 differ"),
    "a number": ({"images": IMAGES[:6]}, "other images: num_images 7 there, 6 here"),
    "a dtype": ({"images": IMAGES.astype("float64")}, "other images: dtype float32 there, float64 here"),
    "a precision": ({"precision": "default"}, "other settings: precision highest there, default here"),
    "coordinates": ({"keep_coordinates": False}, "other settings: keep_coordinates True there, False here"),
    "parameters": (
        {"classifier": tanh_classifier(tanh_parameters(1))},
        "another classifier: parameters_sha256 [0-9a-f]{8} there, [0-9a-f]{8} here",
    ),
    "code": (
        {"classifier": with_parameters(lambda *arguments: 2 * tanh_logits(*arguments), tanh_parameters())},
        "another classifier: code_sha256 [0-9a-f]{8} there, [0-9a-f]{8} here",
    ),
    "classes": (
        {"classifier": tanh_classifier(tanh_parameters(num_classes=4))},
        "another classifier: num_classes 5 there, 4 here",
    ),
    "fewer subspaces": ({"windows": diagonal()[:2]}, "other subspaces: number 3 there, 2 here"),
    "an order": (
        {"windows": diagonal()[::-1]},
        "other subspaces: subspace 0 sha256 [0-9a-f]{8} there, [0-9a-f]{8} here",
    ),
    "a dimension": (
        {"windows": subspaces.dct_diagonal(SHAPE, size=3, step=1)[:1] + diagonal()[1:]},
        "other subspaces: subspace 0 dimension 8 there, 18 here",
    ),
    "settings": (
        {"solver": solvers.DeepFool(max_steps=3)},
        r"another solver: DeepFool\(num_candidates=10, overshoot=0.02, max_steps=100\) there, DeepFool\(.*3\) here",
    ),
    "a solver": ({"solver": Steps()}, r"another solver: DeepFool\(.*\) there, Steps\(.*\) here"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_store_of_another_measurement_is_refused(other, filled):
    before = files_of(filled)
    settings, message = OTHERS[other]
    pattern = f"^{re.escape(str(filled))} holds margins of {message}; choose another path to measure these$"
    with pytest.raises(ValueError, match=pattern):
        measure(filled, **({"keep_coordinates": True} | settings))
    assert files_of(filled) == before


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Module(models.TorchClassifier):
    """A PyTorch module, without PyTorch: another backend rounds otherwise."""

    def __call__(self, images):
        flat = images.reshape(len(images), -1)
        if self.backend_for(images.shape[1:]) == "torchax":
            return flat @ self.tensors["weight"]
        return (flat[:, :, None] * self.tensors["weight"][None]).sum(axis=1)


@pytest.mark.slow
def test_another_backend_of_a_module_is_refused_with_its_remedy(tmp_path):
    def module(backend):
        return Module({"weight": jnp.eye(40, 4)}, None, None, None, backend)

    measure(tmp_path / "m", classifier=module("torchax"))
    with pytest.raises(
        ValueError,
        match=r"^.*m holds margins of another classifier: backend torchax there, callback here; make the classifier "
        r"with backend='torchax' to go on, or choose another path to measure these$",
    ):
        measure(tmp_path / "m", classifier=module("callback"))
    assert measure(tmp_path / "m", classifier=module("torchax")).missing() == []


def test_code_of_other_versions_is_not_compared(copied):
    """But the name of the function is, and its parameters are."""
    store = MarginStore.open(copied)
    old = {"code_of": "jax 0.0, jaxlib 0.0, abacus", "code_sha256": 64 * "0"}
    store.set_attributes({"classifier": store.attributes["classifier"] | old})
    assert measure(copied, keep_coordinates=True).missing() == []
    others = {
        "kind tanh_logits there, .*<lambda> here": with_parameters(lambda *a: tanh_logits(*a), tanh_parameters()),
        "parameters_sha256 [0-9a-f]{8} there, [0-9a-f]{8} here": tanh_classifier(tanh_parameters(1)),
    }
    for message, classifier in others.items():
        with pytest.raises(ValueError, match=f"holds margins of another classifier: {message}; choose another path"):
            measure(copied, classifier=classifier, keep_coordinates=True)


def test_a_solver_without_a_text_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"^solver is written as <.*Nameless object at 0x.*>, whose address differs in .*__"
    ):
        measure(tmp_path / "m", solver=Nameless())


def identity(classifier):
    classifier = hmt_jax.classifiers.as_pytree(classifier)
    found = _identity.of_classifier(classifier, jax.ShapeDtypeStruct((1, *SHAPE), np.float32))
    return found["code_sha256"], found["parameters_sha256"]


def closing_over(*values):
    """A classifier that closes over an array so large that JAX writes it as one hexadecimal number."""
    weights = np.linspace(0, 1, 160, dtype=np.float32).reshape(40, 4)
    weights[0, : len(values)] = values
    return lambda images: images.reshape(len(images), -1) @ weights


def test_values_that_a_function_closes_over_are_part_of_its_identity():
    assert identity(closing_over(2)) == identity(closing_over(2))
    # 2 and 8 are 00000040 and 00000041 in hexadecimal digits, which look like an address.
    assert identity(closing_over(2)) != identity(closing_over(8))
    assert identity(jax.jit(closing_over(2))) != identity(jax.jit(closing_over(8)))


def test_parameters_that_are_not_used_are_part_of_the_identity():
    weights = np.ones((40, 4), np.float32), np.zeros((40, 4), np.float32)
    first = jax.tree_util.Partial(lambda pair, images: images.reshape(len(images), -1) @ pair[0], weights)
    second = jax.tree_util.Partial(lambda pair, images: images.reshape(len(images), -1) @ pair[1], weights)
    assert identity(first) != identity(second)


class Network(nnx.Module):
    def __init__(self):
        self.kernel, self.names = nnx.Param(jnp.ones((40, 4))), frozenset({"a", "b", "c", "d"})

    def __call__(self, images):
        return jax.nn.relu(images.reshape(len(images), -1)) @ self.kernel[...]


class Dense(linen.Module):
    names: frozenset = frozenset({"a", "b", "c", "d"})

    @linen.compact
    def __call__(self, images):
        return linen.Dense(4, kernel_init=linen.initializers.ones)(images.reshape(len(images), -1))


class Affine(equinox.Module):
    kernel: jax.Array
    function: object
    factor: float

    def __call__(self, images):
        return self.function(images.reshape(len(images), -1) @ self.kernel) * self.factor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Channel(subspaces.Subspace):
    channel: jax.Array
    image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})
    names: frozenset = dataclasses.field(default=frozenset({"a", "b", "c", "d"}), metadata={"static": True})

    def coordinates(self, image):
        return image[:, :, self.channel].reshape(-1)

    def embed(self, z):
        return jnp.zeros(self.image_shape, z.dtype).at[:, :, self.channel].set(z.reshape(self.image_shape[:2]))


def identities():
    """Checksums of classifiers of many kinds and of subspaces, by name."""
    kernel = jnp.ones((40, 4))
    classifiers = {
        "tanh_logits": tanh_classifier(),
        "closing_over.<locals>.<lambda>": closing_over(2),
        "Network": Network(),
        "Dense": Dense().bind({"params": {"Dense_0": {"kernel": kernel, "bias": jnp.zeros(4)}}}),
        "Affine": Affine(kernel, jnp.tanh, 0.5),
    }
    assert [_identity.kind_of(each) for each in classifiers.values()] == list(classifiers)
    found = {name: identity(each) for name, each in classifiers.items()}
    own = Channel(jnp.asarray(1), SHAPE)
    return found | {"subspaces": [_identity.of_subspace(each, 8) for each in (diagonal()[0], own)]}


def start(code, *arguments, **environment):
    """Another process, in which `code` can import from the tests."""
    here = os.path.dirname(__file__)
    path = os.pathsep.join(filter(None, (here, os.path.dirname(here), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_identity_is_the_same_in_every_process():
    """Whatever the order of sets, the number of devices, and what was compiled before: another process has others."""
    code = (
        "import json, test_store as t; found = t.identities(); assert t.identities() == found; print(json.dumps(found))"
    )
    flags = "--xla_force_host_platform_device_count=3"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    other = start(code, PYTHONHASHSEED=seed, XLA_FLAGS=flags)
    assert json.loads(other.communicate()[0]) == json.loads(json.dumps(identities()))


def test_devices_are_no_part_of_the_identity():
    everywhere = jax.sharding.NamedSharding(jax.make_mesh((2,), ("lanes",)), jax.sharding.PartitionSpec())
    assert identity(jax.device_put(tanh_classifier(), everywhere)) == identity(tanh_classifier())


# What breaks


def damaged_in(path):
    """What `verify` finds, or that the store can't be opened because of its own file."""
    try:
        return MarginStore.open(path).verify()
    except ValueError as error:
        return re.findall(r"^(zarr\.json) of .* is damaged, or not that of a store of margins: put back", str(error))


@pytest.mark.slow
def test_every_damaged_byte_is_found(tmp_path):
    """In a smaller store, and in its metadata one byte in 97, so that it takes seconds."""
    path = tmp_path / "m"
    result = hmt_jax.measure_margins(tanh_classifier(), IMAGES[:2], diagonal()[:1], solvers.DeepFool())
    settings = {"solver": result.solver, "precision": result.precision}
    store = MarginStore.create(path, num_subspaces=1, num_images=2, chunk_size=2, **settings)
    store.write(0, result)
    for name, content in files_of(path).items():
        for place in range(0, len(content), 1 if "/c/" in name else 97):
            flip(path / name, place)
            assert damaged_in(path) == [name], place
            flip(path / name, place)
    assert store.verify() == []


def test_damaged_files_are_set_aside_and_measured_again(copied):
    before = files_of(copied)
    names = ["margin/zarr.json", "coordinates_1/c/0/0", "gap/c/0/2", "status/c/0/0", "work/c/1/0"]
    for name in names:
        flip(copied / name, 2)
    damaged = {name: (copied / name).read_bytes() for name in names}
    (copied / "margin/c/0/0").unlink()
    (copied / "label/c/0/1").write_bytes(before["label/c/0/1"][:-7])
    store = MarginStore.open(copied)
    assert set(store.verify()) == {*names, "margin/c/0/0", "label/c/0/1"}
    with pytest.raises(ValueError, match=r" has 6 damaged files \(.*, \.\.\.\): measure_to_store sets them aside and"):
        store.read()
    with pytest.warns(
        UserWarning, match=r" had 7 damaged files \(margin/zarr.json, .*\): they are now in .*-damaged, "
    ):
        measure(copied, keep_coordinates=True)
    aside = files_of(copied.with_name("margins.zarr-damaged"))
    assert aside == {**damaged, "label/c/0/1": before["label/c/0/1"][:-7]}
    after = files_of(copied)
    assert {name for name in after if after[name] != before[name]} == {"zarr.json"}
    assert MarginStore.open(copied).verify() == []


def test_a_longer_lock_file_of_a_killed_process_does_no_harm(tmp_path):
    """TensorStore writes into it and leaves the rest of it."""
    path = tmp_path / "m"
    for name in ("zarr.json", "margin/zarr.json"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / f"{name}.__lock").write_bytes(10**5 * b"x")
    assert measure(path).verify() == []
    assert [name for name in files_of(path) if name.endswith("__lock")] == []
    # Killed between the first and the second time that the file is written.
    with (path / "zarr.json").open("ab") as file:
        file.write(b"rest")
    with pytest.warns(UserWarning, match=r" had 1 damaged file \(zarr.json\): they are now in"):
        measure(path)
    assert MarginStore.open(path).verify() == []


def part_of(result, images):
    return dataclasses.replace(
        result,
        **{name: getattr(result, name)[:, images] for name in ARRAYS},
        coordinates=result.coordinates and [rows[images] for rows in result.coordinates],
    )


def new_store(path, chunk_size=1, **settings):
    wanted = {"num_subspaces": 3, "num_images": 7, "solver": expected().solver, "precision": "highest"} | settings
    return MarginStore.create(path, chunk_size=chunk_size, **wanted)


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path):
    """A limit on the length of files: chunks of one image are shorter, those of a thousand are not."""
    wide = dataclasses.replace(
        expected(), **{name: np.tile(getattr(expected(), name), 200) for name in ARRAYS}, coordinates=None
    )
    store = new_store(tmp_path / "m", 1000, num_images=1001)
    store.write(1, part_of(wide, [1000]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large") as caught:
            store.write(0, part_of(wide, slice(1000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == (
        f"{tmp_path}/m can't be written (File too large): make sure that there is space and that you may write there; "
        "what was measured before is kept, and the same call goes on from there"
    )
    assert (store.missing(), store.verify()) == ([0], [])
    store.write(0, part_of(wide, slice(1000)))
    np.testing.assert_array_equal(store.read().margin, wide.margin[:, :1001])
    assert [name for name in files_of(tmp_path / "m") if name.endswith("__lock")] == []


def test_a_folder_that_is_moved_away_is_named(tmp_path):
    path, away = tmp_path / "m", tmp_path / "away"

    def move(num_done, num_pairs):
        if num_done > 18 and path.exists():  # the first chunk is written before the third is measured
            os.rename(path, away)

    with pytest.raises(
        FileNotFoundError, match=rf"^{path} was removed or moved while it was measured: move it back, i"
    ):
        measure(path, progress=move, keep_coordinates=True)
    assert 0 not in MarginStore.open(away).missing()
    assert_equal(measure(away, keep_coordinates=True).read(), expected())


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    new_store(tmp_path / "store")
    cases = {
        "file": (FileExistsError, "there is something else at .*file already: choose another path, or move it away"),
        "full": (FileExistsError, "there is something else at .*full already: choose another path, or move it away"),
        "store": (FileExistsError, "there is a store at .*store already: choose another path, or move it away"),
        "file/below": (OSError, r"below can't be read \(Not a directory\): make sure that it can be reached and that"),
        "x.__lock": (OSError, r"x.__lock can't be opened \(Invalid file path: .*\): pass a folder, or an address that"),
        "nosuch://bucket": (
            OSError,
            r"^nosuch://bucket can't be opened \(.*unsupported URL scheme.*\): pass a folder, or",
        ),
        "\udcff": (ValueError, r"path is '.*\\udcff', but TensorStore takes only names in UTF-8: rename it"),
    }
    for name, (kind, message) in cases.items():
        with pytest.raises(kind, match=message) as caught:
            new_store(name if "://" in name else f"{tmp_path}/{name}")
        assert "\n" not in str(caught.value)
        assert "source locations" not in str(caught.value)
    with pytest.raises(
        FileNotFoundError, match=r"there is no store of margins at .*none: measure them with measure_to_st"
    ):
        MarginStore.open(tmp_path / "none")


def test_paths_of_every_kind(tmp_path, monkeypatch, filled):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "relative",
        "~/home",
        "sp ace",
        "ü#%20?|",
        b"bytes",
        "slash/",
        tmp_path / "pathlib",
        f"file://{tmp_path}/url",
    ):
        store = new_store(name, 7)
        monkeypatch.chdir("/")
        store.write(0, expected())
        assert MarginStore.open(store.path).verify() == []
        np.testing.assert_array_equal(store.read().margin, expected().margin)
        monkeypatch.chdir(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["relative", "home", "sp ace", "ü#%20?|", "bytes", "slash", "pathlib", "url"]
    )
    inner = new_store("home/inner", 7)  # a store within a store disturbs neither
    assert (MarginStore.open("home").verify(), inner.verify()) == ([], [])
    shutil.move(shutil.copytree(filled, tmp_path / "copy"), tmp_path / "moved")
    assert_equal(measure("moved", keep_coordinates=True).read(), expected())
    in_memory = new_store("memory://m", 7)
    in_memory.write(0, expected())
    np.testing.assert_array_equal(in_memory.read().margin, expected().margin)


def test_metadata_of_a_killed_creation_are_no_obstacle(tmp_path):
    new_store(tmp_path / "m")
    (tmp_path / "m/zarr.json").unlink()
    new_store(tmp_path / "m", 3).write(0, part_of(expected(), slice(3)))
    assert MarginStore.open(tmp_path / "m").missing() == [1, 2]
    (tmp_path / "m/zarr.json").unlink()
    with pytest.raises(FileExistsError, match=r"there is something else at"):  # whose margins stay
        new_store(tmp_path / "m", 3)


def test_a_store_that_another_process_is_making_is_not_damaged(tmp_path, monkeypatch):
    whole = new_store(tmp_path / "whole", 3)
    shutil.copytree(tmp_path / "whole", tmp_path / "m")
    late = [tmp_path / "m" / name / "zarr.json" for name in ARRAYS]
    for file in late:
        file.unlink()
    read = _store_files.Files.read

    def read_and_write(self, *names, **settings):
        """What there is now; then the other process writes the rest."""
        contents = read(self, *names, **settings)
        for file in late:
            shutil.copy(tmp_path / "whole" / file.relative_to(tmp_path / "m"), file)
        return contents

    store = MarginStore.open(tmp_path / "m")
    monkeypatch.setattr(_store_files.Files, "read", read_and_write)
    assert store.set_damaged_aside() == []
    assert not (tmp_path / "m-damaged").exists()
    assert (store.verify(), store.missing()) == ([], whole.missing())


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path, monkeypatch):
    """A path where there is nothing yet: in a folder, or in a bucket on this machine that works as Google's do."""
    if request.param == "folder":
        yield tmp_path / "m"
        return
    with bucket() as address:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        yield "gs://bucket/folder/m.zarr"


def test_a_store_anywhere_holds_the_same_and_goes_on(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(MarginStore, "write", lambda *arguments: None)
        measure(place, keep_coordinates=True)
    assert MarginStore.open(place).missing() == [0, 1, 2]
    store = measure(place, keep_coordinates=True)
    assert_equal(store.read(), expected())
    assert (store.verify(), store.missing()) == ([], [])
    with pytest.raises(ValueError, match=r"^.* holds margins of other images: some of images 0 to 2 differ"):
        measure(place, IMAGES[::-1], keep_coordinates=True)
    store._files.write({"gap/c/0/1": b"damaged", "zarr.json": None})
    with pytest.raises(FileExistsError, match=r"^there is something else at .* already: choose another path"):
        new_store(place, dimensions=[8, 8, 8])
    store.set_attributes({})
    with pytest.warns(UserWarning, match=r" had 1 damaged file \(gap/c/0/1\): they are now in .*-damaged, and"):
        assert_equal(measure(place, keep_coordinates=True).read(), expected())
    assert _store_files.Files(f"{store.path}-damaged").read("gap/c/0/1") == [b"damaged"]


def at_the_last_moment(monkeypatch, act):
    """Has `act` called when the next store has found its path free, just before it writes its first file."""
    write = _store_files.Files.create

    def interleaved(self, *arguments):
        monkeypatch.setattr(_store_files.Files, "create", write)
        act()
        return write(self, *arguments)

    monkeypatch.setattr(_store_files.Files, "create", interleaved)


def test_of_two_measurements_that_make_one_store_one_is_refused(place, monkeypatch):
    at_the_last_moment(monkeypatch, lambda: measure(place, keep_coordinates=True))
    with pytest.raises(
        ValueError, match=r"holds margins of another solver: DeepFool\(.*100\) there, DeepFool\(.*7\) here"
    ):
        measure(place, solver=solvers.DeepFool(max_steps=7), keep_coordinates=True)
    store = MarginStore.open(place)
    assert (store.missing(), store.verify()) == ([], [])
    assert_equal(store.read(), expected())


def test_a_measurement_joins_the_same_one_that_has_just_made_the_store(place, monkeypatch):
    """With other chunks, too, and before the other one has written more than the attributes."""

    class Killed(BaseException):
        pass

    def be_killed(*arguments):
        raise Killed

    def make():
        with monkeypatch.context() as patch:
            patch.setattr(_store_files.Files, "write", be_killed)
            with pytest.raises(Killed):
                measure(place, keep_coordinates=True)

    at_the_last_moment(monkeypatch, make)
    store = measure(place, keep_coordinates=True, chunk_size=2)
    assert (store.chunk_size, store.missing(), store.verify()) == (3, [], [])
    assert_equal(store.read(), expected())
    at_the_last_moment(monkeypatch, lambda: None)
    with pytest.raises(
        FileExistsError, match=r"^there is a store at .* already: choose another path, or move it away$"
    ):
        new_store(place)


def test_two_stores_made_at_one_path_at_the_same_moment(place, monkeypatch):
    at_the_last_moment(monkeypatch, lambda: new_store(place, attributes={"mine": "first"}))
    with pytest.raises(
        FileExistsError, match=r"^there is a store at .* already: choose another path, or move it away$"
    ):
        new_store(place, 7, attributes={"mine": "second"})
    store = MarginStore.open(place)
    assert (store.attributes["mine"], store.chunk_size, store.verify()) == ("first", 1, [])


def test_an_address_that_does_not_answer_is_named_soon(monkeypatch):
    """Its connections are taken, but nothing comes back: as behind a firewall, TensorStore would wait."""
    monkeypatch.setattr(_store, "SECONDS_TO_OPEN", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        for use in (measure, new_store, MarginStore.open):
            with pytest.raises(OSError, match=r"^gs://far/m.zarr can't be reached") as caught:
                use("gs://far/m.zarr")
            assert str(caught.value) == (
                "gs://far/m.zarr can't be reached (it does not answer): check the address, the network and your "
                "credentials"
            )


def test_results_that_do_not_fit_are_refused(tmp_path):
    store = new_store(tmp_path / "m", 3)
    fits = part_of(expected(), slice(3))
    cases = {
        "chunk must be from 0 to 2, got 3": (3, fits),
        "chunk must be a whole number, got 'a'": ("a", fits),
        r"result must have margins \(3, 1\) for \(subspaces, images\) of chunk 2, got \(3, 3\)": (2, fits),
        "result has solver 'other', but the store has 'DeepFool": (0, dataclasses.replace(fits, solver="other")),
        "result has precision 'low', but the store has 'highest'": (0, dataclasses.replace(fits, precision="low")),
        "result has margins in float64, but the store holds float32": (
            *(0, dataclasses.replace(fits, margin=fits.margin.astype(float))),
        ),
        r"image_sha256 must be 64 hexadecimal digits for each of the 3 images, got \['abc'\]": (0, fits, ["abc"]),
        r"image_sha256 must be 64 hexadecimal digits for each of the 3 images, got \['0{64}'\]": (0, fits, [64 * "0"]),
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=f"^{message}"):
            store.write(*arguments)
    for ask in (store.images_of, store.image_sha256):
        with pytest.raises(ValueError, match=r"^chunk must be from 0 to 2, got -1$"):
            ask(-1)
    with pytest.raises(ValueError, match=r"^chunk 0 of .* is missing or damaged: go on with measure_to_store$"):
        store.image_sha256(0)
    with pytest.raises(
        ValueError, match=r"^result must have the coordinates of all subspaces: measure with keep_coord"
    ):
        new_store(tmp_path / "n", 3, dimensions=[8, 8, 8]).write(0, dataclasses.replace(fits, coordinates=None))
    with pytest.raises(ValueError, match=r"^dimensions must be those of the 3 subspaces, got 1 numbers$"):
        new_store(tmp_path / "o", dimensions=[8])
    with pytest.raises(ValueError, match=r"^dtype must be float32 or float64, got int32$"):
        new_store(tmp_path / "o", dtype="int32")
    with pytest.raises(ValueError, match=r"^chunk_size must be at least 1, got 0$"):
        new_store(tmp_path / "o", 0)
    with pytest.raises(
        ValueError, match=r"m was not made by measure_to_store, which can't complete it: choose another path$"
    ):
        measure(tmp_path / "m")


def test_half_precision_is_kept_as_float32(tmp_path):
    halves = {name: getattr(expected(), name).astype(jnp.bfloat16) for name in ("margin", "gap", "alignment")}
    store = new_store(tmp_path / "m", 7)
    store.write(0, dataclasses.replace(expected(), **halves))
    for name, numbers in halves.items():
        assert getattr(store.read(), name).dtype == np.float32
        np.testing.assert_array_equal(getattr(store.read(), name), numbers.astype(np.float32))


def test_a_store_of_another_version_is_refused(copied):
    content = json.loads((copied / "zarr.json").read_bytes())
    content["attributes"]["hmt_jax_format"] = 1
    (copied / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^the store at .* has format 1, and this version of hmt_jax reads 2$"):
        MarginStore.open(copied)
    zarr.create_group(copied.with_name("other"))
    with pytest.raises(
        ValueError, match=r"^zarr.json of .*other is damaged, or not that of a store of margins: put back"
    ):
        MarginStore.open(copied.with_name("other"))


@pytest.mark.parametrize("change", [{"chunk_size": 0}, {"num_images": "7"}, {"colour": 3}])
def test_a_layout_that_makes_no_sense_is_refused(change, copied):
    """Even if the checksum of the attributes is right."""
    attributes = json.loads((copied / "zarr.json").read_bytes())["attributes"]
    attributes = {name: value for name, value in attributes.items() if name not in ("sha256", "hmt_jax_format")}
    attributes["layout"] |= change
    checksum = hashlib.sha256(json.dumps(attributes, indent=2, sort_keys=True).encode()).hexdigest()
    content = {"attributes": {**attributes, "hmt_jax_format": 2, "sha256": checksum}}
    (copied / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^zarr.json of .* is damaged, or not that of a store of margins: put back"):
        MarginStore.open(copied)


def test_readers_see_whole_chunks_while_others_are_written(tmp_path):
    """Partial results are columns of the whole one, however far the writer has come."""
    store = new_store(tmp_path / "m")
    seen = set()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [store.write(n, part_of(expected(), [n])) for n in (3, 1, 6, 0, 2, 5, 4)])
        while not writing.done() or len(seen) == 0:
            reader = MarginStore.open(tmp_path / "m")
            if len(reader.missing()) == 7:
                continue
            margins = reader.read(partial=True).margin
            columns = [expected().margin.T.tolist().index(column) for column in margins.T.tolist()]
            assert columns == sorted(columns)
            seen.add(len(columns))
        writing.result()
    assert (store.missing(), store.verify()) == ([], [])


KILLED = """
import sys, hmt_jax, helpers, jax
from examples import SHAPE, diagonal
def progress(*numbers):
    print(*numbers, flush=True)
images = helpers.random_images(7, *SHAPE, seed=7, dtype="float32")
settings = {"chunk_size": 1, "batch_size": 9, "devices": jax.devices()[:1], "keep_coordinates": True}
solver = hmt_jax.solvers.DeepFool()
hmt_jax.measure_to_store(
    helpers.tanh_classifier(), images, diagonal(), solver, sys.argv[1], progress=progress, **settings
)
"""


@pytest.mark.slow
def test_a_killed_measurement_goes_on_as_if_nothing_had_happened(tmp_path):
    """Killed while it starts, while it measures, and as soon as the status of a chunk is there."""
    # Of each process, what it compiles is all but nothing to this test.
    quickly = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    kept = {}
    for lines, chunks in ((0, 0), (1, 0), (1, 2)):
        process = start(KILLED, tmp_path / "m", **quickly)
        for _ in range(lines):
            process.stdout.readline()
        while len(list(tmp_path.glob("m/status/c/0/?"))) < chunks:
            assert process.poll() is None
            time.sleep(1e-3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("m/status/c/0/?")}
        assert kept.items() <= now.items()  # nothing is measured again
        kept = now
    processes = [start(KILLED, tmp_path / name, **quickly) for name in ("m", "whole")]
    counts = [[int(line.split()[0]) for line in each.communicate()[0].splitlines()] for each in processes]
    assert [(each[0], each[-1]) for each in counts] == [(3 * len(kept), 21), (0, 21)]
    found, wanted = files_of(tmp_path / "m"), files_of(tmp_path / "whole")
    assert found.keys() == wanted.keys()  # no lock files either
    assert [name for name in found if found[name] != wanted[name]] == ["zarr.json"]
    assert MarginStore.open(tmp_path / "m").verify() == []
