"""Margins chunk by chunk, and images as they come: arrays, memory maps, and batches of a loader."""

import itertools
import mmap
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import ARRAYS, SHAPE, WHOLE_NUMBERS, diagonal
from helpers import random_images, solve_all, tanh_classifier, tanh_logits, tanh_parameters, with_parameters

import hmt_jax
from hmt_jax import MarginResult
from hmt_jax.margins import _sizes

# Eight bits, so that the same images can be whole numbers and floats; DeepFool takes 1 to 5 steps.
PIXELS = (256 * random_images(7, *SHAPE, seed=7)).astype(np.uint8)
IMAGES = PIXELS.astype(np.float32) / 255


@pytest.fixture(autouse=True)
def chunks_of_three(monkeypatch):
    """Nine pairs at a time in three windows are three images: of seven, chunks of 3, 3 and 1."""
    monkeypatch.setattr(_sizes, "_ON_CPU", _sizes._ON_CPU._replace(bytes_of_chunk=1, pairs_per_lane=1))


def measure(images, classifier=None, measure=hmt_jax.measure_in_chunks, **settings):
    settings = {"batch_size": 9, "devices": jax.devices()[:1], "keep_coordinates": True} | settings
    classifier = tanh_classifier() if classifier is None else classifier
    return measure(classifier, images, diagonal(), hmt_jax.solvers.DeepFool(), **settings)


@pytest.fixture(scope="module")
def expected():
    """For each window, the solutions of single images."""
    return [solve_all(tanh_classifier(), IMAGES, window) for window in diagonal()]


def assert_expected(result, expected, images=slice(None)):
    """The result is that of the images one by one."""
    for r, solutions in enumerate(expected):
        for name in WHOLE_NUMBERS:
            np.testing.assert_array_equal(getattr(result, name)[r], getattr(solutions, name)[images], err_msg=name)
        # Single precision, and every step of DeepFool amplifies its rounding; gaps are differences of logits up to 10.
        for name in ("margin", "gap", "alignment"):
            found, wanted = getattr(result, name)[r], getattr(solutions, name)[images]
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(result.coordinates[r], solutions.coordinates[images], rtol=0, atol=1e-4)


def lengths(results):
    return [result.margin.shape[1] for result in results]


