"""What the tight solver says of a stored run, on the command line and in files."""

import json
import os
import platform
import re
import shutil

import numpy as np
import pytest

import hmt_jax
from experiments import __main__ as command_line
from experiments import registry, store
from experiments.analyses import audit, compare_solvers
from hmt_jax import cli, data, statistics, subspaces

pytestmark = pytest.mark.slow

NUM_IMAGES = 8
FIELDS = [
    "--num-epochs",
    "2",
    "--num-images",
    "12",
    "--attack",
    "pgd",
    "--epsilon",
    "0.5",
    "--attack-steps",
    "2",
    "--baseline",
    "digits",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small robust run, with the run that it is compared with."""
    path = tmp_path_factory.mktemp("runs") / "robust"
    assert command_line.main(["run", "digits", *FIELDS, "--folder", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def report(finished):
    """What the audit of that run returns."""
    return audit.audit(finished, num_images=NUM_IMAGES, effort="fast", num_certified=3)


def margins_of(path):
    with np.load(path / "margins.npz") as arrays:
        return arrays["margin"][:, :NUM_IMAGES]


def test_the_page_has_the_tight_margins_and_the_certified_bounds(finished, report, tmp_path):
    measured, tight = hmt_jax.report.load(finished / "measurements.npz")
    with np.load(finished / "audit.npz") as arrays:
        margins, certified = arrays["margin"], arrays["certified"][:, :3]
    np.testing.assert_array_equal(tight.result.margin, margins)
    np.testing.assert_array_equal(tight.bounds, certified)
    assert tight.image_ids == measured.image_ids[:NUM_IMAGES]
    page = (finished / "report.html").read_text()
    assert "Another solver on the same network" in page
    specifications = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    ratios = {
        row["name"]: row["y"]
        for each in specifications
        if "one" in each["datasets"]
        for row in each["datasets"]["rows"]
    }
    expected = np.median(margins[-1] / margins_of(finished)[-1])
    assert ratios["digits, tight / digits"] == pytest.approx(expected, rel=1e-5)
    out = tmp_path / "page.html"
    assert cli.main(["report", str(finished), "--out", str(out)]) == 0
    assert ">digits, tight<" in out.read_text()


def test_ratios_are_those_of_the_run_to_the_tight_margins(finished, report):
    written = json.loads((finished / "audit.json").read_text())
    with np.load(finished / "audit.npz") as arrays:
        measured, quick, tight, certified = (arrays[name] for name in ("measured", "quick", "tight", "certified"))
    np.testing.assert_array_equal(measured, margins_of(finished))
    assert (tight <= measured).all()
    assert (certified[:, :3] <= tight[:, :3]).all()
    assert (certified[:, :3] > 0).all()
    assert np.isnan(certified[:, 3:]).all()
    rows = [line.split() for line in report.splitlines()[2:]]
    for name, margins, column in (("ratio", measured, 5), ("quick_ratio", quick, 10)):
        ratios, found = margins / tight, [window[name] for window in written["windows"]]
        np.testing.assert_allclose([each["value"] for each in found], np.median(ratios, axis=1))
        percentiles = np.percentile(ratios, 90, axis=1)  # of two float32, which NumPy's versions round differently
        np.testing.assert_allclose([each["90%"] for each in found], percentiles, rtol=1e-6)
        assert all(each["low"] <= each["value"] <= each["high"] for each in found)
        assert rows[0][column] == f"{np.median(ratios[0]):.4g}"
    assert np.median(quick / measured) < 1
    assert (finished / "audit.png").read_bytes().startswith(b"\x89PNG")


def test_ratios_between_models_are_measured_again(finished, report):
    origin = store.baseline(finished)
    written = json.loads((finished / "audit.json").read_text())["over_baseline"]
    expected = np.median(margins_of(finished), axis=1) / np.median(margins_of(origin), axis=1)
    np.testing.assert_allclose(written["run"], expected, rtol=1e-6)
    with np.load(finished / "audit.npz") as ours, np.load(finished / "audit_baseline.npz") as theirs:
        expected = np.median(ours["tight"], axis=1) / np.median(theirs["tight"], axis=1)
    np.testing.assert_allclose(written["tight"], expected, rtol=1e-6)
    assert "medians over those of digits" in report
    assert not list(origin.glob("audit*"))  # an audit of that run itself would be lost


def test_certified_bounds_are_beside_the_tight_margins_of_the_same_images(finished, report):
    with np.load(finished / "audit.npz") as arrays:
        tight, certified = arrays["tight"][:, :3], arrays["certified"][:, :3]
    header, *rows = report.splitlines()[1:8]
    assert re.split("  +", header)[3:5] == ["tight, first 3", "certified, first 3"]
    for row, *medians in zip(rows, np.median(tight, axis=1), np.median(certified, axis=1), strict=True):
        assert row.split()[3:5] == [f"{median:.4g}" for median in medians]


def test_margins_that_are_not_found_are_no_reason_to_lose_an_audit(tmp_path):
    path = tmp_path / "robust"
    fields = [
        "--num-epochs",
        "1",
        "--num-images",
        "4",
        "--max-steps",
        "1",
        "--attack",
        "pgd",
        "--attack-steps",
        "1",
        "--epsilon",
        "0.5",
    ]
    assert command_line.main(["run", "digits", *fields, "--baseline", "digits", "--folder", str(path)]) == 0
    assert np.isinf(np.median(statistics.censored(*_margins_and_status(path)), axis=1)).any()
    report = audit.audit(path, num_images=4, effort="fast")
    assert "medians over those of digits" in report
    over_baseline = json.loads((path / "audit.json").read_text())["over_baseline"]
    assert {"inf", "nan"} & {*over_baseline["run"]}
    assert not {"inf", "nan"} & {*over_baseline["tight"]}


def _margins_and_status(path):
    with np.load(path / "margins.npz") as arrays:
        return arrays["margin"], arrays["status"]


def test_a_wrong_order_is_told():
    rng = np.random.default_rng(0)
    tight = np.array([[1.0], [2.0], [4.0]]) * rng.uniform(0.95, 1.05, size=(3, 40))
    assert audit.order(1.5 * tight, tight).endswith("3 of 3 pairs that the tight margins tell apart: stands")
    biased = np.array([[3.0], [1.0], [1.0]]) * tight
    assert audit.order(biased, tight).endswith("2 of 3 pairs that the tight margins tell apart: DOES NOT STAND")
    # Two windows without margins have no order.
    censored = np.concatenate([tight, np.full((2, 40), np.inf)])
    assert audit.order(censored, censored).endswith("9 of 9 pairs that the tight margins tell apart: stands")


def test_windows_whose_medians_may_be_censored_have_no_order():
    margins = np.array([np.where(np.arange(50) < 28, np.inf, 1.0), np.where(np.arange(50) < 45, np.inf, 1.0)])
    assert audit.order(np.ones((2, 50)), margins).startswith("order of the windows: 0 of 0 pairs")


def test_windows_that_a_run_has_no_medians_of_are_not_in_its_order():
    tight = np.random.default_rng(0).uniform(1, 1.1, (2, 50)) * [[1], [2]]
    for margins in (tight, tight[::-1]):
        told = audit.order(np.full((2, 50), np.inf), margins)
        assert told.endswith("0 of 0 pairs that the tight margins tell apart; for 1 more the run has no median: stands")
        assert audit.order(margins, margins).endswith("1 of 1 pairs that the tight margins tell apart: stands")
        assert audit.order(margins[::-1], margins).endswith("DOES NOT STAND")
        half = np.where(np.median(margins, 1, keepdims=True) > 1.5, np.inf, margins)
        assert audit.order(half, margins).endswith("1 of 1 pairs that the tight margins tell apart: stands")


@pytest.mark.parametrize(
    ("compare", "table", "tight"),
    [
        (compare_solvers.compare_solvers, "CONTENDERS", "tight, fast"),
        (compare_solvers.compare_variants, "VARIANTS", "fast"),
    ],
)
def test_table_of_solvers(finished, monkeypatch, compare, table, tight):
    """Ratios and passes against those of margins measured here, on the last images for testing."""
    few = {name: getattr(compare_solvers, table)[name] for name in ("deepfool", tight)}
    monkeypatch.setattr(compare_solvers, table, few)
    (finished / "solvers.json").unlink(missing_ok=True)
    lines = compare(finished, num_images=NUM_IMAGES).splitlines()
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert header[:3] == ["solver", "whole space", "window 0,0"]
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    images = data.load("digits").test_images[-NUM_IMAGES:]
    classifier, window = store.read_classifier(finished), subspaces.dct_window((8, 8, 1), 0, 0, 3)
    margins = {
        name: hmt_jax.measure_margins(classifier, images, window, solver).margin for name, (solver, _) in few.items()
    }
    expected = np.median(margins["deepfool"] / np.minimum(*margins.values()))
    assert float(found["deepfool"]["window 0,0"].split("/")[0]) == pytest.approx(expected, abs=2e-3)
    assert found[tight]["window 0,0"].startswith("1.000")
    assert found[tight]["no margin"] == "0"
    # One pass for each step after the first, and nine at each sample, which all subspaces share.
    corners = [map(int, name.removeprefix("window ").split(",")) for name in header if name.startswith("window ")]
    spaces = [subspaces.full((8, 8, 1)), *(subspaces.dct_window((8, 8, 1), *corner, 3) for corner in corners)]
    num_steps = hmt_jax.measure_margins(classifier, images, spaces, few[tight][0]).num_steps
    expected_passes = np.mean(num_steps - 1) + 9 / len(spaces)
    assert float(found[tight]["backward"]) == pytest.approx(expected_passes, abs=0.06)  # printed to one digit
    assert (finished / "solvers.json").exists() == (table == "CONTENDERS")
    if table == "CONTENDERS":
        written = json.loads((finished / "solvers.json").read_text())
        assert [row["solver"] for row in written["rows"]] == [*few]
        assert written["rows"][0]["ratios"]["window 0,0"][0] == pytest.approx(expected, rel=1e-4)


def test_folders_of_other_kinds(tmp_path, capsys):
    assert command_line.main(["audit", str(tmp_path)]) == 2
    assert "is not the folder of a run: give that of a finished one" in capsys.readouterr().err
    # Windows of the whole grid are no diagonal.
    store.write_json(tmp_path / "config.json", store.to_json("margin_map", registry.get("margin_map").config))
    store.finish(tmp_path, {})
    assert command_line.main(["audit", str(tmp_path)]) == 2
    assert (
        "is the folder of margin_map, which does not measure a data set of hmt_jax.data along the diagonal"
        in capsys.readouterr().err
    )


def test_an_audit_that_was_stopped_while_it_wrote_its_files_is_not_on_the_page(
    finished, report, tmp_path, monkeypatch, capsys
):
    copy = tmp_path / "robust"
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    again, _ = store.read_margins(copy / "audit.npz")

    def stop(*_):
        raise OSError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(audit, "_tight", lambda *_: again)
        patched.setattr(store, "write_picture", stop)
        assert command_line.main(["audit", str(copy), "--num-images", str(NUM_IMAGES)]) == 2
        assert "stopped" in capsys.readouterr().err
    (copy / "claims.json").unlink()
    assert command_line.main(["run", "digits", *FIELDS, "--folder", str(copy)]) == 0
    assert [each.name for each in hmt_jax.report.load(copy / "measurements.npz")] == ["digits"]


def test_what_a_run_is_compared_with_must_have_its_measurements(finished, tmp_path, capsys):
    copy = tmp_path / "robust"
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    (copy / "report.html").unlink()
    (tmp_path / "digits" / "measurements.npz").unlink()
    assert command_line.main(["run", "digits", *FIELDS, "--folder", str(copy)]) == 2
    told = f"{tmp_path / 'digits'} has no measurements.npz: repeat the command of that run, which makes it anew"
    assert told in capsys.readouterr().err


def test_an_audit_is_alone_at_work_in_a_folder(finished, capsys):
    with store.held(finished):
        assert command_line.main(["audit", str(finished)]) == 2
    told = f"process {os.getpid()} on {platform.node()} is at work in {finished}: wait for it, or choose another"
    assert told in capsys.readouterr().err


def test_an_audit_keeps_others_out(finished, monkeypatch, capsys):
    def measure_and_meet(*_):
        with pytest.raises(ValueError, match=r"process .* is at work in"), store.held(finished):
            pass
        raise ValueError("met it")

    monkeypatch.setattr(audit, "_tight", measure_and_meet)
    assert command_line.main(["audit", str(finished)]) == 2
    assert "met it" in capsys.readouterr().err


def test_changed_margins_of_what_a_run_is_compared_with_are_refused(finished, tmp_path, capsys):
    copy = tmp_path / "robust"
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "digits" / "margins.npz"
    shutil.copy(copy / "margins.npz", file)
    assert command_line.main(["audit", str(copy)]) == 2
    assert f"{file} is not what its run wrote" in capsys.readouterr().err


def test_numbers_are_checked(finished, capsys):
    for option in ("--num-images", "--certify"):
        assert command_line.main(["audit", str(finished), option, "-1"]) == 2
        assert "expected a whole number, got '-1'" in capsys.readouterr().err
    assert command_line.main(["audit", str(finished), "--num-images", "0"]) == 2
    assert capsys.readouterr().err == "error: --num-images must be at least 1, got 0\n"
