"""Files of weights, recognised by their content, not by their name."""

import argparse
import collections
import contextlib
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hmt_jax._npy import is_damage, read_npz
from hmt_jax._paths import expand, reason

# The entry of the metadata of files that `save` writes.
HEADER = "hmt_jax"
# An archive may take this much unpacked: _MOST_UNPACKED times the weights of its network plus _ROOM, or _MOST_EXPANSION
# times the size of the file, whichever is more. Training checkpoints hold averages and moments beside the weights, the
# public robust ones in double precision and twice.
_MOST_UNPACKED, _ROOM, _MOST_EXPANSION = 16, 2**26, 4

SAFETENSORS, _NPZ, _PYTORCH, _ZIP = "a file of safetensors", "an .npz file", "a file of PyTorch's", "a zip archive"
# The first bytes of each kind of file, tried in this order.
_KINDS = (
    (rb".{5}\0{3}\{", SAFETENSORS),
    (rb"PK\x03\x04|PK\x05\x06", _ZIP),
    (rb"\x80[\x02-\x05]|.{257}ustar", _PYTORCH),
    (rb"version https://git-lfs", "a Git LFS pointer"),
    (rb"(\xef\xbb\xbf)?\s*<", "a web page"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "compressed"),
    (rb"\x89HDF", "a file of HDF5 or Keras"),
    (rb"\x08\x01\x12", "a SavedModel of TensorFlow's"),
    (rb".{4}TFL3", "a file of TensorFlow Lite"),
    (rb"\x08[\x02-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", "a file of ONNX"),
    (rb"GGUF", "a file of GGUF"),
    (rb"[\x81-\x8f][\xa1-\xbf]", "a file of Flax's msgpack"),
    (rb"\x93NUMPY", "a single array of NumPy's"),
    (rb"(\xef\xbb\xbf)?\s*[{\[]", "text in JSON"),
)
# The last bytes of the index of TensorFlow's checkpoints.
_END_OF_TABLE = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
_ARRAYS_BY_NAME = "save its arrays, by PyTorch's names and in its layout, with np.savez"
REMEDIES = {
    "a Git LFS pointer": "fetch the file itself with `git lfs pull`",
    "a web page": "the download failed, so download it again",
    "empty": "the download or the copy failed, so repeat it",
    "compressed": "unpack it first",
    "a single array of NumPy's": "save all arrays by name with np.savez",
    "a file of HDF5 or Keras": _ARRAYS_BY_NAME,
    "a SavedModel of TensorFlow's": _ARRAYS_BY_NAME,
    "a checkpoint of TensorFlow's": _ARRAYS_BY_NAME,
    "a file of TensorFlow Lite": _ARRAYS_BY_NAME,
    "a file of ONNX": _ARRAYS_BY_NAME,
    "a file of GGUF": _ARRAYS_BY_NAME,
    "a file of Flax's msgpack": _ARRAYS_BY_NAME,
    "text in JSON": "pass the file of the tensors themselves",
    "the index of weights in several files": "pass the arrays of all its files as one mapping, such as {**safetensors."
    "numpy.load_file(first), **safetensors.numpy.load_file(second)}",
    "of no known kind": "check that it is the file of the weights, and download it again if so",
    "a zip archive of other files": "unpack it, and pass the file of the weights in it",
    "a TorchScript archive": "save torch.jit.load(file).state_dict() with torch.save",
}


def read_state_dict(file: str | os.PathLike, name: str, num_bytes: int) -> Mapping[str, Any]:
    """The arrays or tensors, by name, of a file of safetensors, of NumPy's .npz or of PyTorch.

    The kind of file is recognised by its first bytes, not by its name. No code in the file is run: PyTorch unpickles
    only tensors, numbers, strings and containers of them.

    Args:
      file: path of the file.
      name: the architecture that the weights are for.
      num_bytes: the size of that architecture's weights.

    Raises:
      ValueError: if the file is of another kind, can't be read, is much too large unpacked, or holds other objects.
      ImportError: if the file is PyTorch's, and PyTorch is not installed.
    """
    path = pathlib.Path(expand("file", file))
    kind = kind_of(path)
    if kind == SAFETENSORS:
        from safetensors import safe_open

        with readable(file), safe_open(path, framework="numpy") as tensors:
            if HEADER in (tensors.metadata() or {}):
                raise RefusedError(f"{file} was written by hmt_jax.models.save: read it with hmt_jax.models.load")
            return read_tensors(file, tensors)
    if kind == _ZIP:
        kind = _kind_of_archive(file, path, name, num_bytes)
    if kind == _NPZ:
        with readable(file):
            return read_npz(path)
    if kind == _PYTORCH:
        return _read_torch_file(file, path)
    raise ValueError(
        f"{file} is {kind}, and weights must be in a file of safetensors, .npz or PyTorch: {REMEDIES[kind]}"
    )


