"""Margins in families of features, beside the accuracy of linear classifiers, by scikit-learn and SciPy."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import basis_of, random_basis
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from small_runs import small_baseline, small_digits

import hmt_jax
from experiments import experiment, families, registry, run, store
from experiments.catalogue.families import correlation_with_accuracy
from experiments.families import Families, Found, Member
from hmt_jax import data, plots, subspaces

SHAPE = (4, 5, 2)
COMPONENTS = ("principal-components:0:16", "principal-components:16:32", "principal-components:32:48")
CONFIG = Families(
    baseline="digits",
    data="digits",
    families=("dct-grid:4:4", "patches:4", *COMPONENTS, "class-means"),
    num_images=12,
    effort="quick",
)

# Linear classifiers


@pytest.fixture(scope="module")
def samples():
    """Training and test images of three classes of unequal sizes, and labels, that overlap in most directions."""
    rng = np.random.default_rng(0)
    labels = rng.choice([2, 5, 7], size=900, p=[0.5, 0.3, 0.2])
    centres = {label: rng.uniform(0.3, 0.7, 40) for label in (2, 5, 7)}
    mixing = rng.normal(size=(40, 40)) / 12
    rows = np.stack([centres[label] for label in labels]) + rng.normal(size=(900, 40)) @ mixing
    images = rows.reshape(-1, *SHAPE).astype(np.float32)
    return images[:600], labels[:600], images[600:], labels[600:]


def accuracies(bases, samples):
    """Those of linear classifiers in spans of columns."""
    spans = [Member("spans", "", subspaces.from_basis(jnp.asarray(basis, jnp.float32), SHAPE)) for basis in bases]
    return families.linear_accuracies(spans, *samples)["accuracy"]


def test_linear_accuracy_is_that_of_scikit_learn(samples):
    train, train_labels, test, test_labels = samples
    bases = [random_basis(40, dimension, seed=dimension) for dimension in (1, 2, 7, 39)]
    expected = []
    for basis in bases:
        fitted = LinearDiscriminantAnalysis(solver="lsqr").fit(train.reshape(-1, 40) @ basis, train_labels)
        expected.append(fitted.score(test.reshape(-1, 40) @ basis, test_labels))
    np.testing.assert_allclose(accuracies(bases, samples), expected, atol=1e-12)
    assert len({*expected}) == 4


def test_neither_the_basis_nor_the_scale_of_a_band_matters(samples):
    basis = random_basis(40, 6)
    turned = basis @ random_basis(6, 6, seed=1)
    train, train_labels, test, test_labels = samples
    darker = (train / 4, train_labels, test / 4, test_labels)
    (expected,) = accuracies([basis], samples)
    assert accuracies([turned], samples) == expected
    # Rounding to 8 bits weighs a little more on darker images: a sample may be on the other side.
    np.testing.assert_allclose(accuracies([basis], darker), expected, atol=2 / len(test))


def test_a_band_with_the_label_tells_all_one_of_noise_little_and_one_in_which_nothing_varies_chance():
    rng = np.random.default_rng(1)
    labels = rng.choice(4, size=2000, p=[0.4, 0.2, 0.2, 0.2])
    basis = random_basis(40, 40)
    scores = np.zeros((2000, 40))
    scores[:, :4] = np.eye(4)[labels] + rng.normal(size=(2000, 4)) / 50
    scores[:, 4:20] = rng.normal(size=(2000, 16))  # of the last 20, only what rounding in float32 leaves
    images = (scores @ basis.T).reshape(-1, *SHAPE).astype(np.float32)
    split = images[:1000], labels[:1000], images[1000:], labels[1000:]
    label, noise, nothing = accuracies([basis[:, :4], basis[:, 4:20], basis[:, 20:]], split)
    chance = np.mean(labels[1000:] == 0)
    assert label == 1
    assert abs(noise - chance) < 0.08  # 16 directions of noise fit 1000 labels a little
    assert nothing == chance
    assert families.linear_accuracies([], *split)["chance"] == chance


# The number that decides, and what is no band


def found_of(accuracy, medians, dimension=10, family="patches:2"):
    """Findings in members with the given numbers, of 9 images with 64 dimensions."""
    margins = np.asarray(medians, float)[:, None] * np.linspace(0.5, 1.5, 9)
    dimensions = np.broadcast_to(dimension, len(accuracy))
    return Found(
        [family] * len(accuracy),
        [str(number) for number in range(len(accuracy))],
        dimensions,
        2 * dimensions <= 64,
        np.asarray(accuracy, float),
        0.1,
        plots._result_of(margins),
        0.0,
    )


def test_the_correlation_is_that_of_scipy_over_bands_alone():
    accuracy, medians = [0.1, 0.1, 0.9, 0.4, 0.3, 0.99], [np.inf, 8, 2, 3, 9, 50]
    found = found_of(accuracy, medians, dimension=[4, 32, 4, 4, 4, 33])
    assert found.is_band.tolist() == [True] * 5 + [False]
    expected = stats.spearmanr(accuracy[:5], medians[:5]).statistic
    assert families.correlation(found, found.is_band).value == pytest.approx(expected)
    with pytest.raises(ValueError, match="2 bands have no order, it takes 3: name more families"):
        families.correlation(found, np.arange(6) < 2)


def test_misfits_are_in_the_wrong_third_of_both():
    # Of nine bands in the order of their accuracies, the first and the last are misfits, and the rest in order.
    found = found_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], [1, 9, 8, 7, 6, 5, 4, 3, 10])
    assert families.misfits(found) == {0: "small", 8: "large"}
    # Where all accuracies but one are chance, no band is in the lowest third.
    assert families.misfits(found_of([0.1] * 8 + [0.9], [1, 2, 3, 4, 5, 6, 7, 8, 0.5])) == {}


# A run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run, beside that which trained its network."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        small_digits(patch)
        run.run("feature_families", CONFIG, root / "families_quick", is_quick=True)
    return root / "families_quick"


@pytest.mark.slow
def test_a_run_has_every_member_of_every_family(made):
    arrays = store.read_arrays(made / "margins.npz")
    counts = {family: arrays["family"].tolist().count(family) for family in arrays["family"].tolist()}
    assert counts == {"dct-grid:4:4": 4, "patches:4": 4, "principal-components": 3, "class-means": 4}
    assert arrays["dimension"].tolist() == [16] * 11 + [9, 55, 9, 55]
    assert arrays["margin"].shape == (15, 12)
    of_families = [
        f"family-{name}.png" for name in ("dct-grid-4-4", "patches-4", "principal-components", "class-means")
    ]
    for picture in ("accuracy.png", "margins.png", *of_families):
        assert (made / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_margins_are_those_of_the_network_beside(made):
    arrays = store.read_arrays(made / "margins.npz")
    patch, image = subspaces.patches((8, 8, 1), 4)[1], data.load("digits").test_images[3]
    parameters = store.read_classifier(made.parent / "digits_quick")
    # The network is linear: its margin is the least distance of a boundary within the patch.
    logits, jacobian = parameters(image[None])[0], jax.jacobian(lambda x: parameters(x[None])[0])(jnp.asarray(image))
    label = int(np.argmax(logits))
    normals = np.delete(np.asarray(jacobian) - np.asarray(jacobian)[label], label, axis=0).reshape(9, -1)
    gaps = np.delete(logits[label] - np.asarray(logits), label)
    expected = np.min(gaps / np.linalg.norm(normals @ basis_of(patch), axis=1))
    np.testing.assert_allclose(arrays["margin"][5, 3], expected, rtol=1e-3)  # of the last step of the search


@pytest.mark.slow
def test_pictures_show_what_lies_in_a_member_and_changes_the_label(made):
    arrays = store.read_arrays(made / "parts.npz")
    image = data.as_floats(data.load("digits").test_images[0])
    np.testing.assert_array_equal(arrays["image"], image)
    inside = np.zeros((8, 8, 1), bool)
    inside[:4, 4:] = True
    np.testing.assert_allclose(arrays["part"][5], np.where(inside, image, 0), atol=1e-6)  # of the second patch
    assert (arrays["perturbation"][5][~inside] == 0).all()
    norms = np.linalg.norm(arrays["perturbation"].reshape(len(arrays["member"]), -1), axis=1)
    np.testing.assert_allclose(norms, arrays["margin"], rtol=1e-5)
    classifier = store.read_classifier(made.parent / "digits_quick")
    labels = [int(np.argmax(classifier((image + each)[None]))) for each in arrays["perturbation"]]
    assert labels == arrays["label_of_perturbed"].tolist()
    assert set(arrays["label"].tolist()) == {int(np.argmax(classifier(image[None])))}
    assert (arrays["label_of_perturbed"] != arrays["label"]).all()


@pytest.mark.slow
def test_a_picture_shows_seven_members_from_the_first_to_the_last(monkeypatch):
    shape, kept = (1, 20, 1), {}
    members = [Member("pixels", str(n), subspaces.pixels(np.arange(20).reshape(shape) == n)) for n in range(20)]
    members += [Member("whole", "all", subspaces.full(shape))]
    classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(20, 2) + 0.1)
    monkeypatch.setattr(store, "write_arrays", lambda path, arrays: kept.update(arrays))
    run_of = experiment.Run("name", pathlib.Path("folder"))
    CONFIG.perturb(run_of, classifier, members, np.full(shape, 0.5, np.float32))
    assert kept["member"] == ["0", "3", "6", "10", "13", "16", "19", "all"]


@pytest.mark.slow
def test_linear_accuracies_of_a_run_are_those_of_all_its_images(made):
    digits = data.load("digits")
    train, test = digits.train_images[:, :4, 4:].reshape(-1, 16), digits.test_images[:, :4, 4:].reshape(-1, 16)
    fitted = LinearDiscriminantAnalysis(solver="lsqr").fit(train, digits.train_labels)
    accuracy = store.read_arrays(made / "linear.npz")["accuracy"]
    # Rounding to 8 bits moves a few samples across.
    assert accuracy[5] == pytest.approx(fitted.score(test, digits.test_labels), abs=2 / len(test))


@pytest.mark.slow
def test_the_claim_is_on_the_numbers_of_the_run(made):
    margin, accuracy = store.read_arrays(made / "margins.npz")["margin"], store.read_arrays(made / "linear.npz")
    is_band = np.arange(15) != 12
    is_band[14] = False
    expected = stats.spearmanr(accuracy["accuracy"][is_band], np.median(margin, axis=1)[is_band]).statistic
    found = correlation_with_accuracy(made)
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high
    summary = json.loads((made / "summary.json").read_text())
    assert summary["all"] == {"num_bands": 13, **found._asdict()}
    of_components = stats.spearmanr(accuracy["accuracy"][8:11], np.median(margin, axis=1)[8:11]).statistic
    assert summary["families"]["principal-components"]["value"] == pytest.approx(of_components)
    assert summary["families"]["class-means"] == {"num_bands": 2, "value": "nan", "low": "nan", "high": "nan"}
    assert (
        summary["test_accuracy"] == json.loads((made.parent / "digits_quick/summary.json").read_text())["test_accuracy"]
    )


@pytest.mark.slow
def test_the_report_lists_every_member_and_marks_those_that_are_no_bands(made, capsys):
    told = CONFIG.report(made)
    for text in ("\nclass-means\n", "\ncomponents 16 to 31 ", "\n(complement of class means) ", "\n0,4 "):
        assert text in told
    assert told.count("bands in the third of") == 2
    measured = hmt_jax.report.load(made / "measurements.npz")
    assert [len(each.subspaces) for each in measured] == [4, 4, 3, 4]
    margin = store.read_arrays(made / "margins.npz")["margin"]
    np.testing.assert_array_equal(np.concatenate([each.result.margin for each in measured]), margin)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "undone"),
    [
        (["linear.npz"], "linear_accuracies"),
        (["linear.npz", "margins.npz"], "linear_accuracies"),
        (["linear.npz", "margins.npz", "parts.npz"], "manipulations"),
    ],
)
def test_an_interrupted_run_goes_on_from_its_last_stage(kept, undone, made, tmp_path, monkeypatch):
    small_digits(monkeypatch)
    shutil.copytree(made.parent / "digits_quick", tmp_path / "digits_quick")
    path = tmp_path / "families_quick"
    path.mkdir()
    for name in ("files.sha256", "config.json", "environment.json", "baseline.json", *kept):
        shutil.copy(made / name, path / name)
    monkeypatch.setattr(families, undone, None)  # the stage would fail
    run.run("feature_families", CONFIG, path, is_quick=True)
    for name in ("linear.npz", "margins.npz", "parts.npz"):
        before, after = (store.read_arrays(folder / name) for folder in (made, path))
        before.pop("seconds", None)
        for field, array in before.items():
            np.testing.assert_array_equal(after[field], array)
    assert (path / "claims.json").read_bytes() == (made / "claims.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["feature_families", "feature_families_cifar10"])
def test_quick_forms_run(name, tmp_path, monkeypatch, capsys):
    small_baseline(name, monkeypatch)
    run.run(name, registry.get(name).quick, tmp_path / name, is_quick=True, data_dir=str(tmp_path))
    (verdict,) = json.loads((tmp_path / name / "claims.json").read_text())["claims"]
    assert np.isfinite(verdict["value"])
    assert verdict["claim"] in capsys.readouterr().out


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": ()}, r"families must be one or more different texts, got \(\)"),
        ({"families": ("patches:4", "patches:4")}, "families must be one or more different texts, got"),
        (
            {"families": ("pixels:mask.npy",)},
            "families has pixels:mask.npy, a file that no run keeps: name patches:SIZE",
        ),
        ({"families": ("patches:3",)}, r"patches:3 does not fit images of shape \(8, 8, 1\)"),
        ({"families": ("frames:3",)}, "unknown subspaces 'frames:3': use dct-diagonal"),
        ({"effort": "much"}, "unknown effort 'much'; the known ones are quick, fast, normal, thorough"),
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"num_images": 361}, "num_images=361 is more than the 360 test images of digits"),
        ({"baseline": "synthetic_linear"}, "baseline=synthetic_linear trains no network on images"),
        ({"baseline": "mnist_lenet"}, "baseline=mnist_lenet is on mnist, got data=digits: change one of them"),
        ({"baseline": "none"}, "baseline=none has no network: name an experiment that trains one"),
    ],
)
def test_settings_that_do_not_fit_are_told(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run.run("feature_families", dataclasses.replace(CONFIG, **changes), tmp_path / "families", is_quick=True)
    assert not (tmp_path / "digits_quick").exists()


def test_more_families_than_can_be_drawn_are_refused_before_any_work():
    texts = [f"dct-grid:{size}:{step}" for size in (1, 2, 3, 4) for step in (1, 2, 3) if (8 - size) % step == 0]
    texts += [f"fourier-rings:0:{edge}:6" for edge in (2, 3, 4, 5)]
    assert len(texts) == 11
    config = dataclasses.replace(CONFIG, families=tuple(texts))
    with pytest.raises(ValueError, match="11 families can't be told apart, at most 10 can"):
        config.members(np.zeros((2, 8, 8, 1), np.float32), np.arange(2))


def test_pictures_of_two_families_do_not_share_a_file():
    """Whatever is in their names."""
    texts = ["fourier-rings:0:2.5", "fourier-rings:0:2:5", "luma-chroma", "fourier-rings:0-2-5"]
    names = list(families._file_names(texts).values())
    assert [names[0], names[2]] == ["fourier-rings-0-2-5", "luma-chroma"]
    assert len(set(names)) == 4
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)


def test_more_images_than_the_baseline_tests_on_are_refused():
    other = dataclasses.replace(registry.get("digits").config, num_test=10, num_images=5)
    with pytest.raises(ValueError, match="num_images=12 is more than the 10 test images of digits"):
        CONFIG.baseline_config(other, {})
