"""The package itself: everything public is there, and imported only when asked for."""

from __future__ import annotations

import importlib

import pytest

import fxcompress


@pytest.mark.parametrize("name", fxcompress.__all__)
def test_every_public_name_comes_from_its_module(name: str) -> None:
    (home,) = (module for module, names in fxcompress._HOMES.items() if name in names)
    assert getattr(fxcompress, name) is getattr(importlib.import_module(f"fxcompress.{home}"), name)
    assert name in dir(fxcompress)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    for name in ("compress_all", "_private", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'fxcompress' has no attribute {name!r}"):
            getattr(fxcompress, name)


def test_submodules_are_attributes() -> None:
    assert fxcompress.pruning is importlib.import_module("fxcompress.pruning")
