"""Results made by hand: joined, compared, written and read."""

import dataclasses
import functools
import sys

import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from examples import ARRAYS

from hmt_jax import MarginResult, Status, lanes, solvers

DIMENSIONS = (3, 1)  # of two subspaces


def make_result(num_images=4, seed=0, *, with_coordinates=True, **changes):
    """A result of random numbers in two subspaces, all converged, whose margins are the lengths of its coordinates."""
    rng = np.random.default_rng(seed)
    coordinates = [rng.normal(size=(num_images, dimension)).astype(np.float32) for dimension in DIMENSIONS]
    label = np.tile(np.arange(num_images, dtype=np.int32) % 3, (2, 1))
    arrays = {
        "margin": np.array([np.linalg.norm(rows, axis=1) for rows in coordinates]),
        "label": label,
        "adversarial_label": (label + 1 + seed) % 7,
        "num_steps": rng.integers(1, 9, size=label.shape, dtype=np.int32),
        "status": np.full(label.shape, Status.CONVERGED, np.int32),
        "gap": rng.uniform(size=label.shape).astype(np.float32),
        "alignment": rng.uniform(size=label.shape).astype(np.float32),
        "coordinates": coordinates if with_coordinates else None,
        "solver": repr(solvers.DeepFool()),
        "precision": "highest",
        "work": lanes.Work(4, 30 + seed, 20 + seed),
    }
    return MarginResult(**arrays | changes)


def assert_equal(result, expected):
    """All that two results hold is equal, bit for bit and in type."""
    for name in ARRAYS:
        found, wanted = getattr(result, name), getattr(expected, name)
        assert found.dtype == wanted.dtype, name
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    assert (result.coordinates is None) == (expected.coordinates is None)
    for found, wanted in zip(result.coordinates or [], expected.coordinates or [], strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    for name in ("solver", "precision", "work"):
        assert getattr(result, name) == getattr(expected, name), name


def with_status(result, r, n, status, margin):
    """The result with another status and margin of one pair, at which no label changes."""
    arrays = {name: getattr(result, name).copy() for name in ("margin", "status", "adversarial_label")}
    arrays["margin"][r, n], arrays["status"][r, n] = margin, status
    arrays["adversarial_label"][r, n] = result.label[r, n]
    return dataclasses.replace(result, **arrays)


def test_pairs_without_a_margin_are_named():
    status = np.array([[0, 0, 1], [3, 0, 2]], np.int32)
    result = make_result(3, status=status)
    np.testing.assert_array_equal(result.is_converged, [[True, True, False], [False, True, False]])
    with pytest.raises(
        ValueError,
        match=r"^3 of 6 \(subspace, sample\) pairs have no margin; the first: \(0, 2\) OUT_OF_STEPS, \(1, 0\) "
        r"ZERO_GRADIENT, \(1, 2\) NON_FINITE$",
    ):
        result.raise_unless_converged()
    make_result(3).raise_unless_converged()


# Several sets of images


def test_results_of_several_sets_of_images_are_joined():
    parts = [make_result(num_images, seed) for seed, num_images in enumerate((4, 1, 3))]
    whole = MarginResult.concatenate(iter(parts))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(whole, name), np.hstack([getattr(part, name) for part in parts]))
    for r, dimension in enumerate(DIMENSIONS):
        assert whole.coordinates[r].shape == (8, dimension)
        np.testing.assert_array_equal(whole.coordinates[r], np.vstack([part.coordinates[r] for part in parts]))
    assert (whole.work.num_lane_steps, whole.work.num_busy_lane_steps) == (30 + 31 + 32, 20 + 21 + 22)
    assert whole.work.utilization == 63 / 93
    assert (whole.solver, whole.precision) == (parts[0].solver, "highest")
    assert_equal(MarginResult.concatenate(parts[:1]), parts[0])
    without = MarginResult.concatenate([make_result(with_coordinates=False)] * 2)
    assert without.coordinates is None
    assert without.margin.shape == (2, 8)


