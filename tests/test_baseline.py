"""Which run another one is compared with."""

import dataclasses
import shutil

import pytest

from experiments import baseline, folder
from experiments import run as runner
from experiments.diagonal import DiagonalMargins
from experiments.imagenet import GivenWeights

CONFIG = DiagonalMargins(data="digits", network="mlp", window_size=3, window_step=1, attack="pgd", epsilon=0.5)
ROBUST = dataclasses.replace(CONFIG, baseline="standard_training", evaluation_steps=9)


def put(path, config, *, is_finished=True):
    path.mkdir(parents=True)
    folder.write_json(path / "config.json", folder.described("another", config))
    if is_finished:
        folder.write_json(path / "checks.json", {})


@pytest.fixture
def made(monkeypatch):
    """The configurations of runs that are made, which do nothing."""
    configs = []

    def run(name, config, path, data_dir):
        path.mkdir()
        configs.append(config)

    monkeypatch.setattr(runner, "run", run)
    return configs


def test_a_finished_run_beside_is_taken(tmp_path, made):
    standard = dataclasses.replace(CONFIG, attack="none")
    put(tmp_path / "a", dataclasses.replace(standard, seed=1))
    put(tmp_path / "b", CONFIG)
    put(tmp_path / "c", standard, is_finished=False)
    # What an attack would be, and what else is measured, changes nothing.
    put(tmp_path / "d", dataclasses.replace(standard, epsilon=3.0, attack_steps=2, evaluation_steps=5, measure_every=1))
    (tmp_path / "robust").mkdir()
    baseline.provide("robust", ROBUST.baseline_config, tmp_path / "robust", None)
    assert baseline.of(tmp_path / "robust").resolve() == tmp_path / "d"
    assert not made


@pytest.mark.parametrize(
    "difference", [{"seed": 1}, {"num_epochs": 3}, {"attack": "pgd"}, {"manipulation": "flip"}, {"num_images": 7}]
)
def test_others_are_not(difference, tmp_path, made):
    put(tmp_path / "a", dataclasses.replace(CONFIG, **{"attack": "none", **difference}))
    (tmp_path / "robust").mkdir()
    baseline.provide("robust", ROBUST.baseline_config, tmp_path / "robust", None)
    assert baseline.of(tmp_path / "robust") == tmp_path / "robust" / "baseline"
    assert made == [dataclasses.replace(CONFIG, attack="none")]


def test_what_was_made_for_another_run_is_taken(tmp_path, made):
    put(tmp_path / "a" / "baseline", dataclasses.replace(CONFIG, attack="none"))
    (tmp_path / "robust").mkdir()
    baseline.provide("robust", ROBUST.baseline_config, tmp_path / "robust", None)
    assert baseline.of(tmp_path / "robust").resolve() == tmp_path / "a" / "baseline"


def test_attacks_count_where_there_is_one(tmp_path, made):
    flipped = dataclasses.replace(CONFIG, manipulation="flip", baseline="plain_data")
    put(tmp_path / "a", dataclasses.replace(CONFIG, epsilon=0.7))
    put(tmp_path / "b", CONFIG)
    (tmp_path / "flipped").mkdir()
    baseline.provide("flipped", flipped.baseline_config, tmp_path / "flipped", None)
    assert baseline.of(tmp_path / "flipped").resolve() == tmp_path / "b"


def test_what_is_compared_with_stays(tmp_path, made):
    (tmp_path / "robust").mkdir()
    standard = dataclasses.replace(CONFIG, attack="none")
    put(tmp_path / "another", standard)
    put(tmp_path / "chosen", standard)
    folder.write_json(tmp_path / "robust" / "baseline.json", {"folder": "../chosen"})
    baseline.provide("robust", ROBUST.baseline_config, tmp_path / "robust", None)
    assert baseline.of(tmp_path / "robust").resolve() == tmp_path / "chosen"
    assert not made
    assert baseline.of(tmp_path) is None


def test_a_run_is_not_compared_with_itself():
    with pytest.raises(ValueError, match="baseline=plain_data would compare the run with itself, for its manipulation"):
        dataclasses.replace(CONFIG, baseline="plain_data")
    with pytest.raises(ValueError, match="unknown baseline 'me'; the known ones are none, standard_training, plain"):
        dataclasses.replace(CONFIG, baseline="me")


