"""Tightness and speed of searches for the smallest L2 perturbation that changes a label: here, and in other libraries.

Run it in a checkout. Libraries that are not installed are left out.

    pip install '.[all,torch]' foolbox adv-lib torchattacks adversarial-robustness-toolbox
    python docs/peers.py --num-images 500

adversarial-library (`adv-lib`) needs the torchvision of the same build as PyTorch: for one without CUDA, give pip the
option `--extra-index-url https://download.pytorch.org/whl/cpu`.

All libraries get the same LeNet, which is trained here for two epochs on MNIST, the same test images, and the labels
that the network gives them. All run on the CPU, with their own default settings. One PyTorch network classifies every
perturbed image again: if its label has not changed, the search has failed, and the margin is infinite. Times are of use
only if nothing else runs: the threads of PyTorch wait for each other, which makes it many times slower on busy cores.

Pixels have no limits, because margins of `hmt_jax` have none. Foolbox is given bounds that are too wide to matter, and
ART none. adversarial-library and torchattacks always keep pixels in [0, 1]: they get images that are shrunk from the
same wide bounds to [0, 1], and a network that undoes this. Absolute lengths among their settings, such as the first
norm of DDN, thus count three times as much in pixels; DeepFool has none that matter. DDN of adversarial-library
rounds to 256 levels by default, which is turned off. FMN is measured with its default of 10 steps, and with 100. Every
DeepFool goes 2% beyond the boundary that it expects, but for that of ART, which goes 1e-6 beyond.

Foolbox and adversarial-library get all images in one batch. torchattacks takes them one by one, and so does ART by
default, which is faster, because all images of a batch take as many steps as the slowest. In Foolbox's DeepFool they do
so, too.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import tyro
from torch import nn

import hmt_jax
from hmt_jax import classifiers, data, models, solvers, subspaces, training

LOW, HIGH = -1.0, 2.0


class Problem(NamedTuple):
    """A network in JAX and in PyTorch, images (N, 1, height, width) as PyTorch has them, and their predicted labels."""

    classifier: classifiers.Classifier
    network: nn.Module
    pixels: torch.Tensor
    labels: torch.Tensor


class Search(NamedTuple):
    """A solver with its settings; `run` returns the perturbed images as PyTorch has them."""

    solver: str
    num_steps: int
    batch_size: int | None  # None if the library chooses
    run: Callable[[], torch.Tensor]


class Affine(nn.Module):
    """A layer that returns (x - mean) / std."""

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def lenet_mnist(num_images: int, data_dir: str | None) -> Problem:
    """LeNet after two epochs on MNIST, and the first test images."""
    mnist, mean, std = data.load("mnist", data_dir), 0.1307, 0.3081
    untrained = models.create(
        "lenet", jax.random.key(0), image_shape=mnist.image_shape, num_classes=10, mean=(mean,), std=(std,)
    )
    recipe = training.Recipe(num_epochs=2)
    classifier = training.train(untrained, mnist.train_images, mnist.train_labels, recipe, jax.random.key(1))
    network = twin(models.to_torch(classifier), mean, std)
    return problem_of(classifier, network, data.as_floats(mnist.test_images[:num_images]))


def twin(weights: Mapping[str, np.ndarray], mean: float, std: float) -> nn.Module:
    """A LeNet for images of 28 x 28 as a PyTorch module."""
    layers: dict[str, nn.Module] = {
        **{"normalise": Affine(mean, std), "conv1": nn.Conv2d(1, 6, 5, padding=2), "relu1": nn.ReLU()},
        **{"pool1": nn.MaxPool2d(2), "conv2": nn.Conv2d(6, 16, 5), "relu2": nn.ReLU(), "pool2": nn.MaxPool2d(2)},
        **{"flat": nn.Flatten(), "fc1": nn.Linear(400, 120), "relu3": nn.ReLU()},
        **{"fc2": nn.Linear(120, 84), "relu4": nn.ReLU(), "fc3": nn.Linear(84, 10)},
    }
    network = nn.Sequential(OrderedDict(layers)).eval().requires_grad_(False)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return network


def problem_of(classifier: classifiers.Classifier, network: nn.Module, images: np.ndarray) -> Problem:
    """The problem of images (N, height, width, 1); an AssertionError if the two networks differ."""
    pixels = torch.from_numpy(images).movedim(-1, 1)
    logits = network(pixels)
    np.testing.assert_allclose(logits, jax.jit(classifier)(images), rtol=0, atol=1e-4)
    return Problem(classifier, network, pixels, logits.argmax(1))


def hmt_searches(problem: Problem) -> Iterator[Search]:
    images = problem.pixels.movedim(1, -1).numpy()
    whole = subspaces.full(images.shape[1:])

    def run(solver: solvers.Solver) -> torch.Tensor:
        result = hmt_jax.measure_margins(problem.classifier, images, whole, solver, keep_coordinates=True)
        assert result.coordinates is not None  # they are kept
        return torch.from_numpy(images + result.coordinates[0].reshape(images.shape)).movedim(-1, 1)

    yield Search("DeepFool", solvers.DeepFool().max_steps, None, partial(run, solvers.DeepFool()))
    for effort in ("quick", "fast", "normal"):
        tight = solvers.tight(effort)
        yield Search(f"tight, {effort}", tight.num_steps * tight.num_rounds, None, partial(run, tight))


def foolbox_searches(problem: Problem) -> Iterator[Search]:
    import foolbox

    model = foolbox.PyTorchModel(problem.network, bounds=(LOW, HIGH), device="cpu")

    def run(attack) -> torch.Tensor:
        return attack(model, problem.pixels, problem.labels, epsilons=None)[0]

    for name, attack in ("DeepFool", foolbox.attacks.L2DeepFoolAttack()), ("DDN", foolbox.attacks.DDNAttack()):
        yield Search(name, attack.steps, len(problem.pixels), partial(run, attack))


def adv_lib_searches(problem: Problem) -> Iterator[Search]:
    from adv_lib import attacks

    choices: list[tuple[str, int, Callable[..., torch.Tensor]]] = [
        ("DeepFool", 100, attacks.df),
        ("SuperDeepFool", 100, attacks.sdf),
        ("DDN", 100, partial(attacks.ddn, levels=None)),
        ("FMN", 10, partial(attacks.fmn, norm=2)),
        ("FMN", 100, partial(attacks.fmn, norm=2)),
    ]
    for name, steps, attack in choices:
        yield Search(name, steps, len(problem.pixels), partial(in_unit_box, problem, partial(attack, steps=steps)))


def torchattacks_searches(problem: Problem) -> Iterator[Search]:
    import torchattacks

    def attack(network, pixels, labels) -> torch.Tensor:
        return torchattacks.DeepFool(network)(pixels, labels)

    # It takes the images of a batch one by one.
    steps = torchattacks.DeepFool(problem.network).steps
    yield Search("DeepFool", steps, 1, partial(in_unit_box, problem, attack))


def art_searches(problem: Problem) -> Iterator[Search]:
    from art.attacks.evasion import DeepFool
    from art.estimators.classification import PyTorchClassifier

    pixels = problem.pixels.numpy()
    loss = nn.CrossEntropyLoss()  # must be given, but is not used
    classifier = PyTorchClassifier(problem.network, loss, pixels.shape[1:], nb_classes=10, device_type="cpu")
    attack = DeepFool(classifier, verbose=False)
    yield Search("DeepFool", attack.max_iter, attack.batch_size, lambda: torch.from_numpy(attack.generate(pixels)))


def in_unit_box(problem: Problem, attack: Callable[..., torch.Tensor]) -> torch.Tensor:
    """The images that an attack returns if the wide bounds are shrunk to [0, 1] for it."""
    shrink, stretch = Affine(LOW, HIGH - LOW), Affine(-LOW / (HIGH - LOW), 1 / (HIGH - LOW))
    network = nn.Sequential(stretch, problem.network).eval()
    return stretch(attack(network, shrink(problem.pixels), problem.labels))


# By their names in the package index.
LIBRARIES: dict[str, Callable[[Problem], Iterable[Search]]] = {
    "hmt-jax": hmt_searches,
    "foolbox": foolbox_searches,
    "adv-lib": adv_lib_searches,
    "torchattacks": torchattacks_searches,
    "adversarial-robustness-toolbox": art_searches,
}


def installed(
    problem: Problem, libraries: Mapping[str, Callable[[Problem], Iterable[Search]]] = LIBRARIES
) -> list[tuple[str, Search]]:
    """The libraries that are installed, with versions, and their searches; a sentence tells of the others."""
    found: list[tuple[str, Search]] = []
    for library, searches in libraries.items():
        try:
            found += [(f"{library} {importlib.metadata.version(library)}", search) for search in searches(problem)]
        except ModuleNotFoundError as error:
            print(f"{library} is left out, because {error.name} is not installed: pip install {library}")
    return found


def measure(problem: Problem, library: str, search: Search) -> dict[str, Any]:
    """A row: the search, its milliseconds for an image in a second run, and margins (N,), infinite where it failed."""
    search.run()  # compiles, and fills caches
    started = time.perf_counter()
    perturbed = search.run()
    milliseconds = 1000 * (time.perf_counter() - started) / len(perturbed)
    name = f"{library}, {search.solver}, {search.num_steps} steps"
    print(f"{name}: {milliseconds:.3g} ms an image", flush=True)
    if not bool(((perturbed > LOW) & (perturbed < HIGH)).all()):
        print(f"{name}: pixels reach {LOW} or {HIGH}, so bounds matter: make them wider")
    settings = {"solver": search.solver, "num_steps": search.num_steps, "batch_size": search.batch_size}
    return {"library": library, **settings, "ms_per_image": milliseconds, "margins": margins_of(problem, perturbed)}


def margins_of(problem: Problem, perturbed: torch.Tensor) -> np.ndarray:
    """The lengths (N,) of perturbations, infinite where the label is the same as before."""
    is_changed = problem.network(perturbed).argmax(1) != problem.labels
    lengths = (perturbed.double() - problem.pixels).flatten(1).norm(dim=1)
    return torch.where(is_changed & lengths.isfinite(), lengths, torch.inf).numpy()


def summaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with numbers instead of margins; None for a median that is infinite.

    Ratios are to the smallest margin of an image in any row. Images for which no search found one are left out.
    """
    least = np.min([row["margins"] for row in rows], axis=0)
    is_found = np.isfinite(least)

    def median(values: np.ndarray) -> float | None:
        return float(np.median(values)) if np.isfinite(np.median(values)) else None

    return [
        {
            **{name: value for name, value in row.items() if name != "margins"},
            "median_margin": median(row["margins"]),
            "median_ratio": median(row["margins"][is_found] / least[is_found]),
            "share_failed": float(np.mean(np.isinf(row["margins"]))),
        }
        for row in rows
    ]


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The Markdown table of `summaries`."""
    heads = "library", "solver", "steps", "batch", "median margin", "failed", "ratio to the smallest", "ms an image"
    lines = [heads, ("---",) * len(heads)]
    for row in rows:
        margin, ratio = (
            "infinite" if row[name] is None else f"{row[name]:.3f}" for name in ("median_margin", "median_ratio")
        )
        named = row["library"], row["solver"], str(row["num_steps"]), str(row["batch_size"] or "its choice")
        lines.append((*named, margin, f"{row['share_failed']:.1%}", ratio, f"{row['ms_per_image']:.3g}"))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def processor() -> str:
    """The processor and its number of cores."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return f"{[*names, platform.processor() or platform.machine()][0]}, {os.cpu_count()} cores"


def main(
    num_images: int = 500, data_dir: str | None = None, output: pathlib.Path = pathlib.Path("docs/peers.json")
) -> None:
    """Measures all libraries, prints the table and writes JSON.

    Args:
      num_images: test images of MNIST.
      data_dir: folder of prepared data sets.
      output: the JSON file.
    """
    problem = lenet_mnist(num_images, data_dir)
    rows = summaries([measure(problem, library, search) for library, search in installed(problem)])
    versions = {"python": platform.python_version(), "jax": jax.__version__, "torch": str(torch.__version__)}
    about = {"num_images": len(problem.pixels), "processor": processor(), **versions}
    output.write_text(json.dumps({**about, "rows": rows}, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()), table(rows), sep="\n\n")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    tyro.cli(main)
