"""Exact margins against closed forms, brute force over grids, and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import (
    basis_of,
    labels_of,
    linear_logits,
    random_images,
    random_network,
    solve_all,
    with_parameters,
)

import hmt_jax
from hmt_jax import Status, exact, frequency, solvers, subspaces
from hmt_jax.exact._least_norm import least_norm_point
from hmt_jax.solvers import Linear, Scan

SHAPE = (3, 4, 2)
NUM_PIXELS = 24


def sphere_logits(parameters, images):
    center, radius = parameters
    gap = jnp.sum((images - center[None]) ** 2, (1, 2, 3)) - radius**2
    return jnp.stack([jnp.zeros_like(gap), gap], axis=1)


def measure(logits, parameters, images, subspace, solver):
    """Solutions of images in one subspace, in one program without lanes, which compiles soon."""
    return solve_all(with_parameters(logits, parameters), images, subspace, solver)


# Linear classifiers


def linear_parameters(num_classes, scale=1.0):
    rng = np.random.default_rng(num_classes)
    return scale * rng.normal(size=(num_classes, NUM_PIXELS)), scale * rng.normal(size=num_classes)


def images_of(num, seed=0):
    return random_images(num, *SHAPE, seed=seed, dtype="float32")


def closed_form(parameters, images, subspace):
    """Logits (L,), the label, and distances (L,) to the hyperplanes of all classes, that of the label infinite."""
    weights, biases = parameters
    inside = weights @ basis_of(subspace)
    for row in images.reshape(len(images), -1).astype(float) @ weights.T + biases:
        label = row.argmax()
        slopes = np.linalg.norm(inside - inside[label], axis=1)
        slopes[label] = np.nan
        yield row, label, np.nan_to_num((row[label] - row) / slopes, nan=np.inf)


@pytest.mark.parametrize(("num_classes", "dimension"), [(2, 1), (3, NUM_PIXELS), (1000, 7)])
def test_linear_margins_are_the_closed_form(num_classes, dimension):
    weights, biases = linear_parameters(num_classes)
    images = images_of(5)
    subspace = subspaces.random(jax.random.key(dimension), SHAPE, dimension)
    found = measure(linear_logits, (weights, biases), images, subspace, Linear())

    inside = weights @ basis_of(subspace)
    for n, (row, label, distances) in enumerate(closed_form((weights, biases), images, subspace)):
        nearest, size = distances.argmin(), 1e-6 * np.abs(row).max()
        # Gaps are differences of logits in float32, with an error of a few units in the last place of these.
        slope = np.linalg.norm(inside[nearest] - inside[label])
        np.testing.assert_allclose(found.margin[n], distances[nearest], rtol=1e-5, atol=size / slope)
        assert (found.label[n], found.adversarial_label[n]) == (label, nearest)
        moved = row + inside @ found.coordinates[n]
        np.testing.assert_allclose(moved[label], moved[nearest], atol=10 * size)
        assert moved.max() <= moved[label] + 10 * size


def test_a_linear_boundary_that_a_subspace_never_meets_is_infinitely_far_away():
    weights, biases = linear_parameters(3)
    weights[:, 0] = 1.0  # the first pixel moves all logits alike
    pixel = subspaces.from_basis(np.eye(NUM_PIXELS, 1), SHAPE)
    images = images_of(2)
    images[1, 0, 0, 0] = np.nan
    found = measure(linear_logits, (weights, biases), images, pixel, Linear())
    assert found.status.tolist() == [Status.ZERO_GRADIENT, Status.NON_FINITE]
    assert found.margin[0] == np.inf
    assert np.isnan(found.margin[1])
    assert found.label[1] == found.adversarial_label[1] == -1
    assert found.label[0] == found.adversarial_label[0]


@pytest.mark.parametrize("solver", [Linear(), Scan(reach=50, resolution=0.1)])
def test_margins_follow_the_scale_of_images_and_not_that_of_logits(solver):
    images, line = images_of(4), subspaces.random(jax.random.key(0), SHAPE, 1)
    weights, biases = linear_parameters(4)
    margin = measure(linear_logits, (weights, biases), images, line, solver).margin
    of_logits = measure(linear_logits, (1000 * weights, 1000 * biases), images, line, solver).margin
    np.testing.assert_allclose(of_logits, margin, rtol=1e-4)  # float32, of gaps of logits
    if solver != Linear():
        solver = Scan(reach=50_000, resolution=100)
    of_images = measure(linear_logits, (weights, 1000 * biases), 1000 * images, line, solver).margin
    np.testing.assert_allclose(of_images, 1000 * margin, rtol=1e-4)


# The sphere


def test_an_image_on_the_sphere_has_no_margin_where_the_subspace_only_touches_it():
    """Whatever rounding says of the side: from inside a ball every direction leads out."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        offset = rng.normal(size=SHAPE).astype(np.float32)
        tangent = np.linalg.qr(np.stack([offset.ravel(), rng.normal(size=offset.size)], axis=1))[0][:, 1:]
        radius = np.linalg.norm(offset).astype(np.float32)
        solution = exact.sphere(jnp.zeros(SHAPE), radius, offset, subspaces.from_basis(tangent, SHAPE))
        if solution.label == 0:
            assert solution.status == Status.CONVERGED
            assert solution.margin < 2e-3 * radius  # a root of float32's rounding


