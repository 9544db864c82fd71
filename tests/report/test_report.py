"""What pages are made of, and the words for what is wrong."""

import base64
import dataclasses
import io
import pathlib
import re

import jax
import numpy as np
import pages
import pytest
from PIL import Image
from test_statistics import make_result

import hmt_jax
from hmt_jax import Status, report, solvers, subspaces
from hmt_jax.report import _charts, _gallery, _numbers


def test_a_page_needs_measurements_with_different_names_that_can_be_told_apart(tmp_path):
    one = pages.grid()
    path = tmp_path / "page.html"
    with pytest.raises(ValueError, match="measurements is empty: pass at least one"):
        report.write(path, [])
    with pytest.raises(ValueError, match="measurements must have different names, got grid, grid"):
        report.write(path, [one, one])
    many = [dataclasses.replace(one, name=str(number)) for number in range(11)]
    with pytest.raises(ValueError, match=r"11 measurements can't be told apart, at most 10 can: draw some in another"):
        report.write(path, many)
    assert not path.exists()


def test_a_measurement_has_a_name_for_each_subspace():
    result = make_result(np.ones((3, 2)))
    message = "subspaces of the measurement 'a' must have one entry for each of the 3 subspaces, got 2"
    with pytest.raises(ValueError, match=message):
        report.Measurement(name="a", result=result, subspaces=["0", "1"])
    with pytest.raises(ValueError, match="got 'abc'"):
        report.Measurement(name="a", result=result, subspaces="abc")
    with pytest.raises(ValueError, match="bounds of the measurement 'a' must have one entry"):
        report.Measurement(name="a", result=result, subspaces=list("abc"), bounds=np.ones((2, 1)))
    with pytest.raises(
        ValueError, match="image_ids of the measurement 'a' must have one entry for each of the 2 images"
    ):
        report.Measurement(name="a", result=result, subspaces=list("abc"), image_ids=["0"])
    with pytest.raises(TypeError, match="result must be a MarginResult, got ndarray"):
        report.Measurement(name="a", result=np.ones((3, 2)), subspaces=list("abc"))
    with pytest.raises(ValueError, match=r"corners of the measurement 'a' must have the shape \(3, 2\), got \(3,\)"):
        report.Measurement(name="a", result=result, subspaces=list("abc"), corners=np.arange(3))
    with pytest.raises(ValueError, match=r"bounds of the measurement 'a' must have the shape \(3, M\), got \(3,\)"):
        report.Measurement(name="a", result=result, subspaces=list("abc"), bounds=np.ones(3))


def test_numbers_arrays_and_paths_are_as_good_as_texts_and_lists(tmp_path):
    pixel = np.zeros((1, 1, 1), np.float32)
    odd = report.Measurement(
        name=pathlib.Path("a/b"),
        result=make_result(np.ones((3, 2))),
        subspaces=range(3),
        corners=[[0, 0], [0, 4], [4, 0]],
        bounds=[[1, 2]] * 3,
        classes=np.array(["zero", "one"]),
        image_ids=np.arange(2),
        num_images=np.int64(7),
        claims=[report.Claim("a", "b", "c", np.bool_(False))],
        history={"loss": np.array([0.5, 0.25], np.float32)},
        pictures=[report.Picture(np.int64(0), np.int64(1), "least", np.float32(1), pixel, pixel, np.int8(0), 1)],
        attributes={"number": np.int64(3), "array": np.arange(2), "path": pathlib.Path("c"), "nan": float("nan")},
    )
    path = tmp_path / "odd.npz"
    report.save(path, [odd])
    (after,) = report.load(path)
    assert (after.name, after.subspaces, after.image_ids) == ("a/b", ["0", "1", "2"], ["0", "1"])
    assert after.classes == ["zero", "one"]
    assert after.history == {"loss": [0.5, 0.25]}
    assert str(after.attributes) == "{'number': 3, 'array': [0, 1], 'path': 'c', 'nan': nan}"
    page = report.html([odd])
    assert page == report.html([after])
    assert '<td class="fails">' in page


def test_a_name_that_is_not_in_utf_8_is_no_reason_to_lose_a_page(tmp_path):
    name = "a\udcff"  # a byte in the name of a file, as Python has it
    odd = report.Measurement(name=name, result=make_result(np.ones((1, 2))), subspaces=[name], classes=[name])
    report.write(tmp_path / "page.html", [odd])
    assert "a?" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_only_measurements_of_the_same_images_are_compared():
    standard, robust, tight = pages.measurements()
    pairs = _numbers.pairs_of([standard, robust, tight])
    assert [(pair.first, pair.second, pair.same_classifier) for pair in pairs] == [(0, 1, False), (0, 2, True)]
    np.testing.assert_allclose(pairs[1].ratios.median_ratio, 0.5)
    for other in (
        dataclasses.replace(robust, image_ids=[f"train {n}" for n in range(pages.NUM_IMAGES)]),
        dataclasses.replace(robust, image_ids=()),
        dataclasses.replace(robust, subspaces=list("abcdef")),
    ):
        assert _numbers.pairs_of([standard, other]) == []


