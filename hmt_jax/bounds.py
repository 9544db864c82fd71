"""Lower bounds of margins: radii within which no perturbation in a subspace changes the label.

On a ball ||z|| <= r of coordinates every unit of a network of ReLU and max-pooling lies between two planes, found layer
by layer, and so does the gap between the label and every other class. If all gaps stay positive, no point of the ball
has another label. These are the bounds of CROWN (Zhang, Weng, Chen, Hsieh and Daniel, "Efficient neural network
robustness certification with general activation functions", NeurIPS 2018, arXiv:1811.00866) for perturbations in a
subspace, with planes over pools that account for how far their members can differ.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hmt_jax import _piecewise
from hmt_jax._checks import as_array
from hmt_jax._images import as_floats, check_images
from hmt_jax.subspaces import Subspace
from hmt_jax.subspaces._base import as_list

__all__ = ["LowerBounds", "certify"]

# The rounding error of a bound in float64, relative to the same sum of absolute values: some 10^5 terms of 1.1e-16.
_ROUNDING = 1e-10
# The search for a radius ends at this relative accuracy, or after this many bounds.
_ACCURACY, _MOST_STEPS = 1e-2, 20


class LowerBounds(NamedTuple):
    """Certified radii of N samples in R subspaces, NumPy arrays of shape (R, N).

    Attributes:
      radius: L2 norm, in pixels, below which no perturbation in the subspace changes the label, so that the margin is
        at least as large. 0 if nothing could be certified; NaN for a sample with a NaN or infinite pixel.
      label: the predicted label; -1 for a sample with a NaN or infinite pixel.

    >>> bounds = LowerBounds(radius=np.array([[0.5, 0.0]]), label=np.array([[3, 8]]))
    >>> (bounds.radius > 0).tolist()  # whether anything was certified
    [[True, False]]
    """

    radius: np.ndarray
    label: np.ndarray


def certify(classifier: Any, images: ArrayLike, subspaces: Subspace | Sequence[Subspace]) -> LowerBounds:
    """Lower bounds of the margins of every image in every subspace, for MLPs and LeNet.

    They are loose, by a factor that grows with the depth of the network, with the radius and with the dimension: about
    2 for the MLP below, and 7 to 17 against tight margins of a LeNet on MNIST in windows of 8 x 8 (as measured by
    `python -m experiments audit RUN --certify 6`). Compare certified radii with each other; for the margin itself use
    `hmt_jax.exact` where it applies.

    They hold for the network in real arithmetic, with its parameters taken as exact. They are computed in float64,
    which holds float32 parameters exactly, and are lowered by a bound on its rounding errors. (The same network
    computed in float32 can have another label only where two logits agree within its rounding.)

    Args:
      classifier: `logistic`, `mlp` or `lenet` of `hmt_jax.models`.
      images: (N, height, width, channels), as for `hmt_jax.measure_margins`.
      subspaces: one subspace, or a list.

    Returns:
      The certified radii, and the predicted labels.

    Raises:
      TypeError: for any other classifier.
      ValueError: if the images have the wrong shape or type, there are none, or a subspace is for other images.

    >>> from hmt_jax import exact, models, subspaces
    >>> classifier = models.create("mlp", jax.random.key(0), image_shape=(4, 4, 1), num_classes=3, num_hidden=(8, 8))
    >>> images = jax.random.uniform(jax.random.key(1), (5, 4, 4, 1))
    >>> window = subspaces.dct_window((4, 4, 1), row=0, column=0, size=2)
    >>> lower = certify(classifier, images, window).radius[0]
    >>> margins = [exact.piecewise_linear(classifier, image, window).margin for image in images]
    >>> (lower / margins).round(2).tolist()  # how loose they are
    [0.51, 0.71, 0.5, 0.48, 0.4]
    """
    images = np.asarray(as_array("images", images))
    check_images(images)
    images = as_floats(images)
    shape = images.shape[1:]
    network = _piecewise.network_of(classifier, shape)
    absolute = jax.tree.map(np.abs, network)
    flat = images.reshape(len(images), -1).astype(np.float64)
    samples = [_piecewise.around(network, image) for image in flat]
    labels = np.array([_piecewise.label_of(sample) for sample in samples], np.int32)
    # All that differs from image to image: the first layer's values, and the same sums of absolute values.
    values = np.stack([sample.layers[0].bias for sample in samples])
    sizes = np.stack([_piecewise.around(absolute, np.abs(image)).layers[0].bias for image in flat])

    members = as_list(subspaces, shape)
    radii = []
    for member in members:
        restricted = _piecewise.in_coordinates(network, _piecewise.basis_of(member, shape))
        with jax.enable_x64(True):
            radii.append(np.asarray(_largest_radii(restricted, values, sizes, labels)))
    is_finite = np.asarray(np.isfinite(flat).all(1))
    return LowerBounds(
        radius=np.where(is_finite[None], np.stack(radii), np.nan),
        label=np.tile(np.where(is_finite, labels, -1), (len(members), 1)),
    )


class _Plane(NamedTuple):
    """A bound of units that is linear in the units before them, or in z: weight x + bias."""

    weight: jax.Array  # (units, inputs)
    bias: jax.Array  # (units,)


class _Planes(NamedTuple):
    """Bounds under and over the units of a layer."""

    under: _Plane
    over: _Plane


@jax.jit
def _largest_radii(network, values, sizes, labels):
    def of_image(image: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        value, size, label = image
        return _largest_radius(network.with_first(network.layers[0].weight, value), size, label)

    return jax.lax.map(of_image, (values, sizes, labels))


def _largest_radius(network, size, label):
    """The greatest radius of a ball that its own bounds certify: every bound moves both ends of a bracket."""
    if not network.hidden:
        return _certified_distance(network, size, label, 0.0)  # exact
    # If no gradient at the sample sets a scale, the farthest switch of the first layer does.
    weight, bias = network.layers[0]
    farthest = jnp.max(jnp.abs(bias) / jnp.maximum(jnp.linalg.norm(weight, axis=2), jnp.finfo(bias.dtype).tiny))

    def is_wide(state: tuple[jax.Array, jax.Array, Any]) -> jax.Array:
        low, high, num_steps = state
        return (high > (1 + _ACCURACY) * low) & (num_steps < _MOST_STEPS)

    def narrow(state: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
        low, high, num_steps = state
        radius = jnp.where(low > 0, jnp.sqrt(low * high), high / 8)
        radius = jnp.where(num_steps > 0, radius, 0)  # the first bound is of first order
        distance = _certified_distance(network, size, label, radius)
        low, high = jnp.maximum(low, jnp.minimum(radius, distance)), jnp.minimum(high, jnp.maximum(radius, distance))
        return low, jnp.where(high < jnp.inf, high, farthest), num_steps + 1

    radius = jax.lax.while_loop(is_wide, narrow, (jnp.zeros_like(farthest), jnp.full_like(farthest, jnp.inf), 0))[0]
    return jnp.where(jnp.sum(network.bias > -jnp.inf) > 1, radius, jnp.inf)  # infinite if there is no other class


def _certified_distance(network, size, label, radius):
    """The distance to which bounds that hold on the ball ||z|| <= radius keep the label: certified within that ball."""
    planes: list[_Planes] = []
    for layer in network.hidden:
        planes.append(_bound(layer, planes, radius))
    gaps = _Plane(network.weight[label][None] - network.weight, network.bias[label] - network.bias)
    gaps = _in_coordinates(gaps, planes)
    size = _size_of_logits(network, size, radius)
    is_ruled_out = network.bias == -jnp.inf
    least = jnp.where(is_ruled_out, jnp.inf, gaps.bias - _ROUNDING * (size + size[label]))
    norms = jnp.linalg.norm(gaps.weight, axis=1)
    distances = jnp.where(norms > 0, least / jnp.where(norms > 0, norms, 1), jnp.where(least > 0, jnp.inf, 0))
    return jnp.min(jnp.maximum(distances, 0), where=jnp.arange(len(norms), dtype=label.dtype) != label, initial=jnp.inf)


def _bound(layer, planes, radius) -> _Planes:
    """Planes under and over the units of a layer, both made of a unit's options; for ReLU those of CROWN.

    The plane under a unit is its greatest option, or 0. The plane over it is the mixture of options, 0 included, that
    needs the least lift to be above all of them.
    """
    num_units, num_options, num_inputs = layer.weight.shape
    options = _Plane(layer.weight.reshape(-1, num_inputs), layer.bias.reshape(-1))
    both_signs = jax.tree.map(lambda each: jnp.concatenate([each, -each]), options)
    under = _in_coordinates(both_signs, planes)
    lower, lower_of_negative = jnp.split(_least(under, radius), 2)
    middle, spread = (lower - lower_of_negative) / 2, -(lower + lower_of_negative) / 2
    slopes = jnp.subtract(*jnp.split(under.weight, 2))
    slopes *= (spread / jnp.maximum(jnp.linalg.norm(slopes, axis=1), jnp.finfo(spread.dtype).tiny))[:, None]
    middle, slopes = middle.reshape(num_units, num_options), slopes.reshape(num_units, num_options, -1)

    share = _mixture(jnp.pad(middle, ((0, 0), (0, 1))), jnp.pad(slopes, ((0, 0), (0, 1), (0, 0))))[:, :-1]
    over = _mixed(layer, share)
    weight, bias = jnp.pad(layer.weight, ((0, 0), (0, 1), (0, 0))), jnp.pad(layer.bias, ((0, 0), (0, 1)))  # with 0
    above = _Plane((over.weight[:, None] - weight).reshape(-1, num_inputs), (over.bias[:, None] - bias).reshape(-1))
    lift = -_least(_in_coordinates(above, planes), radius).reshape(num_units, num_options + 1).min(1)
    is_under = jax.nn.one_hot(middle.argmax(1), num_options, dtype=middle.dtype)
    is_under = jnp.where((middle.max(1) > 0)[:, None], is_under, 0)
    return _Planes(_mixed(layer, is_under), over._replace(bias=over.bias + lift))


def _mixed(layer, share) -> _Plane:
    return _Plane(jnp.einsum("uo,uoi->ui", share, layer.weight), jnp.einsum("uo,uo->u", share, layer.bias))


def _mixture(middle, slopes):
    """Shares (units, options) of functions middle + slopes z, ||z|| <= 1, in a plane that no function is far above.

    A plane with shares s, lifted above all functions, has the value max_j middle_j + ||slopes_j - sum_i s_i slopes_i||
    at z = 0. That is the radius of a ball around the mixture of slopes that holds, for every j, the ball of radius
    middle_j around slopes_j. Starting as the greatest of these, the ball is moved and enlarged until it holds the
    farthest one, as in J. Ritter, "An efficient bounding sphere", Graphics Gems, 1990. For two functions, as in ReLU,
    one such step is exact.
    """
    num_options = middle.shape[1]
    products = jnp.einsum("uid,ujd->uij", slopes, slopes)
    squares = jnp.diagonal(products, axis1=1, axis2=2)
    share, held = jax.nn.one_hot(middle.argmax(1), num_options, dtype=middle.dtype), middle.max(1)
    for _ in range(num_options - 1):
        mixed = jnp.einsum("uij,uj->ui", products, share)
        square = squares - 2 * mixed + jnp.sum(mixed * share, 1)[:, None]
        distances = jnp.sqrt(jnp.maximum(square, 0))
        farthest = jax.nn.one_hot(jnp.argmax(middle + distances, 1), num_options, dtype=middle.dtype)
        distance = jnp.sum(farthest * distances, 1)
        growth = jnp.maximum(jnp.max(middle + distances, 1) - held, 0) / 2
        share += (growth / jnp.where(distance > 0, distance, 1))[:, None] * (farthest - share)
        held += growth
    return share


def _least(plane, radius):
    """The least values over the ball of planes in z."""
    return plane.bias - radius * jnp.linalg.norm(plane.weight, axis=1)


def _in_coordinates(plane, planes) -> _Plane:
    """A plane in z under a linear function of the last units: the planes of all layers put in, from last to first."""
    weight, bias = plane
    for under, over in reversed(planes):
        up, down = jnp.maximum(weight, 0), jnp.minimum(weight, 0)
        bias = bias + up @ under.bias + down @ over.bias
        weight = up @ under.weight + down @ over.weight
    return _Plane(weight, bias)


def _size_of_logits(network, size, radius):
    """The scale of rounding errors: the sums of absolute values behind every logit, those of planes included."""
    size = size + radius * jnp.linalg.norm(network.layers[0].weight, axis=2)
    for weight, bias in network.layers[1:]:
        # The plane over a unit is two terms, each as large as the unit's options.
        size = jnp.abs(weight) @ (2 * size.max(1)) + jnp.abs(bias)
    return size[0]
