"""One folder for all tests of the command line, in which they run."""

import sys

import pytest
import workspace


@pytest.fixture(scope="package")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    workspace.fill(folder)
    return folder


@pytest.fixture
def folder(filled, monkeypatch):
    """The folder with images, models and stores, as the working directory."""
    monkeypatch.chdir(filled)
    monkeypatch.setattr("sys.path", [*sys.path])
    return filled


@pytest.fixture
def hmt(folder, capsys):
    """Runs `hmt` here; returns its exit code, and what it has printed on stdout and on stderr."""
    return lambda *arguments: workspace.run(capsys, *arguments)
