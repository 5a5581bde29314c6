"""mixed_precision: the budget, who gets the bits, files it resumes from, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.graph.cost import count_bytes
from fxcompress.mixed_precision import MixedPrecision, mixed_precision
from fxcompress.passes.insert_fake_quant import quantizers
from fxcompress.quantization.storage import count_stored_bytes
from tests.helpers import image, ready, run

X = image(32, 8).float()
CONFIG: list[dict[str, Any]] = [{"quantizer": "ptq", "quant_bits": 8}]
ALL = ["weight", "input", "output"]


def net() -> nn.Module:
    return ready(
        nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
            nn.Linear(16, 3),
        )
    ).float()  # fmt: skip


def found_bits(found: MixedPrecision) -> dict[str, int]:
    return {row.name: row.bits for row in found.rows}


@pytest.mark.parametrize("budget", [0.2, 0.25, 0.3, 900, 1100])
def test_the_compiled_model_takes_the_bytes_that_were_counted_within_the_budget(budget: float) -> None:
    model = net()
    found = mixed_precision(model, CONFIG, X, data=[X], bytes=budget)
    module = fxcompress.compile(model, found.config_list, X, data=[X])
    assert count_stored_bytes(module) == found.bytes <= found.budget
    assert found.budget == (budget if budget > 1 else budget * count_bytes(model))
    bits = {name: q.grid.bits for name, q in quantizers(module).items()}  # type: ignore[union-attr]
    for layer in ("0", "2", "4", "6"):
        assert bits[f"{layer}_weight"] == found_bits(found)[f"{layer}.weight"]
    assert {b for name, b in bits.items() if not name.endswith("weight")} == {8}


def test_each_measurement_is_the_model_with_that_weight_rounded() -> None:
    model = net()
    found = mixed_precision(model, CONFIG, X, data=[X], bytes=0.9, bits=(8, 3))
    row = next(row for row in found.rows if row.name == "2.weight")
    layer, exact = model.get_submodule("2"), run(model, (X,)).double()
    weight = layer.get_parameter("weight").data.clone()
    for bits in (8, 3):
        step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        layer.get_parameter("weight").data = (weight / step).round() * step
        noise = (run(model, (X,)).double() - exact).square().mean()
        assert row.sqnr[bits] == pytest.approx(10 * math.log10(exact.square().mean() / noise), abs=1e-2)
    assert row.bytes == {8: 256 + 64, 3: 96 + 64}
    assert set(found_bits(found).values()) == {8}


def test_the_layer_that_hurts_most_gets_the_bits() -> None:
    """Three layers of one size, of which two hold what 2 bits hold exactly, −1 and 1."""
    model = ready(nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))).float()
    with torch.no_grad():
        for name in ("0", "2"):
            weight = model.get_parameter(f"{name}.weight")
            weight.copy_(weight.sign())
    x = image(32, 16).float()
    least = 3 * (64 + 64 + 64)  # weights at 2 bits, scales, biases
    found = mixed_precision(model, CONFIG, x, data=[x], bytes=least + 192)
    assert found_bits(found) == {"0.weight": 2, "1.weight": 8, "2.weight": 2}
    found = mixed_precision(model, CONFIG, x, data=[x], bytes=least + 191)
    assert found_bits(found) == {"0.weight": 2, "1.weight": 4, "2.weight": 2}


def test_noises_add_up_about_as_expected() -> None:
    found = mixed_precision(net(), CONFIG, X, data=[X[:16], X[16:]], bytes=0.3, bits=(8, 6, 4))
    assert found.sqnr == pytest.approx(found.expected, abs=1.0)
    assert found.expected <= found.bound
    single = [row.sqnr[row.bits] for row in found.rows]
    total = -10 * math.log10(sum(10 ** (-ratio / 10) for ratio in single))
    assert found.expected == pytest.approx(total)


def test_activations_have_bits_and_bytes_of_their_own() -> None:
    model = net()
    config = [{**CONFIG[0], "quant_types": ALL}]
    found = mixed_precision(model, config, X, data=[X], bytes=1100, quant_types=ALL)
    bits = found_bits(found)
    assert {"0.weight", "0.input", "0.output", "6.output"} <= set(bits)
    assert "2.input" not in bits  # what layer 0 yields
    module = fxcompress.compile(model, found.config_list, X, data=[X])
    for name, q in quantizers(module).items():
        assert q.grid.bits == bits[name.replace("_", ".")]  # type: ignore[union-attr]
    sizes = {row.name: row.bytes[row.bits] for row in found.rows}
    assert sizes["0.input"] == 8 * bits["0.input"] / 8 + 5
    activations = sum(size for name, size in sizes.items() if not name.endswith("weight"))
    assert found.bytes == count_stored_bytes(module) + activations <= 1100


def test_what_is_read_by_several_layers_is_one_choice() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.a(x), self.b(x)

    config = [{**CONFIG[0], "quant_types": ["weight", "input"]}]
    found = mixed_precision(ready(Two()).float(), config, X, data=[X], bytes=0.9, quant_types=["input"])
    assert [row.name for row in found.rows] == ["a.input"]
    named = {name for entry in found.config_list[1:] for name in entry["op_names"]}
    assert named == {"a", "b"}


def test_bits_of_inputs_alone_are_those_of_the_reader() -> None:
    """Without "output" in its quant_types, what a layer makes is rounded as the next one asks."""
    model = net()
    config = [{**CONFIG[0], "quant_types": ["weight", "input"]}]
    found = mixed_precision(model, config, X, data=[X], bytes=0.7, bits=(8, 5), quant_types=["input"])
    bits = found_bits(found)
    assert set(bits) == {"0.input", "2.input", "4.input", "6.input"}
    module = fxcompress.compile(model, found.config_list, X, data=[X])
    for name, q in quantizers(module).items():
        expected = 8 if name.endswith("weight") else bits[name.replace("_", ".")]
        assert q.grid.bits == expected  # type: ignore[union-attr]


def test_other_bits_of_a_layer_stay_as_the_config_list_has_them() -> None:
    config = [{"quantizer": "ptq", "quant_bits": {"weight": 8, "input": 6, "output": 7}}]
    found = mixed_precision(net(), config, X, data=[X], bytes=0.2)
    assert all(
        e["quant_bits"]["input"] == 6 and e["quant_bits"]["output"] == 7 for e in found.config_list[1:]
    )


def test_groups_of_weights_are_allocated_too() -> None:
    model = ready(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32))).float()
    x = image(8, 64).float()
    config = [{"quantizer": "weight_only"}]
    found = mixed_precision(model, config, x, data=[x], bytes=0.25, bits=(8, 4))
    assert sorted(found_bits(found).values()) == [4, 8]
    assert count_stored_bytes(compiled_on(model, found, x)) == found.bytes


def compiled_on(model: nn.Module, found: MixedPrecision, x: torch.Tensor) -> Any:
    module = fxcompress.compile(model, found.config_list, x, data=[x])
    module(x)  # weight-only scales are those of the weight at hand
    return module


def test_a_file_of_measurements_is_used_and_completed(tmp_path: Path) -> None:
    file, model = tmp_path / "bits.csv", net()
    first = mixed_precision(model, CONFIG, X, data=[X], bytes=0.9, bits=(8,), file=file)
    assert file.read_text().startswith("layer,8.0\n")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "0.weight,77.0", *lines[2:]]) + "\n")
    again = mixed_precision(model, CONFIG, X, data=[X], bytes=0.9, bits=(8, 4), file=file)
    assert again.rows[0].sqnr[8] == 77.0  # not measured anew
    assert again.rows[1].sqnr[8] == first.rows[1].sqnr[8]
    assert file.read_text().startswith("layer,4.0,8.0\n")
    file.write_text("layer,8.0\nconv9.weight,1.0\n")
    with pytest.raises(FxcompressError, match=r"bits\.csv: holds other layers"):
        mixed_precision(model, CONFIG, X, data=[X], bytes=0.9, file=file)


def test_the_result_as_text_and_json() -> None:
    found = mixed_precision(net(), CONFIG, X, data=[X], bytes=0.25)
    text = str(found).splitlines()
    assert text[0].startswith(f"{found.bytes:,.0f} of {found.budget:,.0f} bytes, {found.sqnr:.1f} dB at")
    assert " ".join(text[1].split()) == "tensor bits bytes dB at 8 dB at 4 dB at 2"
    assert len(text) == 3 + 4
    assert json.loads(found.to_json())["rows"][0]["sqnr"].keys() == {"8", "4", "2"}


def test_a_budget_out_of_reach_names_the_smallest_within_it() -> None:
    model = net()
    least = (128 + 256 + 256 + 48) / 4 + 2 * 51 * 4  # weights at 2 bits, scales and biases
    with pytest.raises(FxcompressError, match=rf"bytes=0\.05: even with the fewest bits {least:,.0f} bytes"):
        mixed_precision(model, CONFIG, X, data=[X], bytes=0.05)
    assert mixed_precision(model, CONFIG, X, data=[X], bytes=least).bytes == least


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bytes": 0}, r"bytes: expected a share in \(0, 1\) or a number of bytes, got 0"),
        ({"bytes": 0.5, "bits": (8, 4.5)}, r"bits: expected integers from 1 to 32, got \[8, 4\.5\]"),
        ({"bytes": 0.5, "bits": ()}, "bits: expected integers from 1 to 32"),
        ({"bytes": 0.5, "quant_types": ["wieght"]}, "expected some of weight, input, output"),
        ({"bytes": 0.5, "quant_types": ["output"]}, "expected quant_types in the config entry of '0' too"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        mixed_precision(net(), CONFIG, X, data=[X], **options)


def test_a_config_list_that_quantizes_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected an entry that quantizes, got none"):
        mixed_precision(net(), [{"sparsity": 0.5}], X, data=[X], bytes=0.5)


def test_types_that_the_config_list_does_not_round_are_refused() -> None:
    config = [{**CONFIG[0], "quant_types": ["input", "output"]}]
    with pytest.raises(ConfigError, match=r"quant_types=\['weight'\]: expected tensors that the config list"):
        mixed_precision(net(), config, X, data=[X], bytes=0.5)


def test_an_output_that_is_not_finite_has_no_ratio() -> None:
    with pytest.raises(FxcompressError, match=r"0\.weight: the model's output on data is zero or not finite"):
        mixed_precision(net(), CONFIG, X, data=[X * math.nan], bytes=0.9)
