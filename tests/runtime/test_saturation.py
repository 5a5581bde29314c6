"""Saturation: the processor is asked, not looked up."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from fxcompress.runtime.saturation import saturates


@pytest.mark.skipif(platform.system() != "Linux", reason="flags are read from /proc")
def test_products_are_exact_where_the_processor_has_vnni() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if "vnni" in flags:
        assert not saturates()
    elif "avx2" in flags:
        assert saturates()
