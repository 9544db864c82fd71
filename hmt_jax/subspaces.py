"""Linear subspaces of image space, with orthonormal coordinates.

A subspace is a pytree with two methods for one image of shape (height, width, channels), each the transpose of the
other: `coordinates(image) -> z` of shape (dimension,) projects orthogonally, and `embed(z) -> image` goes back.
`coordinates(embed(z))` is z, and the L2 norm of z is the L2 norm of `embed(z)`, in pixels over all channels.

Subspaces of one kind and dimension can be *stacked*: a stack is the same pytree with a leading axis on every array.
`len(stack)` counts its subspaces, `stack[i]` is one of them, `stack[i:j]` a stack of some, and `jax.vmap` maps over it.
What tells members of a stack apart is data, so that a function compiled for one of them serves all.
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax import _checks
from hmt_jax._checks import ImageShape
from hmt_jax._numbers import as_array, check_key, whole_number
from hmt_jax.frequency import dct_matrix

# Products inside a subspace decide how orthonormal it is; on accelerators the default precision may be bfloat16.
_PRECISION = jax.lax.Precision.HIGHEST
# Largest entry of |S^T S - I| that `from_basis` accepts: ten times what a float32 QR leaves at ImageNet's size.
_ORTHONORMALITY_TOLERANCE = 1e-5


class Subspace(abc.ABC):
    """Base of the subspaces below, and of your own.

    A subclass is a pytree (a frozen dataclass under `jax.tree_util.register_dataclass`, say) with a static
    `image_shape`, and gives `num_stacked`, `_project` and `_lift`. Here the subspaces are the colours, stacked:

    >>> @jax.tree_util.register_dataclass
    ... @dataclasses.dataclass(frozen=True)
    ... class Channel(Subspace):
    ...     channel: jax.Array  # a whole number, () or stacked (R,)
    ...     image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})
    ...     @property
    ...     def num_stacked(self):
    ...         return None if self.channel.ndim == 0 else len(self.channel)
    ...     def _project(self, image):
    ...         return image[:, :, self.channel].reshape(-1)
    ...     def _lift(self, z):
    ...         blank = jnp.zeros(self.image_shape, z.dtype)
    ...         return blank.at[:, :, self.channel].set(z.reshape(self.image_shape[:2]))
    >>> colours = Channel(jnp.arange(3), (32, 32, 3))
    >>> len(colours), colours.dimension, colours[0].embed(jnp.ones(1024)).shape
    (3, 1024, (32, 32, 3))
    """

    image_shape: ImageShape

    @property
    @abc.abstractmethod
    def num_stacked(self) -> int | None:
        """How many subspaces are stacked here; None for a single one."""

    @abc.abstractmethod
    def _project(self, image: jax.Array) -> jax.Array:
        """Coordinates of one image whose shape has been checked."""

    @abc.abstractmethod
    def _lift(self, z: jax.Array) -> jax.Array:
        """Image of one vector of coordinates; the transpose of `_project`."""

    @property
    def dimension(self) -> int:
        """Dimension of the subspace (of each one, in a stack)."""
        single = self if self.num_stacked is None else self[0]
        return jax.eval_shape(single._project, jax.ShapeDtypeStruct(self.image_shape, jnp.float32)).shape[0]

    def coordinates(self, image: jax.Array) -> jax.Array:
        """Coordinates (dimension,) of the orthogonal projection of an image of shape `image_shape`."""
        self._check_single()
        image = jnp.asarray(as_array("image", image))
        if image.shape != self.image_shape:
            raise ValueError(f"image must have the subspace's image_shape {self.image_shape}, got {image.shape}")
        _checks.check_floating("image", image)
        return self._project(image)

    def embed(self, z: jax.Array) -> jax.Array:
        """The image of shape `image_shape` with coordinates z of shape (dimension,)."""
        self._check_single()
        z = jnp.asarray(as_array("z", z))
        z = z.astype(jnp.result_type(z, 1.0))  # whole numbers, too
        if z.shape != (self.dimension,):
            raise ValueError(f"z must have shape ({self.dimension},), got {z.shape}")
        image = self._lift(z)
        if image.shape != self.image_shape:
            raise ValueError(
                f"_lift of {type(self).__name__} must give an image of shape {self.image_shape}, got {image.shape}"
            )
        return image

    def __len__(self) -> int:
        if self.num_stacked is None:
            raise TypeError("a single subspace has no length; stack several with hmt_jax.subspaces.stack")
        return self.num_stacked

    def __getitem__(self, index: int | slice):
        _checks.check_is_pytree(self)
        if isinstance(index, slice):
            if not range(len(self))[index]:
                raise IndexError(f"{index} takes none of a stack of {len(self)} subspaces")
        elif isinstance(index, bool) or not hasattr(index, "__index__") or np.ndim(index):
            raise TypeError(f"a stack is indexed by a whole number or a slice, got {index!r}")
        elif not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for a stack of {len(self)} subspaces")
        return jax.tree.map(lambda leaf: leaf[index], self)

    def _check_single(self):
        if self.num_stacked is not None:
            raise ValueError(f"this is a stack of {self.num_stacked} subspaces: index it, or map over it with jax.vmap")


_STATIC = {"static": True}


def _pytree(cls):
    """Registers a dataclass as a pytree with the structure of no other class.

    Those of `jax.tree_util.register_dataclass` are equal for all classes with the same fields. Jitted functions then
    tell a span from its complement by hash alone, and mistake one for the other where hashes collide.
    """
    is_static = {field.name: field.metadata.get("static", False) for field in dataclasses.fields(cls)}
    leaf_names = [name for name in is_static if not is_static[name]]
    static_names = [name for name in is_static if is_static[name]]

    def flatten_with_keys(subspace):
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(subspace, name)) for name in leaf_names]
        return leaves, tuple(getattr(subspace, name) for name in static_names)

    def unflatten(static, leaves):
        return cls(**dict(zip(leaf_names, leaves, strict=True)), **dict(zip(static_names, static, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls


class _Frequencies(Subspace):
    """What the window and its complement share: two small matrix products per channel, with rolled DCT matrices."""

    size: int
    corner: jax.Array

    @property
    def num_stacked(self) -> int | None:
        return None if self.corner.ndim == 1 else self.corner.shape[0]

    def _rolled_dct(self, axis: int, dtype) -> jax.Array:
        """The DCT matrix of an image axis with the window's first frequency moved to row 0."""
        matrix = jnp.asarray(dct_matrix(self.image_shape[axis]), dtype)
        return jnp.roll(matrix, -self.corner[axis], axis=0)


