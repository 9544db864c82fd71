"""Data sets: against scikit-learn's and published facts, and prepared from small files served on this machine."""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import pwd
import re
import socket
import struct
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from helpers import random_network
from PIL import Image
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.hashing import Hasher

from hmt_jax import checkpoints, data, models
from hmt_jax.data import _tfds

SIZES = {"train": 25, "test": 10}
CLASS_NAMES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "lorry"]


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """A function that publishes a small data set under its name: returns its splits, in the published order."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)

        def publish(name):
            splits = {split: random_split(name, size) for split, size in SIZES.items()}
            files = mnist_files(splits) if name == "mnist" else cifar10_files(splits)
            url_infos = {}
            for file, content in files.items():
                (folder / file).write_bytes(content)
                info = checksums.UrlInfo(len(content), hashlib.sha256(content).hexdigest(), file)
                url_infos[f"http://127.0.0.1:{server.server_port}/{file}"] = info
            monkeypatch.setattr(tfds.builder_cls(name), "url_infos", url_infos)
            monkeypatch.setitem(_tfds.SIZES, name, dict(SIZES))
            return splits

        yield publish


@pytest.fixture
def prepared(tmp_path, publish):
    """A folder with a small MNIST."""
    publish("mnist")
    data.prepare("mnist", tmp_path)
    return tmp_path


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def forbid_network(monkeypatch):
    """Lets every use of the network fail from now on. Returns a list that grows with each."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def random_split(name, size):
    shape = (28, 28) if name == "mnist" else (32, 32, 3)
    rng = np.random.default_rng(size)
    return rng.integers(0, 256, (size, *shape), np.uint8), rng.integers(0, 10, size, np.uint8)


def mnist_files(splits):
    def idx(array):
        return gzip.compress(
            bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
        )

    return {
        f"{prefix}-{content}-idx{array.ndim}-ubyte.gz": idx(array)
        for split, prefix in (("train", "train"), ("test", "t10k"))
        for content, array in zip(("images", "labels"), splits[split], strict=True)
    }


def cifar10_files(splits):
    def records(images, labels):
        return b"".join(
            bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
            for image, label in zip(images, labels, strict=True)
        )

    train_images, train_labels = splits["train"]
    contents = {
        f"data_batch_{i + 1}.bin": records(train_images[5 * i : 5 * i + 5], train_labels[5 * i : 5 * i + 5])
        for i in range(5)
    }
    contents["test_batch.bin"] = records(*splits["test"])
    contents["batches.meta.txt"] = "\n".join([*CLASS_NAMES, "", ""]).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for file, content in contents.items():
            member = tarfile.TarInfo(f"{folder.name}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"cifar-10-binary.tar.gz": stream.getvalue()}


def assert_is_published(dataset, splits):
    """All samples are there, in the order in which TFDS hashes their places."""
    for split, images, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("test", dataset.test_images, dataset.test_labels),
    ):
        hasher = Hasher(split)
        order = sorted(range(SIZES[split]), key=hasher.hash_key)
        published_images, published_labels = splits[split]
        np.testing.assert_array_equal(images, published_images.reshape(-1, *dataset.image_shape)[order])
        np.testing.assert_array_equal(labels, published_labels[order])


def assert_nothing_is_left(data_dir, name):
    assert not list((data_dir / name).glob("*"))
    with pytest.raises(ValueError, match="is not prepared"):
        data.load(name, data_dir)


def rows(images):
    return sorted(image.tobytes() for image in images)


def test_names():
    assert data.names() == ("cifar10", "digits", "mnist")


def test_importing_costs_no_heavy_package():
    heavy = {"PIL", "array_record", "requests", "sklearn", "tensorflow_datasets"}
    program = "import sys, hmt_jax.data; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert not heavy & set(imported.split())


def test_digits_are_those_of_sklearn():
    digits, stored = data.load("digits"), sklearn.datasets.load_digits()
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    assert images.dtype == np.float32
    assert digits.image_shape == (8, 8, 1)
    assert digits.num_classes == 10
    pairs = zip((16 * images).reshape(-1, 64).astype(int), labels, strict=True)
    expected = zip(stored.data.astype(int), stored.target, strict=True)
    assert sorted((*image, label) for image, label in pairs) == sorted((*image, label) for image, label in expected)


