"""One measurement of memory: ``python -m benchmarks.memory_case OPTIONS RESULT_FILE``, a process of its own.

The resident set is what counts, in bytes. *rise* is its peak while the work runs over what was resident
before; *held* is what is still resident while the result is alive. *before* is resident before, *imports* is
that less the model's bytes: interpreter, torch, the tools. A tiny model goes the same way first, so that what
is imported on first use counts as import. The peak is the kernel's mark for this process (``VmHWM``), taken
back before the work starts; ``ru_maxrss`` would begin at that of the process that started this one.
"""

from __future__ import annotations

import copy
import gc
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxcompress
from benchmarks.results_file import write_json
from benchmarks.subject import config_for, load_zoo
from fxcompress.graph.cost import count_bytes

PRUNED = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
QAT = [{"quant_bits": 8, "quantizer": "qat"}]
PTQ = [{"quant_bits": 8, "quantizer": "ptq"}]
Work = Callable[[nn.Module, Tensor], Any]


def status(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes; raises ``OSError`` where there is no ``/proc``."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def measured(work: Callable[[], Any]) -> dict[str, int]:
    """Run ``work`` and return *before*, *rise* and *held*, in bytes."""
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts here
    result = work()
    rise = status("VmHWM") - before
    gc.collect()
    held = status("VmRSS") - before
    del result
    return {"before": before, "rise": rise, "held": held}


def tiny() -> nn.Module:
    """A network with every kind of layer that the measured ones have."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 10),
    )  # fmt: skip


def model_of(zoo: Path, name: str) -> nn.Module:
    """The zoo's model of that name."""
    for case, build, _ in load_zoo(zoo).cases((name.partition("/")[0],)):
        if case == name:
            torch.manual_seed(0)
            model: nn.Module = build()
            return model
    raise LookupError(f"the zoo has no model named {name!r}")


def compress(model: nn.Module, images: Tensor, verify: bool = True) -> nn.Module:
    """Ours: every Conv and Linear but the output layers loses half of its channels."""
    captured = fxcompress.capture(model, (images,))
    masked = fxcompress.compile(captured, config_for(captured, 0.5), (images,))
    return fxcompress.speedup(masked, (images,), verify=verify)


def compress_unverified(model: nn.Module, images: Tensor) -> nn.Module:
    """The same without running the masked and the small model beside each other."""
    return compress(model, images, verify=False)


def compress_torch_pruning(model: nn.Module, images: Tensor) -> nn.Module:
    """Torch-Pruning's dependency graph and one step: the model itself gets smaller."""
    from benchmarks.peer_recipe import hints_of, pruner_of, step

    recipe = hints_of(model).recipes[0]
    pruner, hints = pruner_of(model.eval(), (images,), (_last_linear(model),), recipe, 0.5)
    step(model, pruner, hints)
    return model


def _last_linear(model: nn.Module) -> str:
    names: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]


def train(model: nn.Module, images: Tensor) -> Any:
    """Three steps of SGD with momentum; the result keeps what a training loop keeps."""
    from benchmarks.latency import training_step

    step = training_step(model, images, torch.arange(len(images)) % 10)
    for _ in range(3):
        step()
    return step


def train_masked(model: nn.Module, images: Tensor) -> Any:
    """With the masks of half of the convolutions' channels."""
    return train(fxcompress.compile(model, PRUNED, (images[:2],)), images)


def train_quantized(model: nn.Module, images: Tensor) -> Any:
    """With our fake-quantize nodes."""
    return train(fxcompress.compile(model, QAT, (images[:2],)), images)


def train_torchao(model: nn.Module, images: Tensor) -> Any:
    """With those of torchao's PT2E."""
    from benchmarks.qat_step import by_torchao

    return train(by_torchao(copy.deepcopy(model), images), images)


COMPRESS: dict[str, Work] = {
    "fxcompress": compress,
    "fxcompress, verify=False": compress_unverified,
    "Torch-Pruning": compress_torch_pruning,
}
TRAIN: dict[str, Work] = {
    "plain": train,
    "masks": train_masked,
    "fake-quantize": train_quantized,
    "torchao": train_torchao,
}


