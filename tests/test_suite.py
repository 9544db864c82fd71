"""The suite of measurements within a budget: its rows, its clock, and its table."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments import registry, store, tables
from experiments.benchmarks import suite, timing, workloads
from hmt_jax import models, solvers, statistics, subspaces

pytestmark = pytest.mark.slow

DIGITS = dataclasses.replace(registry.form("digits", is_quick=True), num_train=256, num_test=64)


class Clock:
    """A clock on which every look takes some seconds."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def __call__(self):
        self.now += self.seconds
        return self.now - self.seconds


def tiny(num_images, data_dir):
    classifier = models.create("logistic", jax.random.key(0), image_shape=(4, 4, 1), num_classes=10)
    images = np.asarray(jax.random.uniform(jax.random.key(1), (min(num_images, 6), 4, 4, 1)))
    return workloads.Workload("logistic", classifier, images, subspaces.dct_diagonal((4, 4, 1), 3, 1))


@pytest.fixture
def tiny_plans(monkeypatch):
    plan = workloads.Plan(tiny, num_images=6, num_images_cpu=6, num_reference=1)
    monkeypatch.setattr(workloads, "PLANS", dict.fromkeys(workloads.PLANS, plan))
    monkeypatch.setattr(timing, "_MATRIX_SIZE", {"cpu": 64})
    devices = jax.devices()[:1]  # simulated ones would share few pairs, and take longer to compile
    monkeypatch.setattr(jax, "local_devices", lambda *_, **__: devices)


def rows_of(path):
    file = json.loads(path.read_text())
    return file, {row["measurement"]: row for row in file["suite"]}


def test_every_row_is_measured_or_says_why_not(tiny_plans, tmp_path, monkeypatch, capsys):
    fewer = {name: (workload, 6, ("quick",)) for name, (workload, _, _) in suite._NETWORKS.items()}
    monkeypatch.setattr(suite, "_NETWORKS", fewer)  # each effort compiles for seconds
    runs = []

    def run(name, config, folder, data_dir):
        runs.append((name, config, folder, jax.config.jax_default_matmul_precision))
        windows = [{"median": median} for median in (0.5, 0.25, "inf", 2.0)]
        folder.mkdir()
        store.write_json(folder / "summary.json", {"test_accuracy": 0.75, "windows": windows})

    monkeypatch.setattr(suite.run, "run", run)
    path = tmp_path / "suite.json"
    settings = {"experiment": "digits", "config": DIGITS, "root": tmp_path, "clock": Clock(0)}
    assert suite.suite(path, 480, **settings)
    file, rows = rows_of(path)
    assert list(rows) == file["planned"]
    assert file["budget"] == 480
    reasons = {"the authors'": "needs --reference"}
    reasons |= dict.fromkeys(["high precision", "default precision", "bfloat16"], "a CPU computes in float32")
    left_out = {name: row["not_measured"] for name, row in rows.items() if "value" not in row}
    assert len(left_out) == 10
    assert all(any(end in name and why in reason for end, why in reasons.items()) for name, reason in left_out.items())
    workload = tiny(6, None)
    result = workload.measure(1)[0]
    medians = np.median(statistics.censored_margins(result), axis=1)
    for name in ("ResNet-18, DeepFool", "LeNet, highest precision"):
        np.testing.assert_allclose(rows[name]["medians"], medians, rtol=1e-5)
        assert rows[name]["num_images"] == 6
    # The nearest boundary of a linear network is where DeepFool's step would end without its overshoot.
    np.testing.assert_allclose(rows["LeNet, quick"]["medians"], medians / 1.02, rtol=1e-4)
    assert runs == [("digits", DIGITS, tmp_path / "digits_float32", "highest")]
    assert rows["digits"]["value"] == 75
    assert rows["digits"]["note"] == "medians 0.5 in the lowest window, 0.25 at the least, 2 in the highest"
    assert rows["digits"]["medians"] == [0.5, 0.25, "inf", 2.0]
    assert "measurement LeNet, quick, value " in capsys.readouterr().out


