"""Amplitudes along basis images, and errors under noise along them, against NumPy, SciPy and closed forms."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from helpers import basis_of, linear_logits, linear_parameters, random_images, tanh_classifier, with_parameters
from scipy import stats
from small_runs import small_baseline, small_digits

import hmt_jax
from experiments import frequency_map, registry, run, store
from experiments.catalogue.frequency_map import correlation_with_errors, share_missed, spread_where_errors_are_silent
from experiments.frequency_map import Found, FrequencyMap, basis
from hmt_jax import data, plots, solvers

SHAPE = (4, 5, 1)
CONFIG = FrequencyMap(baseline="digits", data="digits", norms=(1.0, 3.0, 9.0), num_images=6, num_tested=50)

# Basis images


def images_of(lines):
    """The basis images (R, height, width) that span lines."""
    return np.stack([basis_of(line)[:, 0].reshape(line.image_shape[:2]) for line in lines])


@pytest.mark.parametrize("shape", [(4, 5, 1), (6, 4, 1), (3, 1, 1)])
@pytest.mark.parametrize("name", ["fourier", "dct"])
def test_basis_images_are_orthonormal(name, shape):
    frequency, lines = basis(name, shape)
    rows = images_of(lines).reshape(len(lines), -1)
    np.testing.assert_allclose(rows @ rows.T, np.eye(shape[0] * shape[1]), atol=2e-6)  # of float32
    assert len({*map(tuple, frequency.tolist())}) == shape[0] * shape[1]


@pytest.mark.parametrize("shape", [(4, 5, 1), (6, 4, 1)])
def test_a_fourier_wave_has_its_own_frequency_alone(shape):
    frequency, lines = basis("fourier", shape)
    for (u, v), image in zip(frequency.tolist(), images_of(lines), strict=True):
        found = np.abs(np.fft.fft2(image)) > 1e-5
        expected = np.zeros(shape[:2], bool)
        expected[u, v] = expected[-u, -v] = True
        np.testing.assert_array_equal(found, expected)
    rows, columns = (np.fft.fftshift(np.fft.fftfreq(n, 1 / n)) for n in shape[:2])  # the zero in the centre
    np.testing.assert_array_equal(frequency, np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2))


def test_fourier_coordinates_are_those_of_hartley():
    image = random_images(*SHAPE, dtype="float32")
    transformed = np.fft.fft2(image[..., 0])
    expected = (transformed.real - transformed.imag) / np.sqrt(20)
    frequency, lines = basis("fourier", SHAPE)
    found = [line.coordinates(jnp.asarray(image))[0] for line in lines]
    np.testing.assert_allclose(found, expected[tuple(frequency.T)], atol=1e-5)


def test_dct_coordinates_are_those_of_scipy():
    image = random_images(*SHAPE, dtype="float32")
    _, lines = basis("dct", SHAPE)
    found = [line.coordinates(jnp.asarray(image))[0] for line in lines]
    np.testing.assert_allclose(found, scipy.fft.dctn(image[..., 0], norm="ortho").ravel(), atol=1e-5)


# Amplitudes and noise


@pytest.mark.parametrize("name", ["fourier", "dct"])
def test_amplitudes_of_a_linear_classifier_are_gaps_over_slopes(name):
    _, lines = basis(name, SHAPE)
    images = random_images(3, *SHAPE, dtype="float32")
    weights, biases = parameters = linear_parameters(2, 20)
    classifier = with_parameters(linear_logits, parameters, "float32")
    found = hmt_jax.measure_margins(classifier, images, lines, solvers.Scan())
    normal = weights[1] - weights[0]
    gaps = images.reshape(3, -1) @ normal + (biases[1] - biases[0])
    slopes = images_of(lines).reshape(20, -1) @ normal
    # The scan ends at one part in a million, to which float32 adds.
    np.testing.assert_allclose(found.margin, np.abs(gaps / slopes[:, None]), rtol=1e-4)


@pytest.mark.parametrize("name", ["fourier", "dct"])
def test_labels_under_noise_are_those_of_a_loop(name):
    shape = (5, 8, 1)
    classifier = tanh_classifier(dtype="float32")
    images, norms = random_images(7, *shape, dtype="float32"), (3.0, 12.0)
    _, lines = basis(name, shape)
    found = frequency_map.add_noise(classifier, images, np.arange(7), lines, norms)["label_under_noise"]
    expected = np.zeros((2, 40, 2, 7), int)
    for k, norm in enumerate(norms):
        for r, wave in enumerate(images_of(lines)):
            for s, sign in enumerate((1, -1)):
                expected[k, r, s] = np.argmax(classifier(images + np.float32(sign * norm) * wave[..., None]), axis=1)
    np.testing.assert_array_equal(found, expected)
    before = np.argmax(np.asarray(classifier(images)), axis=1)
    changed = (expected != before).mean((1, 2, 3))
    assert 0 < changed[0] < changed[1]  # so that a norm or a sign that is lost shows


# Findings


def found_of(margins, is_changed, errors, norms=(1.0, 2.0), error=0.0, chance=0.8):
    """Findings with the given numbers."""
    margins = np.asarray(margins, float)
    frequency = np.stack([np.arange(len(margins)), 10 + np.arange(len(margins))], axis=1)
    errors, norms = np.asarray(errors, float), np.array(norms)
    return Found(frequency, norms, errors, np.asarray(is_changed, bool), error, chance, plots._result_of(margins), 0.0)


def test_the_correlation_is_that_of_scipy():
    medians, errors = np.array([1, np.inf, 3, 9, 5.0]), [[0.9, 0.1, 0.1, 0.2, 0.3]]
    found = found_of(medians[:, None] * np.ones(4), np.zeros((1, 5, 4)), errors, norms=(2.0,))
    assert frequency_map.correlation(found, 0).value == pytest.approx(stats.spearmanr(medians, errors[0]).statistic)


def test_floor_and_ceiling_are_where_errors_differ_by_no_more_than_chance():
    # In samples of 100 with an error of 10%, 5 to 16 are wrong in 95% of cases; with one of 80%, 72 to 88 are.
    errors = [[0.02, 0.1, 0.13, 0.25, 0.6, 0.75, 0.8, 0.9]]
    found = found_of(np.ones((8, 100)), np.zeros((1, 8, 100)), errors, norms=(2.0,), error=0.1)
    assert frequency_map.is_at_floor(found, 0).tolist() == [True] * 3 + [False] * 5
    assert frequency_map.is_at_ceiling(found, 0).tolist() == [False] * 5 + [True] * 3


def test_a_margin_that_is_no_number_has_no_place_and_does_not_end_the_run(tmp_path):
    margins = np.arange(1.0, 6)[:, None] * np.ones(1)
    margins[2] = np.nan
    found = found_of(margins, np.zeros((1, 5, 1)), [[0.9, 0.1, 0.1, 0.2, 0.3]], norms=(2.0,))
    described = frequency_map.describe(found)
    assert {each["place_by_margin"] for each in described["norms"][0]["farthest"]} == {"nan"}
    summary = {"test_accuracy": 0.5, "num_images": 1, "measurement_seconds": 1.0, **described}
    store.write_json(tmp_path / "summary.json", summary)
    assert "nan" in CONFIG.report(tmp_path)


def test_the_spread_is_between_deciles_of_medians():
    medians = np.arange(1.0, 12)
    found = found_of(medians[:, None] * np.array([0.5, 1, 7]), np.zeros((1, 11, 3)), np.zeros((1, 11)), norms=(2.0,))
    assert frequency_map.spread(found, np.ones(11, bool)).value == pytest.approx(5)  # 10 over 2
    assert frequency_map.spread(found, medians > 9).value == pytest.approx(10.9 / 10.1)
    with pytest.raises(ValueError, match=r"no frequency is kept: .* set smaller norms"):
        frequency_map.spread(found, medians > 11)


def test_labels_that_change_before_the_margin_are_missed_and_those_that_change_back_have_returned():
    # Two norms, one frequency, and five images, four of them with a margin.
    is_changed = [[[1, 0, 1, 0, 1]], [[1, 0, 1, 1, 1]]]
    found = found_of([[0.5, 0.5, 1.5, 1.00001]], is_changed, np.zeros((2, 1)))
    # At norm 1, the third changes before its margin, and the second is back. The last is within rounding of the norm.
    assert frequency_map.share_missed(found).value == 1 / 8
    assert frequency_map.share_returned(found, 0).value == pytest.approx(2 / 3)
    assert frequency_map.share_returned(found, 1).value == 1 / 4


def test_places_are_from_the_most_sensitive_on():
    errors = [[0.1, 0.1, 0.9, 0.5]]
    found = found_of(np.array([[7.0], [np.inf], [2], [3]]) * np.ones(3), np.zeros((1, 4, 3)), errors, norms=(2.0,))
    by_margin, by_error = frequency_map.places(found, 0)
    assert by_margin.tolist() == [3, 4, 1, 2]
    assert by_error.tolist() == [3.5, 3.5, 1, 2]


# A run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run, beside the one of the run that trained its network."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        small_digits(patch)
        run.run("margin_map_single_frequencies", CONFIG, root / "map_quick", is_quick=True)
    return root / "map_quick"


@pytest.mark.slow
def test_a_run_has_the_amplitudes_and_errors_of_the_network_beside(made):
    classifier, digits = store.read_classifier(made.parent / "digits_quick"), data.load("digits")
    margins, noise = store.read_arrays(made / "margins.npz"), store.read_arrays(made / "noise.npz")
    assert margins["margin"].shape == (64, 6)
    assert noise["label_under_noise"].shape == (3, 64, 2, 50)
    r = margins["frequency"].tolist().index([1, -2])
    y, x = np.mgrid[:8, :8]
    wave = np.cos(2 * np.pi * (y - 2 * x) / 8 - np.pi / 4) * np.sqrt(2) / 8
    images = digits.test_images[:50].astype(np.float32)
    # The network is linear: logits change by a constant along the wave.
    logits = np.asarray(classifier(images), float)
    slopes = np.asarray(classifier(images[:1] + wave[None, ..., None].astype(np.float32)), float)[0] - logits[0]
    label = logits.argmax(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ways = (logits.max(1)[:, None] - logits) / np.abs(slopes - slopes[label][:, None])
    ways[np.arange(50), label] = np.inf
    np.testing.assert_allclose(margins["margin"][r], ways.min(1)[:6], rtol=1e-3)  # of differences in float32
    for k, norm in enumerate(CONFIG.norms):
        for s, sign in enumerate((1, -1)):
            expected = (logits + sign * norm * slopes).argmax(1)
            np.testing.assert_array_equal(noise["label_under_noise"][k, r, s], expected)
    np.testing.assert_array_equal(noise["true_label"], digits.test_labels[:50])
    for picture in ("map.png", "agreement.png"):
        assert (made / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_claims_and_summary_are_on_the_numbers_of_the_run(made):
    margin, noise = store.read_arrays(made / "margins.npz")["margin"], store.read_arrays(made / "noise.npz")
    errors = (noise["label_under_noise"] != noise["true_label"]).mean((2, 3))
    medians = np.median(margin, axis=1)
    found = correlation_with_errors(made)
    assert found.value == pytest.approx(stats.spearmanr(medians, errors[1]).statistic)
    assert share_missed(made).value == 0  # of a linear network
    summary = json.loads((made / "summary.json").read_text())
    assert [each["norm"] for each in summary["norms"]] == [1, 3, 9]
    assert summary["norms"][1]["correlation"] == found._asdict()
    assert summary["norms"][1]["errors"] == [errors[1].min(), errors[1].max()]
    assert [each["median"] for each in summary["frequencies"]] == pytest.approx(medians)
    silent = errors[1] <= hmt_jax.estimates.from_share(np.mean(noise["label"] != noise["true_label"]), 50).high
    ratio = np.percentile(medians[silent], 90) / np.percentile(medians[silent], 10)
    assert spread_where_errors_are_silent(made).value == pytest.approx(ratio)
    assert summary["norms"][1]["at_floor"]["share"] == silent.mean()


@pytest.mark.slow
def test_the_report_names_the_ends_and_every_norm(made):
    told = CONFIG.report(made)
    margin, frequency = (store.read_arrays(made / "margins.npz")[name] for name in ("margin", "frequency"))
    u, v = frequency[np.argmin(np.median(margin, axis=1))]
    assert f" at {u},{v} to " in told
    assert "50 images without noise: " in told
    assert told.count("places differ most") == 3
    measured = hmt_jax.report.load(made / "measurements.npz")
    assert [each.subspaces[:2] for each in measured] == [["-4,-4", "-4,-3"]]
    np.testing.assert_array_equal(measured[0].result.margin, margin)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "undone"), [(["noise.npz"], "add_noise"), (["noise.npz", "margins.npz"], "manipulations")]
)
def test_an_interrupted_run_goes_on_from_its_last_stage(kept, undone, made, tmp_path, monkeypatch):
    small_digits(monkeypatch)
    shutil.copytree(made.parent / "digits_quick", tmp_path / "digits_quick")
    path = tmp_path / "map_quick"
    path.mkdir()
    for name in ("files.sha256", "config.json", "environment.json", "baseline.json", *kept):
        shutil.copy(made / name, path / name)
    monkeypatch.setattr(frequency_map, undone, None)  # the stage would fail
    run.run("margin_map_single_frequencies", CONFIG, path, is_quick=True)
    before, after = (store.read_arrays(folder / "margins.npz")["margin"] for folder in (made, path))
    np.testing.assert_array_equal(after, before)
    assert (path / "claims.json").read_bytes() == (made / "claims.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fourier", "dct"])
def test_the_quick_form_runs_in_both_bases(name, tmp_path, monkeypatch, capsys):
    experiment = "margin_map_single_frequencies"
    small_baseline(experiment, monkeypatch)
    config = dataclasses.replace(registry.get(experiment).quick, basis=name)
    run.run(experiment, config, tmp_path / experiment, is_quick=True, data_dir=str(tmp_path))
    first, *_ = json.loads((tmp_path / experiment / "claims.json").read_text())["claims"]
    assert np.isfinite(first["value"])
    assert first["claim"] in capsys.readouterr().out


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"basis": "walsh"}, "unknown basis 'walsh'; the known ones are fourier, dct"),
        ({"norms": ()}, r"norms must be one or more positive numbers in ascending order, got \(\)"),
        ({"norms": (0.0, 1.0)}, r"norms must be one or more positive numbers in ascending order, got \(0.0, 1.0\)"),
        ({"norms": (2.0, 1.0)}, r"norms must be one or more positive numbers in ascending order, got \(2.0, 1.0\)"),
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"num_tested": 5}, "num_tested must be at least 6, got 5"),
        ({"num_tested": 361}, "num_tested=361 is more than the 360 test images of digits"),
        ({"baseline": "synthetic_linear"}, "baseline=synthetic_linear trains no network on images"),
        ({"baseline": "mnist_lenet"}, "baseline=mnist_lenet is on mnist, got data=digits: change one of them"),
        ({"baseline": "none"}, "baseline=none has no network: name an experiment that trains one"),
    ],
)
def test_settings_that_do_not_fit_are_told(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run.run(
            "margin_map_single_frequencies", dataclasses.replace(CONFIG, **changes), tmp_path / "map", is_quick=True
        )
    assert not (tmp_path / "digits_quick").exists()


def test_images_in_colour_are_refused(monkeypatch):
    images, labels = np.zeros((60, 8, 8, 3), np.uint8), np.zeros(60, int)
    monkeypatch.setattr(data, "load", lambda *_: data.from_arrays(images, labels, images, labels, "digits"))
    with pytest.raises(ValueError, match="data=digits has 3 channels, but basis images have one: name a data set of"):
        CONFIG.check(None)
