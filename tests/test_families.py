"""Families of subspaces, each against the library that defines it, and what they have in common."""

import math
import tracemalloc

import jax
import numpy as np
import pytest
import pywt
import scipy.linalg
from helpers import basis_of, linear_logits, random_images, slow_except, with_parameters
from sklearn import decomposition, discriminant_analysis

import hmt_jax
from hmt_jax import solvers, subspaces
from hmt_jax.subspaces import _rows

SHAPE = (8, 12, 3)
RNG = np.random.default_rng(0)
# Correlated pixels, and classes that differ.
LABELS = np.arange(300) % 4
IMAGES = random_images(300, 4, 5, 2) @ RNG.normal(size=(2, 2)) + LABELS[:, None, None, None] * RNG.normal(
    size=(4, 5, 2)
)


def mask():
    return np.random.default_rng(1).uniform(size=SHAPE) < 0.3


FAMILIES = {
    "wavelet_bands": lambda: subspaces.wavelet_bands(SHAPE, "db2", levels=2),
    "fourier_rings": lambda: subspaces.fourier_rings(SHAPE, [0, 1, 2.5, 4, 6]),
    "patches": lambda: subspaces.patches(SHAPE, size=4),
    "pixels": lambda: [subspaces.pixels(mask()), subspaces.pixels(~mask())],
    "channels": lambda: subspaces.channels(SHAPE),
    "luma_chroma": lambda: subspaces.luma_chroma(SHAPE),
}
# Of images with fewer pixels.
OF_DATA = {
    "principal_components": lambda: subspaces.principal_components(IMAGES, [(0, 3), (3, 10), (10, 38), (-2, None)]),
    "class_means": lambda: subspaces.class_means(IMAGES, LABELS),
}
ALL = FAMILIES | OF_DATA
EACH = slow_except(ALL, "class_means")


def projections_of(image, family):
    return [np.asarray(each.embed(each.coordinates(image))) for each in family]


@pytest.mark.parametrize("name", ALL)
def test_coordinates_are_orthonormal(name, x64):
    for each in ALL[name]():
        basis = basis_of(each)
        np.testing.assert_allclose(basis.T @ basis, np.eye(each.dimension), atol=1e-7)
        image = random_images(*each.image_shape)
        np.testing.assert_allclose(each.coordinates(image), basis.T @ image.ravel(), atol=1e-12)


