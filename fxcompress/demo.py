"""The main job on real input: train, compile, fine-tune under masks, speed up, export, compare.

    digits [n, 1, 8, 8]  →  residual convnet  →  dense.pt2, dense.onnx
                         →  half of its channels  →  small.pt2, small.onnx

``fxcompress demo`` shows what ``run_demo`` finds; ``docs/main_job.md`` holds the same steps as a script.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.nn import functional

from fxcompress.compiler import compile, speedup
from fxcompress.config import explain
from fxcompress.demo_result import DemoResult, Measured
from fxcompress.errors import FxcompressError
from fxcompress.export.archive import save
from fxcompress.export.files import replacing
from fxcompress.export.onnx import export_onnx
from fxcompress.export.parity import open_session
from fxcompress.graph.capture import capture
from fxcompress.graph.cost import Latency, compare_latency
from fxcompress.graph.module import CompiledModule

LATENCY_BATCH = 64
_TRAINING_BATCH = 64
_QUICK_IMAGES = 256


@dataclass(frozen=True)
class DemoOptions:
    """What the command line sets. ``quick`` trains for two epochs on a part of the images."""

    out: Path
    epochs: int
    sparsity: float
    seed: int
    quick: bool
    json: Path | None


@dataclass(frozen=True)
class Digits:
    """Images ``[n, 1, 8, 8]`` float32 of mean 0 and variance 1, labels ``[n]`` int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Residual(nn.Module):
    """Two 3×3 convolutions beside an identity, or beside a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual convnet of about 220,000 parameters for 8×8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.stages = nn.Sequential(Residual(32, 32), Residual(32, 64, stride=2), Residual(64, 96, stride=2))
        self.classifier = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 1, 8, 8]`` to logits ``[n, 10]``."""
        logits: Tensor = self.classifier(self.stages(self.stem(x)).mean((2, 3)))
        return logits


def load_digits(seed: int = 0) -> Digits:
    """Split scikit-learn's 1,797 digits into three quarters for training and one for testing.

    Raises:
        FxcompressError: if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection  # type: ignore[import-untyped]
    except ImportError as error:
        raise FxcompressError(
            f"the demo takes its images from scikit-learn, which cannot be imported ({error}); "
            "install it: pip install fxcompress[demo]"
        ) from error
    images, labels = datasets.load_digits(return_X_y=True)
    parts = model_selection.train_test_split(
        images, labels, test_size=0.25, random_state=seed, stratify=labels
    )
    train, test = (torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) for x in parts[:2])
    train_labels, test_labels = (torch.tensor(y, dtype=torch.int64) for y in parts[2:])
    mean, deviation = train.mean(), train.std()
    return Digits((train - mean) / deviation, train_labels, (test - mean) / deviation, test_labels)


def fit(model: nn.Module, digits: Digits, epochs: int, rate: float, advance: Callable[[], None]) -> None:
    """An ordinary training loop: Adam, one-cycle schedule, cross entropy; leaves the model in eval mode."""
    batches = -(-len(digits.train_images) // _TRAINING_BATCH)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    model.train()
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(digits.train_images)), _TRAINING_BATCH):
            optimizer.zero_grad()
            logits = model(digits.train_images[chosen])
            functional.cross_entropy(logits, digits.train_labels[chosen]).backward()
            optimizer.step()
            schedule.step()
        advance()
    model.eval()


def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Run the whole job, and write ``dense.*`` and ``small.*`` into ``options.out``.

    Progress is shown on ``console``.

    Raises:
        FxcompressError: if scikit-learn is missing or an option cannot be followed, before any training.
    """
    config_list: list[dict[str, Any]] = [
        {"sparsity": options.sparsity, "op_types": ["Conv2d", "Linear"]},
        {"exclude": True, "op_names": ["classifier"]},
    ]
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # on layers this small, threads that wait for each other cost more than they do
    model = DigitNet()
    explain(model, config_list)  # a wrong value is an error now, not after the training
    digits = load_digits(options.seed)
    _make_folder(options)
    epochs, tuning = _epochs(options)
    if options.quick:
        digits = _part(digits, _QUICK_IMAGES)
    with _Steps(console) as steps:
        fit(model, digits, epochs, 5e-3, steps.begin("train", epochs))
        dense = capture(copy.deepcopy(model), digits.test_images[:2])  # fine-tuning changes `model` too
        with steps.one(f"compile: mask {options.sparsity:.0%} of the channels"):
            pruned = compile(model, config_list, digits.test_images[:2])
        fit(pruned, digits, tuning, 2e-3, steps.begin("fine-tune under masks", tuning))
        with steps.one("speed up and verify in float64"):
            small = speedup(pruned)
        both = (("dense", dense), ("small", small))
        advance = steps.begin("save, export to ONNX, compare with onnxruntime", len(both))
        for name, module in both:
            save(module, options.out / f"{name}.pt2")
            export_onnx(module, options.out / f"{name}.onnx")
            advance()
        with steps.one("measure accuracy and latency"):
            result = _measure(options, digits, dense, small)
    if options.json is not None:
        with replacing(options.json) as temporary:
            temporary.write_text(result.to_json(), encoding="utf-8")
    return result


