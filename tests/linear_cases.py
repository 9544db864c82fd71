"""Random linear classifiers with images and subspaces, and their margins in closed form, by NumPy in float64."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from helpers import linear_logits, random_basis, window_basis
from hypothesis import strategies as st

from hmt_jax import solvers, subspaces
from hmt_jax.solvers import Status

_EPS = float(np.finfo(np.float32).eps)
_NUM_CANDIDATES = 10
# Largest excess over the closest point, as a share of the margin: DeepFool's overshoot, and how far behind the boundary
# the polish of a quick walk aims at first.
_EXCESS = {"deepfool": 0.02, "quick": 3e-4}
# The shortest steps in pixels, where a sample lies on a boundary: DeepFool's, and that of a walk.
_SHORTEST = {"deepfool": 1e-4, "quick": 8 * _EPS}
SOLVERS = {"deepfool": solvers.DeepFool(), "quick": solvers.tight("quick")}


class Form(NamedTuple):
    """What programs are compiled for."""

    image_shape: tuple[int, int, int]
    num_classes: int
    num_images: int
    dtype: str
    subspace: str

    @property
    def dimension(self):
        height, width, channels = self.image_shape
        num_pixels = height * width * channels
        small = {"window": channels * min(2, height, width) ** 2, "random": max(num_pixels // 3, 1)}
        return {"full": num_pixels, "complement": num_pixels - small["random"], **small}[self.subspace]


# The first few are the default.
FORMS = (
    Form((5, 4, 2), 5, 3, "float32", "window"),
    Form((4, 4, 1), 2, 8, "uint8", "full"),
    Form((3, 5, 4), 12, 3, "float16", "random"),
    Form((1, 1, 1), 3, 8, "float32", "full"),
    Form((6, 3, 1), 10, 1, "float32", "complement"),
    Form((2, 2, 4), 12, 8, "uint8", "window"),
    Form((1, 7, 1), 4, 3, "float16", "full"),
    Form((5, 4, 2), 3, 8, "float32", "random"),
    Form((1, 1, 4), 2, 1, "uint8", "random"),
    Form((8, 8, 3), 11, 3, "float32", "window"),
    Form((1, 1, 4), 6, 8, "float16", "complement"),
    Form((3, 3, 1), 7, 3, "uint8", "complement"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """Numbers that determine a classifier, images and a subspace."""

    form: Form
    seed: int
    exponent: int  # of 10, of the weights
    structure: str
    num_ruled_out: int  # classes with a bias of -infinity
    bad_pixels: tuple[tuple[int, float], ...]  # the images that have one, and its value
    container: str


def cases(num_forms):
    """A strategy for cases of the first few forms."""

    def of_form(form):
        bad = st.tuples(st.integers(0, form.num_images - 1), st.sampled_from([np.nan, np.inf, -np.inf]))
        return st.builds(
            Case,
            form=st.just(form),
            seed=st.integers(0, 2**20),
            exponent=st.integers(-3, 3),
            structure=st.sampled_from(("plain", "plain", "tied", "columns", "repeated", "equal", "blind")),
            num_ruled_out=st.one_of(st.just(0), st.integers(0, form.num_classes)),
            bad_pixels=st.just(()) if form.dtype == "uint8" else st.lists(bad, max_size=2).map(tuple),
            container=st.sampled_from(("array", "source", "stream")),
        )

    return st.sampled_from(FORMS[:num_forms]).flatmap(of_form)


class Inputs(NamedTuple):
    """What is measured, and the basis of the subspace, (D, d)."""

    classifier: Any
    images: np.ndarray
    subspace: Any
    basis: np.ndarray
    weights: np.ndarray
    biases: np.ndarray


def inputs_of(case):
    form, rng = case.form, np.random.default_rng(case.seed)
    num_pixels = int(np.prod(form.image_shape))
    subspace, basis = _subspace(form, rng)
    scale = 10.0**case.exponent
    weights = scale * rng.uniform(0.3, 3, (form.num_classes, 1)) * rng.normal(size=(form.num_classes, num_pixels))
    biases = scale * rng.normal(size=form.num_classes)
    images = rng.uniform(size=(form.num_images, *form.image_shape))
    if case.structure == "tied":  # all logits of an image are equal
        images[0], biases[:] = 0, 0
    elif case.structure == "columns":  # pixels that no class sees
        weights[:, rng.uniform(size=num_pixels) < 0.5] = 0
    elif case.structure == "repeated":
        weights[1::2], biases[1::2] = weights[0], biases[0]
    elif case.structure == "equal":
        weights[:] = weights[0]
    elif case.structure == "blind":  # to the subspace
        weights -= weights @ basis @ basis.T
    weights, biases = weights.astype(np.float32), biases.astype(np.float32)
    biases[rng.permutation(form.num_classes)[: case.num_ruled_out]] = -np.inf
    images = (255 * images).astype(np.uint8) if form.dtype == "uint8" else images.astype(form.dtype)
    for number, value in case.bad_pixels:
        images[number].flat[rng.integers(num_pixels)] = value
    classifier = jax.tree_util.Partial(linear_logits, (jnp.asarray(weights), jnp.asarray(biases)))
    return Inputs(classifier, images, subspace, basis, weights.astype(float), biases.astype(float))


def _subspace(form, rng):
    shape, num_pixels, dimension = form.image_shape, int(np.prod(form.image_shape)), form.dimension
    if form.subspace == "full":
        return subspaces.full(shape), np.eye(num_pixels)
    if form.subspace == "window":
        size = min(2, *shape[:2])
        row, column = (int(rng.integers(side - size + 1)) for side in shape[:2])
        return subspaces.dct_window(shape, row, column, size), window_basis(shape, row, column, size)
    seed = int(rng.integers(2**20))
    if form.subspace == "random":
        basis = random_basis(num_pixels, dimension, seed)
        return subspaces.from_basis(basis.astype(np.float32), shape), basis
    columns = np.linalg.qr(np.random.default_rng(seed).normal(size=(num_pixels, num_pixels)))[0]
    left_out = num_pixels - dimension
    span = subspaces.from_basis(columns[:, :left_out].astype(np.float32), shape)
    return subspaces.orthogonal_complement(span), columns[:, left_out:]


class Source:
    """Images by number."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return self.images[number]


