"""NumPy's files: what is damaged or of another kind is a ValueError that says why, never other numbers."""

import zipfile

import numpy as np
import pytest

from hmt_jax import _memory, _npy

ARRAYS = {"images": np.arange(24, dtype=np.uint8).reshape(6, 4), "labels": np.arange(6.0), "none": np.zeros((0, 3))}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_of_numpy(save, tmp_path):
    save(tmp_path / "it.npz", **ARRAYS)
    found = _npy.read_npz(tmp_path / "it.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_a_header_that_says_that_the_array_is_shorter_is_found(tmp_path):
    """NumPy alone reads the first rows, and compares no checksum."""
    path = tmp_path / "it.npz"
    np.savez(path, images=np.zeros((6000, 4), np.uint8))
    path.write_bytes(path.read_bytes().replace(b"(6000, 4)", b"(4000, 4)"))
    with np.load(path) as arrays:
        assert arrays["images"].shape == (4000, 4)
    with pytest.raises(ValueError, match=r"^images\.npy is longer than its header says$"):
        _npy.read_npz(path)


def test_arrays_beyond_the_memory_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "it.npz"
    np.savez_compressed(path, images=np.zeros(10**6, np.uint8))
    assert path.stat().st_size < 10**4
    monkeypatch.setattr(_memory, "limit", lambda: 1e6)  # and the header of an array has its bytes, too
    with pytest.raises(ValueError, match=r"^its arrays are .* this process may use .*: save them in several files$"):
        _npy.read_npz(path)
    monkeypatch.setattr(_memory, "limit", lambda: 1.1e6)
    assert not _npy.read_npz(path)["images"].any()


def changed(content, place, new):
    place = content.index(b"PK\1\2") + place  # in the entry of the directory
    return content[:place] + new + content[place + len(new) :]


@pytest.mark.parametrize(
    ("place", "new"),
    [(8, b"\1"), (10, b"\x63"), (10, b"\x0e"), (10, b"\x0c"), (42, b"\xff\xff\xff\xff")],
    ids=["encrypted", "a method that is not known", "LZMA", "bzip2", "an offset beyond the end"],
)
def test_errors_of_zipfile_are_of_one_class(place, new, tmp_path):
    path = tmp_path / "it.npz"
    np.savez(path, **ARRAYS)
    path.write_bytes(changed(path.read_bytes(), place, new))
    with pytest.raises(ValueError, match=r".+"):
        _npy.read_npz(path)


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "it.npz", images=np.array([None]))
    np.save(tmp_path / "it.npy", np.array([None]))
    for read, name in ((_npy.read_npz, "it.npz"), (_npy.map_npy, "it.npy")):
        with pytest.raises(ValueError, match="bject"):
            read(tmp_path / name)


def test_what_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "it.npz", "w") as archive:
        archive.writestr("images.npy", b"text")
    with pytest.raises(ValueError, match="magic string"):
        _npy.read_npz(tmp_path / "it.npz")
    (tmp_path / "it.npy").write_bytes(b"\x93NUMPY\1\0\x10\0((((((((((((((((")  # NumPy raises a tokenize.TokenError
    with pytest.raises(ValueError, match=r".+"):
        _npy.map_npy(tmp_path / "it.npy")


def test_files_that_are_not_there_are_errors_of_the_system(tmp_path):
    for read in (_npy.read_npz, _npy.map_npy):
        with pytest.raises(FileNotFoundError, match=r"nothing\.npy"):
            read(tmp_path / "nothing.npy")
