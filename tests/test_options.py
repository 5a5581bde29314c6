"""Options of algorithms in a config list: what compile makes of them, and what it says of wrong ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.config import registry
from fxcompress.errors import ConfigError
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grouped import GroupFakeQuantize
from fxcompress.passes.insert_fake_quant import quantizers
from fxcompress.pruning import L1FilterPruner, get_masks
from fxcompress.quantization import QUANTIZERS, PTQ_Quantizer, QAT_Quantizer, Quantizer, register
from tests.helpers import image, ready, run

X = image(8, 3, 8, 8).float()


def convnet() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return ready(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))).float()


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("traced")


@pytest.mark.parametrize(
    "options",
    [
        {"observer": "mse"},
        {"equalize": True, "observer": "percentile"},
        {"adaround": 20, "bias_correction": True},
        {"smooth": 0.5},
    ],
)
def test_options_do_what_they_do_by_hand(options: dict[str, Any]) -> None:
    config = [{"quant_bits": 4, "quantizer": {"name": "ptq", **options}}]
    module = fxcompress.compile(convnet(), config, X, data=[X]).eval()
    by_hand = PTQ_Quantizer(convnet(), [{"quant_bits": 4}], example_inputs=X, data=[X], **options).compress()
    plain = PTQ_Quantizer(convnet(), [{"quant_bits": 4}], example_inputs=X, data=[X]).compress()
    assert torch.equal(run(module, (X,)), run(by_hand.eval(), (X,)))
    if "smooth" not in options:  # one linear layer behind a pooling has nothing to smooth
        assert not torch.equal(run(module, (X,)), run(plain.eval(), (X,)))
    assert module.notes[-len(options) :] == by_hand.notes[-len(options) :]


def test_layers_with_other_options_have_an_algorithm_of_their_own() -> None:
    config: list[dict[str, Any]] = [
        {"quant_bits": 8, "quantizer": {"name": "ptq", "observer": "mse"}},
        {"quantizer": {"name": "ptq", "observer": "percentile"}, "op_names": ["3"]},
        {"quantizer": {"name": "weight_only", "group_size": 16}, "op_names": ["7"]},
    ]
    module = fxcompress.compile(convnet(), config, X, data=iter([X[:4], X[4:]]))
    found = quantizers(module)
    observers = {name: q.observer.name for name, q in found.items() if isinstance(q, FakeQuantize)}
    assert observers["0_input"] == "mse"
    assert observers["3_output"] == "percentile"
    group = found["7_weight"]
    assert isinstance(group, GroupFakeQuantize)
    assert group.group_size == 16
    assert all(q.is_calibrated for q in found.values() if type(q) is FakeQuantize)


def test_a_later_name_takes_its_own_options_alone() -> None:
    config: list[dict[str, Any]] = [
        {"quant_bits": 8, "quantizer": {"name": "ptq", "observer": "mse"}},
        {"quantizer": "ptq", "op_names": ["3"]},
        {"quant_bits": 4, "op_names": ["7"]},
    ]
    table = {
        row.name: {s.key: s.value for s in row.settings} for row in fxcompress.explain(convnet(), config).rows
    }
    assert table["0"]["quantizer_options"] == (("observer", "mse"),)
    assert "quantizer_options" not in table["3"]
    assert table["7"]["quantizer_options"] == (("observer", "mse"),)
    assert "quantizer_options=observer:mse" in str(fxcompress.explain(convnet(), config))


def test_pruners_take_options_too() -> None:
    entry = {"sparsity": 0.5, "op_names": ["0"]}
    found = []
    for pruner in ("taylor", {"name": "taylor", "statistics_batch_num": 1}):
        data = [(X, torch.zeros(8)), (10 * X.flip(0), torch.zeros(8))]
        loss: dict[str, Any] = {"loss_fn": lambda y, batch: y[:, 0].square().mean()}
        module = fxcompress.compile(convnet(), [{**entry, "pruner": pruner}], X, data=data, **loss)
        first = fxcompress.compile(convnet(), [{**entry, "pruner": "taylor"}], X, data=data[:1], **loss)
        found.append(torch.equal(get_masks(module)["0"]["weight"], get_masks(first)["0"]["weight"]))
    assert found[1], "one batch was measured"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"name": "ptq", "observr": "mse"},
            "quantizer: expected one of 'adaround', 'bias_correction', 'equalize', 'observer', "
            "'smooth', got 'observr'; did you mean 'observer'?",
        ),
        (
            {"name": "ptq", "observer": "msee"},
            "quantizer: 'ptq': observer: expected the name of an observer, got 'msee'; did you mean 'mse'?",
        ),
        (
            {"name": "ptq", "equalize": "yes"},
            "quantizer: 'ptq': equalize: expected True or False, got 'yes'",
        ),
        (
            {"name": "ptq", "smooth": "0.5"},
            "quantizer: 'ptq': smooth: expected α from 0 to 1 (0.5 in the paper) or None, got '0.5'",
        ),
        (
            {"name": "ptq", "adaround": 10},
            "quantizer: 'ptq': adaround: expected data=... (batches to measure on), got none",
        ),
        (
            {"name": "gptq", "group_size": True},
            "quantizer: 'gptq': group_size: expected a power of two of at least 16, got True; try 32",
        ),
        (
            {"name": "qat", "observer": "mse"},
            "quantizer: expected no option beside the name 'qat', got 'observer'; this quantizer has none",
        ),
        (
            {"observer": "mse"},
            "quantizer: expected the name of a quantizer, or a dict with its 'name' and options, "
            "got {'observer': 'mse'}; add 'name'",
        ),
        (
            {"name": "ptqq"},
            "quantizer: expected one of 'bnn', 'dorefa', 'dynamic', 'gptq', 'lsq', 'lsq+', "
            "'naive', 'ptq', 'qat', 'weight_only', got 'ptqq'; did you mean 'ptq'?",
        ),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_traced(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        fxcompress.compile(Untraceable(), [{"quant_bits": 4, "quantizer": value}], torch.zeros(1, 4))
    assert str(error.value) == f"config_list[0]: {message}"


def test_other_problems_are_listed_beside_it() -> None:
    config: list[Any] = [{"quantizer": {"name": "ptq", "observr": 1}, "quant_bit": 8}, {"quant_bits": 0}]
    with pytest.raises(ConfigError) as error:
        fxcompress.compile(convnet(), config)
    assert [line.split(": ")[:2] for line in str(error.value).splitlines()[1:]] == [
        ["  config_list[0]", "quant_bit"],
        ["  config_list[0]", "quantizer"],
        ["  config_list[1]", "quant_bits"],
    ]


@pytest.mark.parametrize(
    ("cls", "entry", "got"),
    [
        (PTQ_Quantizer, {"quant_bits": 8, "quantizer": {"name": "ptq", "observer": "mse"}}, "observer='mse'"),
        (QAT_Quantizer, {"quantizer": {"name": "gptq", "group_size": 64}}, "group_size=64"),
        (
            L1FilterPruner,
            {"sparsity": 0.5, "pruner": {"name": "apoz", "activation": "relu"}},
            "activation='relu'",
        ),
    ],
)
def test_an_algorithm_made_by_hand_refuses_options_of_entries(
    cls: Any, entry: dict[str, Any], got: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"config_list\[0\]: {cls.kind}: .* got {got}; pass options to {cls.__name__}"
    ):
        cls(convnet(), [entry], example_inputs=X)


def test_options_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[dict[str, Any]] = [QUANTIZERS, registry._QUANTIZERS, registry._DEFAULTS]
    for table in tables:
        monkeypatch.setitem(table, "steps_of", None)  # so that it is forgotten afterwards
        del table["steps_of"]

    @register
    class Steps(Quantizer):
        name = "steps_of"
        default_types = ("weight",)

        def __init__(self, *args: Any, step: float = 0.5, **options: Any) -> None:
            super().__init__(*args, **options)
            self.step_size = step

        def quantize_weight(self, weight: Tensor, **kwargs: Any) -> Tensor:
            return torch.round(weight / self.step_size) * self.step_size

    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    config = [{"quantizer": {"name": "steps_of", "step": 0.25}}]
    got = fxcompress.compile(model, config, torch.eye(3))(torch.eye(3))
    assert torch.equal(got.T, torch.round(model.get_parameter("0.weight") * 4) / 4)
