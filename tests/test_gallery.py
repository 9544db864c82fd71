"""Pictures of images and of the perturbations that change their labels."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import fft

from experiments import registry, run, store
from experiments.analyses.gallery import Gallery
from experiments.catalogue import beyond_the_paper as gallery
from hmt_jax import data, models

pytestmark = pytest.mark.slow

CONFIG = Gallery(baseline="digits", shown=("flip", "low_pass:4"), num_shown=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a gallery, beside the run that trained its network."""
    root = tmp_path_factory.mktemp("runs")
    devices = jax.devices()[:1]  # simulated ones would wait for each other in every step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: devices)
        digits = registry.get("digits")
        small = dataclasses.replace(digits.quick, network="logistic", num_epochs=2, num_images=12)
        patch.setitem(registry._EXPERIMENTS, "digits", dataclasses.replace(digits, quick=small))
        run.run("image_gallery", CONFIG, root / "gallery_quick", is_quick=True)
    return root / "gallery_quick"


@pytest.fixture(scope="module")
def images():
    return data.load("digits").test_images[:12]


def coefficients(images):
    return fft.dctn(images, axes=(-3, -2), norm="ortho")


def test_the_network_is_that_of_the_run_beside(made):
    assert store.baseline(made) == made.parent / "digits_quick"
    paths = (made, made.parent / "digits_quick")
    accuracies = [store.read_json(path / "summary.json")["test_accuracy"] for path in paths]
    assert accuracies[0] == accuracies[1]


def test_energies_are_those_of_the_coefficients_that_are_left(made, images):
    energy = coefficients(images) ** 2
    arrays = store.read_arrays(made / "manipulated.npz")
    assert arrays["manipulation"].tolist() == ["plain", "flip", "low_pass:4"]
    whole, low = energy.sum((1, 2, 3)), energy[:, :4, :4].sum((1, 2, 3))
    np.testing.assert_allclose(arrays["energy"], [whole, whole, low], rtol=1e-5)  # float32
    assert gallery.energy_left("low_pass:4")(made).value == pytest.approx(low.sum() / whole.sum())


def test_perturbations_stay_in_their_windows_and_change_labels(made, images):
    arrays = store.read_arrays(made / "perturbations.npz")
    found = arrays["perturbation"]
    assert found.shape == (6, 4, 8, 8, 1)
    np.testing.assert_allclose(np.linalg.norm(found.reshape(6, 4, -1), axis=2), arrays["margin"], rtol=1e-5)  # float32
    energy = coefficients(found) ** 2
    for each, (row, column) in zip(energy, arrays["corner"], strict=True):
        inside = each[:, row : row + 3, column : column + 3].sum((1, 2, 3))
        np.testing.assert_allclose(inside, each.sum((1, 2, 3)), rtol=1e-5)
    classifier, _ = models.load(made.parent / "digits_quick" / "checkpoint.safetensors")
    labels = np.argmax([classifier(images[:4] + each) for each in found], axis=2)
    np.testing.assert_array_equal(arrays["label_of_perturbed"], labels)
    assert gallery.share_of_changed_labels(made).value == np.mean(labels != arrays["label"]) == 1
    assert gallery.largest_energy_outside(made).value < 1e-5


def test_energies_of_what_is_not_shown_are_undecided(made):
    with pytest.raises(ValueError, match="low_pass:7 is not among the manipulations: add it to shown"):
        gallery.energy_left("low_pass:7")(made)


def test_settings_that_do_not_fit_are_told_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="num_shown must be at least 1, got 0"):
        Gallery(baseline="digits", shown=(), num_shown=0)
    with pytest.raises(ValueError, match="unknown manipulation 'turn'"):
        Gallery(baseline="digits", shown=("turn",))
    for changes, message in (
        ({"num_shown": 41}, "num_shown=41 is more than the 40 images of digits: set num_shown to at most 40"),
        ({"baseline": "synthetic_linear"}, "baseline=synthetic_linear trains no network on images"),
    ):
        config = Gallery(**{"baseline": "digits", "shown": (), **changes})
        with pytest.raises(ValueError, match=message):
            run.run("image_gallery", config, tmp_path / "gallery", is_quick=True)
    assert not list(tmp_path.iterdir())


def test_the_catalogue_shows_the_network_of_another_experiment():
    config = registry.get("image_gallery").config
    assert config.baseline_config(registry.get("mnist_lenet").config, {}) == registry.get("mnist_lenet").config
