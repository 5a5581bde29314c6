"""What fake-quantize nodes cost in training: a quantization-aware step beside a float one and torchao's.

    python benchmarks/qat_step.py [--rounds 15]

step       forward, cross entropy, backward and update (SGD with momentum), in train mode
fxcompress every tensor that integer kernels need rounded, ranges moving (digits <= 1.4, ResNet-18 <= 1.6)
torchao    PT2E with its x86 quantizer (``pip install --no-deps torchao``), left out where it is not installed
           or refuses the model; the record says which

Interleaved in one process, so that the ratios hold on a shared machine.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxcompress
from benchmarks.latency import training_step
from benchmarks.results_file import GOAL_MISSED, RESULTS, machine_facts, write_json
from benchmarks.subject import load_zoo, randomize
from benchmarks.tables import markdown_table
from fxcompress.demo import DigitNet
from fxcompress.graph.cost import Latency, compare_latency

CONFIG = [{"quant_bits": 8, "quantizer": "qat"}]
GOALS = {"digits": 1.4, "resnet18": 1.6}


def subjects(zoo: Path) -> dict[str, tuple[nn.Module, Tensor]]:
    """Name → model and a training batch: the demo's digits net, torchvision's ResNet-18 at 224 px."""
    torch.manual_seed(0)
    digits = DigitNet()
    images = torch.randn(64, 1, 8, 8)
    randomize(digits, 0, (images,))
    build = next(build for name, build, _ in load_zoo(zoo).cases(("tv",)) if name == "tv/resnet18")
    resnet, photos = build(), torch.randn(8, 3, 224, 224)
    randomize(resnet, 0, (photos[:2],))
    return {"digits": (digits, images), "resnet18": (resnet, photos)}


def by_torchao(model: nn.Module, images: Tensor) -> nn.Module:
    """The model prepared for quantization-aware training by torchao."""
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    batch = torch.export.Dim("batch", min=2, max=1024)
    exported = torch.export.export(model.train(), (images,), dynamic_shapes=({0: batch},)).module()
    prepared = prepare_qat_pt2e(exported, quantizer)
    move_exported_model_to_train(prepared)
    return _Callable(prepared)


class _Callable(nn.Module):
    """An exported module, whose own ``train()`` raises."""

    def __init__(self, exported: nn.Module) -> None:
        super().__init__()
        self.held = [exported]
        for index, parameter in enumerate(exported.parameters()):
            self.register_parameter(f"parameter_{index}", parameter)

    def forward(self, images: Tensor) -> Any:
        return self.held[0](images)


def measure(model: nn.Module, images: Tensor, rounds: int) -> tuple[dict[str, Latency], str]:
    """Seconds of a step per tool, and why torchao is absent if it is."""
    quantized = fxcompress.compile(model, CONFIG, (images[:2],))
    labels = torch.arange(len(images)) % 10
    steps: dict[str, Callable[[], None]] = {
        "float": training_step(copy.deepcopy(model), images, labels),
        "fxcompress": training_step(quantized, images, labels),
    }
    obstacle = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step = training_step(by_torchao(copy.deepcopy(model), images), images, labels)
            step()
        steps["torchao"] = step
    except Exception as error:  # whatever another tool raises is a fact to record, not a failure here
        obstacle = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    return compare_latency(steps, rounds=rounds, warmup=3), obstacle


def record_of(latencies: dict[str, Latency], obstacle: str, goal: float) -> dict[str, Any]:
    """Return one subject's figures as a JSON-ready dict; ratios are medians over rounds."""
    ratios = {tool: mine.ratio_to(latencies["float"]) for tool, mine in latencies.items() if tool != "float"}
    seconds = {tool: latency.to_dict() for tool, latency in latencies.items()}
    return {
        "seconds": seconds,
        "ratios": ratios,
        "goal": goal,
        "met": ratios["fxcompress"] <= goal,
        "torchao": obstacle,
    }


def table_of(rows: dict[str, dict[str, Any]]) -> Table:
    """One line per subject: steps over the float step."""
    table = Table(box=None, pad_edge=False)
    for column in ("subject", "fxcompress", "torchao", "goal", ""):
        table.add_column(column, justify="left" if column in ("subject", "") else "right")
    for name, row in rows.items():
        ratios = row["ratios"]
        other = f"{ratios['torchao']:.2f}" if "torchao" in ratios else row["torchao"][:60]
        verdict = "met" if row["met"] else "MISSED"
        table.add_row(name, f"{ratios['fxcompress']:.2f}", other, f"<= {row['goal']}", verdict)
    return table


def markdown(record: dict[str, Any]) -> str:
    """The table: steps over the float step."""
    return markdown_table(table_of(record["subjects"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, record; returns ``GOAL_MISSED`` if one was."""
    parser = argparse.ArgumentParser(prog="qat_step.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"), help="folder with zoo.py")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="more only on cores of your own")
    parser.add_argument("--json", type=Path, default=RESULTS / "qat_step.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = {}
    for name, (model, images) in subjects(options.zoo).items():
        rounds = options.rounds * (8 if name == "digits" else 1)
        rows[name] = record_of(*measure(model, images, rounds), GOALS[name])
    Console(width=110, highlight=False).print(table_of(rows))
    write_json(options.json, {"benchmark": "qat_step", "machine": machine_facts(), "subjects": rows})
    return 0 if all(row["met"] for row in rows.values()) else GOAL_MISSED


if __name__ == "__main__":
    raise SystemExit(main())