@pytest.mark.parametrize("radius", [0.3, 2.0, 5.0])
@pytest.mark.parametrize("dimension", [1, 2, NUM_PIXELS])
def test_the_margin_of_a_sphere_is_the_nearest_root_over_all_directions(radius, dimension):
    rng = np.random.default_rng(dimension)
    image, center = rng.normal(size=(2, *SHAPE)) / 2
    subspace = subspaces.random(jax.random.key(1), SHAPE, dimension)
    solution = jax.jit(exact.sphere)(center, radius, image, subspace)

    basis, offset = basis_of(subspace).astype(float), (image - center).ravel()
    angles = np.linspace(0, 2 * np.pi, 20_001)
    directions = {
        1: np.array([[1.0], [-1.0]]),
        2: np.stack([np.cos(angles), np.sin(angles)], 1),
        NUM_PIXELS: np.stack([basis.T @ offset, -basis.T @ offset]) / np.linalg.norm(offset),
    }[dimension]
    # ||offset + t v||^2 = radius^2 along unit vectors v; in the whole space the radial ones are the nearest.
    half = directions @ basis.T @ offset
    discriminant = half**2 - offset @ offset + radius**2
    roots = np.sqrt(discriminant[discriminant >= 0])
    roots = np.concatenate([roots - half[discriminant >= 0], -roots - half[discriminant >= 0]])
    nearest = np.min(roots[roots >= 0], initial=np.inf)
    np.testing.assert_allclose(solution.margin, nearest, rtol=1e-5)
    assert solution.label == (offset @ offset > radius**2)
    if nearest == np.inf:
        assert solution.status == Status.ZERO_GRADIENT
        assert solution.adversarial_label == solution.label
    else:
        assert solution.status == Status.CONVERGED
        assert solution.adversarial_label == 1 - solution.label
        np.testing.assert_allclose(np.linalg.norm(solution.coordinates), nearest, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(offset + basis @ solution.coordinates), radius, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [Linear(), solvers.DeepFool(), solvers.tight("fast")], ids=str)
def test_what_rounding_leaves_of_a_filtered_band_is_no_direction(solver):
    """Windows that a filter before the network removes have no boundary; the others have that of the weights."""
    shape = (6, 6, 1)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 36)), jnp.float32)

    def classifier(images):
        return frequency.low_pass(images, 3).reshape(len(images), -1) @ weights.T

    images = np.random.default_rng(1).random((4, *shape)).astype(np.float32)
    removed = subspaces.orthogonal_complement(subspaces.dct_window(shape, 0, 0, 3))
    members = [*subspaces.dct_diagonal(shape, size=3, step=3), removed]
    found = hmt_jax.measure_margins(classifier, images, members, solver, devices=jax.devices()[:1])
    assert (found.status == [[Status.CONVERGED], [Status.ZERO_GRADIENT], [Status.ZERO_GRADIENT]]).all()
    assert np.isinf(found.margin[1:]).all()


def test_a_direction_that_hardly_counts_is_one():
    weights, biases = linear_parameters(3)
    weights[:, 0] *= 1e-5
    pixel = subspaces.from_basis(np.eye(NUM_PIXELS, 1), SHAPE)
    images = images_of(4)
    found = measure(linear_logits, (weights, biases), images, pixel, Linear())
    assert (found.status == Status.CONVERGED).all()
    expected = [distances.min() for *_, distances in closed_form((weights, biases), images, pixel)]
    np.testing.assert_allclose(found.margin, expected, rtol=1e-5)


