"""Recurrent layers: features and hidden units that are constant or unread go, exactly, and only those."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.graph.module import CompiledModule
from tests import helpers
from tests.helpers import Function, Masks, apply_masks, check_exact, image, make_masks, ready

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}
IN, HIDDEN, STEPS = 8, 6, 5


def unit_masks(
    layer: nn.Module, units: Iterable[int], gates: Iterable[int] | None = None
) -> dict[str, Tensor]:
    """Masks of the rows (weights and biases) of some hidden units, in some gates (all of them by default)."""
    masks = {}
    for name, parameter in layer.named_parameters():
        mask = torch.ones_like(parameter)
        if "_hr" not in name:
            for gate in range(GATES[type(layer)]) if gates is None else gates:
                mask[[gate * int(layer.hidden_size) + unit for unit in units]] = 0  # type: ignore[arg-type]
        masks[name] = mask
    return masks


def model_of(layer: nn.Module, body: Callable[[Any, Tensor], Any] | None = None) -> nn.Module:
    """stem → layer → head over the features of every step."""
    directions = 2 if getattr(layer, "bidirectional", False) else 1
    width = directions * int(getattr(layer, "proj_size", 0) or layer.hidden_size)  # type: ignore[arg-type]
    plain = lambda m, x: m.head(m.layer(m.stem(x))[0])  # noqa: E731
    return Function(body or plain, stem=nn.Linear(3, IN), layer=layer, head=nn.Linear(width, 2))


def sped_up(model: nn.Module, masks: Masks, x: Tensor) -> CompiledModule:
    """Speed up under ``masks`` and check law 1, at another batch size too where ``x`` is batch first."""
    small = fxcompress.speedup(model, x, masks=masks)
    masked = apply_masks(model, masks)
    assert helpers.relative_error(helpers.run(small, (x,)), helpers.run(masked, (x,))) <= helpers.EXACT
    if small.batch_is_dynamic:
        check_exact(small, masked, x)
    return small


def sizes(module: nn.Module) -> tuple[Any, Any]:
    """What the recurrent layer of ``module`` says of itself."""
    layer = module.get_submodule("layer")
    return layer.input_size, layer.hidden_size


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(IN, HIDDEN, batch_first=True),
    "lstm without biases": lambda: nn.LSTM(IN, HIDDEN, bias=False, batch_first=True),
    "deep lstm": lambda: nn.LSTM(IN, HIDDEN, 3, batch_first=True, dropout=0.3),
    "bidirectional lstm": lambda: nn.LSTM(IN, HIDDEN, 2, bidirectional=True, batch_first=True),
    "lstm, steps first": lambda: nn.LSTM(IN, HIDDEN),
    "gru": lambda: nn.GRU(IN, HIDDEN, batch_first=True),
    "deep bidirectional gru": lambda: nn.GRU(IN, HIDDEN, 2, bidirectional=True, batch_first=True),
    "gru without biases": lambda: nn.GRU(IN, HIDDEN, 2, bias=False, batch_first=True),
    "tanh rnn": lambda: nn.RNN(IN, HIDDEN, 2, batch_first=True),
    "relu rnn": lambda: nn.RNN(IN, HIDDEN, bidirectional=True, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_masked_units_and_dead_features_go(name: str) -> None:
    model = ready(model_of(LAYERS[name]()))
    layer = model.get_submodule("layer")
    masks = make_masks(model, {"stem": {"rows": [1, 4], "bias": [1]}})
    masks["layer"] = unit_masks(layer, [2, 5])
    small = sped_up(model, masks, image(2, STEPS, 3))
    # Feature 4 is a constant other than zero: it goes where a bias can hold it.
    left = 6 if layer.bias else 7
    assert sizes(small) == (left, 4)
    assert small.get_parameter("layer.weight_hh_l0").shape == (GATES[type(layer)] * 4, 4)
    assert f"({left}, 4" in str(small.layer)
    assert sizes(model) == (IN, HIDDEN)


@pytest.mark.parametrize(("layer", "gate"), [(nn.LSTM, 2), (nn.GRU, 2)])
def test_the_candidate_alone_decides_whether_a_unit_stays_zero(
    layer: type[nn.LSTM | nn.GRU], gate: int
) -> None:
    for gates, left in (([gate], 4), ([g for g in range(GATES[layer]) if g != gate], 6)):
        model = ready(model_of(layer(IN, HIDDEN, batch_first=True)))
        masks = {"layer": unit_masks(model.get_submodule("layer"), [0, 3], gates)}
        small = sped_up(model, masks, image(2, STEPS, 3))
        assert small.get_submodule("layer").hidden_size == left


def test_units_that_read_only_each_other_go() -> None:
    model = ready(model_of(nn.LSTM(IN, HIDDEN, bias=False, batch_first=True)))
    masks = {"layer": unit_masks(model.get_submodule("layer"), [1, 2], [2])}
    rows = [2 * HIDDEN + 1, 2 * HIDDEN + 2]
    masks["layer"]["weight_hh_l0"][rows, 1:3] = 1
    assert sped_up(model, masks, image(2, STEPS, 3)).get_submodule("layer").hidden_size == 4
    masks["layer"]["weight_hh_l0"][rows, 3] = 1
    assert sped_up(model, masks, image(2, STEPS, 3)).get_submodule("layer").hidden_size == 6


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_units_that_nobody_reads_go(layer: type[nn.LSTM | nn.GRU | nn.RNN]) -> None:
    model = ready(model_of(layer(IN, HIDDEN, batch_first=True)))
    masks = make_masks(model, {"head": {"columns": [0, 4]}})
    masks["layer"] = {"weight_hh_l0": torch.ones_like(model.get_parameter("layer.weight_hh_l0"))}
    masks["layer"]["weight_hh_l0"][:, [0, 4]] = 0
    assert sped_up(model, masks, image(2, STEPS, 3)).get_submodule("layer").hidden_size == 4


def test_constant_units_of_an_rnn_go_unless_a_later_step_reads_them() -> None:
    for recurrent, left in ((False, 4), (True, 6)):
        model = ready(model_of(nn.RNN(IN, HIDDEN, 2, batch_first=True)))
        masks = {"layer": unit_masks(model.get_submodule("layer"), [0, 3])}
        for level in (0, 1):
            masks["layer"][f"bias_ih_l{level}"] = torch.ones(HIDDEN).double()  # tanh(b) from step 0 on
            if not recurrent:
                masks["layer"][f"weight_hh_l{level}"][:, [0, 3]] = 0
        small = sped_up(model, masks, image(2, STEPS, 3))
        assert small.get_submodule("layer").hidden_size == left


def _given(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    start = m.start(y[:, 0])[None]
    result: Tensor = m.head(m.layer(y, (start, start.sigmoid() if m.sigmoid else start))[0])
    return result


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_initial_state_counts(sigmoid: bool) -> None:
    model = model_of(nn.LSTM(IN, HIDDEN, batch_first=True), _given)
    model.add_module("start", nn.Linear(IN, HIDDEN))
    model.sigmoid = sigmoid  # type: ignore[assignment]
    masks = make_masks(ready(model), {"start": {"rows": [2, 5], "bias": [2, 5]}})
    masks["layer"] = unit_masks(model.get_submodule("layer"), [2, 5])
    small = sped_up(model, masks, image(2, STEPS, 3))
    # A cell that starts at sigmoid(0) decays from one half.
    assert small.get_submodule("layer").hidden_size == (6 if sigmoid else 4)
    assert helpers.weight_shape(small, "start")[0] == (6 if sigmoid else 4)


def test_states_that_are_outputs_keep_all_units() -> None:
    model = ready(model_of(nn.LSTM(IN, HIDDEN, batch_first=True), lambda m, x: m.layer(m.stem(x))))
    masks = make_masks(model, {"stem": {"rows": [3], "bias": [3]}})
    masks["layer"] = unit_masks(model.get_submodule("layer"), [2, 5])
    assert sizes(fxcompress.speedup(model, image(2, STEPS, 3), masks=masks)) == (7, 6)


def test_the_last_state_is_read_out() -> None:
    model = ready(
        model_of(nn.GRU(IN, HIDDEN, 2, batch_first=True), lambda m, x: m.head(m.layer(m.stem(x))[1][-1]))
    )
    masks = {"layer": unit_masks(model.get_submodule("layer"), [2, 5])}
    small = sped_up(model, masks, image(2, STEPS, 3))
    assert small.get_submodule("layer").hidden_size == 4
    assert helpers.weight_shape(small, "head") == (2, 4)


def test_a_projection_keeps_fewer_features_than_there_are_units() -> None:
    model = ready(model_of(nn.LSTM(IN, 9, 2, proj_size=4, batch_first=True)))
    masks = {"layer": unit_masks(model.get_submodule("layer"), range(2, 9))}
    for level in (0, 1):
        projection = torch.ones(4, 9).double()
        projection[1] = 0
        masks["layer"][f"weight_hr_l{level}"] = projection
    small = sped_up(model, masks, image(2, STEPS, 3))
    assert sizes(small) == (IN, 5)
    assert small.get_submodule("layer").proj_size == 3
    assert small.get_parameter("layer.weight_hr_l1").shape == (3, 5)


def _unrolled(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    state = m.layer(y[:, 0])
    for step in range(1, STEPS):
        state = m.layer(y[:, step], state)
    result: Tensor = m.head(state[0] if isinstance(state, tuple) else state)
    return result


@pytest.mark.parametrize("layer", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_unrolled_cells(layer: type[nn.LSTMCell | nn.GRUCell | nn.RNNCell]) -> None:
    model = ready(model_of(layer(IN, HIDDEN), _unrolled))
    masks = make_masks(model, {"stem": {"rows": [1], "bias": [1]}})
    masks["layer"] = unit_masks(model.get_submodule("layer"), [2, 5])
    assert sizes(sped_up(model, masks, image(2, STEPS, 3))) == (7, 4)


def test_a_small_lstm_trains_saves_and_loads(tmp_path: Any) -> None:
    model = ready(model_of(nn.LSTM(IN, HIDDEN, batch_first=True)))
    masks = {"layer": unit_masks(model.get_submodule("layer"), [2, 5])}
    x = image(2, STEPS, 3)
    small = sped_up(model, masks, x)
    small.train()(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in small.parameters())
    assert list(small.state_dict()) == list(model.state_dict())
    fxcompress.save(small, tmp_path / "small.pt2")
    again = fxcompress.load(tmp_path / "small.pt2")
    assert helpers.relative_error(helpers.run(again, (x,)), helpers.run(small, (x,))) == 0
