"""The interface of a subspace, and checks of subspaces."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp
import numpy as np

from hmt_jax._checks import ImageShape, as_array, check_floating

# Rounding in half precision: of a relative length, and of a coordinate that is 1 or -1.
_LENGTH_TOLERANCE, _COORDINATE_TOLERANCE = 1e-2, 5e-2
STATIC = {"static": True}


class Subspace(abc.ABC):
    """Base class of the library's subspaces, and of your own.

    A subclass is a pytree, such as a frozen dataclass under `jax.tree_util.register_dataclass`, with a static
    `image_shape` and two methods, each the transpose of the other. Subspaces of one class should differ only in arrays,
    so that they share compiled code. Here the subspaces are the colours of an image:

    >>> @jax.tree_util.register_dataclass
    ... @dataclasses.dataclass(frozen=True)
    ... class Channel(Subspace):
    ...     channel: jax.Array  # a whole number, ()
    ...     image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})
    ...     def coordinates(self, image):
    ...         return image[:, :, self.channel].reshape(-1)
    ...     def embed(self, z):
    ...         blank = jnp.zeros(self.image_shape, z.dtype)
    ...         return blank.at[:, :, self.channel].set(z.reshape(self.image_shape[:2]))
    >>> colours = [Channel(jnp.asarray(channel), (32, 32, 3)) for channel in range(3)]
    >>> for colour in colours:
    ...     check_orthonormal(colour)
    >>> colours[0].dimension, colours[0].embed(jnp.ones(1024)).shape
    (1024, (32, 32, 3))
    """

    image_shape: ImageShape
    #: Whether coordinates are orthonormal by construction. If not, they are checked when the subspace is used.
    is_orthonormal: ClassVar[bool] = False

    @abc.abstractmethod
    def coordinates(self, image: jax.Array) -> jax.Array:
        """Coordinates (dimension,) of the orthogonal projection of an image (height, width, channels)."""

    @abc.abstractmethod
    def embed(self, z: jax.Array) -> jax.Array:
        """The image (height, width, channels) with coordinates z (dimension,)."""

    @property
    def dimension(self) -> int:
        """The dimension of the subspace: the number of its coordinates."""
        return dimension_of(self, self.image_shape)


class Checked(Subspace):
    """Base class of the library's subspaces. They check their arguments, and are orthonormal by construction."""

    is_orthonormal: ClassVar[bool] = True
    #: The number of axes of each array of a single subspace, if it has that array.
    num_axes: ClassVar[dict[str, int]] = {}

    def check_is_single(self) -> None:
        """Raises ValueError for several subspaces stacked in one, as `jax.vmap` maps over them."""
        arrays = ((getattr(self, name), number) for name, number in self.num_axes.items())
        if any(array is not None and np.ndim(array) != number for array, number in arrays):
            raise ValueError(
                f"this {type(self).__name__} is several, stacked along a leading axis: pass a list of single "
                "subspaces, or map over it with jax.vmap"
            )

    @abc.abstractmethod
    def _project(self, image: jax.Array) -> jax.Array:
        """Coordinates of an image whose shape has been checked."""

    @abc.abstractmethod
    def _lift(self, z: jax.Array) -> jax.Array:
        """The image of coordinates whose shape has been checked."""

    @property
    @final
    def dimension(self) -> int:
        self.check_is_single()
        return jax.eval_shape(self._project, jax.ShapeDtypeStruct(self.image_shape, jnp.float32)).shape[0]

    @final
    def coordinates(self, image: jax.Array) -> jax.Array:
        self.check_is_single()
        image = jnp.asarray(as_array("image", image))
        if image.shape != self.image_shape:
            raise ValueError(f"image must have the subspace's image_shape {self.image_shape}, got {image.shape}")
        check_floating("image", image)
        return self._project(image)

    @final
    def embed(self, z: jax.Array) -> jax.Array:
        z = jnp.asarray(as_array("z", z))
        z = z.astype(jnp.result_type(z, 1.0))  # converts whole numbers
        if z.shape != (self.dimension,):
            raise ValueError(f"z must have shape ({self.dimension},), got {z.shape}")
        return self._lift(z)