def test_a_sample_has_a_label_where_its_logits_have_no_gradient():
    found = hmt_jax.measure_margins(
        lambda images: jnp.stack([jnp.sqrt(images[:, 0, 0, 0]), images[:, 0, 1, 0]], axis=1),
        np.array([[0.0, 0.5], [0.5, 0.5]], np.float32).reshape(2, 1, 2, 1),
        subspaces.full((1, 2, 1)),
        Linear(),
    )
    assert found.status[0].tolist() == [Status.NON_FINITE, Status.CONVERGED]
    assert found.label[0].tolist() == [1, 0]
    assert found.adversarial_label[0].tolist() == [1, 1]


def test_the_margin_at_the_center_of_a_sphere_is_its_radius():
    center = jnp.full(SHAPE, 0.5)
    solution = exact.sphere(center, 0.75, center, subspaces.full(SHAPE))
    assert solution.margin == 0.75
    np.testing.assert_allclose(jnp.linalg.norm(solution.coordinates), 0.75, rtol=1e-6)


# Scans


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [1, 2])
def test_scans_find_spheres_from_both_sides_within_their_reach(dimension):
    rng = np.random.default_rng(5)
    center, radius = np.full(SHAPE, 0.5), 2.0
    subspace = subspaces.random(jax.random.key(2), SHAPE, dimension)
    along, beside = rng.uniform(-4, 4, (60, dimension)) @ basis_of(subspace).T, rng.normal(size=(60, NUM_PIXELS))
    beside -= beside @ basis_of(subspace) @ basis_of(subspace).T
    beside *= rng.uniform(0, 2.4, (60, 1)) / np.linalg.norm(beside, axis=1, keepdims=True)
    images = (center + (along + beside).reshape(60, *SHAPE)).astype(np.float32)
    expected = jax.vmap(exact.sphere, (None, None, 0, None))(center, radius, images, subspace)
    found = measure(sphere_logits, (center, radius), images, subspace, Scan(reach=1.8, resolution=0.02))

    is_within, is_inside = np.asarray(expected.margin < 1.78), np.asarray(expected.label == 0)
    assert min(np.sum(is_within & is_inside), np.sum(is_within & ~is_inside), np.sum(expected.margin > 1.82)) >= 5
    # Next to a tangent less than the resolution changes.
    is_seen = is_within & (is_inside | (radius - np.linalg.norm(beside, axis=1) > 0.01))
    assert np.sum(is_within & ~is_seen) <= 2
    # Pixels are of order 1, and float32.
    np.testing.assert_allclose(found.margin[is_seen], expected.margin[is_seen], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.adversarial_label[is_seen], 1 - found.label[is_seen])
    np.testing.assert_allclose(np.linalg.norm(found.coordinates[is_seen], axis=1), found.margin[is_seen], rtol=1e-6)
    is_outside = np.asarray(expected.margin > 1.82)
    assert set(found.status[is_seen]) == {Status.CONVERGED}
    assert set(found.status[is_outside]) == {Status.OUT_OF_STEPS}
    np.testing.assert_array_equal(found.margin[is_outside], np.float32(1.8))


@pytest.mark.parametrize("dimension", [1, 2])
def test_scans_of_linear_classifiers_are_exact(dimension):
    images, subspace = images_of(10), subspaces.random(jax.random.key(3), SHAPE, dimension)
    parameters = linear_parameters(7)
    found = measure(linear_logits, parameters, images, subspace, Scan(reach=30, resolution=0.05))
    distances = np.array([each for _, _, each in closed_form(parameters, images, subspace)])
    np.testing.assert_allclose(found.margin, distances.min(1), rtol=1e-5, atol=1e-5)
    # Three classes may meet there.
    np.testing.assert_allclose(distances[range(10), found.adversarial_label], distances.min(1), rtol=1e-2, atol=1e-5)


def corner_logits(parameters, images):
    """Class 1 in a wedge that points at the origin of the first two pixels, from a distance and a direction."""
    distance, direction, slope = parameters
    x, y = images[:, 0, 0, 0], images[:, 0, 1, 0]
    along = jnp.cos(direction) * x + jnp.sin(direction) * y - distance
    across = -jnp.sin(direction) * x + jnp.cos(direction) * y
    return jnp.stack([jnp.zeros_like(x), along - slope * jnp.abs(across)], axis=1)


