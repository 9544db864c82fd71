"""Measurements for pages, whose numbers tests compute again with NumPy."""

import dataclasses

import numpy as np
from test_statistics import make_result

from hmt_jax import Status, report

NUM_SUBSPACES, NUM_IMAGES = 6, 40
IDS = [f"test {n}" for n in range(NUM_IMAGES)]
SUBSPACES = [str(4 * r) for r in range(NUM_SUBSPACES)]
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "\"quotes\" 'too' & </script><img src=x onerror='window.hacked = 1'>",
    "x" * 300,
    "\u202e\u05e9\u05dc\u05d5\u05dd",
    "{{ 7 * 7 }} ${8} datum.x",
]


def margins(seed: int) -> np.ndarray:
    """Margins (R, N) that rise."""
    noise = np.random.default_rng(seed).normal(size=(NUM_SUBSPACES, NUM_IMAGES))
    return np.exp(0.5 * np.arange(NUM_SUBSPACES)[:, None] + 0.4 * noise + 0.2 * seed)


def measurements() -> list[report.Measurement]:
    """Two networks, the second of which has failures, and the first one by another solver."""
    status = np.full((NUM_SUBSPACES, NUM_IMAGES), int(Status.CONVERGED))
    status[5, :30] = Status.OUT_OF_STEPS
    status[2, 7] = Status.NON_FINITE
    common = {"subspaces": SUBSPACES, "axis": "first frequency", "image_ids": IDS}
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1)
    pictures = [report.Picture(0, 3, "least", 0.5, image, 0.02 * image, 4, 9)]
    claims = [
        report.Claim("margins rise", "5.1", ">= 2", True, "from the paper"),
        report.Claim("margins fall", "5.1", "<= 1", False),
        report.Claim("margins of nothing", "nan", "<= 1", None, "nothing was measured"),
    ]
    return [
        report.Measurement(
            name="standard",
            result=make_result(margins(0)),
            classifier_id="a",
            bounds=margins(0)[:, :4] / 8,
            pictures=pictures,
            claims=claims,
            history={"loss": [2.0, 1.0, 0.5], "accuracy": [0.5, 0.8, 0.9]},
            command="hmt measure --model standard",
            attributes={"versions": {"jax": "1.2.3"}, "runs": [{"devices": ["cpu"]}]},
            **common,
        ),
        report.Measurement(name="robust", result=make_result(margins(1), status), classifier_id="b", **common),
        report.Measurement(
            name="standard, tight",
            result=dataclasses.replace(make_result(margins(0) / 2), solver="Walk()"),
            classifier_id="a",
            no_pictures="why",
            **common,
        ),
    ]


def hostile() -> list[report.Measurement]:
    """Measurements whose every name is hostile."""
    image = np.full((8, 8, 3), 0.5, np.float32)
    return [
        report.Measurement(
            name=name,
            result=make_result(margins(seed)[: len(HOSTILE)]),
            subspaces=HOSTILE,
            axis=name,
            image_ids=IDS,
            classes=HOSTILE,
            pictures=[report.Picture(seed, 3, "least", 0.5, image, 0.1 * image, 0, seed)],
            claims=[report.Claim(name, name, name, None, name)],
            history={name: [2.0, 1.0]},
            command=name,
            attributes={name: {name: name}},
        )
        for seed, name in enumerate(HOSTILE)
    ]


def grid() -> report.Measurement:
    """Margins in a grid of two rows and three columns, of which the last median is censored."""
    status = np.full((NUM_SUBSPACES, NUM_IMAGES), int(Status.CONVERGED))
    status[5] = Status.ZERO_GRADIENT
    corners = np.array([(row, column) for row in (0, 4) for column in (0, 4, 8)])
    names = [f"{row},{column}" for row, column in corners]
    return report.Measurement(name="grid", result=make_result(margins(0), status), subspaces=names, corners=corners)
