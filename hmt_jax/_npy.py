"""Arrays in NumPy's files, read so that damage is found: checksums are compared, and nothing is unpickled."""

import errno
import os
import zipfile

import numpy as np

from hmt_jax import _memory
from hmt_jax._paths import reason


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of an npz file, by name.

    `np.load` would not compare the checksum of an array whose header says that it is shorter than it is, and would
    unpack any number of bytes.

    Raises:
      OSError: if the file can't be read; it names the file.
      ValueError: if it is damaged, of another kind, or larger than the memory that this process may use; it says what
        is wrong, but does not name the file.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _check_fits(archive)
                return {name.removesuffix(".npy"): _read(archive, name) for name in archive.namelist()}
        except Exception as error:  # zipfile, decompressors and NumPy have no class in common
            if isinstance(error, OSError) and not is_damage(error):
                raise OSError(error.errno, error.strerror, os.fspath(path)) from error
            raise ValueError(reason(error)) from error


def map_npy(path: str | os.PathLike) -> np.ndarray:
    """The array of an npy file as a read-only memory map.

    Raises:
      OSError: if the file can't be read; it names the file.
      ValueError: if it is damaged or of another kind; it says what is wrong, but does not name the file.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    except Exception as error:  # whatever NumPy raises for a header that it can't parse
        raise ValueError(reason(error)) from error


def is_damage(error: OSError) -> bool:
    """Whether an error is about what a file holds: a decompressor's, or that of an offset below 0 in an archive."""
    return error.errno in (None, errno.EINVAL)


def _check_fits(archive: zipfile.ZipFile) -> None:
    """Raises ValueError if the members, whose sizes zipfile holds them to, need more than this process may use."""
    size, most = sum(member.file_size for member in archive.infolist()), _memory.limit()
    if size > most:
        raise ValueError(
            f"its arrays are {size / 1e9:,.1f} GB, and this process may use {most / 1e9:,.1f} GB of memory: save them "
            "in several files"
        )


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # at the end of a member, its checksum is compared
            raise ValueError(f"{name} is longer than its header says")
    return array