@pytest.mark.parametrize("direction", [0.0, 1.0, 3.13, -2.0])
@pytest.mark.parametrize("slope", [0.5, 5.0])
def test_a_scan_of_the_plane_finds_a_corner_between_its_rays(direction, slope):
    image = np.zeros((1, 1, 2, 1), np.float32)
    solver = Scan(reach=3, resolution=0.1)
    found = measure(corner_logits, (1.2345, direction, slope), image, subspaces.full((1, 2, 1)), solver)
    np.testing.assert_allclose(found.margin, 1.2345, rtol=1e-5)
    np.testing.assert_allclose(
        found.coordinates[0], 1.2345 * np.array([np.cos(direction), np.sin(direction)]), atol=1e-4
    )


def slab_logits(edges, images):
    """Class 0 between two values of the first pixel."""
    pixel = images[:, 0, 0, 0]
    return jnp.stack([jnp.zeros_like(pixel), jnp.maximum(edges[0] - pixel, pixel - edges[1])], axis=1)


def test_a_scan_of_a_line_takes_the_nearer_side_within_one_step():
    images = np.full((4, *SHAPE), 0.5, np.float32)
    images[1:3, 0, 0, 0] = 0.49, 0.9
    images[3, 0, 0, 0] = np.nan
    pixel = subspaces.from_basis(np.eye(NUM_PIXELS, 1), SHAPE)
    found = measure(slab_logits, (0.21, 0.78), images, pixel, Scan(reach=0.25, resolution=0.25))
    assert found.status.tolist() == [Status.OUT_OF_STEPS] * 2 + [Status.CONVERGED, Status.NON_FINITE]
    found = measure(slab_logits, (0.21, 0.78), images, pixel, Scan(reach=0.5, resolution=0.25))
    np.testing.assert_allclose(found.margin[:3], [0.28, 0.28, 0.12], rtol=1e-5)
    np.testing.assert_allclose(found.coordinates[:3, 0], [0.28, -0.28, -0.12], rtol=1e-5)
    assert found.label[:3].tolist() == [0, 0, 1]
    assert np.isnan(found.margin[3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reach": 1.0, "resolution": 2.0}, r"resolution must be positive and at most reach, got 2\.0 and 1\.0"),
        ({"reach": 1.0, "resolution": 0.0}, "resolution must be positive"),
        ({"reach": float("nan"), "resolution": 1.0}, "resolution must be positive"),
        ({"reach": float("inf"), "resolution": 1.0}, "reach must be finite: where the label never changes, the search"),
        ({"reach": 1.0, "resolution": 0.5, "num_angles": 2}, "num_angles must be at least 3, got 2"),
    ],
)
def test_settings_of_a_scan_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Scan(**settings)


def test_a_scan_finds_what_is_nearer_than_points_without_a_label():
    """The boundary is at 0.3, logits are NaN from 0.7 on; or from 0.2 on, before it."""

    def broken(start, images):
        x = images[:, 0, 0, 0]
        return jnp.stack([0.3 - x, jnp.where(x > start, jnp.nan, 0)], axis=1)

    images = np.zeros((1, 1, 2, 1), np.float32)
    line = subspaces.from_basis(jnp.eye(2, 1), (1, 2, 1))
    for start, status, margin in ((0.7, Status.CONVERGED, 0.3), (0.2, Status.NON_FINITE, np.nan)):
        for reach in (0.6, 2.0):
            found = measure(broken, jnp.float32(start), images, line, Scan(reach=reach, resolution=0.05))
            assert found.status == status
            assert found.label == 0
            np.testing.assert_allclose(found.margin, [margin], rtol=1e-5)


def test_a_scan_is_of_a_line_or_a_plane():
    solver = Scan(reach=1.0, resolution=0.1)
    with pytest.raises(ValueError, match="Scan is for subspaces of 1 or 2 dimensions, got 24; use another solver"):
        measure(linear_logits, linear_parameters(2), images_of(1), subspaces.full(SHAPE), solver)


# Networks that are piecewise linear


def network(name="mlp", seed=0, shape=SHAPE, **options):
    mean, std = np.linspace(0.3, 0.5, shape[2]), np.linspace(0.5, 1, shape[2])
    return random_network(name, shape, seed=seed, mean=mean, std=std, **options)


