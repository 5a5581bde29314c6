"""int8: what the figures mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.int8 import Subject, goals, images, markdown, sqnr


def test_sqnr_of_a_tenth_is_twenty_decibels() -> None:
    x = [np.array([3.0, -4.0], np.float32), np.array([5.0], np.float32)]
    y = [np.array([3.3, -4.4], np.float32), np.array([5.5], np.float32)]
    assert math.isclose(sqnr(x, y), 20.0, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("subject", "speedup", "met"),
    [
        (Subject("a"), {"fxcompress": 2.0, "static": 2.05, "dynamic": 0.2}, True),
        (Subject("a"), {"fxcompress": 2.0, "static": 2.1, "dynamic": 0.2}, False),
        (Subject("a"), {"fxcompress": 2.0, "fxcompress, dynamic": 3.0, "static": 1.9, "dynamic": 2.9}, True),
        (Subject("a", over_static=1.2), {"fxcompress": 1.3, "static": 1.1, "dynamic": 0.2}, False),
        (Subject("a", over_float=6.0), {"fxcompress": 6.1, "static": 2.0, "dynamic": 0.2}, True),
    ],
)
def test_goals_are_bounds_on_ratios(subject: Subject, speedup: dict[str, float], met: bool) -> None:
    assert goals(subject, {"1": speedup})["1"]["met"] is met


def test_images_have_mean_0_and_variance_1_and_follow_the_seed() -> None:
    found = images(2, 3)
    assert torch.equal(found, images(2, 3))
    assert torch.allclose(found.mean((1, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(found.std((1, 2, 3)), torch.ones(2), atol=1e-5)


def test_the_table_has_a_line_for_each_model_and_batch() -> None:
    speedup = {
        "1": {"fxcompress": 2.5, "fxcompress, dynamic": 2.2, "static": 2.0, "dynamic": 0.25},
        "8": {"fxcompress": 2.4, "fxcompress, dynamic": 2.1, "static": 3.0, "dynamic": 0.25},
    }
    noise = {"fxcompress": 29.6, "static": 10.2, "dynamic": 29.0, "fxcompress, dynamic": 31.4}
    row = {
        "speedup": speedup, "sqnr": noise, "bytes": dict.fromkeys(("float32", *noise), 1),
        "parity": {"mismatches": 1, "values": 7_179_216}, "operators in float": 3,
        "goals": goals(Subject("a"), speedup),
    }  # fmt: skip
    cells = "30 / 10 / 29 / 31 | 1 of 7,179,216 | 3"
    assert markdown({"rows": {"net": row}}).splitlines()[-2:] == [
        f"| net | 1 | 2.50 / 2.20 | 2.00 | 0.25 | 1.25 | {cells} | met |",
        f"| net | 8 | 2.40 / 2.10 | 3.00 | 0.25 | 0.80 | {cells} | MISSED |",
    ]
