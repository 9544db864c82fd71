"""What the commands of `hmt` compute, compared with the library on the same arrays, and with other readers."""

import csv
import itertools
import json
import os
import shutil

import cli_models
import jax
import numpy as np
import pytest
from PIL import Image
from workspace import DIAGONAL, IMAGES, MEASURE, PIXELS

import hmt_jax
from hmt_jax import data, solvers, subspaces
from hmt_jax.cli import _commands, _images, _specs

FIELDS = ("margin", "gap", "alignment", "status", "label", "adversarial_label", "num_steps")


@pytest.fixture
def measure(hmt, tmp_path):
    """Measures into a new store with further arguments; returns the store."""

    def measure(*arguments, model="cli_models:make", images="images.npy"):
        path = tmp_path / f"{len(os.listdir(tmp_path))}.zarr"
        code, _, err = hmt("measure", "--model", model, "--images", images, "--out", path, *arguments)
        assert (code, err) == (0, "")
        return hmt_jax.MarginStore.open(path)

    return measure


def assert_same(one, other):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.fixture(scope="module")
def whole():
    """The margins of all images along the diagonal."""
    return hmt_jax.measure_margins(cli_models.make(), IMAGES, DIAGONAL, solvers.tight("quick"))


def test_a_store_has_the_margins_of_the_library(measure, whole):
    assert_same(measure().read(), whole)


@pytest.mark.parametrize("folder_of_images", ["grey", "classes", "grey/../grey"])
def test_images_of_a_folder_are_sorted(folder_of_images, measure, whole):
    found = measure(images=folder_of_images).read()
    # Rounding differs, because a stream of images is compiled for batches of another size.
    np.testing.assert_allclose(found.margin, whole.margin, rtol=1e-5)
    np.testing.assert_array_equal(found.label, whole.label)


def test_the_first_images_are_measured(measure, whole):
    for images in ("images.npy", "grey"):
        margin = measure("--num", "4", images=images).read().margin
        # Rounding differs between batches of other sizes.
        np.testing.assert_allclose(margin, whole.margin[:, :4], rtol=1e-5)


@pytest.mark.slow
def test_subspaces_and_settings_of_the_solver(measure):
    specs = ["dct-diagonal:4:4", "dct-grid:4:4", "dct-window:1:2:3", "random:5:7", "full"]
    store = measure("--subspaces", *specs, "--solver", "deepfool:max_steps=7,overshoot=0.5")
    shape = (8, 8, 1)
    expected = [
        *(subspaces.dct_window(shape, row=k, column=k, size=4) for k in (0, 4)),
        *(subspaces.dct_window(shape, row=r, column=c, size=4) for r in (0, 4) for c in (0, 4)),
        subspaces.dct_window(shape, row=1, column=2, size=3),
        subspaces.random(jax.random.key(7), shape, 5),
        subspaces.full(shape),
    ]
    solver = solvers.DeepFool(max_steps=7, overshoot=0.5)
    found = store.read()
    assert_same(found, hmt_jax.measure_margins(cli_models.make(), IMAGES, expected, solver))
    assert found.solver == repr(solver)
    names = ["0", "4", "0,0", "0,4", "4,0", "4,4", "1,2", "random 5", "full"]
    assert store.attributes["subspace_names"] == names


@pytest.mark.slow
def test_windows_of_two_sizes_have_different_names(measure):
    store = measure("--subspaces", "dct-diagonal:4:4", "dct-diagonal:2:6")
    names = ["dct-diagonal:4:4 0", "dct-diagonal:4:4 4", "dct-diagonal:2:6 0", "dct-diagonal:2:6 6"]
    assert store.attributes["subspace_names"] == names


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "CMYK", "RGBA", "1"])
def test_colour_images_have_three_channels_and_grey_ones_one(mode, tmp_path):
    name = "image.tif" if mode == "CMYK" else "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype="uint8")
    Image.fromarray(pixels).convert(mode).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(image.convert("L" if mode in ("L", "1") else "RGB")).reshape(8, 8, -1)
    found = _images.load(str(tmp_path), resize=None, crop=None, data_dir=None)
    (sample,) = found.read()
    np.testing.assert_array_equal(sample[0], expected)
    assert found.image_shape == expected.shape


