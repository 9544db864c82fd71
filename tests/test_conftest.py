"""What the tests share."""

import pathlib

import pytest
from helpers import shared_folder


@pytest.mark.parametrize("text", [None, ""])
def test_an_empty_folder_of_shared_data_is_as_if_unset(text):
    assert shared_folder(text) is None


def test_the_folder_of_shared_data_may_be_in_a_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert shared_folder("~/data") == pathlib.Path("/home/of/mine/data")
