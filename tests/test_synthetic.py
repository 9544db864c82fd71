"""Synthetic samples against their definition, and the experiments on them from the command line to their claims."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hmt_jax
from experiments import __main__ as command_line
from experiments import registry, store, synthetic
from experiments.catalogue import synthetic as catalogue
from experiments.experiment import Run
from experiments.synthetic import Alternating
from hmt_jax import Status, data, plots, solvers, subspaces

KEY = jax.random.key(3)
NUM = 4000
# Standard errors of a mean and a standard deviation of NUM normal numbers, times five.
MEAN_ERROR, STD_ERROR = 5 / np.sqrt(NUM), 5 / np.sqrt(2 * NUM)
each_kind = pytest.mark.parametrize("make", [data.synthetic_linear, data.synthetic_nonlinear])


def coordinates(samples):
    """Along u1, u2, ..., as columns."""
    return np.asarray(samples.images, np.float64).reshape(len(samples.images), -1) @ np.asarray(samples.basis)


@each_kind
def test_directions_are_orthonormal_and_taken_by_from_basis(make):
    samples = make(KEY, 7)
    basis = np.asarray(samples.basis, np.float64)
    np.testing.assert_allclose(basis.T @ basis, np.eye(100), atol=1e-5)  # a QR in float32
    line = subspaces.from_basis(samples.basis[:, :1], (10, 10, 1))
    along = jax.vmap(line.coordinates)(samples.images)[:, 0]
    np.testing.assert_allclose(along, coordinates(samples)[:, 0], atol=1e-5)


def test_linear_samples_are_epsilon_from_the_hyperplane_and_normal_along_all_else():
    samples = data.synthetic_linear(KEY, NUM, epsilon=0.3, noise=2.0, image_shape=(3, 2, 2))
    assert samples.images.shape == (NUM, 3, 2, 2)
    x1, *rest = coordinates(samples).T
    np.testing.assert_allclose(x1, 0.3 * (2 * samples.labels - 1), atol=1e-5)  # float32
    assert len(rest) == 11
    np.testing.assert_allclose(np.mean(rest, axis=1), 0, atol=2 * MEAN_ERROR)
    np.testing.assert_allclose(np.std(rest, axis=1), 2, atol=2 * STD_ERROR)
    np.testing.assert_allclose(np.corrcoef([x1, *rest]), np.eye(12), atol=MEAN_ERROR)


def test_nonlinear_samples_alternate_along_u2():
    samples = data.synthetic_nonlinear(
        KEY, NUM, epsilon=0.1, noise=0.5, period=4.0, num_periods=3, image_shape=(3, 4, 1)
    )
    x1, x2, *rest = coordinates(samples).T
    labels = np.asarray(samples.labels)
    np.testing.assert_allclose(x1, 0.1 * (2 * labels - 1), atol=1e-5)  # float32
    for label, places in ((1, [-12, -8, -4, 0, 4, 8]), (0, [-10, -6, -2, 2, 6, 10])):
        found, counts = np.unique(np.round(x2[labels == label], 3), return_counts=True)
        np.testing.assert_allclose(found, places, atol=1e-3)
        # Binomial counts, five standard deviations from what a uniform k gives.
        expected = NUM / 12
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    assert len(rest) == 10
    np.testing.assert_allclose(np.mean(rest, axis=1), 0, atol=0.5 * MEAN_ERROR)
    np.testing.assert_allclose(np.std(rest, axis=1), 0.5, atol=0.5 * STD_ERROR)


@each_kind
def test_labels_are_balanced_and_samples_depend_on_the_key_alone(make):
    first, again, other = make(KEY, NUM), make(KEY, NUM), make(jax.random.key(4), NUM)
    assert abs(np.mean(first.labels) - 0.5) < MEAN_ERROR / 2
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.allclose(first.basis, other.basis)
    assert np.any(first.labels != other.labels)


@each_kind
def test_another_epsilon_moves_the_samples_along_u1_alone(make):
    near, far = make(KEY, 50, epsilon=0.25), make(KEY, 50, epsilon=1.0)
    np.testing.assert_array_equal(near.labels, far.labels)
    moved = coordinates(far) - coordinates(near)
    np.testing.assert_allclose(moved[:, 0], 0.75 * (2 * np.asarray(near.labels) - 1), atol=1e-5)  # float32
    np.testing.assert_allclose(moved[:, 1:], 0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (data.synthetic_linear, {"num_samples": 0}, "num_samples must be at least 1, got 0"),
        (data.synthetic_linear, {"image_shape": (1, 1, 1)}, "with more than 1 pixels in all"),
        (data.synthetic_nonlinear, {"image_shape": (2, 1, 1)}, "with more than 2 pixels in all"),
        (data.synthetic_linear, {"image_shape": (4, 4)}, r"image_shape must be \(height, width, channels\)"),
        (data.synthetic_linear, {"epsilon": -1.0}, "epsilon must not be negative, got -1.0"),
        (data.synthetic_nonlinear, {"noise": float("nan")}, "noise must not be negative, got nan"),
        (data.synthetic_nonlinear, {"period": 0.0}, "period must be positive, got 0.0"),
        (data.synthetic_nonlinear, {"num_periods": 0}, "num_periods must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_told(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(KEY, **{"num_samples": 3, **options})


def hyperplane_logits(parameters, images):
    normal, offset = parameters
    gap = images.reshape(len(images), -1) @ normal + offset
    return jnp.stack([jnp.zeros_like(gap), gap], axis=1)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("solver", [solvers.DeepFool(overshoot=0.0), solvers.Scan(reach=30.0, resolution=0.01)])
@pytest.mark.filterwarnings("ignore::hmt_jax.PixelRangeWarning")
def test_margins_along_a_direction_are_those_of_the_hyperplane(solver):
    samples = data.synthetic_linear(KEY, 40, image_shape=(3, 3, 1))
    normal = 2 * samples.basis[:, 0] + 0.5 * samples.basis[:, 1]
    classifier = jax.tree_util.Partial(hyperplane_logits, (normal, jnp.asarray(0.7)))
    rows = synthetic.directions(samples, 2)
    result = hmt_jax.measure_margins(classifier, samples.images, [row.subspace for row in rows], solver)
    gap = np.asarray(samples.images).reshape(40, -1) @ np.asarray(normal) + 0.7
    is_near = np.abs(gap) / 0.5 < 29
    assert is_near.sum() > 30
    # DeepFool's shortest step is 1e-4.
    np.testing.assert_allclose(result.margin[0], np.abs(gap) / 2, atol=1.01e-4)
    np.testing.assert_allclose(result.margin[1, is_near], np.abs(gap)[is_near] / 0.5, atol=1.01e-4)
    np.testing.assert_array_equal(result.label[0], gap > 0)
    np.testing.assert_array_equal(result.adversarial_label[0], gap <= 0)


SETTINGS = ["--num-train", "256", "--num-observed", "12", "--num-epochs", "2", "--side", "6", "--resolution", "0.5"]
SETTINGS += ["--reach", "5"]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Simulated devices would wait for each other in hundreds of steps."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


def has_rows_of_the_stored_margins(path, summary):
    with np.load(path / "logistic.npz") as arrays:
        margin, status, names = arrays["margin"], arrays["status"], arrays["row"].tolist()
    assert names == ["u1", "u1, scanned", "complement", "u2", "random 1"]
    rows = {row["subspace"]: row for row in summary["networks"]["logistic"]["rows"]}
    assert (status[0] == Status.CONVERGED).all()
    assert rows["u1"]["median"] == pytest.approx(np.median(margin[0]))
    assert rows["complement"]["dimension"] == 35


def has_a_part_for_each_epsilon(path, summary):
    assert [(part["epoch"], part["epsilon"]) for part in summary["parts"]] == [(2, 0.0), (2, 1.0)]


def has_two_trainings(path, summary):
    assert [(part["epoch"], part["epsilon"]) for part in summary["parts"]] == [(2, 0.0), (4, 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more", "look"),
    [
        ("synthetic_linear", ["--num-others", "1", "--random-dimensions", "1"], has_rows_of_the_stored_margins),
        ("synthetic_nonlinear", [], has_a_part_for_each_epsilon),
        ("synthetic_forgetting", [], has_two_trainings),
    ],
)
def test_a_run_ends_with_pictures_and_verdicts_and_is_taken_up(name, more, look, tmp_path, capsys):
    path = tmp_path / "run"
    arguments = ["run", name, "--quick", "--folder", str(path), *SETTINGS, *more]
    assert command_line.main(arguments) == 0
    verdicts = json.loads((path / "claims.json").read_text())
    assert verdicts["is_quick"]
    assert [verdict["claim"] for verdict in verdicts["claims"]] == [claim.text for claim in registry.get(name).claims]
    summary = json.loads((path / "summary.json").read_text())
    assert 0 <= summary["test_accuracy"] <= 1
    look(path, summary)
    pictures = list(path.glob("*.png"))
    assert path / "margins.png" in pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    before = {file: file.stat().st_mtime_ns for file in path.glob("*.npz") if file.name != "measurements.npz"}
    for file in ("claims.json", "summary.json"):
        (path / file).unlink()
    assert command_line.main(arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before  # nothing is trained anew
    assert json.loads((path / "summary.json").read_text()) == summary
    assert "u1, scanned" in capsys.readouterr().out


def write_observed(file, margin, status=None, accuracy=0.9):
    """What a run keeps of a network, with the given margins along u2."""
    margin = np.asarray(margin, float)[None]
    status = np.zeros(margin.shape, int) if status is None else np.asarray(status)[None]
    np.savez(file, row=np.array(["u2"]), margin=margin, status=status, accuracy=np.array([1.0, accuracy]))


def test_accuracy_is_that_of_networks_whose_first_training_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "describe", lambda file: {"test_accuracy": float(store.read_arrays(file)["share"])})
    monkeypatch.setattr(Alternating, "draw", lambda *_: None)
    config = Alternating(num_epochs=20, measure_every=10, is_continued=True, epsilons=(0.0, 1.0), side=2, num_train=1)
    accuracies = {10: 0.6, 20: 0.9, 30: 0.8, 40: 0.95}
    for (_, epoch, file), share in zip(
        synthetic.observations(tmp_path, dataclasses.asdict(config)), accuracies.values(), strict=True
    ):
        store.write_arrays(file, {"epoch": np.array(epoch), "epsilon": np.array(0.0), "share": np.array(share)})
    config.run(Run("forgetting", tmp_path))
    assert json.loads((tmp_path / "summary.json").read_text())["test_accuracy"] == 0.8


def put(path, **settings):
    """The configuration of a run on T2."""
    described = store.to_json("synthetic_nonlinear", dataclasses.replace(Alternating(), **settings))
    store.write_json(path / "config.json", described)
    return [file for *_, file in synthetic.observations(path, described["settings"])]


def test_claims_on_a_sweep_by_hand(tmp_path):
    least, greatest = put(tmp_path, epsilons=(0.0, 0.5), period=8.0)
    write_observed(least, [1.0, 2.0, 3.0], accuracy=0.75)
    write_observed(greatest, [30.0, 14.0, 1.0])
    first = catalogue.at_epsilon(0)
    assert catalogue.accuracy(first)(tmp_path).value == 0.75
    assert catalogue.median_over(catalogue.half_period, first, "u2")(tmp_path).value == 2 / 4
    assert catalogue.growth_along_u2(tmp_path).value == 7
    write_observed(greatest, [30.0, 14.0, 1.0], [Status.OUT_OF_STEPS, Status.ZERO_GRADIENT, 0])
    assert catalogue.growth_along_u2(tmp_path).value == np.inf


def test_growth_is_the_largest_within_so_many_epochs_after_the_switch(tmp_path):
    files = put(tmp_path, num_epochs=4, measure_every=2, is_continued=True, epsilons=(0.0, 1.0))
    # The drop from 8 to 2 comes before the switch, and so does growth from 1 to 8.
    for file, margin in zip(files, (1.0, 8.0, 10.0, 50.0), strict=True):
        write_observed(file, [margin] * 3)
    assert catalogue.largest_growth("u2", 2)(tmp_path).value == 5
    assert catalogue.largest_growth("u2", 4)(tmp_path).value == 50 / 8
    with pytest.raises(
        ValueError, match="no epochs that were observed are within 1 of each other: lower measure_every"
    ):
        catalogue.largest_growth("u2", 1)(tmp_path)
    at_switch = catalogue.at_epsilon(0)
    assert catalogue.median_over(lambda settings: settings["num_epochs"], at_switch, "u2")(tmp_path).value == 2
    for file in files[2:]:
        write_observed(file, [1.0] * 3, [Status.OUT_OF_STEPS] * 3)
    assert catalogue.largest_growth("u2", 4)(tmp_path).value == np.inf


def test_the_complement_is_compared_with_u1(tmp_path):
    margin = np.array([[1.0, 2.0, 4.0], [3.0, 12.0, 20.0]])
    np.savez(tmp_path / "mlp.npz", row=np.array(["u1", "complement"]), margin=margin, status=np.zeros((2, 3), int))
    assert catalogue.complement_over_u1("mlp")(tmp_path).value == 6


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("synthetic_linear", ["--num-train", "0"], "num_train must be at least 1, got 0"),
        ("synthetic_linear", ["--side", "1"], "side must be at least 2, got 1"),
        ("synthetic_linear", ["--reach", "0.001"], "resolution must be positive and at most reach, got 0.02 and 0.001"),
        (
            "synthetic_nonlinear",
            ["--epsilons", "1", "0"],
            "epsilons must be rising, and different in six digits, got (1.0, 0.0)",
        ),
        ("synthetic_nonlinear", ["--epsilons", "0.1", "0.1000001"], "different in six digits, got (0.1, 0.1000001)"),
        ("synthetic_forgetting", ["--measure-every", "7"], "measure_every must divide num_epochs"),
        ("synthetic_linear", ["--num-others", "100"], "num_others must be between 0 and 99, got 100"),
        ("synthetic_linear", ["--random-dimensions", "3", "101"], "random_dimensions must be between 1 and 100"),
        ("synthetic_linear", ["--epsilon", "-1"], "epsilon must not be negative, got -1"),
        ("synthetic_nonlinear", ["--period", "0"], "period must be positive, got 0"),
        ("synthetic_linear", ["--epsilon", "inf"], "epsilon must be finite, got inf"),
        ("synthetic_nonlinear", ["--epsilons", "0", "nan"], "epsilons must be finite, got (0.0, nan)"),
        ("synthetic_forgetting", ["--epsilons", "-1", "1"], "epsilon must not be negative, got -1"),
    ],
)
def test_bad_settings_are_told(name, settings, message, tmp_path, capsys):
    assert command_line.main(["run", name, *settings, "--folder", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


PERCENTILES = {"u1": np.array([[1, 2, 3], [2, 3, 4]]), "u2": np.array([[5.0, 50.0, np.inf], [9.0, np.inf, np.inf]])}


def test_curves_have_medians_bands_and_triangles():
    first, second = plots.margin_curves([0, 10], {"first": PERCENTILES, "second": PERCENTILES}, ticks=["a", "b"])
    second.figure.savefig(io.BytesIO())
    u1, u2 = first.lines
    np.testing.assert_array_equal(u1.get_ydata(), [2, 3])
    np.testing.assert_array_equal(u2.get_ydata(), [50, np.nan])
    triangles = [points for points in first.collections if len(points.get_offsets()) and points.get_offsets()[0, 0]]
    assert [points.get_offsets().tolist() for points in triangles] == [[[10, 150]]]  # three times the greatest
    assert [label.get_text() for label in first.get_xticklabels()] == ["a", "b"]


def test_intervals_have_a_place_for_each_subspace():
    axes = plots.margin_intervals(["x", "y"], PERCENTILES, title="a title")
    axes.figure.savefig(io.BytesIO())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y"]
    bars = [line for lines in axes.collections for line in lines.get_paths() if len(line.vertices) == 2]
    assert [bar.vertices[:, 1].tolist() for bar in bars[:2]] == [[1, 3], [2, 4]]


def test_cross_sections_have_a_panel_each_with_the_boundary():
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 9)
    gaps = np.stack([np.broadcast_to(x[None] - 0.25, (9, 5)), np.ones((9, 5))])
    points = np.zeros((2, 4, 2))
    panels = plots.cross_sections(gaps, x, y, titles=["one", "two"], points=points, labels=np.array([0, 1, 1, 1]))
    panels[0].figure.savefig(io.BytesIO())
    one, two, bar = panels[0].figure.axes
    assert (one.get_title(), two.get_title()) == ("one", "two")
    (boundary,) = [c for c in one.collections if type(c).__name__ == "QuadContourSet"]
    np.testing.assert_allclose(boundary.get_paths()[0].vertices[:, 0], 0.25)
    assert not [c for c in two.collections if type(c).__name__ == "QuadContourSet"]
    assert bar.get_ylabel() == "probability of class 1"