def test_it_is_found_behind_a_link(tmp_path, made):
    results = tmp_path / "far" / "away" / "results"
    put(results / "a", dataclasses.replace(CONFIG, attack="none"))
    (results / "robust").mkdir()
    (tmp_path / "results").symlink_to(results)
    for path in (tmp_path / "results" / "robust", results / "robust"):
        baseline.provide("robust", ROBUST.baseline_config, path, None)
        assert baseline.of(path) == results / "a"
        assert baseline.of(results / "robust") == results / "a"


def test_it_may_not_be_gone(tmp_path, made):
    put(tmp_path / "a", dataclasses.replace(CONFIG, attack="none"))
    (tmp_path / "robust").mkdir()
    baseline.provide("robust", ROBUST.baseline_config, tmp_path / "robust", None)
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(ValueError, match=r"robust is compared with .*/a, which is gone: put it back, or start"):
        baseline.of(tmp_path / "robust")


def test_it_must_be_the_run_that_it_was(tmp_path, made):
    standard = dataclasses.replace(CONFIG, attack="none")
    put(tmp_path / "a", standard)
    (tmp_path / "robust").mkdir()
    baseline.provide("robust", ROBUST.baseline_config, tmp_path / "robust", None)
    assert baseline.recorded(tmp_path / "robust", standard) == tmp_path / "a"
    (tmp_path / "a" / "checks.json").unlink()
    with pytest.raises(ValueError, match=r"robust is compared with .*/a, which is not finished: finish that run first"):
        baseline.provide("robust", ROBUST.baseline_config, tmp_path / "robust", None)
    shutil.rmtree(tmp_path / "a")
    put(tmp_path / "a", dataclasses.replace(standard, seed=3))
    with pytest.raises(
        ValueError, match=r"/a, which holds another run by now \(seed is 3 there, was 0\): put the former"
    ):
        baseline.provide("robust", ROBUST.baseline_config, tmp_path / "robust", None)


def test_folders_of_others_are_passed_by(tmp_path, made, monkeypatch):
    put(tmp_path / "a", CONFIG)
    put(tmp_path / "b", dataclasses.replace(CONFIG, attack="none"))
    is_finished = runner.is_finished

    def or_forbidden(path):
        if path.name == "a":
            raise PermissionError(13, "Permission denied")
        return is_finished(path)

    monkeypatch.setattr(runner, "is_finished", or_forbidden)
    (tmp_path / "robust").mkdir()
    baseline.provide("robust", ROBUST.baseline_config, tmp_path / "robust", None)
    assert baseline.of(tmp_path / "robust") == tmp_path / "b"


def test_a_damaged_run_is_passed_by(tmp_path, made):
    put(tmp_path / "a", CONFIG)
    (tmp_path / "a" / "config.json").write_text("{")
    put(tmp_path / "b", dataclasses.replace(CONFIG, attack="none"))
    (tmp_path / "robust").mkdir()
    baseline.provide("robust", ROBUST.baseline_config, tmp_path / "robust", None)
    assert baseline.of(tmp_path / "robust") == tmp_path / "b"


def test_a_run_that_stays_inside_is_taken_again(tmp_path, made):
    put(tmp_path / "robust" / "baseline", dataclasses.replace(CONFIG, attack="none"))
    baseline.provide("robust", ROBUST.baseline_config, tmp_path / "robust", None)
    assert baseline.of(tmp_path / "robust") == tmp_path / "robust" / "baseline"
    assert not made


def test_a_run_is_told_by_the_files_that_it_names(tmp_path, made):
    file = tmp_path / "weights.npz"
    file.write_bytes(b"before")
    config = GivenWeights(network="lenet", weights=str(file))
    put(tmp_path / "a", config)
    for name in ("robust", "later"):
        (tmp_path / name).mkdir()
    baseline.provide("robust", config, tmp_path / "robust", None)
    assert baseline.of(tmp_path / "robust") == tmp_path / "a"
    file.write_bytes(b"behind")
    with pytest.raises(ValueError, match=r"/a, which holds another run by now \(checksums is"):
        baseline.provide("robust", config, tmp_path / "robust", None)
    baseline.provide("later", config, tmp_path / "later", None)
    assert baseline.of(tmp_path / "later") == tmp_path / "later" / "baseline"
    assert made == [config]
