"""Thousands of random and hostile inputs: each has the right result, or is refused in a sentence.

`--examples 10000` is the whole campaign, which takes minutes.
"""

import shutil
import warnings

import hypothesis
import jax
import pytest
from hostile import EDITS, TALLY, check_refusal, damaged, is_same, settings, watched
from hypothesis import strategies as st
from linear_cases import FORMS, SOLVERS, cases, check_image, contained, inputs_of
from readers import READERS

import hmt_jax


@pytest.fixture
def num_examples(request):
    return request.config.getoption("--examples")


@pytest.fixture
def watch(request):
    with watched(request) as watch:
        yield watch


def contents_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(folder, contents):
    shutil.rmtree(folder)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files(kind, tmp_path, num_examples, watch):
    reader, folder = READERS[kind], tmp_path / "files"
    folder.mkdir()
    reader.write(folder)
    whole, contents = reader.read(folder), contents_of(folder)

    @settings(num_examples // 20 // reader.cost)
    @hypothesis.given(st.sampled_from(sorted(contents)), EDITS)
    def check(name, edits):
        watch()
        (folder / name).write_bytes(damaged(contents[name], edits))
        try:
            found = reader.read(folder)
        except Exception as error:
            check_refusal(error, str(folder), kinds=reader.kinds)
            TALLY[kind, "refused"] += 1
        else:
            is_right = is_same(found, whole)
            TALLY[kind, "the same" if is_right else "another"] += 1
            assert is_right or not reader.is_checked, found
        finally:
            if contents_of(folder).keys() != contents.keys():
                assert kind == "checkpoints"
                written(folder, contents)
            (folder / name).write_bytes(contents[name])

    check()
    print(kind, {k:v for k,v in TALLY.items() if k[0]==kind})
    assert [each.name for each in tmp_path.iterdir()] == ["files"]


@pytest.mark.parametrize("name", SOLVERS)
def test_linear_classifiers(name, num_examples, watch):
    num_forms = min(max(3, num_examples // 400), len(FORMS))

    @settings(num_examples // 4)
    @hypothesis.given(cases(num_forms))
    def check(case):
        watch()
        inputs = inputs_of(case)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = hmt_jax.measure_margins(
                    inputs.classifier,
                    contained(inputs.images, case.container),
                    inputs.subspace,
                    SOLVERS[name],
                    batch_size=max(case.form.num_images // 2, 1),
                    devices=jax.devices()[:1],
                )
            except ValueError as error:
                check_refusal(error, "classifier returns NaN or infinite logits for every one of ")
                assert case.num_ruled_out == case.form.num_classes
                TALLY["measured", "refused"] += 1
                return
        for warning in caught:
            check_refusal(warning.message, kinds=UserWarning)
        for n in range(case.form.num_images):
            TALLY["measured", check_image(name, inputs, result, n).name] += 1

    check()
    print(TALLY)
