"""Random and hostile inputs: damaged files, random linear classifiers with their closed form, and what a refusal is."""

import collections
import shutil

import hypothesis
import jax
import numpy as np
from hypothesis import strategies as st

# What happened to the inputs of this process, by kind and outcome.
TALLY: collections.Counter = collections.Counter()

_LONGEST = 600  # characters of a refusal


def settings(num_examples):
    """The settings of a property: the same examples in every run, as many as asked for."""
    return hypothesis.settings(
        max_examples=max(num_examples, 1),
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


# What readers of files refuse with; the last is for files that look like PyTorch's, where PyTorch isn't there.
OF_FILES = (ValueError, OSError, ImportError)


def check_refusal(error, *names, kinds=(ValueError, TypeError, OSError)):
    """That an error is a sentence in one line, of a class that callers expect, with these names in it."""
    text = str(error)
    assert isinstance(error, kinds), repr(error)
    assert len(text.split()) > 3, repr(error)
    assert len(text) < _LONGEST, text
    if text.startswith("the state dict "):  # of a file that could be read; a table of what it holds may follow
        return
    assert "\n" not in text, text
    assert "Traceback" not in text, text
    for name in names:
        assert name in text, text


def is_same(found, expected):
    """Whether two trees have the same structure and the same arrays, bit for bit."""
    leaves, others = (jax.tree.flatten(tree) for tree in (found, expected))
    return leaves[1] == others[1] and all(map(_is_same_leaf, leaves[0], others[0]))


def _is_same_leaf(found, expected):
    if not isinstance(expected, np.ndarray | jax.Array):
        return found == expected
    found, expected = np.asarray(found), np.asarray(expected)
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


# Damage

_KINDS = ("flip", "cut", "double", "insert", "remove", "blank", "empty", "turn")
# Heads and ends of files are short, and hold what readers trust.
_PLACES = st.one_of(st.integers(0, 96), st.integers(-96, -1), st.integers(0, 2**16))
EDITS = st.lists(st.tuples(st.sampled_from(_KINDS), _PLACES, st.binary(min_size=1, max_size=9)), min_size=1, max_size=3)


def damaged(content, edits):
    """The content of a file after some edits."""
    for kind, place, some in edits:
        place %= len(content) + 1
        before, after = content[:place], content[place:]
        content = {
            "flip": before + bytes([after[0] ^ (some[0] or 1)]) + after[1:] if after else before,
            "cut": before,
            "double": content + content,
            "insert": before + some + after,
            "remove": before + after[len(some) :],
            "blank": before + bytes(len(after[: len(some)])) + after[len(some) :],
            "empty": b"",
            "turn": after + before,
        }[kind]
    return content


def check_damage(kind, reader, folder, num_examples, watch):
    """That damaged files are refused in a sentence that names them, or read as the whole ones if checksums cover all.

    Args:
      kind: what the files are, for the figures.
      reader: a `readers.Reader`.
      folder: an empty folder.
      num_examples: the number of times that one of the files is damaged and all are read.
      watch: called before each reading.
    """
    reader.write(folder)
    whole, contents = reader.read(folder), contents_of(folder)

    @settings(num_examples)
    @hypothesis.given(st.sampled_from(sorted(contents)), EDITS)
    def check(name, edits):
        watch()
        (folder / name).write_bytes(damaged(contents[name], edits))
        try:
            found = reader.read(folder)
        except Exception as error:
            check_refusal(error, str(folder), kinds=OF_FILES)
            TALLY[kind, "refused"] += 1
        else:
            is_right = is_same(found, whole)
            assert is_right or not reader.is_checked
            TALLY[kind, "the same" if is_right else "other numbers"] += 1
        assert reader.moves or contents_of(folder).keys() == contents.keys()
        rewrite(folder, contents)

    check()


def contents_of(folder):
    """The contents of all files in a folder, by their paths in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(folder, contents):
    """Makes a folder hold these files alone."""
    shutil.rmtree(folder)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