def one_subspace():
    result = make_result()
    arrays = {name: getattr(result, name)[:1] for name in ARRAYS}
    return dataclasses.replace(result, **arrays, coordinates=result.coordinates[:1])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (one_subspace, "^results must agree in their numbers of subspaces, got 2 and 1$"),
        (
            lambda: make_result(solver=repr(solvers.DDN())),
            r"^results must agree in their solvers, got DeepFool\(.*\) and DDN\(.*\)$",
        ),
        (
            lambda: make_result(precision="default"),
            "^results must agree in their precisions, got highest and default$",
        ),
        (
            lambda: make_result(coordinates=make_result().coordinates[::-1]),
            r"^results must agree in their dimensions of coordinates, got \[3, 1\] and \[1, 3\]$",
        ),
        (
            lambda: make_result(with_coordinates=False),
            r"^results must agree in their dimensions of coordinates, got \[3, 1\] and None$",
        ),
    ],
    ids=["subspaces", "solver", "precision", "dimensions", "no coordinates"],
)
def test_only_results_of_one_measurement_are_joined(other, message):
    with pytest.raises(ValueError, match=message):
        MarginResult.concatenate([make_result(), make_result(seed=1), other()])


def test_what_is_no_list_of_results_is_not_joined():
    with pytest.raises(ValueError, match=r"^results is empty: pass at least one MarginResult$"):
        MarginResult.concatenate([])
    with pytest.raises(TypeError, match=r"^concatenate takes results of hmt_jax\.measure_margins, got ndarray$"):
        MarginResult.concatenate([make_result(), make_result().margin])


# Two results of the same pairs


def test_the_best_of_two_results_has_the_smaller_margins_and_all_that_belongs_to_them():
    first, second = make_result(), make_result(seed=1)
    best = first.best_of(second)
    np.testing.assert_array_equal(best.margin, np.minimum(first.margin, second.margin))
    is_second = second.margin < first.margin
    assert 0 < is_second.sum() < is_second.size
    for name in ARRAYS:
        expected = np.where(is_second, getattr(second, name), getattr(first, name))
        assert getattr(best, name).dtype == getattr(first, name).dtype
        np.testing.assert_array_equal(getattr(best, name), expected)
    for r in range(2):
        np.testing.assert_allclose(np.linalg.norm(best.coordinates[r], axis=1), best.margin[r], rtol=1e-6)
    assert best.work.num_busy_lane_steps == first.work.num_busy_lane_steps + second.work.num_busy_lane_steps
    assert best.solver == first.solver

    for with_coordinates in (True, False):
        again = make_result(with_coordinates=with_coordinates).best_of(make_result(seed=1, with_coordinates=False))
        assert again.coordinates is None
        np.testing.assert_array_equal(again.margin, best.margin)


def test_the_best_of_two_solvers_is_of_both():
    best = make_result().best_of(make_result(seed=1, solver=repr(solvers.DDN()), precision="default"))
    assert repr(solvers.DeepFool()) in best.solver
    assert repr(solvers.DDN()) in best.solver
    assert "highest" in best.precision
    assert "default" in best.precision


@pytest.mark.parametrize(
    ("status", "margin"),
    [
        (Status.OUT_OF_STEPS, 0.0),
        (Status.UNCONFIRMED, 0.0),
        (Status.ZERO_GRADIENT, np.inf),
        (Status.NON_FINITE, np.nan),
    ],
)
def test_a_pair_without_a_margin_is_never_the_best_of_two(status, margin):
    whole, other = make_result(), make_result(seed=1)
    lacking = with_status(whole, 0, 2, status, margin)
    for best in (lacking.best_of(other), other.best_of(lacking)):
        assert best.is_converged.all()
        for name in ARRAYS:
            assert getattr(best, name)[0, 2] == getattr(other, name)[0, 2], name
        np.testing.assert_array_equal(best.coordinates[0][2], other.coordinates[0][2])
        np.testing.assert_array_equal(
            best.margin, np.fmin(other.margin, np.where(lacking.is_converged, whole.margin, np.inf))
        )

    # Where neither has one, the first says why.
    without = with_status(other, 0, 2, Status.OUT_OF_STEPS, 5.0)
    for first, second in ((lacking, without), (without, lacking)):
        best = first.best_of(second)
        assert (best.status[0, 2], best.adversarial_label[0, 2]) == (first.status[0, 2], best.label[0, 2])
        np.testing.assert_equal(best.margin[0, 2], first.margin[0, 2])
        assert best.is_converged.sum() == best.margin.size - 1


