"""Batches of big data: images against NumPy's arithmetic, orders against counts, and processes of JAX's own."""

import contextlib
import itertools
import json
import os
import re
import socket
import stat
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from hmt_jax import data

SHAPES = [(60, 80), (80, 60), (61, 97), (64, 64), (33, 200), (40, 30)]  # height, width


@pytest.fixture
def folder(tmp_path):
    """Images of several sizes, in three classes."""
    for i, (height, width) in enumerate(SHAPES):
        save(tmp_path / "cba"[i % 3] / f"{i}.png", random_image(i, height, width))
    return tmp_path


def save(file, image, **options):
    file.parent.mkdir(exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, **options)


def random_image(seed, height, width):
    """Smooth enough that a wrong offset shows and an image is told from another."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def resize_by_numpy(image, height, width, top=0, left=0, crop=None):
    """Antialiased bilinear interpolation: a triangle as wide as two pixels of the coarser grid, along each axis.

    Of the image resized to height x width, all, or the square at (top, left).
    """

    def weights(num_in, num_out, first):
        scale = num_in / num_out
        centres = (first + np.arange(crop or num_out)[:, None] + 0.5) * scale
        distances = np.abs(np.arange(num_in) + 0.5 - centres) / max(scale, 1)
        triangle = np.maximum(1 - distances, 0)
        return triangle / triangle.sum(1, keepdims=True)

    rows = np.tensordot(weights(image.shape[0], height, top), image, axes=1)
    return np.moveaxis(np.tensordot(weights(image.shape[1], width, left), rows, axes=(1, 1)), 0, 1)


def crop_by_torchvision(image_height, image_width, size):
    """Its formulas in functional.center_crop."""
    top = int(round((image_height - size) / 2.0))  # noqa: RUF046
    left = int(round((image_width - size) / 2.0))  # noqa: RUF046
    return top, left


def numbered(num_samples):
    """Samples whose images hold their number."""
    return [(np.full((2, 3, 1), i, np.uint8), i % 7) for i in range(num_samples)]


def numbers_of(batches):
    """The numbers of the samples in each batch, whose labels are checked on the way."""
    numbers = []
    for images, labels in batches:
        assert images.dtype == np.uint8
        assert images.shape == (len(labels), 2, 3, 1)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 7)
        numbers.append(images[:, 0, 0, 0].tolist())
    return numbers


def be_process(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


def test_importing_costs_no_heavy_package():
    program = "import sys, hmt_jax.data; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert not {"PIL", "grain"} & set(imported.split())


@pytest.mark.parametrize(
    ("module", "call"),
    [("PIL", lambda: data.image_folder("here")), ("grain", lambda: data.loader(numbered(1), batch_size=1))],
)
def test_without_a_package(module, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"without {module}: pip install 'hmt-jax\[data\]'"):
        call()


def test_image_folder_sorts_classes_and_images(folder):
    source = data.image_folder(folder, resize=32, crop=24)
    assert len(source) == 6
    assert source.class_names == ("a", "b", "c")
    assert source.num_classes == 3
    assert source.image_shape == (24, 24, 3)
    assert source.labels.tolist() == [source[i][1] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    for i, seed in enumerate([2, 5, 1, 4, 0, 3]):
        expected = resize_by_numpy(random_image(seed, *SHAPES[seed]), 24, 24)
        # The file of that number, and no other, is about as bright at every place.
        distances = [np.abs(source[j][0] - expected).mean() for j in range(6)]
        assert np.argmin(distances) == i


@pytest.mark.parametrize("shape", [*SHAPES, (500, 375), (333, 500), (31, 32)])
@pytest.mark.parametrize(("resize", "crop"), [(32, 24), (31, 31), (40, 23)])
def test_pixels_are_those_of_torchvision(shape, resize, crop, tmp_path):
    image = random_image(0, *shape)
    save(tmp_path / "a" / "image.png", image)
    height, width = (resize if side == min(shape) else int(resize * side / min(shape)) for side in shape)
    top, left = crop_by_torchvision(height, width, crop)
    expected = resize_by_numpy(image, height, width)[top : top + crop, left : left + crop]
    pixels, _ = data.image_folder(tmp_path, resize=resize, crop=crop)[0]
    assert pixels.shape == (crop, crop, 3)
    assert pixels.dtype == np.uint8
    # Pillow rounds to 8 bits after each axis: half a level, averaged by the second axis, and another half.
    np.testing.assert_allclose(pixels, expected, atol=1.01)


def test_pixels_of_ordinary_images_are_those_of_resizing_all_and_cropping(tmp_path):
    rng = np.random.default_rng(0)
    for seed in range(20):
        width, height, resize = rng.integers(5, 90, 3)
        crop = rng.integers(1, resize + 1)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        save(tmp_path / f"{seed}" / "image.png", image)
        shorter = min(width, height)
        resized = image.resize((resize * width // shorter, resize * height // shorter), Image.Resampling.BILINEAR)
        top, left = crop_by_torchvision(resized.height, resized.width, crop)
        expected = np.asarray(resized)[top : top + crop, left : left + crop]
        (tmp_path / f"{seed}").rename(tmp_path / "class")
        np.testing.assert_array_equal(data.image_folder(tmp_path, resize=resize, crop=crop)[0][0], expected)
        (tmp_path / "class" / "image.png").unlink()
        (tmp_path / "class").rmdir()


@pytest.mark.parametrize("shape", [(20_000, 1), (3, 5000), (4099, 2)])
def test_of_a_long_image_only_the_middle_is_resized(shape, tmp_path, monkeypatch):
    """All of 1 x 20,000 pixels, resized to 256 on the shorter side, would take 5 GB."""
    resize_all = Image.Image.resize

    def resize(image, size, *args, **options):
        assert size[0] * size[1] <= 2**25
        return resize_all(image, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    save(tmp_path / "a" / "long.png", image)
    pixels, _ = data.image_folder(tmp_path, resize=256, crop=24)[0]
    height, width = (256 * side // min(shape) for side in shape)
    expected = resize_by_numpy(image, height, width, *crop_by_torchvision(height, width, 24), 24)
    # As above, and what float32 leaves of a place in 20,000 pixels, 1e-3, of at most 255 levels between neighbours.
    np.testing.assert_allclose(pixels, expected, atol=1.01 + 0.26)


@pytest.mark.parametrize("shape", [(30, 40), (50, 60)])  # beyond the limit, and twice the limit
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_images_of_too_many_pixels_are_refused(shape, action, tmp_path, monkeypatch):
    save(tmp_path / "a" / "big.png", np.zeros(shape, np.uint8))
    source = data.image_folder(tmp_path, resize=4, crop=4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    match = (
        r"a/big\.png can't be read \(it has more than 1000 pixels: scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS"
    )
    with warnings.catch_warnings(action=action), pytest.raises(ValueError, match=match):
        source[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert source[0][0].shape == (4, 4, 3)


def test_default_size_is_that_of_imagenet(folder):
    assert data.image_folder(folder).image_shape == data.image_folder(folder)[0][0].shape == (224, 224, 3)


def test_images_of_all_modes_become_rgb(tmp_path):
    rgb = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    grey = np.array([[0, 85], [170, 255]], np.uint8)
    image, alpha = Image.fromarray(rgb), Image.fromarray(grey)
    greys = np.repeat(grey[..., None], 3, 2)
    transparent = image.copy()
    transparent.putalpha(alpha)
    expected = {
        "alpha.png": (transparent, rgb),
        "bits.png": (alpha.point(lambda level: 255 * (level > 100), "1"), 255 * (greys > 100)),
        "cmyk.tif": (image.convert("CMYK"), rgb),
        "grey.png": (alpha, greys),
        "grey_alpha.png": (Image.merge("LA", (alpha, alpha)), greys),
        "palette.png": (image.quantize(4), rgb),
        "rgb.BMP": (image, rgb),
    }
    for name, (picture, _) in expected.items():
        save(tmp_path / "a" / name, picture)
    save(tmp_path / "a" / "palette_alpha.png", image.quantize(4), transparency=bytes([0, 80, 160, 255]))
    source = data.image_folder(tmp_path, resize=2, crop=2)
    pixels = {file.removeprefix("a/"): source[i][0] for i, file in enumerate(source.files)}
    for name, (_, colours) in expected.items():
        np.testing.assert_array_equal(pixels[name], colours, err_msg=name)
    np.testing.assert_array_equal(pixels["palette_alpha.png"], rgb)


def test_orientation_in_exif_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image = random_image(0, 32, 32)
    save(tmp_path / "a" / "turned.jpg", image, exif=exif, quality=95)
    pixels, _ = data.image_folder(tmp_path, resize=32, crop=32)[0]
    with Image.open(tmp_path / "a" / "turned.jpg") as stored:
        np.testing.assert_array_equal(pixels, np.asarray(stored))


def test_other_files_and_hidden_names_are_passed_over(folder):
    (folder / "README.txt").write_text("not a class")
    (folder / ".cache").mkdir()
    (folder / "a" / "notes.txt").write_text("not an image")
    (folder / "a" / "._2.png").write_text("not an image either")
    assert len(data.image_folder(folder, resize=32, crop=24)) == 6


def test_image_folder_refuses(folder, tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*/nowhere: name one that holds one folder of images"):
        data.image_folder(folder / "nowhere")
    with pytest.raises(ValueError, match=r"/a holds no folders: name one that holds one folder of images per class"):
        data.image_folder(folder / "a")
    with pytest.raises(ValueError, match="at most resize, got crop 224 and resize 128: lower crop"):
        data.image_folder(folder, resize=128)
    with pytest.raises(ValueError, match=r"crop must be at least 1 .* got crop 0"):
        data.image_folder(folder, crop=0)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"/empty holds no images \(.bmp, .*\): put those of the class there, or"):
        data.image_folder(folder)


def test_only_formats_of_the_suffixes_are_opened(tmp_path, monkeypatch):
    """Pillow decodes EPS by starting Ghostscript; ImageNet has a PNG named JPEG."""
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **_: started.append(args))
    image = Image.fromarray(random_image(0, 8, 8))
    for name, kind in [("eps.jpg", "EPS"), ("gif.png", "GIF"), ("png.JPEG", "PNG")]:
        save(tmp_path / "a" / name, image, format=kind)
    source = data.image_folder(tmp_path, resize=8, crop=8)
    for index, name in enumerate(["eps.jpg", "gif.png"]):
        match = rf"a/{name} can't be read \(it is not recognised as BMP, JPEG, PNG, PPM, TIFF or WEBP\)"
        with pytest.raises(ValueError, match=match):
            source[index]
    np.testing.assert_array_equal(source[2][0], image)
    assert not started


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
        lambda path: os.symlink("/dev/zero", path),
        lambda path: os.symlink("nowhere", path),
    ],
    ids=["pipe", "folder", "socket", "device", "dangling"],
)
def test_what_is_no_file_is_refused_before_it_is_opened(make, folder):
    os.symlink("../b/1.png", folder / "a" / "link.png")
    assert len(data.image_folder(folder)) == 7
    make(folder / "a" / "it.png")
    match = r"a/it\.png has the name of an image, but is neither a file nor a link to one: rename it, or remove it"
    with pytest.raises(ValueError, match=match):
        data.image_folder(folder)


def test_folders_that_cannot_be_listed_are_named(folder):
    os.symlink("turns", folder / "turns")
    with pytest.raises(ValueError, match=r"/turns can't be read \(.*symbolic links\): make it readable, or remove"):
        data.image_folder(folder)


def test_a_folder_of_splits_is_not_taken_for_one_of_classes(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        save(tmp_path / part / "cat" / "0.png", random_image(0, 8, 8))
    (tmp_path / "meta").mkdir()
    match = rf"level deeper, in train, val of {tmp_path}: pass one of them, such as image_folder\('.*/train'\)"
    with pytest.raises(ValueError, match=match):
        data.image_folder(tmp_path)
    assert data.image_folder(tmp_path / "train").class_names == ("cat",)
    save(tmp_path / "train" / "0.png", random_image(0, 8, 8))
    save(tmp_path / "val" / "0.png", random_image(0, 8, 8))
    with pytest.raises(ValueError, match="/meta holds no images"):
        data.image_folder(tmp_path)


@pytest.mark.parametrize("name", [b"\xff", "猫".encode(), b"a\nb", b" ", b"~"])
def test_any_file_name_is_read_and_shown_in_one_printable_line(name, tmp_path):
    path = tmp_path / os.fsdecode(name)
    save(path / f"{path.name}.png", random_image(0, 8, 8))
    for root in (tmp_path, os.fsencode(tmp_path)):
        assert data.image_folder(root, resize=8, crop=8)[0][0].shape == (8, 8, 3)
    (path / f"{path.name}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="can't be read") as caught:
        data.image_folder(tmp_path)[0]
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_images_are_named(num_workers, folder):
    file = folder / "b" / "1.png"
    file.write_bytes(file.read_bytes()[:200])
    source = data.image_folder(folder, resize=32, crop=24)
    batches = data.loader(source, batch_size=2, shuffle=False, num_workers=num_workers).epoch(0)
    _, labels = next(batches)
    assert labels.tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"b/1.png can't be read \(.*\): replace it, or delete it"):
        next(batches)


def test_images_that_are_none_or_too_deep_are_named(tmp_path):
    save(tmp_path / "a" / "deep.png", np.full((4, 4), 1000, np.uint16))
    (tmp_path / "a" / "text.jpg").write_text("not an image")
    source = data.image_folder(tmp_path, resize=4, crop=4)
    with pytest.raises(ValueError, match=r"a/deep.png can't be read \(its mode I;16 has more than 8 bits\): replace"):
        source[0]
    with pytest.raises(ValueError, match=r"a/text.jpg can't be read \(it is not recognised as .*\): replace"):
        source[1]


@pytest.mark.parametrize("argument", ["resize", "crop"])
@pytest.mark.parametrize("value", [(32, 32), 32.0, None, "32"])
def test_sizes_of_images_are_whole_numbers(argument, value, folder):
    match = rf"{argument} must be a whole number, got {re.escape(repr(value))}"
    with pytest.raises(ValueError, match=match):
        data.image_folder(folder, **{argument: value})
    with pytest.raises(ValueError, match=match):
        data.tfds_images("mnist", "train", **{argument: value})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_sample_is_in_an_epoch_once(num_workers):
    loader = data.loader(numbered(23), batch_size=5, num_workers=num_workers)
    assert loader.num_samples == 23
    assert loader.batch_size == 5
    numbers = numbers_of(loader.epoch(3))
    assert [len(batch) for batch in numbers] == [5, 5, 5, 5, 3]
    assert sorted(itertools.chain(*numbers)) == list(range(23))


def test_epochs_and_seeds_have_orders_of_their_own():
    source = numbered(23)
    orders = [
        numbers_of(data.loader(source, batch_size=23, seed=seed).epoch(number))[0]
        for seed in range(3)
        for number in range(3)
    ]
    assert len({tuple(order) for order in [*orders, range(23)]}) == 10


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epochs_are_alike_every_time(num_workers, folder):
    source = data.image_folder(folder, resize=32, crop=24)
    first, second = (data.loader(source, batch_size=4, seed=1, num_workers=n) for n in (0, num_workers))
    list(second.epoch(0))
    for (images, labels), (same_images, same_labels) in zip(first.epoch(1), second.epoch(1), strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)


def test_an_epoch_can_be_left():
    loader = data.loader(numbered(23), batch_size=5, num_workers=2)
    assert numbers_of(itertools.islice(loader.epoch(0), 2)) == numbers_of(loader.epoch(0))[:2]


def test_without_shuffling():
    loader = data.loader(numbered(7), batch_size=3, shuffle=False)
    assert numbers_of(loader.epoch(0)) == numbers_of(loader.epoch(1)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_share_every_batch(count, monkeypatch):
    order = list(itertools.chain(*numbers_of(data.loader(numbered(23), batch_size=6).epoch(2))))
    shares = []
    for index in range(count):
        be_process(monkeypatch, index, count)
        loader = data.loader(numbered(23), batch_size=6)
        shares.append(numbers_of(loader.epoch(2)))
        assert loader.num_samples == 23
    # Of the last batch, of 5 samples, the last of 6 processes has none.
    parts = itertools.zip_longest(*shares, fillvalue=[])
    assert [[*itertools.chain(*batch)] for batch in parts] == [order[i : i + 6] for i in range(0, 23, 6)]
    assert {len(batch) for share in shares for batch in share[:3]} == {6 // count}


def test_loader_refuses(monkeypatch):
    image = np.zeros((2, 3, 1), np.uint8)
    for argument, value, match in [
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("seed", -1, "seed must be at least 0, got -1"),
        ("num_workers", -1, "num_workers must be at least 0, got -1"),
        ("source", [], "source must have a sample, .* got 0 samples for batch_size 2 and 1 processes: pass more"),
        ("source", [{"image": image, "label": 0}], r"samples \(image, label\), .* one is a dict: wrap it in"),
        ("source", [(image[0], 0)], r"but one is \(uint8 \(3, 1\), int64 \(\)\): wrap"),
        ("source", [(image, 0.5)], r"but one is \(uint8 \(2, 3, 1\), float64 \(\)\): wrap"),
        ("source", [(image, 0, 0)], r"but one is \(uint8 \(2, 3, 1\), int64 \(\), int64 \(\)\): wrap"),
    ]:
        with pytest.raises(ValueError, match=match):
            data.loader(**{"source": numbered(3), "batch_size": 2} | {argument: value})
    with pytest.raises(ValueError, match="number must be at least 0, got -1: epochs count from 0"):
        data.loader(numbered(3), batch_size=2).epoch(-1)
    with pytest.raises(ValueError, match=r"must have one shape, got \(2, 2, 1\), \(2, 3, 1\): resize or crop them"):
        next(data.loader([(image, 0), (image[:, 1:], 0)], batch_size=2).epoch(0))
    be_process(monkeypatch, 1, 4)
    with pytest.raises(ValueError, match="divisible by the number of processes, got 6 and 4: take 8"):
        data.loader(numbered(30), batch_size=6)
    with pytest.raises(ValueError, match="fill a batch if several processes share it, got 3 samples for batch_size 4"):
        data.loader(numbered(3), batch_size=4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: data.image_folder(3), "path must be a path, a string or a pathlib.Path, got int"),
        (
            lambda: data.loader(iter(numbered(3)), batch_size=1),
            r"got list_iterator: pass list\(zip\(images, labels\)\)",
        ),
        (lambda: data.loader({0: numbered(1)[0]}, batch_size=1), r"by number, as a list does, got dict: pass"),
        (lambda: data.loader(numbered(3), batch_size=1, shuffle="no"), "shuffle must be True or False, got 'no'"),
        (lambda: data.loader(numbered(3), batch_size=1).epoch(0.5), "number must be a whole number, got 0.5"),
        (
            lambda: data.prefetch(data.loader(numbered(3), batch_size=1)),
            r"got Loader: pass one of its epochs, loader.epoch\(0",
        ),
        (lambda: data.prefetch(3), "must be an iterable of batches, got int: pass a list of them"),
        (lambda: data.prefetch([], jax.devices()[0]), r"must be a jax\.sharding\.Sharding, got \w*Device: make one"),
    ],
)
def test_kinds_come_before_values(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    ("sample", "match"),
    [
        ((np.zeros((2, 3, 1), np.uint8), 0.7), r"but one is \(uint8 \(2, 3, 1\), float64 \(\)\): wrap"),
        ((np.zeros((2, 3, 1), np.uint8),), r"but one is \(uint8 \(2, 3, 1\)\): wrap"),
        ((np.zeros((2, 3, 1), np.uint8), -1), "whole numbers from 0 in int32, got -1 to 0: number its classes"),
        ((np.zeros((2, 3, 1), np.uint8), np.int64(2**40)), "from 0 in int32, got 0 to 1099511627776: number"),
    ],
)
def test_samples_after_the_first_are_checked_too(sample, match):
    batches = data.loader([*numbered(1), sample], batch_size=2, shuffle=False).epoch(0)
    with pytest.raises(ValueError, match=match):
        next(batches)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_prefetch_keeps_order_and_is_ahead(size):
    taken = []

    def batches():
        for i in range(6):
            taken.append(i)
            yield np.full(3, i), {"labels": np.array([i])}

    for i, (images, labels) in enumerate(data.prefetch(batches(), size=size)):
        assert isinstance(images, jax.Array)
        assert images.tolist() == [i] * 3
        assert labels["labels"].tolist() == [i]
        assert len(taken) == min(i + size, 6)
    assert i == 5


def test_prefetch_puts_batches_where_the_sharding_says():
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    loader = data.loader(numbered(48), batch_size=16)
    on_device = list(data.prefetch(loader.epoch(0), sharding))
    for (images, labels), host in zip(on_device, loader.epoch(0), strict=True):
        assert images.sharding.is_equivalent_to(sharding, images.ndim)
        assert [shard.data.shape for shard in images.addressable_shards] == [(2, 2, 3, 1)] * 8
        assert [shard.data.shape for shard in labels.addressable_shards] == [(2,)] * 8
        np.testing.assert_array_equal(images, host[0])
        np.testing.assert_array_equal(labels, host[1])


def test_prefetch_refuses():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        data.prefetch([], size=0)
    sharding = jax.sharding.NamedSharding(jax.make_mesh((8,), ("data",)), jax.sharding.PartitionSpec("data"))
    batches = data.prefetch([np.zeros(16), np.zeros(5)], sharding, size=1)
    next(batches)
    with pytest.raises(ValueError, match="does not evenly divide the dimension size 5"):
        next(batches)


PROCESS = """
import itertools, json, sys
import jax
import numpy as np
from hmt_jax import data

