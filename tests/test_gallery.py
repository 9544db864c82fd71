"""What the gallery shows of images, compared with SciPy's transform and with the network itself."""

import dataclasses

import numpy as np
import pytest
from scipy import fft

from experiments import baseline, config, folder, gallery, run
from hmt_jax import data, models

CONFIG = gallery.Gallery(
    data="digits",
    network="logistic",
    window_size=3,
    window_step=2,
    num_epochs=2,
    num_images=12,
    shown=("flip", "low_pass:4"),
    num_shown=4,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a gallery, beside the run that trained its network."""
    root = tmp_path_factory.mktemp("runs")
    run.run("digits", CONFIG.of_network, root / "digits")
    run.run("gallery", CONFIG, root / "gallery")
    return root / "gallery"


@pytest.fixture(scope="module")
def images():
    return data.load("digits").test_images[:12]


def coefficients(images):
    return fft.dctn(images, axes=(-3, -2), norm="ortho")


def test_the_network_is_that_of_the_run_beside(made):
    assert baseline.of(made).resolve() == made.parent / "digits"
    assert not (made / "baseline").exists()
    accuracies = [folder.read_json(path / "summary.json")["test_accuracy"] for path in (made, made.parent / "digits")]
    assert accuracies[0] == accuracies[1]


def test_energies_are_those_of_the_coefficients_that_are_left(made, images):
    energy = coefficients(images) ** 2
    arrays = folder.read_arrays(made / "manipulated.npz")
    assert arrays["manipulation"].tolist() == ["plain", "flip", "low_pass:4"]
    whole, low = energy.sum((1, 2, 3)), energy[:, :4, :4].sum((1, 2, 3))
    np.testing.assert_allclose(arrays["energy"], [whole, whole, low], rtol=1e-5)  # float32
    assert gallery.energy_left("low_pass:4")(made).value == pytest.approx(low.sum() / whole.sum())


def test_perturbations_stay_in_their_windows_and_change_labels(made, images):
    arrays = folder.read_arrays(made / "perturbations.npz")
    found = arrays["perturbation"]
    assert found.shape == (3, 4, 8, 8, 1)
    np.testing.assert_allclose(np.linalg.norm(found.reshape(3, 4, -1), axis=2), arrays["margin"], rtol=1e-5)  # float32
    energy = coefficients(found) ** 2
    for each, (row, column) in zip(energy, arrays["corner"], strict=True):
        inside = each[:, row : row + 3, column : column + 3].sum((1, 2, 3))
        np.testing.assert_allclose(inside, each.sum((1, 2, 3)), rtol=1e-5)
    classifier, _ = models.load(made.parent / "digits" / "checkpoint.safetensors")
    labels = np.argmax([classifier(images[:4] + each) for each in found], axis=2)
    np.testing.assert_array_equal(arrays["label_of_perturbed"], labels)
    assert gallery.share_of_changed_labels(made).value == np.mean(labels != arrays["label"]) == 1
    assert gallery.greatest_energy_outside(made).value < 1e-5


def test_a_network_that_was_made_for_a_gallery_can_be_opened():
    described = folder.described("image_gallery", CONFIG.of_network)
    assert config.described(described) == ("image_gallery", CONFIG.of_network)
    assert config.described(folder.described("image_gallery", CONFIG)) == ("image_gallery", CONFIG)
    with pytest.raises(
        ValueError, match=r"the run is of an earlier form of image_gallery, whose fields differ: .*, sizes;"
    ):
        config.described({**described, "sizes": 3})


def test_energies_of_what_is_not_shown_are_undecided(made):
    with pytest.raises(ValueError, match="low_pass:7 is not among the manipulations: add it to shown"):
        gallery.energy_left("low_pass:7")(made)


def test_settings_that_do_not_fit_are_told_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="num_shown must be at least 1, got 0"):
        dataclasses.replace(CONFIG, num_shown=0)
    with pytest.raises(ValueError, match="unknown manipulation 'turn'"):
        dataclasses.replace(CONFIG, shown=("turn",))
    with pytest.raises(ValueError, match="size must be between 1 and 8"):
        run.run("gallery", dataclasses.replace(CONFIG, shown=("low_pass:9",)), tmp_path / "gallery")
    assert not (tmp_path / "gallery").exists()
