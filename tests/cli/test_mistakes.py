"""What `hmt` says and returns where something is missing or wrong."""

import os
import shutil

import pytest
from workspace import MEASURE, measured

LOGISTIC = [
    "measure",
    "--model",
    "logistic",
    "--weights",
    "logistic.npz",
    "--images",
    "images.npy",
    "--out",
    "new.zarr",
]
SPECS = (
    "dct-diagonal:SIZE[:STEP], dct-grid:SIZE[:STEP], dct-window:ROW:COLUMN:SIZE, wavelet-bands:WAVELET:LEVELS, "
    "fourier-rings:EDGE:EDGE[:EDGE...], patches:SIZE, pixels:FILE, channels, luma-chroma, "
    "principal-components:FIRST[:STOP], class-means, random:DIMENSION[:SEED] or full"
)


def with_(option, *values, base=MEASURE):
    """The arguments with another value of an option."""
    if option not in base:
        return [*base, option, *values]
    place = base.index(option)
    return [*base[:place], option, *values, *base[place + 2 :]]


# {} is the folder, and after [...] others have the word.
MISTAKES = {
    # models
    "no model": (
        with_("--model", "lenett"),
        "there is no model 'lenett': name a network of hmt models with --weights FILE, a file, or file.py:function",
    ),
    "function of no module": (
        with_("--model", ":make"),
        "there is no model ':make': name a network of hmt models with --weights FILE, a file, or file.py:function",
    ),
    "folder as model": (with_("--model", "grey"), "{}/grey is a folder: name the file of the model in it"),
    "no program": (with_("--model", "nosuch.py:make"), "there is no file nosuch.py"),
    "no module": (
        with_("--model", "nosuch:make"),
        "nosuch can't be imported (ModuleNotFoundError: No module named 'nosuch'); --debug shows where",
    ),
    "no function": (
        with_("--model", "cli_models:makee"),
        "cli_models has no function 'makee'; it has make, other, colour, raises, needs, exits, nothing, pair, prints",
    ),
    "program without function": (
        with_("--model", "broken.py"),
        "{}/broken.py is a program: name its function that makes the model, {}/broken.py:FUNCTION",
    ),
    "program with an error": (
        with_("--model", "broken.py:make"),
        "{}/broken.py can't be imported (SyntaxError: invalid syntax (broken.py, line 1)); --debug shows where",
    ),
    "program that needs a package": (
        with_("--model", "needy.py:make"),
        "{}/needy.py can't be imported (ModuleNotFoundError: No module named 'a_package_that_nobody_has'); --debug "
        "shows where",
    ),
    "program without PyTorch": (
        with_("--model", "torchless.py:make"),
        "{}/torchless.py can't be imported (ModuleNotFoundError: No module named 'torch'); pip install "
        "'hmt-jax[torch]', or '.[torch]' in a checkout",
    ),
    "function that raises": (
        with_("--model", "cli_models:raises"),
        "cli_models:raises fails when it is called without arguments (RuntimeError: no accelerator here); --debug "
        "shows where",
    ),
    "function with arguments": (
        with_("--model", "cli_models:needs"),
        "cli_models:needs fails when it is called without arguments (TypeError: needs() missing 1 required positional "
        "argument: 'size'); --debug shows where",
    ),
    "function that exits": (
        with_("--model", "cli_models:exits"),
        "cli_models:exits fails when it is called without arguments (SystemExit: bye); --debug shows where",
    ),
    "function without a result": (
        with_("--model", "cli_models:nothing"),
        "cli_models:nothing must return a classifier or a PyTorch module when it is called without arguments, got "
        "NoneType",
    ),
    "no function at all": (with_("--model", "cli_models:CONSTANT"), "cli_models:CONSTANT is not a function, but int"),
    "weights as model": (
        with_("--model", "logistic.npz"),
        "{}/logistic.npz is a zip archive, and was not written by hmt_jax.models.save: pass weights in PyTorch's "
        "layout as --model NAME --weights FILE, with a name of hmt models",
    ),
    "model with a pickle": (
        with_("--model", "model.pkl"),
        "{}/model.pkl is a file of PyTorch's, and was not written by hmt_jax.models.save: [...]",
    ),
    "model for other images": (
        with_("--images", "colour.npy"),
        "classifier can't be applied to images of shape (N, 8, 8, 3): dot_general requires contracting dimensions to "
        "have the same shape, got (192,) and (64,); pass it images of the shape that it was made for",
    ),
    "model of a tuple": (
        with_("--model", "cli_models:pair"),
        "classifier must return one array, its logits (N, L), got tuple: wrap it in a function that returns them alone",
    ),
    "mean alone": (with_("--mean", "0.5"), "--mean and --std go together: pass both, or neither"),
    "statistics of 8-bit pixels": (
        with_("--mean", "127.5", "--std", "0.25"),
        "--mean is for pixels in [0, 1], and has 127.5: divide statistics of pixels up to 255 by 255, --mean 0.5",
    ),
    "statistics of a classifier": (
        with_("--mean", "0.5", "--std", "0.5"),
        "--mean and --std are for weights and PyTorch modules, and cli_models:make returns a JAX classifier, "
        "which normalises its images itself: leave them out",
    ),
    "weights of a classifier": (
        with_("--weights", "logistic.npz"),
        "--weights is for the networks of hmt models, and 'cli_models:make' is none of them",
    ),
    # weights
    "network without weights": (
        with_("--model", "logistic"),
        "--model logistic needs its weights: pass --weights FILE",
    ),
    "weights without statistics": (
        LOGISTIC,
        "mean and std are not given, and the state dict holds none: pass those that the network was trained with, or "
        "--mean 0 and --std 1 if it was trained on images in [0, 1] as they are",
    ),
    "weights without a deviation": (
        [*LOGISTIC, "--mean", "0"],
        "std is not given, and the state dict holds none: pass the one that the network was trained with, or --std 1 "
        "if it was trained on images in [0, 1] as they are",
    ),
    "weights that are there twice": (
        with_("--weights", "twice.npz", base=[*LOGISTIC, "--mean", "0", "--std", "1"]),
        "the state dict holds the weights more than once, and their linear.weight differ: pass --weights-key 'one' or "
        "--weights-key 'other'",
    ),
    "no such key": (
        [*with_("--weights", "twice.npz", base=LOGISTIC), "--weights-key", "ema", "--mean", "0", "--std", "1"],
        "weights is 'ema', and the state dict holds no array of the network there: pass --weights-key 'one' or "
        "--weights-key 'other'",
    ),
    "key of a classifier": (
        with_("--weights-key", "ema"),
        "--weights-key is for the networks of hmt models, and 'cli_models:make' is none of them",
    ),
    "no weights": (
        with_("--weights", "lost.pth", base=[*LOGISTIC, "--mean", "0", "--std", "1"]),
        "there is no file of weights lost.pth",
    ),
    "weights of another network": (
        with_("--model", "mlp", base=[*LOGISTIC, "--mean", "0", "--std", "1"]),
        "the state dict does not fit mlp; it fits logistic: pass that name\n[...]",
    ),
    "means of other channels": (
        [*LOGISTIC, "--mean", "0", "0", "0", "--std", "1", "1", "1"],
        "mean must have one number for each of 1 channels, or be an image of shape (8, 8, 1), got shape (3,)",
    ),
    # images
    "no images": (
        with_("--images", "lost"),
        "there are no images at lost: name a folder of images, a .npy or .npz file, or a data set with its split, such "
        "as mnist:test",
    ),
    "folder without images": (
        with_("--images", "empty"),
        "{}/empty holds no images (.bmp, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp): name another folder",
    ),
    "images of several sizes": (
        with_("--images", "sizes"),
        "the images in {}/sizes have several sizes, b.png 8 x 7 and a.png 8 x 8 for instance: pass --resize and "
        "--crop, such as --resize 256 --crop 224",
    ),
    "corrupt image": (
        with_("--images", "bad"),
        "{}/bad/4.png can't be read (Truncated File Read): replace it, or delete it",
    ),
    "image of 16 bits": (
        with_("--images", "deep"),
        "{}/deep/a.png can't be read (its mode I;16 has more than 8 bits): replace it, or delete it",
    ),
    "text as image": (
        with_("--images", "text"),
        "{}/text/a.png can't be read (it is not recognised as BMP, JPEG, PNG, PPM, TIFF or WEBP): replace it, or "
        "delete it",
    ),
    "text as array": (
        with_("--images", "text.npy"),
        "{}/text.npy is neither a .npy nor a .npz file: name such a file, or a folder of images",
    ),
    "array of objects": (
        with_("--images", "objects.npy"),
        "{}/objects.npy can't be read as an array of numbers (Array can't be memory-mapped: Python objects in dtype): "
        "write it with numpy.save, as uint8 or float32",
    ),
    "arrays of objects": (
        with_("--images", "objects.npz"),
        "{}/objects.npz can't be read as an array of numbers (Object arrays cannot be loaded when allow_pickle=False): "
        "write it with numpy.save, as uint8 or float32",
    ),
    "no arrays": (
        with_("--images", "nothing.npz"),
        "{}/nothing.npz must hold one array of images, or one that is named images; its arrays are none",
    ),
    "several arrays": (
        with_("--images", "two.npz"),
        "{}/two.npz must hold one array of images, or one that is named images; its arrays are a (6, 8, 8, 1), b "
        "(6, 8, 8, 1)",
    ),
    "flat images": (
        with_("--images", "flat.npy"),
        "{}/flat.npy must hold images (N, height, width, channels), got shape (6, 64): write it in that shape",
    ),
    "empty array": (
        with_("--images", "none.npy"),
        "{}/none.npy must hold images (N, height, width, channels), got shape (0, 8, 8, 1): write it in that shape",
    ),
    "channels first": (
        with_("--images", "channels.npy"),
        "{}/channels.npy holds images with channels first, (2, 3, 8, 8): write images.transpose(0, 2, 3, 1)",
    ),
    "integers": (
        with_("--images", "integers.npy"),
        "images must be uint8, or floating point in [0, 1], got int64; convert 8-bit images with "
        "images.astype(np.uint8), and 16-bit ones with images.astype(np.float32) / 65535",
    ),
    "resized array": (
        with_("--resize", "8"),
        "--resize and --crop are for folders and data sets, and {}/images.npy holds an array",
    ),
    "large crop": (
        [*with_("--images", "grey"), "--resize", "4", "--crop", "8"],
        "crop must be at least 1 and at most resize, got crop 8 and resize 4: lower crop",
    ),
    "too many": (with_("--num", "7"), "--num 7 must be from 1 to 6, the number of images"),
    "no data set": (with_("--images", "mnst:test"), "unknown data set 'mnst'; the nearest ones are mnist, [...]"),
    "data set that is not prepared": (
        [*with_("--images", "mnist:test"), "--data-dir", "empty"],
        "mnist is not prepared in {}/empty: run `hmt prepare mnist --data-dir {}/empty`, or name the folder that "
        "holds it, [...]",
    ),
    "no split": (
        with_("--images", "digits:validation"),
        "digits has no split 'validation': use digits:train or digits:test, or a part such as [:1000]",
    ),
    "no part": (with_("--images", "digits:train[9:9]"), "digits:train[9:9] has no images: the split train has 1437"),
    "no home": (
        with_("--images", "~a-user-that-nobody-is/x"),
        "--images is ~a-user-that-nobody-is/x, but the home directory ~a-user-that-nobody-is is not known: write the "
        "full path, or put ./ before it if ~ is part of the name",
    ),
    # subspaces and solvers
    "no images of components": (
        with_("--subspaces", "principal-components:0:2"),
        "principal-components and class-means need --features-of: name the images that they are of",
    ),
    "images of components of another shape": (
        [*with_("--subspaces", "principal-components:0:2"), "--features-of", "colour.npy"],
        "the images of --features-of have shape (8, 8, 3): name others, or resize them",
    ),
    "images without components": (
        [*MEASURE, "--features-of", "images.npy"],
        "--features-of is for principal-components and class-means: leave it out",
    ),
    "means of no classes": (
        [*with_("--subspaces", "class-means"), "--features-of", "grey"],
        "the classes of the images in {}/grey are not known: name a folder with a subfolder for each class, an [...]",
    ),
    "edges that are no numbers": (
        with_("--subspaces", "fourier-rings:0:a"),
        "fourier-rings:0:a does not fit images of shape (8, 8, 1): edges must be numbers such as 0 or 2.5, got 'a'",
    ),
    "levels that are no number": (
        with_("--subspaces", "wavelet-bands:db2:x"),
        "wavelet-bands:db2:x does not fit images of shape (8, 8, 1): LEVELS must be a whole number, got 'x'",
    ),
    "a mask of numbers": (
        with_("--subspaces", "pixels:flat.npy"),
        "pixels:{}/flat.npy does not fit images of shape (8, 8, 1): the mask has shape (6, 64): write one with "
        "numpy.save, of True and False",
    ),
    "no mask": (
        with_("--subspaces", "pixels:away.npy"),
        "pixels:{}/away.npy does not fit images of shape (8, 8, 1): there is no such file: write a mask "
        "there with numpy.save",
    ),
    "no subspaces": (with_("--subspaces", "dct"), f"unknown subspaces 'dct': use {SPECS}"),
    "subspaces without numbers": (
        with_("--subspaces", "random:many"),
        f"'random:many' must have whole numbers after random, of up to 9 digits: use {SPECS}",
    ),
    "subspaces of a huge number": (
        with_("--subspaces", "random:5:99999999999999999999"),
        f"'random:5:99999999999999999999' must have whole numbers after random, of up to 9 digits: use {SPECS}",
    ),
    "subspaces twice": (
        with_("--subspaces", "full", "random:3", "full"),
        "--subspaces has full twice: leave one of them out",
    ),
    "option twice": (
        [*MEASURE, "--subspaces", "full", "--subspaces", "random:3"],
        "--subspaces is there twice: pass it once, with all its values after it",
    ),
    "large window": (
        with_("--subspaces", "full", "dct-diagonal:9"),
        "dct-diagonal:9 does not fit images of shape (8, 8, 1): size must be between 1 and 8 for images of shape "
        "(height, width, channels) = (8, 8, 1), got 9",
    ),
    "no solver": (
        with_("--solver", "deepfol"),
        "unknown solver 'deepfol': use deepfool, tight, ddn, fmn, superdeepfool, closest-point, linear, with settings "
        "as in deepfool:max_steps=50",
    ),
    "no setting": (
        with_("--solver", "deepfool:steps=3"),
        "deepfool has no setting 'steps=3': its settings are num_candidates, overshoot, max_steps, as in "
        "deepfool:NAME=VALUE",
    ),
    "setting of text": (with_("--solver", "deepfool:max_steps=few"), "'max_steps=few' must have a number after ="),
    "half a step": (with_("--solver", "deepfool:max_steps=2.5"), "max_steps must be a whole number, got 2.5"),
    "no effort": (with_("--solver", "tight:slow"), "effort must be one of quick, fast, normal, thorough, got 'slow'"),
    # stores
    "store without a name": (
        with_("--out", ""),
        "--out is empty: name the folder of the store, such as --out margins.zarr",
    ),
    "store in a file": (
        with_("--out", "images.npy"),
        "there is something else at {}/images.npy already: choose another path, or move it away",
    ),
    "store over images": (
        with_("--out", "grey"),
        "there is something else at {}/grey already: choose another path, or move it away",
    ),
    "store that can't be": (with_("--out", "/proc/new.zarr"), "/proc/new.zarr can't be written ([...]"),
    "store of other subspaces": (
        [*with_("--out", "whole.zarr"), "--subspaces", "full"],
        "{}/whole.zarr holds margins of other subspaces: [...]",
    ),
    "store of another model": (
        [*with_("--out", "whole.zarr", base=with_("--model", "cli_models:other"))],
        "{}/whole.zarr holds margins of [...]",
    ),
    "newer store": (
        ["show", "newer.zarr"],
        "the store at {}/newer.zarr has format 99, and this version of hmt_jax [...]",
    ),
    "no store": (
        ["show", "lost.zarr"],
        "there is no store of margins at lost.zarr: name the folder that hmt measure wrote with --out",
    ),
    "file as store": (
        ["show", "two.npz"],
        "two.npz is a file, and a store of margins is a folder: name the folder that hmt measure wrote with --out",
    ),
    "nothing measured": (
        ["show", "nothing.zarr"],
        "nothing is measured in {}/nothing.zarr yet: type the hmt measure command that began it again",
    ),
    **{
        f"{arguments[0]} of a part": (
            arguments,
            "2 of 3 chunks of {}/part.zarr are not measured yet: type the hmt measure command that began it again; hmt "
            "show prints a table of the measured ones",
        )
        for arguments in (["export", "part.zarr", "part.csv"], ["plot", "part.zarr", "part.png"])
    },
    "audit of another's store": (
        ["audit", "whole.zarr"],
        "{}/whole.zarr was not written by hmt measure, so its model and images are not known",
    ),
    "table of no kind": (["export", "whole.zarr", "a.txt"], "the file must end in .csv or .parquet, got 'a.txt'"),
    "table nowhere": (["export", "whole.zarr", "lost/a.csv"], "[Errno 2] No such file or directory: 'lost/a.csv'"),
    "picture nowhere": (["plot", "whole.zarr", "lost/a.png"], "[Errno 2] No such file or directory: 'lost/a.png'"),
    "no picture": (
        ["plot", "whole.zarr"],
        "plot needs at least one store and the picture to write, such as: hmt plot m.zarr m.png",
    ),
    "picture of no kind": (
        ["plot", "whole.zarr", "whole.zarr"],
        "the last path must be the picture, ending in .png, .pdf or .svg, got 'whole.zarr'",
    ),
    "data set to prepare": (
        ["prepare", "mnst"],
        "unknown data set 'mnst'; the known ones are cifar10, digits, mnist",
    ),
    "no folder for data": (
        ["prepare", "mnist", "--data-dir", "/proc/lost"],
        "no folder can be made in /proc/lost (No such file or directory): pass a --data-dir that can be written",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_in_a_sentence_or_two(name, hmt, folder):
    arguments, message = MISTAKES[name]
    code, out, err = hmt(*arguments)
    assert (code, out) == (2, "")
    expected, has_more, _ = ("error: " + message.replace("{}", str(folder))).partition("[...]")
    assert err.startswith(expected) if has_more else err == expected + "\n"
    assert len(err.splitlines()) == 1 or name == "weights of another network"  # which are listed side by side
    # Images are decoded when their chunk comes, and by then there is a store.
    assert os.path.exists("new.zarr") == (name == "corrupt image")
    shutil.rmtree("new.zarr", ignore_errors=True)
    assert not os.path.exists("harmed")


USAGE = {
    "no command": ([], ["Missing subcommand", "{measure, show, export, plot, report, audit, models, prepare}"]),
    "mistyped command": (["mesure"], ["Available subcommands: measure, show,"]),
    "mistyped option": ([*MEASURE, "--nun", "3"], ["Unrecognized options: --nun", "Perhaps you meant:", "--num N"]),
    "missing options": (["measure"], ["--model MODEL", "--images IMAGES", "--out STORE"]),
    "missing store": (["show"], ["STORE", "A store that hmt measure wrote."]),
    "another argument": ([*MEASURE, "more"], ["Unrecognized options: more"]),
    "no subspaces": ([*MEASURE, "--subspaces"], ["--subspaces: expected at least one of dct-diagonal:SIZE"]),
    "number of text": ([*MEASURE, "--num", "ten"], ["--num: expected a whole number, at least 1, got 'ten'"]),
    "number 0": (["audit", "whole.zarr", "--num", "0"], ["--num: expected a whole number, at least 1, got '0'"]),
    "decimal comma": ([*MEASURE, "--std", "0,3"], ["--std: expected a number for each channel", "got '0,3'"]),
    "no numbers": ([*MEASURE, "--mean", "--std", "1"], ["--mean: expected a number for each channel", "got ''"]),
    "precision": ([*MEASURE, "--precision", "low"], ["'low'", "--precision", "'highest', 'default'"]),
    "backend": ([*MEASURE, "--backend", "cuda"], ["'cuda'", "--backend", "'auto', 'torchax', 'callback'"]),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage_is_explained(name, hmt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments, texts = USAGE[name]
    code, out, err = hmt(*arguments)
    assert (code, out) == (2, "")
    for text in texts:
        assert text in err


@pytest.mark.slow
def test_a_damaged_store_is_mended_by_the_command_that_measured_it(hmt, tmp_path):
    store = measured(tmp_path / "damaged.zarr")
    (tmp_path / "damaged.zarr" / "margin" / "c" / "0" / "1").write_bytes(b"")
    code, _, err = hmt("show", store.path)
    assert code == 2
    assert err.endswith("1 damaged file (margin/c/0/1): hmt measure sets them aside and measures their chunks again\n")


def test_debug_shows_the_traceback(hmt):
    code, _, err = hmt(*with_("--model", "cli_models:raises"), "--debug")
    assert code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert 'raise RuntimeError("no accelerator here")' in err
    assert err.splitlines()[-1].startswith("error: cli_models:raises fails when ")


def test_an_unexpected_error_names_the_file_with_its_traceback(hmt, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyError("spectrum")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("hmt_jax.MarginStore.open", fail)
    code, _, err = hmt("show", "whole.zarr")
    (file,) = tmp_path.iterdir()
    assert (code, err) == (1, f"error: unexpected KeyError: 'spectrum' (the traceback is in {file})\n")
    assert "in _opened" in file.read_text()