port, index = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(index))
source = [(np.full((1, 1, 1), i, np.uint8), i) for i in range(21)]
sharding = jax.sharding.NamedSharding(jax.make_mesh((4,), ("data",)), jax.sharding.PartitionSpec("data"))
loader = data.loader(source, batch_size=8)
whole = itertools.islice(loader.epoch(0), loader.num_samples // loader.batch_size)
batches = data.prefetch(whole, sharding)
total = jax.jit(lambda images, labels: (images.astype(int).sum(), labels.sum()))
report = [(labels.shape, [shard.data.tolist() for shard in labels.addressable_shards], *map(int, total(images, labels)))
          for images, labels in batches]
print(json.dumps(report))
"""


@pytest.mark.slow
def test_two_processes_share_the_same_batches():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with contextlib.ExitStack() as stack:
        processes = []
        for index in "01":
            command = [sys.executable, "-c", PROCESS, port, index]
            processes.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
            stack.callback(processes[-1].kill)  # before the wait of leaving it
        # Gloo, by which they talk to each other, prints before them.
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    (whole,) = data.loader(numbered(21), batch_size=21).epoch(0)
    order = whole[0][:, 0, 0, 0].tolist()
    for i, ((shape, shards, *sums), (_, other_shards, *other_sums)) in enumerate(zip(first, second, strict=True)):
        batch = order[8 * i : 8 * i + 8]
        assert shape == [8]
        assert [*itertools.chain(*shards, *other_shards)] == batch
        assert sums == other_sums == [sum(batch)] * 2
    assert len(first) == 2


def test_numbers_of_a_loader_are_whole():
    for name in ("batch_size", "seed", "num_workers"):
        with pytest.raises(ValueError, match=rf"{name} must be a whole number, got 2\.5"):
            data.loader([(np.zeros((2, 2, 1), np.uint8), 0)], **{"batch_size": 2, name: 2.5})
    with pytest.raises(ValueError, match=r"size must be a whole number, got 1\.5"):
        data.prefetch(np.zeros((3, 2)), size=1.5)