def test_resized_images_are_those_of_an_image_folder(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 15, 3), dtype="uint8")
    (tmp_path / "class").mkdir()
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / "class" / f"{number}.png")
    for resize, crop in ((12, 8), (8, None), (None, 9)):
        found = _images.load(str(tmp_path), resize=resize, crop=crop, data_dir=None).read()
        source = data.image_folder(tmp_path, resize=resize or crop, crop=crop or resize)
        for (image, _), (wanted, _) in zip(found, source, strict=True):
            np.testing.assert_array_equal(image, wanted)


def test_hidden_names_are_no_images_and_links_are_followed(folder, tmp_path):
    shutil.copytree("grey", tmp_path / ".ipynb_checkpoints")
    Image.fromarray(PIXELS[0]).save(tmp_path / "._x.png")
    (tmp_path / "linked").symlink_to(folder / "grey")
    (tmp_path / "notes.txt").write_text("")
    found = _images.load(str(tmp_path), resize=None, crop=None, data_dir=None)
    assert found.content.files == tuple(f"linked/{number}.png" for number in range(6))
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="loop is a link to a folder that it lies in: remove the link"):
        _images.load(str(tmp_path), resize=None, crop=None, data_dir=None)


def test_a_data_set_with_its_split(folder):
    digits = data.load("digits")
    for text, expected in {
        "digits:test": digits.test_images,
        "digits:train[5:9]": digits.train_images[5:9],
        "digits:test[:3]": digits.test_images[:3],
        "digits:test[350:]": digits.test_images[350:],
    }.items():
        found = _images.load(text, resize=None, crop=None, data_dir=None)
        np.testing.assert_array_equal(found.read(), expected)