def relabelled(**changes):
    """A result whose image 1 has another label."""
    result = make_result(seed=1, **changes)
    label = result.label.copy()
    label[:, 1] = 5
    return dataclasses.replace(result, label=label)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            functools.partial(make_result, 3),
            r"^other must hold margins of the same \(2, 4\) \(subspaces, images\), got \(2, 3\)$",
        ),
        (
            one_subspace,
            r"^other must hold margins of the same \(2, 4\) \(subspaces, images\), got \(1, 4\)$",
        ),
        (
            relabelled,
            r"^other must hold margins of the same images and the same classifier, but 2 of 8 pairs have another "
            r"label$",
        ),
        (
            lambda: make_result(coordinates=make_result().coordinates[::-1]),
            r"^other must hold margins in the same subspaces, of dimensions \[3, 1\], got \[1, 3\]$",
        ),
    ],
    ids=["images", "subspaces", "labels", "dimensions"],
)
def test_only_results_of_the_same_pairs_are_compared(other, message):
    with pytest.raises(ValueError, match=message):
        make_result().best_of(other())


def test_only_results_are_compared():
    with pytest.raises(TypeError, match=r"^best_of takes results of hmt_jax\.measure_margins, got int$"):
        make_result().best_of(3)


# Files


@pytest.mark.parametrize("with_coordinates", [True, False])
def test_a_result_is_read_as_it_was_written(with_coordinates, tmp_path):
    result = with_status(make_result(with_coordinates=with_coordinates), 1, 0, Status.NON_FINITE, np.nan)
    path = tmp_path / "margins.npz"
    result.save(path)
    loaded = MarginResult.load(path)
    assert type(loaded) is MarginResult
    assert_equal(loaded, result)
    # Such a result can be joined and compared like the rest.
    assert_equal(MarginResult.concatenate([loaded]), result)
    assert_equal(loaded.best_of(result), dataclasses.replace(result, work=result.work + result.work))


def test_a_file_is_plain_numpy(tmp_path):
    result, path = make_result(), str(tmp_path / "margins")
    result.save(path)  # under the very name that was given
    with np.load(path, allow_pickle=False) as arrays:
        stored = dict(arrays)
    for name in ARRAYS:
        np.testing.assert_array_equal(stored.pop(name), getattr(result, name))
    for r, rows in enumerate(result.coordinates):
        np.testing.assert_array_equal(stored.pop(f"coordinates_{r}"), rows)
    assert stored.pop("solver") == result.solver
    assert stored.pop("precision") == "highest"
    assert stored.pop("work").tolist() == [4, 30, 20]
    assert not stored


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "margins.npz"
    make_result().save(path)

    def fail(file, **arrays):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space left on device"):
        make_result(seed=1).save(path)
    assert_equal(MarginResult.load(path), make_result())
    assert [each.name for each in tmp_path.iterdir()] == ["margins.npz"]


def test_files_that_are_no_results_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        MarginResult.load(tmp_path / "nothing.npz")
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("margins")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "pickled.npz", margin=np.array([None]))
    for name in ("array.npy", "text.npz", "empty.npz", "pickled.npz"):
        with pytest.raises(ValueError, match=rf"{name} is not a file of MarginResult\.save: "):
            MarginResult.load(tmp_path / name)
    np.savez(tmp_path / "others.npz", margin=np.ones((1, 2)), status=np.zeros((1, 2)))
    with pytest.raises(
        ValueError, match=r"others\.npz is not a file of MarginResult\.save: it has no label, adversarial"
    ):
        MarginResult.load(tmp_path / "others.npz")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "margins.npz"
    make_result().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"margins\.npz is not a file of MarginResult\.save: "):
        MarginResult.load(path)
    place = content.index(make_result().margin.tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(ValueError, match=r"margins\.npz is not a file of MarginResult\.save: "):
        MarginResult.load(path)
    path.write_bytes(content)
    with np.load(path) as arrays:
        np.savez(path, **{name: array for name, array in arrays.items() if name != "coordinates_1"})
    with pytest.raises(ValueError, match="its arrays do not fit each other"):
        MarginResult.load(path)


def test_half_precision_is_kept_in_numbers_that_numpy_has(tmp_path):
    margin = make_result().margin.astype(jnp.bfloat16)
    make_result(margin=margin).save(tmp_path / "margins.npz")
    loaded = MarginResult.load(tmp_path / "margins.npz").margin
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, margin.astype(np.float32))


