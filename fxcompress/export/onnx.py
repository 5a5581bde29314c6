"""``export_onnx``: an ONNX file whose numbers are compared with the module's before it is put in place.

    module (eval mode)  →  torch.export (non-strict, open batch)  →  ONNX  →  checker  →  onnxruntime

Weights multiplied by constant masks are multiplied at export: the file holds one tensor per masked weight.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError, ExportError, first_line
from fxcompress.export import specs
from fxcompress.export.amx import has_amx, prefer_amx
from fxcompress.export.files import replacing
from fxcompress.export.parity import Parity, feed, open_session, with_more_rows
from fxcompress.export.stem import rewrite_stems
from fxcompress.export.subnormals import floor_probabilities
from fxcompress.export.translations import translations_for
from fxcompress.graph.inputs import Inputs, as_inputs, copied, find_inputs
from fxcompress.graph.module import CompiledModule, eval_mode
from fxcompress.graph.quiet import quiet
from fxcompress.passes.convert import convert, rounds_activations
from fxcompress.passes.insert_fake_quant import quantizers
from fxcompress.runtime.lint import Lint, lint
from fxcompress.runtime.parity import RuntimeParity, compare
from fxcompress.runtime.saturation import saturates

_SINGLE_FILE_LIMIT = 1_900_000_000
"""Bytes of weights up to which everything is in one file (a protobuf holds 2 GB)."""


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    ``max_relative_difference`` is ``max |onnx − module| / max |module|``, the largest over all outputs and
    over the ``batches`` compared; ``None`` without verification. Where activations are rounded it is no bound
    but a figure: that a value falls on the other side of a step somewhere is seen in all that follows. There
    ``lint`` says which operators run on integers, and ``parity`` that the runtime's integers are the right
    ones (``None`` on a processor whose products of u8 × s8 saturate, see ``runtime.saturation``).
    """

    path: Path
    opset: int
    max_relative_difference: float | None
    batches: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch_is_dynamic: bool
    lint: Lint | None = None
    parity: RuntimeParity | None = None
    notes: tuple[str, ...] = ()
    """What could not be written as asked for, and what was written instead."""
    for_amx: int = 0
    """How many convolutions are laid out for processors with AMX, and others may run slower."""


@dataclass(frozen=True)
class _Options:
    opset_version: int
    input_names: Sequence[str] | None
    output_names: Sequence[str] | None


def export_onnx(
    module: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    opset_version: int = 18,
    verify: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    amx: bool | None = None,
) -> OnnxReport:
    """Write ``module`` (compiled or any other) in eval mode to ``path``.

    A quantized module is written with the integers that it simulates (``passes.convert``).

    Args:
        module: left as it is, its mode included.
        path: replaced only when everything succeeded. Above 1.9 GB the weights go to ``<path>.data``.
        example_inputs: a tensor, a tuple of positional or a dict of keyword inputs. A compiled model knows
            its own; for other modules a plausible input is found.
        opset_version: of the file.
        verify: compare with onnxruntime on the example inputs and, with a dynamic batch, on one more row.
            float32 outputs may differ by 1e-4 of their largest magnitude, float64 1e-6, float16 1e-2,
            bfloat16 5e-2, integers not at all. Where activations are rounded, instead of that bound, every
            integer kernel is compared with exact arithmetic (``runtime.parity``).
        input_names: of the file; by default those of the module's arguments.
        output_names: of the file; by default the keys of what the module returns, else those of operators.
        dynamic_batch: leave the first dimension of the inputs open where the model allows it.
        amx: lay integer convolutions out for processors with AMX (``export.amx``); by default if this one
            has it. The integers are the same everywhere, and slower where the choice does not fit.

    Raises:
        ExportError: names the operator that has no ONNX form, or the output that disagrees with its figures.
        PassError: if a quantizer of the module has seen no values yet.
    """
    inputs = _inputs_of(module, example_inputs)
    simulated = module
    is_quantized, bounded, for_amx = False, True, 0
    notes: tuple[str, ...] = ()
    if isinstance(module, CompiledModule) and quantizers(module):
        before, module, is_quantized = module.notes, convert(module), True
        notes, bounded = module.notes[len(before) :], not rounds_activations(module)
    options = _Options(opset_version, input_names, output_names)
    dynamic = dynamic_batch and not (isinstance(module, CompiledModule) and not module.batch_is_dynamic)
    final = Path(path)
    with eval_mode(simulated), eval_mode(module), torch.no_grad(), replacing(final) as temporary:
        with _quiet():
            _check_runs(module, inputs)
            exported = _export(module, inputs, dynamic)
            ordered = _in_order(exported, inputs)
            floor_probabilities(exported, ordered)
            returned = _drop_constant_outputs(exported)
            if output_names is None:
                options = replace(options, output_names=_keys_of_outputs(exported, returned))
            program = _convert(exported, type(module).__name__, options)
            if is_quantized:
                rewrite_stems(program.model)
                if has_amx() if amx is None else amx:
                    for_amx = prefer_amx(program.model)
            _write(program, temporary)
        graph = program.model.graph
        open_rows = [i for i, value in enumerate(graph.inputs) if _is_open(value)]
        difference: float | None = None
        batches: tuple[int, ...] = ()
        found = lint(temporary) if is_quantized else None
        runtime: RuntimeParity | None = None
        if verify and is_quantized:
            session = open_session(temporary)
            runtime = None if saturates() else compare(temporary, feed(session, ordered))
            check = Parity(simulated, session, returned, temporary.name, bounded)
            difference, batches = _verify(check, ordered, open_rows)
        elif verify:
            check = Parity(module, open_session(temporary), returned, temporary.name)
            difference, batches = _verify(check, ordered, open_rows)
    names = (tuple(str(v.name) for v in graph.inputs), tuple(str(v.name) for v in graph.outputs))
    return OnnxReport(
        final, opset_version, difference, batches, *names, bool(open_rows), found, runtime, notes, for_amx
    )