def test_medians_in_bfloat16_are_near_those_in_float32(tiny_plans):
    before = {"products, highest precision": {"flops_per_s": 1e9}}
    standard = suite._precision(lambda: tiny(6, None), "highest", 24, before, 400)
    before["LeNet, highest precision"] = standard
    row = suite._precision(lambda: tiny(6, None), "bfloat16", 24, before, 400)
    ratios = np.array(row["medians"]) / standard["medians"]
    assert row["note"].startswith(f"medians {ratios.min():.4f} to {ratios.max():.4f} times")
    np.testing.assert_allclose(ratios, 1, atol=0.05)
    assert np.all(ratios != 1)  # weights with eight bits are others


def test_the_days_of_a_large_job_follow_from_the_speed(tiny_plans):
    workload = tiny(6, None)._replace(network="resnet50")
    before = {"products, highest precision": {"flops_per_s": 1e9}}
    row = suite._margins(lambda: workload, "DeepFool", 24, before, 400)
    days = float(row["note"].split(" take ")[1].removesuffix(" days"))
    assert days == pytest.approx(50_000 * 217 / row["value"] / 86400, rel=0.01)


def test_no_row_begins_when_the_time_is_over():
    begun = []

    def measure(before, left):
        begun.append(left)
        return {"value": 1.0, "unit": "pairs/s"}

    clock = Clock(40)
    rows = list(suite._rows(dict.fromkeys("abcde", measure), lambda: 100 - clock(), []))
    assert begun == [100, 60, 20]
    assert [row.get("not_measured") for row in rows] == [None, None, None, "no time was left", "no time was left"]


def test_a_row_that_does_not_end_is_left_and_the_rest_left_out(monkeypatch):
    monkeypatch.setattr(suite, "_LEAST_SECONDS", 0)
    ended, stopped = threading.Event(), []
    measures = {"endless": lambda before, left: ended.wait() and {}, "next": lambda before, left: {"value": 1.0}}
    try:
        rows = list(suite._rows(measures, lambda: 0.01, stopped))
    finally:
        ended.set()
    assert [row["not_measured"] for row in rows] == ["not finished when the time was over", "no time was left"]
    assert stopped == ["endless"]


def test_a_row_that_fails_does_not_end_the_others():
    def fail(before, left):
        raise RuntimeError("out of memory\nmore of it")

    rows = list(suite._rows({"fails": fail, "next": lambda before, left: {"value": 1.0}}, lambda: 99, []))
    assert rows[0]["not_measured"] == "failed: out of memory"
    assert rows[1]["value"] == 1.0


def test_the_file_is_complete_after_every_row(tiny_plans, tmp_path, monkeypatch, capsys):
    path, seen = tmp_path / "suite.json", []

    def products(precision, before, left):
        seen.append(rows_of(path) if path.exists() else None)
        return {"value": 1.0, "unit": "TFLOP/s", "flops_per_s": 1e12}

    monkeypatch.setattr(suite, "_products", products)
    monkeypatch.setattr(suite, "_margins", lambda load, effort, most, before, left: products(None, before, left))
    # The clock is looked at four times before there is no time: for the two rows, and for two that CPUs leave out.
    assert suite.suite(path, 130, experiment="digits", config=DIGITS, clock=Clock(25))
    nothing, (file, rows) = seen
    assert nothing is None
    assert list(rows) == [f"products, {precision} precision" for precision in ("highest", "high", "default")]
    assert len(file["planned"]) > 15
    file, rows = rows_of(path)
    assert list(rows) == file["planned"]
    assert [name for name, row in rows.items() if "value" in row] == ["products, highest precision", file["planned"][3]]


