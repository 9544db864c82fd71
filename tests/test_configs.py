"""Every experiment on images, in its quick form, on images made by hand and a network that compiles at once."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy import fft

from experiments import config, folder, run, stages
from experiments.diagonal import DiagonalMargins
from experiments.imagenet import GivenWeights
from experiments.margin_map import MarginMap
from hmt_jax import data, models
from hmt_jax.models import _create

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
NAMES = [name for name in config.names() if isinstance(config.load(name), DiagonalMargins) and name != "digits"]
GIVEN = [name for name in config.names() if isinstance(config.load(name), GivenWeights)]
NETWORKS = {(full.network, SHAPES[full.data], full.num_hidden) for full in map(config.load, NAMES)}
NETWORKS |= {(full.network, (full.crop, full.crop, 3), ()) for full in map(config.load, GIVEN)}
COMMON = {"files.sha256", "config.json", "environment.json", "checks.json", "summary.json"}


def reduced(name):
    """The quick form on a network, and with an attack, that compile soon."""
    quick = config.load(name, quick=True)
    return dataclasses.replace(
        quick,
        network="logistic",
        num_hidden=(),
        num_train=0,
        num_test=0,
        num_epochs=3 if quick.measure_every else 1,
        num_images=5,
        num_monitored=4,
        max_steps=10,
        batch_size=50,
        window_step=10 if isinstance(quick, MarginMap) else 4 if quick.data == "mnist" else 8,
        attack_steps=1,
        evaluation_steps=min(quick.evaluation_steps, 1),
    )


# Experiments that differ in their networks alone are one here.
REDUCED = list({reduced(name): name for name in NAMES}.values())


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


def runs(name, small, path, capsys):
    """Runs a quick form that was made smaller, and looks at what it says and leaves."""
    claims = config.checks(name)
    run.run(name, small, path, claims=claims, is_quick=True, data_dir=str(path))
    verdicts = json.loads((path / "checks.json").read_text())["checks"]
    assert [verdict["claim"] for verdict in verdicts] == [claim.claim for claim in claims]
    assert np.isfinite([float(verdict["value"]) for verdict in verdicts]).all()
    told = capsys.readouterr().out
    assert all(claim.claim in told for claim in claims)
    written = {file.name for file in path.iterdir()}
    removed = {file.name for pattern in small.results for file in path.glob(pattern)}
    assert written == removed | COMMON  # so that starting over leaves nothing behind
    for picture in path.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", REDUCED)
def test_quick_forms_run(name, stand_ins, tmp_path, capsys):
    runs(name, reduced(name), tmp_path / name, capsys)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Images in folders of three classes, and weights of two networks for 32 x 32 pixels."""
    path, rng = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    for name in ("beaver", "eel", "owl"):
        (path / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path / "images" / name / f"{i}.png")
    for seed, file in enumerate(("weights.npz", "baseline_weights.npz")):
        network = models.create("logistic", jax.random.key(seed), image_shape=(32, 32, 3), num_classes=3)
        np.savez(path / file, **models.to_torch(network))
    return path


def given_small(name, given):
    """The quick form of an experiment on given weights, on a network that compiles soon."""
    quick = config.load(name, quick=True)
    baseline = {} if quick.baseline == "none" else {"baseline_weights": str(given / "baseline_weights.npz")}
    paths = {"weights": str(given / "weights.npz"), "images": str(given / "images"), **baseline}
    sizes = {"resize": 32, "crop": 32, "num_images": 5, "window_size": 8, "window_step": 8}
    return dataclasses.replace(quick, network="logistic", **sizes, **paths)


