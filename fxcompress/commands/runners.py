"""Model files as something to call: ``.onnx`` in onnxruntime, ``.pt2`` in PyTorch, on the same inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.commands.models import inputs_of
from fxcompress.commands.options import InputSpec
from fxcompress.errors import FxcompressError
from fxcompress.export.archive import load
from fxcompress.export.parity import feed, open_session
from fxcompress.export.specs import output_names
from fxcompress.graph.inputs import Inputs, as_inputs, copied

Outputs = dict[str, NDArray[Any]]
_DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int8)": "int8", "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}  # fmt: skip


class Runner(ABC):
    """A model file that can be called."""

    runtime: str

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def example(self) -> Inputs:
        """Inputs to run it on where none are given."""

    @abstractmethod
    def bound(self, inputs: Inputs) -> Callable[[], Any]:
        """A call on ``inputs``, ready to be timed."""

    @abstractmethod
    def outputs(self, inputs: Inputs) -> Outputs:
        """What it returns, by name."""

    def checked(self, inputs: Inputs) -> Outputs:
        """The same.

        Raises:
            FxcompressError: if it refuses the inputs.
        """
        try:
            return self.outputs(inputs)
        except FxcompressError:
            raise
        except Exception as error:
            shapes = ", ".join(
                str(tuple(x.shape)) for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)
            )
            raise FxcompressError(
                f"{self.path} does not run on inputs of {shapes}: {' '.join(str(error).split())[:300]}; "
                "give others with --input"
            ) from error


@final
class OnnxRunner(Runner):
    """An ONNX file in onnxruntime, on the CPU."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path)
        self._session = open_session(path, threads=threads)

    def example(self) -> Inputs:
        """Random inputs of its shapes; an open batch is one row."""
        specs = []
        for item in self._session.get_inputs():
            shape = [
                1 if index == 0 and not isinstance(size, int) else size
                for index, size in enumerate(item.shape)
            ]
            if item.type not in _DTYPES or not all(isinstance(size, int) for size in shape):
                raise FxcompressError(
                    f"{self.path}: input {item.name!r} has shape {item.shape} and type {item.type}; say with "
                    "--input what to run it on"
                )
            specs.append(InputSpec(None, tuple(shape), _DTYPES[item.type]))
        return as_inputs(inputs_of(specs))

    def bound(self, inputs: Inputs) -> Callable[[], Any]:
        """``session.run`` on arrays."""
        session, feeds = self._session, self._feeds(inputs)
        return lambda: session.run(None, feeds)

    def outputs(self, inputs: Inputs) -> Outputs:
        """By the file's names."""
        names = [item.name for item in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, self._feeds(inputs)), strict=True))

    def _feeds(self, inputs: Inputs) -> dict[str, Any]:
        """By name where names are given and are the file's, else in order."""
        args, kwargs = inputs
        names = [item.name for item in self._session.get_inputs()]
        if not args and kwargs and set(kwargs) == set(names):
            inputs = (), {name: kwargs[name] for name in names}
        return feed(self._session, inputs)


@final
class ModuleRunner(Runner):
    """A .pt2 file in PyTorch, in eval mode without gradients."""

    runtime = "PyTorch"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._module = load(path).eval()

    def example(self) -> Inputs:
        """Those that the file holds."""
        inputs = self._module.example_inputs
        if not pytree.tree_leaves(inputs):
            raise FxcompressError(f"{self.path} holds no example inputs; say with --input what to run it on")
        return inputs

    def bound(self, inputs: Inputs) -> Callable[[], Any]:
        """``module(...)``."""
        args, kwargs = inputs

        def call() -> Any:
            with torch.inference_mode():
                return self._module(*args, **kwargs)

        return call

    def outputs(self, inputs: Inputs) -> Outputs:
        """By the keys of what it returns, else ``output``, or ``output_0``, ``output_1``, …"""
        leaves, spec = pytree.tree_flatten(self.bound(copied(inputs))())
        names = output_names(spec) or [
            f"output_{i}" if len(leaves) > 1 else "output" for i in range(len(leaves))
        ]
        return {
            n: x.float().numpy() if x.dtype is torch.bfloat16 else x.numpy()
            for n, x in zip(names, leaves, strict=True)
            if isinstance(x, Tensor)
        }


def opened(path: Path, threads: int = 1) -> Runner:
    """The file at ``path``; ``threads`` for onnxruntime.

    Raises:
        ExportError: if it cannot be read.
    """
    return OnnxRunner(path, threads) if path.suffix == ".onnx" else ModuleRunner(path)


def inputs_for(runners: Sequence[Runner], specs: Sequence[InputSpec]) -> Inputs:
    """What ``--input`` says, else the example inputs of the first PyTorch file, or else of the first file."""
    if specs:
        return as_inputs(inputs_of(specs))
    return next((r for r in runners if isinstance(r, ModuleRunner)), runners[0]).example()
