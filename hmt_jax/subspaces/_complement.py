"""Orthogonal complements of all kinds of subspaces."""

import math

import jax.numpy as jnp

from hmt_jax.subspaces._base import Subspace, basis_of
from hmt_jax.subspaces._dct import DCTWindow, DCTWindowComplement
from hmt_jax.subspaces._separable import Separable, complement_of
from hmt_jax.subspaces._span import Span, SpanComplement, basis_of_reflected, reflector_of


def orthogonal_complement(subspace: Subspace) -> Subspace:
    """The subspace of all directions orthogonal to a subspace.

    The complements of DCT windows and of separable subspaces need no matrix of a basis, either. That of a span takes as
    much memory as the span. The complement of a complement is the original subspace. For other classes, a basis of the
    subspace is formed.

    Args:
      subspace: a subspace of fewer dimensions than the whole space.

    Raises:
      ValueError: if the subspace is the whole space, which leaves no directions.

    >>> from hmt_jax import subspaces
    >>> rest = orthogonal_complement(subspaces.dct_window((28, 28, 1), row=0, column=0, size=8))
    >>> rest.dimension
    720
    """
    if subspace.dimension == math.prod(subspace.image_shape):
        raise ValueError("the subspace is the whole space: its orthogonal complement has no directions")
    match subspace:
        case DCTWindow():
            return DCTWindowComplement(subspace.corner, subspace.size, subspace.image_shape)
        case DCTWindowComplement():
            return DCTWindow(subspace.corner, subspace.size, subspace.image_shape)
        case SpanComplement():
            return Span(basis_of_reflected(subspace.reflector), subspace.image_shape)
        case Span():
            return SpanComplement(reflector_of(subspace.basis), subspace.image_shape)
        case Separable():
            return complement_of(subspace)
        case _:
            return SpanComplement(reflector_of(jnp.asarray(basis_of(subspace))), subspace.image_shape)
