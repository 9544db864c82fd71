"""Signs that the margins of a classifier are meaningless: logits that are NaN, and gradients that vanish."""

from typing import Any, NamedTuple

import numpy as np

from hmt_jax._misc import promoted, warn
from hmt_jax.margins._result import MarginResult
from hmt_jax.solvers import Linearization, Status, has_label

# Shares of margins and of images with vanishing gradients above which there is a warning. Ordinary networks have a few
# such margins, where units saturate or DeepFool takes too long a step, and a few such images, where all units of a
# layer are off.
_EARLY_PART, _FLAT_PART = 0.15, 0.25
# Largest difference from 1, by rounding in half precision, of the sum of a row of probabilities.
_SUM_TOLERANCE = 1e-2


class Signs(NamedTuple):
    """Counts over images and pairs; `plus` adds the counts of a later chunk.

    Attributes:
      num_images: images with finite pixels.
      labels: the labels of all images so far.
      num_labelled: images whose logits name a label.
      num_flat: images at which the gradients of all candidates are exactly 0.
      num_distributions: images whose logits look like the outputs of a softmax.
      num_finite: pairs whose search met no NaN.
      num_converged: pairs with a margin.
      num_early: pairs whose margin exceeds the diameter of the pixel box, although the label changes
        long before its end.
    """

    num_images: int = 0
    labels: frozenset[int] = frozenset()
    num_labelled: int = 0
    num_flat: int = 0
    num_distributions: int = 0
    num_finite: int = 0
    num_converged: int = 0
    num_early: int = 0

    def plus(self, later: "Signs") -> "Signs":
        pairs: list[Any] = list(zip(self, later, strict=True))
        sums: list[Any] = [a | b if isinstance(a, frozenset) else a + b for a, b in pairs]
        return Signs(*sums)


def signs_of(images: np.ndarray, at_images: Linearization, result: MarginResult, num_early: int) -> Signs:
    """The signs in one chunk of images, its linearisations and its result."""
    logits = at_images.logits[-len(images) :]
    is_labelled = np.asarray(has_label(logits)) & (result.label[0] >= 0)
    normals = at_images.normals[-len(images) :]
    is_flat = (
        ~normals.reshape(len(normals), -1).any(axis=1) & np.isfinite(_gaps(logits)) & is_labelled
        if normals.shape[1]
        else np.zeros(len(images), bool)
    )
    rows = logits[is_labelled].astype(float)
    is_distribution = (rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) < _SUM_TOLERANCE)
    is_finite = np.isfinite(images).all(axis=(1, 2, 3)) if images.dtype != np.uint8 else np.ones(len(images), bool)
    return Signs(
        num_images=int(is_finite.sum()),
        labels=frozenset(np.unique(result.label[0][is_labelled]).tolist()),
        num_labelled=int(is_labelled.sum()),
        num_flat=int(is_flat.sum()),
        num_distributions=int(is_distribution.sum()),
        num_finite=int((result.status != Status.NON_FINITE).sum()),
        num_converged=int(result.is_converged.sum()),
        num_early=num_early,
    )


def report(signs: Signs) -> None:
    """Raises or warns if the signs of all images show that the margins are meaningless.

    Raises:
      ValueError: if the logits of all images with finite pixels are NaN or infinite.

    Warns:
      UserWarning: if all searches met NaN or infinite numbers, or gradients vanish where the classifier is confident.
    """
    if signs.num_images and not signs.num_labelled:
        raise ValueError(
            f"classifier returns NaN or infinite logits for every one of {signs.num_images} finite images: check its "
            "parameters and its normalisation"
        )
    if signs.num_images and not signs.num_finite:
        warn(
            "the logits of images are finite, but every search met NaN or infinite logits or gradients, so there are "
            "no margins: check the operations of the classifier, such as roots of zero, and those of your own solver"
        )
    # With one label there may be no boundary at all.
    num_flat = signs.num_flat if len(signs.labels) > 1 else 0
    is_distribution = 0 < signs.num_labelled == signs.num_distributions
    is_sign = signs.num_early > _EARLY_PART * signs.num_converged or num_flat > _FLAT_PART * signs.num_labelled
    if not (is_distribution or is_sign):
        return
    found = [
        f"{signs.num_early} of {signs.num_converged} margins are longer than the diameter of the pixel box, although "
        "the label changes within a tenth of the perturbation",
        f"the outputs of the classifier have no gradient at {num_flat} of {signs.num_labelled} images",
    ]
    found = [sign for sign, number in zip(found, (signs.num_early, num_flat), strict=True) if number]
    warn(
        f"{'the classifier seems to return probabilities' if is_distribution else ' and '.join(found)}: gradients "
        "vanish where the classifier is confident, so margins come out far too large or are not found; return logits, "
        "before the softmax or sigmoid"
    )


def _gaps(logits) -> np.ndarray:
    """The greatest minus the second greatest of logits (N, L), in at least float32."""
    second, first = np.partition(logits.astype(promoted(logits.dtype, np.float32)), -2, axis=1)[:, -2:].T
    with np.errstate(invalid="ignore", over="ignore"):  # logits that name no label, or whose difference is out of range
        return first - second
