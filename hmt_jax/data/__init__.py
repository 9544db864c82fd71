"""Data sets: by name, synthetic, or from the user's arrays and folders; and batches of data too large for memory."""

from hmt_jax.data._dataset import Dataset, as_floats, from_arrays
from hmt_jax.data._image_folder import ImageFolder, image_folder
from hmt_jax.data._load import load, names
from hmt_jax.data._loader import Loader, Source, loader, prefetch
from hmt_jax.data._prepare import prepare
from hmt_jax.data._synthetic import Samples, synthetic_linear, synthetic_nonlinear
from hmt_jax.data._tfds_images import TfdsImages, tfds_images

__all__ = [
    "Dataset",
    "ImageFolder",
    "Loader",
    "Samples",
    "Source",
    "TfdsImages",
    "as_floats",
    "from_arrays",
    "image_folder",
    "load",
    "loader",
    "names",
    "prefetch",
    "prepare",
    "synthetic_linear",
    "synthetic_nonlinear",
    "tfds_images",
]
