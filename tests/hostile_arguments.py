"""Arguments of `measure_margins` and `measure_to_store` as no caller should pass them, and odd ones that are right."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from helpers import linear_logits, linear_parameters, random_images, with_parameters
from linear_cases import Source

from hmt_jax import solvers, subspaces

SHAPE, NUM_CLASSES = (5, 4, 2), 5
IMAGES = random_images(3, *SHAPE, dtype="float32")
WHOLE = subspaces.full(SHAPE)
CLASSIFIER = with_parameters(linear_logits, linear_parameters(NUM_CLASSES, 40), jnp.float32)


class OwnError(Exception):
    """An error of the caller's own code."""


def fail(*_, **__):
    raise OwnError("the caller's own error")


# Images that are right: each must have the margins of the images in its first few places.


class _Array:
    """An array that is no NumPy array."""

    def __init__(self, content):
        self.content = content

    def __array__(self, dtype=None, copy=None):
        return self.content() if callable(self.content) else np.asarray(self.content, dtype)


def _read_only():
    images = IMAGES.copy()
    images.flags.writeable = False
    return images


def _strided():
    images = np.zeros((6, 5, 4, 4), np.float32)
    images[::-2, :, ::-1, ::2] = IMAGES
    return images[::-2, :, ::-1, ::2]


def _ending(number):
    """A stream that ends after some batches, with empty ones between."""
    for n in range(number):
        yield IMAGES[n : n + 1]
        yield IMAGES[:0]


RIGHT_IMAGES = {
    "another byte order": lambda: IMAGES.astype(">f4"),
    "read-only": _read_only,
    "strided": _strided,
    "Fortran's order": lambda: np.asfortranarray(IMAGES),
    "a masked array without masked entries": lambda: np.ma.masked_array(IMAGES),
    "lists of numbers": lambda: IMAGES.tolist(),
    "a tuple of images": lambda: tuple(IMAGES),
    "a list of batches": lambda: [IMAGES[:2], IMAGES[2:]],
    "a list of pairs": lambda: [(IMAGES[:2], [0, 1]), (IMAGES[2:], [2])],
    "an array of JAX": lambda: jnp.asarray(IMAGES),
    "an object with __array__": lambda: _Array(IMAGES),
    "a source of pairs": lambda: Source([(image, 3) for image in IMAGES]),
    "a source that is shorter than it could be": lambda: Source(IMAGES[:2]),
    "a source of other byte order": lambda: Source(IMAGES.astype(">f4")),
    "a stream that ends early": lambda: _ending(2),
    "longer numbers": lambda: IMAGES.astype(np.longdouble),
    "float64": lambda: IMAGES.astype(np.float64),
}


# Images that are wrong


def _mixed(rng, one, other):
    images = [one] * int(rng.integers(1, 20)) + [other]
    return [images[n] for n in rng.permutation(len(images))]


def _stream(rng, bad):
    """A stream with one bad batch after some good ones."""
    for _ in range(rng.integers(3)):
        yield IMAGES[:2]
    yield bad() if callable(bad) else bad


class _Lying(Source):
    def __init__(self, images, length):
        super().__init__(images)
        self.length = length

    def __len__(self):
        return self.length() if callable(self.length) else self.length

    def __getitem__(self, number):
        return self.images[number] if number < len(self.images) else fail()


_DTYPES = ("O", "U3", "S3", "c8", "c16", "?", "i8", "u2", "M8[s]", "m8[s]", "V4", [("red", "f4"), ("blue", "f4")])
_NO_IMAGES = (None, 3, 2.5, "images", b"images", {}, {"image": IMAGES}, set(), object(), print, int, pathlib.Path("x"))
_NO_BATCHES = (None, 3, "batch", {}, IMAGES[0], IMAGES[None], IMAGES[:, :4], IMAGES.astype("c8"), (IMAGES, IMAGES), ())
_NO_SAMPLES = (None, 3, "image", {}, IMAGES, IMAGES[0, 0], IMAGES[0, :4], IMAGES[0].astype("O"), IMAGES[0] > 0.5)


def _choose(rng, items):
    return items[rng.integers(len(items))]


def _with_dtype(rng):
    dtype = np.dtype(_choose(rng, _DTYPES))
    return np.zeros(IMAGES.shape, dtype)