@_pytree
@dataclasses.dataclass(frozen=True, eq=False)
class DCTWindow(_Frequencies):
    """A square block of DCT frequencies, all channels at once. Made by `dct_window` and `dct_diagonal`."""

    corner: jax.Array  # first row and column of the block: integers, (2,) or stacked (R, 2)
    size: int = dataclasses.field(metadata=_STATIC)
    image_shape: ImageShape = dataclasses.field(metadata=_STATIC)

    def _rows(self, axis, dtype):
        return self._rolled_dct(axis, dtype)[: self.size]

    def _project(self, image):
        rows, columns = self._rows(0, image.dtype), self._rows(1, image.dtype)
        return jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision=_PRECISION).reshape(-1)

    def _lift(self, z):
        rows, columns = self._rows(0, z.dtype), self._rows(1, z.dtype)
        block = z.reshape(self.size, self.size, self.image_shape[2])
        return jnp.einsum("ih,ijc,jw->hwc", rows, block, columns, precision=_PRECISION)


@_pytree
@dataclasses.dataclass(frozen=True, eq=False)
class DCTWindowComplement(_Frequencies):
    """All DCT frequencies but those of a window. Made by `orthogonal_complement`."""

    corner: jax.Array  # as in DCTWindow
    size: int = dataclasses.field(metadata=_STATIC)
    image_shape: ImageShape = dataclasses.field(metadata=_STATIC)

    def _kept(self) -> np.ndarray:
        """Flat positions outside the window, in a coefficient array rolled so that the window is its first block."""
        height, width, _ = self.image_shape
        is_inside = np.outer(np.arange(height) < self.size, np.arange(width) < self.size)
        return np.flatnonzero(~is_inside)

    def _project(self, image):
        rows, columns = self._rolled_dct(0, image.dtype), self._rolled_dct(1, image.dtype)
        coefficients = jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision=_PRECISION)
        return coefficients.reshape(-1, self.image_shape[2])[self._kept()].reshape(-1)

    def _lift(self, z):
        rows, columns = self._rolled_dct(0, z.dtype), self._rolled_dct(1, z.dtype)
        height, width, channels = self.image_shape
        coefficients = jnp.zeros((height * width, channels), z.dtype).at[self._kept()].set(z.reshape(-1, channels))
        coefficients = coefficients.reshape(self.image_shape)
        return jnp.einsum("ih,ijc,jw->hwc", rows, coefficients, columns, precision=_PRECISION)