def _epochs(options: DemoOptions) -> tuple[int, int]:
    """Of training, and of fine-tuning under masks."""
    return (2, 1) if options.quick else (options.epochs, max(1, options.epochs // 2))


def closing_lines(options: DemoOptions) -> tuple[str, ...]:
    """What the figures compare, and where the models are."""
    out, (epochs, tuning) = options.out, _epochs(options)
    return (
        f"\nBefore: {epochs} epochs. After: {tuning} more under masks, then masked channels are removed.",
        "The small model computes what the masked one computes (compared in float64, relative 1e-9).",
        f"It is in {out / 'small.pt2'} (read by fxcompress.load) and {out / 'small.onnx'}.",
    )


def _part(digits: Digits, count: int) -> Digits:
    return replace(digits, train_images=digits.train_images[:count], train_labels=digits.train_labels[:count])


def _make_folder(options: DemoOptions) -> None:
    """Find out before the training whether the files can be written."""
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FxcompressError(
            f"--out {options.out}: cannot make this folder ({error.strerror}); name another"
        ) from error


def _measure(
    options: DemoOptions, digits: Digits, dense: CompiledModule, small: CompiledModule
) -> DemoResult:
    """Time each runtime's two models alternately, on one thread."""
    rounds = 5 if options.quick else 60
    batch = digits.test_images[:LATENCY_BATCH]
    modules = {"dense": dense, "small": small}
    with torch.no_grad():
        torch_times = compare_latency({n: partial(m, batch) for n, m in modules.items()}, rounds=rounds)
    runs = {name: _onnx_call(options.out / f"{name}.onnx") for name in modules}
    onnx_times = compare_latency({n: partial(run, batch) for n, run in runs.items()}, rounds=rounds)
    macs = small.report.macs
    amounts = {
        "dense": (small.report.parameters.before, 0 if macs is None else macs.before),
        "small": (small.report.parameters.after, 0 if macs is None else macs.after),
    }

    def measured(name: str) -> Measured:
        return Measured(
            _accuracy(modules[name], digits),
            _accuracy(runs[name], digits),
            *amounts[name],
            (options.out / f"{name}.pt2").stat().st_size,
            (options.out / f"{name}.onnx").stat().st_size,
            torch_times[name].median,
            onnx_times[name].median,
        )

    facts = {k: v for k, v in asdict(options).items() if k not in ("out", "json")}
    return DemoResult(
        before=measured("dense"),
        after=measured("small"),
        ratio_torch=_ratio(torch_times),
        ratio_onnx=_ratio(onnx_times),
        batch=len(batch),
        options=facts,
    )


def _ratio(times: dict[str, Latency]) -> float:
    return times["small"].ratio_to(times["dense"])


def _onnx_call(path: Path) -> Callable[[Tensor], Tensor]:
    """The model in onnxruntime as a function of tensors."""
    session = open_session(path, threads=1)
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _accuracy(model: Callable[[Tensor], Tensor], digits: Digits) -> float:
    with torch.no_grad():
        return float((model(digits.test_images).argmax(1) == digits.test_labels).float().mean())


class _Steps:
    """Progress bars, one per step of the job."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description:46}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console)

    def __enter__(self) -> _Steps:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, name: str, total: int) -> Callable[[], None]:
        """A new bar; the returned function advances it by one."""
        return partial(self._progress.advance, self._progress.add_task(name, total=total))

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """A bar that is full when the block is done."""
        advance = self.begin(name, 1)
        yield
        advance()
