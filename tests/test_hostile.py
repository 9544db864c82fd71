"""Thousands of random and hostile inputs: each has the right result, or is refused in a sentence.

`--examples 10000` is the whole campaign, which takes minutes.
"""

import io
import itertools
import json
import os
import pickle
import resource
import struct
import warnings
import zipfile
import zlib

import hostile_arguments
import hypothesis
import jax
import numpy as np
import pytest
from hostile import OF_FILES, TALLY, check_damage, check_refusal, contents_of, is_same, rewrite, settings
from hostile_arguments import IMAGES, RIGHT_IMAGES, WRONG, WRONG_OF_STORES
from hypothesis import strategies as st
from linear_cases import FORMS, SOLVERS, cases, check_image, contained, inputs_of
from readers import PIXELS, READERS, WEIGHTS

import hmt_jax

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def figures():
    """Prints what has happened to the inputs; `-n0 -s` shows it."""
    yield
    kinds = sorted({kind for kind, _ in TALLY})
    counts = {kind: {outcome: TALLY[kind, outcome] for each, outcome in TALLY if each == kind} for kind in kinds}
    lines = [f"{kind}: {sum(outcomes.values())} inputs, {outcomes}" for kind, outcomes in counts.items()]
    print("", f"{TALLY.total()} inputs", *lines, sep="\n")


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files(kind, tmp_path, num_examples, watch):
    reader, folder = READERS[kind], tmp_path / "files"
    folder.mkdir()
    check_damage(kind, reader, folder, num_examples // 20 // reader.cost, watch)
    assert [each.name for each in tmp_path.iterdir()] == ["files"]


@pytest.mark.parametrize("name", SOLVERS)
def test_linear_classifiers(name, num_examples, watch):
    num_forms = min(max(2, num_examples // 400), len(FORMS))

    @settings(num_examples // 5)
    @hypothesis.given(cases(num_forms))
    def check(case):
        watch()
        inputs = inputs_of(case)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = hmt_jax.measure_margins(
                    inputs.classifier,
                    contained(inputs.images, case.container),
                    inputs.subspace,
                    SOLVERS[name],
                    batch_size=max(case.form.num_images // 2, 1),
                    devices=jax.devices()[:1],
                )
            except ValueError as error:
                check_refusal(error, "classifier returns NaN or infinite logits for every one of ")
                assert case.num_ruled_out == case.form.num_classes
                TALLY["measured", "refused"] += 1
                return
        for warning in caught:
            check_refusal(warning.message, kinds=UserWarning)
        for n in range(case.form.num_images):
            TALLY["measured", check_image(name, inputs, result, n).name] += 1

    check()


ARGUMENTS = {
    "classifier": hostile_arguments.CLASSIFIER,
    "images": IMAGES,
    "subspaces": hostile_arguments.WHOLE,
    "solver": SOLVERS["deepfool"],
    "devices": jax.devices()[:1],
    "batch_size": 1,  # so that streams share programs with arrays
}


@pytest.mark.parametrize("name", RIGHT_IMAGES)
def test_odd_images_have_the_margins_of_ordinary_ones(name):
    expected = hmt_jax.measure_margins(**ARGUMENTS).margin
    found = hmt_jax.measure_margins(**ARGUMENTS | {"images": RIGHT_IMAGES[name]()}).margin
    assert found.shape[1] > 1
    np.testing.assert_allclose(found, expected[:, : found.shape[1]], rtol=1e-5)


def test_hostile_arguments(num_examples, tmp_path, watch):
    @settings(num_examples // 10)
    @hypothesis.given(st.sampled_from([*WRONG, *WRONG_OF_STORES]), st.integers(0, 2**20))
    def check(name, seed):
        watch()
        rng = np.random.default_rng(seed)
        is_of_store = name in WRONG_OF_STORES or rng.uniform() < 0.1
        measure = hmt_jax.measure_to_store if is_of_store else hmt_jax.measure_margins
        arguments = ARGUMENTS | ({"path": tmp_path / "it.zarr", "num_images": None} if is_of_store else {})
        arguments |= {**WRONG, **WRONG_OF_STORES}[name](rng)
        try:
            with warnings.catch_warnings(record=True):
                result = measure(**arguments)
        except hostile_arguments.OwnError:
            TALLY["hostile", "the caller's own error"] += 1
        except Exception as error:
            check_refusal(error)
            TALLY["hostile", type(error).__name__] += 1
        else:
            raise AssertionError(f"measured {result}")

    check()


class Harmful:
    """An object whose pickle makes a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def archive(*members):
    """A zip archive of members that zipfile itself would not write twice or outside a folder."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def head(shape, dtype="|u1"):
    """The head of an npy file that claims an array of this shape, and a few numbers."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(64)


def safetensors(shape):
    size = int(np.prod(shape)) * 4
    text = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]} for name in WEIGHTS}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def png(side):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    pixels = chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)) + pixels


PICKLE = pickle.dumps(Harmful())
OUTSIDE = ("../outside.npy", "/tmp/../outside.npy", "..\\outside.npy")
HOSTILE = {
    "a pickle": PICKLE,
    "an array of objects": npy(np.array([Harmful()], dtype=object)),
    "arrays of objects": archive(("images.npy", npy(np.array([Harmful()], dtype=object)))),
    "an archive with a pickle": archive(("it/data.pkl", PICKLE), ("it/version", b"3")),
    "a pickle named as an array": archive(("images.npy", PICKLE), ("linear.weight.npy", PICKLE)),
    "names of files outside": archive(*((name, npy(np.ones(3))) for name in OUTSIDE)),
    "one name twice": archive(("images.npy", npy(PIXELS)), ("images.npy/", b""), ("images", npy(PIXELS))),
    "10^12 numbers": head((10**6, 1000, 1000, 1)),
    "10^12 numbers in an archive": archive(("images.npy", head((10**6, 1000, 1000, 1)))),
    "10^30 numbers in an archive": archive(("images.npy", head((10**10, 10**10, 10**10, 1)))),
    "lengths below 0": archive(("images.npy", head((-1, 4, 4, 1)))),
    "10^12 weights": safetensors([10**6, 10**6]),
    "10^12 bytes of a head": (10**12).to_bytes(8, "little") + b"{" + bytes(64),
    "10^10 pixels": png(10**5),
    "10^12 pixels": b"P5 1000000 1000000 255\n" + bytes(64),
    "brackets in brackets": 10**5 * b"[",
    "braces in braces": 10**5 * b'{"a":',
    "a head of brackets": b"\x93NUMPY\x01\x00\x10\x27" + 10**4 * b"(",
}


@pytest.mark.parametrize("kind", READERS)
def test_no_file_runs_code_or_writes_or_takes_memory(kind, tmp_path, monkeypatch, watch):
    reader, folder = READERS[kind], tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    reader.write(folder)
    whole, contents = reader.read(folder), contents_of(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    few = sorted(contents, key=len)[:2]  # those of metadata, in folders of many files
    for content, name in itertools.product(HOSTILE.values(), few):
        watch()
        (folder / name).write_bytes(content)
        try:
            assert is_same(reader.read(folder), whole)
        except OF_FILES as error:
            check_refusal(error, str(folder), kinds=OF_FILES)
        assert [each.name for each in tmp_path.iterdir()] == ["files"]
        assert reader.moves or contents_of(folder).keys() == contents.keys()
        rewrite(folder, contents)
    # In KiB. What is claimed would take a thousand times as much.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19
