"""Data sets by name, in arrays, and those of users."""

from hmt_jax.data._dataset import Dataset, as_floats, from_arrays
from hmt_jax.data._load import load, names
from hmt_jax.data._prepare import prepare

__all__ = ["Dataset", "as_floats", "from_arrays", "load", "names", "prepare"]
