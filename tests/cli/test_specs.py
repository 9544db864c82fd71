"""Subspaces that texts name: those of the library, with a name for each."""

import types

import jax
import numpy as np
import pytest
from workspace import IMAGES

from hmt_jax import subspaces
from hmt_jax.cli import _images, _specs

SHAPE = (8, 8, 3)
COLOURED = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), dtype="uint8")
LABELS = np.arange(20) % 3
MASK = np.random.default_rng(1).uniform(size=SHAPE) < 0.5
EXPECTED = {
    "dct-window:1:2:3": (lambda: [subspaces.dct_window(SHAPE, 1, 2, 3)], ["1,2"]),
    "dct-diagonal:4:4": (lambda: subspaces.dct_diagonal(SHAPE, 4, 4), ["0", "4"]),
    "dct-grid:4:4": (lambda: subspaces.dct_grid(SHAPE, 4, 4), ["0,0", "0,4", "4,0", "4,4"]),
    "wavelet-bands:db2:1": (
        lambda: subspaces.wavelet_bands(SHAPE, "db2", 1),
        ["approximation", "level 1 horizontal", "level 1 vertical", "level 1 diagonal"],
    ),
    "fourier-rings:0:2.5:6": (lambda: subspaces.fourier_rings(SHAPE, [0, 2.5, 6]), ["0 to 2.5", "2.5 to 6"]),
    "patches:4": (lambda: subspaces.patches(SHAPE, 4), ["0,0", "0,4", "4,0", "4,4"]),
    "channels": (lambda: subspaces.channels(SHAPE), ["channel 0", "channel 1", "channel 2"]),
    "luma-chroma": (lambda: subspaces.luma_chroma(SHAPE), ["luma", "chroma"]),
    "principal-components:2:5": (
        lambda: subspaces.principal_components(COLOURED, [(2, 5)]),
        ["components 2 to 4"],
    ),
    "principal-components:-3": (
        lambda: subspaces.principal_components(COLOURED, [(-3, None)]),
        ["components 189 to 191"],
    ),
    "class-means": (
        lambda: subspaces.class_means(COLOURED, LABELS),
        ["class means", "complement of class means", "Fisher's directions", "complement of Fisher's directions"],
    ),
    "random:5:7": (lambda: [subspaces.random(jax.random.key(7), SHAPE, 5)], ["random 5"]),
    "full": (lambda: [subspaces.full(SHAPE)], ["full"]),
}


def features():
    return types.SimpleNamespace(image_shape=SHAPE, read=lambda: COLOURED, labels=lambda: LABELS)


def check_are_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("text", EXPECTED)
def test_texts_name_what_the_library_makes(text):
    make, names = EXPECTED[text]
    found, found_names = _specs.subspaces_of([text], SHAPE, features)
    check_are_same(found, make())
    assert found_names == names


def test_every_kind_is_tested():
    assert {text.partition(":")[0] for text in EXPECTED} == set(_specs._KINDS) - {"pixels"}


def test_a_mask_is_found_from_other_folders(tmp_path, monkeypatch):
    (tmp_path / "a:b").mkdir()
    np.save(tmp_path / "a:b" / "mask.npy", MASK)
    monkeypatch.chdir(tmp_path)
    text = _specs.absolute("pixels:a:b/mask.npy")
    monkeypatch.chdir("/")
    found, names = _specs.subspaces_of([text], SHAPE)
    check_are_same(found, [subspaces.pixels(MASK)])
    assert names == ["pixels of mask.npy"]
    assert _specs.absolute("patches:4") == "patches:4"


def test_names_are_told_apart_by_their_texts():
    _, names = _specs.subspaces_of(["patches:4", "dct-grid:4:4"], SHAPE)
    assert names[0] == "patches:4 0,0"
    assert len(set(names)) == 8


def test_labels_are_those_of_folders_arrays_and_data_sets(filled, tmp_path):
    options = {"resize": None, "crop": None, "data_dir": None}
    assert _images.load(str(filled / "classes"), **options).labels().tolist() == [0, 0, 0, 1, 1, 1]
    np.savez(tmp_path / "it.npz", images=IMAGES, labels=np.arange(6))
    assert _images.load(str(tmp_path / "it.npz"), **options).labels().tolist() == [0, 1, 2, 3, 4, 5]
    digits = _images.load("digits:test[3:9]", **options)
    from hmt_jax import data

    np.testing.assert_array_equal(digits.labels(), data.load("digits").test_labels[3:9])
    np.testing.assert_array_equal(digits.first(2).labels(), data.load("digits").test_labels[3:5])
    with pytest.raises(ValueError, match=r"^the classes of the images in .*grey are not known: name a folder with a"):
        _images.load(str(filled / "grey"), **options).labels()