def _with_rank(rng):
    return np.zeros(tuple(rng.integers(1, 4, _choose(rng, [0, 1, 2, 3, 5, 6, 9]))), np.float32)


def _zero_sized(rng):
    shape = np.array(IMAGES.shape)
    shape[rng.integers(4)] = 0
    return np.zeros(tuple(shape), _choose(rng, ["f4", "u1", "O"]))


WRONG_IMAGES = {
    "of a wrong type": _with_dtype,
    "of a wrong rank": _with_rank,
    "zero-sized": _zero_sized,
    "masked": lambda rng: np.ma.masked_array(IMAGES, rng.uniform(size=IMAGES.shape) < 0.5),
    "ragged": lambda rng: _mixed(rng, IMAGES[0], IMAGES[0, :4]),
    "ragged lists": lambda rng: _mixed(rng, IMAGES[0].tolist(), IMAGES[0, :4].tolist()),
    "a list with something else": lambda rng: _mixed(rng, IMAGES[0], _choose(rng, [None, "image", {}, object(), []])),
    "no images": lambda rng: _choose(rng, _NO_IMAGES),
    "an object whose __array__ is wrong": lambda rng: _Array(_choose(rng, ["text", [None], {}, [[1], [1, 2]], fail])),
    "a stream with a wrong batch": lambda rng: _stream(rng, _choose(rng, (*_NO_BATCHES, fail))),
    "an empty stream": lambda rng: iter([IMAGES[:0]] * int(rng.integers(3))),
    "a source with a wrong image": lambda rng: Source(_mixed(rng, IMAGES[0], _choose(rng, _NO_SAMPLES))),
    "a source of something else": lambda rng: Source([_choose(rng, _NO_SAMPLES)]),
    "a source that raises": lambda rng: _Lying(IMAGES[: rng.integers(3)], int(rng.integers(4, 40))),
    "a source of a wrong length": lambda rng: _Lying(IMAGES, _choose(rng, [-1, 0, "three", 2.5, None, fail])),
}


# Classifiers that are wrong


def _returning(result):
    return jax.tree_util.Partial(lambda images: result(linear_logits_of(images)))


def linear_logits_of(images):
    return CLASSIFIER(images)


_LONG = "a line that says much, " * 100
_RESULTS = (
    lambda logits: None,
    lambda logits: (logits, logits),
    lambda logits: [logits],
    lambda logits: {"logits": logits},
    lambda logits: "logits",
    lambda logits: 3.0,
    lambda logits: np.zeros((7, 5)),
    lambda logits: logits[0],
    lambda logits: logits.T,
    lambda logits: logits[..., None],
    lambda logits: logits[:, :1],
    lambda logits: logits[:, :0],
    lambda logits: logits.argmax(1),
    lambda logits: logits.astype(int),
    lambda logits: logits > 0,
    lambda logits: logits.astype(complex),
    lambda logits: logits * jnp.nan,
    lambda logits: logits + jnp.inf,
    lambda logits: logits - jnp.inf,
    lambda logits: jnp.where(logits.max() > 0, logits, 0) if logits.max() > 0 else logits,
    lambda logits: float(logits[0, 0]) * logits,
    lambda logits: np.asarray(logits) * 2,
    lambda logits: fail(),
    lambda logits: (_ for _ in ()).throw(ValueError(_LONG)),
    lambda logits: (_ for _ in ()).throw(ValueError("first line\nsecond line\nthird line")),
    lambda logits: (_ for _ in ()).throw(TypeError("")),
    lambda logits: logits @ jnp.ones((3, 3)),
    lambda logits: logits.reshape(17, 23),
    lambda logits: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1.0, logits),
)
_NO_CLASSIFIERS = (
    None,
    3,
    "lenet",
    IMAGES,
    {},
    [],
    object(),
    lambda: 0,
    lambda images, key: images,
    lambda *, images: 0,
)


class Unregistered:
    """A subspace that is no pytree."""

    def coordinates(self, image):
        return image.reshape(-1)

    def embed(self, z):
        return z.reshape(SHAPE)


def _odd(number):
    """A subspace, registered as a pytree, whose methods are wrong."""
    made = dataclasses.make_dataclass("Made", [], bases=(_Odd,), frozen=True, namespace={"number": number})
    return jax.tree_util.register_dataclass(made)()


