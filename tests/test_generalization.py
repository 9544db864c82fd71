"""Small networks trained to one loss, and what their margins tell about their test accuracy."""

import collections
import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

import hmt_jax
from experiments import generalization, run, small_networks, store
from experiments.catalogue.generalization import correlation_of_components, gain_of_components
from experiments.generalization import COMPONENTS, RANDOM, SUBSPACES, WHOLE, Found, Generalization
from experiments.small_networks import Settings
from hmt_jax import data, training

CONFIG = Generalization(
    data="digits",
    num_networks=4,
    num_train=60,
    num_images=6,
    num_test=100,
    widths=(2,),
    depths=(1,),
    batch_sizes=(20,),
    dropout_rates=(0.0, 0.2),
    weight_decays=(0.01,),
    wrong_shares=(0.0, 0.2),
    target_loss=0.5,
    max_epochs=200,
    learning_rate=1e-2,
    low_band=3,
    effort="quick",
)
MLP = Settings("mlp", width=1, depth=2, batch_size=12, dropout_rate=0.0, weight_decay=0.1, wrong_share=0.0)


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    return rng.uniform(size=(12, 5, 6, 2)).astype(np.float32), rng.integers(3, size=12)


def trained(settings, samples, **changes):
    arguments = {"target_loss": 1e-9, "max_epochs": 3, "learning_rate": 0.01, "key": jax.random.key(0)} | changes
    return small_networks.train(settings, *samples, 3, **arguments)


# Networks


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [("cnn", [(3, 3, 2, 4), (3, 3, 4, 4), (2 * 2 * 4, 32), (32, 3)]), ("mlp", [(60, 32), (32, 32), (32, 3)])],
)
def test_width_and_depth_are_those_of_the_layers(kind, shapes, samples):
    network = trained(MLP._replace(kind=kind, width=4), samples, max_epochs=1).classifier.network
    layers = [*network.convolutions, *network.linear]
    assert [layer.kernel.shape for layer in layers] == shapes


def test_training_ends_with_the_epoch_that_reaches_the_loss(samples):
    settings = MLP._replace(width=4, batch_size=5)
    found = trained(settings, samples, target_loss=0.3, max_epochs=300)
    assert found.metrics.loss <= 0.3
    assert 1 < found.num_epochs < 300
    assert found.metrics == training.evaluate(found.classifier, *samples)
    one_less = trained(settings, samples, target_loss=0.3, max_epochs=found.num_epochs - 1)
    assert one_less.metrics.loss > 0.3


def test_training_that_diverges_is_told(samples):
    with pytest.raises(FloatingPointError, match=r"^training diverged in epoch \d, with .*: lower learning_rate$"):
        trained(MLP, samples, learning_rate=1e30, max_epochs=50)


def test_dropout_changes_training_alone(samples):
    images, _ = samples
    kept, dropped = (trained(MLP._replace(dropout_rate=rate), samples).classifier for rate in (0.0, 0.5))
    assert np.abs(kept(images) - dropped(images)).max() > 1e-3
    np.testing.assert_array_equal(dropped(images), dropped(images))


