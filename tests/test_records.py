"""Stored summaries of runs, and the tables that are made from them."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest

from experiments import records, registry, store, tables

STEMS = sorted(path.stem for path in (records.ROOT / "runs").glob("*.json"))
CLAIM = {"claim": "it grows", "reason": "why", "at_least": 2, "at_most": None}
# All that is stored of a run and of a claim, when nothing is known.
FOUND = dict.fromkeys(("claim", "value", "low", "high", "at_least", "at_most", "holds"))
RUN = dict.fromkeys(
    [
        *("seed", "changes", "hardware", "jax", "commit", "note", "seconds", "training_seconds"),
        *("measurement_seconds", "test_accuracy", "num_images", "lowest", "least", "least_window", "highest", "found"),
    ]
)


def load(name, root=records.ROOT):
    return json.loads((root / "runs" / f"{name}.json").read_text())["runs"]


def save(root, *runs):
    """Stores runs of `digits`, of which only the given fields are known."""
    (root / "runs").mkdir(exist_ok=True)
    known = [{**RUN, "changes": {}, **run, "found": [FOUND | each for each in run["found"]]} for run in runs]
    (root / "runs" / "digits.json").write_text(json.dumps({"experiment": "digits", "runs": known}))


@pytest.fixture
def root(tmp_path):
    """A store with the names of forms alone."""
    (tmp_path / "store").mkdir()
    shutil.copy(records.ROOT / "forms.json", tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def finished(tmp_path):
    """Writes the folder of a finished run of `digits`, as far as summaries are made from it."""

    def write(name="run", *, claims=(), windows=(), is_quick=False, environment=None, checksums=(), **changes):
        path = tmp_path / name
        path.mkdir()
        described = store.to_json("digits", registry.get("digits").config)
        described |= {"settings": {**described["settings"], **changes}, "checksums": dict(checksums)}
        summary = {
            "test_accuracy": 0.975,
            "num_images": 6,
            "training_seconds": 30.5,
            "measurement_seconds": 4.25,
            "windows": [{"row": k, "column": k, "median": median} for k, median in enumerate(windows)],
        }
        there = {
            "devices": ["NVIDIA H100", "NVIDIA H100"],
            "packages": {"jax": "0.12.0"},
            "commit": "abc",
            "seconds": 40,
            "earlier": [],
        }
        store.write_json(path / "config.json", described)
        store.write_json(path / "summary.json", summary)
        store.write_json(path / "environment.json", {**there, **(environment or {})})
        store.finish(path, {"is_quick": is_quick, "claims": list(claims)})
        return path

    return write


def test_readme_has_the_tables_that_the_stored_summaries_make():
    text = tables.README.read_text(encoding="utf-8")
    assert tables.update(text) == text
    assert "---|\n<!-- end" not in text  # no table is empty


@pytest.mark.parametrize("kind", ["runs", "claims"])
def test_readme_shows_every_stored_experiment_once(kind):
    text = tables.README.read_text(encoding="utf-8")
    sections = re.findall(rf"<!-- table: {kind} .*?<!-- end of table -->", text, re.DOTALL)
    names = [name for section in sections for name in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)]
    assert sorted(names) == STEMS


def test_every_experiment_has_its_paragraph():
    text = tables.README.read_text(encoding="utf-8")
    names = re.findall(r"\*\*`(\w+)`\*\*", text)
    assert sorted(names) == sorted(registry.names())


@pytest.mark.parametrize("name", STEMS)
def test_verdicts_follow_from_what_was_found(name):
    fields = {field.name for field in dataclasses.fields(registry.get(name).config)}
    runs = load(name)
    assert runs
    for run in runs:
        assert run.keys() == RUN.keys()
        assert run["changes"].keys() <= fields - {"seed"}
        for found in run["found"]:
            assert found.keys() == FOUND.keys()
            least = -math.inf if found["at_least"] is None else found["at_least"]
            most = math.inf if found["at_most"] is None else found["at_most"]
            if math.isinf(least) and math.isinf(most):
                assert found["holds"] is None, found
            elif found["value"] is not None:
                assert found["holds"] == (least <= float(found["value"]) <= most), found
            if found["low"] is not None:
                assert float(found["low"]) <= float(found["value"]) <= float(found["high"]), found


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, path.stem) for kind in ("audits", "solvers") for path in (records.ROOT / kind).glob("*")]
)
def test_stored_audits_are_those_of_the_documents(kind, name):
    text = (records.ROOT.parents[1] / "docs" / "explanation" / "margins.md").read_text(encoding="utf-8")
    header, _, *rows = tables.table(kind, [name]).splitlines()
    assert len(rows) >= 5
    for line in (header, *rows):
        assert f"\n{line}\n" in text


def test_a_finished_run_is_stored(root, finished):
    verdicts = [
        {**CLAIM, "value": 2.5, "low": 2.25, "high": "inf", "holds": True},
        {
            **CLAIM,
            "claim": "it shrinks",
            "value": "nan",
            "low": "nan",
            "high": "nan",
            "holds": False,
            "undecided": "why",
        },
    ]
    path = finished(claims=verdicts, windows=[3.5, 0.5, "inf"], seed=2, num_epochs=7)
    assert records.add(path, root=root) == "digits"
    (run,) = load("digits", root)
    common = {"at_least": 2, "at_most": None}
    assert run == {
        "seed": 2,
        "changes": {"num_epochs": 7},
        "hardware": "2 x NVIDIA H100",
        "jax": "0.12.0",
        "commit": "abc",
        "note": None,
        "seconds": 40,
        "training_seconds": 30.5,
        "measurement_seconds": 4.25,
        "test_accuracy": 0.975,
        "num_images": 6,
        "lowest": 3.5,
        "least": 0.5,
        "least_window": "1,1",
        "highest": "inf",
        "found": [
            {"claim": "it grows", "value": 2.5, "low": 2.25, "high": "inf", **common, "holds": True},
            {"claim": "it shrinks", "value": "nan", "low": "nan", "high": "nan", **common, "holds": None},
        ],
    }
    _, _, row = tables.table("runs", root=root).splitlines()
    cells = [
        *("`digits`", "`num_epochs=7`", "2", "2 x NVIDIA H100; JAX 0.12.0", "30 s", "4 s", "40 s", "97.50%"),
        *("3.5", "0.5 (1,1)", "inf", "1 of 1, 1 open"),
    ]
    assert row == f"| {' | '.join(cells)} |"
    _, _, grows, shrinks = tables.table("claims", root=root).splitlines()
    assert grows == "| `digits` | it grows | at least 2 | `num_epochs=7` | 2 | 2.5 | 2.25 to inf | holds |"
    assert shrinks == "| | it shrinks | at least 2 | `num_epochs=7` | 2 | nan | nan to nan | undecided |"


def test_runs_are_stored_once_and_in_order(root, finished):
    first, second = finished("first"), finished("second", seed=1)
    for path in (second, first, second):
        records.add(path, root=root, hardware="2 CPU cores")
    assert [(run["seed"], run["hardware"]) for run in load("digits", root)] == [(1, "2 CPU cores"), (0, "2 CPU cores")]


def test_a_run_that_moved_names_both_machines_and_no_file_names_a_path(root, finished):
    cpu = {"devices": ["cpu"], "packages": {"jax": "0.12.0"}}
    path = finished(environment={"earlier": [cpu, cpu]}, weights="/home/a/b.npz", checksums={"weights": "0123"})
    records.add(path, root=root)
    (run,) = load("digits", root)
    assert run["hardware"] == "cpu, then 2 x NVIDIA H100"
    assert run["changes"] == {"weights": "0123"}


def test_runs_that_prove_nothing_are_refused(root, finished, tmp_path):
    with pytest.raises(ValueError, match="is a quick one, which proves nothing: run its full form, without --quick"):
        records.add(finished(is_quick=True), root=root)
    (tmp_path / "run" / "claims.json").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        records.add(tmp_path / "run", root=root)
    assert not (root / "runs").exists()


def test_three_seeds_have_a_spread(root):
    values = [2.0, 2.5, 4.0]
    runs = [
        {"seed": seed, "found": [{"claim": "it grows", "value": value, "at_least": 3, "holds": value > 3}]}
        for seed, value in enumerate(values)
    ]
    # The earlier run of a seed, another form, and a number that two seeds have.
    former = {"seed": 0, "found": [{"claim": "it grows", "value": 90.0, "at_least": 3, "holds": True}]}
    other = {**runs[0], "changes": {"num_epochs": 7}}
    fewer = [{**run, "lowest": None if run["seed"] == 2 else 1.0} for run in runs]
    save(root, former, *fewer, other)
    _, _, row = tables.table("seeds", root=root).splitlines()
    _, form, seeds, claim, mean, interval = row.strip("| ").split(" | ")
    assert (form, seeds, claim) == ("full", "0, 1, 2", "it grows")
    reach = 4.303 * np.std(values, ddof=1) * np.sqrt(4 / 3)  # Student's t of two degrees of freedom
    found = [float(number) for number in (mean, *interval.split(" to "))]
    np.testing.assert_allclose(found, [np.mean(values), np.mean(values) - reach, np.mean(values) + reach], rtol=0.006)

    save(root, *runs[:2])
    assert len(tables.table("seeds", root=root).splitlines()) == 2


def test_a_claim_has_every_form_it_was_run_in(root):
    def run(seed, value, holds, changes):
        ends = dict.fromkeys(("value", "low", "high"), value)
        found = {"claim": "it grows", **ends, "at_least": 3, "at_most": 9, "holds": holds}
        return {"seed": seed, "changes": changes, "found": [found, {"claim": "its size", "value": 1e5}]}

    half = json.loads((root / "forms.json").read_text())["half"]
    unknown = {"seed": 2, "changes": half, "found": [{"claim": "it grows", "at_least": 3, "at_most": 9}]}
    runs = [run(0, 4.0, True, {}), run(1, 2.0, False, {}), run(0, 2.5, False, half), unknown, run(1, 5.0, True, {})]
    save(root, *runs)
    lines = tables.table("claims", root=root).splitlines()[2:]
    assert lines == [
        "| `digits` | it grows | at least 3, at most 9 | full | 0, 1 | 4, 2 | 4 to 4; 2 to 2 | 1 of 2 hold |",
        "| | | | half | 0 | 2.5 | 2.5 to 2.5 | **does not hold** |",
        "| | | | full, run 2 | 1 | 5 | 5 to 5 | holds |",
        "| | its size | | full | 0, 1 | 100,000, 100,000 | | |",
        "| | | | half | 0 | 100,000 | | |",
        "| | | | full, run 2 | 1 | 100,000 | | |",
    ]


def test_the_scorecard_adds_runs_and_rewrites_a_page(root, finished, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- table: claims -->\nold\n<!-- end of table -->\nafter\n")
    path = finished(claims=[{**CLAIM, "value": 1.5, "low": 1.25, "high": 1.75, "holds": False}])
    found = tables.scorecard([path], root=root, page=page)
    assert "| `digits` | it grows | at least 2 | full | 0 | 1.5 | 1.25 to 1.75 | **does not hold** |" in found
    assert page.read_text() == f"Before\n<!-- table: claims -->\n{found}\n<!-- end of table -->\nafter\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "<!-- table: sums -->\n<!-- end of table -->",
            "there is no table 'sums': the known ones are forms, runs, claims",
        ),
        ("<!-- table: runs -->\nno end", "1 tables begin and 0 end: close each with <!-- end of table -->"),
        (
            "<!-- table: claims digts -->\n<!-- end of table -->",
            "fits 'digts' of the table claims: correct or remove it",
        ),
    ],
)
def test_pages_with_mistakes_are_refused(text, match):
    with pytest.raises(ValueError, match=match):
        tables.update(text)


def test_files_of_a_benchmark_are_rows(root):
    row = {
        **{"workload": "lenet_mnist", "dimension": 64, "num_pairs": 21000, "seconds_per_pair": 2e-6, "num_lanes": 512},
        **{"steps_per_pair": 2.25, "forward_per_pair": 4.5, "backward_per_pair": 13.25, "share_of_matrix_rate": 0.25},
        **{"utilization": 0.985},
    }
    compared = {**row, "dimension": 9, "reference_seconds_per_pair": 0.02, "times_faster": 1e4}
    environment = {"devices": ["NVIDIA H100"], "packages": {"jax": "0.12.0"}}
    (root / "speed").mkdir()
    file = {"environment": environment, "matrix_flops_per_s": 5e13, "rows": [row, compared]}
    (root / "speed" / "h100.json").write_text(json.dumps(file))
    file = {"environment": environment, "scaling": []}
    (root / "speed" / "scaling.json").write_text(json.dumps({**file, "hardware": "a machine"}))
    lines = tables.table("benchmark", root=root).splitlines()
    common = "NVIDIA H100 | 0.12.0 | 50,000 | 21,000 | 0.002 | 2.25 | 4.5 | 13.2 | 25% | 512 | 98.5%"
    assert lines[2:] == [
        f"| LeNet, MNIST (d = 64) | {common} | | |",
        f"| LeNet, MNIST (d = 9) | {common} | 20 | 10,000 |",
    ]
    assert lines[0].count("|") == lines[1].count("|") == 15