def test_digits_are_split_without_overlap_and_evenly_over_classes():
    digits = data.load("digits")
    assert (len(digits.train_images), len(digits.test_images)) == (1437, 360)
    assert not set(rows(digits.train_images)) & set(rows(digits.test_images))
    num_test = np.bincount(digits.test_labels)
    num_samples = num_test + np.bincount(digits.train_labels)
    assert np.abs(num_test - num_samples / 5).max() < 1


def test_digits_are_split_alike_every_time():
    first, second = data.load("digits"), data.load("digits")
    np.testing.assert_array_equal(first.train_images, second.train_images)
    np.testing.assert_array_equal(first.test_images, second.test_images)


def test_digits_need_no_preparation(monkeypatch):
    attempts = forbid_network(monkeypatch)
    assert "nothing to prepare" in data.prepare("digits")
    assert not attempts


@pytest.mark.slow
def test_mnist(mnist, reference):
    assert mnist.train_images.shape == (60_000, 28, 28, 1)
    assert mnist.test_images.shape == (10_000, 28, 28, 1)
    assert mnist.train_images.dtype == mnist.test_images.dtype == np.uint8
    assert mnist.num_classes == 10
    num_train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    num_test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(mnist.train_labels).tolist() == num_train
    assert np.bincount(mnist.test_labels).tolist() == num_test
    assert round(mnist.train_images.mean() / 255, 4) == 0.1307
    assert round(mnist.train_images.std() / 255, 4) == 0.3081

    label_of = {image.tobytes(): label for image, label in zip(mnist.test_images, mnist.test_labels, strict=True)}
    assert [label_of[image.tobytes()] for image in reference["images"]] == reference["labels"].tolist()


@pytest.mark.slow
def test_cifar10(shared):
    cifar10 = data.load("cifar10", shared / "tfds")
    assert cifar10.train_images.shape == (50_000, 32, 32, 3)
    assert cifar10.test_images.shape == (10_000, 32, 32, 3)
    assert cifar10.train_images.dtype == cifar10.test_images.dtype == np.uint8
    assert cifar10.num_classes == 10
    assert np.bincount(cifar10.train_labels).tolist() == [5000] * 10
    assert np.bincount(cifar10.test_labels).tolist() == [1000] * 10
    np.testing.assert_allclose(cifar10.train_images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)


@pytest.mark.parametrize("function", [data.load, data.prepare])
def test_unknown_name(function):
    with pytest.raises(ValueError, match=r"unknown data set 'minst'; the known ones are cifar10, digits, mnist"):
        function("minst")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_load_what_is_not_prepared(name, tmp_path, monkeypatch):
    attempts = forbid_network(monkeypatch)
    match = rf"{name} is not prepared in {tmp_path}: run hmt_jax\.data\.prepare\('{name}', '{tmp_path}'\), "
    match += rf"or `python -m experiments prepare {name} --data-dir {tmp_path}`, .* TFDS_DATA_DIR"
    with pytest.raises(ValueError, match=match):
        data.load(name, tmp_path)
    assert not attempts


def test_data_dir_is_that_of_the_environment_if_not_given(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "here"))
    with pytest.raises(ValueError, match=f"is not prepared in {tmp_path / 'here'}:"):
        data.load("mnist")
    with pytest.raises(ValueError, match=f"is not prepared in {tmp_path / 'there'}:"):
        data.load("mnist", tmp_path / "there")
    with pytest.raises(
        ValueError, match=r"run hmt_jax\.data\.prepare\('mnist'\), or `python -m experiments prepare mnist`,"
    ):
        data.load("mnist")