def test_units_that_are_kept_grow_so_that_their_mean_stays():
    units = np.full((100, 1000), 3, np.float32)
    dropped = np.asarray(small_networks.drop(units, 0.4, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(dropped), [0, 5])
    assert np.mean(dropped == 0) == pytest.approx(0.4, abs=0.01)  # six standard deviations
    np.testing.assert_array_equal(small_networks.drop(units, 0.0, jax.random.key(0)), units)


# Settings and labels


def test_each_value_of_a_setting_is_that_of_as_many_networks():
    settings = Generalization(data="mnist").settings()
    assert len(settings) == 48
    for name, counts in {
        "kind": 2 * [24],
        "width": 2 * [24],
        "depth": 3 * [16],
        "batch_size": 3 * [16],
        "dropout_rate": 3 * [16],
        "weight_decay": 3 * [16],
        "wrong_share": 4 * [12],
    }.items():
        assert sorted(collections.Counter(getattr(each, name) for each in settings).values()) == counts
    assert len({*settings}) > 40
    assert Generalization(data="mnist").settings() == settings != Generalization(data="mnist", seed=1).settings()


def test_wrong_labels_are_of_all_other_classes():
    labels = np.repeat(np.arange(5), 1000).astype(np.int32)
    wrong = generalization.with_wrong_labels(labels, 0.4, 5, jax.random.key(0))
    assert (wrong != labels).sum() == 2000
    assert wrong.dtype == labels.dtype
    counts = collections.Counter(zip(labels[wrong != labels].tolist(), wrong[wrong != labels].tolist(), strict=True))
    assert len(counts) == 20
    assert all(60 < count < 140 for count in counts.values())  # 100 are expected, and 10 is the standard deviation
    np.testing.assert_array_equal(generalization.with_wrong_labels(labels, 0.0, 5, jax.random.key(0)), labels)


def test_the_elbow_is_furthest_from_the_chord():
    assert generalization.elbow(np.array([5, 5, 5, 1, 1, 1, 1])) == 3
    variances = np.sort(np.random.default_rng(0).exponential(size=50))[::-1]
    points = np.stack([np.arange(1, 51) / 50, np.cumsum(variances) / variances.sum()])
    distances = [np.linalg.norm(point - point.mean()) for point in points.T]  # from the line through (0, 0) and (1, 1)
    assert generalization.elbow(variances) == np.argmax(distances) + 1


# Findings


def found_of(margins, accuracy, wrong_shares=None):
    """The findings of networks with the given mean margins by subspace, on two images."""
    number = len(accuracy)
    both = np.stack([np.asarray(margins[name], float) for name in SUBSPACES], axis=1)[..., None] * [0.5, 1.5]
    shares = number * [0.0] if wrong_shares is None else wrong_shares
    return Found(
        numbers=list(range(number)),
        settings=[MLP._replace(wrong_share=share) for share in shares],
        test_accuracy=np.asarray(accuracy, float),
        train_loss=np.zeros(number),
        num_epochs=np.ones(number, int),
        margins={"tight": both, "DeepFool": 2 * both},
        dimensions=[4, 1, 2, 2],
        num_failed=0,
        seconds=1.0,
    )


def pairs(first, second):
    """Kendall's tau without ties: the mean over all pairs of 1 if both order them alike, and of -1 if not."""
    signs = [
        np.sign((first[i] - first[j]) * (second[i] - second[j]))
        for i, j in itertools.combinations(range(len(first)), 2)
    ]
    return np.mean(signs)


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    return found_of({name: rng.permutation(20) + 1 for name in SUBSPACES}, rng.permutation(20), 4 * [0, 0, 0, 0.1, 0.2])


def test_the_rank_correlation_counts_pairs(found):
    margins = found.mean_margins(RANDOM, "tight")
    assert generalization.kendall(margins, found.test_accuracy) == pytest.approx(pairs(margins, found.test_accuracy))


def test_equal_shares_of_wrong_labels_compare_only_their_own_networks(found):
    margins, accuracy = found.mean_margins(WHOLE, "tight"), found.test_accuracy
    signs = [
        np.sign((margins[i] - margins[j]) * (accuracy[i] - accuracy[j]))
        for i, j in itertools.combinations(range(20), 2)
        if found.settings[i].wrong_share == found.settings[j].wrong_share
    ]
    assert generalization.within(found, margins, "wrong_share") == pytest.approx(np.mean(signs))
    accuracy[[i for i in range(20) if found.settings[i].wrong_share == 0.2]] = 0.5  # and say nothing from now on
    signs = [
        np.sign((margins[i] - margins[j]) * (accuracy[i] - accuracy[j]))
        for i, j in itertools.combinations(range(20), 2)
        if found.settings[i].wrong_share == found.settings[j].wrong_share != 0.2
    ]
    assert generalization.within(found, margins, "wrong_share") == pytest.approx(np.mean(signs))
    alone = found_of({name: [1, 2] for name in SUBSPACES}, [1, 2], [0.0, 0.1])
    assert np.isnan(generalization.within(alone, np.array([1, 2]), "wrong_share"))


def test_chance_is_as_wide_as_kendall_says():
    rng = np.random.default_rng(0)
    low, high = generalization.by_chance(rng.uniform(size=48), rng.uniform(size=48))
    deviation = np.sqrt(2 * (2 * 48 + 5) / (9 * 48 * 47))  # Kendall 1938, of n = 48
    assert (low, high) == pytest.approx((-1.96 * deviation, 1.96 * deviation), abs=0.02)


def test_images_without_a_margin_do_not_count_in_the_mean(found, monkeypatch):
    monkeypatch.setattr(generalization, "_NUM_PERMUTATIONS", 9)
    margins = found.margins["tight"][:, SUBSPACES.index(COMPONENTS)]
    expected = margins.mean(axis=1)
    expected[3] = margins[3, 0]
    margins[3, 1] = np.inf
    np.testing.assert_allclose(found.mean_margins(COMPONENTS, "tight"), expected)
    (described,) = [
        each
        for each in generalization.describe(found)["measures"]
        if (each["subspace"], each["solver"]) == (COMPONENTS, "tight")
    ]
    assert described["share_without"] == 1 / 40
    assert described["mean_margin"] == pytest.approx(expected.mean())


def test_a_network_without_margins_counts_as_the_one_of_largest(found, tmp_path, monkeypatch):
    monkeypatch.setattr(generalization, "_NUM_PERMUTATIONS", 9)
    accuracy = found.test_accuracy
    for solver in generalization.SOLVERS:
        found.margins[solver][4, SUBSPACES.index(COMPONENTS)] = np.inf
        found.margins[solver][:, SUBSPACES.index(RANDOM)] = np.inf
    margins = found.mean_margins(COMPONENTS, "tight")
    assert np.flatnonzero(np.isinf(margins)) == [4]
    largest = np.where(np.isinf(margins), 1e9, margins)
    assert generalization.kendall(margins, accuracy) == pytest.approx(pairs(largest, accuracy))
    described = generalization.describe(found)["measures"]
    assert [each["mean_margin"] for each in described if each["subspace"] in (COMPONENTS, RANDOM)] == 4 * ["inf"]
    assert {each["tau"] for each in described if each["subspace"] == RANDOM} == {"nan"}
    store.write_picture(tmp_path / "margins.png", generalization._picture("none in one subspace", found))


def test_the_gain_is_that_of_the_correlation(found):
    accuracy = found.test_accuracy
    expected = pairs(found.mean_margins(RANDOM, "DeepFool"), accuracy) - pairs(
        found.mean_margins(WHOLE, "tight"), accuracy
    )
    estimate = generalization.gain(found, RANDOM, "DeepFool")
    assert estimate.value == pytest.approx(expected)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.low < estimate.high


# A run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run."""
    path = tmp_path_factory.mktemp("runs") / "generalization_quick"
    run.run("generalization", CONFIG, path, is_quick=True)
    return path


@pytest.mark.slow
def test_networks_have_one_loss_and_their_own_settings(made):
    files = sorted(made.glob("network_*.npz"))
    assert len(files) == 4
    arrays = [store.read_arrays(file) for file in files]
    for each, settings in zip(arrays, CONFIG.settings(), strict=True):
        assert 0.2 < each["train_loss"] <= 0.5
        assert each["train_accuracy"] > 0.8
        assert each["margin"].shape == each["deepfool"].shape == (4, 6)
        assert Settings(*(each[f"setting_{name}"].item() for name in Settings._fields)) == settings
    dimensions = arrays[0]["dimension"].tolist()
    assert dimensions[:2] == [64, 9]
    assert dimensions[2] == dimensions[3]


@pytest.mark.slow
def test_margins_are_those_of_the_network_in_each_subspace(made):
    """The network is trained again, and the components are scikit-learn's."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    arrays = store.read_arrays(made / "network_001.npz")
    digits = data.load("digits").first(60, 100)
    images = data.as_floats(digits.train_images)
    components = decomposition.PCA(svd_solver="full").fit(images.reshape(60, -1).astype(np.float64)).components_
    basis = components[: arrays["dimension"][2]].T.astype(np.float32)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 1))
    settings = CONFIG.settings()[1]
    labels = generalization.with_wrong_labels(digits.train_labels, settings.wrong_share, 10, keys[0])
    again = small_networks.train(
        settings, images, labels, 10, target_loss=0.5, max_epochs=200, learning_rate=1e-2, key=keys[1]
    )
    solver = hmt_jax.solvers.tight("quick")
    expected = hmt_jax.measure_margins(
        again.classifier, images[:6], hmt_jax.subspaces.from_basis(basis, (8, 8, 1)), solver
    )
    np.testing.assert_allclose(arrays["margin"][2], expected.margin[0], rtol=0.02)  # searches in another basis
    accuracy = np.mean(np.argmax(again.classifier(data.as_floats(digits.test_images)), axis=1) == digits.test_labels)
    assert arrays["test_accuracy"] == pytest.approx(accuracy)


@pytest.mark.slow
def test_claims_and_report_are_on_the_numbers_of_the_run(made):
    arrays = [store.read_arrays(made / f"network_{number:03d}.npz") for number in range(4)]
    accuracy = [each["test_accuracy"] for each in arrays]
    whole, components = ([each["margin"][r].mean() for each in arrays] for r in (0, 2))
    expected = generalization.kendall(components, accuracy)
    assert correlation_of_components(made).value == pytest.approx(expected)
    assert gain_of_components(made).value == pytest.approx(expected - generalization.kendall(whole, accuracy))
    summary = json.loads((made / "summary.json").read_text())
    assert summary["num_networks"] == 4
    assert (made / "margins.png").read_bytes().startswith(b"\x89PNG")
    told = CONFIG.report(made)
    assert told.startswith(
        f"4 networks; test accuracy {min(accuracy):.2%} to {max(accuracy):.2%}; 0 more have not reached the target loss"
    )
    assert [line.split("  ")[0] for line in told.splitlines()[3:]] == [each for each in SUBSPACES for _ in range(2)]
    measured = hmt_jax.report.load(made / "measurements.npz")
    best = int(np.argmax(accuracy))
    assert measured[0].name == f"network {best}, test accuracy {accuracy[best]:.2%}"
    np.testing.assert_array_equal(measured[0].result.margin, arrays[best]["margin"])


@pytest.mark.slow
def test_an_interrupted_run_trains_what_is_missing(made, tmp_path, monkeypatch):
    train, numbers = Generalization.train_and_measure, []

    def stop_after_two(self, file, number, *arguments):
        numbers.append(number)
        if len(numbers) == 3:
            raise KeyboardInterrupt
        train(self, file, number, *arguments)

    monkeypatch.setattr(Generalization, "train_and_measure", stop_after_two)
    path = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        run.run("generalization", CONFIG, path, is_quick=True)
    run.run("generalization", CONFIG, path, is_quick=True)
    assert numbers == [0, 1, 2, 2, 3]
    for number in range(4):
        before, after = (store.read_arrays(folder / f"network_{number:03d}.npz") for folder in (made, path))
        np.testing.assert_array_equal(before["margin"], after["margin"])
    assert (path / "claims.json").read_bytes() == (made / "claims.json").read_bytes()


@pytest.mark.slow
def test_networks_that_miss_the_loss_are_left_out(tmp_path):
    few = dataclasses.replace(CONFIG, num_networks=2, max_epochs=1)
    with pytest.raises(ValueError, match=r"^0 of 2 networks have reached target_loss, .*: raise target_loss or"):
        run.run("generalization", few, tmp_path / "few", is_quick=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_networks": 1}, "num_networks must be at least 2, got 1"),
        ({"num_train": 1, "num_images": 1}, "num_train must be at least 2, got 1"),
        ({"num_networks": 2, "depths": (1, 2, 3)}, "depths are 3 values, more than the 2 networks: raise num_networks"),
        ({"batch_sizes": (20, 61)}, "batch_sizes=61 is more than the 60 training images"),
        ({"depths": (1.5,)}, "depths must be a whole number, got 1.5"),
        (
            {"num_networks": 11, "wrong_shares": tuple(number / 20 for number in range(11))},
            "wrong_shares are 11 values, of which a picture tells 10 apart: leave some out",
        ),
        ({"num_images": 61}, "num_images=61 is more than the 60 training images"),
        ({"num_train": 10_000}, "num_train=10000 is more than the 1437 training images of digits"),
        ({"num_test": 10_000}, "num_test=10000 is more than the 360 test images of digits"),
        ({"low_band": 9}, "low_band=9 is more than the 8 frequencies of digits"),
        ({"target_loss": 0.0}, "target_loss must be positive, got 0.0"),
        ({"widths": ()}, r"widths must be one or more different values, got \(\)"),
        ({"depths": (1, 1)}, r"depths must be one or more different values, got \(1, 1\)"),
        ({"batch_sizes": (0,)}, "batch_sizes must be at least 1, got 0"),
        ({"dropout_rates": (1.0,)}, "dropout_rates must be below 1, got 1.0"),
        ({"wrong_shares": (-0.1,)}, "wrong_shares must not be negative, got -0.1"),
        ({"effort": "much"}, "unknown effort 'much'; the known ones are quick, fast, normal, thorough"),
    ],
)
def test_settings_that_do_not_fit_are_told(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run.run("generalization", dataclasses.replace(CONFIG, **changes), tmp_path / "run", is_quick=True)