@pytest.mark.parametrize("name", GIVEN)
def test_quick_forms_run_on_given_weights(name, given, tmp_path, capsys):
    small = given_small(name, given)
    runs(name, small, tmp_path / name, capsys)
    # Margins and labels are those of the network in the file, on images as torchvision would read them.
    with np.load(tmp_path / name / "margins.npz") as arrays:
        found = dict(arrays)
    weights, bias = (np.load(small.weights)[f"linear.{part}"].astype(float) for part in ("weight", "bias"))
    places = np.sort(np.random.default_rng(small.seed).permutation(9)[:5])
    files = [given / "images" / ("beaver", "eel", "owl")[place // 3] / f"{place % 3}.png" for place in places]
    np.testing.assert_array_equal(found["true_label"], places // 3)
    logits = [weights @ normalized(file, small.manipulation).transpose(2, 0, 1).reshape(-1) + bias for file in files]
    np.testing.assert_array_equal(found["label"], np.broadcast_to(np.argmax(logits, 1), found["label"].shape))


def normalized(file, manipulation):
    """An image of 50 x 40 pixels as a network of torchvision gets it at 32 x 32, flipped by SciPy."""
    image = Image.open(file).resize((40, 32), Image.Resampling.BILINEAR).crop((4, 0, 36, 32))
    pixels = (np.asarray(image) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    if manipulation == "none":
        return pixels
    return fft.idctn(fft.dctn(pixels, axes=(0, 1), norm="ortho")[::-1, ::-1], axes=(0, 1), norm="ortho")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": ""},
            r"weights is not given, and nothing is downloaded: name after --set weights=PATH \(the state",
        ),
        ({"baseline_weights": ""}, r"baseline_weights is not given, .* baseline_weights=PATH \(that of the logistic"),
        ({"images": ""}, r"images is not given, .* images=PATH \(a folder with a folder of images for each class\)"),
        ({"images": "/nowhere"}, "images=/nowhere is not there: name after --set weights=PATH"),
        ({"weights": "/no.npz"}, "weights=/no.npz is not there: name after --set weights=PATH"),
        ({"crop": 40, "resize": 40}, r"linear\.weight \(3, 4800\) +linear\.weight \(3, 3072\)"),
        ({"network": "lenet"}, r"the state dict does not fit lenet; it fits logistic: pass that name\n"),
    ],
)
def test_what_is_not_given_is_told_before_any_work(changes, message, given, tmp_path):
    small = dataclasses.replace(given_small("imagenet_resnet50_robust", given), **changes)
    with pytest.raises(ValueError, match=message):
        run.run("robust", small, tmp_path / "robust")
    assert not (tmp_path / "robust").exists()


@pytest.mark.parametrize("changed", ["weights.npz", "baseline_weights.npz", "images/eel/1.png"])
def test_a_run_is_of_the_files_that_it_was_given(changed, given, tmp_path):
    copy = tmp_path / "given"
    shutil.copytree(given, copy)
    small, path = given_small("imagenet_resnet50_robust", copy), tmp_path / "robust"
    folder.start(path, "imagenet_resnet50_robust", small, fresh=False)
    folder.write_json(path / "summary.json", {})
    folder.check(path, "imagenet_resnet50_robust", small)
    assert config.described(folder.read_config(path)) == ("imagenet_resnet50_robust", small)
    # The same files by another path are the same.
    paths = {field: str(copy / ".." / "given" / Path(getattr(small, field)).name) for field in ("weights", "images")}
    folder.check(path, "imagenet_resnet50_robust", dataclasses.replace(small, **paths))
    with (copy / changed).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"belongs to another configuration \(checksums is"):
        folder.check(path, "imagenet_resnet50_robust", small)


def plain(name, quick):
    """An experiment with its numbers of images, on a network and images that are checked at once."""
    found = config.load(name, quick=quick)
    settings = dict.fromkeys(("attack", "augmentation", "baseline", "manipulation"), "none")
    return dataclasses.replace(found, network="logistic", num_hidden=(), evaluation_steps=0, **settings)


# Experiments with the same numbers are one here.
PLAIN = list(dict.fromkeys(plain(name, quick) for name in (*NAMES, "digits") for quick in (False, True)))


