"""Pruner names: the built-in ones, registration, clashes."""

from __future__ import annotations

import pytest

from fxcompress.config import registry
from fxcompress.config.schema import parse
from fxcompress.errors import ConfigError


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_PRUNERS", dict(registry.known_pruners()))


def test_the_built_in_pruners_support_convolutions_and_linear() -> None:
    pruners = registry.known_pruners()
    assert {"level", "l1", "l2", "fpgm"} <= set(pruners)
    assert {"Conv2d", "ConvTranspose1d", "Linear"} <= pruners["l1"]
    assert "BatchNorm2d" not in pruners["l1"]


def test_a_registered_pruner_is_a_valid_name_in_a_config_list() -> None:
    config = [{"pruner": "wavelet", "sparsity": 0.5}]
    with pytest.raises(ConfigError, match="pruner: expected one of"):
        parse(config)
    registry.register_pruner("wavelet", ["Conv2d"])
    assert parse(config)[0].pruner == "wavelet"
    assert registry.known_pruners()["wavelet"] == {"Conv2d"}


def test_registering_again_is_harmless_but_another_meaning_is_refused() -> None:
    registry.register_pruner("l1", registry.PRUNABLE)
    with pytest.raises(
        ConfigError, match=r"pruner 'l1': expected a new name.*register it under another name"
    ):
        registry.register_pruner("l1", ["Embedding"])
    assert registry.known_pruners()["l1"] == registry.PRUNABLE


def test_the_view_is_read_only() -> None:
    with pytest.raises(TypeError):
        registry.known_pruners()["x"] = frozenset()  # type: ignore[index]