def _inputs_of(module: nn.Module, example_inputs: Any) -> Inputs:
    if example_inputs is not None:
        return as_inputs(example_inputs)
    if isinstance(module, CompiledModule):
        if pytree.tree_leaves(module.example_inputs):
            return module.example_inputs
        raise ExportError("the compiled model carries no example inputs; pass example_inputs")
    try:
        return find_inputs(module)[0]
    except CaptureError as error:
        raise ExportError(str(error)) from error


def _check_runs(module: nn.Module, inputs: Inputs) -> None:
    try:
        args, kwargs = copied(inputs)
        module(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in _tensors(inputs))
        raise ExportError(
            f"{type(module).__name__} does not run on the example inputs ({shapes}): {type(error).__name__}: "
            f"{first_line(error)}\nPass example_inputs that module(*example_inputs) accepts."
        ) from error


def _export(module: nn.Module, inputs: Inputs, dynamic: bool) -> torch.export.ExportedProgram:
    """Non-strict export, with an open batch where that works."""
    inputs = copied(inputs)  # of a view, the graph would guard the sizes of its base
    args, kwargs = inputs
    if dynamic:
        more, _ = with_more_rows(
            inputs, [i for i, x in enumerate(_tensors(inputs)) if x.dim() and _is_single(inputs)]
        )
        with contextlib.suppress(Exception):
            return torch.export.export(module, *more, dynamic_shapes=_open_batch(module, more), strict=False)
    try:
        return torch.export.export(module, args, kwargs, strict=False)
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} cannot be exported: {type(error).__name__}: {first_line(error)}\n"
            "A graph has one path for every input: branch on shapes or attributes, not on tensor values."
        ) from error


def _drop_constant_outputs(exported: torch.export.ExportedProgram) -> tuple[int, ...]:
    """Take numbers and strings, returned whatever the input is, off the outputs: ONNX has no place for them.

    Returns:
        Positions of the outputs that stay, among the leaves of what the module returns.
    """
    [output] = exported.graph.find_nodes(op="output")
    values = output.args[0]
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    returned = [v for v, kind in zip(values, kinds, strict=True) if kind == OutputKind.USER_OUTPUT]
    output.args = (tuple(value if isinstance(value, fx.Node) else None for value in values),)
    return tuple(i for i, value in enumerate(returned) if isinstance(value, fx.Node))


def _keys_of_outputs(exported: torch.export.ExportedProgram, returned: Sequence[int]) -> list[str] | None:
    """The keys of what the module returns; ``None`` where it has none, or they cannot all be names."""
    names = specs.output_names(exported.call_spec.out_spec)
    [output] = exported.graph.find_nodes(op="output")
    nodes = [value for value in output.args[0] if isinstance(value, fx.Node)]
    shared = len({*nodes}) < len(nodes) or any(node.op == "placeholder" for node in nodes)
    if names is None or shared:
        return None
    chosen = [names[i] for i in returned]
    taken = {node.name for node in exported.graph.find_nodes(op="placeholder")}
    return None if taken & {*chosen} or len({*chosen}) < len(chosen) else chosen


