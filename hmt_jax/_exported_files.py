"""Exported classifiers in files: safetensors, with a JSON header and a checksum in its metadata."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from hmt_jax import _disk, _exported, _programs
from hmt_jax._checks import ImageShape, check_image_shape
from hmt_jax._paths import expand, reason
from hmt_jax.classifiers import Classifier, as_pytree
from hmt_jax.models._files import EXPORTED_HEADER
from hmt_jax.models._weight_files import HEADER, REMEDIES, SAFETENSORS, RefusedError, kind_of, readable

# The version of the layout of these files.
_FORMAT = 1
_CHECKSUM = "sha256"


def save_exported(classifier: Classifier, image_shape: ImageShape, path: str | os.PathLike) -> None:
    """Writes a classifier to a file that `load_exported` reads without the classifier's code.

    The file holds the classifier's arrays and, exported by `jax.export`, the functions that compute logits and their
    gradients with respect to the images, for any number of images, on CPU, CUDA and TPU. If the classifier can't be
    lowered for all of these, it is exported for the platform of this machine. The file is written in one piece or not
    at all. Files of one architecture share compiled programs.

    The file computes in the precision of the arrays, with float32 images, or float64 images if arrays are float64,
    which needs `jax_enable_x64`. Products of matrices and convolutions have the highest precision: neither
    `jax.default_matmul_precision` nor the `precision` of a measurement changes that later, but precisions that the
    classifier itself sets are kept.

    Args:
      classifier: a classifier as `hmt_jax.measure_margins` takes it: a Flax or Equinox module, a
        `jax.tree_util.Partial`, a plain function. It is applied to one image at a time, as in measurements.
      image_shape: (height, width, channels) of the images.
      path: path of the file, which is in the format of safetensors.

    Raises:
      ValueError: if the classifier can't be applied to such images, differentiated or exported, or the file's folder
        does not exist.
      TypeError: if the classifier can't be called, or is a PyTorch module.

    >>> import tempfile
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "linear.safetensors")
    ...     save_exported(classifier, (2, 2, 1), path)
    ...     loaded = load_exported(path)
    >>> loaded(jnp.ones((3, 2, 2, 1))).shape
    (3, 2)
    """
    image_shape = check_image_shape(image_shape)
    path = expand("path", path)
    if not (parent := pathlib.Path(path).parent).is_dir():
        raise ValueError(f"there is no folder {parent} to write {path} into: make it first")
    pytree = as_pytree(classifier)
    with _programs.of_call(pytree):
        arrays, network, num_classes = _exported.export(pytree, image_shape)
    header = {
        "format": _FORMAT,
        "jax": jax.__version__,
        "image_shape": image_shape,
        "num_classes": num_classes,
        "dtype": network.dtype,
        "platforms": network.platforms,
        "arrays": [array.dtype.name for array in arrays],
    }
    _disk.write(path, _to_bytes(header, arrays, network.serialized))


def load_exported(path: str | os.PathLike) -> Classifier:
    """The classifier in a file that `save_exported` wrote, as a callable pytree whose leaves are arrays.

    It can be used wherever a classifier can. It takes any number of images of the shape that it was exported for, in
    any floating type: they are converted to the type that the file computes in. It can be differentiated with respect
    to the images only, once and in reverse mode. JAX reads files that its versions of at least the last six months
    wrote.

    Python runs no code from the file. Still, load only files that you trust, because JAX compiles their programs.

    Args:
      path: path of the file.

    Raises:
      ValueError: if the file is of another kind, damaged, of a version that can't be read, for other platforms than
        this machine's, or in float64 while JAX rounds that to float32.

    >>> import tempfile
    >>> classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_exported(classifier, (2, 2, 1), path := os.path.join(folder, "linear.hmt"))
    ...     loaded = load_exported(path)
    >>> loaded(jnp.ones((1, 2, 2, 1))).tolist()
    [[1.0, 1.0]]
    """
    from safetensors import safe_open

    path = expand("path", path)
    if (kind := kind_of(pathlib.Path(path))) != SAFETENSORS:
        remedy = REMEDIES.get(kind, "export the classifier with that function first")
        raise ValueError(f"{path} is {kind}, and was not written by hmt_jax.save_exported: {remedy}")
    with readable(path), safe_open(path, framework="numpy") as tensors:
        metadata = tensors.metadata() or {}
        text = _checked_header(path, metadata)
        content = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a dict)
        if _checksum(text, content) != metadata.get(_CHECKSUM):
            raise RefusedError(f"{path} is damaged, its checksum does not match: copy or download it again")
    header = json.loads(text)
    _check_fits_here(path, header)
    arrays = [content[str(number)].view(jnp.dtype(name)) for number, name in enumerate(header["arrays"])]
    serialized = _exported.Functions(*(content[name].tobytes() for name in _exported.Functions._fields))
    try:
        network = _exported.deserialized(tuple(header["image_shape"]), header["dtype"], serialized)
    except Exception as error:  # the bytes are those that were written, so this JAX does not know their version
        raise ValueError(
            f"{path} was written with JAX {header['jax']}, and JAX {jax.__version__} can't read it ({reason(error)}): "
            "install a version of JAX that is at most six months later than the file's, and no older"
        ) from error
    return _exported.ExportedClassifier([jnp.asarray(array) for array in arrays], network)


def _to_bytes(header: Mapping, arrays: list[np.ndarray], serialized: _exported.Functions) -> bytes:
    # Not with safetensors' own `save_file`, whose files only their owner can read.
    from safetensors.numpy import save as serialize

    content = {name: np.frombuffer(function, np.uint8) for name, function in serialized._asdict().items()}
    # safetensors reads no types that NumPy lacks, and writes arrays that are not contiguous as if they were.
    content |= {str(number): np.asarray(_as_numpy_type(array), order="C") for number, array in enumerate(arrays)}
    text = json.dumps(header)
    return serialize(content, metadata={EXPORTED_HEADER: text, _CHECKSUM: _checksum(text, content)})


def _as_numpy_type(array: np.ndarray) -> np.ndarray:
    """The same bits as whole numbers, for types such as bfloat16 that are not NumPy's own."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.isbuiltin != 1 else array


