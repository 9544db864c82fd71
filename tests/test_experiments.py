"""The runner, from the command line to the files it leaves."""

import collections
import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import struct
import threading
import time
import zipfile

import jax
import numpy as np
import pytest

import hmt_jax
from experiments import __main__ as command_line
from experiments import manipulations, registry, run, store
from hmt_jax import data, frequency, models, subspaces, training

QUICK = ["--num-epochs", "2", "--num-images", "12"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a quick run of `digits`."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    assert command_line.main(["run", "digits", *QUICK, "--folder", str(path)]) == 0
    return path


def fails(capsys, *arguments) -> str:
    """What the command line says on its way to a status that is not 0."""
    assert command_line.main(list(map(str, arguments))) != 0
    return capsys.readouterr().err


def test_a_run_leaves_all_its_files(finished):
    assert {file.name for file in finished.iterdir()} == {
        "files.sha256",
        "config.json",
        "environment.json",
        "history.json",
        "checkpoints",
        "checkpoint.safetensors",
        "best.safetensors",
        "margins.npz",
        "margins.zarr",
        "summary.json",
        "margins.png",
        "pictures.npz",
        "measurements.npz",
        "report.html",
        "claims.json",
    }
    described = json.loads((finished / "config.json").read_text())
    assert described["experiment"] == "digits"
    assert described["settings"]["num_images"] == 12
    assert described["format"] == store.FORMAT
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert (finished / "margins.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_a_run_has_its_medians_claims_and_training(finished):
    page = (finished / "report.html").read_text()
    specifications = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    with np.load(finished / "margins.npz") as arrays:
        medians = np.median(arrays["margin"], axis=1)
    rows = specifications[0]["datasets"]["rows"]
    np.testing.assert_allclose([row["y"] for row in rows], medians, rtol=1e-5)
    for verdict in json.loads((finished / "claims.json").read_text())["claims"]:
        assert verdict["claim"] in page
    history = json.loads((finished / "history.json").read_text())
    losses = next(each for each in specifications if "train loss" in each["description"])["datasets"]["rows"]
    np.testing.assert_allclose([row["y"] for row in losses], [epoch["train_loss"] for epoch in history], rtol=1e-5)


def test_the_page_of_a_run_has_its_images_and_their_perturbations(finished):
    (measured,) = hmt_jax.report.load(finished / "measurements.npz")
    classifier, _ = models.load(finished / "checkpoint.safetensors")
    digits = data.load("digits")
    with np.load(finished / "margins.npz") as arrays:
        margins = arrays["margin"]
    assert measured.image_ids == [f"digits test {number}" for number in range(12)]
    assert [(each.subspace, each.rank) for each in measured.pictures] == [
        (r, rank) for r in (0, 2, 5) for rank in ("least", "median", "greatest")
    ]
    for picture in measured.pictures:
        np.testing.assert_allclose(picture.original, digits.test_images[picture.image], atol=1e-6)
        assert np.linalg.norm(picture.perturbation) == pytest.approx(margins[picture.subspace, picture.image], rel=1e-4)
        logits = classifier(np.stack([picture.original, picture.original + picture.perturbation]))
        assert np.argmax(logits, axis=1).tolist() == [picture.label, picture.adversarial_label]


def test_a_page_has_the_command_that_makes_the_run_again(finished):
    (measured,) = hmt_jax.report.load(finished / "measurements.npz")
    words = measured.command.split()
    assert words[:5] == ["python", "-m", "experiments", "run", "digits"]
    assert dict(zip(words[5::2], words[6::2], strict=True)) == dict(zip(QUICK[::2], QUICK[1::2], strict=True))


def test_stored_margins_are_those_of_the_stored_classifier(finished):
    classifier, header = models.load(finished / "checkpoint.safetensors")
    digits = data.load("digits")
    with np.load(finished / "margins.npz") as arrays:
        margins = dict(arrays)
    assert margins["margin"].shape == (6, 12)
    np.testing.assert_array_equal(margins["true_label"], digits.test_labels[:12])
    window = subspaces.dct_window((8, 8, 1), *margins["corner"][4].tolist(), size=3)
    for n in range(3):
        solution = hmt_jax.measure_margin(classifier, digits.test_images[n], window, hmt_jax.solvers.DeepFool())
        np.testing.assert_allclose(solution.margin, margins["margin"][4, n], rtol=1e-4)  # float32
    logits = classifier(digits.test_images)
    accuracy = np.mean(np.argmax(logits, axis=1) == digits.test_labels)
    assert header["training"]["test_accuracy"] == pytest.approx(accuracy)


def test_summary_is_that_of_the_stored_margins(finished):
    summary = json.loads((finished / "summary.json").read_text())
    with np.load(finished / "margins.npz") as arrays:
        medians = np.median(arrays["margin"], axis=1)
        assert (arrays["status"] == hmt_jax.Status.CONVERGED).all()
    np.testing.assert_allclose([window["median"] for window in summary["windows"]], medians, rtol=1e-6)
    history = json.loads((finished / "history.json").read_text())
    assert len(history) == 2
    assert summary["test_accuracy"] == history[-1]["test_accuracy"]


def test_a_finished_run_is_reused(finished, capsys):
    before = {file: file.stat().st_mtime_ns for file in finished.iterdir() if file.name != "config.json"}
    assert command_line.main(["run", "digits", *QUICK, "--folder", str(finished)]) == 0
    assert "finished already" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize("name", ["report.html", "measurements.npz"])
def test_what_is_made_of_the_other_files_is_made_anew_if_it_was_removed(finished, tmp_path, name):
    path = tmp_path / "digits"
    shutil.copytree(finished, path)
    (path / name).unlink()
    assert command_line.main(["run", "digits", *QUICK, "--folder", str(path)]) == 0
    (measured,) = hmt_jax.report.load(path / "measurements.npz")
    with np.load(finished / "margins.npz") as arrays:
        np.testing.assert_array_equal(measured.result.margin, arrays["margin"])
    assert "1 of 1 hold" in (path / "report.html").read_text()
    store.check_finished(path)


def test_an_interrupted_run_goes_on_from_its_last_stage(finished, tmp_path, monkeypatch):
    path = tmp_path / "digits"
    path.mkdir()
    for name in ("files.sha256", "config.json", "environment.json", "history.json", "checkpoint.safetensors"):
        (path / name).write_bytes((finished / name).read_bytes())
    monkeypatch.setattr(hmt_jax.training, "train", None)  # training again would fail
    assert command_line.main(["run", "digits", *QUICK, "--folder", str(path)]) == 0
    with np.load(path / "margins.npz") as resumed, np.load(finished / "margins.npz") as arrays:
        np.testing.assert_array_equal(resumed["margin"], arrays["margin"])


def test_fresh_starts_over(finished, tmp_path):
    path = tmp_path / "digits"
    shutil.copytree(finished, path)
    (path / "summary.json").write_text("{}")
    (path / "notes.txt").write_text("mine")
    assert command_line.main(["run", "digits", *QUICK, "--folder", str(path), "--fresh"]) == 0
    assert json.loads((path / "summary.json").read_text())["num_images"] == 12
    assert (path / "notes.txt").read_text() == "mine"


def test_the_folder_of_another_configuration_is_refused(finished, capsys):
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    for flags in ([], ["--fresh"]):
        message = fails(capsys, "run", "digits", *QUICK, "--seed", "7", "--folder", finished, *flags)
        assert "belongs to another configuration (seed is 0 there, 7 here)" in message
        assert "choose another folder with --folder" in message
    assert {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()} == before


def test_a_folder_of_a_run_that_came_to_nothing_is_free(tmp_path, capsys):
    path = tmp_path / "digits"
    store.start(path, store.to_json("digits", dataclasses.replace(registry.get("digits").config, seed=5)), fresh=False)
    store.write_json(path / "environment.json", {**store.read_environment(path), "seconds": 1e6})
    assert command_line.main(["run", "digits", *QUICK, "--folder", str(path)]) == 0
    assert store.read_environment(path)["seconds"] < 1e6  # those of what came to nothing are not its own


def test_a_call_that_is_killed_leaves_the_time_that_it_took(tmp_path):
    store.start(tmp_path, store.to_json("digits", registry.get("digits").config), fresh=False)
    store.write_json(tmp_path / "environment.json", {**store.read_environment(tmp_path), "seconds": 1000})
    with store.timed(tmp_path, interval=0.01):
        for _ in range(1000):
            if store.read_environment(tmp_path)["seconds"] > 1000:
                break
            time.sleep(0.01)
        assert store.read_environment(tmp_path)["seconds"] > 1000


def test_an_error_is_told_also_where_no_time_can_be_written(tmp_path):
    store.start(tmp_path / "run", store.to_json("digits", registry.get("digits").config), fresh=False)

    def fail():
        with store.timed(tmp_path / "run"):
            shutil.rmtree(tmp_path / "run")
            raise KeyError("the reason")

    with pytest.raises(KeyError, match="the reason"):
        fail()


def test_fresh_removes_what_a_run_has_written_and_nothing_else(tmp_path):
    described = store.to_json("digits", registry.get("digits").config)
    store.start(tmp_path, described, fresh=False)
    for name in ("summary.json", "audit.json", "mine.json"):
        store.write_json(tmp_path / name, {})
    for name in ("checkpoints", "monitored", "margins.zarr", "photos"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    (tmp_path / "thesis.tex").write_text("...")
    store.start(tmp_path, described, fresh=True)
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"config.json", "environment.json", "files.sha256", "photos", "thesis.tex"}


def test_one_run_is_at_work_in_a_folder(tmp_path, capsys):
    path = tmp_path / "digits"
    with store.held(path):
        told = fails(capsys, "run", "digits", *QUICK, "--folder", path)
    assert f" is at work in {path}: wait for it, or choose another folder" in told
    assert not path.exists()
    assert command_line.main(["run", "digits", *QUICK, "--folder", str(path)]) == 0


def test_epochs_are_in_the_order_of_their_numbers(tmp_path):
    for epoch in (1000, 20, 999):
        store.write_arrays(tmp_path / "monitored" / f"{epoch:03d}.npz", {"margin": np.ones((1, epoch))})
    found = store.monitored(tmp_path)
    assert {epoch: arrays["margin"].shape[1] for epoch, arrays in found.items()} == {20: 20, 999: 999, 1000: 1000}
    assert list(found) == [20, 999, 1000]


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("...")
    message = fails(capsys, "run", "digits", "--folder", tmp_path, "--fresh")
    assert "holds files but no config.json" in message
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["run", "nothing"], ["unknown experiment 'nothing': `python -m experiments list` shows all"]),
        (["run", "digits", "--network", "resnet"], ["unknown network 'resnet'", "lenet", "mlp"]),
        (["run", "digits", "--data", "svhn"], ["unknown data 'svhn'", "cifar10", "digits"]),
        (["run", "digits", "--manipulation", "turn"], ["unknown manipulation 'turn'", "none, flip, low_pass:B"]),
        (
            ["run", "digits", "--manipulation", "low_pass:x"],
            ["unknown manipulation 'low_pass:x'", "with whole numbers"],
        ),
        (["run", "digits", "--manipulation", "low_pass:9"], ["size must be between 1 and 8"]),
        (["run", "digits", "--attack", "pgd", "--epsilon", "-1"], ["epsilon must be positive and finite"]),
        (["run", "digits", "--attack", "deepfool", "--norm", "linf"], ["goes by norm=l2, got norm=linf"]),
        (["run", "digits", "--attack", "pgd", "--attack-steps", "0"], ["attack_steps must be at least 1, got 0"]),
        (["run", "digits", "--measure-every", "-1"], ["measure_every must be at least 0, got -1"]),
        (["run", "digits", "--measure-every", "99"], ["measure_every must divide num_epochs, or the end is not"]),
        (
            ["run", "digits", "--augmentation", "crop_and_mirror", "--manipulation", "flip"],
            ["augmentation=crop_and_mirror is for plain images, and would undo manipulation=flip"],
        ),
        (
            ["run", "digits", "--network", "lenet", "--num-hidden", "64"],
            ["network=lenet does not go with the other settings", "num_hidden"],
        ),
        (
            ["run", "margin_map", "--data", "digits", "--num-images", "9", "--window-size", "9"],
            ["size must be between 1 and 8"],
        ),
        (["run", "digits", "--num-hidden", "8", "0"], ["num_hidden must be widths of at least 1, got (8, 0)"]),
        (["run", "digits", "--max-learning-rate", "inf"], ["max_learning_rate must be finite, got inf"]),
        (["benchmark", "--scaling", "lenet_mnist"], ["--scaling has a workload of its own: leave out lenet_mnist"]),
        (["benchmark", "--training", "--reference", "authors"], ["leave it or --training out"]),
        (["run", "digits", "--num-train", "-1"], ["num_train must be at least 0, got -1"]),
        (["run", "digits", "--baseline", "digits"], ["baseline=digits would compare the run with itself"]),
        (
            ["run", "digits", "--baseline", "synthetic_linear"],
            ["synthetic_linear trains no network on images"],
        ),
        (["run", "digits", "--num-images", "0"], ["num_images must be at least 1, got 0"]),
        (["run", "digits", "--window-step", "0"], ["window_step must be at least 1, got 0"]),
        (["run", "digits", "--num-candidates", "1"], ["num_candidates must be at least 2"]),
        (["run", "digits", "--num-epochs", "0"], ["num_epochs must be at least 1, got 0"]),
        (["run", "digits", "--num-epochs", "-1"], ["num_epochs must be at least 1, got -1"]),
        (["run", "digits", "--seed", "99999999999999999999"], ["seed must be between 0 and 4294967295"]),
        (["run", "digits", "--seed", "-1"], ["seed must be between 0 and 4294967295, got -1"]),
        (["audit", "nothing"], ["there is no folder nothing"]),
        (["scorecard", "nothing"], ["there is no folder nothing"]),
        (["run", "digits", "--window-size", "9"], ["size must be between 1 and 8"]),
        (["prepare", "imagenet"], ["unknown data set 'imagenet'", "cifar10, digits, mnist"]),
    ],
)
def test_bad_input_is_told_before_any_work(arguments, messages, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = fails(capsys, *arguments)
    assert told.startswith("error: ")
    assert "Traceback" not in told
    for message in messages:
        assert message in told
    assert not list(tmp_path.rglob("checkpoint.safetensors"))


def test_data_that_are_not_prepared_are_told_at_once_and_once(tmp_path, capsys, caplog):
    told = fails(capsys, "run", "mnist_lenet", "--folder", tmp_path / "run", "--data-dir", tmp_path / "data")
    assert "mnist is not prepared" in told
    assert "python -m experiments prepare mnist" in told
    assert not caplog.records


@pytest.mark.slow
def test_a_second_run_compiles_nothing(tmp_path):
    arguments = [
        "run",
        "digits",
        *("--network", "logistic", "--num-epochs", "1", "--num-images", "4", "--seed", "11"),
        "--cache-dir",
        str(tmp_path / "xla"),
    ]
    events = collections.Counter()

    def listener(event, **_):
        events[event.removeprefix("/jax/compilation_cache/")] += 1

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    settings = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)  # that of JAX, which the runner is to lower
    jax.monitoring.register_event_listener(listener)
    try:
        jax.clear_caches()
        assert command_line.main([*arguments, "--folder", str(tmp_path / "first")]) == 0
        assert events["cache_misses"]
        events.clear()
        jax.clear_caches()
        assert command_line.main([*arguments, "--folder", str(tmp_path / "second")]) == 0
        assert events["cache_hits"] == events["compile_requests_use_cache"] > 0
    finally:
        jax.monitoring.unregister_event_listener(listener)
        for name, value in settings.items():
            jax.config.update(name, value)


