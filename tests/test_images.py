"""The kind of experiment that most are: its fields reach what they are for, and its summary is that of its margins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_statistics import make_result

from experiments import images as experiment
from experiments import report, store
from experiments.experiment import Run
from experiments.images import Images
from hmt_jax import Status, attacks, data, solvers, subspaces, training


def configured(**fields):
    return Images(data="digits", network="mlp", **{"window_size": 3, "window_step": 1, **fields})


def test_evaluation_is_by_the_attack_that_the_fields_describe():
    fields = {"attack": "pgd", "attack_steps": 4, "evaluation_steps": 8, "evaluation_restarts": 3}
    attack = configured(manipulation="flip", norm="linf", epsilon=0.3, **fields).evaluation_attack(8)
    assert (attack.norm, attack.epsilon, attack.domain, attack.subspace) == ("linf", 0.3, "flipped", None)
    assert (attack.num_steps, attack.num_restarts) == (8, 3)


@pytest.mark.parametrize("kind", ["pgd", "deepfool"])
def test_training_is_against_the_attack_that_the_fields_describe(kind):
    fields = {"attack": kind, "epsilon": 0.3, "attack_steps": 4}
    attack = configured(**fields, attack_band="low_pass:3").training_attack((8, 8, 1))
    assert isinstance(attack, {"pgd": attacks.PGD, "deepfool": attacks.DeepFool}[kind])
    assert (attack.epsilon, attack.num_steps, attack.domain, attack.subspace.dimension) == (0.3, 4, "unbounded", 9)
    everywhere = configured(**fields).training_attack((8, 8, 1))
    assert (everywhere.domain, everywhere.subspace) == ("pixels", None)


def test_the_recipe_and_the_solver_are_those_that_the_fields_describe():
    recipe = {"num_epochs": 3, "batch_size": 5, "max_learning_rate": 0.1, "compute_dtype": "bfloat16"}
    config = configured(**recipe, augmentation="crop_and_mirror", num_candidates=4, overshoot=0.5, max_steps=7)
    assert config.recipe == training.Recipe(**recipe, augment=training.crop_and_mirror)
    assert config.solver == solvers.DeepFool(num_candidates=4, overshoot=0.5, max_steps=7)


@pytest.fixture(scope="module")
def attacked():
    """A linear classifier, images, the labels it gives them, and windows."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(64, 10)), jnp.float32)
    classifier = jax.tree_util.Partial(lambda weights, images: images.reshape(len(images), -1) @ weights, weights)
    images = np.random.default_rng(1).uniform(size=(12, 8, 8, 1)).astype(np.float32)
    return classifier, images, np.argmax(classifier(images), axis=1), subspaces.dct_diagonal((8, 8, 1), 4, 4)


@pytest.mark.slow
def test_robustness_is_under_a_weak_and_the_full_attack(attacked):
    classifier, images, labels, windows = attacked
    config = configured(attack="pgd", epsilon=0.1, evaluation_steps=8, window_size=4, window_step=4)
    key = config.keys[2]
    found = experiment.robustness(config, classifier, images, labels)["evaluations"]
    for entry, num_steps in zip(found, (2, 8), strict=True):
        attack = attacks.PGD(norm="l2", epsilon=0.1, num_steps=num_steps)
        # All images are one batch, the first.
        changes = np.asarray(attack(classifier, images, labels, jax.random.fold_in(key, 0))) - images
        energy = [
            np.mean([np.sum(np.asarray(window.coordinates(change), float) ** 2) for change in changes])
            for window in windows
        ]
        assert entry["num_steps"] == num_steps
        np.testing.assert_allclose(entry["perturbation_energy"], energy, rtol=1e-3)  # float32


@pytest.mark.slow
def test_right_and_right_under_attack_are_told_apart(attacked):
    classifier, images, labels, _ = attacked
    config = configured(attack="pgd", epsilon=3.0, attack_steps=8, num_monitored=12)
    dataset = data.Dataset("some", images, labels, images, labels, 10)
    found = experiment.monitor(config, classifier, dataset)
    assert found["is_right"].all()
    assert not found["is_right_under_attack"].all()


def test_the_summary_is_that_of_the_margins(tmp_path):
    """Of two windows, the second with margins ten times as large, and five samples without one."""
    margin = np.random.default_rng(0).lognormal(size=(2, 101)).astype(np.float32) * np.float32([[1], [10]])
    status = np.zeros((2, 101), int)
    status[1, :3], status[1, 3:5] = Status.ZERO_GRADIENT, Status.OUT_OF_STEPS
    result = make_result(margin, status)
    store.write_margins(tmp_path / "margins.npz", result, corner=[[0, 0], [5, 5]], seconds=1.0)
    report.summarize(Run("digits", tmp_path), test_accuracy=0.5, num_test=7)
    found = store.read_json(tmp_path / "summary.json")
    # Of samples without a margin it is known that it is large.
    for window, values in zip(found["windows"], np.where(status > 0, 1e9, margin), strict=True):
        percentiles = [window["percentiles"][rank] for rank in ("5", "50")]
        np.testing.assert_allclose(percentiles, np.percentile(values, (5, 50)), rtol=1e-5)
        low, high = window["median_interval"]
        assert low <= window["median"] <= high
    header, *rows = report.table(tmp_path).splitlines()[-3:]
    assert header.split()[-2:] == ["out_of_steps", "zero_gradient"]
    assert [row.split()[-2:] for row in rows] == [["0", "0"], ["2", "3"]]
