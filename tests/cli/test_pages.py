"""Pages that `hmt report` and `hmt measure --report` write."""

import dataclasses
import html
import json
import re
import shutil

import cli_models
import numpy as np
import pytest
from workspace import IMAGES, MEASURE

import hmt_jax
from hmt_jax import report
from hmt_jax.cli import _report


def text_of(path):
    """The words on a page, without charts and the library that draws them."""
    page = re.sub(r"<(script|style)\b.*?</\1>", " ", path.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", " ", page)))


def charts_of(path):
    return [
        json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', path.read_text())
    ]


@pytest.fixture
def measure(hmt, tmp_path):
    """Measures into a store of a name, with further arguments."""

    def measure(name, *arguments):
        path = tmp_path / f"{name}.zarr"
        code, _, err = hmt(*MEASURE[:-1], path, *arguments)
        assert (code, err) == (0, "")
        return path

    return measure


@pytest.mark.slow
def test_two_stores_are_drawn_and_compared(measure, hmt, tmp_path):
    stores = [
        measure("loose", "--subspaces", "dct-diagonal:4:2", "--solver", "deepfool"),
        measure("close", "--subspaces", "dct-diagonal:4:2", "--solver", "tight:fast"),
    ]
    out = tmp_path / "page.html"
    assert hmt("report", *stores, "--out", out) == (0, f"{out}\n", "")
    margins = [hmt_jax.MarginStore.open(path).read().margin for path in stores]
    curves = charts_of(out)[0]["datasets"]["rows"]
    for m in (0, 1):
        np.testing.assert_allclose([row["y"] for row in curves if row["m"] == m], np.median(margins[m], 1), rtol=1e-5)
    text = text_of(out)
    assert "Another solver on the same network: margins beside those of loose" in text
    (ratios,) = (chart for chart in charts_of(out) if "one" in chart["datasets"])
    found = [row["y"] for row in ratios["datasets"]["rows"]]
    np.testing.assert_allclose(found, np.median(margins[1] / margins[0], axis=1), rtol=1e-5)
    assert f"hmt report {stores[0]} {stores[1]} --out {out}" in text
    # The command as it is written there makes the same store again.
    (command,) = re.findall(
        r"hmt (measure --model \S+ --images \S+ --subspaces dct-diagonal:4:2 --solver deepfool) --out", text
    )
    assert hmt(*command.split(), "--out", tmp_path / "again.zarr")[0] == 0
    np.testing.assert_array_equal(hmt_jax.MarginStore.open(tmp_path / "again.zarr").read().margin, margins[0])
    assert "parameters_sha256" in text


@pytest.mark.slow
def test_runs_and_files_of_measurements_are_drawn_beside_stores(measure, hmt, tmp_path):
    store = measure("whole", "--subspaces", "dct-diagonal:4:2")
    found = report.of_store(hmt_jax.MarginStore.open(store))
    (tmp_path / "run").mkdir()
    for file, name in (("run/measurements.npz", "lenet"), ("one.npz", "lenet"), ("two.npz", "other")):
        result = dataclasses.replace(found.result[:, :4], margin=2 * found.result.margin[:, :4])
        some = dataclasses.replace(found, name=name, result=result, image_ids=found.image_ids[:4])
        beside = [dataclasses.replace(some, name="tight", image_ids=())] * (file == "one.npz")
        report.save(tmp_path / file, [some, *beside])
    out = tmp_path / "page.html"
    paths = [store, tmp_path / "run", tmp_path / "one.npz", tmp_path / "two.npz"]
    assert hmt("report", *paths, "--out", out) == (0, f"{out}\n", "")
    text = text_of(out)
    for name in ("whole :", "run: lenet :", "one: lenet :", "one: tight :", "other :"):
        assert f"{name} medians as a table" in text
    ratios = [chart["datasets"]["rows"] for chart in charts_of(out) if "one" in chart["datasets"]]
    assert [row["y"] for rows in ratios for row in rows] == pytest.approx([2] * 9)
    assert {row["images"] for rows in ratios for row in rows} == {4}


@pytest.mark.parametrize("arguments", [(), ("--keep-coordinates",)], ids=["found again", "kept"])
def test_the_gallery_has_images_of_the_store(arguments, measure, hmt, tmp_path, monkeypatch):
    pages = []
    monkeypatch.setattr(report, "write", lambda out, measurements, **_: pages.append(measurements))
    path = measure("whole", "--subspaces", "dct-diagonal:4:2", *arguments)
    assert hmt("report", path, "--out", tmp_path / "page.html")[0] == 0
    (((measurement),),) = pages
    margins = hmt_jax.MarginStore.open(path).read().margin
    assert len(measurement.pictures) == 9  # in the first, the middle and the last of three windows
    network = cli_models.make()
    for picture in measurement.pictures:
        np.testing.assert_allclose(picture.original, IMAGES[picture.image] / 255, atol=1e-6)
        assert np.linalg.norm(picture.perturbation) == pytest.approx(margins[picture.subspace, picture.image], rel=1e-3)
        logits = network(np.stack([picture.original, picture.original + picture.perturbation]))
        assert logits.argmax(1).tolist() == [picture.label, picture.adversarial_label]
    assert [picture.rank for picture in measurement.pictures[:3]] == ["least", "median", "greatest"]
    assert measurement.pictures[0].image == margins[0].argmin()


@pytest.mark.slow
def test_the_page_says_why_there_are_no_images(hmt, tmp_path):
    out = tmp_path / "page.html"
    assert hmt("report", "whole.zarr", "part.zarr", "--out", out)[0] == 0
    text = text_of(out)
    assert "whole : There are no images here, because" in text
    assert "was not written by hmt measure, so its model and images are not known" in text
    assert "part : There are no images here, because the measurement is still going on" in text
    assert "part : 2 of 6 images are measured so far" in text
    images = tmp_path / "images.npy"
    np.save(images, IMAGES)
    path = tmp_path / "moved.zarr"
    assert hmt("measure", "--model", "cli_models:make", "--images", images, "--out", path)[0] == 0
    np.save(images, IMAGES[::-1])
    assert hmt("report", path, "--out", out)[0] == 0
    assert f"There are no images here, because {path} has margins of other images than {images} has" in text_of(out)
    images.unlink()
    assert hmt("report", path, "--out", out)[0] == 0
    assert "There are no images here, because there are no images at" in text_of(out)


@pytest.mark.slow
def test_windows_of_a_grid_are_a_heat_map(measure, hmt, tmp_path):
    out = tmp_path / "page.html"
    path = measure("grid", "--subspaces", "dct-grid:4:4", "--report", out)
    chart = charts_of(out)[0]
    cells = {(row["row"], row["column"]): row["y"] for row in chart["datasets"]["rows"]}
    medians = np.median(hmt_jax.MarginStore.open(path).read().margin, axis=1)
    assert list(cells) == [(0, 0), (0, 4), (4, 0), (4, 4)]
    np.testing.assert_allclose(list(cells.values()), medians, rtol=1e-5)
    assert "Still measuring" not in text_of(out)


@pytest.mark.slow
def test_the_page_of_a_running_measurement_is_written_every_half_minute(folder, tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(_report.time, "monotonic", lambda: now[0])
    out = tmp_path / "page.html"
    show = _report.live("part.zarr", str(out))
    show(2, 6)
    assert "Still measuring: 2 of 6 pairs" in text_of(out)
    assert "the measurement is still going on" in text_of(out)
    for seconds, expected in ((29.9, 2), (0.2, 4)):
        now[0] += seconds
        show(4, 6)
        assert f"Still measuring: {expected} of 6 pairs" in text_of(out)
    show = _report.live("nothing.zarr", str(out))
    show(0, 6)
    assert "Still measuring: 0 of 6 pairs" in text_of(out)


def test_a_page_that_cannot_be_written_is_no_reason_to_lose_a_measurement(folder, tmp_path):
    show = _report.live("part.zarr", str(tmp_path / "no" / "page.html"))
    with pytest.warns(UserWarning, match=r"the page .* can't be written \(.*No such file.*\); measuring goes on"):
        show(2, 6)


def test_a_store_that_cannot_be_read_is_no_reason_to_lose_a_measurement(folder, tmp_path, monkeypatch):
    """A chunk of another process's share is damaged, or the network is down for a while."""
    path = shutil.copytree("part.zarr", tmp_path / "damaged.zarr")
    (path / "margin" / "c" / "0" / "0").write_bytes(b"damaged")
    show = _report.live(str(path), str(tmp_path / "page.html"))
    message = r"the page .* can't be written \(.* has 1 damaged file \(margin/c/0/0\): .*\); measuring goes on"
    with pytest.warns(UserWarning, match=message):
        show(2, 6)

    def open_nothing(_):
        raise OSError("it does not answer")

    monkeypatch.setattr(hmt_jax.MarginStore, "open", open_nothing)
    show = _report.live(str(path), str(tmp_path / "page.html"))
    with pytest.warns(UserWarning, match=r"the page .* can't be written \(it does not answer\); measuring goes on"):
        show(2, 6)


def test_a_folder_is_no_page(hmt, tmp_path):
    out = tmp_path / "page.html"
    out.mkdir()
    assert hmt("report", "whole.zarr", "--out", out) == (
        2,
        "",
        f"error: {out} is a folder, and the page is a file: name another\n",
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["report", "whole.zarr", "--out", "page.png"], "the page must end in .html, got 'page.png'"),
        (["report", "whole.zarr", "--out", "no/page.html"], "no of the page is not there: make it, or name another"),
        (["report", "--out", "page.html"], "report needs at least one store or run, such as: hmt report m.zarr --out"),
        (
            ["report", "grey", "--out", "page.html"],
            "there is no store of margins at grey: name the folder that hmt measure wrote with --out, or that of a",
        ),
        (["report", "nothing.zarr", "--out", "page.html"], "nothing is measured in"),
        ([*MEASURE, "--report", "page"], "the page must end in .html, got 'page'"),
    ],
)
def test_mistakes_are_said_before_any_work(arguments, expected, hmt):
    code, out, err = hmt(*arguments)
    assert (code, out) == (2, "")
    assert expected in err
