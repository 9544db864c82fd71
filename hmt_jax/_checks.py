"""Checks of what users give: shapes while tracing, values once on the host."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax.frequency import flip
from hmt_jax.solvers import Status

# What float32 rounding of a flip there and back leaves, with room; an 8-bit level is 4e-3.
_RANGE_TOLERANCE = 1e-3
_BYTES_AT_A_TIME = 2**24
# The shares of margins and of images with vanishing gradients above which we warn. Ordinary networks have few such
# margins, where units saturate or DeepFool leaps, and may be flat at images where all units of a layer are off.
_EARLY_PART, _FLAT_PART = 0.15, 0.25
# What half precision leaves of a difference of logits at a boundary.
_GAP_TOLERANCE = 2e-2
# What sums in half precision leave of a length, and of a coordinate that is 1 or -1.
_LENGTH_TOLERANCE, _COORDINATE_TOLERANCE = 1e-2, 5e-2


ImageShape = tuple[int, int, int]


class PixelRangeWarning(UserWarning):
    """Pixels leave [0, 1], and not because the images are flipped."""


def check_image(image: jax.Array | np.ndarray) -> None:
    if image.ndim != 3:
        raise ValueError(
            f"image must have shape (height, width, channels), got {image.shape}; add the channel axis of a grey image "
            "with image[..., None], and give batches to measure_margins"
        )
    check_floating("image", image)


def check_floating(argument: str, images: jax.Array | np.ndarray) -> None:
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{argument} must be floating point in [0, 1], got {images.dtype}; divide 8-bit images by 255")


def check_image_shape(image_shape) -> ImageShape:
    shape = tuple(image_shape)
    if len(shape) != 3 or any(length < 1 for length in shape):
        raise ValueError(f"image_shape must be (height, width, channels), all at least 1, got {shape}")
    return shape


def check_images(images: jax.Array | np.ndarray) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"images must have shape (N, height, width, channels), got {images.shape}; add the channel axis of grey "
            "images with images[..., None], and the batch axis of one image with image[None]"
        )
    if not images.size:
        raise ValueError(f"images is empty, with shape {images.shape}: give at least one image")
    check_floating("images", images)
    _warn_of_range(images, "or silence hmt_jax.PixelRangeWarning if they are meant to be so")


def check_callback(argument: str, function, arguments: str) -> None:
    if function is not None and not callable(function):
        raise TypeError(f"{argument} must be a function of {arguments}, or None, got {function!r}")


def check_type(argument, images):
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{argument} must be uint8, or floating point in [0, 1], got {images.dtype}; convert 8-bit images with "
            f"{argument}.astype(np.uint8)"
        )


def check_labels(argument, labels):
    if labels.ndim != 1:
        remedy = "pass one whole number for each image"
        if labels.ndim == 2:
            is_column = labels.shape[1] == 1
            remedy = f"take {argument}[:, 0]" if is_column else f"convert one-hot labels with {argument}.argmax(-1)"
        raise ValueError(f"{argument} must have shape (N,), got {labels.shape}; {remedy}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{argument} must be whole numbers from 0, got {labels.dtype}; convert them with {argument}.astype(int)"
        )
    if labels.size and labels.min() < 0:
        raise ValueError(f"{argument} must be whole numbers from 0, but the lowest one is {labels.min()}")
    if labels.size and int(labels.max()) > np.iinfo(np.int32).max:
        raise ValueError(f"{argument} must be whole numbers in int32, but the greatest one is {labels.max()}")


def check_is_pytree(subspace) -> None:
    """Classes of the user's own may have been left unregistered: JAX then takes their instances for single leaves."""
    if hasattr(subspace, "embed") and jax.tree_util.all_leaves([subspace]):
        raise TypeError(
            f"a subspace must be a pytree, but {type(subspace).__name__} is not registered as one: decorate the class "
            "with jax.tree_util.register_dataclass on top of dataclasses.dataclass(frozen=True), image_shape static"
        )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(subspace)]
    if any(path and path[0] == jax.tree_util.GetAttrKey("image_shape") for path in paths):
        raise TypeError(
            f"image_shape of {type(subspace).__name__} must be static, and not an array: declare it as image_shape: "
            'tuple[int, int, int] = dataclasses.field(metadata={"static": True})'
        )