def of_work(work: Work, model: Callable[[], nn.Module], images: Callable[[], Tensor]) -> dict[str, int]:
    """Measure ``work`` on a model, after it ran on a tiny one; *model* is its own bytes."""
    work(tiny(), torch.randn(2, 3, 8, 8))
    subject, batch = model(), images()
    size = count_bytes(subject)
    found = measured(lambda: work(subject, batch))
    return {"imports": found["before"] - size, "model": size, **found}


def of_inference(file: Path, images: Tensor) -> dict[str, int]:
    """Load a ``.pt2`` of ours or an ``.onnx`` file and run it twice."""
    if file.suffix == ".pt2":
        with torch.no_grad():
            warm = fxcompress.capture(tiny().eval(), (images[:2, :, :8, :8],))
            warm(images[:2, :, :8, :8])
            fxcompress.save(warm, tiny_file := file.parent / "tiny.pt2")
            fxcompress.load(tiny_file)
    else:
        importlib.import_module("onnxruntime")
    found = measured(lambda: _run(file, images))
    return {"imports": found["before"], "file": file.stat().st_size, **found}


def _run(file: Path, images: Tensor) -> Any:
    if file.suffix == ".pt2":
        model = fxcompress.load(file).eval()
        with torch.no_grad():
            return model, model(images), model(images)
    from fxcompress.export.parity import feed, open_session

    session = open_session(file, threads=1)
    return session, [session.run(None, feed(session, ((images,), {}))) for _ in range(2)]


def write_files(folder: Path, zoo: Path, name: str) -> dict[str, str]:
    """Dense, pruned, quantized and both, as files; returns name → file name."""
    from benchmarks.int8 import images, settled

    example = images(2, 0)
    data = [images(8, seed) for seed in (1, 2)]
    dense = settled(lambda: model_of(zoo, name))
    small = fxcompress.speedup(fxcompress.compile(dense, PRUNED, (example,)))
    fxcompress.save(fxcompress.capture(dense, (example,)), folder / "dense.pt2")
    fxcompress.save(small, folder / "small.pt2")
    fxcompress.export_onnx(dense, folder / "dense.onnx", example)
    for kind, model in (("dense", dense), ("small", small)):
        quantized = fxcompress.compile(model, PTQ, (example,), data=data)
        fxcompress.export_onnx(quantized, folder / f"{kind}_int8.onnx")
    return {
        "PyTorch, dense": "dense.pt2",
        "PyTorch, pruned": "small.pt2",
        "onnxruntime, float32": "dense.onnx",
        "onnxruntime, int8": "dense_int8.onnx",
        "onnxruntime, pruned, int8": "small_int8.onnx",
    }


def case(asked: dict[str, Any]) -> dict[str, Any]:
    """What ``OPTIONS`` (JSON) asks for: ``kind``, ``tool``, ``zoo``, ``model``, ``batch``, ``folder``."""
    zoo, kind, tool = Path(asked["zoo"]), asked["kind"], asked["tool"]
    generator = torch.Generator().manual_seed(0)

    def images() -> Tensor:
        return torch.randn(asked["batch"], 3, 224, 224, generator=generator)

    if kind == "files":
        return write_files(Path(asked["folder"]), zoo, asked["model"])
    if kind == "inference":
        return of_inference(Path(asked["folder"]) / tool, images())
    work = {"compress": COMPRESS, "training": TRAIN}[kind][tool]
    return of_work(work, lambda: model_of(zoo, asked["model"]), images)


def main(options: str, result: str) -> None:
    """Measure; an obstacle of the tool is the result."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    try:
        found = case(json.loads(options))
    except Exception as error:  # of any tool: the row says why there is no figure
        first = next(iter(str(error).strip().splitlines()), "")
        found = {"obstacle": f"{type(error).__name__}: {first}"[:300]}
    write_json(Path(result), found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
