"""Which layers' channels are chosen together."""

from __future__ import annotations

from typing import Any

from torch import nn

import fxcompress
from fxcompress.pruning.groups import ChannelGroup, channel_groups
from tests.helpers import Function, image, ready


def residual() -> nn.Module:
    """``x → a → (+ c(b)) → head``, the result also passing a depthwise convolution."""

    def body(self: Any, x: Any) -> Any:
        x = self.a(x)
        x = self.depthwise(x + self.c(self.b(x).relu()))
        return self.head(x.mean((2, 3)))

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 6, 1), "c": nn.Conv2d(6, 8, 1)}
    return Function(body, **layers, depthwise=nn.Conv2d(8, 8, 3, groups=8), head=nn.Linear(8, 4))


def test_what_is_added_and_what_passes_a_depthwise_convolution_is_one_group() -> None:
    module = fxcompress.capture(ready(residual()), image(2, 3, 6, 6))
    assert channel_groups(module) == [
        ChannelGroup(("a", "c", "depthwise"), 8, 8),
        ChannelGroup(("b",), 6, 6),
        ChannelGroup(("head",), 4, 0, "model output (head)"),
    ]


def test_channels_that_an_embedding_makes_too_stay() -> None:
    def body(self: Any, x: Any) -> Any:
        return self.head((self.layer(x) + self.table.weight).relu())

    model = Function(body, layer=nn.Linear(5, 7), table=nn.Embedding(1, 7), head=nn.Linear(7, 2))
    first, last = channel_groups(fxcompress.capture(ready(model), image(2, 5)))
    assert (first.layers, first.channels) == (("layer",), 7)
    assert (last.layers, last.channels, last.free) == (("head",), 2, 0)


def test_a_grouped_convolution_loses_the_same_channel_of_every_group() -> None:
    layers = nn.Sequential(nn.Conv2d(4, 12, 1), nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 2, 1))
    groups = channel_groups(fxcompress.capture(ready(layers), image(2, 4, 3, 3)))
    assert [(group.layers, group.channels, group.free) for group in groups] == [
        (("0",), 4, 4),
        (("1",), 4, 4),
        (("2",), 2, 0),
    ]