def test_fewer_images_are_measured_in_less_time(tiny_plans):
    workload = tiny(6, None)
    known = {"network": "logistic", "seconds_per_pass": 0.1, "compile_seconds": 5.0}
    per_image = 2 * 2 * 16 * 0.1  # two calls in two windows
    for left, number in ((5 + 3.5 * per_image, 3), (5 + 1e3 * per_image, 6)):
        assert len(suite._fitted(workload, 16, {"row": known}, left, 1e9).images) == number
    assert len(suite._fitted(workload, 16, {"row": known}, 1e9, 2.5 * per_image).images) == 2
    # One image may take more than other rows, but only a third of what is left.
    assert len(suite._fitted(workload, 16, {"row": known}, 5 + 3.1 * per_image, 0.1).images) == 1
    with pytest.raises(suite._NotMeasuredError, match="needs about 6 s or more: too long"):
        suite._fitted(workload, 16, {"row": known}, 5 + 2.9 * per_image, 0.1)


def test_every_effort_of_tight_has_a_row():
    efforts = ("quick", "fast", "normal", "thorough")
    rows = [name for name in suite._of_margins(24, None, None) if name.startswith("ResNet-18")]
    assert rows == [f"ResNet-18, {effort}" for effort in ("DeepFool", *efforts)] + ["ResNet-18, the authors' loop"]
    # The time for an effort is estimated from its steps, with a pass each way, and some before the label changes.
    for effort in efforts:
        walk = solvers.tight(effort)
        num_steps = walk.num_steps * walk.num_rounds
        most = num_steps + walk.num_rounds * walk.num_polish + 20
        assert num_steps < suite._PASSES[effort] < 2 * most


def test_an_experiment_is_not_begun_without_the_time_for_it(tmp_path):
    row = {"training, highest precision": {"value": 10.0}}
    seconds = DIGITS.num_epochs * 256 / 10
    with pytest.raises(suite._NotMeasuredError, match=f"needs about {seconds:,.0f} s: too long"):
        suite._ours("digits", DIGITS, tmp_path, None, row, seconds - 1)
    with pytest.raises(suite._NotMeasuredError, match="how long it takes is not known"):
        suite._ours("digits", DIGITS, tmp_path, None, {}, 1e9)


def test_rows_that_were_not_measured_have_a_place_in_the_table(tmp_path):
    (tmp_path / "speed").mkdir()
    file = {
        "environment": {"devices": ["NVIDIA H200"], "packages": {"jax": "0.12.0"}},
        "planned": ["ResNet-18, quick", "LeNet, quick", "training, bfloat16"],
        "suite": [
            {"measurement": "ResNet-18, quick", "value": 1234.5, "unit": "pairs/s", "num_images": 1000, "note": "so"},
            {"measurement": "LeNet, quick", "not_measured": "no time was left"},
        ],
    }
    (tmp_path / "speed" / "suite.json").write_text(json.dumps(file))
    lines = tables.table("suite", root=tmp_path).splitlines()
    assert lines[2:] == [
        "| NVIDIA H200 | 0.12.0 | ResNet-18, quick | 1,234 pairs/s | 1,000 | so |",
        "| | | LeNet, quick | not measured | | no time was left |",
        "| | | training, bfloat16 | not measured | | |",
    ]
    assert lines[0].count("|") == lines[1].count("|") == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "480"], "--budget is for the suite: leave it out, or run `benchmark suite --budget SECONDS`"),
        (["suite", "--budget", "0"], "--budget must be at least 1, got 0"),
        (["suite", "lenet_mnist", "--scaling"], "the suite has measurements of its own: leave out lenet_mnist, --scal"),
        (["suite", "--reference", "nowhere"], "nowhere is no checkout of LTS4/hold-me-tight: it has no utils.py"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["benchmark", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_has_a_budget_and_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(suite, "suite", lambda *arguments, **options: calls.append((*arguments, options)) or True)
    assert command_line.main(["benchmark", "suite"]) == 0
    assert command_line.main(["benchmark", "suite", "--budget", "60", "--output", "it.json"]) == 0
    assert [(str(path), budget) for path, budget, _ in calls] == [("results/suite.json", 480), ("it.json", 60)]
