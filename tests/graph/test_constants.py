"""constants: what is computed from parameters alone has a value; who reads a parameter is known."""

from __future__ import annotations

import torch
from torch import nn

import fxcompress
from fxcompress.graph.calls import call_of
from fxcompress.graph.constants import Reading, constant, is_masked
from fxcompress.passes.absorb_batch_norm import absorb_batch_norm
from fxcompress.quantization import QAT_Quantizer
from tests.helpers import Function, image, ready, row_mask


def test_parameters_and_what_is_computed_from_them() -> None:
    model = ready(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    module = fxcompress.capture(model, image(2, 3))
    absorb_batch_norm(module)
    [call] = [c for c in map(call_of, module.graph.nodes) if c is not None and c.op == "linear"]
    norm = model.get_submodule("1")
    scale = norm.get_parameter("weight") / (norm.get_buffer("running_var") + 1e-5).sqrt()
    expected = model.get_parameter("0.weight") * scale[:, None]
    got = constant(module, call.args["weight"])
    assert got is not None
    torch.testing.assert_close(got, expected.detach(), rtol=1e-12, atol=0)
    assert not got.requires_grad
    assert constant(module, call.args["input"]) is None
    assert constant(module, None) is None


def test_masks_are_told_and_rounded_weights_have_no_value() -> None:
    model, x = ready(nn.Sequential(nn.Linear(3, 4))), image(2, 3)
    mask = row_mask(model.get_parameter("0.weight"), [1])
    masked = fxcompress.apply_masks(model, {"0": {"weight": mask}}, x)
    [call] = [c for c in map(call_of, masked.graph.nodes) if c is not None and c.op == "linear"]
    weight, bias = call.args["weight"], call.args["bias"]
    assert (is_masked(weight), is_masked(bias)) == (True, False)
    got = constant(masked, weight)
    assert got is not None
    assert torch.equal(got, model.get_parameter("0.weight") * mask)
    rounded = QAT_Quantizer(model, [{"quant_bits": 8}], example_inputs=x).compress()
    [call] = [c for c in map(call_of, rounded.graph.nodes) if c is not None and c.op == "linear"]
    assert constant(rounded, call.args["weight"]) is None


def test_who_reads_a_parameter() -> None:
    tied = nn.Linear(4, 4, bias=False)
    model = Function(
        lambda m, x: m.c(m.a(m.b(m.a(x)))) @ m.e.weight, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=tied,
        e=nn.Embedding(4, 4),
    )  # fmt: skip
    model.get_submodule("e").weight = tied.weight
    module = fxcompress.capture(ready(model), image(2, 4))
    reading = Reading(module)
    shared = {}
    for call in map(call_of, module.graph.nodes):
        if call is not None and call.op == "linear":
            shared[call.module] = reading.is_shared(call.args["weight"], call.node)
    assert shared == {"a": True, "b": False, "c": True}