def test_paths_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    """Users write `~` in Python and in variables, where no shell expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for file in (data.load, data.prepare):
        Image.new("L", (4, 4)).save(tmp_path / "file.png")
        with pytest.raises(ValueError, match=f"data_dir must be a folder, but {tmp_path}/file.png is a file: name the"):
            file("mnist", "~/file.png")
    with pytest.raises(
        ValueError, match=f"not prepared in {tmp_path}/d: run .*'mnist', '{tmp_path}/d'.* {tmp_path}/d`"
    ):
        data.load("mnist", pathlib.Path("~/d"))
    with pytest.raises(ValueError, match=f"imagenet2012 is not prepared in {tmp_path}/d: run"):
        data.tfds_images("imagenet2012", "train", data_dir="~/d")
    for variable, folder in {"~/e": "e", "": "tensorflow_datasets"}.items():
        monkeypatch.setenv("TFDS_DATA_DIR", variable)
        with pytest.raises(ValueError, match=f"is not prepared in {tmp_path}/{folder}:"):
            data.load("mnist")
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "file.png").rename(tmp_path / "images" / "a" / "0.png")
    assert len(data.image_folder("~/images")) == 1

    classifier = random_network("logistic", (2, 2, 1), mean=[0.5], std=[0.5])
    architecture = {"name": "logistic", "image_shape": [2, 2, 1], "num_classes": 4}
    models.save("~/weights.safetensors", classifier, architecture=architecture)
    assert models.load("~/weights.safetensors")[1]["architecture"] == architecture
    np.savez(tmp_path / "weights.npz", **models.to_torch(classifier))
    models.from_torch("logistic", "~/weights.npz", image_shape=(2, 2, 1), mean=[0.5], std=[0.5])
    with checkpoints.Checkpoints("~/states"):
        assert (tmp_path / "states").is_dir()
    assert not (tmp_path / "~").exists()


def test_a_home_directory_that_is_not_known_is_no_folder(tmp_path, monkeypatch):
    """A container may run a process under a number that no user has."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    remedy = "is not known: write the full path, or put ./ before it if ~ is part of the name"
    for function in (data.load, data.prepare):
        with pytest.raises(ValueError, match=f"default of data_dir is ~/tensorflow_datasets, but the .* ~ {remedy}"):
            function("mnist")
        with pytest.raises(
            ValueError, match=f"data_dir is ~nobody_here/x, but the home directory ~nobody_here {remedy}"
        ):
            function("mnist", "~nobody_here/x")
    with pytest.raises(ValueError, match=f"path is ~/images, but .* {remedy}"):
        data.image_folder("~/images")
    assert not list(tmp_path.iterdir())


def test_a_remedy_can_be_pasted_into_a_shell(tmp_path):
    with pytest.raises(
        ValueError, match=rf"prepare\('mnist', '{tmp_path}/my data'\), .* --data-dir '{tmp_path}/my data'`"
    ):
        data.load("mnist", tmp_path / "my data")
    with pytest.raises(
        ValueError,
        match=r"run tensorflow_datasets\.builder\('imagenet2012', data_dir=.*/my data'\)\.down.*"
        r"or `tfds build imagenet2012 --data_dir '.*/my data' --file_format array_record`, where TensorFlow is",
    ):
        data.tfds_images("imagenet2012", "train", data_dir=tmp_path / "my data")


def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data_dir must be a path in UTF-8, .* got '.*/\\udcff': rename it"):
        data.load("mnist", os.fsencode(tmp_path) + b"/\xff")


@pytest.mark.parametrize(
    ("name", "module"),
    [("digits", "sklearn"), ("mnist", "tensorflow_datasets"), ("mnist", "array_record"), ("mnist", "PIL")],
)
def test_load_without_a_package(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"{name} can't be used without {module}: pip install 'hmt-jax\[data\]'"
    ):
        data.load(name, tmp_path)