def test_failed_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "summary.json"
    store.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float values"):
        store.write_json(path, {"a": float("nan")})
    assert store.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "3"], "Unrecognized options: --epochs"),
        (["--num-epochs", "many"], "Error parsing --num-epochs"),
        (["--attack", "fgsm"], "invalid choice 'fgsm'"),
        (["--num-hidden", "8", "x"], "Error parsing --num-hidden"),
    ],
)
def test_what_cannot_be_read_is_told_by_the_parser(arguments, message, tmp_path, capsys):
    assert command_line.main(["run", "digits", *arguments, "--folder", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_settings_are_those_of_the_command_line(monkeypatch):
    found = []
    monkeypatch.setattr(run, "run", lambda name, config, *_, **__: found.append((name, config)))
    arguments = ["--seed", "3", "--overshoot", "0.5", "--num-hidden", "8", "4", "--windows=grid"]
    assert command_line.main(["run", "mnist_lenet", *arguments]) == 0
    changes = {"seed": 3, "overshoot": 0.5, "num_hidden": (8, 4), "windows": "grid"}
    assert found == [("mnist_lenet", dataclasses.replace(registry.get("mnist_lenet").config, **changes))]


def test_flipped_data_are_normalised_by_the_flipped_mean_image():
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 4, 2), dtype=np.uint8)
    scaled = images / 255
    dataset = data.from_arrays(images, np.zeros(50, int), images[:7], np.ones(7, int))
    same, mean, std = manipulations.manipulate("none", dataset)
    np.testing.assert_array_equal(same.test_images, images[:7])
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-12)
    manipulated, flipped_mean, flipped_std = manipulations.manipulate("flip", dataset)
    np.testing.assert_array_equal(flipped_std, std)
    flipped = manipulated.train_images
    # Products of batches of another size may round in another order.
    np.testing.assert_allclose(manipulated.test_images, flipped[:7], atol=1e-6)
    expected = frequency.flip(np.asarray(scaled, np.float32) - mean.astype(np.float32).reshape(1, 1, 1, -1))
    np.testing.assert_allclose(flipped - flipped_mean, expected, atol=1e-5)  # float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("low_pass:3", lambda images: frequency.low_pass(images, 3)),
        ("high_pass:3", lambda images: frequency.high_pass(images, 3)),
        ("cutoff_low:3", lambda images: frequency.cutoff_low(images, 3)),
        ("window:1:2:3", None),
        ("outside:0:0:2", lambda images: frequency.cutoff_low(images, 2)),
    ],
)
def test_bands_are_the_filters(name, expected):
    images = np.random.default_rng(0).uniform(size=(5, 8, 7, 2)).astype(np.float32)
    if expected is None:  # no filter of its own: coefficients kept by hand
        mask = np.zeros((8, 7, 1), np.float32)
        mask[1:4, 2:5] = 1
        wanted = frequency.inverse_dct(frequency.dct(images) * mask[None])
    else:
        wanted = expected(images)
    found = manipulations.apply(name, images)
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # float32
    dataset = data.from_arrays(images, np.zeros(5, int), images, np.ones(5, int))
    _, mean, std = manipulations.manipulate(name, dataset)
    np.testing.assert_allclose(mean, found.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(std, found.std((0, 1, 2)), atol=1e-6)


@pytest.fixture(scope="module")
def robust(tmp_path_factory):
    """A quick run with adversarial training beside standard training."""
    path = tmp_path_factory.mktemp("runs") / "robust"
    settings = shlex.split("--attack pgd --attack-steps 2 --epsilon 0.5 --evaluation-steps 4 --baseline digits")
    settings += shlex.split("--num-epochs 4 --batch-size 64 --measure-every 2 --num-monitored 10 --num-images 20")
    devices = jax.devices()[:1]  # simulated ones would wait for each other in every step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: devices)
        assert command_line.main(["run", "digits", *settings, "--folder", str(path)]) == 0
    return path


@pytest.mark.slow
def test_adversarial_training_beside_standard_training(robust):
    summary, baseline = (json.loads((path / "summary.json").read_text()) for path in (robust, robust.parent / "digits"))
    ratios = [
        window["median"] / other["median"]
        for window, other in zip(summary["windows"], baseline["windows"], strict=True)
    ]
    np.testing.assert_allclose(summary["margin_over_baseline"], ratios, rtol=1e-6)
    assert baseline["robustness"] is None
    classifier, _ = models.load(robust.parent / "digits" / "checkpoint.safetensors")
    digits = data.load("digits")
    is_right = np.argmax(classifier(digits.test_images[:20]), axis=1) == digits.test_labels[:20]
    assert summary["baseline_robustness"]["clean_accuracy"] == pytest.approx(np.mean(is_right))
    assert summary["baseline_robustness"]["robust_accuracy"] <= np.mean(is_right)
    assert store.settings(robust.parent / "digits")["attack"] == "none"
    weak, strong = json.loads((robust / "robustness.json").read_text())["evaluations"]
    assert (weak["num_steps"], strong["num_steps"]) == (1, 4)
    assert strong["robust_accuracy"] <= strong["clean_accuracy"]


@pytest.mark.slow
def test_margins_and_robustness_while_training(robust):
    assert sorted(file.name for file in (robust / "monitored").iterdir()) == ["002.npz", "004.npz"]
    # The last measurement is that of the classifier in the file.
    classifier, _ = models.load(robust / "checkpoint.safetensors")
    digits = data.load("digits")
    result = hmt_jax.measure_margins(
        classifier, digits.test_images[:10], subspaces.dct_diagonal((8, 8, 1), 3, 1), hmt_jax.solvers.DeepFool()
    )
    for picture in ("history.png", "spectrum.png"):
        assert (robust / picture).read_bytes().startswith(b"\x89PNG")
    with np.load(robust / "monitored" / "004.npz") as arrays:
        np.testing.assert_allclose(arrays["margin"], result.margin, rtol=1e-4)  # float32
        # Windows of 3 x 3 with a step of 1 overlap: the energy in none of them exceeds all of it, within the ball.
        assert (arrays["energy"] <= arrays["total_energy"] * 1.00001).all()
        assert (arrays["total_energy"] <= 0.5**2 * 1.00001).all()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_last_good_state(tmp_path, capsys, monkeypatch):
    path = tmp_path / "run"
    settings = ["--network", "mlp", "--num-epochs", "3", "--num-images", "2", "--folder", str(path)]
    train = training.train

    def break_after_one_epoch(*arguments, on_epoch, **options):
        def on_epoch_then_break(epoch, state, metrics):
            on_epoch(epoch, state, metrics)
            raise FloatingPointError("the loss or its gradient became NaN or infinite in step 12")

        train(*arguments, on_epoch=on_epoch_then_break, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", break_after_one_epoch)
        told = fails(capsys, "run", "digits", *settings)
    assert "in step 12; the last good state is that after epoch 0, in" in told
    assert command_line.main(["run", "digits", *settings]) == 0
    assert [entry["epoch"] for entry in json.loads((path / "history.json").read_text())] == [0, 1, 2]


@pytest.mark.slow
def test_the_best_epoch_is_that_of_the_greatest_test_accuracy(tmp_path, monkeypatch):
    scores = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(training, "evaluate", lambda *arguments, **options: training.Metrics(1.0, next(scores)))
    settings = ["--network", "mlp", "--num-epochs", "3", "--num-images", "2", "--folder", str(tmp_path / "run")]
    command_line.main(["run", "digits", *settings])
    for file, epoch in (("best", 1), ("checkpoint", 2)):
        _, header = models.load(tmp_path / "run" / f"{file}.safetensors")
        assert header["training"]["epoch"] == epoch


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nallocator statistics"),
            "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.",
        ),
        (
            jax.errors.JaxRuntimeError("INTERNAL: Error dispatching computation: Out of memory allocating 99 bytes."),
            "INTERNAL: Error dispatching computation: Out of memory allocating 99 bytes.",
        ),
    ],
    ids=["accelerator", "CPU"],
)
def test_a_full_device_is_reported(error, reason, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hmt_jax.training, "train", fail)
    assert command_line.main(["run", "digits", "--quick", "--folder", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"error: the device is out of memory ({reason}): end")


@pytest.mark.parametrize("command", ["run digits --folder", "benchmark --training --output"])
def test_a_folder_that_cannot_be_made_is_told(command, finished, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "new"
    full = path / "it.json" if "benchmark" in command else path
    told = fails(capsys, *command.replace("RUN", str(finished)).split(), full)
    assert (
        told == f"error: the folder {path} can't be made (Not a directory): name one in a folder that can be written\n"
    )


@pytest.mark.slow
def test_mnist_runs_on_a_small_network(shared, mnist, tmp_path, monkeypatch):
    devices = jax.devices()[:1]  # hundreds of steps, each of which simulated devices would wait for
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    # Decoded once for all tests.
    decoded = {("mnist", str(shared / "tfds")): mnist}
    monkeypatch.setattr(data, "load", lambda name, data_dir: decoded[name, str(data_dir)])
    quick = "--network logistic --num-epochs 1 --num-train 20000 --batch-size 200 --num-images 5 --window-step 10"
    for name in ("mnist_lenet", "mnist_lenet_flipped"):
        folder = tmp_path / name
        arguments = ["run", name, *shlex.split(quick), "--folder", str(folder), "--data-dir", str(shared / "tfds")]
        assert command_line.main(arguments) == 0
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["test_accuracy"] > 0.8
        assert [window["row"] for window in summary["windows"]] == [0, 10, 20]


def test_a_file_is_no_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert f"{tmp_path / 'file'} is a file: give a folder with --folder" in fails(
        capsys, "run", "digits", "--quick", "--folder", tmp_path / "file"
    )
    assert (tmp_path / "file").read_text() == "mine"


def flip_last_bit(file):
    """A change that every parser passes by: the end of a .safetensors file is that of its last array."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def put_another_classifier(file):
    """The file of a network with other weights, as a run with another seed leaves it."""
    _, header = models.load(file)
    classifier = models.create(**header["architecture"], key=jax.random.key(99))
    models.save(file, classifier, **header)


def put_other_margins(file):
    with np.load(file) as arrays:
        changed = {**arrays, "margin": 1.01 * arrays["margin"]}
    np.savez(file, **changed)


@pytest.mark.parametrize("command", ["audit", "compare-solvers", "scorecard", "run"])
@pytest.mark.parametrize(
    ("name", "damage", "remedy"),
    [
        ("checkpoint.safetensors", flip_last_bit, "start that run over with --fresh"),
        ("checkpoint.safetensors", put_another_classifier, "start that run over with --fresh"),
        ("best.safetensors", flip_last_bit, "start that run over with --fresh"),
        ("margins.npz", put_other_margins, "start that run over with --fresh"),
        ("margins.npz", lambda file: file.write_bytes(b"PK"), "start that run over with --fresh"),
        (
            "summary.json",
            lambda file: file.write_text(file.read_text().replace("windows", "vindows")),
            "start that run",
        ),
        ("config.json", lambda file: file.write_text(file.read_text().replace(" 12", " 13")), "remove "),
        ("margins.png", flip_last_bit, "remove it"),
        ("report.html", flip_last_bit, "remove it, and repeat the command of that run, which makes it anew"),
    ],
)
def test_a_file_that_is_not_what_its_run_wrote_is_refused(finished, tmp_path, capsys, command, name, damage, remedy):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    damage(copy / name)
    arguments = {"run": ["run", "digits", *QUICK, "--folder", copy], "scorecard": ["scorecard", copy]}
    told = fails(capsys, *arguments.get(command, [command, copy]))
    assert (
        f"error: {copy / name} is not what its run wrote, by its SHA-256 in files.sha256: put back "
        f"whichever changed, or {remedy}" in told
    )


def test_a_classifier_that_changed_is_not_measured(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    for name in ("margins.npz", "summary.json", "claims.json"):
        (copy / name).unlink()
    flip_last_bit(copy / "checkpoint.safetensors")
    told = fails(capsys, "run", "digits", *QUICK, "--folder", copy)
    assert f"{copy / 'checkpoint.safetensors'} is not what its run wrote" in told
    assert not (copy / "margins.npz").exists()


def test_the_record_has_the_checksums_of_all_files(robust):
    lines = dict(reversed(line.split("  ")) for line in (robust / "files.sha256").read_text().splitlines())
    files = [file for pattern in ("*", "monitored/*") for file in robust.glob(pattern) if file.is_file()]
    expected = {str(file.relative_to(robust)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert {**lines, "files.sha256": expected["files.sha256"]} == expected
    assert "monitored/004.npz" in lines


def test_a_file_is_as_the_record_has_it_whenever_its_writer_is_killed(tmp_path, monkeypatch):
    """Killed before and after each of three steps: the entry in the record, the file itself, and the record again."""
    store.start(tmp_path, store.to_json("digits", registry.get("digits").config), fresh=False)
    file = tmp_path / "summary.json"
    found = []
    for num_before in range(4):
        store.write_json(file, "former")
        left, replace = [num_before], os.replace

        def replace_or_die(*arguments, left=left, replace=replace):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            replace(*arguments)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", replace_or_die)
            store.write_json(file, "new")
        store.verify(tmp_path)
        found.append(store.read_json(file))
    assert found == ["former", "former", "new", "new"]


@pytest.mark.parametrize("is_before", [True, False])
def test_a_file_that_another_process_replaces_meanwhile_has_not_changed(is_before, tmp_path, monkeypatch):
    """Before it is read, but after the record was, or right after it is read."""
    store.start(tmp_path, store.to_json("digits", registry.get("digits").config), fresh=False)
    file = tmp_path / "audit.json"
    store.write_json(file, "former")
    read = pathlib.Path.read_bytes

    def meet_another(path):
        content = None if is_before else read(path)
        if path == file:
            store.write_json(file, "new")
        return read(path) if content is None else content

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_bytes", meet_another)
        store.verify(tmp_path)
    file.write_text('"other"')
    with pytest.raises(ValueError, match=r"audit.json is not what its run wrote"):
        store.verify(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "margins.npz"])
def test_a_file_that_is_gone_is_named(finished, tmp_path, capsys, name):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / name).unlink()
    arguments = ["scorecard", copy] if name == "summary.json" else ["audit", copy]
    assert (
        f"{copy / name} is not there, though a run writes its files whole: start that run over with --fresh"
        in fails(capsys, *arguments)
    )


def archive(*, header=b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", **changes):
    """An .npz file whose array has the given header, and whose entry in the directory has other attributes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as opened:
        # Of no time: the bytes are names of tests, which must be the same in every process that collects them.
        opened.writestr(
            zipfile.ZipInfo("margin.npy"), b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)
        )
        for name, value in changes.items():
            setattr(opened.filelist[0], name, value)
    return content.getvalue()


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999, 9999999), }"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"),
        ("a.json", b'"\x82"'),
        ("a.json", b"[" * 100_000),
        ("a.npz", b"PK"),
        ("a.npz", b""),
        ("a.npz", archive()[:-30]),
        ("a.npz", archive(compress_type=99)),
        ("a.npz", archive(flag_bits=1)),
        ("a.npz", archive(CRC=0)),
        ("a.npz", archive(header=HUGE)),
        ("a.npz", archive(header=b"{'descr': 'O', 'fortran_order': False, 'shape': (2,), }")),
    ],
)
def test_damage_is_reported_whatever_a_parser_raises(tmp_path, name, content):
    """Also without a record of checksums."""
    (tmp_path / name).write_bytes(content)
    read = {"json": store.read_json, "npz": store.read_arrays}
    expected = f"{tmp_path / name} is damaged, though a run writes its files whole: start that run over with --fresh"
    with pytest.raises(ValueError, match=re.escape(expected)):
        read[name.partition(".")[2]](tmp_path / name)


