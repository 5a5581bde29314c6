"""GPTQ: what rounding one column of a weight loses, the columns behind it make up for.

    H = 2 Σ x xᵀ  (+ 1 % of its mean diagonal),    H⁻¹ = Uᵀ U  (U upper triangular)
    for column j = 0, 1, ...:   e = (W[:, j] − q(W[:, j])) / U[j, j];    W[:, j:] ← W[:, j:] − e · U[j, j:]

over the inputs ``x`` of the layer: after every column the rest minimizes ``‖W x − Ŵ x‖²`` (Frantar, Ashkboos,
Hoefler, Alistarh, GPTQ, ICLR 2023, algorithm 1). A group's scale is taken from the weights as they are when
its first column is reached. Weights that are zero, pruned, stay zero (Frantar, Alistarh, SparseGPT, 2023).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, fx

from fxcompress import ops
from fxcompress.errors import FxcompressError
from fxcompress.graph.calls import call_of
from fxcompress.graph.module import CompiledModule, eval_mode
from fxcompress.graph.operands import operand_node
from fxcompress.graph.walk import Walk
from fxcompress.numerics.fake_quantize import storable
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.grouped import GroupFakeQuantize
from fxcompress.progress import shown
from fxcompress.quantization.linear import GroupQuantizer
from fxcompress.training.batches import inputs_of

DAMPING = 0.01
"""Of the mean diagonal of the Hessian, added to all of it."""
BLOCK = 128
"""Columns after which the later ones are brought up to date."""


@storable
class GPTQWeight(GroupFakeQuantize):
    """Rounds ``W + shift`` on scales that stay: ``shift`` ``[out, in]`` takes the weight that GPTQ has seen
    to the one that it chose, so that training may go on from there.
    """

    def __init__(self, grid: Grid, group_size: int) -> None:
        super().__init__(grid, group_size)
        self.calibrating = False
        self.shift: Tensor
        self.register_buffer("shift", torch.empty(0))

    def observe(self, x: Tensor) -> None:
        """Only ``solve`` sets the scales."""

    def solve(self, weight: Tensor, hessian: Tensor) -> None:
        """Choose scales, zero points and ``shift``.

        Args:
            weight: ``[out, in]``.
            hessian: float64 ``[in, in]``, see the module; need not be damped.
        """
        rounded, scale, zero_point = round_columns(weight, hessian, self)
        self.scale, self.zero_point = scale.flatten(), zero_point.flatten()
        self.shift = rounded.to(weight.dtype) - weight

    def simulate(self, x: Tensor) -> Tensor:
        """The weight that was chosen, and what training has made of it since."""
        return super().simulate(x + self.shift)

    def unsigned(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """As the base's."""
        return super().unsigned(weight + self.shift)


def round_columns(weight: Tensor, hessian: Tensor, by: GroupFakeQuantize) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 1 of the paper.

    Returns:
        The rounded weight, float32 ``[out, in]``; scales and zero points, ``[out, groups]``.
    """
    grid, size = by.grid, by.group_size
    rows, columns = weight.shape
    factor = _factor(hessian).float()
    work, kept = weight.detach().float().clone(), weight != 0
    rounded = torch.empty_like(work)
    scales: list[Tensor] = []
    zeros: list[Tensor] = []
    block = max(BLOCK, size)  # a group lies in one block
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = work.new_zeros(rows, stop - start)
        for j in range(start, stop):
            if j % size == 0:
                group = work[:, j : j + size] * kept[:, j : j + size]
                scale, zero_point = grid.parameters(*torch.aminmax(group, dim=1))
                scales.append(scale)
                zeros.append(zero_point)
            steps = grid.quantize(work[:, j : j + 1], scales[-1], zeros[-1])[:, 0] - zeros[-1]
            rounded[:, j] = steps * scales[-1] * kept[:, j]
            error = (work[:, j] - rounded[:, j]) / factor[j, j]
            work[:, j:stop] -= torch.outer(error, factor[j, j:stop])
            errors[:, j - start] = error
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return rounded, torch.stack(scales, 1), torch.stack(zeros, 1)


def _factor(hessian: Tensor) -> Tensor:
    """``U`` with ``Uᵀ U = (H + damping)⁻¹``; of inputs that are all zero the identity."""
    mean = hessian.diagonal().mean()
    damped = hessian + torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device) * (
        DAMPING * mean if bool(mean > 0) else 1.0
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


@final
class GPTQQuantizer(GroupQuantizer):
    """Rounds weights in groups as ``weight_only`` does, and against the error that this makes of the layer's
    outputs on ``data`` (see the module).

    Layer by layer in the order of the graph: a layer sees inputs that the rounded layers in front of it made.
    All batches are held in memory, as far as the graph has been walked. Before ``calibrate`` nothing is
    rounded; a weight that is read twice is rounded for each reader on its own.
    """

    name = "gptq"

    def weight_quantizer(self, grid: Grid) -> GPTQWeight:
        """Waits for data."""
        return GPTQWeight(grid, self.group_size)

    def calibrate(self, data: Iterable[Any]) -> None:
        """Choose the integers of every weight on batches of ``data``, in eval mode.

        Raises:
            FxcompressError: if there is no batch, or a layer's inputs are not finite.
        """
        module = self._bound("calibrate")
        batches = [inputs_of(module, batch) for batch in data]
        if not batches:
            raise FxcompressError(f"quantizer {self.name!r}: data holds no batch")
        layers = _layers(module)
        weights = {fq for fq, _, _ in layers.values()}
        order: list[fx.Node] = []
        for node in module.graph.nodes:  # a weight is rounded once the input of its layer is known
            if node.op != "output" and node not in weights:
                order += [layers[node][0], node] if node in layers else [node]
        walk = Walk(module, order, batches)
        with eval_mode(module), torch.no_grad():
            for node in shown(order, "GPTQ"):
                if node in weights:
                    continue
                if node in layers:
                    fq, x, quantizer = layers[node]
                    weight = walk.values(fq.all_input_nodes[0])[0]
                    quantizer.solve(weight, _hessian(node, walk.values(x)))
                    quantizing, quantizer.quantizing = quantizer.quantizing, True
                    walk.step(fq)
                    quantizer.quantizing = quantizing
                walk.step(node)


def _layers(module: CompiledModule) -> dict[fx.Node, tuple[fx.Node, fx.Node, GPTQWeight]]:
    """The linear layers to round → the nodes of their weight and of their input, and the quantizer."""
    found: dict[fx.Node, tuple[fx.Node, fx.Node, GPTQWeight]] = {}
    for node in list(module.graph.nodes):
        call = call_of(node)
        weight = None if call is None or call.op != "linear" else call.get("weight")
        x = None if weight is None else operand_node(module, node, "input")
        if x is not None and isinstance(weight, fx.Node) and weight.target is ops.fake_quantize:
            quantizer = module.get_submodule(str(weight.args[1].target))  # type: ignore[union-attr]
            if isinstance(quantizer, GPTQWeight):
                found[node] = weight, x, quantizer
    return found


def _hessian(node: fx.Node, inputs: Iterable[Tensor]) -> Tensor:
    """``2 Σ x xᵀ`` over all rows, float64 ``[in, in]``."""
    total = torch.zeros((), dtype=torch.float64)
    for x in inputs:
        rows = x.reshape(-1, x.shape[-1]).double()
        total = total.to(x.device) + 2 * rows.T @ rows
    if not bool(total.isfinite().all()):
        raise FxcompressError(
            f"quantizer 'gptq': the inputs of {node} are not finite on data; look at the batches"
        )
    return total