def test_prepare_without_a_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "importlib_resources", None)
    with pytest.raises(ModuleNotFoundError, match=r"without importlib_resources: pip install 'hmt-jax\[data\]'"):
        data.prepare("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_prepare_and_load(name, tmp_path, publish):
    splits = publish(name)
    assert "is prepared now" in data.prepare(name, tmp_path)
    dataset = data.load(name, tmp_path)
    assert dataset.name == name
    assert dataset.num_classes == 10
    assert dataset.train_images.dtype == np.uint8
    assert_is_published(dataset, splits)


def test_tfds_reads_what_is_prepared(tmp_path, publish):
    publish("cifar10")
    data.prepare("cifar10", tmp_path)
    source = tfds.data_source("cifar10", split="test", data_dir=tmp_path, download=False)
    assert source.dataset_info.features["label"].names == CLASS_NAMES
    assert sorted(sample["id"] for sample in source) == [f"test_{i:05d}".encode() for i in range(10)]


def test_prepare_what_is_prepared(prepared, monkeypatch):
    attempts = forbid_network(monkeypatch)
    files = {file: file.stat().st_mtime_ns for file in prepared.rglob("*")}
    assert "is prepared already" in data.prepare("mnist", prepared)
    assert files == {file: file.stat().st_mtime_ns for file in prepared.rglob("*")}
    assert not attempts


def test_prepare_from_files_put_there_by_hand(tmp_path, publish, monkeypatch):
    splits = publish("mnist")
    attempts = forbid_network(monkeypatch)
    manual_dir = tmp_path / "downloads" / "manual"
    manual_dir.mkdir(parents=True)
    for file, content in mnist_files(splits).items():
        (manual_dir / file).write_bytes(content)
    data.prepare("mnist", tmp_path)
    assert_is_published(data.load("mnist", tmp_path), splits)
    assert not attempts


@pytest.mark.parametrize("name", ["/proc", "/proc/new"])
def test_prepare_where_no_folder_can_be_made(name):
    match = rf"^no folder can be made in {name} \(No such file or directory\): pass a data_dir that can be written$"
    with pytest.raises(OSError, match=match):
        data.prepare("mnist", name)


def test_prepare_without_a_network(tmp_path, monkeypatch):
    attempts = forbid_network(monkeypatch)
    match = (
        r"can't download cifar10: download http.*/cifar-10-binary.tar.gz on another machine, put the files into "
        rf"{tmp_path}/downloads/manual, and run hmt_jax\.data\.prepare\('cifar10', '{tmp_path}'\), "
        r"or .* again \(.*no network here"
    )
    with pytest.raises(ConnectionError, match=match):
        data.prepare("cifar10", tmp_path)
    assert len(attempts) == 1
    assert_nothing_is_left(tmp_path, "cifar10")


@pytest.mark.parametrize(
    ("content", "match"), [(None, "can't download mnist.*404"), (b"not it", "can't download mnist.*wrong checksum")]
)
def test_prepare_from_files_that_are_missing_or_wrong(content, match, tmp_path, publish):
    publish("mnist")
    file = tmp_path / "published" / "t10k-images-idx3-ubyte.gz"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConnectionError, match=match):
        data.prepare("mnist", tmp_path)
    assert_nothing_is_left(tmp_path, "mnist")


def test_prepare_fails_if_samples_are_missing(tmp_path, publish, monkeypatch):
    publish("cifar10")
    monkeypatch.setitem(_tfds.SIZES, "cifar10", {"train": 25, "test": 11})
    with pytest.raises(ValueError, match=r"has {'train': 25, 'test': 10} samples, expected {'train': 25, 'test': 11}"):
        data.prepare("cifar10", tmp_path)
    assert_nothing_is_left(tmp_path, "cifar10")