def _tensors(inputs: Inputs) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]


def _is_single(inputs: Inputs) -> bool:
    """Whether the batch is one row, to which export would specialize the graph."""
    return all(x.shape[0] == 1 for x in _tensors(inputs) if x.dim())


def _open_batch(module: nn.Module, inputs: Inputs) -> dict[str, Any]:
    def of(value: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.dim() > 0 else None

    bound = inspect.signature(module.forward).bind(*inputs[0], **inputs[1]).arguments
    return {name: pytree.tree_map(of, value) for name, value in bound.items()}


def _convert(exported: torch.export.ExportedProgram, model: str, options: _Options) -> Any:
    import onnxscript.optimizer

    try:
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=options.opset_version,
            input_names=options.input_names,
            output_names=options.output_names,
            custom_translation_table=translations_for(exported.graph),
            optimize=False,
            verbose=False,
        )
    except Exception as error:
        raise ExportError(
            f"{model} cannot be written as ONNX opset {options.opset_version}: {_operator(error)}\n"
            "Use operators that ONNX has for this step of the model, or another opset_version (18 to 21)."
        ) from error
    if program is None:
        raise ExportError(f"torch.onnx returned no model for {model}; try another opset_version (18 to 21)")
    # Products of constants are masked weights; the optimizer's own size limits would keep both factors.
    onnxscript.optimizer.fold_constants(
        program.model,
        input_size_limit=_SINGLE_FILE_LIMIT,
        output_size_limit=_SINGLE_FILE_LIMIT,
        should_fold=lambda node: True if node.op_type == "Mul" else None,
    )
    program.optimize()
    return program


def _operator(error: BaseException) -> str:
    """The operator and node that the exporter's chain of exceptions names."""
    texts = []
    current: BaseException | None = error
    while current is not None:
        texts.append(str(current))
        current = current.__cause__
    missing = re.search(r"No (?:ONNX function|decompositions?)[^\n]*", "\n".join(texts))
    node = re.search(r"Error when translating node ([^\n]*)", "\n".join(texts))
    operator = re.search(
        r"(?:aten|prims|fxcompress|quantized_decomposed|higher_order)[.:]+[\w.]+", "\n".join(texts)
    )
    words = [match.group(0).strip() for match in (operator, missing or node) if match]
    return "; ".join(words) if words else f"{type(error).__name__}: {first_line(error)}"


def _forget_sources(model: Any) -> None:
    """Drop the exporter's notes: they quote stack traces with paths of the machine the export ran on."""
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *getattr(graph, "initializers", {}).values()):
            value.metadata_props.clear()
    model.metadata_props.clear()


def _write(program: Any, path: Path) -> None:
    import onnx

    weights = sum(
        v.const_value.nbytes for v in program.model.graph.initializers.values() if v.const_value is not None
    )
    _forget_sources(program.model)
    program.save(str(path), external_data=weights > _SINGLE_FILE_LIMIT)
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise ExportError(
            f"onnx.checker refuses {path.name}: {first_line(error)}\nTry another opset_version (18 to 21)."
        ) from error


def _in_order(exported: torch.export.ExportedProgram, inputs: Inputs) -> Inputs:
    """Keyword inputs in the order of the exported program."""
    args, kwargs = inputs
    spec = exported.call_spec.in_spec
    keys = spec.child(1).context if spec is not None else list(kwargs)
    return args, {key: kwargs[key] for key in keys}


def _is_open(value: Any) -> bool:
    return bool(value.shape) and not isinstance(value.shape[0], int)


def _verify(parity: Parity, inputs: Inputs, open_rows: Sequence[int]) -> tuple[float, tuple[int, ...]]:
    """The largest difference, and the batch sizes at which the two were compared."""
    difference = parity.check(inputs)
    first = next((x for x in _tensors(inputs) if x.dim()), None)
    batches = [] if first is None else [first.shape[0]]
    if open_rows:
        more, rows = with_more_rows(inputs, open_rows)
        difference = max(difference, parity.check(more))
        batches.append(rows)
    return difference, tuple(batches)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress lines, warnings and log messages concern its developers."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet():
        warnings.simplefilter("ignore")
        yield
