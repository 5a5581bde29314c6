"""A failing case as one Python file that needs nothing but torch and fxcompress."""

from __future__ import annotations

import inspect
import textwrap

from tests.generator.masks import make_masks
from tests.generator.network import Network
from tests.generator.pruning import Pruning
from tests.generator.randomize import randomize

PREAMBLE = """\
from __future__ import annotations

import copy
import math
import zlib
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import fxcompress
"""

MASKED = """
def masked(model: nn.Module, compiled: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for name, mask in compiled.state_dict().items():
        owner, _, attribute = name.removesuffix("_mask").rpartition(".")
        parameter = model.get_submodule(owner)._parameters.get(attribute) if name.endswith("_mask") else None
        if parameter is not None:
            parameter.data.mul_(mask)
    return model


def error(got: Any, expected: Any) -> float:
    pairs = list(zip(tree_leaves(got), tree_leaves(expected), strict=True))
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item() for a, b in pairs)

"""

COMPILE = """\
config = {config}
compiled = fxcompress.compile(model, config, inputs, dependency_aware={aware})
print("compiled graph:", compiled.code)
print("compiled against masked eager model:", error(compiled(*inputs), masked(model, compiled)(*inputs)))
small = fxcompress.speedup(compiled, inputs)
print("small against compiled:", error(small(*inputs), compiled(*inputs)))
"""

MASKS = """\
plan = {plan}
masks = make_masks(model, plan)
small = fxcompress.speedup(model, inputs, masks=masks)
oracle = copy.deepcopy(model)
for name, tensors in masks.items():
    layer = oracle.get_submodule(name)
    for attribute, mask in tensors.items():
        getattr(layer, attribute).data.mul_(mask)
print("small against masked eager model:", error(small(*inputs), oracle(*inputs)))
"""

SIZES = """\
print(small)
print("parameters:", [sum(p.numel() for p in module.parameters()) for module in (model, small)])
print("state dict:", {name: tuple(t.shape) for name, t in small.state_dict().items()})
"""


def script(network: Network, pruning: Pruning, remark: str = "", *, single: bool = False) -> str:
    """The file's text; `remark` (what is wrong) becomes its first comment lines; `single` means float32."""
    comment = textwrap.indent(
        remark.strip() or "what capture, compile and speedup make of this network", "# "
    )
    header, _, source = network.source.partition("\n\n\n")
    del header  # the preamble imports more
    keywords = "keyword inputs" in network.flags
    inputs = [
        f"    {argument.name + '=' if keywords else ''}{argument.code(3, network.seed + i)},"
        for i, argument in enumerate(network.arguments)
    ]
    parts = [comment, "\n", PREAMBLE, "\n\n", source, "\n\n", inspect.getsource(randomize), MASKED]
    if pruning.masks:
        parts += ["\n", inspect.getsource(make_masks), "\n"]
    parts += [
        f"\nmodel = randomize(Network(), {network.seed}).eval()\n",
        "inputs = dict(\n" if keywords else "inputs = (\n",
        "\n".join(inputs),
        "\n)\n",
    ]
    if single:
        narrowed = "x.float() if x.is_floating_point() else x"
        made = (
            f"{{n: {narrowed} for n, x in inputs.items()}}"
            if keywords
            else f"tuple({narrowed} for x in inputs)"
        )
        parts.append(f"model, inputs = model.float(), {made}\n")
    parts.append("captured = fxcompress.capture(model, inputs)\n")
    parts.append('print("captured against eager:", error(captured(*inputs), model(*inputs)))\n')
    if pruning.config:
        parts.append(COMPILE.format(config=pruning.config, aware=pruning.dependency_aware))
    elif pruning.masks:
        parts.append(MASKS.format(plan=pruning.masks))
    if pruning.config or pruning.masks:
        parts.append(SIZES)
    text = "".join(parts)
    return text.replace("(*inputs)", "(**inputs)") if keywords else text