def test_a_sound_file_is_read(tmp_path):
    (tmp_path / "a.npz").write_bytes(archive())
    np.testing.assert_array_equal(store.read_arrays(tmp_path / "a.npz")["margin"], [0, 0])


@pytest.mark.parametrize(
    ("config", "environment", "version"),
    [
        ({"experiment": "digits", "seed": 0}, {"packages": {"hmt-jax": "0.0.9"}}, "hmt-jax 0.0.9 in format 1"),
        ({"experiment": "digits", "seed": 0}, None, "hmt-jax of an unknown version in format 1"),
        ({"experiment": "digits", "format": 9, "hmt_jax": "7.1"}, {}, "hmt-jax 7.1 in format 9"),
    ],
)
def test_a_folder_of_another_version_is_refused(config, environment, version, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "claims.json").write_text("{}")
    if environment is not None:
        (tmp_path / "environment.json").write_text(json.dumps(environment))
    expected = f"error: {tmp_path} was written by {version} of run folders, and this version, {hmt_jax.__version__}, "
    expected += f"reads format {store.FORMAT}: run the experiment again in another folder\n"
    for arguments in (["run", "digits", "--folder", tmp_path], ["audit", tmp_path], ["scorecard", tmp_path]):
        assert fails(capsys, *arguments) == expected


