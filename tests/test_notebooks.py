"""The notebooks run from top to bottom."""

import pathlib
import runpy

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_ends_with_a_picture(path):
    names = runpy.run_path(str(path))
    assert names["figure"].axes
    assert names["result"].is_converged.all()