def test_chunks_are_parts_of_the_whole(expected):
    parts = list(measure(IMAGES))
    assert lengths(parts) == [3, 3, 1]
    for number, part in enumerate(parts):
        assert_expected(part, expected, slice(3 * number, 3 * number + 3))
    calls = []
    whole = measure(IMAGES, measure=hmt_jax.measure_margins, progress=lambda *numbers: calls.append(numbers))
    joined = MarginResult.concatenate(parts)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    for found, wanted in zip(joined.coordinates, whole.coordinates, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert joined.work == whole.work
    assert joined.work.num_lanes == 9
    # A step a pair, and one for the linearization at each image.
    assert joined.work.num_busy_lane_steps == whole.num_steps.sum() + 7
    assert calls == sorted(calls)
    assert calls[-1] == (21, 21)


@pytest.mark.slow
def test_chunks_do_not_matter_in_double_precision(x64):
    """Where nothing is rounded enough to be seen, the chunks are those of all images at once."""
    images = random_images(7, *SHAPE)
    parts = MarginResult.concatenate(measure(images))
    whole = measure(images, measure=hmt_jax.measure_margins, batch_size=21)
    for name in WHOLE_NUMBERS:
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_allclose(parts.margin, whole.margin, rtol=1e-10)


# Kinds of images


def memory_map(tmp_path, mode):
    np.save(tmp_path / "images.npy", IMAGES)
    return np.load(tmp_path / "images.npy", mmap_mode=mode)


def batches(*sizes, images=IMAGES):
    ends = np.cumsum(sizes)
    return [images[end - size : end] for size, end in zip(sizes, ends, strict=True)]


KINDS = {
    "an array": lambda tmp_path: IMAGES,
    "an array of JAX": lambda tmp_path: jnp.asarray(IMAGES),
    "nested lists": lambda tmp_path: IMAGES.tolist(),
    "a list of images": lambda tmp_path: list(IMAGES),
    "a memory map": lambda tmp_path: memory_map(tmp_path, "r"),
    "a private memory map": lambda tmp_path: memory_map(tmp_path, "c"),
    "a list of batches": lambda tmp_path: batches(2, 5),
    "a generator of unequal batches": lambda tmp_path: iter(batches(1, 4, 2)),
    "batches of JAX": lambda tmp_path: map(jnp.asarray, batches(3, 3, 1)),
    "a single batch": lambda tmp_path: [IMAGES],
    "empty batches between": lambda tmp_path: batches(0, 2, 0, 5, 0),
    "batches with labels": lambda tmp_path: ((each, np.zeros(len(each), int)) for each in batches(4, 3)),
    "lists of images and labels": lambda tmp_path: [[each, np.zeros(len(each), int)] for each in batches(5, 2)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_may_come_in_any_form(kind, expected, tmp_path):
    parts = list(measure(KINDS[kind](tmp_path)))
    assert lengths(parts) == [3, 3, 1]
    assert_expected(MarginResult.concatenate(parts), expected)


@pytest.mark.slow
@pytest.mark.parametrize("images", [PIXELS, batches(1, 4, 2, images=PIXELS)], ids=["array", "batches"])
def test_8_bit_images_are_divided_by_255(images, expected):
    parts = list(measure(images))
    assert lengths(parts) == [3, 3, 1]
    assert parts[0].margin.dtype == np.float32
    assert_expected(MarginResult.concatenate(parts), expected)
    alone = hmt_jax.measure_margin(tanh_classifier(), PIXELS[3], diagonal()[1], hmt_jax.solvers.DeepFool())
    np.testing.assert_allclose(alone.margin, expected[1].margin[3], rtol=1e-4)


def test_changes_to_a_private_memory_map_are_kept(expected, tmp_path):
    images = memory_map(tmp_path, "c")
    images[0] = IMAGES[6]
    assert_expected(MarginResult.concatenate(measure(images)), expected, [6, 1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(images[0], IMAGES[6])
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), IMAGES)


@pytest.mark.slow
def test_fewer_images_than_a_chunk_holds(expected):
    for images in (IMAGES[1:3], [IMAGES[1:2], IMAGES[2:3]]):
        (part,) = measure(images)
        assert_expected(part, expected, slice(1, 3))


# One chunk after the other


def test_batches_are_read_when_they_are_needed(expected):
    """Even without an end."""
    num_read = 0

    def endless():
        nonlocal num_read
        for images in itertools.cycle(batches(1, 4, 2)):
            num_read += 1
            yield images

    results = measure(endless())
    assert num_read == 1  # for the shape of the images
    assert_expected(next(results), expected, slice(0, 3))
    assert num_read == 2
    assert_expected(next(results), expected, slice(3, 6))
    assert num_read == 3
    assert_expected(next(results), expected, [6, 0, 1])
    results.close()


def test_progress_counts_the_images_that_were_read():
    """The number of images in a stream is known only at its end."""
    calls = []
    stream = iter(batches(1, 4, 2))
    measure(stream, measure=hmt_jax.measure_margins, progress=lambda *numbers: calls.append(numbers))
    assert calls == sorted(calls)
    assert [num_all for _, num_all in calls] == sorted(num_all for _, num_all in calls)
    assert {num_all for _, num_all in calls} == {9, 18, 21}
    assert calls[-1] == (21, 21)


@pytest.mark.slow
def test_all_chunks_share_one_compilation():
    traces = []

    def counted(parameters, images):
        traces.append(images.shape)
        return tanh_logits(parameters, images)

    classifier = with_parameters(counted, tanh_parameters())
    results = measure(IMAGES, classifier)
    next(results)
    num_traces = len(traces)
    assert num_traces > 0
    assert lengths(results) == [3, 1]
    assert lengths(measure(iter(batches(1, 4, 2)), classifier)) == [3, 3, 1]
    assert len(traces) == num_traces


@pytest.mark.slow
def test_nothing_is_left_open_between_two_chunks():
    """Neither the precision nor the programs of a plain function, so that two measurements may take turns."""

    def make(parameters):
        return lambda images: tanh_logits(parameters, images)

    both = [tanh_parameters(seed) for seed in range(2)]
    alone = [list(measure(IMAGES, make(parameters))) for parameters in both]
    turns = [measure(IMAGES, make(parameters)) for parameters in both]
    for number in range(3):
        for results, wanted in zip(turns, alone, strict=True):
            np.testing.assert_array_equal(next(results).margin, wanted[number].margin)
            assert jax.config.jax_default_matmul_precision is None
    assert not np.isclose(alone[0][0].margin, alone[1][0].margin).any()


# Images that are refused


@pytest.mark.parametrize(
    "make", [list, lambda: iter([]), lambda: batches(0, 0)], ids=["list", "iterator", "empty ones"]
)
def test_there_must_be_a_batch(make):
    with pytest.raises(ValueError, match=r"^images is (empty|an iterable without batches)"):
        measure(make())


def test_an_iterator_is_read_once():
    images = iter(batches(4, 3))
    list(measure(images))
    with pytest.raises(
        ValueError, match=r"^images is an iterable without batches: pass a new one, since an iterator is read once$"
    ):
        measure(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda images: images.transpose(0, 2, 1, 3),
            r"^all batches must have images of one shape and type, but batch 2 has \(5, 4, 2\) float32, and the first "
            r"one \(4, 5, 2\) float32$",
        ),
        (
            lambda images: (255 * images).astype(np.uint8),
            r"^all batches must have images of one shape and type, but batch 2 has \(4, 5, 2\) uint8, and the first",
        ),
        (lambda images: images[0], r"^images must have shape \(N, height, width, channels\), got \(4, 5, 2\); add the"),
        (lambda images: images.astype(int), r"^images must be uint8, or floating point in \[0, 1\], got int"),
    ],
    ids=["shape", "type", "no batch axis", "whole numbers"],
)
def test_all_batches_must_be_alike(change, message, expected):
    first, second, third = batches(2, 2, 3)
    results = measure(iter([first, second, change(third)]))
    assert_expected(next(results), expected, slice(0, 3))  # before the third one was read
    assert_expected(next(results), expected, slice(3, 4))  # all that came before it
    with pytest.raises(ValueError, match=message):
        next(results)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            3,
            r"^images must be an array \(N, height, width, channels\), a source of images by number, or an iterable of "
            r"batches, got int$",
        ),
        (
            iter([{"image": IMAGES}]),
            r"^images must be an iterable of arrays, or of pairs \(images, labels\), but batch 0 is of type dict$",
        ),
        (
            iter(["images.npy"]),
            r"^images must be an iterable of arrays, or of pairs \(images, labels\), but batch 0 is of type str$",
        ),
    ],
)
def test_what_is_no_batch_is_refused(images, message):
    with pytest.raises(TypeError, match=message):
        measure(images)


