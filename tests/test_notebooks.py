"""The notebooks run from top to bottom."""

import io
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import hmt_jax
from hmt_jax import training
from hmt_jax.training import Recipe

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def cells_of(path):
    """The code cells of a notebook as Python, without the lines that IPython alone understands."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return [re.sub(r"^( *)%.*$", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE) for cell in cells]


def run(cells):
    """The names that cells leave."""
    names = {}
    for cell in cells:
        exec(compile(cell, "notebook", "exec"), names)
    return names


class FewEpochs(Recipe):
    def __init__(self, num_epochs, **settings):
        super().__init__(min(num_epochs, 5), **settings)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder without results, and one device, for simulated ones would wait for each other."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem == "figures"), id=path.stem) for path in NOTEBOOKS],
)
def test_notebook_runs_and_ends_with_a_picture(path, elsewhere, monkeypatch):
    if path.stem == "figures":  # its nine trainings need not be finished to be drawn
        monkeypatch.setattr(training, "Recipe", FewEpochs)
        # More images make more sizes of batches, each compiled for every set of subspaces.
        measure = hmt_jax.measure_margins
        monkeypatch.setattr(
            hmt_jax, "measure_margins", lambda classifier, images, *others: measure(classifier, images[:20], *others)
        )
    cells = cells_of(path)
    names = run(cells)
    figures = [value for value in names.values() if isinstance(value, Figure)]
    assert names[cells[-1].splitlines()[-1]] is figures[-1]
    for figure in figures:
        figure.savefig(io.BytesIO())
        assert figure.axes[0].has_data()
    if "result" in names:
        assert names["result"].is_converged.all()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean_and_imports_the_library_only(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "%pip install" in "".join(code[0]["source"])
    imported = set(re.findall(r"^ *(?:from|import) (\w+)", "\n".join(cells_of(path)), flags=re.MULTILINE))
    assert imported <= {"functools", "hmt_jax", "importlib", "jax", "json", "numpy", "pathlib", "warnings"}


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
    figure = run(cells[: last + 1])["flipping"]
    assert "finished runs" in figure.get_suptitle()
    for line, found in zip(figure.axes[0].lines, margins, strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.median(found, 1))
    # Without what it is compared with, or compared with none, it is no finished run for these figures.
    cells = cells[:last]
    (path / "baseline" / "margins.npz").unlink()
    assert run([*cells, 'found = stored("mnist_lenet_flipped", ["plain", "flipped"])'])["found"] is None
    (path / "baseline.json").unlink()
    assert run([*cells, 'found = stored("mnist_lenet_flipped", ["plain", "flipped"])'])["found"] is None