def nearest_on_a_grid(classifier, image, subspace, reach, num):
    """Distance to the nearest point of a grid with another label, and the diagonal of its cells."""
    ticks = np.linspace(-reach, reach, num, dtype=np.float32)
    points = np.stack(np.meshgrid(*[ticks] * subspace.dimension), -1).reshape(-1, subspace.dimension)
    labels = labels_of(classifier, jnp.concatenate([image[None], image[None] + jax.vmap(subspace.embed)(points)]))
    distances = np.linalg.norm(points, axis=1)[labels[1:] != labels[0]]
    return distances.min(initial=np.inf), (ticks[1] - ticks[0]) * subspace.dimension**0.5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("dimension", "num"), [(1, 20_000), (2, 300), (3, 50)])
def test_piecewise_linear_margins_are_those_of_a_grid(seed, dimension, num):
    classifier, image = network(seed=seed), images_of(1, seed)[0]
    subspace = subspaces.random(jax.random.key(seed), SHAPE, dimension)
    solution = exact.piecewise_linear(classifier, image, subspace, reach=10.0)
    reach = min(1.05 * solution.margin, 10.0)
    nearest, cell = nearest_on_a_grid(classifier, image, subspace, reach, num)
    if solution.status == Status.OUT_OF_STEPS:
        assert solution.margin == 10.0
        assert nearest >= 10.0
    else:
        assert solution.status == Status.CONVERGED
        assert solution.margin - 1e-5 <= nearest
        assert nearest <= solution.margin + cell or dimension == 3
        np.testing.assert_allclose(np.linalg.norm(solution.coordinates), solution.margin, rtol=1e-12)
        logits = classifier((image + subspace.embed(jnp.asarray(solution.coordinates, jnp.float32)))[None])[0]
        assert solution.label == classifier(image[None]).argmax()
        np.testing.assert_allclose(logits[solution.adversarial_label], logits[solution.label], atol=1e-4)
        np.testing.assert_allclose(logits.max(), logits[solution.label], atol=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 0), (2, 3)])
def test_pools_are_piecewise_linear_too(noise, row, column):
    """On a flat image all members of a pool are equal, and many units switch at the same point of a line."""
    shape = (12, 12, 1)
    classifier = network("lenet", shape=shape, gain=3.0)
    image = (0.5 + noise * np.random.default_rng(1).normal(size=shape)).astype(np.float32)
    line = subspaces.dct_window(shape, row, column, size=1)
    solution = exact.piecewise_linear(classifier, image, line, reach=200.0)
    assert solution.status == Status.CONVERGED
    nearest, cell = nearest_on_a_grid(classifier, image, line, 1.05 * solution.margin, 2000)
    assert solution.margin - 1e-4 <= nearest <= solution.margin + cell  # float32, of logits


@pytest.mark.parametrize("seed", range(4))
def test_a_plane_has_the_margin_of_the_nearest_line_in_it(seed):
    classifier, image = network(seed=seed), images_of(1, seed)[0]
    plane = subspaces.random(jax.random.key(seed), SHAPE, 2)
    whole = exact.piecewise_linear(classifier, image, plane)
    first = np.arctan2(*whole.coordinates[::-1])
    margins = []
    for angle in first + np.linspace(0, np.pi, 12, endpoint=False):
        direction = basis_of(plane) @ [np.cos(angle), np.sin(angle)]
        line = subspaces.from_basis(direction[:, None].astype(np.float32), SHAPE)
        margins.append(exact.piecewise_linear(classifier, image, line).margin)
    np.testing.assert_allclose(margins[0], whole.margin, rtol=1e-5)  # a basis in float32
    assert min(margins[1:]) > whole.margin


def test_piecewise_linear_margins_of_a_linear_network_are_the_closed_form():
    classifier, images = network("logistic"), images_of(3)
    space = subspaces.full(SHAPE)
    expected = measure(lambda _, x: classifier(x), (), images, space, Linear())
    for n, image in enumerate(images):
        solution = exact.piecewise_linear(classifier, image, space)
        np.testing.assert_allclose(solution.margin, expected.margin[n], rtol=1e-5)
        assert solution.adversarial_label == expected.adversarial_label[n]
        np.testing.assert_allclose(solution.coordinates, expected.coordinates[n], atol=1e-5)


