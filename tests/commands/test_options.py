"""Values of shared options."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from fxcompress.commands.models import inputs_of
from fxcompress.commands.options import InputSpec, input_spec
from fxcompress.errors import FxcompressError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1x3x224x224", InputSpec(None, (1, 3, 224, 224))),
        ("4", InputSpec(None, (4,))),
        ("ids=2x16:int64", InputSpec("ids", (2, 16), "int64")),
        ("x.npy", InputSpec(None, file=Path("x.npy"))),
        ("mask=folder/m.npy", InputSpec("mask", file=Path("folder/m.npy"))),
    ],
)
def test_what_an_input_says(text: str, spec: InputSpec) -> None:
    assert input_spec(text) == spec


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1x", "expected a shape such as 1x3x224x224"),
        ("1x3:float", "expected one of float32, .*, got 'float'"),
        ("1-2=1x3", "expected NAME=…"),
        ("x=a.npz", "names of their own"),
        ("x.pt", "expected a shape"),
    ],
)
def test_what_is_no_input_is_said(text: str, told: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=told):
        input_spec(text)


def test_random_inputs_are_the_same_in_every_run() -> None:
    specs = [input_spec("2x3"), input_spec("5:int64"), input_spec("4:bool"), input_spec("3:bfloat16")]
    first, second = inputs_of(specs), inputs_of(specs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert [x.dtype for x in first] == [torch.float32, torch.int64, torch.bool, torch.bfloat16]
    assert set(first[1].tolist()) <= {0, 1}
    assert inputs_of([]) is None
    assert list(inputs_of([input_spec("ids=2x4:int64")])) == ["ids"]


def test_arrays_of_an_npz_file_have_the_names_of_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "named.npz", ids=np.ones((2, 4)), mask=np.zeros(3))
    np.savez(tmp_path / "plain.npz", np.ones((2, 4)), np.zeros(3))
    assert list(inputs_of([InputSpec(None, file=tmp_path / "named.npz")])) == ["ids", "mask"]
    assert [tuple(x.shape) for x in inputs_of([InputSpec(None, file=tmp_path / "plain.npz")])] == [
        (2, 4),
        (3,),
    ]
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(FxcompressError, match=r"objects.npy: cannot be read as arrays \(Object arrays"):
        inputs_of([InputSpec(None, file=tmp_path / "objects.npy")])
