"""Projections against closed forms, the inequality that defines them, and quadratic programs solved by SciPy."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.optimize

from hmt_jax import frequency, projections, subspaces

SHAPE = (4, 5, 1)
NUM_PIXELS = 20
RADIUS = 0.8

# A few dozen float64 roundings of numbers near 1.
FLOAT64 = {"rtol": 0, "atol": 1e-13}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def scipy_flip(images):
    coefficients = scipy.fft.dctn(images, axes=(-3, -2), norm="ortho")[..., ::-1, ::-1, :]
    return scipy.fft.idctn(coefficients, axes=(-3, -2), norm="ortho")


def basis(dimension=7):
    return np.linalg.qr(np.random.default_rng(5).normal(size=(NUM_PIXELS, dimension)))[0]


SUBSPACE = partial(subspaces.from_basis, basis(), SHAPE)
# In the box, and flipped back in the box; some of its pixels are black and some white.
CENTER = np.clip(np.random.default_rng(1).uniform(-0.3, 1.3, size=SHAPE), 0, 1)

# Name: the projection, and its closed form in NumPy.
CLOSED_FORMS = {
    "l2_ball": (
        lambda x: projections.l2_ball(x, CENTER, RADIUS),
        lambda x: CENTER + (x - CENTER) * min(1, RADIUS / np.linalg.norm(x - CENTER)),
    ),
    "linf_ball": (
        lambda x: projections.linf_ball(x, CENTER, RADIUS),
        lambda x: CENTER + np.minimum(np.abs(x - CENTER), RADIUS) * np.sign(x - CENTER),
    ),
    "box": (projections.box, lambda x: np.clip(x, 0, 1)),
    "other box": (lambda x: projections.box(x, -0.5, 0.25), lambda x: np.clip(x, -0.5, 0.25)),
    "flipped_box": (projections.flipped_box, lambda x: scipy_flip(np.clip(scipy_flip(x), 0, 1))),
    "affine": (
        lambda x: projections.affine(x, CENTER, SUBSPACE()),
        lambda x: CENTER + (basis() @ (basis().T @ (x - CENTER).ravel())).reshape(SHAPE),
    ),
}


def far_points(num_points=6, seed=2):
    return np.random.default_rng(seed).normal(size=(num_points, *SHAPE))


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms(name):
    project, closed_form = CLOSED_FORMS[name]
    points = far_points()
    for point in (*points, CENTER + 0.01 * points[0], 0.5 + 0.01 * points[1]):
        np.testing.assert_allclose(project(point), closed_form(point), **FLOAT64)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_mapping_and_compiling_change_nothing(name):
    project, closed_form = CLOSED_FORMS[name]
    points = far_points()
    expected = np.stack([closed_form(point) for point in points])
    np.testing.assert_allclose(jax.jit(jax.vmap(project))(points), expected, **FLOAT64)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_points_of_the_set_stay(name):
    project, _ = CLOSED_FORMS[name]
    point = project(far_points()[0])
    np.testing.assert_allclose(project(point), point, **FLOAT64)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 4, 2, 2)])
def test_points_of_any_shape(shape):
    point = np.full(shape, 2.0)
    np.testing.assert_allclose(projections.box(point), np.ones(shape))
    np.testing.assert_allclose(projections.linf_ball(point, np.zeros(shape), 0.5), np.full(shape, 0.5))
    on_sphere = projections.l2_ball(point, np.zeros(shape), 0.5)
    np.testing.assert_allclose(np.linalg.norm(np.ravel(on_sphere)), 0.5, **FLOAT64)


@pytest.mark.parametrize("radius", [0.0, RADIUS])
@pytest.mark.parametrize("ball", [projections.l2_ball, projections.linf_ball])
def test_gradients_at_the_centre_are_finite(ball, radius):
    value, gradient = jax.value_and_grad(lambda x: ball(x, CENTER, radius).sum())(jnp.asarray(CENTER))
    np.testing.assert_allclose(value, CENTER.sum(), rtol=1e-14)
    assert np.isfinite(gradient).all()


def test_float32_stays_float32():
    point, center = (array.astype(np.float32) for array in (far_points()[0], CENTER))
    sets = [
        partial(projections.l2_ball, center=center, radius=RADIUS),
        partial(projections.linf_ball, center=center, radius=RADIUS),
        projections.box,
        projections.flipped_box,
        partial(projections.affine, center=center, subspace=SUBSPACE()),
    ]
    for project in sets:
        assert project(jnp.asarray(point)).dtype == np.float32
    assert projections.dykstra(point, sets, 2).dtype == np.float32


BALL = partial(projections.l2_ball, center=CENTER, radius=RADIUS)
FLIPPED_CENTER = scipy_flip(CENTER)

# Name: the projections, the centre that lies in all sets, and the sets as constraints of SciPy.
CUBE = scipy.optimize.Bounds(0, 1)


def ball_constraint(center):
    return {
        "type": "ineq",
        "fun": lambda x: RADIUS**2 - np.sum((x - center.ravel()) ** 2),
        "jac": lambda x: -2 * (x - center.ravel()),
    }


def linear_constraint(kind, matrix, offset):
    return {"type": kind, "fun": lambda x: matrix @ x + offset, "jac": lambda x: matrix}


def flip_matrix():
    return np.stack([scipy_flip(unit.reshape(SHAPE)).ravel() for unit in np.eye(NUM_PIXELS)], axis=1)


def complement_basis():
    return np.linalg.qr(basis(), mode="complete")[0][:, 7:]


INTERSECTIONS = {
    "ball, box": (
        [BALL, projections.box],
        CENTER,
        {"bounds": CUBE, "constraints": [ball_constraint(CENTER)]},
    ),
    "ball, flipped box": (
        [partial(projections.l2_ball, center=FLIPPED_CENTER, radius=RADIUS), projections.flipped_box],
        FLIPPED_CENTER,
        {
            "constraints": [
                ball_constraint(FLIPPED_CENTER),
                linear_constraint("ineq", flip_matrix(), np.zeros(NUM_PIXELS)),
                linear_constraint("ineq", -flip_matrix(), np.ones(NUM_PIXELS)),
            ]
        },
    ),
    # About an inner point: around the other one, the subspace leaves the box in all directions.
    "ball, box, affine": (
        [
            partial(projections.l2_ball, center=np.full(SHAPE, 0.6), radius=RADIUS),
            projections.box,
            lambda x: projections.affine(x, np.full(SHAPE, 0.6), SUBSPACE()),
        ],
        np.full(SHAPE, 0.6),
        {
            "bounds": CUBE,
            "constraints": [
                ball_constraint(np.full(SHAPE, 0.6)),
                linear_constraint("eq", complement_basis().T, -complement_basis().T @ np.full(NUM_PIXELS, 0.6)),
            ],
        },
    ),
}


@pytest.mark.parametrize("name", INTERSECTIONS)
def test_dykstra_solves_the_quadratic_program(name):
    sets, center, program = INTERSECTIONS[name]
    points = center + far_points()
    found = jax.jit(jax.vmap(lambda x: projections.dykstra(x, sets, 1000)))(points)
    for point, nearest in zip(points, found, strict=True):
        target = point.ravel()
        solution = scipy.optimize.minimize(
            lambda x, target=target: np.sum((x - target) ** 2) / 2,
            center.ravel(),
            jac=lambda x, target=target: x - target,
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
            **program,
        )
        assert solution.status in (0, 8)  # 8: the line search finds nothing better in float64
        # Objectives near 10 tell points apart to sqrt(10 * 1e-16).
        np.testing.assert_allclose(np.ravel(nearest), solution.x, rtol=0, atol=2e-7)


def half_spaces(num_points=12):
    """Points with black and white pixels, normals with zeros, and distances: the last third can't be reached."""
    rng = np.random.default_rng(8)
    points = np.clip(rng.uniform(-0.5, 1.5, size=(num_points, 6)), 0, 1)
    normals = rng.normal(size=(num_points, 6)) * (rng.uniform(size=(num_points, 6)) < 0.8)
    farthest = np.where(normals > 0, 1, np.where(normals < 0, 0, points))
    gaps = np.sum(normals * (farthest - points), axis=1) * np.repeat([0.2, 0.9, 1.5], num_points // 3)
    return points, normals, gaps, farthest


def test_the_nearest_point_of_box_and_half_space_solves_the_quadratic_program():
    points, normals, gaps, farthest = half_spaces()
    multiples = jax.jit(jax.vmap(projections.multiple_to_half_space))(points, normals, gaps)
    found = projections.box(points + np.asarray(multiples)[:, None] * normals)
    np.testing.assert_allclose(found[8:], farthest[8:], **FLOAT64)
    for point, normal, gap, nearest in zip(points[:8], normals, gaps, found, strict=False):
        solution = scipy.optimize.minimize(
            lambda x, point=point: np.sum((x - point) ** 2) / 2,
            point,
            jac=lambda x, point=point: x - point,
            method="SLSQP",
            bounds=scipy.optimize.Bounds(0, 1),  # which is changed
            constraints=[linear_constraint("ineq", normal[None], -normal @ point - gap)],
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        assert solution.status in (0, 8)
        np.testing.assert_allclose(nearest, solution.x, rtol=0, atol=2e-7)  # as below
    without_box = projections.multiple_to_half_space(points[0], normals[0], 3.0, -np.inf, np.inf)
    np.testing.assert_allclose(without_box, 3 / np.sum(normals[0] ** 2))


def test_the_sphere_is_reached_within_the_box_or_else_its_corner():
    points, normals, _, farthest = half_spaces()
    for radius in (0.1, 0.6):
        multiples = jax.jit(jax.vmap(projections.multiple_to_sphere, (0, 0, None)))(points, normals, radius)
        found = projections.box(points + np.asarray(multiples)[:, None] * normals)
        is_corner = np.linalg.norm(farthest - points, axis=1) < radius
        np.testing.assert_allclose(np.linalg.norm(found - points, axis=1)[~is_corner], radius, **FLOAT64)
        np.testing.assert_allclose(found[is_corner], farthest[is_corner], **FLOAT64)


@pytest.mark.parametrize("name", INTERSECTIONS)
def test_dykstra_is_in_every_set_and_no_farther_than_alternating_projections(name):
    sets, center, _ = INTERSECTIONS[name]

    @jax.jit
    @jax.vmap
    def compare(point):
        nearest = projections.dykstra(point, sets, 1000)
        alternating = jax.lax.fori_loop(0, 1000, lambda _, x: functools.reduce(lambda x, p: p(x), sets, x), point)
        outside = jnp.stack([jnp.linalg.norm((project(nearest) - nearest).ravel()) for project in sets])
        return outside, *(jnp.linalg.norm((x - point).ravel()) for x in (nearest, alternating))

    outside, distances, other_distances = map(np.asarray, compare(center + far_points(20, seed=3)))
    assert outside.max() < 1e-5
    assert (distances < other_distances + 1e-6).all()
    assert (distances < other_distances - 1e-3).any()


def test_dykstra_of_a_point_in_all_sets_is_the_point():
    for sets, center, _ in INTERSECTIONS.values():
        np.testing.assert_allclose(projections.dykstra(center, sets, 5), center, **FLOAT64)


def test_dykstra_has_finite_gradients():
    sets, center, _ = INTERSECTIONS["ball, box"]
    for point in (center, center + far_points()[0]):
        gradient = jax.grad(lambda x: projections.dykstra(x, sets, 5).sum())(jnp.asarray(point))
        assert np.isfinite(gradient).all()


def test_bad_arguments_of_dykstra():
    with pytest.raises(ValueError, match="projections is empty: pass at least one function from point to point"):
        projections.dykstra(CENTER, [], 1)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        projections.dykstra(CENTER, [projections.box], 0)


def test_whole_numbers_are_projected_as_floating_point():
    lower, upper = (lambda x: projections.box(x, 0.0, 0.5)), (lambda x: projections.box(x, 0.25, 1.0))
    found = projections.dykstra(jnp.array([3, -2]), [lower, upper], 5)
    np.testing.assert_allclose(found, [0.5, 0.25])


def test_points_of_the_flipped_box_stay_to_the_last_bit():
    inside = frequency.flip(np.random.default_rng(0).uniform(0.1, 0.9, (4, 5, 2)).astype(np.float32))
    np.testing.assert_array_equal(projections.flipped_box(inside), inside)


def test_lengths_beyond_half_precision():
    """270,000 ones have a length of 520, whose square is beyond float16, where the greatest number is 65,504."""
    point = projections.l2_ball(jnp.ones((300, 300, 3), jnp.float16), 0, 100.0)
    assert np.linalg.norm(np.asarray(point, float)) == pytest.approx(100, rel=1e-3)