def as_stack(subspaces, images: jax.Array | np.ndarray):
    """A stack of one subspace, or those given, and their number.

    Raises:
      TypeError: for anything else.
      ValueError: for subspaces of other images, or whose coordinates are not orthonormal.
    """
    check_is_pytree(subspaces)
    num_stacked = getattr(subspaces, "num_stacked", None)
    if num_stacked is None:
        if not (hasattr(subspaces, "coordinates") and hasattr(subspaces, "embed")):
            raise TypeError(
                f"subspaces must be one subspace or a stack of hmt_jax.subspaces, got {type(subspaces)}; "
                "hmt_jax.subspaces.stack joins several of one kind"
            )
        subspaces, num_stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], subspaces), 1
    check_subspace(jax.tree.map(lambda leaf: leaf[0], subspaces), images)
    if not type(subspaces).__module__.startswith("hmt_jax."):
        _check_orthonormal(subspaces, num_stacked, images.shape[1:])
    return subspaces, num_stacked


def check_subspace(subspace, images: jax.Array | np.ndarray) -> None:
    """The subspace, a single one, must be one of images of this shape."""
    image_shape = getattr(subspace, "image_shape", images.shape[1:])
    if image_shape != images.shape[1:]:
        is_channels_first = (*images.shape[2:], images.shape[1]) == image_shape
        remedy = "give images.transpose(0, 2, 3, 1)" if is_channels_first else "make the subspaces for that shape"
        raise ValueError(
            f"the subspaces are for images of shape {image_shape}, but images have shape {images.shape[1:]} after the "
            f"batch axis; {remedy}"
        )


def _check_orthonormal(stack, num_stacked, image_shape) -> None:
    """Both embed's transpose and `coordinates` must undo embed: tried with one z each, which has a part everywhere."""
    first = jax.tree.map(lambda leaf: leaf[0], stack)
    shape = jax.eval_shape(first.coordinates, jax.ShapeDtypeStruct(image_shape, jnp.float32)).shape
    z = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), shape)
    for r in range(num_stacked):
        for back, (length, greatest) in _deviations(jax.tree.map(lambda leaf, r=r: leaf[r], stack), z).items():
            # So written that NaN fails, too.
            if length <= _LENGTH_TOLERANCE * z.size**0.5 and greatest <= _COORDINATE_TOLERANCE:
                continue
            raise ValueError(
                f"coordinates of {type(stack).__name__} are not orthonormal: of z made of 1 and -1, embed and then "
                f"{back} make coordinates that differ from z by up to {greatest:.2g}; embed must keep lengths and "
                "angles, and coordinates must be its transpose"
            )


@jax.jit
def _deviations(subspace, z):
    """From z, of what two ways back from its image make of it: the length, and the greatest coordinate."""
    image, pull_back = jax.vjp(subspace.embed, z)
    ways = {"its transpose": pull_back(image)[0], "coordinates": subspace.coordinates(image)}
    return {back: (jnp.sqrt(jnp.sum((x - z) ** 2)), jnp.max(jnp.abs(x - z))) for back, x in ways.items()}


def check_range(images: jax.Array | np.ndarray, attack) -> None:
    """Attacks that keep pixels within [0, 1] can't move those outside it, which looks like robustness."""
    if images.dtype != np.uint8 and getattr(attack, "domain", "unbounded") != "unbounded":
        _warn_of_range(images, "or an attack with domain='unbounded', for this one moves no pixel out of [0, 1]")


def check_are_classes(labels: jax.Array | np.ndarray, num_classes: int) -> None:
    if (greatest := labels.max()) >= num_classes:
        raise ValueError(
            f"labels must be whole numbers from 0 to {num_classes - 1}, since the classifier has {num_classes} logits, "
            f"but the greatest one is {greatest}: number the classes from 0, with labels - 1 if they count from 1"
        )