def test_one_result_is_no_list():
    with pytest.raises(TypeError, match=r"concatenate takes a list of results, got one: pass \[result\]"):
        MarginResult.concatenate(make_result())


# Selection

EVERY = range(5)


@pytest.mark.parametrize(
    ("index", "rows", "columns"),
    [
        (1, [1], EVERY),
        (-2, [0], EVERY),
        (np.int32(0), [0], EVERY),
        ((0, 3), [0], [3]),
        ((slice(None), -1), [0, 1], [4]),
        (slice(1, None), [1], EVERY),
        ((slice(None), slice(None, 3)), [0, 1], [0, 1, 2]),
        ((slice(None, None, -1), slice(4, 0, -2)), [1, 0], [4, 2]),
        ((slice(None), slice(2, 99)), [0, 1], [2, 3, 4]),
        ([1, 0, 1], [1, 0, 1], EVERY),
        (([1, 0], [4, 0, -3]), [1, 0], [4, 0, 2]),
        ((np.array([1, 0]), np.array([0, 4], np.uint8)), [1, 0], [0, 4]),
        ((slice(None), [True, False, False, True, True]), [0, 1], [0, 3, 4]),
        ((np.array([False, True]), np.array([False, True, True, False, False])), [1], [1, 2]),
        ((slice(None), jnp.arange(5) > 3), [0, 1], [4]),
        ((slice(None), np.zeros(5, bool)), [0, 1], []),
        ((slice(None), []), [0, 1], []),
        ([], [], EVERY),
        ((), [0, 1], EVERY),
    ],
)
@pytest.mark.parametrize("with_coordinates", [True, False])
def test_a_selection_holds_the_pairs_of_its_rows_and_columns(index, rows, columns, with_coordinates):
    result = make_result(5, with_coordinates=with_coordinates)
    selected = result[index]
    assert type(selected) is MarginResult
    for name in ARRAYS:
        array, found = getattr(result, name), getattr(selected, name)
        expected = [[array[r, n] for n in columns] for r in rows]  # pair by pair, and not by NumPy's own selection
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, np.array(expected, array.dtype).reshape(len(rows), len(columns)))
    if not with_coordinates:
        assert selected.coordinates is None
    else:
        assert len(selected.coordinates) == len(rows)
        for r, found in zip(rows, selected.coordinates, strict=True):
            np.testing.assert_array_equal(found, np.reshape([result.coordinates[r][n] for n in columns], found.shape))
            assert found.shape == (len(columns), DIMENSIONS[r])
    # What a run costs is not divided among pairs.
    assert (selected.work, selected.solver, selected.precision) == (result.work, result.solver, result.precision)


def test_selected_parts_join_to_the_whole():
    result = make_result(5)
    joined = MarginResult.concatenate([result[:, :2], result[:, 2], result[:, [3, 4]]])
    assert_equal(dataclasses.replace(joined, work=result.work), result)


def test_a_loop_over_a_result_ends():
    subspaces = list(make_result())
    assert [each.margin.shape for each in subspaces] == [(1, 4), (1, 4)]
    np.testing.assert_array_equal(subspaces[1].margin, make_result().margin[1:])


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (2, IndexError, "^the result has 2 subspaces, numbered from 0, and none of them is 2$"),
        ((0, [1, -5]), IndexError, "^the result has 4 images, numbered from 0, and none of them is -5$"),
        (
            (slice(None), np.ones(3, bool)),
            IndexError,
            "^a mask of images must have 4 entries, one for each of them, got 3$",
        ),
        (
            [True, False, True],
            IndexError,
            "^a mask of subspaces must have 2 entries, one for each of them, got 3$",
        ),
        (
            (0, 1, 2),
            IndexError,
            r"^a result has two axes, subspaces and images, but 3 were indexed: select with result\[subspaces, "
            r"images\]$",
        ),
        (
            np.ones((2, 4), bool),
            TypeError,
            r"^subspaces are selected by a whole number, a slice, or a list or mask with one axis, got an array "
            r"\(2, 4\) of bool: select from each axis by itself, as in result\[:, is_kept\]$",
        ),
        ((0, [0.5]), TypeError, r"^images are selected by .*, got an array \(1,\) of float64: select from each axis"),
        ("margin", TypeError, "^subspaces are selected by .*, got 'margin': select from each axis"),
        ((0, None), TypeError, "^images are selected by .*, got None: select from each axis"),
        (True, TypeError, "^subspaces are selected by .*, got True: select from each axis"),
    ],
)
def test_what_selects_nothing_sensible_is_refused(index, error, message):
    with pytest.raises(error, match=message):
        make_result()[index]


