"""Why an operator of a QDQ file is no integer kernel: read off the graph around it, with the remedy.

onnxruntime fuses DequantizeLinear → operator → QuantizeLinear under conditions; each check below is one of
them and says ``None`` where it holds. The first that speaks, in the order of ``CHECKS``, is the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fxcompress.runtime.graphs import Graph, Node, layer_of
from fxcompress.runtime.quantizers import ACTIVATIONS, Quantizer, Site, read_quantizer

QUANTIZED_OUTPUT = frozenset(
    ("Add", "AveragePool", "Concat", "Conv", "GlobalAveragePool")
    + ("LeakyRelu", "Mul", "Sigmoid", "Softmax", "Where")
)
"""Operators that need quantizers in front and behind, with any scales."""

SAME_SCALE = frozenset(
    ("Expand", "Flatten", "Gather", "GatherElements", "MaxPool", "ReduceMax", "ReduceMin", "Reshape")
    + ("Resize", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")
)
"""Operators that hand integers on: the quantizers in front and behind have to be equal."""

PRODUCTS = frozenset(("Gemm", "MatMul"))
"""Operators that may also leave the integers."""

_PLACE = "quantize where the next integer operator reads, and leave this one in float"
REMEDIES: Mapping[str, str] = {
    "ReduceMean": "export the mean over the spatial axes as GlobalAveragePool",
    "HardSigmoid": "write it as a quantized sum: DQ(q, s/6, z) + 0.5 → Q(1/255, 0)",
    "HardSwish": "write it as x · HardSigmoid(x), HardSigmoid as a sum: DQ(q, s/6, z) + 0.5 → Q(1/255, 0)",
    "BatchNormalization": "fold it into the convolution or linear layer before it",
    "Pad": "move the padding into the convolution or pooling behind it",
    "Sub": "add the negated operand: Add has an integer kernel",
    "Div": "multiply by the reciprocal: Mul has an integer kernel",
    "ConvTranspose": "use Resize (nearest) and Conv, or leave it in float",
}
"""What to do about operators without an integer kernel; for others ``_PLACE``."""


@dataclass(frozen=True)
class Reason:
    """Why an operator runs in float, and what changes that."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}\n    → {self.remedy}"


def explain(node: Node, graph: Graph) -> Reason:
    """The reason why ``node`` of the file runs in float."""
    site = Site(node, graph)
    for check in CHECKS:
        reason = check(site)
        if reason is not None:
            return reason
    return Reason(
        "onnxruntime kept it in float, and no known condition is broken",
        "compare its quantizers with those of a fused operator of the same kind",
    )


def _lookup(site: Site) -> Reason | None:
    """A table in integers with a step for each row: the rows that were looked up become floats."""
    readers = site.graph.readers(site.node) if site.node.op == "Gather" else ()
    if not any(_is_row(node, site.graph) for node in (site.node, *readers)):
        return None
    return Reason("it makes floats of the rows of a table in integers", "nothing: that was asked for")


def _is_row(node: Node, graph: Graph) -> bool:
    """Whether ``node`` is Cast, Sub or Mul of integers that a Gather found in a constant."""
    source = next(graph.sources(node), None)
    if source is None:
        return False
    if node.op != "Cast":
        return node.op in ("Sub", "Mul") and _is_row(source, graph)
    table = graph.constants.get(source.inputs[0]) if source.op == "Gather" else None
    return table is not None and table.dtype in (np.int8, np.uint8)


def _kernel(site: Site) -> Reason | None:
    node = site.node
    if node.op == "Resize" and node.attributes.get("mode", "nearest") != "nearest":
        return Reason(
            f"Resize has an integer kernel for nearest only, not for {node.attributes['mode']}", _PLACE
        )
    if node.op == "MatMulNBits":
        return Reason(
            f"its weight is stored in {node.attributes['bits']} bits and multiplied in float",
            "nothing: that was asked for; for products of integers use quantizer 'dynamic' or 'ptq'",
        )
    if node.op in QUANTIZED_OUTPUT | SAME_SCALE | PRODUCTS or node.op in ACTIVATIONS:
        return None
    return Reason(f"onnxruntime has no integer kernel for {node.op}", REMEDIES.get(node.op, _PLACE))


