"""Subspaces against SciPy's DCT and against their dense bases."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

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

    @property
    def num_stacked(self):
        return None if self.row.ndim == 0 else len(self.row)

    def _project(self, image):
        return image[self.row].reshape(-1)

    def _lift(self, z):
        return jnp.zeros(self.image_shape, z.dtype).at[self.row].set(z.reshape(self.image_shape[1:]))


def pixel_row(row):
    return PixelRow(jnp.asarray(row), SHAPE)


def orthonormal_columns(num_columns, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(NUM_PIXELS, num_columns)))[0]


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
PROPER = [name for name in SUBSPACES if name != "full"]


def make(name):
    """A subspace by name; "complement of" goes before a name any number of times."""
    if name.startswith("complement of "):
        return complement(make(name.removeprefix("complement of ")))
    return SUBSPACES[name][0]()


def dense_basis(subspace):
    """The images of the unit vectors as columns."""
    return np.asarray(jax.vmap(subspace.embed)(jnp.eye(subspace.dimension))).reshape(-1, NUM_PIXELS).T


def dense_projection(subspace):
    """The coordinates of the images with one pixel set, as columns."""
    return np.asarray(jax.vmap(subspace.coordinates)(jnp.eye(NUM_PIXELS).reshape(-1, *SHAPE))).T


def random_image(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).uniform(size=shape)


@pytest.mark.parametrize(
    "name",
    [
        *SUBSPACES,
        *(f"complement of {name}" for name in PROPER),
        *(f"complement of complement of {name}" for name in ("window", "random", "pixel row")),
    ],
)
def test_embed_is_orthonormal_and_the_transpose_of_coordinates(name, dtype):
    subspace = make(name)
    basis = dense_basis(subspace)
    assert basis.dtype == dtype
    np.testing.assert_allclose(dense_projection(subspace), basis.T, **TOLERANCE[dtype])
    np.testing.assert_allclose(basis.T @ basis, np.eye(subspace.dimension), **TOLERANCE[dtype])


@pytest.mark.parametrize("name", SUBSPACES)
def test_dimension(name):
    assert make(name).dimension == SUBSPACES[name][1]


@pytest.mark.parametrize("name", PROPER)
def test_a_subspace_and_its_complement_make_up_the_whole_space(name, dtype):
    subspace = make(name)
    rest = complement(subspace)
    assert subspace.dimension + rest.dimension == NUM_PIXELS
    union = np.concatenate([dense_basis(subspace), dense_basis(rest)], axis=1)
    np.testing.assert_allclose(union.T @ union, np.eye(NUM_PIXELS), **TOLERANCE[dtype])


@pytest.mark.parametrize("name", PROPER)
def test_the_complement_of_the_complement_has_the_same_span(name, x64):
    basis, twice = dense_basis(make(name)), dense_basis(complement(complement(make(name))))
    np.testing.assert_allclose(twice @ twice.T, basis @ basis.T, **FLOAT64)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 4), (1, 3), (2, 0)])
def test_window_coordinates_are_the_dct_coefficients_of_the_block(row, column, x64):
    image = random_image()
    coefficients = scipy.fft.dctn(image, axes=(0, 1), norm="ortho")
    window = subspaces.dct_window(SHAPE, row, column, size=3)
    block = coefficients[row : row + 3, column : column + 3]
    np.testing.assert_allclose(window.coordinates(image), block.reshape(-1), **FLOAT64)

    only_block = np.zeros(SHAPE)
    only_block[row : row + 3, column : column + 3] = block
    expected = scipy.fft.idctn(only_block, axes=(0, 1), norm="ortho")
    np.testing.assert_allclose(window.embed(block.reshape(-1)), expected, **FLOAT64)

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
    assert len(diagonal) == len(firsts)
    assert diagonal.dimension == size * size * image_shape[2]
    for single, first in zip(diagonal, firsts, strict=True):
        assert single.corner.tolist() == [first, first]


def test_columns_of_the_basis_are_the_embedded_unit_vectors(x64):
    columns = orthonormal_columns(11)
    np.testing.assert_array_equal(dense_basis(subspaces.from_basis(columns, SHAPE)), columns)


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
    first, again, other = (dense_basis(subspaces.random(jax.random.key(k), SHAPE, 3)) for k in (0, 0, 1))
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


STACKS = {
    "diagonal": lambda: subspaces.dct_diagonal(SHAPE, size=3, step=1),
    "windows": lambda: subspaces.stack(
        subspaces.dct_window(SHAPE, row, column, 3) for row, column in [(2, 0), (0, 4), (1, 1)]
    ),
    "random": lambda: subspaces.stack(subspaces.random(jax.random.key(k), SHAPE, 4) for k in range(3)),
    "pixel rows": lambda: subspaces.stack(map(pixel_row, [4, 0, 2])),
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("of", [lambda stack: stack, complement], ids=["itself", "complement"])
def test_mapping_over_a_stack_is_indexing_it(name, of, x64):
    stack = of(STACKS[name]())
    assert len(stack) == 3
    image, z = random_image(), np.arange(1.0, 1 + stack.dimension)
    coordinates = jax.vmap(lambda single: single.coordinates(image))(stack)
    embedded = jax.vmap(lambda single: single.embed(z))(stack)
    assert coordinates.shape == (3, stack.dimension)
    for index in (0, 1, 2, -1):
        # Embedded numbers reach 60.
        np.testing.assert_allclose(coordinates[index], stack[index].coordinates(image), **FLOAT64)
        np.testing.assert_allclose(embedded[index], stack[index].embed(z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STACKS)
def test_the_complement_of_a_stack_is_the_stack_of_complements(name, x64):
    stack = STACKS[name]()
    for single, rest in zip(stack, complement(stack), strict=True):
        union = np.concatenate([dense_basis(single), dense_basis(rest)], axis=1)
        np.testing.assert_allclose(union.T @ union, np.eye(NUM_PIXELS), **FLOAT64)


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("index", [slice(None, None, 2), slice(-1, None, -1), slice(1, 2)], ids=str)
def test_a_slice_of_a_stack_is_the_stack_of_its_members(name, index, x64):
    stack, image = STACKS[name](), random_image()
    members = list(stack)[index]
    assert len(stack[index]) == len(members)
    for single, expected in zip(stack[index], members, strict=True):
        np.testing.assert_array_equal(single.coordinates(image), expected.coordinates(image))


def test_a_slice_without_members_is_refused():
    with pytest.raises(IndexError, match=r"slice\(2, 2, None\) takes none of a stack of 3 subspaces"):
        STACKS["diagonal"]()[2:2]


def test_members_of_a_stack_keep_their_order(x64):
    image = random_image()
    stack = subspaces.stack([pixel_row(4), pixel_row(0)])
    np.testing.assert_array_equal(stack[0].coordinates(image), image[4].ravel())
    np.testing.assert_array_equal(stack[1].coordinates(image), image[0].ravel())


def test_kinds_of_subspaces_with_the_same_fields_share_no_compiled_code():
    """Structures that are equal are told apart by their hashes alone, which may collide."""
    window = subspaces.dct_window(SHAPE, row=2, column=1, size=3)
    span = subspaces.random(jax.random.key(0), SHAPE, dimension=4)
    for subspace in (window, span):
        assert jax.tree.structure(subspace) != jax.tree.structure(complement(subspace))
        copy = jax.tree.map(jnp.copy, subspace)
        assert jax.tree.structure(copy) == jax.tree.structure(subspace)


def test_one_compilation_serves_a_whole_stack():
    num_traces = 0

    @jax.jit
    def coordinates(single, image):
        nonlocal num_traces
        num_traces += 1
        return single.coordinates(image)

    image = random_image().astype(np.float32)
    for single in [*subspaces.dct_diagonal(SHAPE, 3, 1), subspaces.dct_window(SHAPE, 0, 2, 3)]:
        coordinates(single, image)
    assert num_traces == 1


LARGE = (224, 224, 3)
LARGE_IMAGE_BYTES = 4 * math.prod(LARGE)


def test_a_diagonal_of_large_images_is_kilobytes():
    diagonal = subspaces.dct_diagonal(LARGE, size=16, step=16)
    assert len(diagonal) == 14
    for stack in (diagonal, complement(diagonal)):
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(stack)) < 4096


@pytest.mark.parametrize("of", [lambda subspace: subspace, complement], ids=["window", "complement"])
def test_large_windows_work_without_a_dense_basis(of):
    subspace = of(subspaces.dct_diagonal(LARGE, size=16, step=16)[5])
    image = random_image(shape=LARGE).astype(np.float32)
    there = jax.jit(lambda subspace, image: subspace.coordinates(image)).lower(subspace, image).compile()
    z = there(subspace, image)
    back = jax.jit(lambda subspace, z: subspace.embed(z)).lower(subspace, z).compile()
    for compiled in (there, back):
        # Intermediate products as large as the image, a few at a time; a dense basis is 768 times as large.
        assert compiled.memory_analysis().temp_size_in_bytes < 8 * LARGE_IMAGE_BYTES

    coefficients = scipy.fft.dctn(image.astype(np.float64), axes=(0, 1), norm="ortho")
    is_window = np.zeros(LARGE, bool)
    is_window[80:96, 80:96] = True
    kept = is_window if subspace.dimension == 768 else ~is_window
    projected = scipy.fft.idctn(np.where(kept, coefficients, 0), axes=(0, 1), norm="ortho")
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
    [lambda size: subspaces.dct_window(SHAPE, 0, 0, size), lambda size: subspaces.dct_diagonal(SHAPE, size, 1)],
    ids=["window", "diagonal"],
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


@pytest.mark.parametrize("step", [0, -1])
def test_the_step_of_the_diagonal_is_checked(step):
    with pytest.raises(ValueError, match=f"step must be at least 1, got {step}"):
        subspaces.dct_diagonal(SHAPE, 3, step)


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
        lambda: subspaces.stack([subspaces.dct_window((4, 4, 3), 0, 0, 4)]),
    ],
    ids=["full", "random", "window", "stack"],
)
def test_the_whole_space_has_no_complement(whole):
    with pytest.raises(
        ValueError, match="the subspace is the whole space: its orthogonal complement has no directions"
    ):
        complement(whole())


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_must_be_indexed(name):
    stack = STACKS[name]()
    message = r"this is a stack of 3 subspaces: index it, or map over it with jax\.vmap"
    with pytest.raises(ValueError, match=message):
        stack.coordinates(np.zeros(SHAPE, np.float32))
    with pytest.raises(ValueError, match=message):
        stack.embed(np.zeros(stack.dimension, np.float32))


@pytest.mark.parametrize("index", [3, -4])
def test_indices_are_checked(index):
    with pytest.raises(IndexError, match=f"index {index} is out of range for a stack of 3 subspaces"):
        STACKS["diagonal"]()[index]


@pytest.mark.parametrize("name", SUBSPACES)
def test_a_single_subspace_has_no_length_and_no_members(name):
    message = r"a single subspace has no length; stack several with hmt_jax\.subspaces\.stack"
    with pytest.raises(TypeError, match=message):
        len(make(name))
    with pytest.raises(TypeError, match=message):
        make(name)[0]


@pytest.mark.parametrize("name", SUBSPACES)
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


@pytest.mark.parametrize(
    "members",
    [
        lambda: [make("window"), make("random")],
        lambda: [make("window"), make("complement of window")],
        lambda: [subspaces.dct_window(SHAPE, 0, 0, 2), subspaces.dct_window(SHAPE, 0, 0, 3)],
        lambda: [subspaces.dct_window(SHAPE, 0, 0, 2), subspaces.dct_window((7, 5, 2), 0, 0, 2)],
        lambda: [subspaces.random(jax.random.key(0), SHAPE, 3), subspaces.random(jax.random.key(0), SHAPE, 4)],
        lambda: [make("full"), make("full")],
        lambda: [STACKS["diagonal"](), STACKS["windows"]()],
    ],
    ids=["kinds", "complement", "sizes", "image shapes", "dimensions", "whole spaces", "stacks"],
)
def test_only_subspaces_alike_can_be_stacked(members):
    with pytest.raises(
        ValueError,
        match="only single subspaces of one kind, image shape and dimension, such as several DCT windows of one size, "
        "can be stacked; measure the others in calls of their own",
    ):
        subspaces.stack(members())


@pytest.mark.parametrize(
    "use", [lambda subspace: subspaces.stack([subspace]), lambda subspace: subspace[0]], ids=["stack", "index"]
)
def test_classes_that_are_no_pytrees_are_refused(use):
    class Unregistered(PixelRow):
        pass

    with pytest.raises(
        TypeError,
        match="a subspace must be a pytree, but Unregistered is not registered as one: decorate the class with "
        r"jax\.tree_util\.register_dataclass on top of dataclasses\.dataclass\(frozen=True\), image_shape static",
    ):
        use(Unregistered(jnp.arange(2), SHAPE))


def test_a_stack_of_nothing_is_refused():
    with pytest.raises(ValueError, match="subspaces is empty: give at least one subspace to stack"):
        subspaces.stack([])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled(subspaces.Subspace):
    """The whole space, with coordinates that are not orthonormal."""

    up: jax.Array
    down: jax.Array
    image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

    @property
    def num_stacked(self):
        return None if self.up.ndim == 0 else len(self.up)

    def _project(self, image):
        return self.down * image.reshape(-1)

    def _lift(self, z):
        return (self.up * z).reshape(self.image_shape)


def measure_in(subspace):
    images = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype(np.float32)
    return hmt_jax.measure_margins(lambda images: images.reshape(len(images), -1)[:, :2], images, subspace)


@pytest.mark.parametrize(("up", "down"), [(2.0, 2.0), (2.0, 0.5), (1.0, 1.1), (1.0, np.nan)])
def test_coordinates_that_are_not_orthonormal_are_refused(up, down):
    with pytest.raises(ValueError, match=r"coordinates of Scaled are not orthonormal: .* embed must keep lengths"):
        measure_in(Scaled(jnp.asarray(up), jnp.asarray(down), SHAPE))
    several = (jnp.array([value, 1.0, factor]) for value, factor in ((1.0, up), (1.0, down)))
    with pytest.raises(ValueError, match=r"coordinates of Scaled are not orthonormal: .* embed must keep lengths"):
        measure_in(Scaled(*several, SHAPE))
    expected = measure_in(subspaces.full(SHAPE)).margin
    np.testing.assert_allclose(
        measure_in(Scaled(jnp.asarray(1.0), jnp.asarray(1.0), SHAPE)).margin, expected, rtol=1e-5
    )


def test_a_single_direction_of_another_length_is_refused():
    """Though going back undoes it, and lengths of most images hardly change."""

    class Stretched(Scaled):
        num_stacked = None

    stretched = jax.tree_util.register_dataclass(Stretched, ["up", "down"], ["image_shape"])
    up = jnp.ones(NUM_PIXELS).at[17].set(1.1)
    with pytest.raises(ValueError, match=r"coordinates of Stretched are not orthonormal: .* and then its transpo"):
        measure_in(stretched(up, 1 / up, SHAPE))


@pytest.mark.parametrize("index", [[0, 1], np.array([0, 1]), None, True, 1.0])
def test_a_stack_is_indexed_by_numbers_and_slices(index):
    with pytest.raises(TypeError, match="a stack is indexed by a whole number or a slice, got "):
        STACKS["diagonal"]()[index]


def test_an_image_of_another_shape_is_told():
    class Flat(Scaled):
        def _lift(self, z):
            return z

    flat = jax.tree_util.register_dataclass(Flat, ["up", "down"], ["image_shape"])(jnp.ones(()), jnp.ones(()), SHAPE)
    with pytest.raises(ValueError, match=r"_lift of Flat must give an image of shape \(5, 7, 2\), got \(70,\)"):
        flat.embed(np.zeros(70, np.float32))


def test_an_image_shape_among_the_arrays_is_told():
    class Loose(Scaled):
        pass

    loose = jax.tree_util.register_dataclass(Loose, ["up", "down", "image_shape"], [])(
        jnp.ones(()), jnp.ones(()), SHAPE
    )
    with pytest.raises(TypeError, match="image_shape of Loose must be static, and not an array: declare it as"):
        measure_in(loose)
