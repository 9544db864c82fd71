"""The script that compares with other libraries: its own part of the work."""

import importlib.metadata
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import random_images

from hmt_jax import models

torch.set_num_threads(1)  # the tests share the cores among their processes
_PATH = pathlib.Path(__file__).parents[2] / "docs" / "peers.py"


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("peers", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def linear(peers):
    """Three images of 12 pixels and a linear classifier of four classes; its margins (3,), by NumPy."""
    weights = np.random.default_rng(1).normal(size=(12, 4)).astype("float32")
    images = random_images(3, 4, 3, 1, dtype="float32")
    classifier = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.asarray(weights))
    layer = torch.nn.Linear(12, 4, bias=False)
    layer.weight.data = torch.from_numpy(weights.T.copy())
    network = torch.nn.Sequential(torch.nn.Flatten(), layer).requires_grad_(False)
    margins = []
    for logits in images.reshape(3, 12).astype("float64") @ weights:
        gaps, norms = logits.max() - logits, np.linalg.norm(weights - weights[:, [logits.argmax()]], axis=0)
        margins.append(min(gap / norm for gap, norm in zip(gaps, norms, strict=True) if norm > 0))
    return peers.problem_of(classifier, network, images), np.array(margins)


@pytest.mark.slow
def test_rows_of_a_linear_classifier(peers, linear):
    problem, margins = linear
    searches = peers.installed(problem, {"hmt-jax": peers.hmt_searches})
    name = f"hmt-jax {importlib.metadata.version('hmt-jax')}"
    named = [(library, search.solver, search.num_steps) for library, search in searches]
    expected = {"DeepFool": 100, "tight, quick": 21, "tight, fast": 30, "tight, normal": 90}
    assert named == [(name, solver, num_steps) for solver, num_steps in expected.items()]
    # The last two differ from the second in their numbers alone, and would be compiled as well.
    for search, overshoot in zip(searches[:2], (1.02, 1), strict=True):
        row = peers.measure(problem, *search)
        # What float32 leaves of pixels, and of the millionth that `tight` goes beyond the boundary.
        np.testing.assert_allclose(row["margins"], overshoot * margins, rtol=1e-5)
        assert row["ms_per_image"] > 0


def test_perturbations_that_change_no_label_have_failed(peers, linear):
    problem, _ = linear
    perturbed = problem.pixels * 1.001  # the direction in which no label of this classifier changes
    perturbed[2] = torch.nan
    assert np.isinf(peers.margins_of(problem, perturbed)).all()


def test_an_attack_in_the_unit_box_gets_the_same_network(peers, linear, capsys):
    problem, _ = linear

    def attack(network, pixels, labels):
        assert 1 / 3 <= pixels.min() <= pixels.max() <= 2 / 3
        torch.testing.assert_close(network(pixels), problem.network(problem.pixels))
        assert labels is problem.labels
        return torch.clamp(pixels + torch.tensor([0.1, -1.0, 1.0])[:, None, None, None], 0, 1)

    # Three times as far in pixels, and to the bounds.
    expected = torch.stack([problem.pixels[0] + 0.3, *(torch.full((1, 4, 3), bound) for bound in (-1.0, 2.0))])
    perturbed = peers.in_unit_box(problem, attack)
    torch.testing.assert_close(perturbed, expected)
    peers.measure(problem, "any", peers.Search("none", 1, 3, lambda: perturbed))
    assert "any, none, 1 steps: pixels reach -1.0 or 2.0, so bounds matter" in capsys.readouterr().out


def test_the_twin_of_a_lenet(peers):
    classifier = models.create(
        "lenet", jax.random.key(0), image_shape=(28, 28, 1), num_classes=10, mean=(0.1,), std=(0.3,)
    )
    images, weights = random_images(2, 28, 28, 1, dtype="float32"), models.to_torch(classifier)
    problem = peers.problem_of(classifier, peers.twin(weights, 0.1, 0.3), images)
    assert problem.labels.shape == (2,)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        peers.problem_of(classifier, peers.twin(weights, 0.1, 0.4), images)


def test_ratios_to_the_least_margins(peers):
    # No search finds a margin of the last image; the least ones of the others are 1, 2 and 1.
    margins = {"all": [1, 4, 3, np.inf], "one": [2, 2, np.inf, np.inf], "few": [np.inf, np.inf, 1, np.inf]}
    about = {"library": "any", "num_steps": 7, "batch_size": None, "ms_per_image": 0.25}
    found = peers.summaries([{**about, "solver": name, "margins": np.array(row)} for name, row in margins.items()])
    assert [row["median_ratio"] for row in found] == [2, 2, None]  # of 1, 2, 3; of 2, 1, inf; of inf, inf, 1
    assert [row["median_margin"] for row in found] == [3.5, None, None]
    assert [row["share_failed"] for row in found] == [0.25, 0.5, 0.75]
    assert peers.table(found).splitlines()[2:] == [
        "| any | all | 7 | its choice | 3.500 | 25.0% | 2.000 | 0.25 |",
        "| any | one | 7 | its choice | infinite | 50.0% | 2.000 | 0.25 |",
        "| any | few | 7 | its choice | infinite | 75.0% | infinite | 0.25 |",
    ]


def test_a_library_that_is_not_installed(peers, linear, capsys):
    def searches(problem):
        import no_such_module  # noqa: F401

    assert peers.installed(linear[0], {"no-such-library": searches}) == []
    sentence = "no-such-library is left out, because no_such_module is not installed: pip install no-such-library\n"
    assert capsys.readouterr().out == sentence
