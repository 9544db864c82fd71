"""The table of all finished runs."""

import json
import shutil

import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments import scorecard, store


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with two short runs, a quick one, and one that is not finished."""
    path = tmp_path_factory.mktemp("results")
    for name, *arguments in (
        ("digits", "--num-epochs", "1"),
        ("digits_1", "--num-epochs", "1", "--seed", "1", "--num-images", "6"),
        ("digits_quick", "--quick", "--num-epochs", "1", "--num-images", "6"),
    ):
        assert command_line.main(["run", "digits", *arguments, "--folder", str(path / name)]) == 0
    (path / "started").mkdir()
    return path


def test_runs_are_rows(root, capsys):
    assert command_line.main(["scorecard", "--root", str(root)]) == 0
    header, first, second, _, total, *_ = capsys.readouterr().out.splitlines()
    assert all(word in header for word in ("experiment", "seed", "test accuracy", "device", "wall time"))
    for line, seed, name in ((first, "0", "digits"), (second, "1", "digits_1")):
        verdict = json.loads((root / name / "claims.json").read_text())["claims"][0]
        accuracy = json.loads((root / name / "summary.json").read_text())["test_accuracy"]
        assert line.startswith("digits (num_epochs=1")
        assert f"  {seed}  " in line
        assert f"{accuracy:.2%}" in line
        assert verdict["claim"] in line
        assert f"{verdict['value']:.3g}" in line
        assert line.endswith("holds" if verdict["holds"] else "DOES NOT HOLD")
    assert "num_images=6" in second
    assert "num_images" not in first
    num_holding = sum(line.endswith("  holds") for line in (first, second))
    assert total == f"{num_holding} of 2 claims hold; runs: 2"


def test_markdown_has_the_same_rows(root):
    scorecard.scorecard([root / "digits_1"], root)
    lines = (root / "scorecard.md").read_text().splitlines()
    assert [line.count("|") for line in lines[:3]] == [11, 11, 11]
    assert lines[1].startswith("| --- |")
    assert lines[2].startswith("| digits (num_epochs=1, num_images=6) | 1 | ")
    assert lines[-1].endswith("of 1 claims hold; runs: 1.")


def test_three_seeds_have_a_spread(root, tmp_path, capsys):
    for seed in range(3):
        arguments = ["run", "digits", "--num-epochs", "1", "--seed", str(seed), "--num-images", "6"]
        assert command_line.main([*arguments, "--folder", str(tmp_path / f"seed{seed}")]) == 0
    capsys.readouterr()
    assert command_line.main(["scorecard", "--root", str(tmp_path), *map(str, sorted(tmp_path.glob("seed*")))]) == 0
    _, table, *_ = capsys.readouterr().out.split("\n\n")
    header, lowest, highest, ratio = table.splitlines()
    assert header.split("  ")[0] == "experiment"
    assert lowest.startswith("digits (num_epochs=1, num_images=6)  0, 1, 2  median margin in window 0,0  ")
    summaries = [json.loads((tmp_path / f"seed{seed}" / "summary.json").read_text()) for seed in range(3)]
    for line, window in ((lowest, 0), (highest, -1)):
        medians = [summary["windows"][window]["median"] for summary in summaries]
        reach = 4.303 * np.std(medians, ddof=1) * np.sqrt(4 / 3)  # Student's t of two degrees of freedom
        *_, mean, low, _, high = line.split()
        found = [float(number) for number in (mean, low, high)]
        expected = [np.mean(medians), np.mean(medians) - reach, np.mean(medians) + reach]
        np.testing.assert_allclose(found, expected, rtol=0.006)  # three digits
    assert "margin in the highest window over that in the lowest" in ratio
    markdown = (tmp_path / "scorecard.md").read_text().split("\n\n")
    assert [block.count("\n") for block in markdown[:2]] == [4, 4]

    # Whichever order the fields are written in.
    path = tmp_path / "seed1" / "config.json"
    store.write_json(path, dict(reversed(json.loads(path.read_text()).items())))
    assert command_line.main(["scorecard", "--root", str(tmp_path)]) == 0
    assert "0, 1, 2" in capsys.readouterr().out

    # Wherever the files are that they were given, which count by their checksums.
    for seed in range(3):
        settings = {**store.settings(tmp_path / f"seed{seed}"), "weights": f"{seed}/a.npz"}
        edit(tmp_path / f"seed{seed}" / "config.json", settings=settings, checksums={"weights": "0123"})
    assert command_line.main(["scorecard", "--root", str(tmp_path)]) == 0
    assert "0, 1, 2" in capsys.readouterr().out
    edit(tmp_path / "seed1" / "config.json", checksums={"weights": "4567"})
    assert command_line.main(["scorecard", "--root", str(tmp_path)]) == 0
    assert "0, 1, 2" not in capsys.readouterr().out

    # Two seeds are too few, and a seed that is there twice is one.
    scorecard.scorecard([tmp_path / "seed0", tmp_path / "seed1", tmp_path / "seed1"], tmp_path)
    assert "one more" not in (tmp_path / "scorecard.md").read_text()


def test_spreads_are_of_what_all_runs_have(root, tmp_path):
    paths = [tmp_path / f"seed{seed}" for seed in range(3)]
    for seed, path in enumerate(paths):
        shutil.copytree(root / "digits", path)
        edit(path / "config.json", settings={**store.settings(path), "seed": seed})
    summary = json.loads((paths[0] / "summary.json").read_text())
    edit(paths[0] / "summary.json", windows=[{**summary["windows"][0], "median": None}, *summary["windows"][1:]])
    edit(paths[2] / "claims.json", claims=[])  # before there was a claim
    scorecard.scorecard(paths, tmp_path)
    spreads = (tmp_path / "scorecard.md").read_text().split("\n\n")[1].splitlines()[2:]
    assert len(spreads) == 2
    assert "median margin in window 0,0 | inf | nan to nan |" in spreads[0]
    # Runs of another configuration are another experiment, also where their experiment is no longer there.
    for path in paths:
        edit(path / "config.json", experiment="gone")
    edit(paths[1] / "config.json", settings={**store.settings(paths[1]), "num_epochs": 50})
    scorecard.scorecard(paths, tmp_path)
    assert "one more" not in (tmp_path / "scorecard.md").read_text()


def edit(file, **changes):
    """Changes fields as the run itself would, which enters the file into the record."""
    store.write_json(file, {**store.read_json(file), **changes})


def test_quick_runs_prove_nothing(root, capsys):
    arguments = ["run", "digits", "--quick", "--num-epochs", "1", "--num-images", "6"]
    assert command_line.main([*arguments, "--folder", str(root / "digits_quick")]) == 0
    assert "a quick run: its claims prove nothing" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there is no finished run in these folders but quick ones: run an experiment"):
        scorecard.scorecard([root / "digits_quick"], root)


def test_folders_without_a_finished_run_are_told(root, tmp_path, capsys):
    assert command_line.main(["scorecard", str(root / "started")]) == 2
    assert "started is not the folder of a run: give that of a finished one" in capsys.readouterr().err
    shutil.copy(root / "digits" / "config.json", tmp_path)
    assert command_line.main(["scorecard", str(tmp_path)]) == 2
    assert "is not finished: finish it with the command that began it" in capsys.readouterr().err
    (tmp_path / "config.json").unlink()
    assert command_line.main(["scorecard", "--root", str(tmp_path)]) == 2
    assert "there is no finished run in" in capsys.readouterr().err


def test_undecided_claims_do_not_count(root, tmp_path, capsys):
    shutil.copytree(root / "digits", tmp_path / "digits")
    (verdict,) = json.loads((root / "digits" / "claims.json").read_text())["claims"]
    undecided = {**verdict, "value": "nan", "low": "nan", "high": "nan", "holds": False, "undecided": "why"}
    edit(tmp_path / "digits" / "claims.json", claims=[{**verdict, "holds": True}, undecided])
    assert command_line.main(["scorecard", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 claims hold, 1 undecided; runs: 1" in out
    assert out.splitlines()[2].endswith("  undecided")


def test_claims_are_checked_anew_without_their_file(root, capsys):
    path = root / "digits_1" / "claims.json"
    before = path.read_text()
    path.unlink()
    arguments = ["run", "digits", "--num-epochs", "1", "--seed", "1", "--num-images", "6", "--folder", str(path.parent)]
    assert command_line.main(arguments) == 0
    assert path.read_text() == before
    assert "margin in the highest window over that in the lowest" in capsys.readouterr().out


def test_a_root_that_is_not_there_is_made(root, tmp_path):
    scorecard.scorecard([root / "digits"], tmp_path / "results")
    assert (tmp_path / "results" / "scorecard.md").read_text().startswith("| experiment |")
