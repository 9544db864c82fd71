"""Random and hostile inputs: damaged files, random linear classifiers with their closed form, and what a refusal is."""

import collections
import contextlib
import faulthandler
import os

import hypothesis
import jax
import numpy as np
from hypothesis import strategies as st

# What happened to the inputs of this process, by kind and outcome.
TALLY: collections.Counter = collections.Counter()

_LONGEST = 600  # characters of a refusal
_SECONDS = 240  # one input may take, with everything that it compiles on a busy machine


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


@contextlib.contextmanager
def watched(request):
    """Ends the process with the stacks of all threads on its own stderr if an input takes too long."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        stderr = os.dup(2)
    try:
        yield lambda: faulthandler.dump_traceback_later(_SECONDS, exit=True, file=stderr)
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.close(stderr)


def check_refusal(error, *names, kinds=(ValueError, TypeError, OSError)):
    """That an error is a sentence in one line, of a class that callers expect, with these names in it."""
    text = str(error)
    assert isinstance(error, kinds), repr(error)
    assert len(text.split()) > 3, repr(error)
    assert len(text) < _LONGEST, text
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