def test_errors_of_a_loader_pass_through(expected):
    def failing():
        yield from batches(2, 2)
        raise OSError("the disk is gone")

    results = measure(failing())
    assert_expected(next(results), expected, slice(0, 3))
    assert_expected(next(results), expected, slice(3, 4))  # nothing that was read is lost
    with pytest.raises(OSError, match=r"^the disk is gone$"):
        next(results)
    with pytest.raises(OSError, match=r"^the disk is gone$"):
        measure(failing(), measure=hmt_jax.measure_margins)


# Sources


class Source:
    """Images by number, as a dataset of PyTorch has them; it remembers which ones were read."""

    def __init__(self, samples):
        self.samples, self.numbers = samples, []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, number):
        self.numbers.append(number)
        return self.samples[number]


@pytest.mark.parametrize("samples", [IMAGES, PIXELS, [(image, 5) for image in IMAGES], [*map(jnp.asarray, IMAGES)]])
def test_images_of_a_source(samples, expected):
    source = Source(samples)
    parts = list(measure(source))
    assert lengths(parts) == [3, 3, 1]
    assert_expected(MarginResult.concatenate(parts), expected)
    assert sorted(source.numbers) == [0, *range(7)]  # the first one also for its shape


def test_a_list_of_images_with_labels_is_a_source(expected):
    assert_expected(measure([(image, 1) for image in IMAGES], measure=hmt_jax.measure_margins), expected)