@pytest.mark.parametrize("name", [*FAMILIES, "principal_components"])
def test_members_are_the_whole_space_together(name, x64):
    family = ALL[name]()
    image = random_images(*family[0].image_shape)
    assert sum(each.dimension for each in family) == image.size
    np.testing.assert_allclose(sum(projections_of(image, family)), image, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Level value of 2 is too high")
@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4", "coif2"])
def test_wavelet_bands_are_those_of_pywavelets(wavelet, x64):
    """Filters of up to 12 taps, on sides of 8 and 12 pixels: they wrap around."""
    image = random_images(*SHAPE)
    found = [np.asarray(band.coordinates(image)) for band in subspaces.wavelet_bands(SHAPE, wavelet, levels=2)]
    approximation, *details = pywt.wavedec2(image, wavelet, mode="periodization", level=2, axes=(0, 1))
    expected = [approximation, *(band for level in details for band in level)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.ravel(), atol=1e-10)  # filters of PyWavelets have as many digits


@pytest.mark.parametrize(
    ("shape", "edges"), [((8, 12, 2), [0, 1, 2.2, 6]), ((7, 7, 1), [0, 3, 3.1, 6]), ((9, 4, 1), [1, 2, 3])]
)
def test_fourier_rings_are_those_of_numpy(shape, edges, x64):
    image = random_images(*shape)
    radii = min(shape[:2]) * np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    projections = projections_of(image, subspaces.fourier_rings(shape, edges))
    for inner, outer, found in zip(edges[:-1], edges[1:], projections, strict=True):
        is_inside = (radii > inner - 1e-6) & (radii < outer - 1e-6)
        expected = np.fft.ifft2(np.fft.fft2(image, axes=(0, 1)) * is_inside[..., None], axes=(0, 1))
        assert np.abs(expected.imag).max() < 1e-12
        np.testing.assert_allclose(found, expected.real, atol=1e-12)


def test_patches_pixels_and_channels_are_parts_of_the_image(x64):
    image = random_images(*SHAPE)
    second = projections_of(image, subspaces.patches(SHAPE, size=4))[1]
    np.testing.assert_array_equal(second[:4, 4:8], image[:4, 4:8])
    assert not second[:, :4].any()
    np.testing.assert_array_equal(projections_of(image, [subspaces.pixels(mask())])[0], np.where(mask(), image, 0))
    for channel, found in enumerate(projections_of(image, subspaces.channels(SHAPE))):
        np.testing.assert_array_equal(found, image * (np.arange(3) == channel))


def test_luma_is_the_mean_of_the_channels_and_chroma_the_rest(x64):
    image = random_images(*SHAPE)
    luma, chroma = projections_of(image, subspaces.luma_chroma(SHAPE))
    np.testing.assert_allclose(luma, np.broadcast_to(image.mean(axis=2, keepdims=True), SHAPE), atol=1e-12)
    np.testing.assert_allclose(chroma, image - image.mean(axis=2, keepdims=True), atol=1e-12)


def ways(images):
    """The images as an array, as a source by number, and as a stream of batches."""
    return {"array": images, "source": list(images), "stream": (images[i : i + 7] for i in range(0, len(images), 7))}


def set_sizes(monkeypatch, num_pixels, chunk, held=10**6, in_memory=None):
    """Sets the numbers of images read at a time, of those held, and of float64 numbers that fit into memory."""
    monkeypatch.setattr(_rows, "_BYTES_AT_A_TIME", 8 * num_pixels * chunk)
    monkeypatch.setattr(_rows, "_BYTES_HELD", 8 * num_pixels * held)
    if in_memory is not None:
        monkeypatch.setattr(_rows._memory, "limit", lambda: 4 * 8 * in_memory)


@pytest.mark.parametrize("way", ["array", "source", "stream"])
@pytest.mark.parametrize("is_large", [False, True])
def test_principal_components_are_those_of_scikit_learn(way, is_large, x64, monkeypatch):
    set_sizes(monkeypatch, num_pixels=40, chunk=50, held=100)
    if is_large:
        monkeypatch.setattr(_rows, "fits", lambda num_entries: num_entries != 40**2)
    groups = [(0, 3), (3, 10)] if is_large else [(0, 3), (3, 10), (-2, None)]
    found = subspaces.principal_components(ways(IMAGES)[way], groups)
    expected = decomposition.PCA(svd_solver="full").fit(IMAGES.reshape(300, -1)).components_
    for each, (first, stop) in zip(found, groups, strict=True):
        cosines = np.asarray(each.basis).T @ expected[first:stop].T
        np.testing.assert_allclose(np.abs(cosines), np.eye(each.dimension), atol=1e-6)
        assert (each.basis.max(axis=0) > -each.basis.min(axis=0)).all()


def fewer_than_pixels():
    """60 images of 192 pixels far from 0, whose standard deviations go from 1 to 1e-4, along known directions."""
    rng = np.random.default_rng(5)
    (u, _), (v, _) = (np.linalg.qr(rng.normal(size=(number, 60))) for number in (60, 192))
    return (100 + u * np.logspace(0, -4, 60) @ v.T).reshape(60, 8, 8, 3)


# 192 x 192 products of pixels do not fit into memory, 60 x 60 of images do, and so does a stream of all images.
FEW = {"num_pixels": 192, "in_memory": 60 * 192}


@pytest.mark.parametrize("way", ["array", "source", "stream"])
@pytest.mark.parametrize(("chunk", "held"), [(7, 7), (7, 21), (100, 100)])
def test_components_of_fewer_images_than_pixels_are_those_of_the_svd(way, chunk, held, x64, monkeypatch):
    """Leading ones, a band between, and the trailing ones of the 59 that are known."""
    set_sizes(monkeypatch, chunk=chunk, held=held, **FEW)
    images, groups = fewer_than_pixels(), [(0, 3), (20, 25), (57, 59)]
    rows = images.reshape(60, -1)
    expected = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2]
    found = subspaces.principal_components(ways(images)[way], groups)
    for each, (first, stop) in zip(found, groups, strict=True):
        cosines = np.asarray(each.basis).T @ expected[first:stop].T
        # Products have squares of deviations: 2e-16 of the greatest one is 2e-8 of the smallest one.
        np.testing.assert_allclose(np.abs(cosines), np.eye(each.dimension), atol=1e-6)
        np.testing.assert_allclose(each.basis.T @ each.basis, np.eye(each.dimension), atol=1e-12)