class _Odd:
    number = 0

    def coordinates(self, image):
        return {7: None, 8: image}.get(self.number, image.reshape(-1)[:3])

    def embed(self, z):
        images = (
            z,
            jnp.zeros(SHAPE),
            jnp.full(SHAPE, jnp.nan),
            1 + jnp.zeros(SHAPE).at[0, 0, 0].set(z[0]),
            3 * jnp.pad(z, (0, 37)).reshape(SHAPE),
            None,
        )
        return images[self.number] if self.number < len(images) else fail()


_NO_SUBSPACES = (None, 3, "full", {}, [], [[WHOLE]], subspaces.DCTWindow, np.eye(40), [WHOLE, None], Unregistered())


@dataclasses.dataclass(frozen=True)
class OddSolver(solvers.DeepFool):
    """A solver of which one part is wrong."""

    part: str = ""

    def start(self, restriction, at_sample):
        return fail() if self.part == "start" else super().start(restriction, at_sample)

    def step(self, restriction, state):
        return {"step": None, "type": state._replace(label=1.5)}.get(self.part, super().step(restriction, state))

    def done(self, state):
        return {"done": 3, "shape": jnp.zeros(2, bool)}.get(self.part, super().done(state))

    def point(self, state):
        point = super().point(state)
        return {"point": None, "rank": point._replace(z=point.z[None]), "label": point._replace(label=0.5)}.get(
            self.part, point
        )


_ODD_PARTS = ("start", "step", "type", "done", "shape", "point", "rank", "label")
_NO_SOLVERS = (None, 3, "tight", solvers.tight, solvers.DeepFool, [], {}, object(), WHOLE, IMAGES)
_NO_SETTINGS = (
    *({"batch_size": value} for value in (0, -1, 2.5, "3", np.nan, [1], IMAGES)),
    *({"precision": value} for value in (None, 3, "", "float64", "HIGHEST", b"highest", [])),
    *({"devices": value} for value in ([], 1, "cpu", [None], [3], 2 * jax.devices()[:1], {})),
    *({"progress": value} for value in (1, "text", fail)),
)
WRONG = {
    **{f"images: {name}": lambda rng, make=make: {"images": make(rng)} for name, make in WRONG_IMAGES.items()},
    "classifier: a wrong result": lambda rng: {"classifier": _returning(_choose(rng, _RESULTS))},
    "classifier: none": lambda rng: {"classifier": _choose(rng, _NO_CLASSIFIERS)},
    "classifier: of other pixels": lambda rng: {
        "classifier": with_parameters(linear_logits, linear_parameters(3, int(rng.integers(41, 60))), jnp.float32)
    },
    "classifier: parameters that are none": lambda rng: {
        "classifier": jax.tree_util.Partial(linear_logits, _choose(rng, [None, "text", (1,), (1, 2, 3)]))
    },
    "subspaces: none": lambda rng: {"subspaces": _choose(rng, _NO_SUBSPACES)},
    "subspaces: wrong methods": lambda rng: {"subspaces": _odd(int(rng.integers(9)))},
    "subspaces: of other images": lambda rng: {"subspaces": subspaces.full(tuple(map(int, rng.integers(1, 9, 3))))},
    "solver: none": lambda rng: {"solver": _choose(rng, _NO_SOLVERS)},
    "solver: a wrong part": lambda rng: {"solver": OddSolver(part=_choose(rng, _ODD_PARTS))},
    "settings": lambda rng: dict(_choose(rng, _NO_SETTINGS)),
}
# Arguments of `measure_to_store` alone.
_NO_STORE_SETTINGS = (
    *({"num_images": value} for value in (0, -1, 2, 2.5, "3", 2**70, [3])),
    *({"chunk_size": value} for value in (0, -1, 2.5, "3", np.nan, [2])),
    *({"share": value} for value in (3, "01", (0,), (2, 2), (-1, 2), (0, 0), (0.5, 2), (None, 2), (0, 1, 2), {})),
    *({"attributes": value} for value in ({"solver": 1}, {"x": object()}, {"x": np.nan}, {"data": 1}, {(1,): 2})),
    *({"path": value} for value in (None, 3, "a\0b", "~nobody-of-this-name/x", ["a"], "nothing://x", b"\xff")),
)
WRONG_OF_STORES = {"store": lambda rng: dict(_choose(rng, _NO_STORE_SETTINGS))}
