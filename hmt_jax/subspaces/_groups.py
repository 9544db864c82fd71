"""Subspaces grouped by structure, so that one compiled program serves each group."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Group(NamedTuple):
    """Subspaces of one structure.

    Attributes:
      places: their positions in the list.
      members: one pytree with a leading axis on every leaf.
    """

    places: list[int]
    members: Any


def grouped(subspaces: Sequence[Any]) -> list[Group]:
    """The subspaces in groups of equal pytree structure, and equal shape and dtype of every array."""
    groups: dict[Any, list[int]] = {}
    for place, subspace in enumerate(subspaces):
        leaves, treedef = jax.tree.flatten(subspace)
        layout = (treedef, *((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))
        groups.setdefault(layout, []).append(place)
    return [Group(places, _stacked([subspaces[place] for place in places])) for places in groups.values()]


def _stacked(members) -> Any:
    # On the host, so that nothing is compiled.
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *members)