def kind_of(path: pathlib.Path) -> str:
    """The kind of a file, by its first bytes; "of no known kind" if they match none.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is a folder, or no regular file.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: {_remedy_for_folder(path)}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file: pass the file of the weights")
    with path.open("rb") as opened:
        first = opened.read(512)
        opened.seek(max(0, path.stat().st_size - len(_END_OF_TABLE)))
        last = opened.read()
    if not first:
        return "empty"
    kind = next((kind for pattern, kind in _KINDS if re.match(pattern, first, re.DOTALL)), None)
    if kind == "text in JSON" and b'"weight_map"' in first:
        return "the index of weights in several files"
    # The first bytes of a table, and those of the numbers that it describes, are any.
    if kind is None and (last == _END_OF_TABLE or re.search(r"\.data-\d{5}-of-\d{5}$", path.name)):
        return "a checkpoint of TensorFlow's"
    # A damaged file may be recognised only by its name.
    return kind or (SAFETENSORS if path.suffix == ".safetensors" else "of no known kind")


def _remedy_for_folder(path):
    names = os.listdir(path)
    if ".metadata" in names:
        return "convert it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save, and pass the new file"
    if "zero_to_fp32.py" in names:
        return "run its zero_to_fp32.py, and pass the file that this writes"
    if any(name.endswith(".index.json") for name in names):
        return f"its weights are in several files: {REMEDIES['the index of weights in several files']}"
    return "pass the file of the weights"


def _kind_of_archive(file, path, name, num_bytes):
    """The kind of a zip archive, by the names of its members.

    Raises:
      ValueError: if it would be much larger unpacked than it is packed and than the weights are, has a name twice, or
        holds nothing.
    """
    with readable(file), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    most = max(_MOST_UNPACKED * num_bytes + _ROOM, _MOST_EXPANSION * path.stat().st_size)
    if (unpacked := sum(member.file_size for member in members)) > most:
        raise ValueError(
            f"{file} would take {unpacked / 1e9:.3g} GB unpacked, and the weights of {name} take "
            f"{num_bytes / 1e9:.3g} GB: if you trust it, save only its state dict"
        )
    names = [member.filename for member in members]
    if not names:
        raise ValueError(f"{file} is an archive that holds nothing, or whose end is damaged: copy or download it again")
    if twice := collections.Counter(names) - collections.Counter(set(names)):
        raise ValueError(f"{file} holds {next(iter(twice))} twice: write each array once")
    if all(member.endswith(".npy") for member in names):
        return _NPZ
    if any(member.endswith("weights.h5") for member in names):
        return "a file of HDF5 or Keras"
    if any(member.endswith("/constants.pkl") for member in names):
        return "a TorchScript archive"
    return _PYTORCH if any(member.endswith("data.pkl") for member in names) else "a zip archive of other files"


def read_tensors(file: str | os.PathLike, tensors: Any) -> dict[str, np.ndarray]:
    """The arrays of an open file of safetensors."""
    for name in tensors.keys():  # noqa: SIM118 (not a dict)
        # NumPy has no such type.
        if (dtype := tensors.get_slice(name).get_dtype()).startswith(("F8", "F4", "F6")):
            raise RefusedError(
                f"{name} of {file} holds {dtype}, floating point of 8 bits or less: convert it with PyTorch's "
                ".float(), and multiply by its scale if it has one"
            )
    return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


class RefusedError(ValueError):
    """An error whose message already names the file and says what is wrong with it."""


@contextlib.contextmanager
def readable(file: str | os.PathLike) -> Iterator[None]:
    """Turns a reader's errors about a damaged file, which are of many types, into a ValueError that names the file."""
    try:
        yield
    except RefusedError as refused:
        raise ValueError(*refused.args) from refused.__cause__
    except Exception as error:
        if isinstance(error, OSError) and not is_damage(error):
            raise
        raise ValueError(f"{file} can't be read, it may be cut off or of another kind: {reason(error)}") from error


def _compare_checksums(path) -> None:
    """Reads an archive of PyTorch's to its end, because PyTorch compares no checksums. One of 0 was not computed."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.CRC:
                with archive.open(member) as opened:
                    while opened.read(2**20):
                        pass


def _read_torch_file(file, path):
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"reading {file} needs PyTorch: install torch, or convert the file to .safetensors or .npz"
        ) from error
    # Many checkpoints hold the parsed arguments of the command line; unpickling these runs no code.
    with readable(file), torch.serialization.safe_globals([argparse.Namespace]):
        if zipfile.is_zipfile(path):
            _compare_checksums(path)
        try:
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "Unsupported" not in str(error):
                raise
            raise RefusedError(
                f"{file} does not hold tensors alone, and reading the rest could run code from the file: save the "
                "state dict by itself, with torch.save(model.state_dict(), file), or, if you trust the file, pass what "
                "torch.load(file, weights_only=False) returns"
            ) from error
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"{file} must hold a state dict, tensors by name, got {type(state_dict).__name__}: save that with "
            "torch.save(model.state_dict(), file)"
        )
    return state_dict
