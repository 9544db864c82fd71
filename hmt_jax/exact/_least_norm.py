"""The point of a polytope nearest to the origin."""

import numpy as np

# The rounding error that float64 leaves in a residual of zero, with room: polytopes farther away than about 1e6 times
# their farthest face count as empty.
_TOLERANCE = 1e-12


def least_norm_point(normals: np.ndarray, offsets: np.ndarray) -> np.ndarray | None:
    """The z (d,) of least norm with normals z >= offsets, or None if there is none.

    A least-distance problem as a nonnegative least-squares problem: Lawson and Hanson, "Solving Least Squares
    Problems", 1974, chapter 23.

    Args:
      normals: (F, d), unit vectors.
      offsets: (F,), the distances of the half-spaces from the origin, negative for those that contain it.

    >>> least_norm_point(np.array([[1.0, 0.0], [0.0, -1.0]]), np.array([3.0, 2.0])).round(6).tolist()
    [3.0, -2.0]
    """
    farthest = np.max(offsets, initial=0.0)
    if farthest == 0:
        return np.zeros(normals.shape[1])
    rows = np.concatenate([normals, offsets[:, None] / farthest], axis=1)
    target = np.zeros(rows.shape[1])
    target[-1] = 1
    residual = target - _nonnegative_least_squares(rows.T, target) @ rows
    # Up to rounding, the residual's last component is its squared norm, 1 / (1 + (norm of z / farthest)^2).
    return None if residual @ residual < _TOLERANCE else -farthest * residual[:-1] / residual[-1]


def _nonnegative_least_squares(matrix, target):
    """The u >= 0 of least ||matrix u - target||, by the active sets of Lawson and Hanson's algorithm NNLS."""
    u = np.zeros(matrix.shape[1])
    is_active = np.zeros(u.size, bool)
    is_refused = np.zeros(u.size, bool)
    while True:
        gradient = np.where(is_active | is_refused, 0, matrix.T @ (target - matrix @ u))
        entering = np.argmax(gradient)
        if gradient[entering] <= _TOLERANCE:
            return u
        is_active[entering] = True
        proposed = _on_active(matrix, target, is_active)
        if proposed[entering] <= 0:  # by rounding: this number would leave again at once
            is_active[entering], is_refused[entering] = False, True
            continue
        is_refused[:] = False
        while (proposed[is_active] <= 0).any():
            falling = is_active & (proposed <= 0)
            u += np.min(u[falling] / (u[falling] - proposed[falling])) * (proposed - u)
            is_active &= u > _TOLERANCE
            u[~is_active] = 0
            proposed = _on_active(matrix, target, is_active)
        u = proposed


def _on_active(matrix, target, is_active):
    """The least-squares solution in which all inactive numbers are zero."""
    u = np.zeros(is_active.size)
    u[is_active] = np.linalg.lstsq(matrix[:, is_active], target)[0]
    return u
