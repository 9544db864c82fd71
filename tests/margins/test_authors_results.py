"""The margins that the authors' code finds for a LeNet on MNIST: what counts is that no step takes another turn."""

import jax
import numpy as np
import pytest
from helpers import slow_except

import hmt_jax
from hmt_jax import Status, models, subspaces
from hmt_jax.solvers import DeepFool

PARITY = {"rtol": 1e-9, "atol": 0}
ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def lenet(reference):
    """The LeNet of the reference results with float64 statistics."""
    weights = {name.removeprefix("weights/"): reference[name] for name in reference if name.startswith("weights/")}
    with jax.enable_x64(True):
        return models.from_torch("lenet", weights, image_shape=(28, 28, 1), mean=(0.1307,), std=(0.3081,))


def diagonal(step=1):
    return subspaces.dct_diagonal((28, 28, 1), size=8, step=1)[::step]


def check_parity(result, reference, group):
    np.testing.assert_array_equal(result.num_steps, reference[f"{group}/steps"])
    np.testing.assert_array_equal(result.label, reference[f"{group}/label"])
    np.testing.assert_array_equal(result.adversarial_label, reference[f"{group}/label_adv"])
    np.testing.assert_allclose(result.margin, reference[f"{group}/margin"], **PARITY)
    is_converged = reference[f"{group}/label_adv"] != reference[f"{group}/label"]
    np.testing.assert_array_equal(result.status, np.where(is_converged, Status.CONVERGED, Status.OUT_OF_STEPS))


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_diagonal_agrees_with_the_authors_code(lenet, reference, x64):
    images = reference["images"][..., None] / 255
    windows = diagonal()
    result = hmt_jax.measure_margins(lenet, images, windows, DeepFool(), keep_coordinates=True, devices=ONE)
    check_parity(result, reference, "diagonal_8x8_step1")
    embed = jax.jit(lambda window, rows: jax.vmap(window.embed)(rows))
    perturbations = np.stack(
        [embed(window, rows[:4]) for window, rows in zip(windows, result.coordinates, strict=True)]
    )
    # Relative to the perturbations, whose norms are 2 to 80: pixels near zero are differences.
    expected = reference["diagonal_8x8_step1/perturbation_first4"]
    np.testing.assert_allclose(np.moveaxis(perturbations, -1, 2), expected, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_diagonal_in_float32_agrees_with_the_authors_code(reference_lenet, reference):
    images = (reference["images"][..., None] / 255).astype(np.float32)
    result = hmt_jax.measure_margins(reference_lenet, images, diagonal(), DeepFool(), devices=ONE)
    assert result.margin.dtype == np.float32
    expected = reference["diagonal_8x8_step1/margin"]
    # Where rounding makes an iterate take another turn, single margins may move by more.
    is_close = np.abs(result.margin - expected) <= 1e-3 * expected
    assert np.mean(is_close) >= 0.99


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_whole_space_agrees_with_the_authors_code(lenet, reference, x64):
    images = reference["images"][..., None] / 255
    result = hmt_jax.measure_margins(lenet, images, subspaces.full((28, 28, 1)), DeepFool(), devices=ONE)
    check_parity(result, reference, "full_space")


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    ("name", "solver"),
    slow_except(
        [
            ("candidates3", DeepFool(num_candidates=3)),
            ("maxsteps1", DeepFool(max_steps=1)),
            ("overshoot0.5", DeepFool(overshoot=0.5)),
        ],
        ("maxsteps1", DeepFool(max_steps=1)),
    ),
)
def test_settings_agree_with_the_authors_code(name, solver, lenet, reference, x64):
    images = reference["images"][:10, ..., None] / 255
    result = hmt_jax.measure_margins(lenet, images, diagonal(step=5), solver, devices=ONE)
    check_parity(result, reference, f"diagonal_8x8_every5th_{name}")