@_pytree
@dataclasses.dataclass(frozen=True, eq=False)
class WholeSpace(Subspace):
    """All of image space; the coordinates are the pixels. Made by `full`."""

    image_shape: ImageShape = dataclasses.field(metadata=_STATIC)

    @property
    def num_stacked(self) -> int | None:
        return None

    def _project(self, image):
        return image.reshape(-1)

    def _lift(self, z):
        return z.reshape(self.image_shape)


@_pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Span(Subspace):
    """The span of orthonormal columns. Made by `from_basis` and `random`."""

    basis: jax.Array  # (D, dimension) or stacked (R, D, dimension), D = height * width * channels
    image_shape: ImageShape = dataclasses.field(metadata=_STATIC)

    @property
    def num_stacked(self) -> int | None:
        return None if self.basis.ndim == 2 else self.basis.shape[0]

    def _project(self, image):
        return jnp.matmul(self.basis.astype(image.dtype).T, image.reshape(-1), precision=_PRECISION)

    def _lift(self, z):
        return jnp.matmul(self.basis.astype(z.dtype), z, precision=_PRECISION).reshape(self.image_shape)


@_pytree
@dataclasses.dataclass(frozen=True, eq=False)
class SpanComplement(Subspace):
    """The orthogonal complement of a span, in as much memory as the span itself. Made by `orthogonal_complement`.

    The block reflector H = I - 2 P P^T (Schreiber and Parlett, 1988) maps the span onto the first d axes, so its last
    D - d columns are an orthonormal basis of the complement, which is never formed.
    """

    reflector: jax.Array  # P, (D, d) or stacked (R, D, d), orthonormal columns
    image_shape: ImageShape = dataclasses.field(metadata=_STATIC)

    @property
    def num_stacked(self) -> int | None:
        return None if self.reflector.ndim == 2 else self.reflector.shape[0]

    def _reflect(self, vector):
        p = self.reflector.astype(vector.dtype)
        return vector - 2 * jnp.matmul(p, jnp.matmul(p.T, vector, precision=_PRECISION), precision=_PRECISION)

    def _project(self, image):
        return self._reflect(image.reshape(-1))[self.reflector.shape[-1] :]

    def _lift(self, z):
        return self._reflect(jnp.pad(z, (self.reflector.shape[-1], 0))).reshape(self.image_shape)


