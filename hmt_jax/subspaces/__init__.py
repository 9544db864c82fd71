"""Linear subspaces of image space, with orthonormal coordinates.

A subspace is a pytree with two methods, each the transpose of the other. `coordinates(image)` returns the coordinates z
(dimension,) of the orthogonal projection of an image (height, width, channels). `embed(z)` returns the image with
coordinates z. `coordinates(embed(z))` is z, and the L2 norm of z is the L2 norm of `embed(z)`, in pixels over all
channels.

Several subspaces are a Python list, which may mix kinds and dimensions. Subspaces of one class and dimension differ
only in arrays, so `hmt_jax.measure_margins` stacks them and runs one compiled program for all.
"""

from hmt_jax.subspaces._angles import intersection, principal_angles, sum  # noqa: A004 - as the field calls it
from hmt_jax.subspaces._base import Subspace, check_orthonormal
from hmt_jax.subspaces._complement import orthogonal_complement
from hmt_jax.subspaces._dct import DCTWindow, DCTWindowComplement, dct_diagonal, dct_grid, dct_window
from hmt_jax.subspaces._fourier import fourier_rings
from hmt_jax.subspaces._of_data import class_means, principal_components
from hmt_jax.subspaces._pixels import channels, luma_chroma, patches, pixels
from hmt_jax.subspaces._separable import Separable
from hmt_jax.subspaces._span import Span, SpanComplement, WholeSpace, from_basis, full, random
from hmt_jax.subspaces._wavelets import wavelet_bands

__all__ = [
    "DCTWindow",
    "DCTWindowComplement",
    "Separable",
    "Span",
    "SpanComplement",
    "Subspace",
    "WholeSpace",
    "channels",
    "check_orthonormal",
    "class_means",
    "dct_diagonal",
    "dct_grid",
    "dct_window",
    "fourier_rings",
    "from_basis",
    "full",
    "intersection",
    "luma_chroma",
    "orthogonal_complement",
    "patches",
    "pixels",
    "principal_angles",
    "principal_components",
    "random",
    "sum",
    "wavelet_bands",
]
