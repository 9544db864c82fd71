"""Images, subspaces, classifiers and settings that can't be measured: each is refused in one clear sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import NUM_PIXELS, SHAPE, images_of_two_classes, measure_two, two_classes

import hmt_jax
from hmt_jax import subspaces

WHOLE = subspaces.full(SHAPE)


def two_logits(images):
    return two_classes()(images)


# Images


@pytest.mark.parametrize("shape", [(4, 5), SHAPE, (1, 2, 4, 5, 2)])
def test_the_rank_of_the_images_is_checked(shape):
    with pytest.raises(
        ValueError,
        match=r"^images must have shape \(N, height, width, channels\), got \(.*\); add the channel axis of grey "
        r"images with images\[\.\.\., None\], and the batch axis of one image with image\[None\]$",
    ):
        hmt_jax.measure_margins(two_classes(), np.zeros(shape, np.float32), WHOLE)


def test_a_single_image_has_three_axes():
    for shape in ((4, 5), (1, *SHAPE)):
        with pytest.raises(
            ValueError,
            match=r"^image must have shape \(height, width, channels\), got \(.*\); add the channel axis of a grey "
            r"image with image\[\.\.\., None\], and pass batches to measure_margins$",
        ):
            hmt_jax.measure_margin(two_classes(), np.zeros(shape, np.float32), WHOLE)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match=r"^images is empty, with shape \(0, 4, 5, 2\): pass at least one image$"):
        measure_two(images_of_two_classes(num_images=0))


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint16"])
def test_images_are_8_bit_or_floating_point(dtype):
    message = rf"must be uint8, or floating point in \[0, 1\], got {dtype}; convert 8-bit images with "
    images = images_of_two_classes().astype(dtype)
    deep = r"\.astype\(np\.uint8\), and 16-bit ones with "
    with pytest.raises(ValueError, match=rf"^images {message}images{deep}images\.astype\(np\.float32\) / 65535$"):
        measure_two(images)
    with pytest.raises(ValueError, match=rf"^image {message}image{deep}image\.astype\(np\.float32\) / 65535$"):
        hmt_jax.measure_margin(two_classes(), images[0], WHOLE)


# Subspaces


@pytest.mark.parametrize("image_shape", [(4, 5, 3), (5, 4, 2)])
@pytest.mark.parametrize(
    "make",
    [
        subspaces.full,
        lambda shape: subspaces.dct_diagonal(shape, 2, 1),
        lambda shape: [WHOLE, subspaces.full(shape)],
    ],
    ids=["one", "many", "the last of two"],
)
def test_subspaces_must_be_for_the_shape_of_the_images(image_shape, make):
    with pytest.raises(
        ValueError,
        match=rf"^the subspaces are for images of shape \({', '.join(map(str, image_shape))}\), but images have shape "
        r"\(4, 5, 2\) after the batch axis; make the subspaces for that shape$",
    ):
        hmt_jax.measure_margins(two_classes(), images_of_two_classes(), make(image_shape))


def test_channels_belong_behind():
    images = images_of_two_classes().transpose(0, 3, 1, 2)
    with pytest.raises(
        ValueError,
        match=r"but images have shape \(2, 4, 5\) after the batch axis; pass images\.transpose\(0, 2, 3, 1\)$",
    ):
        hmt_jax.measure_margins(two_classes(), images, WHOLE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "subspaces must be one subspace of hmt_jax.subspaces or a list of them, got NoneType"),
        (lambda: 3, "subspaces must be one subspace of hmt_jax.subspaces or a list of them, got int"),
        (lambda: "full", "subspaces must be one subspace of hmt_jax.subspaces or a list of them, got str"),
        (
            lambda: {"whole": WHOLE},
            "subspaces must be one subspace of hmt_jax.subspaces or a list of them, got dict",
        ),
        (
            lambda: np.eye(NUM_PIXELS, dtype=np.float32),
            "every one of the subspaces must have methods coordinates and embed, got ndarray",
        ),
        (
            lambda: [WHOLE, subspaces.DCTWindow],
            "every one of the subspaces must have methods coordinates and embed, got ABCMeta",
        ),
        (
            lambda: [[WHOLE], WHOLE],
            "every one of the subspaces must have methods coordinates and embed, got list",
        ),
    ],
    ids=["None", "number", "text", "dict", "array", "class", "nested"],
)
def test_what_is_no_subspace_is_refused(make, message):
    with pytest.raises(TypeError, match=f"^{message}$"):
        hmt_jax.measure_margins(two_classes(), images_of_two_classes(), make())


def test_there_must_be_a_subspace():
    with pytest.raises(ValueError, match=r"^subspaces is empty: pass at least one subspace$"):
        hmt_jax.measure_margins(two_classes(), images_of_two_classes(), [])


def test_subspaces_that_are_no_pytrees_are_refused():
    class Whole:
        def coordinates(self, image):
            return image.ravel()

        def embed(self, z):
            return z.reshape(4, 5, 2)

    for given in (Whole(), [WHOLE, Whole()]):
        with pytest.raises(
            TypeError, match=r"^a subspace must be a pytree, but Whole is not registered as one: decorate"
        ):
            hmt_jax.measure_margins(two_classes(), images_of_two_classes(), given)


# Classifiers


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        (lambda images: (two_logits(images), images), r"^classifier must return one array, .*, got tuple: wrap it in"),
        (lambda images: {"logits": two_logits(images)}, r"^classifier must return one array, .*, got dict: wrap it in"),
        (
            lambda images: images.reshape(len(images), -1) @ np.ones((3, 2), np.float32),
            r"^classifier can't be applied to images of shape \(N, 4, 5, 2\): dot_general .*",
        ),
    ],
    ids=["tuple", "dict", "other shape"],
)
def test_what_a_classifier_returns_is_checked(classifier, message, batch_size):
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margins(classifier, images_of_two_classes(), WHOLE, batch_size=batch_size)


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        (
            lambda images: two_logits(images)[0],
            r"must map images \(N, height, width, channels\) to logits \(N, L\); for N = [0-9]+ it returned \(2,\)",
        ),
        (lambda images: two_logits(images).T, r"for N = ([0-9]+) it returned \(2, \1\)"),
        (
            lambda images: two_logits(images)[:, :1],
            r"classifier has one class only, so that no label can change; return two logits for a binary classifier, "
            r"such as \(0, logit\)",
        ),
        (
            lambda images: two_logits(images).round().astype(jnp.int32),
            "classifier must return logits in floating point, before any argmax, got int32",
        ),
    ],
    ids=["no batch axis", "transposed", "one class", "integers"],
)
def test_logits_are_checked(classifier, message):
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margins(classifier, images_of_two_classes(), WHOLE)
    with pytest.raises(ValueError, match=message):
        hmt_jax.measure_margin(classifier, images_of_two_classes()[0], WHOLE)


@pytest.mark.parametrize("classifier", [None, "lenet", np.eye(3)], ids=["None", "text", "array"])
def test_a_classifier_must_be_callable(classifier):
    message = r"^classifier must be callable on images \(N, height, width, channels\), got <class '.*'>"
    with pytest.raises(TypeError, match=message):
        hmt_jax.measure_margins(classifier, images_of_two_classes(), WHOLE)
    with pytest.raises(TypeError, match=message):
        hmt_jax.measure_margin(classifier, images_of_two_classes()[0], WHOLE)


# Settings


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (0, "batch_size must be at least 1, got 0"),
        (-2, "batch_size must be at least 1, got -2"),
        (2.5, r"batch_size must be a whole number, got 2\.5"),
    ],
)
def test_the_batch_size_is_checked(batch_size, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        measure_two(images_of_two_classes(), batch_size=batch_size)


def test_arrays_in_place_of_settings_are_named_in_one_line():
    for name in ("batch_size", "devices", "precision", "progress", "solver"):
        with pytest.raises((ValueError, TypeError), match=rf"^{name} must .* got (\[?)array\(\[\[\[\[.*\.\.\..*$"):
            measure_two(images_of_two_classes(), **{name: images_of_two_classes()})


def test_a_long_message_of_a_classifier_is_cut():
    def fail(images):
        raise ValueError(1000 * "long ")

    with pytest.raises(ValueError, match=r"^classifier can't be applied .*: (long )+l?o?n?g?\.\.\.; ") as caught:
        hmt_jax.measure_margins(fail, images_of_two_classes(), WHOLE)
    assert len(str(caught.value)) < 600


def test_there_must_be_a_device():
    with pytest.raises(ValueError, match=r"^devices is empty: pass at least one, or None for all local devices$"):
        measure_two(images_of_two_classes(), devices=[])


def test_progress_must_be_a_function():
    """It is checked before anything is compiled, since a call of it comes after that."""
    message = "progress must be a function of the numbers of finished pairs and of all pairs, or None, got True"
    with pytest.raises(TypeError, match=f"^{message}$"):
        measure_two(images_of_two_classes(), progress=True)


@pytest.mark.parametrize("name", ["known", "num_bisections", "num_lanes", "num_candidates", "overshoot", "max_steps"])
def test_settings_of_solvers_and_of_other_functions_are_no_arguments(name):
    with pytest.raises(TypeError, match=rf"measure_margins\(\) got an unexpected keyword argument '{name}'"):
        measure_two(images_of_two_classes(), **{name: 1})


@pytest.mark.slow
def test_arrays_of_jax_are_images_like_all_others():
    images = images_of_two_classes()
    found, expected = (measure_two(each).margin for each in (jax.device_put(images), images))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"devices": 1},
            TypeError,
            r"devices must be a list of devices, such as .*, or None, got 1",
        ),
        ({"devices": "cpu"}, TypeError, "devices must be a list of devices"),
        ({"devices": 2 * jax.devices()[:1]}, ValueError, "devices must be different"),
        ({"precision": None}, ValueError, r"precision must be 'highest', .*, got None; for float64, pass 'highest'"),
        ({"precision": "float64"}, ValueError, r"that jax\.default_matmul_precision takes, got 'float64'"),
    ],
)
def test_devices_and_precision_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        measure_two(images_of_two_classes(), **settings)


def test_many_images_in_compiled_code_are_refused():
    with pytest.raises(TypeError, match=r"use hmt_jax\.measure_margin there"):
        jax.jit(lambda images: measure_two(images).margin)(images_of_two_classes())
