"""The notebooks run from top to bottom, each in a fresh environment and from an empty folder."""

import importlib.util
import json
import re
import shutil

import fresh
import jax
import numpy as np
import pytest
from run_notebook import as_python, cells_of

NOTEBOOKS = sorted((fresh.ROOT / "notebooks").glob("*.ipynb"))
PROGRAM = fresh.ROOT / "tests" / "run_notebook.py"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_with_nothing_but_its_file(path, packages, tmp_path):
    environment = fresh.Environment(tmp_path, packages)
    empty = tmp_path / "empty"
    empty.mkdir()
    # The figures' nine trainings need not be finished to be drawn.
    options = ["--short"] if path.stem == "figures" else []
    cheaper = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(packages / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PIP_NO_DEPS": "1",  # they are all there, which pip takes seconds to see
    }
    printed = environment.run("python", PROGRAM, shutil.copy(path, empty), *options, cwd=empty, **cheaper)
    has_torch = importlib.util.find_spec("torch") is not None
    assert ("PyTorch is not installed" in printed) == (path.stem == "your_model" and not has_torch)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean_and_imports_the_library_only(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    first, install, matplotlib = (line.strip() for line in code[0]["source"])
    assert first.startswith("# If the package index does not have hmt-jax yet: ")
    assert install.removesuffix(" equinox") == '%pip install --quiet --find-links . "hmt-jax[all]"'
    assert matplotlib == "%matplotlib inline"
    imported = set(re.findall(r"^ *(?:from|import) (\w+)", "\n".join(cells_of(path)), flags=re.MULTILINE))
    library = {"equinox", "flax", "hmt_jax", "jax", "numpy", "pandas", "torch"}
    assert imported <= library | {"dataclasses", "functools", "importlib", "json", "pathlib", "warnings"}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder without results, and one device, for simulated ones would wait for each other."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def names_left_by(cells):
    """The names that cells leave, without what they install."""
    names = {"_pip": lambda arguments: None}
    for cell in cells:
        exec(compile(as_python(cell), "notebook", "exec"), names)
    return names


def test_figures_are_those_of_finished_runs_where_there_are_some(elsewhere):
    margins = np.random.default_rng(0).lognormal(size=(2, 21, 9))
    # Compared with a run inside its folder, and not with the one of the plain name beside it.
    path = elsewhere / "results" / "mnist_lenet_flipped"
    for folder, found in zip(
        (path / "baseline", path, path.parent / "mnist_lenet"), [*margins, margins[0] + 1], strict=True
    ):
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "margins.npz", margin=found, status=np.zeros((21, 9), int))
    (path / "baseline.json").write_text('{"folder": "baseline"}')
    (path / "claims.json").write_text("{}")
    cells = cells_of(next(path for path in NOTEBOOKS if path.stem == "figures"))
    (last,) = (place for place, cell in enumerate(cells) if "flipping = compare(" in cell)
    figure = names_left_by(cells[: last + 1])["flipping"]
    assert "finished runs" in figure.get_suptitle()
    for line, found in zip(figure.axes[0].lines, margins, strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.median(found, 1))
    # Without what it is compared with, or compared with none, it is no finished run for these figures.
    cells = cells[:last]
    (path / "baseline" / "margins.npz").unlink()
    assert names_left_by([*cells, 'found = stored("mnist_lenet_flipped", ["plain", "flipped"])'])["found"] is None
    (path / "baseline.json").unlink()
    assert names_left_by([*cells, 'found = stored("mnist_lenet_flipped", ["plain", "flipped"])'])["found"] is None