def unfinished(finished, path):
    """A copy of a run that was killed in training, after its last epoch was kept."""
    shutil.copytree(finished, path)
    for name in ("history.json", "checkpoint.safetensors", "best.safetensors", "margins.npz", "claims.json"):
        (path / name).unlink()
    return path


@pytest.mark.slow
def test_training_goes_on_before_a_damaged_checkpoint(finished, tmp_path, capsys):
    path = unfinished(finished, tmp_path / "run")
    flip_last_bit(path / "checkpoints" / "1" / "state" / "_METADATA")
    told = f"the checkpoint of epoch 1 is damaged and was moved to {path / 'checkpoints' / 'damaged-1'}: training goes"
    with pytest.warns(UserWarning, match=f"{re.escape(told)} on from the checkpoint of epoch 0"):
        assert command_line.main(["run", "digits", *QUICK, "--folder", str(path)]) == 0
    expected, found = (models.to_torch(models.load(each / "checkpoint.safetensors")[0]) for each in (finished, path))
    jax.tree.map(np.testing.assert_array_equal, expected, found)


def test_training_starts_over_where_all_checkpoints_are_damaged(finished, tmp_path, capsys, monkeypatch):
    path = unfinished(finished, tmp_path / "run")
    for epoch in ("0", "1"):
        (path / "checkpoints" / epoch / "metrics" / "metrics").write_bytes(b"\x82")

    def train(*_, state, **__):
        raise FloatingPointError(f"begun at step {state.num_steps}")

    monkeypatch.setattr(training, "train", train)
    with pytest.warns(UserWarning, match="epoch [01] is damaged and was moved to .*: training starts over$"):
        told = fails(capsys, "run", "digits", *QUICK, "--folder", path)
    assert "begun at step 0; the last good state is the one before training" in told
    assert {file.name for file in (path / "checkpoints").iterdir()} == {"damaged-0", "damaged-1"}


