"""DynamicFakeQuantize: the range of the tensor at hand, and the arithmetic of onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from fxcompress.numerics.dynamic import DynamicFakeQuantize


def test_by_hand() -> None:
    """−51 … 204: s = 1, z = 51. Halves go to even: 0.5 → 0, 1.5 → 2."""
    quantizer = DynamicFakeQuantize().eval()
    x = torch.tensor([-51.0, 0.5, 1.5, 203.7, 204.0])
    assert quantizer(x).tolist() == [-51.0, 0.0, 2.0, 204.0, 204.0]
    assert (quantizer.scale.item(), quantizer.zero_point.item()) == (1.0, 51)
    assert quantizer(torch.tensor([255.0, 510.0])).tolist() == [256.0, 510.0], "0 is in every range"
    assert quantizer(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def runtime(x: Tensor) -> Tensor:
    """DynamicQuantizeLinear and DequantizeLinear of onnxruntime."""
    nodes = [
        onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    kinds = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("x", kinds, None)], [onnx.ValueInfoProto(name="y")]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    [y] = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    return torch.from_numpy(np.asarray(y))


@pytest.mark.parametrize("seed", range(6))
def test_every_value_is_that_of_the_runtime(seed: int) -> None:
    x = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(seed)) + (seed - 2)
    assert torch.equal(DynamicFakeQuantize()(x), runtime(x))


def test_gradients_pass_and_the_range_follows_in_eval_mode() -> None:
    quantizer = DynamicFakeQuantize().eval()
    x = torch.tensor([-3.0, 0.2, 9.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0]
    before = quantizer.scale.item()
    quantizer(x.detach() * 2)
    assert quantizer.scale.item() == 2 * before