def test_images_that_two_measurements_share_are_compared_one_by_one():
    standard, robust, _ = pages.measurements()
    order = np.array([31, 4, 15, 9, 26])
    some = dataclasses.replace(
        robust,
        result=make_result(np.exp(pages.margins(1)[:, order])),
        image_ids=[*(pages.IDS[n] for n in order[:4]), "another image"],
    )
    (pair,) = _numbers.pairs_of([standard, some])
    assert pair.ratios.counts["compared"].tolist() == [4] * pages.NUM_SUBSPACES
    expected = np.median(np.exp(pages.margins(1)[:, order[:4]]) / pages.margins(0)[:, order[:4]], axis=1)
    np.testing.assert_allclose(pair.ratios.median_ratio, expected)


@pytest.mark.slow
def test_measurements_are_the_same_after_they_were_in_a_file(tmp_path):
    path = tmp_path / "measurements.npz"
    before = [*pages.measurements(), pages.grid(), *pages.hostile()]
    report.save(path, before)
    after = report.load(path)
    assert report.html(after, title="a page") == report.html(before, title="a page")
    np.testing.assert_array_equal(after[0].bounds, before[0].bounds)
    np.testing.assert_array_equal(after[0].pictures[0].perturbation, before[0].pictures[0].perturbation)
    assert after[0].claims == before[0].claims


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"margin": np.ones((2, 3))}, "it has no measurements"),
        ({"measurements": '[{"name": "a", "pictures": [], "claims": []}]'}, "it has no margin, label, adv"),
        ({"measurements": "[1]"}, "'int' object"),
    ],
)
def test_a_file_of_something_else_is_refused(content, why, tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, **content)
    with pytest.raises(ValueError, match=rf"other.npz is not a file of hmt_jax.report.save: .*{why}"):
        report.load(path)
    path.write_text("text")
    with pytest.raises(ValueError, match=r"other.npz is not a file of hmt_jax.report.save: "):
        report.load(path)
    with pytest.raises(OSError, match="No such file"):
        report.load(tmp_path / "none.npz")


def test_two_solvers_are_compared_on_a_network_that_is_not_the_first_one():
    standard, robust, _ = pages.measurements()
    tight = dataclasses.replace(
        robust, name="robust, tight", result=dataclasses.replace(robust.result, solver="Walk()")
    )
    pairs = _numbers.pairs_of([standard, robust, tight])
    assert [(pair.first, pair.second, pair.same_classifier) for pair in pairs] == [(0, 1, False), (1, 2, True)]
    other = dataclasses.replace(tight, name="standard, tight", classifier_id=standard.classifier_id)
    pairs = _numbers.pairs_of([standard, robust, other, tight])
    assert [(pair.first, pair.second, pair.same_classifier) for pair in pairs] == [
        (0, 1, False),
        (0, 2, True),
        (1, 3, True),
        (2, 3, False),
    ]
    (pair,) = _numbers.pairs_of([standard, tight])  # nothing else is there to compare it with
    assert (pair.first, pair.second, pair.same_classifier) == (0, 1, False)


def test_a_subset_is_drawn_without_replacement_and_all_are_taken_if_there_are_few():
    drawn = _numbers.subset(1000, 30)
    assert len(set(drawn.tolist())) == 30
    assert drawn.min() >= 0
    assert drawn.max() > 500
    assert sorted(drawn) == drawn.tolist()
    assert _numbers.subset(7, 30).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ([(0, 0), (0, 4), (8, 0), (8, 4)], ([0, 8], [0, 4])),
        ([(0, 0), (4, 4)], None),  # along the diagonal
        ([(0, 0), (0, 4)], None),  # a single row
        ([(0, 0), (0, 4), (8, 0), (8, 0)], None),
        (None, None),
    ],
)
def test_grids_are_known_by_their_corners(corners, expected):
    assert _numbers.grid_of(None if corners is None else np.array(corners)) == expected