# As text and as a table


def test_a_result_is_two_lines_of_text():
    result = make_result(1200, margin=np.repeat([[0.52345], [8.1]], 1200, axis=1))
    assert repr(result) == (
        "MarginResult(2 subspaces x 1,200 images, all converged, median margins 0.523 to 8.10, with coordinates;\n"
        "  DeepFool(num_candidates=10, overshoot=0.02, max_steps=100), highest precision)"
    )
    assert str(result) == repr(result)
    assert repr(result[0, :1]).startswith("MarginResult(1 subspace x 1 image, all converged, median margin 0.523, ")


def test_failures_are_part_of_the_text():
    result = make_result(3, margin=np.array([[1.0, 2.0, 9.0], [4.0, 5.0, 6.0]]), with_coordinates=False)
    # A search that failed counts as a margin larger than all others: of 1, 2 and infinity, the median is 2.
    failed = with_status(result, 0, 2, Status.OUT_OF_STEPS, 0.1)
    assert repr(failed).startswith(
        "MarginResult(2 subspaces x 3 images, 5 of 6 converged, median margins 2.00 to 5.00;"
    )
    none = dataclasses.replace(failed, status=np.full((2, 3), Status.OUT_OF_STEPS))
    assert ", 0 of 6 converged, median margins inf to inf;" in repr(none)
    nothing = dataclasses.replace(failed, status=np.full((2, 3), Status.NON_FINITE))
    assert "(2 subspaces x 3 images, 0 of 6 converged;" in repr(nothing)
    assert "(2 subspaces x 0 images, all converged;" in repr(result[:, []])


def test_the_text_of_many_solvers_is_cut():
    solver = " | ".join([repr(solvers.DeepFool())] * 5)
    _, line = repr(make_result(solver=solver)).split("\n")
    assert len(line) < 140
    assert line.startswith("  DeepFool(")
    assert line.endswith("..., highest precision)")


def test_a_table_has_a_row_for_each_pair():
    statuses = np.array([[0, 1, 2], [3, 4, 0]], np.int32)
    result = make_result(3, status=statuses)
    frame = result.to_dataframe()
    assert list(frame.columns) == ["subspace", "image", *ARRAYS]
    assert len(frame) == 6
    for place, row in enumerate(frame.to_dict("records")):
        r, n = divmod(place, 3)
        assert (row.pop("subspace"), row.pop("image")) == (r, n)
        assert row.pop("status") == Status(statuses[r, n]).name.lower()
        assert row == {name: getattr(result, name)[r, n] for name in row}
    for name in ("margin", "label", "gap"):
        assert frame[name].dtype == getattr(result, name).dtype
    # The table is what pandas takes for granted: counts and medians by group, and memory of its own.
    assert frame.groupby("subspace")["margin"].median().tolist() == np.median(result.margin, axis=1).tolist()
    assert frame["status"].value_counts()["converged"] == 2
    frame.loc[:, "margin"] = -1.0
    assert (result.margin > 0).all()


def test_a_table_is_written_as_parquet(tmp_path):
    frame = with_status(make_result(), 1, 0, Status.NON_FINITE, np.nan).to_dataframe()
    frame.to_parquet(tmp_path / "margins.parquet")
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "margins.parquet"), frame)


def test_a_table_of_half_precision_has_numbers_that_pandas_has():
    margin = make_result().margin.astype(jnp.bfloat16)
    found = make_result(margin=margin).to_dataframe()["margin"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, margin.astype(np.float32).ravel())


def test_a_table_needs_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"tables of margins can't be used without pandas: pip install 'hmt-jax\[report\]', or '\.\[report\]'",
    ):
        make_result().to_dataframe()