def _activation(site: Site) -> Reason | None:
    """Relu and Clip are no kernels: the quantizer behind them takes their place."""
    node, graph = site.node, site.graph
    if node.op in ACTIVATIONS:
        if site.before(0) is not None:
            return Reason(
                f"quantizers stand on both sides of {node.op}",
                f"remove the one in front: {node.op} is part of the quantizer behind it",
            )
        return _folds(site) or _float_operand(site)
    if site.activation is None:
        return None
    reason = _folds(Site(site.activation, graph))
    if reason is None:
        return None
    name = layer_of(site.activation, graph)
    return Reason(f"the {site.activation.op} behind it ({name}) stays: {reason.what}", reason.remedy)


def _folds(site: Site) -> Reason | None:
    """Whether the quantizer behind a Relu or Clip cuts where it cuts."""
    reason = _behind(site) or _width(site)
    if reason is not None:
        return reason
    [quantizer] = site.behind
    if quantizer.scale is None or quantizer.scale.size != 1:
        return Reason("the quantizer behind it has no constant scale", "use one constant scale")
    low, high = quantizer.reach()
    if site.node.op == "Relu":
        least, most = 0.0, np.inf
    else:
        least, most = _clip_limits(site)
    tolerance = float(np.finfo(np.float32).eps)
    if least - low > tolerance:
        return Reason(
            f"the quantizer behind it ({quantizer}) starts at {low:.4g}, {site.node.op} at {least:.4g}",
            "use unsigned integers with zero point 0 there" if least == 0 else f"let it start at {least:g}",
        )
    if high - most > tolerance:
        steps = np.iinfo(quantizer.dtype).max - np.iinfo(quantizer.dtype).min
        return Reason(
            f"the quantizer behind it ({quantizer}) reaches up to {high:.4g}, "
            f"{site.node.op} ends at {most:.4g}",
            f"use a scale of at most {most - least:g}/{steps} there",
        )
    return None


def _clip_limits(site: Site) -> tuple[float, float]:
    limits = []
    for position, default in ((1, -np.inf), (2, np.inf)):
        name = site.node.given(position)
        value = site.graph.constants.get(name) if name else None
        limits.append(default if value is None else float(value.reshape(-1)[0]))
    return limits[0], limits[1]


def _operands(node: Node) -> tuple[int, ...]:
    """The inputs that have to be quantized, apart from a bias."""
    if node.op in ("Conv", "Gemm", "MatMul"):
        return (0, 1)
    if node.op == "Where":
        return (1, 2)
    if node.op in ("Add", "Mul", "Concat"):
        return tuple(range(len(node.inputs)))
    return (0,)


def _activations(site: Site) -> list[Quantizer]:
    """The quantizers around the operator that are not those of a weight."""
    weights = site.node.op in ("Conv", "Gemm", "MatMul")
    operands = [q for i in _operands(site.node) if (q := site.before(i)) is not None]
    return [*(q for q in operands if not (weights and q.constant)), *site.behind]


def _float_operand(site: Site) -> Reason | None:
    wrong = [i for i in _operands(site.node) if site.before(i) is None]
    if not wrong:
        return None
    where = " and ".join(f"operand {i} (from {site.describe(i)})" for i in wrong)
    weight = site.before(1)
    if site.node.op in ("Conv", "Gemm", "MatMul") and wrong == [0] and weight is not None and weight.constant:
        return Reason(f"only the weight is quantized; {where} is float", "quantize the input too")
    if site.node.op in SAME_SCALE:
        return Reason(
            f"it hands on float numbers: {where} is not quantized", "nothing: it follows its neighbours"
        )
    verb = "are" if len(wrong) > 1 else "is"
    stored = all(site.node.inputs[i] in site.graph.constants for i in wrong)
    put = (
        "store integers behind DequantizeLinear" if stored else "quantize (QuantizeLinear, DequantizeLinear)"
    )
    return Reason(f"{where} {verb} float", f"{put} in front of this operator")


def _bias(site: Site) -> Reason | None:
    node = site.node
    if node.op not in ("Conv", "Gemm") or node.given(2) is None:
        return None
    bias = site.before(2)
    if bias is not None and bias.dtype != np.dtype(np.int32):
        return Reason(f"its bias is stored as {bias.dtype}", "store it as int32 at scale s_x · s_w")
    if node.op == "Gemm" and bias is None and not site.behind:
        return Reason(
            "its bias is float and no quantizer stands behind it",
            "store the bias as int32 at scale s_x · s_w behind DequantizeLinear, or quantize the output",
        )
    return None


