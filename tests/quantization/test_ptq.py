"""PTQ_Quantizer: its accuracy methods together, what they say, and what they export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.errors import ConfigError
from fxcompress.quantization import PTQ_Quantizer
from tests.helpers import Function, image, ready, relative_error, run

X = image(8, 3, 10, 10).float()


def convnet() -> nn.Module:
    layers = {
        "c1": nn.Conv2d(3, 8, 3, bias=False), "n1": nn.BatchNorm2d(8),
        "dw": nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), "n2": nn.BatchNorm2d(8),
        "c2": nn.Conv2d(8, 6, 1), "fc": nn.Linear(6, 4, bias=False),
    }  # fmt: skip

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.n2(m.dw(F.relu(m.n1(m.c1(x))))))
        out: Tensor = m.fc(F.adaptive_avg_pool2d(F.relu6(m.c2(y)), 1).flatten(1))
        return out

    return ready(Function(forward, **layers)).float()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.n1(x)
        weights = (self.q(h) @ self.k(h).mT / 4).softmax(-1)
        x = x + self.o(weights @ self.v(h))
        out: Tensor = x + self.down(F.relu(self.up(self.n2(x))))
        return out


TOKENS = image(4, 6, 16).float()
OPTIONS: dict[str, dict[str, Any]] = {
    "equalize": {"equalize": True},
    "smooth": {"smooth": 0.5},
    "adaround": {"adaround": 50},
    "bias_correction": {"bias_correction": True},
}
ALL = {key: value for option in OPTIONS.values() for key, value in option.items()}


@pytest.mark.parametrize("name", [*OPTIONS, "all"])
def test_a_convolutional_export_runs_on_the_right_integers(name: str, tmp_path: Path) -> None:
    model = convnet()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    quantizer = PTQ_Quantizer(
        model, [{"quant_bits": 8}], example_inputs=X, data=[X[:4], X[4:]], **OPTIONS.get(name, ALL)
    )
    module = quantizer.compress()
    assert list(quantizer.outcomes) == [name] if name in OPTIONS else list(OPTIONS)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert relative_error(run(module.eval(), (X,)), run(model, (X,))) < 0.05
    report = fxcompress.export_onnx(module, tmp_path / "model.onnx")
    assert report.parity is not None
    assert (report.parity.mismatches, report.parity.all_integer) == (0, True)


def test_a_transformer_block_with_all_methods(tmp_path: Path) -> None:
    model = ready(Block()).float()
    quantizer = PTQ_Quantizer(model, [{"quant_bits": 8}], example_inputs=TOKENS, data=[TOKENS], **ALL)
    module = quantizer.compress()
    assert quantizer.outcomes["equalize"].done == ("up → down",)
    assert quantizer.outcomes["smooth"].done == ("n1 → q, k, v", "n2 → up", "up → down")
    assert quantizer.outcomes["bias_correction"].done == ("q", "k", "v", "o", "up", "down")
    assert relative_error(run(module.eval(), (TOKENS,)), run(model, (TOKENS,))) < 0.05
    report = fxcompress.export_onnx(module, tmp_path / "model.onnx")
    assert report.parity is not None
    assert report.parity.mismatches == 0


def test_what_was_done_is_said() -> None:
    config = [{"quant_bits": 8, "op_names": ["c1", "dw", "c2"]}]
    quantizer = PTQ_Quantizer(convnet(), config, example_inputs=X, equalize=True)
    module = quantizer.compress()
    outcome = quantizer.outcomes["equalize"]
    assert outcome.done == ("c1 → dw", "dw → c2")
    assert [layer for layer, _ in outcome.refused] == ["c2"]
    assert set(outcome.changed) == {"c1.weight", "c1.bias", "dw.weight", "dw.bias", "c2.weight"}
    assert module.notes[-1] == (
        "equalize: 2 done, 1 refused; 5 parameters are no longer those of the model it was made from"
    )
    text = str(outcome)
    assert "refused c2: hardtanh (hardtanh) clips at an upper end" in text or "relu6" in text
    assert "parameters of the compressed module alone: c1.weight" in text


def test_readers_that_stay_float_are_left_alone() -> None:
    config = [{"quant_bits": 8, "op_names": ["c1"]}]
    quantizer = PTQ_Quantizer(convnet(), config, example_inputs=X, equalize=True)
    quantizer.compress()
    assert quantizer.outcomes["equalize"].done == ()
    assert quantizer.outcomes["equalize"].refused == (("c1", "a layer that is not quantized reads it"),)


def test_an_optimizer_of_the_model_itself_is_warned_of() -> None:
    model = ready(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))).float()
    optimizer = torch.optim.SGD([model.get_parameter("0.weight")], 0.1)
    x = image(5, 3).float()
    with pytest.warns(UserWarning, match="holds no parameter of the compressed module"):
        PTQ_Quantizer(model, [{"quant_bits": 8}], optimizer, example_inputs=x, equalize=True).compress()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth": True, "data": [X]}, "smooth: expected α from 0 to 1"),
        ({"smooth": 1.5, "data": [X]}, "smooth: expected α from 0 to 1"),
        ({"adaround": True, "data": [X]}, "adaround: expected steps per layer"),
        ({"adaround": 0, "data": [X]}, "adaround: expected steps per layer"),
        ({"adaround": 10}, r"adaround: expected data=\.\.\."),
        ({"smooth": 0.5}, r"smooth: expected data=\.\.\."),
        ({"bias_correction": True}, r"bias_correction: expected data=\.\.\."),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PTQ_Quantizer(convnet(), [{"quant_bits": 8}], **options)


def test_without_data_a_note_says_that_there_are_no_ranges_yet() -> None:
    model, x = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).float(), torch.randn(2, 3, 8, 8)
    config = [{"quant_bits": 8, "quantizer": "ptq"}]
    (note,) = fxcompress.compile(model, config, x).notes
    assert note.startswith("ptq: no data was given")
    assert not fxcompress.compile(model, config, x, data=[x]).notes
