"""Every operator with a rule has a step that emits it."""

from __future__ import annotations

import pytest
import torch
from torch import fx

import fxcompress
from fxcompress.graph.calls import Call, call_of
from fxcompress.rules.registry import ruled_operators
from tests.comparing import relative_error, run
from tests.generator.draft import Draft, Value
from tests.generator.expressions import EXPRESSIONS, STATISTICS, Expression, chosen, statistics
from tests.generator.network import as_network
from tests.generator.registry import TOKENS
from tests.generator.spec import KNOB_TOP
from tests.laws import EXACT

SHAPES = {0: (6,), 1: (6, 7), 2: (6, 5, 6), 3: (6, 4, 4, 4), None: (6, 5, 6), TOKENS: (6, 8)}
ELSEWHERE = frozenset((
    "pointwise",  # the rule of all operators that have none of their own
    "fxcompress.gather_channels", "fxcompress.scatter_channels",  # speedup makes them: `law_compaction`
    "fxcompress.fake_quantize",  # quantizers make it: tests/rules/test_quantization.py
    "fxcompress.round_bias",  # likewise
    "fxcompress.unless_training",  # a write behind dropout: blocks that write in place meet it now and then
    "transformers::grouped_mm_fallback",  # another library defines it
))  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the tensors are tiny


def started(reads: int | str | None) -> tuple[Draft, Value]:
    """A draft with one value of what is read, that is no input."""
    draft = Draft(seed=1)
    draft.tokens = reads == TOKENS
    return draft, draft.emit(f"{draft.input(SHAPES[reads], tokens=draft.tokens)} * 1.25")


def recorded(module: fx.GraphModule) -> set[str]:
    """The operators of a graph, by name and by overload."""
    calls = [call for call in map(call_of, module.graph.nodes) if call is not None]
    return {call.op for call in calls} | {f"{call.op}.{_overload(call)}" for call in calls}


def _overload(call: Call) -> str:
    return getattr(call.target, "_overloadname", "")


def test_every_operator_with_a_rule_has_an_expression() -> None:
    missing = set(ruled_operators()) - set(EXPRESSIONS) - set(STATISTICS) - ELSEWHERE
    assert not missing, f"add an expression to tests/generator/expressions.py for {sorted(missing)}"
    unknown = (set(EXPRESSIONS) | set(STATISTICS)) - set(ruled_operators())
    assert not unknown, f"expressions of operators without a rule: {sorted(unknown)}"


@pytest.mark.parametrize(("op", "expression"), EXPRESSIONS.items(), ids=list(EXPRESSIONS))
def test_the_capture_of_an_expression_records_its_operator(op: str, expression: Expression) -> None:
    draft, x = started(expression.reads)
    network = as_network(draft, str(expression.emit(draft, x)))
    model = network.model()
    captured = fxcompress.capture(model, network.inputs())
    assert op in recorded(captured)
    for batch in (2, 5):  # no expression fixes the batch size
        inputs = network.inputs(batch=batch)
        assert relative_error(run(captured, inputs), run(model, inputs)) <= EXACT


@pytest.mark.parametrize("op", STATISTICS)
@pytest.mark.parametrize("reads", [2, TOKENS])
def test_a_mask_on_the_layer_restricts_its_statistics(op: str, reads: int | str) -> None:
    draft, x = started(reads)
    draft.turn((list(STATISTICS).index(op),))
    network = as_network(draft, str(statistics(draft, x)))
    config = [{"op_types": ["default"], "sparsity": 0.5}]
    assert op in recorded(fxcompress.compile(network.model(), config, network.inputs()))


@pytest.mark.parametrize("reads", [(None, 0, 1, 2, 3), (TOKENS,)], ids=["maps", TOKENS])
def test_two_knobs_reach_every_expression(reads: tuple[int | str | None, ...]) -> None:
    draft, reached = Draft(seed=1), set[Expression]()
    for first in range(2):
        for second in range(KNOB_TOP + 1):
            draft.turn((first, second))
            reached.add(chosen(draft, reads))
    assert reached == {expression for expression in EXPRESSIONS.values() if expression.reads in reads}