def _behind(site: Site) -> Reason | None:
    """One quantizer, and nobody else, reads the output."""
    others = [node for node in site.readers if node.op != "QuantizeLinear"]
    optional = site.node.op in PRODUCTS
    if not site.behind:
        if optional or (site.activation is not None and site.node.op not in ACTIVATIONS):
            return None
        readers = " and ".join(f"{node.op} ({layer_of(node, site.graph)})" for node in others)
        whom = f"it is read by {readers}" if readers else "it is an output of the model"
        return Reason(f"no quantizer stands behind it: {whom}", "quantize its output")
    if others or site.is_output:
        whom = (
            " and ".join(f"{node.op} ({layer_of(node, site.graph)})" for node in others)
            or "the model's output"
        )
        return Reason(
            f"its float output is read by a quantizer and by {whom}",
            "let every reader take the dequantized value",
        )
    if len(site.behind) > len([value for value in site.node.outputs if value]):
        return Reason(
            f"{len(site.behind)} quantizers read its output", "share one quantizer among all readers"
        )
    return None


def _width(site: Site) -> Reason | None:
    around = [q for i in _operands(site.node) if (q := site.before(i)) is not None]
    for quantizer in (*around, *site.behind):
        if quantizer.bits != 8:
            return Reason(f"it is quantized to {quantizer.dtype}", "use 8 bits: other widths run in float")
        if quantizer.blocked:
            return Reason("its weight has a scale for each block", "use one scale for each channel")
    return None


def _signed(site: Site) -> Reason | None:
    """On x86-64 signed activations become unsigned, but neither where several read them nor as constants."""
    kinds = sorted({q.dtype.name for q in _activations(site)})
    if kinds == ["uint8"]:
        return None
    return Reason(
        f"it is quantized as {' and '.join(kinds)}, which onnxruntime does not turn into unsigned here",
        "use unsigned 8 bits for everything but weights, constants included",
    )


def _same_scale(site: Site) -> Reason | None:
    before = site.before(0)
    if site.node.op not in SAME_SCALE or before is None:
        return None
    other = next((q for q in site.behind if not q.same(before)), None)
    if other is None:
        return None
    return Reason(
        f"it only hands numbers on, but is quantized as {before} in front and {other} behind",
        "use the quantizer in front behind it as well",
    )


def _merged_bias(site: Site) -> Reason | None:
    """MatMul of a static shape and a sum with a constant become Gemm, with the needs of a Gemm."""
    if site.node.op != "MatMul" or site.behind or len(site.readers) != 1 or site.readers[0].op != "Add":
        return None
    return Reason(
        "its shape is static, so onnxruntime merges it with the bias behind it into a Gemm with a float bias",
        "leave the batch dynamic, or quantize the sum",
    )


def misread(node: Node, graph: Graph) -> Reason | None:
    """Whether a fused operator has scales that its integer kernel does not read as the file means them."""
    site = Site(node, graph)
    reason = _scale_of_activations(site)
    weight = site.before(1)
    if reason or node.op not in ("Conv", "Gemm", "MatMul") or weight is None or weight.scale is None:
        return reason
    if not weight.constant or weight.scale.size == 1:
        return None
    stored = graph.constants[graph.producers[node.inputs[1]].inputs[0]]
    expected = 0 if node.op == "Conv" or node.attributes.get("transB") else stored.ndim - 1
    if weight.axis % stored.ndim == expected and (node.op != "MatMul" or stored.ndim == 2):
        return None
    return Reason(
        f"its weight has one scale for each place of axis {weight.axis} of {stored.ndim}; the integer kernel "
        f"reads them along axis {expected} and gives wrong numbers or fails",
        f"quantize the weight along axis {expected} (output channels)"
        if stored.ndim == 2 or node.op == "Conv"
        else "use one scale for the weight",
    )


def _scale_of_activations(site: Site) -> Reason | None:
    if all(q.scale is not None and q.scale.size == 1 for q in _activations(site)):
        return None
    return Reason(
        "a quantizer beside it has several scales, or one that is computed; integer kernels fail on it",
        "use one constant scale for everything but weights",
    )


def requantization(node: Node, graph: Graph) -> Reason:
    """The reason for a QuantizeLinear that reads a DequantizeLinear."""
    source = graph.producers[node.inputs[0]]
    before, behind = read_quantizer(source, graph), read_quantizer(node, graph)
    return Reason(f"two quantizers follow each other: {before} and {behind}", "share one quantizer")


CHECKS: tuple[Callable[[Site], Reason | None], ...] = (
    _lookup,
    _kernel,
    _activation,
    _float_operand,
    _width,
    _bias,
    _behind,
    _same_scale,
    _merged_bias,
    _signed,
    _scale_of_activations,
)
"""In this order: the first that speaks is the reason."""