def warn_of_saturation(result, evidence) -> None:
    """Warns of gradients that vanish where the classifier is confident, as those of a softmax or a sigmoid do."""
    is_labelled = result.label[0] >= 0
    # With one label there may be no boundary at all.
    is_flat = evidence.is_flat & is_labelled & (np.unique(result.label[0][is_labelled]).size > 1)
    num_early, num_flat = evidence.is_early.sum(), is_flat.sum()
    is_sign = num_early > _EARLY_PART * result.is_converged.sum() or num_flat > _FLAT_PART * is_labelled.sum()
    if not (evidence.is_distribution or is_sign):
        return
    signs = [
        f"{num_early} of {result.is_converged.sum()} margins are longer than the diameter of the pixel "
        "box, though the label changes within a tenth of the perturbation",
        f"the outputs of the classifier have no gradient at {num_flat} of {is_labelled.sum()} images",
    ]
    are_there = (num_early, num_flat)
    found = " and ".join(sign for sign, is_there in zip(signs, are_there, strict=True) if is_there)
    warnings.warn(
        f"{'the classifier seems to return probabilities' if evidence.is_distribution else found}: gradients vanish "
        "where the classifier is confident, so that margins come out far too large or are not found; return logits, "
        "before the softmax or sigmoid",
        stacklevel=3,
    )


def check_known(gaps: np.ndarray) -> None:
    """Of pairs (P, 3): by how much known labels are not those of the images, and still those of the points; scales."""
    gaps = gaps[~np.isnan(gaps[:, 2])]
    # Near a boundary logits are equal but for rounding, of less precision, too: by what is usual, and not of the pair
    # alone, for its own logits may be near zero.
    room = _GAP_TOLERANCE * np.maximum(gaps[:, 2], np.median(gaps[:, 2])) if len(gaps) else 0
    is_wrong = ~(np.max(gaps[:, :2], axis=1, initial=-np.inf) <= room)
    if is_wrong.any():
        raise ValueError(
            f"known perturbations of {is_wrong.sum()} of {is_wrong.size} pairs do not change what this classifier says "
            "of these images: measure them with this classifier, on the same images in the same order"
        )


def check_were_finite(result, images: jax.Array | np.ndarray) -> None:
    """Of the logits of images, and of all that the searches met."""
    if (result.status != Status.NON_FINITE).any():
        return
    is_finite = np.isfinite(np.asarray(images)).all(axis=(1, 2, 3))
    if is_finite.any() and (result.label < 0).all():
        raise ValueError(
            f"classifier gives NaN or infinite logits for every one of {is_finite.sum()} finite images: check its "
            "parameters and its normalisation"
        )
    if is_finite.any():
        warnings.warn(
            "the logits of images are finite, but every search met NaN or infinite logits or gradients, so that there "
            "are no margins: check what the classifier computes, such as roots of zero",
            stacklevel=3,
        )


def _warn_of_range(images, remedy):
    # In chunks of one size, since they may be more than a device holds.
    size = min(len(images), max(_BYTES_AT_A_TIME // images[0].nbytes, 1))
    is_unexplained = np.zeros(len(images), bool)
    for first in range(0, len(images), size):
        rows = slice(min(first, len(images) - size), min(first + size, len(images)))
        is_unexplained[rows] = _leaves_range_unexplained(images[rows])
    if is_unexplained.any():
        worst = np.asarray(images)[is_unexplained]
        warnings.warn(
            f"pixels of {is_unexplained.sum()} of {len(images)} images leave [0, 1], from {worst.min():.3g} to "
            f"{worst.max():.3g}, and flipping their frequencies does not explain it; give images before normalisation, "
            f"{remedy}",
            PixelRangeWarning,
            stacklevel=4,
        )


@jax.jit
def _leaves_range_unexplained(images):
    """Which images leave the range, and still do so flipped; those with NaN or infinite pixels have no range."""
    is_outside = _leaves_range(images) & jnp.isfinite(images).all(axis=(1, 2, 3))
    return jax.lax.cond(
        is_outside.any(), lambda: is_outside & _leaves_range(flip(images)), lambda: jnp.zeros_like(is_outside)
    )


def _leaves_range(images):
    return ((images < -_RANGE_TOLERANCE) | (images > 1 + _RANGE_TOLERANCE)).any(axis=(1, 2, 3))