def test_prepare_after_an_interruption(tmp_path, publish, monkeypatch):
    def interrupt(builder):
        raise KeyboardInterrupt

    splits = publish("mnist")
    with monkeypatch.context() as patch:
        patch.setattr(_tfds, "read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            data.prepare("mnist", tmp_path)
    assert_nothing_is_left(tmp_path, "mnist")
    data.prepare("mnist", tmp_path)
    assert_is_published(data.load("mnist", tmp_path), splits)


@pytest.mark.parametrize("function", [data.load, data.prepare])
def test_samples_missing(function, prepared, monkeypatch):
    monkeypatch.undo()
    match = (
        r"has {'train': 25, 'test': 10} samples, expected {'train': 60000, 'test': 10000}: delete that folder and run"
    )
    with pytest.raises(ValueError, match=match):
        function("mnist", prepared)


def test_a_folder_without_its_description(prepared):
    (prepared / "mnist" / "3.0.1" / "dataset_info.json").unlink()
    with pytest.raises(ValueError, match="mnist is not prepared in"):
        data.load("mnist", prepared)
    with pytest.raises(ValueError, match=r"3.0.1 is no complete data set: delete that folder and run hmt_jax"):
        data.prepare("mnist", prepared)


@pytest.mark.parametrize("num_bytes", [None, 0, 1000])
def test_load_what_is_damaged(num_bytes, prepared):
    (file,) = (prepared / "mnist").glob("*/mnist-test*")
    if num_bytes is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(ValueError, match=r"from .*3\.0\.1 \(.*\): if .* damaged, delete it and run hmt_jax"):
        data.load("mnist", prepared)


def test_a_damaged_description_is_named_with_the_remedy(prepared):
    (file,) = prepared.glob("mnist/*/dataset_info.json")
    match = rf"mnist can't be read from {prepared}/mnist \(.*\): if the folder is damaged, delete it and run hmt_jax"
    for content in (b"", b"{'name", b"\x82\xff", b"{}", b"[1]", file.read_bytes()[:200]):
        file.write_bytes(content)
        for function in (
            data.load,
            data.prepare,
            lambda *arguments: data.tfds_images(arguments[0], "train", data_dir=arguments[1]),
        ):
            with pytest.raises(ValueError, match=match) as caught:
                function("mnist", prepared)
            assert "\n" not in str(caught.value)


def test_every_damaged_byte_of_pixels_in_png_is_found(tmp_path):
    """Pillow alone decodes most of them to other pixels."""
    (tmp_path / "a").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a" / "it.png")
    content = (tmp_path / "a" / "it.png").read_bytes()
    source = data.image_folder(tmp_path, resize=8, crop=8)
    np.testing.assert_array_equal(source[0][0], pixels)
    first, last = content.index(b"IDAT") + 4, content.index(b"IEND") - 8
    for place in range(first, last):
        damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        (tmp_path / "a" / "it.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a/it\.png can't be read \(.*\): replace it, or delete it$"):
            source[0]


def test_tfds_images_of_a_damaged_file(prepared):
    (file,) = prepared.glob("mnist/*/mnist-test*")
    whole = file.read_bytes()
    match = rf"mnist can't be read from {file.parent} \(.*\): if .* damaged, delete it and run hmt_jax\.data\.prepare"
    for content in (b"", whole[: len(whole) // 2], None):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        source = data.tfds_images("mnist", "test", data_dir=prepared)
        with pytest.raises(ValueError, match=match):
            source[0]
    description = file.with_name("dataset_info.json")
    description.write_text(description.read_text().replace("{SPLIT}", "{PLITS}"))
    with pytest.raises(ValueError, match=match):
        data.tfds_images("mnist", "test", data_dir=prepared)


@pytest.mark.parametrize("function", [data.load, data.prepare])
@pytest.mark.parametrize("file_format", ["tfrecord", "parquet"])
def test_other_file_formats(function, file_format, prepared, monkeypatch):
    attempts = forbid_network(monkeypatch)
    (file,) = prepared.glob("mnist/*/dataset_info.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fileFormat": file_format}))
    with pytest.raises(
        ValueError, match=rf"3.0.1 is in {file_format} format, expected array_record.* another data_dir"
    ):
        function("mnist", prepared)
    assert not attempts


def arrays(**changes):
    images, labels = np.zeros((3, 4, 5, 1), np.uint8), np.array([2, 0, 1])
    return {
        "train_images": images,
        "train_labels": labels,
        "test_images": images[:2],
        "test_labels": labels[:2],
    } | changes


def test_from_arrays_keeps_arrays():
    images = np.random.default_rng(0).random((2, 4, 5, 1))
    dataset = data.from_arrays(**arrays(test_images=images), name="mine")
    assert dataset.name == "mine"
    assert dataset.image_shape == (4, 5, 1)
    assert dataset.num_classes == 3
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    np.testing.assert_array_equal(dataset.train_labels, [2, 0, 1])
    np.testing.assert_array_equal(dataset.test_images, images)


def test_from_arrays_counts_classes_of_both_sets():
    assert data.from_arrays(**arrays(test_labels=np.array([0, 6]))).num_classes == 7


@pytest.mark.parametrize(
    ("argument", "value", "match"),
    [
        (
            "train_images",
            np.zeros((3, 4, 5), np.uint8),
            r"got \(3, 4, 5\); add .* grey images with train_images\[\.\.\., None\]",
        ),
        (
            "test_images",
            np.zeros((0, 4, 5, 1), np.uint8),
            r"test_images is empty, with shape \(0, 4, 5, 1\): pass at least one",
        ),
        (
            "test_images",
            np.zeros((2, 4, 5, 1), int),
            r"uint8, or floating point in \[0, 1\], got int64; .*astype\(np\.uint8\)",
        ),
        ("train_images", np.full((3, 4, 5, 1), 255.0), r"lie in \[0, 1\] .*, got 255 to 255; divide them by"),
        ("train_images", np.full((3, 4, 5, 1), -0.5), r"lie in \[0, 1\] .*, got -0.5 to -0.5"),
        ("train_images", np.full((3, 4, 5, 1), np.nan), r"lie in \[0, 1\] .*, got nan to nan"),
        ("train_labels", np.eye(3), r"must have shape \(N,\), got \(3, 3\); .* train_labels\.argmax\(-1\)"),
        ("test_labels", np.array([0.0, 1.0]), r"whole numbers from 0, got float64; .* test_labels\.astype\(int\)"),
        ("test_labels", np.array([0, -1]), r"test_labels must be whole numbers from 0, but the lowest one is -1"),
        (
            "train_labels",
            np.array([1, 2, 3]),
            r"must count from 0, but the lowest one is 1: subtract it from all labels",
        ),
        ("train_labels", np.array([0, 1]), r"train_images has 3 images, but train_labels has 2 labels"),
        ("test_labels", np.array([0]), r"test_images has 2 images, but test_labels has 1 labels"),
        (
            "test_images",
            np.zeros((2, 5, 4, 1), np.uint8),
            r"of shape \(4, 5, 1\), but test_images of shape \(5, 4, 1\)",
        ),
    ],
)
def test_from_arrays_refuses(argument, value, match):
    with pytest.raises(ValueError, match=match):
        data.from_arrays(**arrays(**{argument: value}))


def test_as_floats():
    np.testing.assert_array_equal(data.as_floats(np.array([0, 51, 255], np.uint8)), np.float32([0, 0.2, 1]))
    halves = np.full(2, 0.5, np.float32)
    assert data.as_floats(halves) is halves
    assert data.as_floats(np.full(2, 0.5)).dtype == np.float32
    with pytest.raises(ValueError, match="images must be uint8, or floating point"):
        data.as_floats(np.array([0, 255]))


@pytest.mark.parametrize(("name", "size"), [("mnist", 28), ("cifar10", 32)])
def test_tfds_images_are_cropped_out_of_the_middle(name, size, tmp_path, publish):
    publish(name)
    data.prepare(name, tmp_path)
    dataset = data.load(name, tmp_path)
    source = data.tfds_images(name, "train", data_dir=tmp_path, resize=size, crop=size - 8)
    images, labels = zip(*source, strict=True)
    np.testing.assert_array_equal(images, dataset.train_images[:, 4:-4, 4:-4])
    np.testing.assert_array_equal(labels, dataset.train_labels)
    assert source.num_classes == 10


def test_tfds_images_are_resized(prepared):
    image, label = data.tfds_images("mnist", "test[3:]", data_dir=prepared, resize=56, crop=50)[1]
    dataset = data.load("mnist", prepared)
    assert (image.shape, image.dtype, label) == ((50, 50, 1), np.uint8, dataset.test_labels[4])
    # Twice the size, then averaged in pairs: nearly the image again, which is noise and so hard to resize.
    middle = image[1:-1, 1:-1, 0].reshape(24, 2, 24, 2).mean((1, 3))
    assert np.corrcoef(middle.ravel(), dataset.test_images[4, 2:-2, 2:-2, 0].ravel())[0, 1] > 0.9


def test_tfds_images_in_batches(prepared):
    source = data.tfds_images("mnist", "train", data_dir=prepared, resize=28, crop=28)
    batches = data.loader(source, batch_size=4, num_workers=2).epoch(0)
    images = np.concatenate([images for images, _ in batches])
    expected = data.load("mnist", prepared).train_images
    assert sorted(map(bytes, images)) == sorted(map(bytes, expected))


def test_tfds_images_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"mnist is not prepared in .*: run hmt_jax\.data\.prepare\('mnist'"):
        data.tfds_images("mnist", "train", data_dir=tmp_path)