def contained(images, container):
    """The images in an array, as a source, or as a stream in batches of two."""
    if container == "stream":
        return iter([images[first : first + 2] for first in range(0, len(images), 2)])
    return Source(images) if container == "source" else images


def check_image(name, inputs, result, n):
    """That the margin, the labels and the status of an image are those of the closed form; returns the status."""
    status = Status(result.status[0, n])
    label, margin = int(result.label[0, n]), float(result.margin[0, n])
    pixels = inputs.images[n].astype(float).ravel() / (255 if inputs.images.dtype == np.uint8 else 1)
    with np.errstate(invalid="ignore"):
        logits = inputs.weights @ pixels + inputs.biases
    if not np.isfinite(pixels).all() or not (logits > -np.inf).any():
        assert (status, label) == (Status.NON_FINITE, -1)
        assert np.isnan(margin)
        return status
    classes = np.flatnonzero(logits > -np.inf)
    num_pixels, dimension = inputs.basis.shape
    # Rounding of the logits in float32, at most, for sums of D products.
    rounding = (num_pixels + 8) * _EPS * (np.abs(inputs.weights) @ pixels + np.abs(inputs.biases))
    assert logits[label] >= logits[classes].max() - 2 * rounding[classes].max()
    others = classes[classes != label]
    normals = inputs.weights[others] - inputs.weights[label]
    seen = np.linalg.norm(normals @ inputs.basis, axis=1)
    # What is left of a normal in the subspace may be rounding below this, and is none above 16 times of it.
    noise = _EPS * np.sqrt(dimension) * (np.abs(inputs.weights[others]).max(1) + np.abs(inputs.weights[label]).max())
    is_seen = seen > 16 * noise
    # Of twelve classes the ten likeliest are candidates; those about as likely as the tenth may be.
    ranks = np.array([np.sum(logits[classes] >= logits[k] - rounding[k] - rounding[classes].max()) for k in others])
    is_candidate = ranks <= _NUM_CANDIDATES
    if status == Status.ZERO_GRADIENT:
        assert not (is_seen & is_candidate).any()
        assert margin == np.inf
        return status
    with np.errstate(divide="ignore"):
        away = np.where(seen > 0, 1 / seen, 0)
    distances = np.where(seen > 0, np.abs(logits[others] - logits[label]) * away, np.inf)
    # Pixels of the perturbed image are rounded, too.
    size = (num_pixels + 8) * _EPS * (np.abs(inputs.weights[others]) + np.abs(inputs.weights[label])).sum(1)
    errors = (
        rounding[others] + rounding[label] + size * margin + np.abs(logits[others] - logits[label]) * 16 * noise * away
    ) * away
    assert status == Status.CONVERGED
    assert margin >= np.min(distances - errors)
    least = np.min(np.maximum(distances + errors, _SHORTEST[name])[is_seen & is_candidate], initial=np.inf)
    assert margin <= least * (1 + _EXCESS[name]) * (1 + 4 * _EPS)
    return status
