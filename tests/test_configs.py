"""Every experiment on images, in its quick form, on images made by hand and a network that compiles at once."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import config, run
from experiments.diagonal import DiagonalMargins
from hmt_jax import data, models

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
NAMES = [name for name in config.names() if isinstance(config.load(name), DiagonalMargins) and name != "digits"]
NETWORKS = sorted({(full.network, full.data, full.num_hidden) for full in map(config.load, NAMES)})


def reduced(name):
    """The quick form on a network, and with an attack, that compile soon."""
    quick = config.load(name, quick=True)
    return dataclasses.replace(
        quick,
        network="logistic",
        num_hidden=(),
        num_epochs=2 if quick.measure_every else 1,
        num_images=4,
        num_monitored=4,
        max_steps=10,
        batch_size=50,
        window_step=4 if quick.data == "mnist" else 8,
        attack_steps=1,
        evaluation_steps=min(quick.evaluation_steps, 1),
    )


# Experiments that differ in their networks alone are one here.
REDUCED = list({dataclasses.replace(reduced(name), num_train=0, num_test=0): name for name in NAMES}.values())


def stand_in(name, data_dir):
    """A template for each of ten classes under noise, in place of a data set."""
    rng, shape = np.random.default_rng(0), SHAPES[name]
    templates = rng.uniform(0, 160, (10, *shape))
    labels = np.arange(200) % 10
    images = (templates[labels] + rng.uniform(0, 90, (200, *shape))).astype(np.uint8)
    return data.from_arrays(images[:150], labels[:150], images[150:], labels[150:], name)


@pytest.fixture
def stand_ins(monkeypatch):
    devices = jax.devices()[:1]  # simulated ones would wait for each other
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(data, "load", stand_in)


@pytest.mark.parametrize("name", REDUCED)
def test_quick_forms_run(name, stand_ins, tmp_path, capsys):
    small = reduced(name)
    claims = config.checks(name)
    run.run(name, small, tmp_path / name, claims=claims, is_quick=True, data_dir=str(tmp_path))
    verdicts = json.loads((tmp_path / name / "checks.json").read_text())["checks"]
    assert [verdict["claim"] for verdict in verdicts] == [claim.claim for claim in claims]
    assert np.isfinite([float(verdict["value"]) for verdict in verdicts]).all()
    told = capsys.readouterr().out
    assert all(claim.claim in told for claim in claims)
    written = {file.name for file in (tmp_path / name).iterdir()}
    common = {"config.json", "environment.json", "checks.json", "summary.json"}
    removed = {file.name for pattern in small.results for file in (tmp_path / name).glob(pattern)}
    assert written == removed | common  # so that starting over leaves nothing behind


@pytest.mark.parametrize(("network", "on", "num_hidden"), NETWORKS)
def test_networks_take_the_images(network, on, num_hidden):
    shape, options = SHAPES[on], {"num_hidden": num_hidden} if num_hidden else {}

    @nnx.eval_shape
    def logits():
        classifier = models.create(network, jax.random.key(0), image_shape=shape, num_classes=10, **options)
        return classifier(np.zeros((2, *shape), np.float32))

    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", config.names())
def test_every_experiment_has_a_claim_and_a_quick_form(name):
    full, quick = config.load(name), config.load(name, quick=True)
    assert type(quick) is type(full)
    assert quick != full
    assert config.checks(name)
    assert f"python -m experiments run {name}\n" in config._module(name).__doc__