def pytree(cls: type) -> type:
    """The dataclass, registered as a pytree whose structure no other class has.

    With `jax.tree_util.register_dataclass`, classes with the same fields have equal structures. Jitted functions then
    tell a span from its complement only by hash, and confuse them if hashes collide.
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


def dimension_of(subspace: Any, image_shape: ImageShape) -> int:
    """The number of coordinates that an object with `coordinates` returns for an image of this shape."""
    return jax.eval_shape(subspace.coordinates, jax.ShapeDtypeStruct(image_shape, jnp.float32)).shape[0]


def basis_of(subspace: Any) -> np.ndarray:
    """An orthonormal basis of a subspace as columns (D, dimension), in float64."""
    images = jax.jit(jax.vmap(subspace.embed))(jnp.eye(subspace.dimension))
    return np.asarray(images, np.float64).reshape(subspace.dimension, -1).T


def as_list(subspaces: Any, image_shape: ImageShape) -> list[Any]:
    """The subspaces, or a single one, as a list that has been checked for images of this shape.

    Raises:
      TypeError: for anything else, and for classes that are not registered as pytrees.
      ValueError: for an empty list, subspaces for images of another shape, or coordinates that are not orthonormal.
    """
    is_one = hasattr(subspaces, "coordinates") and hasattr(subspaces, "embed")
    if not is_one and (isinstance(subspaces, str | dict | set | frozenset) or not hasattr(subspaces, "__iter__")):
        raise TypeError(
            f"subspaces must be one subspace of hmt_jax.subspaces or a list of them, got {type(subspaces).__name__}"
        )
    members = [subspaces] if is_one else list(subspaces)
    if not members:
        raise ValueError("subspaces is empty: pass at least one subspace")
    for member in members:
        if not (hasattr(member, "coordinates") and hasattr(member, "embed")) or isinstance(member, type):
            raise TypeError(
                f"every one of the subspaces must have methods coordinates and embed, got {type(member).__name__}"
            )
        check_fits(member, image_shape)
    # Subspaces of one structure share the compiled check.
    for member in members:
        if not getattr(type(member), "is_orthonormal", False):
            check_orthonormal(member, image_shape)
    return members


def check_single(subspace: Any, image_shape: ImageShape) -> None:
    """Raises unless this is one subspace for images of this shape, with orthonormal coordinates."""
    check_fits(subspace, image_shape)
    as_list(subspace, image_shape)


def check_fits(subspace: Any, image_shape: Sequence[int]) -> None:
    """Raises unless this is one subspace for images of this shape, registered as a pytree."""
    if not (hasattr(subspace, "coordinates") and hasattr(subspace, "embed")):
        raise TypeError(f"subspace must be one subspace of hmt_jax.subspaces, got {type(subspace).__name__}")
    _check_is_pytree(subspace)
    if isinstance(subspace, Checked):
        subspace.check_is_single()
    own = tuple(getattr(subspace, "image_shape", image_shape))
    if own != tuple(image_shape):
        is_channels_first = (*image_shape[1:], image_shape[0]) == own
        remedy = "pass images.transpose(0, 2, 3, 1)" if is_channels_first else "make the subspaces for that shape"
        raise ValueError(
            f"the subspaces are for images of shape {own}, but images have shape {tuple(image_shape)} after the batch "
            f"axis; {remedy}"
        )


def check_orthonormal(subspace: Any, image_shape: ImageShape | None = None) -> None:
    """None if the coordinates of a subspace are orthonormal, as far as one random vector z shows.

    z has entries 1 and -1. From the image `embed(z)`, both the transpose of `embed` and `coordinates` must return z.

    Args:
      subspace: a subspace, or any pytree with `coordinates` and `embed`.
      image_shape: (height, width, channels); the subspace's `image_shape` if not given.

    Raises:
      ValueError: if one of them does not return z, or if shapes do not fit.
      TypeError: if the class of the subspace is not registered as a pytree.

    >>> from hmt_jax import subspaces
    >>> check_orthonormal(subspaces.dct_window((8, 8, 3), row=2, column=0, size=4))
    """
    _check_is_pytree(subspace)
    name = type(subspace).__name__
    shape = getattr(subspace, "image_shape", None) if image_shape is None else image_shape
    if shape is None:
        raise ValueError(f"{name} has no image_shape: pass image_shape=(height, width, channels)")
    coordinates = jax.eval_shape(subspace.coordinates, jax.ShapeDtypeStruct(tuple(shape), jnp.float32))
    if not hasattr(coordinates, "shape") or len(coordinates.shape) != 1:
        found = f"shape {coordinates.shape}" if hasattr(coordinates, "shape") else type(coordinates).__name__
        raise ValueError(
            f"coordinates of {name} must return one vector (dimension,), got {found}: flatten it with reshape(-1)"
        )
    z = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), coordinates.shape)
    image = jax.eval_shape(subspace.embed, z)
    if (found := getattr(image, "shape", type(image).__name__)) != tuple(shape):
        raise ValueError(f"embed of {name} must return an image of shape {tuple(shape)}, got {found}")
    at_zero, deviations = _deviations(subspace, z)
    if not at_zero <= _COORDINATE_TOLERANCE:
        raise ValueError(f"embed of {name} must be linear, but embed(0) has an entry of {at_zero:.2g}: it must be 0")
    for back, (length, greatest) in deviations.items():
        # Written so that NaN fails, too.
        if length <= _LENGTH_TOLERANCE * z.size**0.5 and greatest <= _COORDINATE_TOLERANCE:
            continue
        raise ValueError(
            f"coordinates of {name} are not orthonormal: for z of 1s and -1s, embed followed by {back} returns "
            f"coordinates that differ from z by up to {greatest:.2g}; embed must keep lengths and angles, and "
            "coordinates must be its transpose"
        )


@jax.jit
def _deviations(subspace, z):
    """The greatest entry of embed(0), and for both ways back from the image of z, the difference from z.

    The difference is a length and a greatest entry.
    """
    image, pull_back = jax.vjp(subspace.embed, z)
    ways = {"its transpose": pull_back(image)[0], "coordinates": subspace.coordinates(image)}
    differences = {back: (jnp.sqrt(jnp.sum((x - z) ** 2)), jnp.max(jnp.abs(x - z))) for back, x in ways.items()}
    return jnp.max(jnp.abs(subspace.embed(jnp.zeros_like(z)))), differences


def _check_is_pytree(subspace) -> None:
    """Raises TypeError unless the class of the subspace is registered as a pytree with a static `image_shape`."""
    name = type(subspace).__name__
    if jax.tree_util.all_leaves([subspace]):
        raise TypeError(
            f"a subspace must be a pytree, but {name} is not registered as one: decorate the class with "
            "jax.tree_util.register_dataclass on top of dataclasses.dataclass(frozen=True), image_shape static"
        )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(subspace)]
    if any(path and path[0] == jax.tree_util.GetAttrKey("image_shape") for path in paths):
        raise TypeError(
            f"image_shape of {name} must be static, and not an array: declare it as image_shape: "
            'tuple[int, int, int] = dataclasses.field(metadata={"static": True})'
        )
