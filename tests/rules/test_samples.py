"""Every operator with a rule has a sample, the capture records that operator, and law 1 holds for it.

Capturing costs more than everything else, so the samples of a family are captured together, as branches of
one network, each with a stem, masks and a readout of its own.
"""

from __future__ import annotations

import functools
import random

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.graph.calls import call_of
from fxcompress.graph.module import CompiledModule
from fxcompress.passes import compact
from fxcompress.rules.registry import ruled_operators
from tests import helpers
from tests.helpers import Masks, ready
from tests.rules.samples import CHANNELS, FAMILIES, SAMPLES, SampleNet

TOGETHER = 16


class Branches(nn.Module):
    """The samples of some operators side by side."""

    def __init__(self, ops: tuple[str, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({f"{op.replace('.', '_')}_": SAMPLES[op].net() for op in ops})

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        pairs = zip(self.branches.items(), inputs, strict=True)
        return {name: branch(x) for (name, branch), x in pairs}


def _groups() -> list[tuple[str, ...]]:
    groups: list[tuple[str, ...]] = []
    for samples in FAMILIES.values():
        ops = [op for op, s in samples.items() if not s.restricted and not s.compacted and s.bug is None]
        groups += [tuple(ops[i : i + TOGETHER]) for i in range(0, len(ops), TOGETHER)]
    return groups


def _inputs(ops: tuple[str, ...], batch: int = 3) -> tuple[Tensor, ...]:
    return tuple(SAMPLES[op].inputs(batch) for op in ops)


@functools.cache
def _captured(ops: tuple[str, ...]) -> tuple[nn.Module, CompiledModule]:
    model = ready(Branches(ops))
    return model, fxcompress.capture(model, _inputs(ops))


def random_masks(model: nn.Module, seed: int) -> Masks:
    """Some stem filters with or without their biases, and some of what the readouts read."""
    plan = {}
    rng = random.Random(seed)
    for name, net in model.named_modules():
        if not isinstance(net, SampleNet):
            continue
        prefix = f"{name}." if name else ""
        rows = sorted(rng.sample(range(CHANNELS), 4))
        width = net.head.weight.shape[1]
        plan[f"{prefix}stem"] = {"rows": rows, "bias": rows[: rng.randint(0, 4)]}
        plan[f"{prefix}head"] = {"columns": sorted(rng.sample(range(width), min(2, width - 1)))}
    return helpers.make_masks(model, plan)


def name_of(group: tuple[str, ...]) -> str:
    return f"{group[0]}-{group[-1]}"


def test_every_operator_with_a_rule_has_a_sample() -> None:
    elsewhere = {"fxcompress.fake_quantize", "fxcompress.round_bias"}  # test_quantization
    missing = set(ruled_operators()) - set(SAMPLES) - elsewhere
    assert not missing, f"add a sample to tests/rules/samples.py for {sorted(missing)}"
    unknown = set(SAMPLES) - set(ruled_operators())
    assert not unknown, f"samples of operators without a rule: {sorted(unknown)}"


@pytest.mark.parametrize("ops", _groups(), ids=name_of)
def test_the_capture_records_the_operator(ops: tuple[str, ...]) -> None:
    _, module = _captured(ops)
    recorded: dict[str, set[str]] = {}
    for node in module.graph.nodes:
        call = call_of(node)
        scopes = [scope for scope, _ in (node.meta.get("nn_module_stack") or {}).values()]
        names = {scope.split(".")[1] for scope in scopes if scope.startswith("branches.")}
        for name in names or {"shared"}:  # sizes are read once, outside any module
            recorded.setdefault(name, set()).update([call.op] if call is not None else [])
    for op in ops:
        found = recorded[f"{op.replace('.', '_')}_"] | recorded.get("shared", set())
        assert (SAMPLES[op].captured or op) in found, f"{op}: the capture records {sorted(found)}"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("ops", _groups(), ids=name_of)
def test_speedup_computes_what_the_masked_model_computes(ops: tuple[str, ...], seed: int) -> None:
    model, module = _captured(ops)
    masks = random_masks(model, seed)
    small = fxcompress.speedup(module, masks=masks, verify=False)
    masked = helpers.apply_masks(model, masks)
    for batch in (3, 2, 5):
        inputs = _inputs(ops, batch)
        got, expected = helpers.run(small, inputs), helpers.run(masked, inputs)
        errors = {name: helpers.relative_error(got[name], expected[name]) for name in expected}
        wrong = {name: error for name, error in errors.items() if not error <= helpers.EXACT}
        assert not wrong, f"batch {batch}, relative errors {wrong}"


@pytest.mark.parametrize("ops", _groups(), ids=name_of)
def test_masked_channels_go_unless_the_operator_needs_them(ops: tuple[str, ...]) -> None:
    model, module = _captured(ops)
    stems = [name for name, _ in model.named_modules() if name.endswith(".stem")]
    gone = [1, 3, 5, 7]  # the same channel of two of two groups, pairs and halves
    masks = helpers.make_masks(model, {name: {"rows": gone, "bias": gone} for name in stems})
    small = fxcompress.speedup(module, masks=masks, verify=False)
    for op in ops:
        weight = small.get_submodule(f"branches.{op.replace('.', '_')}_.stem").get_parameter("weight")
        assert (weight.shape[0] == CHANNELS) == SAMPLES[op].keeps, f"{op}: the stem keeps {weight.shape[0]}"


@pytest.mark.parametrize("op", [op for op, sample in SAMPLES.items() if sample.restricted])
def test_operators_that_masks_bring_in_are_exact(op: str) -> None:
    sample = SAMPLES[op]
    masked = helpers.compiled(sample.net(), sample.inputs(), op_names=["stem"])
    assert op in helpers.operators(masked)
    small = fxcompress.speedup(masked)
    helpers.check_exact(small, masked, sample.inputs())
    assert op not in helpers.operators(small)
    assert helpers.weight_shape(small, "stem")[0] == CHANNELS // 2


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("op", [op for op, sample in SAMPLES.items() if sample.compacted])
def test_operators_that_compaction_brings_in_are_exact(
    op: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "COSTS", compact.Costs(0.0, 0.0, 0.0))
    sample = SAMPLES[op]
    model, x = ready(sample.net()), sample.inputs()
    masks = random_masks(model, seed)
    small = fxcompress.speedup(model, x, masks=masks)
    helpers.check_exact(small, helpers.apply_masks(model, masks), x)
    assert op in helpers.operators(small)
    assert helpers.weight_shape(small, "stem")[0] == CHANNELS // 2
    rows = helpers.make_masks(small, {"stem": {"rows": [0], "bias": [0]}})
    smaller = fxcompress.speedup(small, masks=rows)
    helpers.check_exact(smaller, helpers.apply_masks(small, rows), x)
    assert helpers.weight_shape(smaller, "stem")[0] == CHANNELS // 2 - 1


@pytest.mark.parametrize(
    "op",
    [
        pytest.param(op, marks=pytest.mark.xfail(strict=True, reason=sample.bug))
        for op, sample in SAMPLES.items()
        if sample.bug is not None
    ],
)
def test_known_defects_of_operators(op: str) -> None:
    model = ready(SAMPLES[op].net())
    masks = random_masks(model, 0)
    small = fxcompress.speedup(model, SAMPLES[op].inputs(), masks=masks)
    helpers.check_exact(small, helpers.apply_masks(model, masks), SAMPLES[op].inputs())


def test_an_operator_without_a_rule_keeps_its_channels_and_is_named() -> None:
    net = helpers.Function(
        lambda m, x: m.head(torch.linalg.matrix_exp(m.stem(x) * 0.1)),
        stem=nn.Conv2d(3, 6, 1),
        head=nn.Conv2d(6, 2, 1),
    )
    small = helpers.shrunk(net, helpers.image(2, 3, 4, 4), {"stem": {"rows": [1, 2], "bias": [1, 2]}})
    assert helpers.weight_shape(small, "stem")[0] == 6
    assert any("linalg_matrix_exp" in reason for _, reason in ((k[0], str(k)) for k in small.report.kept))