def dct_window(image_shape: ImageShape, row: int, column: int, size: int) -> DCTWindow:
    """The subspace of the DCT frequencies [row, row + size) x [column, column + size), for all channels at once.

    Args:
      image_shape: (height, width, channels) of the images.
      row: first vertical frequency of the window.
      column: first horizontal frequency of the window.
      size: frequencies along each side; the dimension is size * size * channels.

    Raises:
      ValueError: if the window does not lie within the height x width frequencies of the image.

    >>> window = dct_window((28, 28, 1), row=3, column=5, size=8)
    >>> window.dimension
    64
    """
    image_shape = _checks.check_image_shape(image_shape)
    height, width, _ = image_shape
    row, column = whole_number("row", row), whole_number("column", column)
    size = _check_window_size(image_shape, size)
    if not (0 <= row <= height - size and 0 <= column <= width - size):
        raise ValueError(
            f"a window of size {size} at row {row}, column {column} leaves the {height} x {width} frequencies of the "
            f"image; row must be between 0 and {height - size}, column between 0 and {width - size}"
        )
    return DCTWindow(jnp.asarray([row, column], jnp.int32), size, image_shape)


def dct_diagonal(image_shape: ImageShape, size: int, step: int) -> DCTWindow:
    """The windows at (0, 0), (step, step), (2 step, 2 step), ... that fit into the image, stacked from low to high.

    The paper takes size 8 and step 1 for MNIST (21 windows), 8 and 2 for CIFAR-10 (13), and 16 and 16 for
    ImageNet (14).

    Raises:
      ValueError: if size is not between 1 and the shorter side of the image, or step is below 1.

    >>> diagonal = dct_diagonal((28, 28, 1), size=8, step=1)
    >>> len(diagonal), diagonal[20].corner.tolist()
    (21, [20, 20])
    """
    image_shape = _checks.check_image_shape(image_shape)
    size, step = _check_window_size(image_shape, size), whole_number("step", step)
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    corners = jnp.arange(0, min(image_shape[:2]) - size + 1, step, dtype=jnp.int32)
    return DCTWindow(jnp.stack([corners, corners], axis=1), size, image_shape)


def full(image_shape: ImageShape) -> WholeSpace:
    """The whole space of images: margins in it are the ordinary minimal L2 perturbations."""
    return WholeSpace(_checks.check_image_shape(image_shape))


def from_basis(basis: jax.Array, image_shape: ImageShape) -> Span:
    """The span of the columns of `basis`, which must be orthonormal.

    Args:
      basis: (D, d) with D = height * width * channels: each column an image, flattened.
      image_shape: (height, width, channels) of the images.

    Raises:
      ValueError: if the shape does not fit, or an entry of |basis^T basis - I| is above 1e-5.
    """
    image_shape = _checks.check_image_shape(image_shape)
    num_pixels = math.prod(image_shape)
    columns = np.asarray(as_array("basis", basis))
    if columns.ndim != 2 or columns.shape[0] != num_pixels or not 1 <= columns.shape[1] <= num_pixels:
        remedy = "; transpose it" if columns.ndim == 2 and columns.shape[1] == num_pixels else ""
        raise ValueError(
            f"basis must have shape ({num_pixels}, d) for images of shape {image_shape}, one flattened image a column, "
            f"got {columns.shape}{remedy}"
        )
    if not np.issubdtype(columns.dtype, np.floating):
        columns = columns.astype(np.float32)
    deviation = np.max(np.abs(columns.T @ columns - np.eye(columns.shape[1])))
    if not deviation <= _ORTHONORMALITY_TOLERANCE:
        raise ValueError(
            f"the columns of basis must be orthonormal, but |basis^T basis - I| reaches {deviation:.2g}; "
            "np.linalg.qr(basis)[0] has the same span"
        )
    return Span(jnp.asarray(columns), image_shape)


def random(key: jax.Array, image_shape: ImageShape, dimension: int) -> Span:
    """A subspace of the given dimension, drawn uniformly (the span of Gaussian vectors).

    Raises:
      ValueError: if dimension is not between 1 and height * width * channels.
    """
    check_key(key)
    image_shape = _checks.check_image_shape(image_shape)
    num_pixels = math.prod(image_shape)
    dimension = whole_number("dimension", dimension)
    if not 1 <= dimension <= num_pixels:
        raise ValueError(
            f"dimension must be between 1 and {num_pixels} for images of shape {image_shape}, got {dimension}"
        )
    gaussian = jax.random.normal(key, (num_pixels, dimension))
    return Span(jnp.linalg.qr(gaussian)[0], image_shape)