def test_8_bit_images_are_divided_by_255():
    line, center = subspaces.random(jax.random.key(0), SHAPE, 1), np.full(SHAPE, 0.5, np.float32)
    pixels = (255 * images_of(1)[0]).round().astype(np.uint8)
    floats = pixels / np.float32(255)
    found, expected = (exact.piecewise_linear(network(), image, line) for image in (pixels, floats))
    np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-5)
    found, expected = (exact.sphere(center, 3.0, image, line) for image in (pixels, floats))
    np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-5)
    assert found.label == expected.label == 0


def test_a_search_that_is_cut_short_gives_a_lower_bound():
    classifier, image = network(seed=2), images_of(1)[0]
    plane = subspaces.random(jax.random.key(2), SHAPE, 2)
    whole = exact.piecewise_linear(classifier, image, plane)
    assert whole.status == Status.CONVERGED
    assert whole.num_steps > 4
    few = exact.piecewise_linear(classifier, image, plane, max_steps=3)
    assert (few.status, few.num_steps) == (Status.OUT_OF_STEPS, 3)
    assert 0 < few.margin <= whole.margin
    assert few.adversarial_label == few.label == whole.label
    near = exact.piecewise_linear(classifier, image, plane, reach=0.9 * whole.margin)
    assert (near.status, near.margin) == (Status.OUT_OF_STEPS, 0.9 * whole.margin)
    assert exact.piecewise_linear(classifier, image, plane, reach=1.1 * whole.margin).margin == whole.margin


def test_a_network_that_sees_nothing_of_a_subspace_has_no_boundary_there():
    classifier, image = network("logistic"), images_of(1)[0]
    classifier.network.linear.kernel[...] = classifier.network.linear.kernel[...].at[0].set(0.0)
    pixel = subspaces.from_basis(np.eye(NUM_PIXELS, 1), SHAPE)
    solution = exact.piecewise_linear(classifier, image, pixel)
    assert (solution.status, solution.margin) == (Status.ZERO_GRADIENT, np.inf)


def test_an_image_that_is_not_finite_has_no_margin():
    image = images_of(1)[0]
    image[0, 0, 0] = np.inf
    solution = exact.piecewise_linear(network(), image, subspaces.full(SHAPE))
    assert (solution.status, solution.label, solution.adversarial_label) == (Status.NON_FINITE, -1, -1)
    assert np.isnan(solution.margin)


def test_arguments_of_a_search_are_checked():
    image, space = images_of(1)[0], subspaces.full(SHAPE)
    with pytest.raises(TypeError, match="named 'logistic', 'mlp' or 'lenet', made by create, load or from_torch"):
        exact.piecewise_linear(lambda images: images, image, space)
    with pytest.raises(ValueError, match="add the channel axis of a grey image"):
        exact.piecewise_linear(network(), image[..., 0], space)
    with pytest.raises(ValueError, match=r"the subspaces are for images of shape \(3, 3, 1\)"):
        exact.piecewise_linear(network(), image, subspaces.full((3, 3, 1)))
    for settings in ({"reach": 0.0}, {"reach": float("nan")}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="reach and max_steps must be positive, got"):
            exact.piecewise_linear(network(), image, space, **settings)
    with pytest.raises(ValueError, match=r"max_steps must be a whole number, got 2\.5"):
        exact.piecewise_linear(network(), image, space, max_steps=2.5)
    for several in ([space], None):
        with pytest.raises(TypeError, match=r"^subspaces? must be one subspace of hmt_jax\.subspaces"):
            exact.piecewise_linear(network(), image, several)


@pytest.mark.parametrize("seed", range(20))
def test_least_norm_points_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    num_faces, dimension = rng.integers(1, 12), rng.integers(1, 5)
    normals = rng.normal(size=(num_faces, dimension))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    offsets = rng.normal(size=num_faces) * rng.choice([1e-3, 1, 1e3])
    found = least_norm_point(normals, offsets)
    feasible = scipy.optimize.linprog(np.zeros(dimension), -normals, -offsets, bounds=(None, None))
    assert (found is not None) == (feasible.status == 0)
    if found is not None:
        scale = np.abs(offsets).max()
        assert (normals @ found >= offsets - 1e-9 * scale).all()
        best = scipy.optimize.minimize(
            lambda z: z @ z,
            feasible.x / scale,
            jac=lambda z: 2 * z,
            constraints=scipy.optimize.LinearConstraint(normals, offsets / scale),
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(np.linalg.norm(found), scale * np.linalg.norm(best.x), rtol=1e-5, atol=1e-7 * scale)
