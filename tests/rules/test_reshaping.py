"""The arithmetic of views: common factors and segments, for any two shapes of equal size."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxcompress.rules.reshaping import _segments, common_factors
from tests.helpers import Function, image, shrunk, weight_shape

ATOMS = st.lists(st.sampled_from([1, 2, 3, 4, 5, 6]), min_size=1, max_size=6)


@st.composite
def regroupings(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes that group the same atoms, ones put in anywhere."""
    atoms = draw(ATOMS)

    def group() -> list[int]:
        shape, i = [], 0
        while i < len(atoms):
            j = draw(st.integers(i + 1, len(atoms)))
            shape.append(math.prod(atoms[i:j]))
            i = j
            if draw(st.booleans()):
                shape.append(1)
        return shape

    return group(), group()


SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=5)


@given(regroupings())
def test_common_factors_make_up_both_shapes(shapes: tuple[list[int], list[int]]) -> None:
    a, b = shapes
    found = common_factors(a, b)
    if found is None:
        # Regrouping equal atoms has a common refinement unless prefix products do not divide each other.
        prefixes = {math.prod(s[k:]) for s in (a, b) for k in range(len(s) + 1)}
        assert any(y % x for x in prefixes for y in prefixes if y > x)
        return
    mine, theirs, atoms = found
    for shape, parts in ((a, mine), (b, theirs)):
        assert [math.prod(atoms[k] for k in part) for part in parts] == shape
        assert [k for part in parts for k in part] == list(range(len(atoms))), "row-major, each atom once"
    assert all(atom > 1 for atom in atoms)


@given(SHAPES)
def test_a_shape_refined_with_itself_is_itself(shape: list[int]) -> None:
    found = common_factors(shape, shape)
    assert found is not None
    mine, theirs, atoms = found
    assert mine == theirs
    assert atoms == [s for s in shape if s > 1]


def test_shapes_without_a_common_refinement() -> None:
    assert common_factors([4, 6], [6, 4]) is None
    assert common_factors([2, 3], [6]) == ([[0], [1]], [[0, 1]], [2, 3])
    assert common_factors([8], [2, 2, 2]) == ([[0, 1, 2]], [[0], [1], [2]], [2, 2, 2])


@given(regroupings())
def test_segments_cut_both_shapes_into_runs_of_equal_products(shapes: tuple[list[int], list[int]]) -> None:
    a, b = shapes
    runs = _segments(a, b)
    assert [i for mine, _ in runs for i in mine] == list(range(len(a)))
    assert [j for _, theirs in runs for j in theirs] == list(range(len(b)))
    for mine, theirs in runs:
        assert math.prod(a[i] for i in mine) == math.prod(b[j] for j in theirs)


@given(SHAPES)
def test_segments_of_equal_shapes_are_single_dimensions(shape: list[int]) -> None:
    larger = [s + 1 for s in shape]
    assert _segments(larger, larger) == [(range(i, i + 1), range(i, i + 1)) for i in range(len(shape))]


def test_a_shuffle_written_as_views_loses_whole_columns() -> None:
    def shuffle(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)  # type: ignore[operator]
        y = y.view(y.shape[0], 2, 4, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
        result: torch.Tensor = m.b(y)  # type: ignore[operator]
        return result

    model = Function(shuffle, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1))
    small = shrunk(model, image(2, 3, 4, 4), {"a": {"rows": [1, 5], "bias": [1, 5]}})
    assert weight_shape(small, "a")[0] == 6
    small = shrunk(model, image(2, 3, 4, 4), {"a": {"rows": [1, 6], "bias": [1, 6]}})
    assert weight_shape(small, "a")[0] == 8, "no column of the two-by-four table is masked"