def test_a_source_is_read_one_chunk_ahead():
    source = Source(IMAGES)
    results = measure(source)
    next(results)
    results.close()  # and waits for what is being read
    assert set(source.numbers) <= {*range(6)}


def test_a_source_warns_of_its_range():
    with pytest.warns(hmt_jax.PixelRangeWarning, match=r"^pixels of 3 of 3 images leave \[0, 1\], ") as warned:
        measure(Source(2 + IMAGES), measure=hmt_jax.measure_margins)
    assert len(warned) == 1
    assert warned[0].filename == __file__


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ValueError, r"^images is empty: pass at least one image$"),
        ([IMAGES[0].astype(int)], ValueError, r"^images must be "),
        (
            [*IMAGES[:3], IMAGES[3, :-1]],
            ValueError,
            r"^all images must have one shape and type, but image 3 has \(3, 5, 2\) float32, and the first one has "
            r"\(4, 5, 2\) float32: resize or crop them$",
        ),
        ([*IMAGES[:3], "3.png"], ValueError, r"but image 3 is no array \(height, width, channels\), and the first"),
        ([*IMAGES[:3], PIXELS[3]], ValueError, r"but image 3 has \(4, 5, 2\) uint8, and the first one"),
    ],
)
def test_images_of_a_source_that_do_not_fit(samples, error, message):
    with pytest.raises(error, match=message):
        measure(Source(samples), measure=hmt_jax.measure_margins)


def test_errors_of_a_source_come_after_the_chunks_before_them(expected):
    class Failing(Source):
        def __getitem__(self, number):
            if number == 4:
                raise OSError("the disk is gone")
            return super().__getitem__(number)

    results = measure(Failing(IMAGES))
    assert_expected(next(results), expected, slice(0, 3))
    with pytest.raises(OSError, match=r"^the disk is gone$"):
        next(results)


# Arguments


def test_arguments_are_checked_before_the_first_chunk():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        measure(IMAGES, batch_size=0)
    with pytest.raises(TypeError, match="classifier must be callable"):
        measure(IMAGES, "lenet")


# Warnings


def test_a_stream_warns_of_its_range_once_and_8_bit_images_of_nothing():
    with pytest.warns(hmt_jax.PixelRangeWarning, match=r"^pixels of 3 of 3 images leave \[0, 1\], ") as warned:
        for _ in measure([2 + each for each in batches(1, 4, 2)]):
            pass
    assert len(warned) == 1
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lengths(measure(batches(1, 4, 2, images=PIXELS)))


def test_logits_that_are_never_finite_are_an_error_after_the_last_chunk():
    parameters = [*tanh_parameters()[:3], np.full(5, np.nan)]
    results = measure(IMAGES, with_parameters(tanh_logits, parameters))
    for size in (3, 3, 1):
        assert next(results).margin.shape == (3, size)
    with pytest.raises(ValueError, match="returns NaN or infinite logits for every one of 7 finite images: check its"):
        next(results)


def test_images_without_a_label_in_one_chunk_are_no_error(expected):
    """The others have one."""
    images = IMAGES.copy()
    images[:3] = np.nan
    found = MarginResult.concatenate(measure(images))
    assert np.isnan(found.margin[:, :3]).all()
    np.testing.assert_allclose(found.margin[:, 3:], [each.margin[3:] for each in expected], rtol=1e-4)


def test_a_stream_may_reuse_its_memory(expected):
    def batches():
        buffer = np.empty_like(IMAGES[:2])
        for first in (0, 2, 4):
            buffer[:] = IMAGES[first : first + 2]
            yield buffer

    assert_expected(MarginResult.concatenate(measure(batches())), expected, slice(6))


def test_private_mappings_keep_what_was_written_to_them(expected):
    private = mmap.mmap(-1, IMAGES.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    images = np.ndarray(IMAGES.shape, IMAGES.dtype, private)
    images[:] = IMAGES
    assert_expected(MarginResult.concatenate(measure(images)), expected)
    np.testing.assert_array_equal(images, IMAGES)
