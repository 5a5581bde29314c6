"""A model of stored integers, as a conversion leaves it: weights int8, biases int32 at ``s_x · s_w``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers quantized_decomposed
from torch.nn import functional as F


class Decomposed(nn.Module):
    """Two convolutions and a residual, every activation through integers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = IntegerConv(3, 8, 0.02)
        self.blocks = nn.ModuleList([IntegerConv(8, 8, 0.03)])

    def forward(self, x: Tensor) -> Tensor:
        x = _through_integers(F.relu(self.stem(_through_integers(x, 0.02, 120))), 0.03, 0)
        return _through_integers(x + _through_integers(self.blocks[0](x), 0.02, 100), 0.04, 77)


class IntegerConv(nn.Module):
    """A convolution whose inputs come in steps of ``step``."""

    def __init__(self, inputs: int, outputs: int, step: float) -> None:
        super().__init__()
        scales = torch.rand(outputs) * 0.01 + 0.002
        self.register_buffer("weight", torch.randint(-127, 128, (outputs, inputs, 3, 3), dtype=torch.int8))
        self.register_buffer("bias", torch.randint(-3000, 3000, (outputs,), dtype=torch.int32))
        self.register_buffer("weight_scale", scales)
        self.register_buffer("bias_scale", scales * step)
        self.register_buffer("zeros", torch.zeros(outputs, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        weight = self._floats("weight", -127, 127, torch.int8)
        return F.conv2d(x, weight, self._floats("bias", -(2**31), 2**31 - 1, torch.int32), padding=1)

    def _floats(self, name: str, low: int, high: int, dtype: torch.dtype) -> Tensor:
        operator = torch.ops.quantized_decomposed.dequantize_per_channel
        stored, scales = self.get_buffer(name), self.get_buffer(name + "_scale")
        result: Tensor = operator(stored, scales, self.get_buffer("zeros"), 0, low, high, dtype)
        return result


def _through_integers(x: Tensor, step: float, zero: int) -> Tensor:
    operators, params = torch.ops.quantized_decomposed, (step, zero, 0, 255, torch.uint8)
    result: Tensor = operators.dequantize_per_tensor(operators.quantize_per_tensor(x, *params), *params)
    return result
