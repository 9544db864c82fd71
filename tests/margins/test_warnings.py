"""Warnings of images, classifiers and searches whose margins would mean nothing."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import SHAPE, images_of_two_classes, measure_two, two_classes
from helpers import linear_logits

import hmt_jax
from hmt_jax import Status, frequency, subspaces

WHOLE = subspaces.full(SHAPE)
ONE = jax.devices()[:1]


def two_logits(images):
    return two_classes()(images)


def measure(classifier, images, **settings):
    return hmt_jax.measure_margins(classifier, images, WHOLE, hmt_jax.solvers.DeepFool(), devices=ONE, **settings)


# The range of pixels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transform", "lowest", "highest"),
    [
        (lambda images: 255 * images, "0", "255"),
        (lambda images: (images - 0.5) / 0.25, "-2", "2"),
        (lambda images: images - 0.01, r"-0\.01", r"0\.99"),
        (lambda images: 2 * np.asarray(frequency.flip(images)), r"-[0-9.]+", r"[0-9.]+"),
    ],
    ids=["8-bit", "normalised", "slightly dark", "flipped and stretched"],
)
def test_pixels_out_of_range_give_a_warning(transform, lowest, highest):
    with pytest.warns(
        hmt_jax.PixelRangeWarning,
        match=rf"^pixels of 4 of 4 images leave \[0, 1\], from {lowest} to {highest}: pass images before "
        r"normalisation, 8-bit or divided by 255, or silence hmt_jax\.PixelRangeWarning if this is intended$",
    ) as warned:
        result = hmt_jax.measure_margins(
            two_classes(), transform(images_of_two_classes()), WHOLE, hmt_jax.solvers.DeepFool(), devices=ONE
        )
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert result.is_converged.all()


def test_only_images_out_of_range_are_counted():
    images = images_of_two_classes()
    images[1] *= 3
    images[2, 0, 0, 0] = np.nan
    with pytest.warns(hmt_jax.PixelRangeWarning, match=r"pixels of 1 of 4 images leave \[0, 1\], from 0 to 3: "):
        measure_two(images)


@pytest.mark.slow
def test_every_image_counts_for_the_range():
    """However many are looked at together."""
    images = np.full((1030, 64, 64, 1), 0.5, np.float32)  # 17 MB, and 16 are looked at at a time
    images[-1] = 3
    with pytest.warns(hmt_jax.PixelRangeWarning, match=r"^pixels of 1 of \d+ images leave") as warned:
        hmt_jax.measure_margins(
            lambda images: images[:, 0, :2, 0], images, subspaces.full((64, 64, 1)), hmt_jax.solvers.DeepFool()
        )
    assert len(warned) == 1


@pytest.mark.parametrize("flipped", [[0, 1, 2, 3], [1, 2], []])
def test_images_and_flipped_images_give_no_warning(flipped):
    images = images_of_two_classes()
    images[flipped] = frequency.flip(images)[np.array(flipped, int)]
    assert len(flipped) == np.sum((images.min(axis=(1, 2, 3)) < 0) | (images.max(axis=(1, 2, 3)) > 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure_two(images).is_converged.all()


def test_the_warning_can_be_silenced_by_its_category():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", hmt_jax.PixelRangeWarning)
        assert measure_two(255 * images_of_two_classes()).is_converged.all()


# Gradients that vanish


@pytest.mark.slow
def test_probabilities_for_logits_give_a_warning():
    with pytest.warns(
        UserWarning, match=r"^the classifier seems to return probabilities: .*; return logits, before the softmax"
    ) as warned:
        hmt_jax.measure_margins(
            lambda images: jax.nn.softmax(two_logits(images)),
            images_of_two_classes(),
            WHOLE,
            hmt_jax.solvers.DeepFool(),
            devices=ONE,
        )
    assert len(warned) == 1
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(lambda images: jax.nn.log_softmax(two_logits(images)), images_of_two_classes())


def test_margins_of_vanishing_gradients_give_a_warning():
    """The outputs are sigmoids: the boundary is that of their arguments, less than a pixel away."""
    with pytest.warns(
        UserWarning,
        match=r"^4 of 4 margins are longer than the diameter of the pixel box, although the label changes within a "
        "tenth of the perturbation: gradients vanish where .*; return logits, before the softmax or sigmoid$",
    ) as warned:
        found = hmt_jax.measure_margins(
            functools.partial(three_sigmoids, 40), both_labels(), WHOLE, hmt_jax.solvers.DeepFool(), devices=ONE
        )
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert (found.margin > 40**0.5).all()


def test_gradients_of_zero_where_labels_differ_give_a_warning():
    with pytest.warns(
        UserWarning, match=r"^the outputs of the classifier have no gradient at 4 of 4 images: gradients"
    ):
        found = measure(functools.partial(three_sigmoids, 1e4), both_labels())
    assert (found.status == Status.ZERO_GRADIENT).all()


def three_sigmoids(scale, images):
    return jax.nn.sigmoid(scale * jnp.append(two_logits(images) - 0.2, jnp.full((len(images), 1), 0.05), axis=1))


def both_labels():
    """Images on both sides of the boundary of `two_logits`, far from it."""
    images = images_of_two_classes()
    images[:, 0, 0] = [[1, 0.05], [0.05, 0.6], [0.9, 0.02], [0.05, 0.7]]
    return images


def test_long_margins_of_classifiers_that_are_not_saturated_give_no_warning():
    """Ten times as long as the diameter of the pixel box, since the logits are that far apart."""
    found = measure(two_classes(bias=100.0), both_labels())
    assert found.is_converged.all()
    assert (found.margin > 10 * 40**0.5).all()


def test_a_constant_classifier_has_one_label_and_gives_no_warning():
    weights, _ = two_classes().args[0]
    constant = jax.tree_util.Partial(linear_logits, (0 * weights, np.array([1, 3], np.float32)))
    assert (measure(constant, images_of_two_classes()).status == Status.ZERO_GRADIENT).all()


# Numbers that are not finite


def test_gradients_that_are_never_finite_give_a_warning():
    with pytest.warns(
        UserWarning,
        match="^the logits of images are finite, but every search met NaN or infinite logits or gradients, so there "
        "are no margins: check the operations of the classifier, such as roots of zero, and those of your own solver$",
    ):
        found = measure(
            lambda images: two_logits(images) + jnp.sqrt(0 * images.sum((1, 2, 3)))[:, None], images_of_two_classes()
        )
    assert (found.status == Status.NON_FINITE).all()
    assert (found.label >= 0).all()


def test_a_classifier_that_is_never_finite_is_an_error():
    images = images_of_two_classes()
    images[2, 0, 0, 0] = np.nan
    for value in (np.nan, np.inf):
        with pytest.raises(
            ValueError,
            match=r"^classifier returns NaN or infinite logits for every one of 3 finite images: check its parameters "
            "and its normalisation$",
        ):
            measure(two_classes(bias=value), images)


# A classifier that can't be measured


def test_a_label_change_that_is_not_found_again_is_no_margin():
    """The classifier draws at random: the boundary may have moved away when the point found is evaluated again."""
    rng = np.random.default_rng(0)

    def drawn(pixels):
        return rng.normal(size=pixels.shape).astype(np.float32)

    def classifier(images):
        pixels = jax.lax.stop_gradient(images[:, 0, 0, 0])
        shape = jax.ShapeDtypeStruct(pixels.shape, pixels.dtype)
        bias = jax.pure_callback(drawn, shape, pixels, vmap_method="expand_dims")
        return two_logits(images) + jnp.stack([0 * bias, bias], axis=1)

    found = measure(classifier, images_of_two_classes(40))
    is_lost = found.status == Status.UNCONFIRMED
    assert 5 < is_lost.sum() < 35
    assert found.is_converged[~is_lost].all()
    assert (found.gap[is_lost] < 0).all()
    np.testing.assert_array_equal(found.adversarial_label == found.label, is_lost)
    assert np.isfinite(found.margin).all()


def test_a_class_that_is_ruled_out_is_no_fault_in_accuracy_and_loss():
    logits = np.array([[2.0, -np.inf, 1.0], [0.0, 3.0, -np.inf], [np.nan, 0, 1], [np.inf, 0, 1]], np.float32)

    def classifier(images):
        return jnp.asarray(logits)[images[:, 0, 0, 0].astype(jnp.int32)]

    images = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    found = hmt_jax.training.evaluate(classifier, images[:2], np.array([0, 0]))
    # The cross-entropies are log(1 + e^-1) and log(1 + e^3).
    np.testing.assert_allclose([found.accuracy, found.loss], [0.5, (np.log1p(np.exp(-1)) + np.log1p(np.exp(3))) / 2])
    assert hmt_jax.training.evaluate(classifier, images[2:], np.array([0, 0])).accuracy == 0