def _checksum(header: str, content: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of the header, and of the names, types, shapes and bytes of all arrays."""
    checksum = hashlib.sha256(header.encode())
    for name, array in sorted(content.items()):
        checksum.update(f"{name} {array.dtype} {array.shape}".encode())
        checksum.update(array.tobytes())
    return checksum.hexdigest()


def _checked_header(path: str, metadata: Mapping[str, str]) -> str:
    """The header of a file, as text.

    Raises:
      RefusedError: if the file has another header, or one of a later version.
    """
    if HEADER in metadata:
        raise RefusedError(f"{path} was written by hmt_jax.models.save: read it with hmt_jax.models.load")
    if EXPORTED_HEADER not in metadata:
        raise RefusedError(
            f"{path} was not written by hmt_jax.save_exported: its metadata have no {EXPORTED_HEADER!r} entry; read "
            "weights of PyTorch with hmt_jax.models.from_torch(name, file, ...)"
        )
    text = metadata[EXPORTED_HEADER]
    if (version := json.loads(text)["format"]) != _FORMAT:
        raise RefusedError(
            f"{path} has version {version} of its format, and this hmt_jax reads version {_FORMAT}: install a later "
            "hmt_jax"
        )
    return text


def _check_fits_here(path: str, header: Mapping) -> None:
    """Raises ValueError if a file is for other platforms, or in types that JAX does not use as it is set."""
    if (platform := jax.export.default_export_platform()) not in header["platforms"]:
        raise ValueError(
            f"{path} was exported for {', '.join(header['platforms'])} only, and JAX runs on {platform} here: export "
            f"the classifier on a machine with {platform}"
        )
    for name in [header["dtype"], *header["arrays"]]:
        if (rounded := jax.dtypes.canonicalize_dtype(jnp.dtype(name))) != name:
            raise ValueError(
                f"{path} is in {name}, which JAX rounds to {rounded}: call jax.config.update('jax_enable_x64', True) "
                "before it is loaded"
            )