def test_the_last_checkpoint_of_another_run_is_refused(finished, tmp_path, capsys):
    shutil.copytree(finished / "checkpoints", tmp_path / "run" / "checkpoints")
    changed = dataclasses.replace(registry.get("digits").config, num_epochs=2, num_images=12, seed=7)
    store.start(tmp_path / "run", store.to_json("digits", changed), fresh=False)
    told = fails(capsys, "run", "digits", *QUICK, "--seed", "7", "--folder", tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "1"
    assert f"error: {last} belongs to another run (seed is 0 there, 7 here; key is " in told
    assert "): put that of this run back, or" in told


def rewrite_checkpoint(checkpoint, *, score, **run):
    """A checkpoint with another score and other settings of its run, and with checksums that fit them."""
    (history,) = (checkpoint / "history").glob("metadata")
    content = json.loads(history.read_text())["history"]
    content["run"] |= run
    history.write_text(json.dumps({"history": content}))
    (checkpoint / "metrics" / "metrics").write_text(json.dumps({"score": score}))
    files = (line.split("  ")[1] for line in (checkpoint / "files.sha256").read_text().splitlines())
    lines = (f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in files)
    (checkpoint / "files.sha256").write_text("".join(lines))


def test_the_best_checkpoint_of_another_run_is_refused(finished, tmp_path, capsys, monkeypatch):
    path = unfinished(finished, tmp_path / "run")
    rewrite_checkpoint(path / "checkpoints" / "0", score=2.0, seed=7)
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it trains before it looks"))
    told = fails(capsys, "run", "digits", *QUICK, "--folder", path)
    best = path / "checkpoints" / "0"
    assert f"error: {best} belongs to another run (seed is 7 there, 0 here): put that of this run back, or" in told
    assert not (path / "best.safetensors").exists()


def test_a_checkpoint_under_the_name_of_another_epoch_is_refused(finished, tmp_path, capsys):
    path = unfinished(finished, tmp_path / "run")
    (path / "checkpoints" / "1").rename(path / "checkpoints" / "5")
    told = fails(capsys, "run", "digits", *QUICK, "--folder", path)
    assert f"{path / 'checkpoints' / '5'} is the checkpoint of epoch 1 under another name: rename it to 1, or" in told


@pytest.fixture
def full_disk(monkeypatch):
    """A disk on which nothing can be written; the number of times that it was tried."""
    tried = []

    def fail(descriptor):
        tried.append(os.fstat(descriptor).st_size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    return tried


FULL = "no space is left: free some and run the same command again, which resumes where this one stopped"


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_reported_with_the_file(tmp_path):
    with pytest.raises(OSError, match=f"{FULL}: '{tmp_path / 'summary.json'}'"):
        store.write_json(tmp_path / "summary.json", {})
    assert not list(tmp_path.iterdir())


def test_the_time_is_counted_on_after_a_full_disk(tmp_path, monkeypatch):
    store.start(tmp_path, store.to_json("digits", registry.get("digits").config), fresh=False)
    store.write_json(tmp_path / "environment.json", {**store.read_environment(tmp_path), "seconds": 1000})
    failed, written, fsync = threading.Event(), threading.Event(), os.fsync

    def fail_once(descriptor):
        if not failed.is_set():
            failed.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)
        written.set()

    monkeypatch.setattr(os, "fsync", fail_once)
    with store.timed(tmp_path, interval=0.001):
        assert written.wait(60)
    assert store.read_environment(tmp_path)["seconds"] >= 1000


def test_no_link_leads_a_writer_out_of_its_folder(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("part-summary.json", "summary.json.part", "summary.json.tmp", "summary.json"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    store.write_json(tmp_path / "run" / "summary.json", {})
    models.save(
        tmp_path / "run" / "summary.json",
        models.create("logistic", jax.random.key(0), image_shape=(2, 2, 1), num_classes=2),
        architecture={"name": "logistic", "image_shape": [2, 2, 1], "num_classes": 2},
    )
    assert (tmp_path / "mine").read_text() == "mine"


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """The second one writes all of it while the first one is about to bring its own to the disk."""
    others, fsync = ["second"], os.fsync

    def write_another(descriptor):
        if others:
            store.write_json(tmp_path / "audit.json", others.pop())
            assert store.read_json(tmp_path / "audit.json") == "second"
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", write_another)
    store.write_json(tmp_path / "audit.json", "first")
    assert not others
    assert store.read_json(tmp_path / "audit.json") == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["audit.json"]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / "monitored").mkdir()
    for name in (".hmt_jax-part-0123", "monitored/.hmt_jax-part-0123", "part-1.txt"):
        (tmp_path / name).write_text("")
    with store.held(tmp_path):
        assert {file.name for file in tmp_path.rglob("*")} == {"monitored", "part-1.txt"}


def test_files_are_for_whom_the_user_lets_read_them(tmp_path):
    before = os.umask(0o027)
    try:
        store.write_json(tmp_path / "summary.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "summary.json").stat().st_mode & 0o777 == 0o640


def test_a_damaged_configuration_has_a_remedy_that_works(tmp_path, capsys):
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text("{")
    told = fails(capsys, "run", "digits", *QUICK, "--folder", path, "--fresh")
    assert f"config.json is damaged, though a run writes its files whole: remove {path}, and run that" in told


def test_a_run_that_goes_on_elsewhere_tells_where_it_was(tmp_path, monkeypatch):
    """And one that is done does not take on what only checks its claims."""
    monkeypatch.setattr(store, "environment", lambda: {"devices": ["gpu", "gpu"]})
    quick = registry.get("digits").quick
    store.start(tmp_path, store.to_json("digits", quick), fresh=False)
    store.write_json(tmp_path / "environment.json", {**store.read_environment(tmp_path), "seconds": 2.0})
    for devices in (["gpu", "gpu"], ["cpu"], ["cpu"]):
        monkeypatch.setattr(store, "environment", lambda devices=devices: {"devices": devices})
        store.start(tmp_path, store.to_json("digits", quick), fresh=False)
    expected = {"devices": ["cpu"], "seconds": 2.0, "earlier": [{"devices": ["gpu", "gpu"]}]}
    assert store.read_environment(tmp_path) == expected
    store.write_json(tmp_path / "summary.json", {})
    monkeypatch.setattr(store, "environment", lambda: {"devices": ["tpu"]})
    store.start(tmp_path, store.to_json("digits", quick), fresh=False)
    assert store.read_environment(tmp_path) == expected
    store.start(tmp_path, store.to_json("digits", quick), fresh=True)
    assert store.read_environment(tmp_path) == {"devices": ["tpu"], "seconds": 0, "earlier": []}


@pytest.mark.slow
def test_claims_are_tested_anew_without_their_file(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    path = copy / "claims.json"
    before = path.read_text()
    path.unlink()
    assert command_line.main(["run", "digits", *QUICK, "--folder", str(copy)]) == 0
    assert path.read_text() == before
    assert "margin in the highest window over that in the lowest" in capsys.readouterr().out


@pytest.mark.slow
def test_quick_runs_prove_nothing(tmp_path, capsys):
    arguments = [
        "run",
        "digits",
        "--quick",
        "--num-epochs",
        "1",
        "--num-images",
        "6",
        "--folder",
        str(tmp_path / "run"),
    ]
    assert command_line.main(arguments) == 0
    assert "a quick run: its claims prove nothing" in capsys.readouterr().out
    assert command_line.main(["scorecard", str(tmp_path / "run")]) == 2
    assert "is a quick one, which proves nothing" in capsys.readouterr().err