def test_tfds_images_of_any_stored_kind_have_the_channels_of_the_data_set(prepared):
    source = data.tfds_images("mnist", "test", data_dir=prepared, resize=8, crop=8)
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    records = [
        {"image": encoded(image.convert("RGB"), "PNG"), "label": 3},
        {"image": encoded(image, "GIF"), "label": 3},
    ]
    source = dataclasses.replace(source, records=records)
    np.testing.assert_array_equal(source[0][0][..., 0], image)
    with pytest.raises(ValueError, match=r"mnist can't be read from .* \(it is not recognised as BMP, JPEG, "):
        source[1]


def encoded(image, kind):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_splits_that_tfds_images_cannot_have(prepared):
    for split, match in [
        (None, r"split must be a string, such as 'train' or 'test\[:1000\]', got None"),
        (["train", "test"], r"split must be a string, .* got \['train', 'test'\]"),
        (
            "valid",
            r"mnist has no split 'valid' \(.*\): use train or test, or a part such as 'train\[:1000\]'",
        ),
        ("train[", r"mnist has no split 'train\['"),
        ("test[20:30]", r"mnist has no split 'test\[20:30\]' \(.* 10 examples"),
    ]:
        with pytest.raises(ValueError, match=match):
            data.tfds_images("mnist", split, data_dir=prepared)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("minst", r"unknown data set 'minst'; the nearest ones are mnist, .*, and .*list_builders\(\) lists all"),
        ("imagenet", "unknown data set 'imagenet'; the nearest ones are .*imagenet"),
        ("../mnist", "unknown data set '../mnist'"),
        ("", "unknown data set ''; none has a similar name"),
        (None, "name must be a string, such as 'mnist', got None"),
        (
            "mnist/deep",
            r"/mnist \(.*deep.*\): check config and version in 'mnist/deep'; if the folder is damaged, delete",
        ),
        ("mnist:9.9.9", r"/mnist \(.*9\.9\.9.*\): check config and version in 'mnist:9.9.9'; if"),
    ],
)
def test_names_that_tfds_images_does_not_know(name, match, tmp_path):
    with pytest.raises(ValueError, match=match) as caught:
        data.tfds_images(name, "train", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_tfds_images_are_checked(prepared, monkeypatch):
    with pytest.raises(ValueError, match="crop must be at least 1 and at most resize, got crop 9 and resize 8"):
        data.tfds_images("mnist", "train", data_dir=prepared, resize=8, crop=9)
    builder = _tfds.find("mnist", prepared)
    monkeypatch.setattr(builder.info.features, "_feature_dict", {"image": builder.info.features["image"]}, raising=True)
    monkeypatch.setattr(_tfds, "find", lambda *_: builder)
    with pytest.raises(ValueError, match="mnist has no label: take a data set of labelled images"):
        data.tfds_images("mnist", "train", data_dir=prepared)


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 9)).save(path)


