"""Walk: the nodes of a graph on several batches at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.graph.capture import capture
from fxcompress.graph.walk import Walk
from fxcompress.training.batches import inputs_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.a(x)) * scale
        return {"hidden": hidden, "out": self.b(hidden)}


def test_every_batch_gives_what_the_module_gives_and_old_values_are_dropped() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    batches: list[Any] = [{"x": torch.randn(n, 3), "scale": torch.rand(())} for n in (2, 5)]
    module = capture(net, batches[0])
    walk = Walk(module, order := list(module.graph.nodes), [inputs_of(module, batch) for batch in batches])
    with torch.no_grad():
        for node in order[:-1]:
            walk.step(node)
            if node.name == "b":
                for got, batch in zip(walk.values(node), batches, strict=True):
                    assert torch.equal(got, net(**batch)["out"])
    alive = {node.name for run in walk._runs for node in run.env}
    assert len(alive) == 2, alive
