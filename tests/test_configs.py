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
from helpers import slow_except
from PIL import Image
from scipy import fft

from experiments import images as images_kind
from experiments import registry, run, store
from experiments.experiment import Experiment
from experiments.given_weights import GivenWeights
from experiments.images import Images
from hmt_jax import data, models
from hmt_jax.models import _create

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
FULL = {name: registry.get(name).config for name in registry.names()}
NAMES = [name for name, full in FULL.items() if isinstance(full, Images) and name != "digits"]
GIVEN = [name for name, full in FULL.items() if isinstance(full, GivenWeights)]
NETWORKS = {(FULL[name].network, SHAPES[FULL[name].data], FULL[name].num_hidden) for name in NAMES}
NETWORKS |= {(FULL[name].network, (FULL[name].crop, FULL[name].crop, 3), ()) for name in GIVEN}


def reduced(name):
    """The quick form on a network, and with an attack, that compile soon."""
    quick = registry.get(name).quick
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
        window_step=10 if quick.windows == "grid" else 4 if quick.data == "mnist" else 8,
        attack_steps=1,
        evaluation_steps=min(quick.evaluation_steps, 1),
    )


# Experiments that differ in their networks, and in the names of what they are compared with, are one here.
REDUCED = list({dataclasses.replace(reduced(name), baseline="none"): name for name in reversed(NAMES)}.values())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of all runs of this file, so that each baseline runs once."""
    return tmp_path_factory.mktemp("runs")


def stand_in(name, data_dir):
    """A template for each of ten classes under noise, in place of a data set."""
    rng, shape = np.random.default_rng(0), SHAPES[name]
    templates = rng.uniform(0, 160, (10, *shape))
    labels = np.arange(200) % 10
    images = (templates[labels] + rng.uniform(0, 90, (200, *shape))).astype(np.uint8)
    return data.from_arrays(images[:150], labels[:150], images[150:], labels[150:], name)


@pytest.fixture
def stand_ins(monkeypatch):
    """Data by hand, one device, and the reduced forms in place of the experiments."""
    devices = jax.devices()[:1]  # simulated ones would wait for each other
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(data, "load", stand_in)
    monkeypatch.setattr(registry, "_EXPERIMENTS", {**registry._EXPERIMENTS, **with_quick(NAMES, reduced)})


def with_quick(names, make):
    """Experiments with another quick form."""
    found = {name: registry.get(name) for name in names}
    return {name: dataclasses.replace(each, quick=make(name)) for name, each in found.items()}


def runs(name, path, capsys):
    """Runs a quick form that was made smaller, and looks at its output and its files."""
    experiment = registry.get(name)
    run.run(name, experiment.quick, path, is_quick=True, data_dir=str(path))
    verdicts = json.loads((path / "claims.json").read_text())["claims"]
    assert [verdict["claim"] for verdict in verdicts] == [claim.text for claim in experiment.claims]
    assert np.isfinite([float(verdict["value"]) for verdict in verdicts]).all()
    told = capsys.readouterr().out
    assert all(claim.text in told for claim in experiment.claims)
    for picture in path.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REDUCED, "image_gallery"])
def test_quick_forms_run(name, stand_ins, root, capsys):
    runs(name, run.folder_of(name, is_quick=True, root=root), capsys)


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
    quick = registry.get(name).quick
    baseline = {} if quick.baseline == "none" else {"baseline_weights": str(given / "baseline_weights.npz")}
    paths = {"weights": str(given / "weights.npz"), "images": str(given / "images"), **baseline}
    sizes = {"resize": 32, "crop": 32, "num_images": 5, "window_size": 8, "window_step": 8}
    return dataclasses.replace(quick, network="logistic", **sizes, **paths)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_except(GIVEN, "imagenet_vgg16"))
def test_quick_forms_run_on_given_weights(name, given, tmp_path, capsys, monkeypatch):
    small = given_small(name, given)
    monkeypatch.setattr(registry, "_EXPERIMENTS", {**registry._EXPERIMENTS, **with_quick([name], lambda _: small)})
    if small.baseline != "none":  # runs on the other weights
        other = dataclasses.replace(small, baseline="none", baseline_weights="", manipulation="none")
        other = dataclasses.replace(other, weights=small.baseline_weights)
        for each, config in with_quick([small.baseline], lambda _: other).items():
            monkeypatch.setitem(registry._EXPERIMENTS, each, config)
    runs(name, tmp_path / name, capsys)
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
            r"weights is not given, and nothing is downloaded: give --weights PATH \(the state",
        ),
        ({"baseline_weights": ""}, r"baseline_weights is not given, .* --baseline-weights PATH \(that of the logistic"),
        ({"images": ""}, r"images is not given, .* --images PATH \(a folder with a folder of images for each class\)"),
        ({"images": "/nowhere"}, "images=/nowhere is not there: give --weights PATH"),
        ({"weights": "/no.npz"}, "weights=/no.npz is not there: give --weights PATH"),
        ({"crop": 40, "resize": 40}, r"linear\.weight \(3, 4800\) +linear\.weight \(3, 3072\)"),
        ({"network": "lenet"}, r"the state dict does not fit lenet; it fits logistic: pass that name\n"),
    ],
)
def test_what_is_not_given_is_told_before_any_work(changes, message, given, tmp_path):
    small = dataclasses.replace(given_small("imagenet_resnet50_robust", given), **changes)
    with pytest.raises(ValueError, match=message):
        run.run("imagenet_resnet50_robust", small, tmp_path / "robust")
    assert not (tmp_path / "robust").exists()


@pytest.mark.parametrize("changed", ["weights.npz", "baseline_weights.npz", "images/eel/1.png"])
def test_a_run_is_of_the_files_that_it_was_given(changed, given, tmp_path):
    copy = tmp_path / "given"
    shutil.copytree(given, copy)
    name = "imagenet_resnet50_robust"
    small, path = given_small(name, copy), tmp_path / "robust"
    store.start(path, store.to_json(name, small), fresh=False)
    store.write_json(path / "summary.json", {})
    store.check(path, store.to_json(name, small))
    assert registry.reopen(path) == (name, small)
    # The same files by another path are the same.
    paths = {field: str(copy / ".." / "given" / Path(getattr(small, field)).name) for field in ("weights", "images")}
    store.check(path, store.to_json(name, dataclasses.replace(small, **paths)))
    with (copy / changed).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=rf"belongs to another configuration \({re.split('[./]', changed)[0]} is"):
        store.check(path, store.to_json(name, small))


def plain(name, quick):
    """An experiment with its numbers of images, on a network and images that are checked at once."""
    found = registry.form(name, is_quick=quick)
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

    monkeypatch.setattr(images_kind, "_load_all", blank)
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
    asked = dataclasses.replace(quick, **{field: most + 1})
    message = f"{field}={most + 1} is more than the {most} {images}: set {field} to at most {most}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run.run("digits", asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_that_are_not_monitored_need_not_be_there():
    quick = dataclasses.replace(registry.get("digits").quick, num_monitored=100, num_test=50)
    quick.check(None)


def test_more_images_than_a_folder_holds_are_refused(given, tmp_path):
    small = given_small("imagenet_vgg16", given)
    dataclasses.replace(small, num_images=9).check(None)
    with pytest.raises(ValueError, match=r"num_images=10 is more than the 9 images in .*images: set num_images to"):
        run.run("imagenet_vgg16", dataclasses.replace(small, num_images=10), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_home_directory_is_expanded_in_paths_of_given_weights(given, monkeypatch):
    small = given_small("imagenet_vgg16", given)
    monkeypatch.setenv("HOME", str(given))
    homely = dataclasses.replace(small, weights="~/weights.npz", images="~/images", baseline_weights="~/weights.npz")
    assert homely == dataclasses.replace(small, baseline_weights=str(given / "weights.npz"))
    homely.check(None)


def test_classes_must_be_those_of_the_network(given, tmp_path):
    small = given_small("imagenet_vgg16", given)
    network = models.create("logistic", jax.random.key(0), image_shape=(32, 32, 3), num_classes=4)
    np.savez(tmp_path / "four.npz", **models.to_torch(network))
    with pytest.raises(ValueError, match="holds folders of 3 classes, but the network has 4 logits: give a folder for"):
        dataclasses.replace(small, weights=str(tmp_path / "four.npz")).check(None)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "shape", "num_hidden"), sorted(NETWORKS))
def test_networks_take_the_images(network, shape, num_hidden):
    options = {"num_hidden": num_hidden} if num_hidden else {}
    classifier = _create.abstract(network, shape, num_classes=10, **options)
    classifier.eval()
    images = jax.ShapeDtypeStruct((2, *shape), np.float32)
    logits = nnx.eval_shape(lambda classifier, images: classifier(images), classifier, images)
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", registry.names())
def test_every_experiment_has_a_note_and_names_its_baseline(name):
    experiment = registry.get(name)
    assert experiment.title.endswith(".")
    assert experiment.claims
    for config in (experiment.config, experiment.quick):
        assert config.baseline == "none" or config.baseline in registry.names()


@pytest.mark.parametrize(
    ("name", "field", "known"),
    [
        ("digits", "norm", "l2, linf"),
        ("digits", "windows", "diagonal, grid"),
        ("imagenet_vgg16", "manipulation", "none, flip"),
        ("imagenet_vgg16", "network", "densenet121, "),
    ],
)
def test_choices_that_are_not_known_are_refused(name, field, known):
    with pytest.raises(ValueError, match=f"^unknown {field} 'other'; the known ones are .*{known}"):
        dataclasses.replace(registry.get(name).config, **{field: "other"})


def test_forms_of_one_experiment_are_of_one_kind():
    digits, synthetic = registry.get("digits"), registry.get("synthetic_linear")
    with pytest.raises(ValueError, match="an experiment needs a note and two forms of one kind"):
        Experiment(digits.config, synthetic.config, digits.claims, "A note.")
    with pytest.raises(ValueError, match="an experiment needs a note and two forms of one kind"):
        Experiment(digits.config, digits.quick, digits.claims, " ")