@pytest.mark.parametrize(
    ("size", "match"),
    [
        (
            {"resize": 10**6, "crop": 10**6},
            "crop must be at most 5792, so that an image fits in memory, got 1000000: low",
        ),
        ({"resize": 5793, "crop": 5793}, "crop must be at most 5792, so that an image fits in memory, got 5793: lower"),
        ({"resize": True, "crop": True}, "resize must be a number of pixels, such as 224, got True"),
        ({"resize": 8, "crop": True}, "crop must be a number of pixels, such as 224, got True"),
    ],
)
def test_crops_that_would_fill_the_memory_or_are_no_numbers_are_refused(size, match, tmp_path):
    save_image(tmp_path / "a" / "x.png")
    with pytest.raises(ValueError, match=match):
        data.image_folder(tmp_path, **size)
    with pytest.raises(ValueError, match=match):
        data.tfds_images("mnist", "train", data_dir=tmp_path, **size)


def test_a_small_crop_of_a_huge_resized_image_is_read(tmp_path):
    save_image(tmp_path / "a" / "x.png")
    image, _ = data.image_folder(tmp_path, resize=10**6, crop=5)[0]
    np.testing.assert_array_equal(image, np.zeros((5, 5, 3), np.uint8))


CLASSES_HOLD_IMAGES = "they must lie in the classes' folders themselves"


