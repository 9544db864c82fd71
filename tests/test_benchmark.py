"""The benchmark: what it counts, not how long it takes."""

import json

import jax
import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments import benchmark, workloads
from hmt_jax import models, subspaces


def tiny(num_images, data_dir):
    """A linear classifier, which DeepFool leaves in one step, so that the passes can be counted."""
    classifier = models.create("logistic", jax.random.key(0), image_shape=(4, 4, 1), num_classes=5)
    images = np.asarray(jax.random.uniform(jax.random.key(1), (num_images, 4, 4, 1)))
    return workloads.Workload("logistic", classifier, images, [subspaces.dct_diagonal((4, 4, 1), 2, 1)], 100)


@pytest.fixture
def tiny_plan(monkeypatch):
    plan = workloads.Plan(tiny, num_images=20, num_images_cpu=20, num_reference=1)
    monkeypatch.setattr(workloads, "PLANS", {"tiny": plan})
    monkeypatch.setattr(benchmark, "PLANS", {"tiny": plan})
    monkeypatch.setattr(benchmark, "_MATRIX_SIZE", {"cpu": 64})


def test_passes_and_operations_are_counted(tiny_plan, tmp_path, capsys):
    path = tmp_path / "new" / "benchmark.json"
    assert command_line.main(["benchmark", "--output", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["num_pairs"] == 3 * 20
    assert (row["steps_per_pair"], row["forward_per_pair"], row["backward_per_pair"]) == (1, 2, 4)
    # 16 x 5 products and sums, the bias, and the normalisation of 16 pixels; two forward and four backward passes
    flops = row["flops_per_s"] * row["seconds"] / 60
    assert 6 * 2 * 16 * 5 <= flops <= 6 * (2 * 16 * 5 + 5 + 4 * 16)
    assert 0 < row["utilization"] <= 1
    assert row["num_unconverged"] == 0
    assert "| tiny, d = 4 | 60 |" in capsys.readouterr().out


def test_unknown_workloads_are_listed(capsys):
    assert command_line.main(["benchmark", "everything"]) == 2
    assert "unknown workload 'everything'; the known ones are lenet_mnist" in capsys.readouterr().err


def test_a_reference_that_is_none(tiny_plan, tmp_path, capsys):
    assert command_line.main(["benchmark", "--reference", str(tmp_path), "--output", str(tmp_path / "b.json")]) == 2
    assert "is no checkout of LTS4/hold-me-tight: it has no utils.py" in capsys.readouterr().err
