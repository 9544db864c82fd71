"""Subspaces against SciPy's DCT and against their dense bases, one by one and in lists."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    Line,
    basis_of,
    linear_logits,
    random_basis,
    random_images,
    scipy_dct,
    scipy_inverse_dct,
    with_parameters,
)

import hmt_jax
from hmt_jax import subspaces

SHAPE = (5, 7, 2)
NUM_PIXELS = math.prod(SHAPE)

# Products of 70 numbers near 1, some of them one after the other: a few dozen roundings.
TOLERANCE = {"float32": {"rtol": 0, "atol": 5e-6}, "float64": {"rtol": 0, "atol": 1e-13}}
FLOAT64 = TOLERANCE["float64"]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Everything in a test that asks for it is computed in this precision."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PixelRow(subspaces.Subspace):
    """A subspace as a user may write one: the images that are black outside one row of pixels."""

    row: jax.Array
    image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

    def coordinates(self, image):
        return image[self.row].reshape(-1)

    def embed(self, z):
        return jnp.zeros(self.image_shape, z.dtype).at[self.row].set(z.reshape(self.image_shape[1:]))


def pixel_row(row):
    return PixelRow(jnp.asarray(row), SHAPE)


def orthonormal_columns(num_columns):
    return random_basis(NUM_PIXELS, num_columns)


complement = subspaces.orthogonal_complement

# Name: how to make it, and its dimension.
SUBSPACES = {
    "window": (lambda: subspaces.dct_window(SHAPE, row=2, column=1, size=3), 18),
    "diagonal[2]": (lambda: subspaces.dct_diagonal(SHAPE, size=3, step=1)[2], 18),
    "full": (lambda: subspaces.full(SHAPE), 70),
    "from_basis": (lambda: subspaces.from_basis(orthonormal_columns(11), SHAPE), 11),
    "one direction": (lambda: subspaces.from_basis(orthonormal_columns(1), SHAPE), 1),
    "first axes": (lambda: subspaces.from_basis(np.eye(NUM_PIXELS, 4), SHAPE), 4),
    "minus the first axes": (lambda: subspaces.from_basis(-np.eye(NUM_PIXELS, 4), SHAPE), 4),
    "random": (lambda: subspaces.random(jax.random.key(1), SHAPE, 9), 9),
    "random, large": (lambda: subspaces.random(jax.random.key(2), SHAPE, 69), 69),
    "pixel row": (lambda: pixel_row(3), 14),
}
# All but that of an author, which checks nothing that it is passed.
FROM_THE_LIBRARY = [name for name in SUBSPACES if name != "pixel row"]


def make(name):
    return SUBSPACES[name][0]()


def dense_projection(subspace):
    """The coordinates of the images with one pixel set, as columns."""
    return np.asarray(coordinates_of_pixels(subspace)).T


@jax.jit
def coordinates_of_pixels(subspace):
    return jax.vmap(subspace.coordinates)(jnp.eye(NUM_PIXELS).reshape(-1, *SHAPE))


def random_image():
    return random_images(*SHAPE)


def assert_coordinates_are_orthonormal(subspace, dtype):
    """That embed is orthonormal and coordinates its transpose; returns the basis."""
    basis = basis_of(subspace)
    assert basis.dtype == dtype
    np.testing.assert_allclose(dense_projection(subspace), basis.T, **TOLERANCE[dtype])
    np.testing.assert_allclose(basis.T @ basis, np.eye(subspace.dimension), **TOLERANCE[dtype])
    return basis


@pytest.mark.parametrize("name", SUBSPACES)
def test_subspaces_and_their_complements_have_orthonormal_coordinates(name, dtype):
    subspace = make(name)
    assert subspace.dimension == SUBSPACES[name][1]
    basis = assert_coordinates_are_orthonormal(subspace, dtype)
    if name == "full":
        return
    rest = complement(subspace)
    assert subspace.dimension + rest.dimension == NUM_PIXELS
    union = np.concatenate([basis, assert_coordinates_are_orthonormal(rest, dtype)], axis=1)
    np.testing.assert_allclose(union.T @ union, np.eye(NUM_PIXELS), **TOLERANCE[dtype])
    twice = assert_coordinates_are_orthonormal(complement(rest), dtype)
    np.testing.assert_allclose(twice @ twice.T, basis @ basis.T, **TOLERANCE[dtype])


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 4), (1, 3), (2, 0)])
def test_window_coordinates_are_the_dct_coefficients_of_the_block(row, column, x64):
    image = random_image()
    coefficients = scipy_dct(image)
    window = subspaces.dct_window(SHAPE, row, column, size=3)
    block = coefficients[row : row + 3, column : column + 3]
    np.testing.assert_allclose(window.coordinates(image), block.reshape(-1), **FLOAT64)

    only_block = np.zeros(SHAPE)
    only_block[row : row + 3, column : column + 3] = block
    np.testing.assert_allclose(window.embed(block.reshape(-1)), scipy_inverse_dct(only_block), **FLOAT64)

    # The rest of the coefficients, in whatever order.
    rest = coefficients.copy()
    rest[row : row + 3, column : column + 3] = np.nan
    rest = rest[~np.isnan(rest)]
    np.testing.assert_allclose(np.sort(complement(window).coordinates(image)), np.sort(rest), **FLOAT64)


@pytest.mark.parametrize(
    ("image_shape", "size", "step", "firsts"),
    [
        ((28, 28, 1), 8, 1, range(0, 21)),
        ((32, 32, 3), 8, 2, range(0, 25, 2)),
        ((224, 224, 3), 16, 16, range(0, 209, 16)),
        ((5, 7, 2), 3, 1, [0, 1, 2]),
        ((7, 5, 2), 2, 2, [0, 2]),
        ((4, 4, 1), 4, 3, [0]),
    ],
)
def test_the_diagonal_has_all_windows_that_fit(image_shape, size, step, firsts):
    diagonal = subspaces.dct_diagonal(image_shape, size, step)
    assert isinstance(diagonal, list)
    assert_same_windows(diagonal, [subspaces.dct_window(image_shape, first, first, size) for first in firsts])
    assert diagonal[0].dimension == size * size * image_shape[2]


def assert_same_windows(windows, expected):
    for window, wanted in zip(windows, expected, strict=True):
        chex.assert_trees_all_equal(window, wanted)
        chex.assert_trees_all_equal_shapes_and_dtypes(window, wanted)


@pytest.mark.parametrize(
    ("image_shape", "size", "step", "rows", "columns"),
    [
        ((5, 7, 2), 3, 1, [0, 1, 2], [0, 1, 2, 3, 4]),
        ((5, 7, 2), 3, 2, [0, 2], [0, 2, 4]),
        ((7, 5, 2), 2, 4, [0, 4], [0]),
        ((8, 12, 1), 4, 3, [0, 3], [0, 3, 6]),
        ((4, 4, 1), 4, 3, [0], [0]),
        ((3, 3, 3), 1, 1, [0, 1, 2], [0, 1, 2]),
    ],
)
def test_the_grid_has_all_windows_that_fit_row_by_row(image_shape, size, step, rows, columns):
    grid = subspaces.dct_grid(image_shape, size, step)
    assert isinstance(grid, list)
    expected = [subspaces.dct_window(image_shape, row, column, size) for row in rows for column in columns]
    assert_same_windows(grid, expected)
    # The next windows would leave the image.
    with pytest.raises(ValueError, match="leaves the"):
        subspaces.dct_window(image_shape, rows[-1] + step, 0, size)
    with pytest.raises(ValueError, match="leaves the"):
        subspaces.dct_window(image_shape, 0, columns[-1] + step, size)


def test_columns_of_the_basis_are_the_embedded_unit_vectors(x64):
    columns = orthonormal_columns(11)
    np.testing.assert_array_equal(basis_of(subspaces.from_basis(columns, SHAPE)), columns)


def test_whole_numbers_are_a_basis_too():
    # The images of single pixels: 3 and 0 of the flattened image.
    basis = np.zeros((NUM_PIXELS, 2), int)
    basis[3, 0] = basis[0, 1] = 1
    image = random_image().astype(np.float32)
    coordinates = subspaces.from_basis(basis, SHAPE).coordinates(image)
    np.testing.assert_array_equal(coordinates, [image.ravel()[3], image.ravel()[0]])


@pytest.mark.parametrize("kind", ["window", "complement", "span", "whole"])
def test_whole_numbers_are_coordinates_too(kind):
    window = subspaces.dct_window(SHAPE, 1, 2, 3)
    subspace = {
        "window": window,
        "complement": subspaces.orthogonal_complement(window),
        "span": subspaces.random(jax.random.key(0), SHAPE, 3),
        "whole": subspaces.full(SHAPE),
    }[kind]
    z = np.arange(subspace.dimension) % 3 + 1
    np.testing.assert_array_equal(subspace.embed(z), subspace.embed(z.astype(np.float32)))


def test_images_of_whole_numbers_have_no_coordinates():
    with pytest.raises(ValueError, match=r"image must be floating point in \[0, 1\], got uint8; divide 8-bit images"):
        subspaces.full(SHAPE).coordinates(np.ones(SHAPE, np.uint8))


def test_random_subspaces_follow_the_key():
    first, again, other = (basis_of(subspaces.random(jax.random.key(k), SHAPE, 3)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.linalg.norm(first.T @ other) < 1


def test_random_subspaces_are_uniform(x64):
    # Energy of a fixed direction in a uniform 7-dimensional subspace of 70 dimensions: Beta(3.5, 31.5), mean 0.1 and
    # deviation 0.05. The mean of 400 draws is within 4 deviations of its own, 0.01.
    direction = jnp.eye(NUM_PIXELS)[0].reshape(SHAPE)
    keys = jax.random.split(jax.random.key(0), 400)
    energy = jax.vmap(lambda key: jnp.sum(subspaces.random(key, SHAPE, 7).coordinates(direction) ** 2))(keys)
    np.testing.assert_allclose(np.mean(energy), 0.1, atol=0.01)
    np.testing.assert_allclose(np.std(energy), 0.05, atol=0.01)


# Name: subspaces of one kind, which differ in their arrays alone.
ALIKE = {
    "diagonal": lambda: subspaces.dct_diagonal(SHAPE, size=3, step=1),
    "windows": lambda: [subspaces.dct_window(SHAPE, row, column, 3) for row, column in [(2, 0), (0, 4), (1, 1)]],
    "random": lambda: [subspaces.random(jax.random.key(k), SHAPE, 4) for k in range(3)],
    "pixel rows": lambda: [pixel_row(row) for row in [4, 0, 2]],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_subspaces_of_one_kind_can_be_mapped_over(name, x64):
    image = jnp.asarray(random_image())
    for members in (ALIKE[name](), [complement(member) for member in ALIKE[name]()]):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
        z = np.arange(1.0, 1 + members[0].dimension)
        coordinates = jax.vmap(lambda single: single.coordinates(image))(stacked)
        embedded = jax.vmap(lambda single, z: single.embed(z), (0, None))(stacked, z)
        for r, member in enumerate(members):
            # Embedded numbers reach 60.
            np.testing.assert_allclose(coordinates[r], member.coordinates(image), **FLOAT64)
            np.testing.assert_allclose(embedded[r], member.embed(z), rtol=1e-12, atol=1e-12)


WEIGHTS = np.random.default_rng(1).normal(size=(NUM_PIXELS, 2)).astype(np.float32)


def measure_in(one_or_several, **settings):
    """Margins of two linear logits for two images."""
    images = random_images(2, *SHAPE, dtype="float32")
    classifier = with_parameters(linear_logits, (WEIGHTS.T, np.zeros(2, np.float32)))
    return hmt_jax.measure_margins(
        classifier, images, one_or_several, hmt_jax.solvers.DeepFool(), devices=jax.devices()[:1], **settings
    )


@pytest.mark.slow
def test_lists_of_all_kinds_are_measured_in_their_order():
    """Against the closed form of two linear logits in each dense basis."""
    members = [
        subspaces.dct_window(SHAPE, 2, 4, 3),
        pixel_row(4),
        subspaces.full(SHAPE),
        complement(subspaces.dct_window(SHAPE, 1, 0, 4)),
        subspaces.dct_window(SHAPE, 0, 0, 2),
        pixel_row(0),
        subspaces.dct_window(SHAPE, 0, 1, 3),
        make("from_basis"),
    ]
    result = measure_in(members, keep_coordinates=True)
    assert result.margin.shape == (len(members), 2)
    assert result.is_converged.all()
    logits = random_images(2, NUM_PIXELS) @ WEIGHTS
    labels, gaps = logits.argmax(1), np.abs(logits[:, 0] - logits[:, 1])
    np.testing.assert_array_equal(result.label, np.tile(labels, (len(members), 1)))
    for r, member in enumerate(members):
        assert result.coordinates[r].shape == (2, member.dimension)
        slopes = basis_of(member).T @ (WEIGHTS[:, 1] - WEIGHTS[:, 0])
        np.testing.assert_allclose(result.margin[r], 1.02 * gaps / np.linalg.norm(slopes), rtol=1e-4)
        towards = np.where(labels == 0, 1, -1)[:, None] * slopes
        expected = 1.02 * (gaps / np.sum(slopes**2))[:, None] * towards
        np.testing.assert_allclose(result.coordinates[r], expected, rtol=1e-4, atol=1e-5)


def test_lists_are_checked_whole():
    window = subspaces.dct_window(SHAPE, 0, 0, 2)
    with pytest.raises(ValueError, match="subspaces is empty"):
        measure_in([])
    with pytest.raises(ValueError, match=r"the subspaces are for images of shape \(7, 5, 2\), but images have shape"):
        measure_in([window, subspaces.dct_window((7, 5, 2), 0, 0, 2)])
    with pytest.raises(TypeError, match="coordinates and embed, got ndarray"):
        measure_in([window, np.eye(NUM_PIXELS)])


def test_kinds_of_subspaces_with_the_same_fields_share_no_compiled_code():
    """Structures that are equal are told apart by their hashes alone, which may collide."""
    window = subspaces.dct_window(SHAPE, row=2, column=1, size=3)
    span = subspaces.random(jax.random.key(0), SHAPE, dimension=4)
    for subspace in (window, span):
        assert jax.tree.structure(subspace) != jax.tree.structure(complement(subspace))
        copy = jax.tree.map(jnp.copy, subspace)
        assert jax.tree.structure(copy) == jax.tree.structure(subspace)


def test_one_compilation_serves_all_windows_of_one_size():
    num_traces = 0

    @jax.jit
    def coordinates(single, image):
        nonlocal num_traces
        num_traces += 1
        return single.coordinates(image)

    image = random_image().astype(np.float32)
    windows = [*subspaces.dct_diagonal(SHAPE, 3, 1), *subspaces.dct_grid(SHAPE, 3, 2)]
    for single in [*windows, subspaces.dct_window(SHAPE, 0, 2, 3)]:
        coordinates(single, image)
    assert num_traces == 1


LARGE = (224, 224, 3)
LARGE_IMAGE_BYTES = 4 * math.prod(LARGE)


def test_a_diagonal_of_large_images_is_kilobytes():
    diagonal = subspaces.dct_diagonal(LARGE, size=16, step=16)
    assert len(diagonal) == 14
    for members in (diagonal, [complement(window) for window in diagonal]):
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(members)) < 4096


@pytest.mark.parametrize("of", [lambda subspace: subspace, complement], ids=["window", "complement"])
def test_large_windows_work_without_a_dense_basis(of):
    subspace = of(subspaces.dct_diagonal(LARGE, size=16, step=16)[5])
    image = random_images(*LARGE, dtype="float32")
    there = jax.jit(lambda subspace, image: subspace.coordinates(image)).lower(subspace, image).compile()
    z = there(subspace, image)
    back = jax.jit(lambda subspace, z: subspace.embed(z)).lower(subspace, z).compile()
    for compiled in (there, back):
        # Intermediate products as large as the image, a few at a time; a dense basis is 768 times as large.
        assert compiled.memory_analysis().temp_size_in_bytes < 8 * LARGE_IMAGE_BYTES

    coefficients = scipy_dct(image.astype(np.float64))
    is_window = np.zeros(LARGE, bool)
    is_window[80:96, 80:96] = True
    kept = is_window if subspace.dimension == 768 else ~is_window
    projected = scipy_inverse_dct(np.where(kept, coefficients, 0))
    assert z.shape == (np.sum(kept),)
    # Coefficients reach 112, so that float32 leaves 1e-5 of them.
    np.testing.assert_allclose(np.sort(z), np.sort(coefficients[kept]), rtol=0, atol=1e-4)
    np.testing.assert_allclose(back(subspace, z), projected, rtol=0, atol=1e-5)


def test_the_complement_of_a_span_takes_the_memory_of_the_span():
    span = subspaces.random(jax.random.key(0), SHAPE, 4)
    assert [leaf.nbytes for leaf in jax.tree.leaves(complement(span))] == [span.basis.nbytes]


@pytest.mark.parametrize("image_shape", [(4, 4), (4, 4, 1, 1), (0, 4, 1)])
@pytest.mark.parametrize(
    "make_for",
    [
        lambda image_shape: subspaces.dct_window(image_shape, 0, 0, 1),
        lambda image_shape: subspaces.dct_diagonal(image_shape, 1, 1),
        lambda image_shape: subspaces.dct_grid(image_shape, 1, 1),
        subspaces.full,
        lambda image_shape: subspaces.from_basis(np.eye(4), image_shape),
        lambda image_shape: subspaces.random(jax.random.key(0), image_shape, 1),
    ],
)
def test_image_shapes_are_checked(image_shape, make_for):
    with pytest.raises(ValueError, match=r"image_shape must be \(height, width, channels\), all at least 1, got \("):
        make_for(image_shape)


@pytest.mark.parametrize("size", [0, -1, 6])
@pytest.mark.parametrize(
    "make_of",
    [
        lambda size: subspaces.dct_window(SHAPE, 0, 0, size),
        lambda size: subspaces.dct_diagonal(SHAPE, size, 1),
        lambda size: subspaces.dct_grid(SHAPE, size, 1),
    ],
    ids=["window", "diagonal", "grid"],
)
def test_window_sizes_are_checked(size, make_of):
    with pytest.raises(
        ValueError, match=rf"size must be between 1 and 5 for images of shape .* = \(5, 7, 2\), got {size}"
    ):
        make_of(size)


@pytest.mark.parametrize(
    ("argument", "make_of"),
    [
        ("row", lambda value: subspaces.dct_window(SHAPE, value, 0, 3)),
        ("column", lambda value: subspaces.dct_window(SHAPE, 0, value, 3)),
        ("size", lambda value: subspaces.dct_window(SHAPE, 0, 0, value)),
        ("size", lambda value: subspaces.dct_diagonal(SHAPE, value, 1)),
        ("step", lambda value: subspaces.dct_diagonal(SHAPE, 3, value)),
        ("size", lambda value: subspaces.dct_grid(SHAPE, value, 1)),
        ("step", lambda value: subspaces.dct_grid(SHAPE, 3, value)),
        ("dimension", lambda value: subspaces.random(jax.random.key(0), SHAPE, value)),
    ],
)
def test_frequencies_and_dimensions_are_whole_numbers(argument, make_of):
    with pytest.raises(ValueError, match=f"{argument} must be a whole number, got 1.5"):
        make_of(1.5)
    make_of(np.int64(1))


@pytest.mark.parametrize(("row", "column"), [(3, 0), (0, 5), (-1, 0), (0, -1)])
def test_windows_off_the_edge_are_refused(row, column):
    with pytest.raises(
        ValueError,
        match=f"a window of size 3 at row {row}, column {column} leaves the 5 x 7 frequencies of the image; "
        "row must be between 0 and 2, column between 0 and 4",
    ):
        subspaces.dct_window(SHAPE, row, column, 3)


@pytest.mark.parametrize("windows", [subspaces.dct_diagonal, subspaces.dct_grid])
@pytest.mark.parametrize("step", [0, -1])
def test_the_step_between_windows_is_checked(step, windows):
    with pytest.raises(ValueError, match=f"step must be at least 1, got {step}"):
        windows(SHAPE, 3, step)


@pytest.mark.parametrize("shape", [(69, 2), (70,), (70, 0), (70, 71), (70, 2, 1)])
def test_the_shape_of_a_basis_is_checked(shape):
    with pytest.raises(
        ValueError,
        match=rf"basis must have shape \(70, d\) for images of shape \(5, 7, 2\), one flattened image a column, got "
        rf"\({', '.join(map(str, shape))},?\)$",
    ):
        subspaces.from_basis(np.zeros(shape), SHAPE)


def test_a_transposed_basis_is_recognised():
    with pytest.raises(ValueError, match=r"got \(11, 70\); transpose it"):
        subspaces.from_basis(orthonormal_columns(11).T, SHAPE)


@pytest.mark.parametrize(
    ("basis", "deviation"),
    [
        (2 * orthonormal_columns(3), "3"),
        (orthonormal_columns(3) * [1, 1, 1 + 1e-4], "0.0002"),
        (orthonormal_columns(3) @ np.array([[1, 0.6, 0], [0, 0.8, 0], [0, 0, 1]]), "0.6"),
        (np.full((NUM_PIXELS, 2), np.nan), "nan"),
    ],
    ids=["long", "slightly long", "oblique", "NaN"],
)
def test_a_basis_that_is_not_orthonormal_is_refused(basis, deviation):
    with pytest.raises(
        ValueError,
        match=rf"the columns of basis must be orthonormal, but \|basis\^T basis - I\| reaches {deviation}; "
        r"np\.linalg\.qr\(basis\)\[0\] has the same span",
    ):
        subspaces.from_basis(basis, SHAPE)


def test_the_remedy_for_a_basis_that_is_not_orthonormal_works():
    columns = np.random.default_rng(0).normal(size=(NUM_PIXELS, 5)).astype(np.float32)
    assert subspaces.from_basis(np.linalg.qr(columns)[0], SHAPE).dimension == 5


@pytest.mark.parametrize("dimension", [0, -1, 71])
def test_the_dimension_of_a_random_subspace_is_checked(dimension):
    with pytest.raises(
        ValueError, match=rf"dimension must be between 1 and 70 for images of shape \(5, 7, 2\), got {dimension}"
    ):
        subspaces.random(jax.random.key(0), SHAPE, dimension)


@pytest.mark.parametrize(
    "whole",
    [
        lambda: subspaces.full(SHAPE),
        lambda: subspaces.random(jax.random.key(0), SHAPE, NUM_PIXELS),
        lambda: subspaces.dct_window((4, 4, 3), 0, 0, 4),
    ],
    ids=["full", "random", "window"],
)
def test_the_whole_space_has_no_complement(whole):
    with pytest.raises(
        ValueError, match="the subspace is the whole space: its orthogonal complement has no directions"
    ):
        complement(whole())


@pytest.mark.parametrize("name", FROM_THE_LIBRARY)
def test_shapes_of_images_and_coordinates_are_checked(name):
    subspace = make(name)
    with pytest.raises(ValueError, match=r"image must have the subspace's image_shape \(5, 7, 2\), got \(7, 5, 2\)"):
        subspace.coordinates(np.zeros((7, 5, 2), np.float32))
    dimension = subspace.dimension
    for shape in [(dimension + 1,), (dimension, 1), ()]:
        with pytest.raises(
            ValueError, match=rf"z must have shape \({dimension},\), got \({', '.join(map(str, shape))}"
        ):
            subspace.embed(np.zeros(shape, np.float32))


# Subspaces of an author's own


def test_both_methods_must_be_there():
    class OneWay(subspaces.Subspace):
        image_shape = SHAPE

        def embed(self, z):
            return z

    with pytest.raises(TypeError, match=r"abstract method '?coordinates"):
        OneWay()


@pytest.mark.parametrize("use", [subspaces.check_orthonormal, measure_in], ids=["check", "measure"])
def test_classes_that_are_no_pytrees_are_refused(use):
    class Unregistered(PixelRow):
        pass

    with pytest.raises(
        TypeError,
        match="a subspace must be a pytree, but Unregistered is not registered as one: decorate the class with "
        r"jax\.tree_util\.register_dataclass on top of dataclasses\.dataclass\(frozen=True\), image_shape static",
    ):
        use(Unregistered(jnp.asarray(2), SHAPE))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled(subspaces.Subspace):
    """The whole space, with coordinates that are not orthonormal."""

    up: jax.Array
    down: jax.Array
    image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

    def coordinates(self, image):
        return self.down * image.reshape(-1)

    def embed(self, z):
        return (self.up * z).reshape(self.image_shape)


def scaled(up, down, of=Scaled):
    return of(jnp.asarray(up), jnp.asarray(down), SHAPE)


@pytest.mark.parametrize("name", SUBSPACES)
def test_orthonormal_coordinates_pass_the_check(name):
    assert subspaces.check_orthonormal(make(name)) is None
    if name != "full":
        subspaces.check_orthonormal(complement(make(name)))


@pytest.mark.parametrize(("up", "down"), [(2.0, 2.0), (2.0, 0.5), (1.0, 1.1), (1.0, np.nan)])
def test_coordinates_that_are_not_orthonormal_are_refused(up, down):
    message = r"coordinates of Scaled are not orthonormal: .* embed must keep lengths"
    with pytest.raises(ValueError, match=message):
        subspaces.check_orthonormal(scaled(up, down))
    with pytest.raises(ValueError, match=message):
        measure_in([scaled(1.0, 1.0), scaled(up, down), scaled(1.0, 1.0)])


def test_a_single_direction_of_another_length_is_refused():
    """Though going back undoes it, and lengths of most images hardly change."""
    up = jnp.ones(NUM_PIXELS).at[17].set(1.1)
    with pytest.raises(ValueError, match=r"coordinates of Scaled are not orthonormal: .* its transpo"):
        subspaces.check_orthonormal(scaled(up, 1 / up))
    subspaces.check_orthonormal(scaled(up**0, up**0))


def test_the_check_takes_the_image_shape_of_what_has_none():
    direction = orthonormal_columns(1).reshape(SHAPE).astype(np.float32)
    with pytest.raises(ValueError, match=r"Line has no image_shape: pass image_shape=\(height, width, channels\)"):
        subspaces.check_orthonormal(Line(direction))
    assert subspaces.check_orthonormal(Line(direction), SHAPE) is None
    with pytest.raises(ValueError, match="coordinates of Line are not orthonormal"):
        subspaces.check_orthonormal(Line(2 * direction), SHAPE)


def derived(**methods):
    """A registered class like `Scaled` but for the methods given."""
    return jax.tree_util.register_dataclass(type("Derived", (Scaled,), methods), ["up", "down"], ["image_shape"])


@pytest.mark.parametrize("use", [subspaces.check_orthonormal, measure_in], ids=["check", "measure"])
def test_shapes_of_what_the_methods_return_are_checked(use):
    flat, rows = derived(embed=lambda self, z: z), derived(coordinates=lambda self, image: image)
    with pytest.raises(ValueError, match=r"embed of Derived must return an image of shape \(5, 7, 2\), got \(70,\)"):
        use(scaled(1.0, 1.0, flat))
    with pytest.raises(ValueError, match=r"coordinates of Derived must return one vector .* shape \(5, 7, 2\)"):
        use(scaled(1.0, 1.0, rows))
    nothing = {name: derived(**{name: lambda self, array: None}) for name in ("embed", "coordinates")}
    with pytest.raises(ValueError, match=r"embed of Derived must return an image of shape .*, got NoneType$"):
        use(scaled(1.0, 1.0, nothing["embed"]))
    with pytest.raises(ValueError, match=r"coordinates of Derived must return one vector \(dimension,\), got NoneType"):
        use(scaled(1.0, 1.0, nothing["coordinates"]))


@pytest.mark.parametrize("use", [subspaces.check_orthonormal, measure_in], ids=["check", "measure"])
def test_an_image_shape_among_the_arrays_is_refused(use):
    class Loose(Scaled):
        pass

    loose = jax.tree_util.register_dataclass(Loose, ["up", "down", "image_shape"], [])
    with pytest.raises(TypeError, match="image_shape of Loose must be static, and not an array: declare it as"):
        use(scaled(1.0, 1.0, loose))


def test_several_subspaces_in_one_are_refused():
    windows = subspaces.dct_diagonal(SHAPE, size=2, step=1)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *windows)
    for use in (measure_in, lambda stacked: stacked.coordinates(jnp.zeros(SHAPE)), lambda stacked: stacked.dimension):
        with pytest.raises(ValueError, match="this DCTWindow is several, stacked along a leading axis: pass a list"):
            use(stacked)
    found = jax.vmap(lambda window: window.coordinates(jnp.ones(SHAPE)))(stacked)
    np.testing.assert_allclose(found, [window.coordinates(jnp.ones(SHAPE)) for window in windows], atol=1e-6)


def test_an_embedding_with_an_offset_is_refused():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Offset(subspaces.Subspace):
        image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

        def coordinates(self, image):
            return image[0].reshape(-1)

        def embed(self, z):
            row = z.reshape(1, *self.image_shape[1:])
            return jnp.pad(row, ((0, self.image_shape[0] - 1), (0, 0), (0, 0)), constant_values=0.1)

    with pytest.raises(ValueError, match=r"embed of Offset must be linear, but embed\(0\) has an entry of 0\.1"):
        subspaces.check_orthonormal(Offset(SHAPE))