def orthogonal_complement(subspace: Subspace) -> Subspace:
    """All directions orthogonal to a subspace (to each one of a stack), with orthonormal coordinates of their own.

    Complements of DCT windows are as matrix-free as the windows; those of spans take the memory of the span. The
    complement of a complement is the subspace again. For subspaces of your own, the basis is formed.

    Raises:
      ValueError: if nothing is left, as for the whole space.

    >>> rest = orthogonal_complement(dct_window((28, 28, 1), row=0, column=0, size=8))
    >>> rest.dimension
    720
    """
    if subspace.dimension == math.prod(subspace.image_shape):
        raise ValueError("the subspace is the whole space: its orthogonal complement has no directions")
    match subspace:
        case DCTWindow():
            return DCTWindowComplement(subspace.corner, subspace.size, subspace.image_shape)
        case DCTWindowComplement():
            return DCTWindow(subspace.corner, subspace.size, subspace.image_shape)
        case SpanComplement(reflector=p):
            first_axes = jnp.eye(p.shape[-2], p.shape[-1], dtype=p.dtype)
            head = jnp.swapaxes(p[..., : p.shape[-1], :], -1, -2)
            return Span(first_axes - 2 * jnp.matmul(p, head, precision=_PRECISION), subspace.image_shape)
        case Span(basis=basis):
            return SpanComplement(_reflector(basis), subspace.image_shape)
        case _:
            return orthogonal_complement(_as_span(subspace))


def stack(subspaces) -> Subspace:
    """Stacks single subspaces of one kind, image shape and dimension along a new leading axis.

    Raises:
      ValueError: if there are none, or they differ in more than their data; measure such ones in calls of their own.
    """
    subspaces = list(subspaces)
    if not subspaces:
        raise ValueError("subspaces is empty: give at least one subspace to stack")
    for subspace in subspaces:
        _checks.check_is_pytree(subspace)
    layouts = {(jax.tree.structure(s), tuple(leaf.shape for leaf in jax.tree.leaves(s))) for s in subspaces}
    if len(layouts) > 1 or not jax.tree.leaves(subspaces[0]) or subspaces[0].num_stacked is not None:
        raise ValueError(
            "only single subspaces of one kind, image shape and dimension, such as several DCT windows of one size, "
            "can be stacked; measure the others in calls of their own"
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *subspaces)


def _reflector(basis: jax.Array) -> jax.Array:
    """P with orthonormal columns such that I - 2 P P^T maps the span of an orthonormal basis onto the first axes.

    With basis = (S1; S2) and S1 = U diag(s) V^T, the reflector along Y = basis + (U V^T; 0) does it; Y^T Y =
    2 V (I + diag(s)) V^T is well conditioned because s >= 0. On the host, in float64: the result decides the
    orthonormality of every later product.
    """
    columns = np.asarray(basis, np.float64)
    dimension = columns.shape[-1]
    u, s, vt = np.linalg.svd(columns[..., :dimension, :])
    y = columns.copy()
    y[..., :dimension, :] += u @ vt
    return jnp.asarray(y @ np.swapaxes(vt, -1, -2) / np.sqrt(2 * (1 + s))[..., None, :], basis.dtype)


def _as_span(subspace: Subspace) -> Span:
    """Any subspace as the span of its formed basis."""

    def basis(single):
        images = jax.vmap(single.embed)(jnp.eye(subspace.dimension))
        return images.reshape(subspace.dimension, -1).T

    return Span(basis(subspace) if subspace.num_stacked is None else jax.vmap(basis)(subspace), subspace.image_shape)


def _check_window_size(image_shape, size):
    size, largest = whole_number("size", size), min(image_shape[:2])
    if not 1 <= size <= largest:
        raise ValueError(
            f"size must be between 1 and {largest} for images of shape (height, width, channels) = {image_shape}, got "
            f"{size}"
        )
    return size
