"""The benchmark: what it counts, not how long it takes."""

import json

import jax
import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments.benchmarks import timing, training, workloads
from hmt_jax import models, subspaces


def tiny(num_images, data_dir):
    """A linear classifier, which DeepFool leaves in one step, so that the passes can be counted."""
    classifier = models.create("logistic", jax.random.key(0), image_shape=(4, 4, 1), num_classes=5)
    images = np.asarray(jax.random.uniform(jax.random.key(1), (num_images, 4, 4, 1)))
    return workloads.Workload("logistic", classifier, images, subspaces.dct_diagonal((4, 4, 1), 2, 1))


@pytest.fixture
def tiny_plan(monkeypatch):
    plan = workloads.Plan(tiny, num_images=20, num_images_cpu=20, num_reference=1)
    monkeypatch.setattr(workloads, "PLANS", {"tiny": plan})
    monkeypatch.setattr(timing, "_MATRIX_SIZE", {"cpu": 64})


@pytest.mark.slow
def test_passes_and_operations_are_counted(tiny_plan, tmp_path, capsys):
    path = tmp_path / "new" / "benchmark.json"
    assert command_line.main(["benchmark", "--output", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["num_pairs"] == 3 * 20
    # One step each, looked at where it arrives and where it ends; the gradients at a sample serve all three subspaces.
    assert row["steps_per_pair"] == 1
    np.testing.assert_allclose(row["forward_per_pair"], 1 / 3 + 1 + 1)
    np.testing.assert_allclose(row["backward_per_pair"], 4 / 3 + 1)
    # 16 x 5 products and sums, the bias, and the normalisation of 16 pixels, in each of those passes
    num_passes = row["forward_per_pair"] + row["backward_per_pair"]
    flops = row["flops_per_s"] * row["seconds"] / 60
    assert num_passes * 2 * 16 * 5 <= flops <= num_passes * (2 * 16 * 5 + 5 + 4 * 16)
    assert 0 < row["utilization"] <= 1
    assert row["num_unconverged"] == 0
    assert "workload tiny, dimension 4, seconds_per_pair " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operations_of_training_are_counted(tiny_plan, dtype):
    images, labels = np.zeros((16, 4, 4, 1), np.uint8), np.zeros(16, np.int32)
    row = training.rates_of("logistic", images, labels, num_epochs=2, batch_size=8, compute_dtype=dtype)
    # Three passes, each of 16 x 10 products and sums, the bias, and the normalisation of 16 pixels.
    assert 3 * 2 * 16 * 10 <= row["flops_per_s"] / row["images_per_s"] <= 3 * (2 * 16 * 10 + 10 + 4 * 16)
    assert row["share_of_matrix_rate"] == pytest.approx(row["flops_per_s"] / row["matrix_flops_per_s"])


def test_unknown_workloads_are_listed(capsys):
    assert command_line.main(["benchmark", "everything"]) == 2
    assert "unknown workload 'everything'; the known ones are lenet_mnist" in capsys.readouterr().err


def test_unknown_training_workloads_are_listed(capsys):
    assert command_line.main(["benchmark", "--training", "everything"]) == 2
    assert "unknown training workload 'everything'; the known ones are lenet_mnist" in capsys.readouterr().err


def test_a_reference_that_is_none(tiny_plan, tmp_path, capsys):
    assert command_line.main(["benchmark", "--reference", str(tmp_path), "--output", str(tmp_path / "b.json")]) == 2
    assert "is no checkout of LTS4/hold-me-tight: it has no utils.py" in capsys.readouterr().err


@pytest.mark.slow
def test_tradeoffs_of_a_linear_classifier(tiny_plan, tmp_path, monkeypatch):
    plan = workloads.PLANS["tiny"]._replace(build=lambda _, data_dir: tiny(20, data_dir))
    monkeypatch.setattr(workloads, "PLANS", {"lenet_mnist": plan})
    path = tmp_path / "tradeoffs.json"
    assert command_line.main(["benchmark", "--tradeoffs", "--output", str(path)]) == 0
    rows = json.loads(path.read_text())["tradeoffs"]
    assert [row["num_candidates"] for row in rows] == [2, 3, 5, 10]
    workload = tiny(20, None)
    # One step leads to the nearest boundary among those of the candidates: fewer of them, and it may lie farther away.
    expected = [_linear_margins(workload, number) for number in (2, 3, 5, 10)]
    medians = np.median(expected, axis=2)
    # The margins are of float32, and each number of candidates is a program of its own, which rounds in its own way.
    np.testing.assert_allclose([row["median_ratios"] for row in rows], medians / medians[-1], rtol=1e-5)
    share = np.mean(np.abs(expected[0] / expected[-1] - 1) > 0.01)
    assert rows[0]["share_changed"] == pytest.approx(share)
    assert not any(row["num_without_margin"] for row in rows)


def _linear_margins(workload, num_candidates):
    """Margins (R, N) among the classes of the largest logits, by NumPy."""
    weights = np.asarray(workload.classifier.network.linear.kernel[...], np.float64)
    images = workload.images.reshape(20, -1).astype(np.float64)
    logits = images @ weights + np.asarray(workload.classifier.network.linear.bias[...])
    margins = np.empty((len(workload.subspaces), 20))
    for r, subspace in enumerate(workload.subspaces):
        basis = np.stack([np.asarray(subspace.embed(unit)).ravel() for unit in np.eye(subspace.dimension)])
        for n in range(20):
            label, *others = np.argsort(-logits[n])[:num_candidates]
            gaps = [logits[n, label] - logits[n, k] for k in others]
            norms = [np.linalg.norm(basis @ (weights[:, k] - weights[:, label])) for k in others]
            margins[r, n] = 1.02 * min(gap / norm for gap, norm in zip(gaps, norms, strict=True))
    return margins