@pytest.mark.parametrize(
    ("images", "given", "expected"),
    [
        (
            ["images/train/a/x.png", "images/train/b/x.png"],
            "",
            "the images are two levels deeper, in images/train of {0}: pass image_folder('{0}/images/train'), whose "
            "classes would be a, b; or, if images/train is a class itself, move its images up: " + CLASSES_HOLD_IMAGES,
        ),
        (
            ["train/a/images/x.png", "val/a/images/x.png"],
            "",
            "the images are two levels deeper, in train/a, val/a of {0}: pass one of them, such as image_folder("
            "'{0}/train/a'), whose only class would be images; or, if train/a is a class itself, move its images up: "
            + CLASSES_HOLD_IMAGES,
        ),
        (
            ["train/a/images/x.png"],
            "train",
            "the images are one level deeper, in a of {0}/train: pass image_folder('{0}/train/a'), whose only class "
            "would be images; or, if a is a class itself, move its images up: " + CLASSES_HOLD_IMAGES,
        ),
        (
            [f"{name}/images/x.png" for name in "abcd"],
            "",
            "the images are one level deeper, in a, b, c, ... of {0}: pass one of them, such as image_folder('{0}/a'), "
            "whose only class would be images; or, if a is a class itself, move its images up: " + CLASSES_HOLD_IMAGES,
        ),
        (
            ["a/x.png", "b/images/x.png"],
            "",
            "{0}/b holds images only deeper, in images: move them up, because " + CLASSES_HOLD_IMAGES,
        ),
    ],
    ids=["splits in a folder", "images below classes of splits", "images below a class", "many", "one class of two"],
)
def test_images_deeper_than_the_folders_of_classes_are_found(images, given, expected, tmp_path):
    for image in images:
        save_image(tmp_path / image)
    with pytest.raises(ValueError, match=f"^{re.escape(expected.format(tmp_path))}$"):
        data.image_folder(tmp_path / given)


def test_images_far_below_are_not_looked_for(tmp_path):
    save_image(tmp_path / "a" / "b" / "c" / "d" / "e" / "x.png")
    with pytest.raises(ValueError, match="/a holds no images "):
        data.image_folder(tmp_path)


def test_the_first_images_of_a_data_set():
    images, labels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.array([0, 1, 2, 0, 1, 2])
    whole = data.from_arrays(images, labels, images[:4], labels[:4], "steps")
    few = whole.first(num_train=5, num_test=2)
    assert few.train_images.ravel().tolist() == [0, 1, 2, 3, 4]
    assert few.train_labels.tolist() == [0, 1, 2, 0, 1]
    assert few.test_images.ravel().tolist() == [0, 1]
    assert few.test_labels.tolist() == [0, 1]
    assert (few.name, few.num_classes) == ("steps", 3)
    for numbers, message in (
        ((7, 0), "num_train=7 is more than the 6 training images of steps: set num_train to at most 6"),
        ((0, 5), "num_test=5 is more than the 4 test images of steps: set num_test to at most 4"),
        ((-1, 0), "num_train must be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            whole.first(*numbers)