def test_the_gallery_has_the_least_the_median_and_the_greatest_margin():
    margins = np.array([[5.0, 1.0, 9.0, 3.0, 7.0], [2.0, 8.0, 4.0, 6.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    status = np.full(margins.shape, int(Status.CONVERGED))
    status[1, 4] = Status.OUT_OF_STEPS
    status[2] = Status.ZERO_GRADIENT
    assert _gallery.chosen(make_result(margins, status)) == [
        (0, 1, "least"),
        (0, 0, "median"),
        (0, 2, "greatest"),
        (1, 0, "least"),
        (1, 2, "median"),
        (1, 1, "greatest"),
    ]
    assert _gallery.chosen(make_result(np.ones((1, 1)))) == [(0, 0, "least")]


def test_pictures_show_the_image_and_its_amplified_perturbation():
    original = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4, 1)
    perturbation = np.zeros((4, 4, 1), np.float32)
    perturbation[1, 2] = -0.03
    picture = report.Picture(2, 17, "least", 0.03, original, perturbation, 4, 9)
    measurement = dataclasses.replace(pages.measurements()[0], pictures=[picture], classes=["zero"] * 10)
    (row,) = _gallery.rows(measurement)
    assert (row.window, row.image, row.before, row.after) == (pages.SUBSPACES[2], 17, "zero", "zero")
    assert row.factor == 10  # the greatest round one that leaves 0.03 within 0.5
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))) for source in row.sources
    ]
    expected = [original, 0.5 + 10 * perturbation, np.clip(original + perturbation, 0, 1)]
    for found, image in zip(pixels, expected, strict=True):
        np.testing.assert_allclose(found, 255 * image[..., 0], atol=0.51)


@pytest.mark.slow
def test_pictures_of_a_result_are_its_coordinates_in_the_image():
    shape = (8, 8, 1)
    windows = subspaces.dct_diagonal(shape, size=4, step=4)
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    weights = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    network = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, weights)
    result = hmt_jax.measure_margins(network, images, windows, solvers.DeepFool(), keep_coordinates=True)
    wanted = _gallery.chosen(result)
    for picture, (r, n, _) in zip(report.pictures(result, windows, images, wanted), wanted, strict=True):
        np.testing.assert_allclose(picture.original, images[n] / 255, atol=1e-6)
        assert np.linalg.norm(picture.perturbation) == pytest.approx(result.margin[r, n], rel=1e-5)
        logits = (picture.original + picture.perturbation).reshape(-1) @ weights
        assert logits.argmax() == picture.adversarial_label == result.adversarial_label[r, n]
    with pytest.raises(ValueError, match="result has no coordinates: measure with keep_coordinates=True"):
        report.pictures(dataclasses.replace(result, coordinates=None), windows, images, wanted)


def test_training_is_drawn_where_a_number_is_zero_or_negative():
    chart = _charts.history("accuracy under attack", {0: [0.0, 0.25, np.nan, -1.0]}, {0: "a"})
    assert [row["y"] for row in chart["datasets"]["rows"]] == [0.0, 0.25, None, -1.0]


@pytest.mark.parametrize("value", [0.4, 0.0, -2.0])
def test_the_axis_around_a_single_number_of_training_has_its_place_inside(value):
    chart = _charts.history("accuracy", {0: [value]}, {0: "a"})
    low, high = chart["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert low < value < high


def test_the_page_says_where_ratios_have_no_marker():
    standard, _, tight = pages.measurements()
    told = "a median may be 0, infinite or unknown, and has no marker"
    assert told not in report.html([standard, tight])
    lost = dataclasses.replace(tight, result=make_result(pages.margins(0), np.full((6, 40), Status.OUT_OF_STEPS)))
    assert told in report.html([standard, lost])


def test_curves_of_different_numbers_of_images_are_told_apart():
    standard, robust, tight = pages.measurements()
    warning = "These curves are not all of the same images"
    assert warning not in report.html([standard, robust])
    few = dataclasses.replace(tight, result=tight.result[:, :4], image_ids=tight.image_ids[:4])
    page = report.html([standard, few])
    assert f"{warning}: some have 4 and others 40, so one may lie above another by that alone." in page
    assert "The ratios below are of images that two measurements share." in page


def test_numbers_of_all_samples_are_in_the_tables(tmp_path):
    report.write(tmp_path / "page.html", pages.measurements())
    page = (tmp_path / "page.html").read_text()
    assert len(page) < 5e6
    texts = re.sub("<[^>]*>", " ", page)
    for word in ("does not hold", "holds", "undecided", "1.2.3", "because why", "hmt measure --model standard"):
        assert word in texts
    for margins in (pages.margins(0), pages.margins(0) / 2):
        for value in np.median(margins, axis=1):
            assert f">{value:.3g}<" in page or f">{value:#.3g}<" in page


def test_a_large_measurement_has_dots_and_rows_of_some_images_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(_numbers, "_NUM_RESAMPLES", 10)  # a thousand take seconds
    margins = np.random.default_rng(0).lognormal(size=(14, 5000))
    measurement = report.Measurement(name="large", result=make_result(margins), subspaces=[str(r) for r in range(14)])
    report.write(tmp_path / "page.html", [measurement])
    page = (tmp_path / "page.html").read_text()
    assert len(page) < 5e6
    assert "Dots are 214 images drawn at random" in page
    assert "lines from 5% to 95% of all 5,000 images" in page
    assert "2,857 of 5,000 images, drawn at random" in page