@pytest.mark.parametrize("experiment", PLAIN)
def test_every_experiment_asks_for_images_that_there_are(experiment, monkeypatch):
    """At most as many as MNIST, CIFAR-10 and the digits have."""
    sizes = {"mnist": (60_000, 10_000), "cifar10": (50_000, 10_000), "digits": (1437, 360)}

    def blank(name, data_dir):
        shape, (num_train, num_test) = SHAPES.get(name, (8, 8, 1)), sizes[name]
        images, labels = np.broadcast_to(np.uint8(0), (num_train, *shape)), np.zeros(num_train, np.int32)
        return data.Dataset(name, images, labels, images[:num_test], labels[:num_test], 10)

    monkeypatch.setattr(stages, "_load_all", blank)
    experiment.check(None)


@pytest.mark.parametrize(
    ("settings", "field", "most", "images"),
    [
        ({"num_test": 200}, "num_images", 200, "test images that num_test=200 leaves of digits"),
        ({}, "num_images", 360, "test images of digits"),
        ({}, "num_test", 360, "test images of digits"),
        ({}, "num_train", 1437, "training images of digits"),
        ({"measure_every": 5, "num_test": 50}, "num_monitored", 50, "test images that num_test=50 leaves of digits"),
    ],
)
def test_more_images_than_there_are_are_refused_before_any_work(settings, field, most, images, tmp_path):
    quick = dataclasses.replace(plain("digits", quick=True), **settings)
    dataclasses.replace(quick, **{field: most}).check(None)
    asked = dataclasses.replace(quick, **{field: most + 1})  # which can still be read: older runs cut it in silence
    message = f"{field}={most + 1} is more than the {most} {images}: set {field} to at most {most}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run.run("digits", asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_that_are_not_monitored_need_not_be_there():
    quick = dataclasses.replace(config.load("digits", quick=True), num_monitored=100, num_test=50)
    quick.check(None)


def test_more_images_than_a_folder_holds_are_refused(given, tmp_path):
    small = given_small("imagenet_vgg16", given)
    dataclasses.replace(small, num_images=9).check(None)
    with pytest.raises(ValueError, match=r"num_images=10 is more than the 9 images in .*images: set num_images to"):
        run.run("imagenet_vgg16", dataclasses.replace(small, num_images=10), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_images_than_are_manipulated_are_not_shown(stand_ins):
    with pytest.raises(ValueError, match="num_shown=6 is more than num_images=5: set num_shown to at most that"):
        dataclasses.replace(reduced("image_gallery"), num_shown=6).check(None)


def test_a_home_directory_is_expanded_in_paths_of_given_weights(given, monkeypatch):
    small = given_small("imagenet_vgg16", given)
    monkeypatch.setenv("HOME", str(given))
    homely = config.override(small, ["weights=~/weights.npz", "images=~/images", "baseline_weights=~/weights.npz"])
    assert homely == dataclasses.replace(small, baseline_weights=str(given / "weights.npz"))
    homely.check(None)


def test_classes_must_be_those_of_the_network(given, tmp_path):
    small = given_small("imagenet_vgg16", given)
    network = models.create("logistic", jax.random.key(0), image_shape=(32, 32, 3), num_classes=4)
    np.savez(tmp_path / "four.npz", **models.to_torch(network))
    with pytest.raises(ValueError, match="holds folders of 3 classes, but the network has 4 logits: give a folder for"):
        dataclasses.replace(small, weights=str(tmp_path / "four.npz")).check(None)


@pytest.mark.parametrize(("network", "shape", "num_hidden"), sorted(NETWORKS))
def test_networks_take_the_images(network, shape, num_hidden):
    options = {"num_hidden": num_hidden} if num_hidden else {}
    classifier = _create.abstract(network, shape, num_classes=10, **options)
    classifier.eval()
    images = jax.ShapeDtypeStruct((2, *shape), np.float32)
    logits = nnx.eval_shape(lambda classifier, images: classifier(images), classifier, images)
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", config.names())
def test_every_experiment_has_a_claim_and_a_quick_form(name):
    full, quick = config.load(name), config.load(name, quick=True)
    assert type(quick) is type(full)
    assert quick != full
    assert config.checks(name)
    assert re.search(rf"python -m experiments run {name}( --set .*)?\n", config._module(name).__doc__)
