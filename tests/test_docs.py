"""The documentation: its Python runs, what it marks as not run is rare, and every public name has an example."""

import importlib
import importlib.util
import inspect
import pathlib
import re

import jax
import numpy as np
import pytest

import hmt_jax
from experiments.__main__ import main as run_experiments
from hmt_jax import solvers, subspaces
from hmt_jax.cli import main as hmt

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = {"_build", "api", "command-line"}  # by the build, which need not have been here
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if not GENERATED & {*page.relative_to(DOCS).parts}]
# A block of code. A comment before it says why it is not run, or which optional package it needs.
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|needs (?P<package>\w+)): [^\n]+ -->\n)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks_of(page):
    """The blocks of Python on a page: the line where each begins, its code, and what marks it, if anything."""
    text = page.read_text("utf-8")
    for match in BLOCK.finditer(text):
        yield text.count("\n", 0, match.start("code")), match["code"], match["mark"], match["package"]


# Slow, because together they take a minute.
WITH_PYTHON = [
    pytest.param(page, id=name, marks=pytest.mark.slow)
    for page in PAGES
    if [*blocks_of(page)] and (name := page.relative_to(DOCS).as_posix())
]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, and one device, for simulated ones would wait for each other."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda *_: devices)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_digits():
    """What the tutorial has its readers do first, on less data."""
    run_experiments(["run", "digits", "--quick", "--folder", "results/digits"])


def measure_store():
    """The store that the page about stores reads."""
    images = np.random.default_rng(0).random((2, 4, 4, 1), np.float32)
    linear = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, np.eye(16, 2))
    whole = subspaces.full((4, 4, 1))
    hmt_jax.measure_to_store(linear, images, whole, solvers.DeepFool(), "margins.zarr")


BEFORE = {"tutorial/digits.md": run_digits, "reference/store.md": measure_store}


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_of_a_page_runs_from_top_to_bottom(page, elsewhere):
    if before := BEFORE.get(page.relative_to(DOCS).as_posix()):
        before()
    names = {"__name__": "page"}
    for line, code, mark, package in blocks_of(page):
        if mark is None or (package and importlib.util.find_spec(package)):
            exec(compile("\n" * line + code, str(page), "exec"), names)


def test_few_blocks_are_not_run():
    """A new block that is not run is a decision, and its reason stands before it."""
    not_run = {page.relative_to(DOCS).as_posix(): [mark for _, _, mark, _ in blocks_of(page)] for page in PAGES}
    assert {name: marks.count("not run") for name, marks in not_run.items() if "not run" in marks} == {
        "how-to/accelerators.md": 1,  # a job of two processes, which tests/test_training_processes.py starts
        "how-to/large-runs.md": 1,  # the same of a job that measures, as tests/cli/test_several_processes.py does
        "how-to/experiment.md": 1,  # a part of a file of the catalogue
        "tutorial/your-network.md": 1,  # Haiku, which nothing else needs
    }


def test_every_block_of_python_is_seen():
    assert all(len([*blocks_of(page)]) == page.read_text("utf-8").count("```python") for page in PAGES)


COMMAND = re.compile(r"^(hmt|python -m experiments) (?P<command>[\w-]+)(?P<rest>(?:\\\n|.)*)$", re.MULTILINE)
MAINS = {"hmt": hmt, "python -m experiments": run_experiments}


def commands():
    """The command lines in blocks of the shell: the program, the command, and the options, without their values."""
    for page in [*PAGES, ROOT / "README.md"]:
        for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            for match in COMMAND.finditer(block):
                rest = match["rest"].split("#")[0]
                yield match[1], match["command"], frozenset(re.findall(r"(?<=\s)--[\w-]+", rest))


@pytest.mark.parametrize(("program", "command"), sorted({(program, command) for program, command, _ in commands()}))
def test_options_on_pages_exist(program, command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert MAINS[program]([command, "--help"]) == 0
    known = {*re.findall(r"--[\w-]+", capsys.readouterr().out)}
    used = {option for of, name, options in commands() if (of, name) == (program, command) for option in options}
    assert used <= known


def modules():
    """The public modules, as the reference has them."""
    names = [name for name in hmt_jax.__all__ if inspect.ismodule(getattr(hmt_jax, name))]
    return ["hmt_jax", *(f"hmt_jax.{name}" for name in [*names, "plots"])]


def public_names():
    """The public names that can have a docstring: classes and functions."""
    for module_name in modules():
        module = importlib.import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(value) or hasattr(value, "__wrapped__"):
                yield f"{module_name}.{name}", value


# These names have no example yet, or can't have one. The list may only become shorter.
WITHOUT_EXAMPLE = {
    # They need a data set that was downloaded and prepared before.
    "hmt_jax.data.TfdsImages",
    "hmt_jax.data.tfds_images",
    # They need PyTorch: their examples are in docs/tutorial/your-network.md.
    "hmt_jax.from_torch_module",
    "hmt_jax.models.TorchClassifier",
    "hmt_jax.models.from_torch_module",
    "hmt_jax.models.load_torch_exported",
    # It changes JAX for the rest of the process: docs/how-to/accelerators.md names it.
    "hmt_jax.cache_programs",
    # Building one takes seconds.
    "hmt_jax.models.CifarDenseNet",
    "hmt_jax.models.DenseNet",
}


def test_every_public_name_has_a_docstring_with_an_example():
    """The examples run as doctests, with the other tests."""
    without = {name for name, value in public_names() if ">>> " not in (inspect.getdoc(value) or "")}
    assert without == WITHOUT_EXAMPLE
    assert all(len(inspect.getdoc(value)) > 20 for _, value in public_names())