def test_the_same_images_have_the_same_components(x64, monkeypatch):
    """Bit for bit, wherever they are read from; in other chunks, up to rounding."""
    set_sizes(monkeypatch, chunk=7, held=21, **FEW)
    images = fewer_than_pixels()
    first = subspaces.principal_components(images, [(0, 59)])[0].basis
    for way in ways(images).values():
        np.testing.assert_array_equal(subspaces.principal_components(way, [(0, 59)])[0].basis, first)
    set_sizes(monkeypatch, chunk=11, held=11, **FEW)
    np.testing.assert_allclose(subspaces.principal_components(images, [(0, 59)])[0].basis, first, atol=1e-6)


class MadeOnRequest:
    """Images that exist only while they are read, and their number of readings."""

    def __init__(self, num_images):
        self.num_images, self.num_read = num_images, 0

    def __len__(self):
        return self.num_images

    def __getitem__(self, number):
        self.num_read += 1
        return np.random.default_rng(number).uniform(size=(64, 64, 3))


@pytest.mark.parametrize("name", OF_DATA)
def test_memory_stays_far_below_that_of_all_images(name, monkeypatch):
    images = MadeOnRequest(200)  # 20 MB
    num_pixels = 64 * 64 * 3
    set_sizes(monkeypatch, num_pixels, chunk=4, held=20, in_memory=20 * num_pixels)
    with pytest.raises(ValueError, match=r"^images is a stream, which can be read only once, and neither its images"):
        subspaces.principal_components((images[number][None] for number in range(200)), [(0, 3)])
    images.num_read = 0
    tracemalloc.start()
    if name == "class_means":
        subspaces.class_means(images, np.arange(200) % 3)
    else:
        subspaces.principal_components(images, [(0, 3)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 20 images are held, and chunks of 4 are read ahead; the rest is a few times 3 vectors and the products.
    assert peak < 0.4 * 200 * num_pixels * 8
    # For the mean, for the products while the first 20, the next 20, ... are held, and for what is made of them.
    assert images.num_read <= 200 * (1 + 5.5 + 2) + 1


def test_8_bit_images_have_the_components_of_their_pixels():
    images = (255 * random_images(50, 4, 4, 1)).astype(np.uint8)
    one, other = (subspaces.principal_components(each, [(0, 2)])[0] for each in (images, images / np.float32(255)))
    np.testing.assert_array_equal(one.basis, other.basis)


@pytest.mark.parametrize("is_large", [False, True])
def test_fishers_directions_are_those_of_scikit_learn(is_large, x64, monkeypatch):
    if is_large:
        monkeypatch.setattr(_rows, "fits", lambda num_entries: num_entries != 40**2)
    rows = IMAGES.reshape(300, -1)
    means, rest, fisher, other = subspaces.class_means(IMAGES, LABELS)
    differences = np.stack([rows[label == LABELS].mean(axis=0) - rows.mean(axis=0) for label in range(3)])
    assert (
        subspaces.principal_angles(means, subspaces.from_basis(np.linalg.qr(differences.T)[0], (4, 5, 2))).max() < 1e-6
    )
    expected = discriminant_analysis.LinearDiscriminantAnalysis(solver="eigen").fit(rows, LABELS).scalings_[:, :3]
    assert scipy.linalg.subspace_angles(basis_of(fisher), expected).max() < 1e-6
    for subspace, complement in ((means, rest), (fisher, other)):
        assert complement.dimension == 37
        np.testing.assert_allclose(basis_of(subspace).T @ basis_of(complement), 0, atol=1e-7)


@pytest.mark.parametrize("is_large", [False, True])
def test_fishers_directions_have_a_part_in_each_scale(is_large, x64, monkeypatch):
    """One class differs where images vary most, another where they hardly do, and all are far from 0 and each other."""
    set_sizes(monkeypatch, chunk=7, held=21, **FEW) if is_large else set_sizes(monkeypatch, 192, chunk=7)
    rng, labels = np.random.default_rng(6), np.arange(60) // 20
    rows = rng.normal(size=(3, 20, 20))
    scores = np.linalg.qr((rows - rows.mean(axis=1, keepdims=True)).reshape(60, 20))[0] * np.logspace(0, -3.8, 20)
    means = np.zeros((3, 20))
    means[1, 0], means[2, 19] = 1, 1
    basis = np.linalg.qr(rng.normal(size=(192, 20)))[0]
    images = ((scores + means[labels]) @ basis.T + 1000).reshape(60, 8, 8, 3)
    fisher = subspaces.class_means(images, labels)[2]
    assert fisher.dimension == 2
    # Rounding of pixels near 1000 is 1e-13, and 1e-9 of the smallest deviation.
    assert scipy.linalg.subspace_angles(basis_of(fisher), basis[:, [0, 19]]).max() < 1e-5


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_images_do_not_vary_by_rounding(is_large, dtype, monkeypatch):
    if is_large:
        set_sizes(monkeypatch, chunk=7, held=21, **FEW)
    labels = np.arange(60) // 20
    images = random_images(3, 8, 8, 3).astype(dtype)[labels]
    with pytest.raises(ValueError, match=r"^within each class all images are equal, so Fisher's directions"):
        subspaces.class_means(images, labels)
    if is_large:
        with pytest.raises(ValueError, match=r"^all images are equal, so they have no principal components"):
            subspaces.principal_components(images[:20], [(0, 1)])


@pytest.mark.parametrize("way", ["array", "source", "stream"])
def test_fishers_directions_of_fewer_images_than_pixels_are_those_of_numpy(way, x64, monkeypatch):
    set_sizes(monkeypatch, chunk=7, held=21, **FEW)
    labels = np.arange(60) // 20  # chunks of one class, and of two
    images = random_images(60, 8, 8, 3) + labels[:, None, None, None]
    means, _, fisher, _ = subspaces.class_means(ways(images)[way], labels)
    rows = images.reshape(60, -1)
    own = np.stack([rows[label == labels].mean(axis=0) for label in range(3)])
    between = (own[:2] - own[2]).T
    within = (rows - own[labels]).T @ (rows - own[labels])
    for found, expected in ((means, between), (fisher, np.linalg.pinv(within, rcond=1e-8, hermitian=True) @ between)):
        assert scipy.linalg.subspace_angles(basis_of(found), expected).max() < 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_complements_are_matrix_free_and_come_back(name, x64):
    image = random_images(*SHAPE)
    for each in FAMILIES[name]():
        rest = subspaces.orthogonal_complement(each)
        assert sum(leaf.size for leaf in jax.tree.leaves(rest)) <= 8 * 8 + 12 * 12 + 3 * 3 + image.size
        np.testing.assert_allclose(sum(projections_of(image, [each, rest])), image, atol=1e-7)
        back = subspaces.orthogonal_complement(rest)
        np.testing.assert_allclose(back.coordinates(image), each.coordinates(image), atol=1e-12)


@pytest.mark.parametrize("name", EACH)
def test_margins_of_linear_classifiers_are_the_closed_form(name):
    family = ALL[name]()
    shape = family[0].image_shape
    weights, biases = np.random.default_rng(3).normal(size=(2, math.prod(shape))), np.zeros(2)
    images = random_images(3, *shape, dtype="float32")
    result = hmt_jax.measure_margins(
        with_parameters(linear_logits, (weights, biases)), images, family, solvers.tight("quick")
    )
    normal = weights[0] - weights[1]
    gaps = np.abs(images.reshape(3, -1) @ normal)
    for each, margins in zip(family, result.margin, strict=True):
        length = np.linalg.norm(basis_of(each).T @ normal)
        np.testing.assert_allclose(margins, gaps / length, rtol=1e-4)


def test_members_of_one_structure_share_one_compilation():
    structures = {name: [jax.tree.structure(each) for each in family()] for name, family in ALL.items()}
    shapes = {
        name: [tuple(np.shape(leaf) for leaf in jax.tree.leaves(each)) for each in family()]
        for name, family in ALL.items()
    }
    for name in ("patches", "channels"):
        assert len(set(zip(structures[name], shapes[name], strict=True))) == 1
    assert len(set(zip(structures["wavelet_bands"], shapes["wavelet_bands"], strict=True))) == 2  # one for each level


def test_principal_angles_are_those_of_scipy(x64):
    a, b = (subspaces.random(jax.random.key(seed), (4, 4, 1), dimension) for seed, dimension in ((0, 3), (1, 5)))
    found = subspaces.principal_angles(a, b)
    np.testing.assert_allclose(found, scipy.linalg.subspace_angles(basis_of(a), basis_of(b))[::-1], atol=1e-7)
    np.testing.assert_array_equal(subspaces.principal_angles(b, a), found)
    assert subspaces.principal_angles(a, a).max() < 1e-7


def test_intersection_and_sum():
    shape = (6, 6, 1)
    a, b = (subspaces.dct_window(shape, row=0, column=column, size=3) for column in (0, 2))
    both, either = subspaces.intersection(a, b), subspaces.sum(a, b)
    assert (both.dimension, either.dimension) == (3, 15)
    image = random_images(*shape, dtype="float32")
    # Windows are sums of frequencies, so projections on what they share and on all of them add up.
    onto = {name: projections_of(image, [each])[0] for name, each in zip("abcd", (a, b, both, either), strict=True)}
    np.testing.assert_allclose(onto["c"] + onto["d"], onto["a"] + onto["b"], atol=1e-5)
    assert isinstance(subspaces.sum(a, subspaces.orthogonal_complement(a)), subspaces.WholeSpace)


def test_sums_of_subspaces_at_any_angle_span_both():
    a, b = (subspaces.random(jax.random.key(seed), (4, 4, 1), 3) for seed in (0, 1))
    both = basis_of(subspaces.sum(a, b))
    assert both.shape == (16, 6)
    for each in (a, b):
        np.testing.assert_allclose(both @ (both.T @ basis_of(each)), basis_of(each), atol=1e-5)


def tilted(angle):
    """Two planes that share a direction up to an angle."""
    first = np.eye(16, 2)
    second = np.eye(16)[:, [2, 0]] * np.cos(angle) + np.eye(16)[:, [3, 4]] * np.sin(angle)
    return [subspaces.from_basis(np.linalg.qr(basis)[0], (4, 4, 1)) for basis in (first, second)]


BAD = {
    "too many levels": (
        lambda: subspaces.wavelet_bands((28, 28, 1), "haar", levels=3),
        r"^levels must be at most 2 for images of 28 x 28 pixels, got 3: ",
    ),
    "unknown wavelet": (lambda: subspaces.wavelet_bands(SHAPE, "db", 1), r"^unknown wavelet 'db': use one of"),
    "not orthogonal": (
        lambda: subspaces.wavelet_bands(SHAPE, "bior2.2", 1),
        r"^the wavelet bior2\.2 is not orthogonal: use",
    ),
    "one edge": (lambda: subspaces.fourier_rings(SHAPE, [1]), r"^edges must be two or more radii in ascending order"),
    "falling edges": (lambda: subspaces.fourier_rings(SHAPE, [2, 1]), r"^edges must be two or more radii in ascend"),
    "empty ring": (
        lambda: subspaces.fourier_rings(SHAPE, [0, 1, 20, 30]),
        r"^no frequency of images of 8 x 12 pixels has a radius from 20 to 30: the greatest radius is 5\.657$",
    ),
    "mask of numbers": (
        lambda: subspaces.pixels(np.ones(SHAPE)),
        r"^mask must be an array .* got float64 \(8, 12, 3\)$",
    ),
    "empty mask": (lambda: subspaces.pixels(np.zeros(SHAPE, bool)), r"^mask has no True: mark"),
    "size that does not divide": (
        lambda: subspaces.patches(SHAPE, size=5),
        r"^size must divide both sides of images of 8 x 12 pixels, got 5$",
    ),
    "grey": (lambda: subspaces.luma_chroma((8, 8, 1)), r"^luma_chroma needs images of three channels"),
    "empty group": (
        lambda: subspaces.principal_components(IMAGES, [(40, 41)]),
        r"^the group \(40, 41\) must name at least one of the 40 components, and no others$",
    ),
    "group before the first": (
        lambda: subspaces.principal_components(IMAGES, [(-41, None)]),
        r"^the group \(-41, None\) must name at least one of the 40 components, and no others$",
    ),
    "no groups": (lambda: subspaces.principal_components(IMAGES, []), r"^groups is empty: name at least one, such as"),
    "no pair": (lambda: subspaces.principal_components(IMAGES, [3]), r"^groups must be pairs \(first, stop\)"),
    "constant classes": (
        lambda: subspaces.class_means(np.eye(4).reshape(4, 2, 2, 1)[[0, 1, 0, 1]], np.arange(4) % 2),
        r"^within each class all images are equal, so Fisher's directions are undefined: pass other",
    ),
    "not finite": (
        lambda: subspaces.principal_components(
            np.where(np.arange(300)[:, None, None, None] == 7, np.nan, IMAGES), [(0, 1)]
        ),
        r"^image 7 has pixels that are NaN or infinite: leave it out$",
    ),
    "one class": (lambda: subspaces.class_means(IMAGES, np.zeros(300, int)), r"^labels must be of two classes or more"),
    "no labels": (
        lambda: subspaces.class_means(IMAGES, np.zeros(0, int)),
        r"^labels must be of two classes or more, got none: pass images of others",
    ),
    "labels of others": (
        lambda: subspaces.class_means(IMAGES, LABELS[:299]),
        r"^labels must be one for each image, got 2",
    ),
    "equal means": (
        lambda: subspaces.class_means(np.zeros((4, 2, 2, 1)), np.arange(4) % 2),
        r"^the means of all classes are equal, so no direction tells them apart",
    ),
    "nothing in common": (
        lambda: subspaces.intersection(*subspaces.patches((4, 4, 1), size=2)[:2]),
        r"^the subspaces have no direction in common: the smallest angle is 1\.57 radians$",
    ),
    "nearly the same": (
        lambda: subspaces.intersection(*tilted(1e-3)),
        r"^an angle between the subspaces is 0\.001 radians, too small to tell",
    ),
    "nearly the same, summed": (lambda: subspaces.sum(*tilted(1e-3)), r"^an angle between the subspaces is 0\.001 rad"),
    "other shapes": (
        lambda: subspaces.principal_angles(subspaces.full((4, 4, 1)), subspaces.full((4, 5, 1))),
        r"^the subspaces are for images of shape \(4, 5, 1\), but images have shape \(4, 4, 1\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named_with_their_remedy(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_too_many_pixels_and_images_for_the_memory(monkeypatch):
    set_sizes(monkeypatch, num_pixels=40, chunk=10, in_memory=20**2)
    both = r"^neither the products of 40 pixels nor those of 300 images fit into memory: pass at most 20 images, or"
    for call in (
        lambda: subspaces.principal_components(IMAGES, [(0, 3)]),
        lambda: subspaces.class_means(IMAGES, LABELS),
    ):
        with pytest.raises(ValueError, match=both):
            call()
    with pytest.raises(
        ValueError, match=r"^at most the 19 leading components of 20 images are known, .* name component 19"
    ):
        subspaces.principal_components(IMAGES[:20], [(0, 3), (15, 20)])
    with pytest.raises(
        ValueError, match=r"^11 components of 40 pixels do not fit into memory: ask for fewer at a time"
    ):
        subspaces.principal_components(IMAGES[:20], [(0, 8), (6, 11)])
    with pytest.raises(ValueError, match=r"^20 means of classes of 40 pixels do not fit into memory: ask for fewer"):
        subspaces.class_means(IMAGES[:20], np.arange(20))
    with pytest.raises(ValueError, match=r"^labels must be one for each image, got 19 for 20 images$"):
        subspaces.class_means(IMAGES[:20], LABELS[:19])
    twice = np.concatenate([IMAGES[:10], IMAGES[:10]])
    with pytest.raises(
        ValueError,
        match=r"^at most the 9 leading components of 20 images .* pass more images that differ, or end groups at 9$",
    ):
        subspaces.principal_components(twice, [(8, 10)])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, "principal_components", "class_means"])
def test_coordinates_are_orthonormal_at_the_size_of_imagenet(name):
    """In float32, as far as random coordinates show."""
    shape = (224, 224, 3)
    families = {
        "wavelet_bands": lambda: subspaces.wavelet_bands(shape, "db2", levels=5),
        "fourier_rings": lambda: subspaces.fourier_rings(shape, [0, 8, 32, 160]),
        "patches": lambda: subspaces.patches(shape, size=16)[:2],
        "pixels": lambda: [subspaces.pixels(np.random.default_rng(0).uniform(size=shape) < 0.5)],
        "channels": lambda: subspaces.channels(shape),
        "luma_chroma": lambda: subspaces.luma_chroma(shape),
        "principal_components": lambda: subspaces.principal_components(random_images(40, *shape), [(0, 8), (8, 32)]),
        "class_means": lambda: subspaces.class_means(random_images(40, *shape), np.arange(40) % 4),
    }
    for each in families[name]():
        z = np.random.default_rng(0).normal(size=each.dimension).astype(np.float32)
        image = each.embed(z)
        np.testing.assert_allclose(each.coordinates(image), z, atol=1e-5 * np.abs(z).max())
        np.testing.assert_allclose(np.linalg.norm(image), np.linalg.norm(z), rtol=1e-5)
