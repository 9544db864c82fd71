"""A folder with images, models and stores, and `hmt` in this process and in one of its own."""

import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import cli_models
import numpy as np
from PIL import Image

import hmt_jax
from hmt_jax import solvers, subspaces
from hmt_jax.cli import main

HERE = pathlib.Path(__file__).parent
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype="uint8")
IMAGES = PIXELS[..., None]
MEASURE = ["measure", "--model", "cli_models:make", "--images", "images.npy", "--out", "new.zarr"]
DIAGONAL = subspaces.dct_diagonal((8, 8, 1), size=8, step=1)


class HarmfulError:
    """An object whose pickle makes the folder `harmed` when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def fill(folder):
    """Writes what the tests name into a folder."""
    for name in ("grey", "classes/a", "classes/b", "empty", "sizes", "bad", "deep", "text"):
        (folder / name).mkdir(parents=True)
    for number, pixels in enumerate(PIXELS):
        image = Image.fromarray(pixels)
        image.save(folder / "grey" / f"{number}.png")
        image.save(folder / "classes" / "ab"[number // 3] / f"{number}.png")
        image.save(folder / "bad" / f"{number}.png")
    Image.fromarray(PIXELS[0]).save(folder / "sizes" / "a.png")
    Image.fromarray(PIXELS[0, :7]).save(folder / "sizes" / "b.png")
    Image.fromarray(PIXELS[0].astype("uint16") * 256).save(folder / "deep" / "a.png")
    (folder / "text" / "a.png").write_text("no image")
    whole = (folder / "bad" / "4.png").read_bytes()
    (folder / "bad" / "4.png").write_bytes(whole[:70])
    np.save(folder / "images.npy", IMAGES)
    np.save(folder / "integers.npy", IMAGES.astype(int))
    np.save(folder / "flat.npy", PIXELS.reshape(6, 64))
    np.save(folder / "none.npy", IMAGES[:0])
    np.save(folder / "channels.npy", np.zeros((2, 3, 8, 8), "uint8"))
    np.save(folder / "colour.npy", np.zeros((2, 8, 8, 3), "uint8"))
    np.save(folder / "objects.npy", np.array([HarmfulError()], dtype=object))
    np.savez(folder / "objects.npz", images=np.array([HarmfulError()], dtype=object))
    np.savez(folder / "two.npz", a=IMAGES, b=IMAGES)
    np.savez(folder / "nothing.npz")
    weights = {"linear.weight": np.ones((3, 64), "f4"), "linear.bias": np.ones(3, "f4")}
    np.savez(folder / "logistic.npz", **weights)
    named = {f"{key}.{name}": array * (key == "one") for key in ("one", "other") for name, array in weights.items()}
    np.savez(folder / "twice.npz", **named)
    (folder / "text.npy").write_text("no array")
    (folder / "broken.py").write_text("def make(:\n")
    (folder / "needy.py").write_text("import a_package_that_nobody_has\n")
    (folder / "torchless.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    (folder / "model.pkl").write_bytes(pickle.dumps(HarmfulError()))
    measured(folder / "whole.zarr")
    for name, missing in {"part": (1, 2), "nothing": (0, 1, 2), "newer": ()}.items():
        shutil.copytree(folder / "whole.zarr", folder / f"{name}.zarr")
        for number in missing:  # as after a process that was killed
            (folder / f"{name}.zarr" / "status" / "c" / "0" / str(number)).unlink()
    metadata = folder / "newer.zarr" / "zarr.json"
    metadata.write_text(re.sub('("hmt_jax_format": *)2', r"\g<1>99", metadata.read_text()))


def measured(path):
    """A store of the library, without the command line, in chunks of two images."""
    return hmt_jax.measure_to_store(
        cli_models.make(), IMAGES, DIAGONAL, solvers.tight("quick"), path, chunk_size=2, attributes={"note": "by hand"}
    )


def start(*arguments, before=":", **settings):
    """`hmt` in a process of its own, after a command of the shell."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path[1:], str(HERE)]), "JAX_PLATFORMS": "cpu"}
    environment.update(settings.pop("env", {}))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **settings}
    environment = {name: value for name, value in environment.items() if value is not None}
    shell = ["sh", "-c", f'{before}; exec "$0" -m hmt_jax "$@"', sys.executable]
    return subprocess.Popen([*shell, *arguments], env=environment, **pipes)


def run(capsys, *arguments):
    """The exit code of `hmt`, and what it has printed on stdout and on stderr."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err
