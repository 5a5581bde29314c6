"""Does the ONNX file compute what the module computes? Both run on the same inputs and are compared.

An output agrees when ``max |onnx − module| ≤ tolerance · max |module|``; the tolerance goes by dtype.
Integer and boolean outputs have to be equal. Infinities and NaN have to be at the same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import ExportError
from fxcompress.graph.inputs import Inputs, copied

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference allowed, relative to the largest magnitude of the output.
ONNX keeps attributes such as ``eps`` as float32, hence 1e-6 and not less for float64."""


def open_session(path: Path, *, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU with so many ``threads``, 0 for all cores.

    Raises:
        ExportError: if onnxruntime has no kernel for an operator of the file or refuses it.
    """
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _refused(path.name, error) from error


@dataclass(frozen=True)
class Parity:
    """Compares ``module`` with an onnxruntime ``session`` of the file ``name``.

    ``returned`` are the positions, among the leaves of what the module returns, of the session's outputs;
    ``bounded``: whether a difference beyond the tolerance is an error.
    """

    module: nn.Module
    session: Any
    returned: tuple[int, ...]
    name: str
    bounded: bool = True

    def check(self, inputs: Inputs) -> float:
        """The largest relative difference over all floating-point outputs on ``inputs``.

        Raises:
            ExportError: names the first output that disagrees, with the figures.
        """
        args, kwargs = copied(inputs)
        with torch.no_grad():
            leaves = pytree.tree_leaves(self.module(*args, **kwargs))
        reference = [torch.as_tensor(leaves[i]) for i in self.returned]
        names = [output.name for output in self.session.get_outputs()]
        if len(reference) != len(names):
            raise ExportError(
                f"{self.name}: the ONNX model has {len(names)} outputs ({', '.join(names)}), the module "
                f"returned {len(reference)} tensors\nReturn each tensor once."
            )
        try:
            got = self.session.run(names, feed(self.session, inputs))
        except Exception as error:
            raise _refused(self.name, error) from error
        outputs = zip(names, reference, got, strict=True)
        found = (_difference(n, r, g, self.name, self.bounded) for n, r, g in outputs)
        return max(found, default=0.0)


def _refused(file: str, error: Exception) -> ExportError:
    kind = type(error).__name__
    remedy = (
        "Export in float32 (`module.float()`), or pass verify=False to keep the file for another runtime."
    )
    if kind in ("InvalidProtobuf", "NoModel"):
        remedy = "The file is damaged, or is no ONNX model: get it again, or export it again."
    return ExportError(f"onnxruntime cannot run {file}: {kind}: {str(error).splitlines()[0][:300]}\n{remedy}")


def feed(session: Any, inputs: Inputs) -> dict[str, Any]:
    """The inputs of ``session`` by name, from the tensors among ``inputs`` in their order."""
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    names = [item.name for item in session.get_inputs()]
    if len(names) != len(tensors):
        raise ExportError(
            f"the ONNX model takes {len(names)} inputs ({', '.join(names)}), the module was given "
            f"{len(tensors)} tensors\nPass every input as a tensor, or leave optional ones out."
        )
    return {name: _array(tensor) for name, tensor in zip(names, tensors, strict=True)}


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().numpy()


def _difference(name: str, reference: Tensor, got: Any, file: str, bounded: bool) -> float:
    result = torch.as_tensor(np.asarray(got))
    reference = reference.detach().cpu()
    if tuple(result.shape) != tuple(reference.shape):
        raise _disagreement(file, name, f"shape {tuple(result.shape)} instead of {tuple(reference.shape)}")
    if not reference.is_floating_point():
        wrong = int((result != reference).sum())
        if wrong and bounded:
            raise _disagreement(file, name, f"{wrong} of {reference.numel()} {reference.dtype} values")
        return 0.0
    tolerance = TOLERANCES[reference.dtype]
    expected, actual = reference.double(), result.double()
    finite = expected.isfinite()
    if (
        not torch.equal(expected[~finite].nan_to_num(), actual[~finite].nan_to_num())
        or actual[finite].isnan().any()
    ):
        raise _disagreement(file, name, "infinite or NaN values at different places")
    scale = _largest(expected[finite]) or 1.0
    relative = _largest(expected[finite] - actual[finite]) / scale
    if relative > tolerance and bounded:
        words = f"max |difference| / max |reference| = {relative:.2e} (max |reference| = {scale:.3g})"
        raise _disagreement(file, name, f"{words}, allowed {tolerance:.0e} for {reference.dtype}")
    return relative


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _disagreement(file: str, name: str, words: str) -> ExportError:
    return ExportError(
        f"{file}: output {name!r} differs from the module's in onnxruntime: {words}\n"
        "Nothing was written. Is there randomness in eval mode? verify=False writes the file anyway."
    )


def with_more_rows(inputs: Inputs, positions: Sequence[int]) -> tuple[Inputs, int]:
    """``inputs`` with one more row in its tensors number ``positions``, and how many rows that is."""
    leaves, spec = pytree.tree_flatten(inputs)
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    rows = 0
    for position in positions:
        leaf = leaves[where[position]]
        leaves[where[position]] = torch.cat([leaf, leaf[:1]])
        rows = rows or leaf.shape[0] + 1
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return (args, kwargs), rows