def test_a_folder_of_the_name_of_a_data_set_or_a_module_is_not_taken_for_it(folder, monkeypatch, tmp_path):
    for name in ("digits", "cli_models"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    source = _commands.Measure(model="cli_models:make", images="digits:test[:2]", out="m.zarr").source
    assert source.images().num_images == 2
    assert source.model.text == "cli_models:make"


def test_weights_and_checkpoints_are_models(folder, measure):
    weights = dict(np.load("logistic.npz"))
    weights["linear.weight"] = np.random.default_rng(0).normal(size=(3, 64)).astype("f4")
    np.savez("random.npz", **weights)
    arguments = {"image_shape": (8, 8, 1), "mean": (0.5,), "std": (0.25,)}
    classifier = hmt_jax.models.from_torch("logistic", weights, **arguments)
    architecture = {"name": "logistic", "image_shape": (8, 8, 1), "num_classes": 3}
    hmt_jax.models.save("checkpoint.safetensors", classifier, architecture=architecture)
    expected = hmt_jax.measure_margins(classifier, IMAGES, DIAGONAL, solvers.tight("quick"))
    named = measure("--weights", "random.npz", "--mean", "0.5", "--std", "0.25", model="logistic")
    assert_same(named.read(), expected)
    assert_same(measure(model="checkpoint.safetensors").read(), expected)


def test_weights_are_chosen_by_their_key_and_bring_their_normalisation(measure, tmp_path):
    weights, averages = np.random.default_rng(0).normal(size=(2, 3, 64)).astype("f4")
    held = {"linear.bias": np.zeros(3, "f4"), "normalize.mean": np.array([0.5]), "normalize.std": np.array([0.25])}
    state_dicts = {
        key: {"linear.weight": kernel, **held} for key, kernel in (("state_dict", weights), ("ema", averages))
    }
    flat = {f"{key}.{name}": array for key, each in state_dicts.items() for name, array in each.items()}
    np.savez(tmp_path / "both.npz", **flat)
    for key, kernel in (("state_dict", weights), ("ema", averages)):
        classifier = hmt_jax.models.from_torch(
            "logistic", {"linear.weight": kernel, **held}, image_shape=(8, 8, 1), mean=(0.5,), std=(0.25,)
        )
        found = measure("--weights", str(tmp_path / "both.npz"), "--weights-key", key, model="logistic")
        assert_same(found.read(), hmt_jax.measure_margins(classifier, IMAGES, DIAGONAL, solvers.tight("quick")))
        assert found.attributes["source"]["model"]["weights_key"] == key


def test_a_program_is_a_model_and_what_it_prints_stays(folder, hmt, tmp_path):
    shutil.copy(cli_models.__file__, "my net.py")
    code, out, err = hmt(*MEASURE[:1], "--model", "my net.py:prints", *MEASURE[3:5], "--out", tmp_path / "m.zarr")
    assert (code, err) == (0, "")
    assert out.startswith("loading weights\n")


def test_a_part_is_shown_and_the_same_command_goes_on(folder, hmt, tmp_path, whole):
    shutil.copytree("part.zarr", tmp_path / "part.zarr")
    before = (tmp_path / "part.zarr" / "margin" / "c" / "0" / "0").stat().st_mtime_ns
    code, out, err = hmt("show", tmp_path / "part.zarr")
    assert (code, err) == (0, "")
    assert "Margins of 2 images" in out
    assert out.splitlines()[-1] == "2 of 3 chunks are not measured yet: the table covers 2 of 6 images"
    code, _, err = hmt(*MEASURE[:-1], tmp_path / "part.zarr")
    assert (code, err) == (0, "")
    store = hmt_jax.MarginStore.open(tmp_path / "part.zarr")
    assert store.missing() == []
    assert (tmp_path / "part.zarr" / "margin" / "c" / "0" / "0").stat().st_mtime_ns == before
    assert_same(store.read(), hmt_jax.MarginStore.open("whole.zarr").read())


def test_the_table_and_its_json(hmt, whole):
    code, out, err = hmt("show", "whole.zarr")
    assert (code, err) == (0, "")
    (row,) = [line.split() for line in out.splitlines() if line.startswith("0 ")]
    assert float(row[1]) == pytest.approx(np.median(whole.margin), rel=1e-2)
    assert row[-1] == "6"
    code, out, err = hmt("show", "whole.zarr", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["summary"]["median"] == pytest.approx([np.median(whole.margin)], rel=1e-5)
    assert (found["num_images"], found["num_measured"]) == (6, 6)
    assert found["summary"]["counts"]["converged"] == [6]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_has_a_row_for_each_pair(suffix, hmt, measure, tmp_path):
    pandas = pytest.importorskip("pandas")
    store = measure("--subspaces", "dct-diagonal:4:4", "full")
    expected = store.read()
    file = tmp_path / f"a b.{suffix}"
    code, out, err = hmt("export", store.path, file)
    assert (code, out, err) == (0, f"18 rows in {file}\n", "")
    if suffix == "csv":
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
    else:
        rows = pandas.read_parquet(file).to_dict("records")
    names = ["0", "4", "full"]
    pairs = [(r, n) for r in range(3) for n in range(6)]
    assert [(int(row["subspace"]), int(row["image"])) for row in rows] == pairs
    assert [row["subspace_name"] for row in rows] == [names[r] for r, _ in pairs]
    for name in ("margin", "label", "adversarial_label", "num_steps"):
        found = np.array([float(row[name]) for row in rows], np.float32)
        np.testing.assert_array_equal(found, np.broadcast_to(getattr(expected, name), (3, 6)).ravel())


def test_a_table_names_the_images_of_a_folder(hmt, measure, tmp_path):
    pytest.importorskip("pandas")
    store = measure("--subspaces", "full", "dct-diagonal:4:4", images="classes")
    assert hmt("export", store.path, tmp_path / "a.csv")[0] == 0
    with (tmp_path / "a.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    files = ["a/0.png", "a/1.png", "a/2.png", "b/3.png", "b/4.png", "b/5.png"]
    assert [row["image_name"] for row in rows] == files * 3


@pytest.mark.parametrize(
    ("specs", "axis"),
    [
        (["dct-diagonal:4:2"], "first frequency of the 4 x 4 DCT window, from low to high"),
        (["full"], "subspace"),
        (["dct-diagonal:4:2", "full"], "subspace"),
        ([], "subspace"),
    ],
)
def test_the_axis_of_windows_alone_runs_from_low_to_high(specs, axis):
    assert _specs.axis_of(specs) == axis


def test_pictures_of_one_store_and_of_several(hmt, tmp_path):
    pytest.importorskip("matplotlib")
    shutil.copytree("whole.zarr", tmp_path / "second.zarr")
    for name, stores in {"one.png": ["whole.zarr"], "two.png": ["whole.zarr", tmp_path / "second.zarr"]}.items():
        code, out, err = hmt("plot", *stores, tmp_path / name)
        assert (code, out, err) == (0, f"{tmp_path / name}\n", "")
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert hmt("plot", "whole.zarr", tmp_path / "one.svg")[0] == 0
    assert "<svg" in (tmp_path / "one.svg").read_text()


@pytest.mark.slow
def test_an_audit_finds_smaller_margins(hmt, measure):
    store = measure("--solver", "deepfool:overshoot=0.9")
    code, out, err = hmt("audit", store.path, "--num", "3", "--solver", "tight:fast", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    again = hmt_jax.measure_margins(cli_models.make(), IMAGES, DIAGONAL, solvers.tight("fast"))
    ratios = (again.margin / store.read().margin)[0]
    (median,) = found["comparison"]["median_ratio"]
    threes = [list(three) for three in itertools.combinations(range(6), 3)]
    (chosen,) = [three for three in threes if np.median(ratios[three]) == pytest.approx(median, rel=1e-5)][:1]
    assert chosen != [0, 1, 2]  # which in a folder may all be of one class
    assert found["comparison"]["smaller"] == [1]
    code, out, err = hmt("audit", store.path, "--num", "3", "--solver", "tight:fast")
    assert (code, err) == (0, "")
    assert "b: 3 of its images, chosen at random, measured again by" in out
    assert hmt("audit", store.path, "--num", "3", "--solver", "tight:fast")[1] == out


def test_an_audit_of_another_model_or_other_images_is_refused(folder, hmt, tmp_path):
    """Also where all labels stay the same, so that only margins show it: those of half the contrast are smaller."""
    program, images, path = tmp_path / "net.py", tmp_path / "images.npy", tmp_path / "m.zarr"
    program.write_text("from cli_models import make")
    np.save(images, IMAGES)
    arguments = ["measure", "--model", f"{program}:make", "--images", images, "--out", path]
    assert hmt(*arguments)[0] == 0
    audit = ["audit", path, "--num", "6", "--solver", "linear"]
    halved = """
import jax
import cli_models
def make():
    return jax.tree.map(lambda leaf: leaf / 2, cli_models.make())
"""
    labels = [network(IMAGES / 255).argmax(1).tolist() for network in (cli_models.make(), cli_models.other())]
    assert labels[0] == jax.tree.map(lambda leaf: leaf / 2, cli_models.make())(IMAGES / 255).argmax(1).tolist()
    assert labels[0] != labels[1]
    for text in (halved, "from cli_models import other as make  # another one"):
        program.write_text(text)
        code, _, err = hmt(*audit)
        message = f"error: {path} holds margins of another classifier: parameters_sha256 "
        assert code == 2
        assert err.startswith(message)
        assert err.endswith("; put back what was measured\n")
        code, _, err = hmt(*arguments)
        assert code == 2
        assert err.startswith(message)
    program.write_text("from cli_models import make")
    for pixels in (IMAGES // 2, IMAGES.astype("f4") / 255, IMAGES[::-1]):
        np.save(images, pixels)
        message = (
            f"error: {path} has margins of other images than {images} has now: put back those that were measured\n"
        )
        assert hmt(*audit)[::2] == (2, message)
    np.save(images, IMAGES[:5])
    message = f"error: {path} has margins of 6 images, and {images} has 5 now: put back those that were measured\n"
    assert hmt(*audit)[::2] == (2, message)
    np.save(images, IMAGES)
    assert hmt(*audit)[::2] == (0, "")


def test_the_version_is_that_of_the_library(hmt):
    assert hmt("--version")[1] == f"hmt_jax {hmt_jax.__version__}\n"


def test_networks_are_listed(hmt):
    code, out, err = hmt("models")
    assert (code, out.split(), err) == (0, list(hmt_jax.models.names()), "")
    assert json.loads(hmt("models", "--json")[1]) == out.split()


@pytest.mark.parametrize("command", ["measure", "show", "export", "plot", "report", "audit", "models", "prepare"])
def test_every_command_has_help(command, hmt):
    code, out, err = hmt(command, "--help")
    assert (code, err) == (0, "")
    assert f"usage: hmt {command} " in out
    assert "{None}" not in out


def test_the_help_of_prepare_names_the_data_sets(hmt):
    assert f"One of {' and '.join(', '.join(data.names()).rsplit(', ', 1))}." in " ".join(
        hmt("prepare", "--help")[1].split()
    )


def test_the_help_of_all_commands_is_short(hmt):
    code, out, err = hmt("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in ("measure", "show", "export", "plot", "report", "audit", "models", "prepare"))
    assert "For example" not in out
