"""The documentation: its Python runs, what it marks as not run is rare, and every public name has an example."""

import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import re
import types

import jax
import numpy as np
import pytest

import hmt_jax
from experiments.__main__ import main as run_experiments
from hmt_jax import solvers, subspaces

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = {"_build", "api", "command-line"}  # by the build, which need not have been here
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if not GENERATED & {*page.relative_to(DOCS).parts}]
# A block of code. A comment before it says why it is not run, or which optional package it needs.
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|needs (?P<package>\w+)): (?P<reason>.+) -->\n)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks_of(page):
    """The blocks of Python on a page: the line where each begins, its code, and what marks it, if anything."""
    text = page.read_text("utf-8")
    for match in BLOCK.finditer(text):
        yield text.count("\n", 0, match.start("code")), match["code"], match["mark"], match["package"]


WITH_PYTHON = [pytest.param(page, id=str(page.relative_to(DOCS))) for page in PAGES if [*blocks_of(page)]]


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
