"""The run that another one is compared with: another experiment, in its own place."""

import dataclasses
import shutil

import pytest

from experiments import page, registry, run, store
from experiments.experiment import Config, Experiment
from experiments.given_weights import GivenWeights
from experiments.images import Images

CONFIG = Images(data="digits", network="mlp", window_size=3, window_step=1)
ROBUST = dataclasses.replace(CONFIG, attack="pgd", epsilon=0.5, baseline="standard", evaluation_steps=9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nothing(Config):
    """A kind that is never compared."""

    def run(self, run):
        raise NotImplementedError

    def measurements(self, path):
        raise NotImplementedError

    def report(self, path):
        raise NotImplementedError


@pytest.fixture
def ran(monkeypatch):
    """The runs that are made, which do nothing, by name; the experiments are those of this file."""
    found = []

    def run_(config, run):
        found.append((run.name, config, run.baseline))
        store.write_json(run.path / "summary.json", {})

    table = {"standard": CONFIG, "robust": ROBUST, "nothing": Nothing()}
    experiments = {name: Experiment(config, config, [], "A note.") for name, config in table.items()}
    monkeypatch.setattr(registry, "_EXPERIMENTS", experiments)
    monkeypatch.setattr(Images, "check", lambda config, data_dir: None)
    monkeypatch.setattr(Images, "run", run_)
    monkeypatch.setattr(Images, "report", lambda config, path: "")
    monkeypatch.setattr(page, "write", lambda path, config, verdicts: None)  # there is nothing to show
    return found


def test_it_runs_first_in_its_own_place_and_is_used_from_then_on(ran, tmp_path, capsys):
    run.run("robust", ROBUST, tmp_path / "robust")
    run.run("robust", ROBUST, tmp_path / "again")
    beside = tmp_path / "standard"
    assert [name for name, *_ in ran] == ["standard", "robust", "robust"]
    assert [baseline for *_, baseline in ran] == [None, beside, beside]
    assert store.baseline(tmp_path / "robust") == beside
    assert store.baseline(beside) is None
    told = capsys.readouterr().out
    assert "robust is compared with standard, which runs first:" in told
    assert f"robust is compared with standard in {beside}" in told


def test_quick_forms_are_compared_with_quick_forms(ran, tmp_path):
    run.run("robust", ROBUST, tmp_path / "robust_quick", is_quick=True)
    assert store.baseline(tmp_path / "robust_quick") == tmp_path / "standard_quick"
    assert store.verdicts(tmp_path / "standard_quick")["is_quick"]


def test_it_shares_what_the_user_has_changed_but_not_the_attack(ran, tmp_path):
    changed = dataclasses.replace(ROBUST, seed=3, num_images=7, epsilon=2.0, evaluation_steps=1, measure_every=5)
    run.run("robust", changed, tmp_path / "robust")
    assert ran[0][:2] == ("standard", dataclasses.replace(CONFIG, seed=3, num_images=7))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"num_epochs": 3}, {"num_images": 7}])
def test_another_run_in_its_place_is_refused_before_any_work(changes, ran, tmp_path):
    run.run("standard", dataclasses.replace(CONFIG, **changes), tmp_path / "standard")
    (field,) = changes
    with pytest.raises(ValueError, match=rf"standard belongs to another configuration \({field} is .*choose another f"):
        run.run("robust", ROBUST, tmp_path / "robust")
    assert not (tmp_path / "robust").exists()


def test_a_run_is_not_compared_with_itself(ran, tmp_path):
    with pytest.raises(ValueError, match="baseline=standard would compare the run with itself: name another"):
        run.run("standard", dataclasses.replace(CONFIG, baseline="standard"), tmp_path / "mine")
    with pytest.raises(ValueError, match=r"standard is the place of standard, which this run is compared with"):
        run.run("robust", ROBUST, tmp_path / "standard")
    with pytest.raises(ValueError, match="unknown experiment 'standart': did you mean 'standard'"):
        run.run("robust", dataclasses.replace(ROBUST, baseline="standart"), tmp_path / "robust")
    with pytest.raises(ValueError, match="baseline=nothing trains no network on images: name an experiment that does"):
        run.run("robust", dataclasses.replace(ROBUST, baseline="nothing"), tmp_path / "robust")


def test_it_is_found_behind_a_link_and_in_a_folder_that_was_moved(ran, tmp_path):
    results = tmp_path / "far" / "away" / "results"
    results.mkdir(parents=True)
    (tmp_path / "link").symlink_to(results)
    run.run("robust", ROBUST, tmp_path / "link" / "robust")
    assert store.baseline(results / "robust") == results / "standard"
    results.rename(tmp_path / "moved")
    assert store.baseline(tmp_path / "moved" / "robust") == tmp_path / "moved" / "standard"


def test_it_must_be_the_run_that_it_was(ran, tmp_path):
    path, beside = tmp_path / "robust", tmp_path / "standard"
    run.run("robust", ROBUST, path)
    (beside / "claims.json").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"robust is compared with .*/standard, which is not finished: finish that"):
        store.baseline(path)
    shutil.rmtree(beside)
    with pytest.raises(ValueError, match=r"robust is compared with .*/standard, which is gone: put it back, or start"):
        store.baseline(path)
    run.run("standard", dataclasses.replace(CONFIG, seed=3), beside)
    with pytest.raises(ValueError, match=r"holds another run by now \(seed is 3 there, 0 before\): put it back"):
        store.baseline(path)


def test_given_weights_are_compared_with_the_other_weights(tmp_path):
    plain = GivenWeights(network="lenet")
    flipped = GivenWeights(network="lenet", manipulation="flip", weights="a.npz", baseline_weights="b.npz")
    changes = {"weights": "a.npz", "baseline_weights": "b.npz", "images": "folder", "num_images": 3}
    expected = GivenWeights(network="lenet", weights="b.npz", images="folder", num_images=3)
    assert flipped.baseline_config(plain, changes) == expected
    with pytest.raises(ValueError, match="measures no given weights: name an experiment that does"):
        flipped.baseline_config(CONFIG, changes)
