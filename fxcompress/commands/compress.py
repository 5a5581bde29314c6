"""``fxcompress compress``: from a model and a config file to a small model, its ONNX file and a report.

    model → masks → (training) → speedup → quantizers → (training)
          → small.pt2, small.onnx, report.json, page.html

Quantization comes after the speedup, which leaves channels around fake-quantize nodes. Everything that can be
wrong without training is tried before it; what was trained under masks is kept in ``masked.pt2``.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxcompress.commands.comparison import Comparison, comparison_table, one_thread
from fxcompress.commands.configs import add_config, naming, read_config
from fxcompress.commands.found import Found, add_json, as_json
from fxcompress.commands.options import (
    add_amx,
    add_model,
    add_place,
    check_model,
    check_target,
    natural,
    new_command,
    positive,
)
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.places import Batches, function, resolve

if TYPE_CHECKING:
    from torch import nn

    from fxcompress.export.onnx import OnnxReport
    from fxcompress.graph.module import CompiledModule

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

Entries = list[dict[str, Any]]
Curves = dict[str, dict[float, float]]
_EXAMPLES = """
fxcompress compress models.resnet:make --weights best.pt --config prune.toml --train task:tune --out small
fxcompress compress small.pt2 --config quantize.yaml --data task:calibration --out int8
fxcompress compress models.resnet:make --config both.toml --data task:calibration --rounds 0 --json
"""


def add_compress(commands: Commands) -> None:
    """The whole way."""
    text = "prune, fine-tune, speed up, quantize and export a model as a config file says"
    parser = new_command(commands, "compress", text, _EXAMPLES)
    add_model(parser)
    add_config(parser)
    add_place(parser, "--data", "batches to measure and calibrate on, or a function that returns them")
    add_place(parser, "--loss", "function(output, batch) -> scalar, for pruners that need gradients")
    add_place(parser, "--train", "function(module) that fine-tunes under masks")
    add_place(parser, "--train-quantized", "function(module) that fine-tunes with rounding")
    add_place(parser, "--evaluator", "function(module) -> number, measured before and after")
    parser.add_argument(
        "--sensitivity", type=Path, metavar="FILE",
        help="show the curves of this CSV file of 'fxcompress sensitivity'; if there is none yet, it is "
        "measured with --evaluator first",
    )  # fmt: skip
    parser.add_argument("--round-to", type=positive, metavar="N", help="keep a multiple of N channels")
    parser.add_argument("--no-onnx", action="store_true", help="write no ONNX file")
    parser.add_argument(
        "--no-page", action="store_true", help="write no page.html (needs the extra 'report')"
    )
    parser.add_argument(
        "--rounds", type=natural, default=20, metavar="N",
        help="timed calls of each model, on one thread; 0 leaves latency out (default: 20)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("compressed"), metavar="FOLDER",
        help="for small.pt2, small.onnx, report.json and page.html (default: ./compressed)",
    )  # fmt: skip
    add_amx(parser)
    add_json(parser)
    parser.set_defaults(run=run_compress)


def run_compress(options: argparse.Namespace) -> Found:
    """Do it, and compare before and after."""
    check_model(options)
    return _Job(options, read_config(options.config)).run()


@dataclass(frozen=True)
class _Results:
    """``dense``, ``masked`` and ``small`` are in floating point; ``final`` is what is written: ``small``, or
    that quantized. ``metric`` and ``curves``: of ``dense``, its evaluation and sensitivity."""

    dense: CompiledModule
    masked: CompiledModule
    small: CompiledModule
    final: CompiledModule
    metric: dict[str, float]
    curves: Curves | None


class _Job:
    """One compression; everything that the options name is looked up at once."""

    def __init__(self, options: argparse.Namespace, config_list: Entries) -> None:
        self.options, self.config_list = options, config_list
        if not options.model.endswith(".pt2"):
            resolve(options.model)  # what it imports may register algorithms that the config names
        places = (options.train, options.train_quantized, options.loss, options.evaluator)
        self.train, self.tune, self.loss, self.evaluator = (place and function(place) for place in places)
        self.data = options.data and Batches(options.data)
        with naming(options.config):
            self.pruning, self.quantization = split(config_list)
            _refuse_own_rounding(self.quantization)
        self._check_options()
        self._stage = 0

    def run(self) -> Found:
        """Compress, write, compare."""
        from fxcompress.commands.models import model_of
        from fxcompress.config import explain
        from fxcompress.export.files import filling

        options = self.options
        model = model_of(options)
        with naming(options.config):
            explain(model, self.config_list)  # every mistake that can be seen without a capture
        with filling(options.out) as folder, tempfile.TemporaryDirectory() as elsewhere:
            results = self._compress(model, Path(elsewhere))
            facts, lines = self._write(results, folder, Path(elsewhere))
        files = ["masked.pt2"] * bool(self.train) + facts["files"]
        written = ", ".join(str(options.out / name) for name in files)
        advice = [f"\n{facts['advice']}"] if facts["advice"] else []
        return Found(facts, (*lines, "", comparison_table(facts), *advice, f"\nwritten: {written}"))

    def _check_options(self) -> None:
        options = self.options
        if not self.pruning and not self.quantization:
            raise ConfigError(
                f"{options.config}: no entry prunes or quantizes; add sparsity or quant_bits to one"
            )
        for place, flag, entries, key in (
            (options.train, "--train", self.pruning, "sparsity"),
            (options.train_quantized, "--train-quantized", self.quantization, "quant_bits"),
        ):
            if place is not None and not entries:
                raise FxcompressError(
                    f"{flag}: no entry of {options.config} has {key}; leave it out, or add one"
                )
        curves = options.sensitivity
        if curves is not None:
            check_target(curves, ".csv")
            if options.evaluator is None and not curves.is_file():
                raise FxcompressError(
                    f"--sensitivity: there is no {curves}; add --evaluator to measure it first"
                )

    def _compress(self, model: nn.Module, elsewhere: Path) -> _Results:
        from fxcompress.commands.models import inputs_of
        from fxcompress.compiler import speedup
        from fxcompress.export.archive import save
        from fxcompress.export.onnx import export_onnx
        from fxcompress.graph.capture import capture

        options = self.options
        self._begin("capture the model")
        masked = capture(model, inputs_of(options.inputs))
        if self.quantization:
            _refuse_halves(masked)
        dense = copy.deepcopy(masked)  # training changes the parameters that `masked` shares with the model
        if not options.no_onnx:
            self._begin("export it to ONNX as it is, to compare with")
            export_onnx(dense, elsewhere / "dense.onnx", verify=False)
        self._check_quantizers(dense)
        metric, curves = self._metric(dense, "before"), self._curves(dense)
        if self.pruning:
            self._begin(f"insert the masks that {options.config} asks for")
            masked = self._compiled(masked, self.pruning)
        if self.train is not None:
            self._begin(f"train under masks: {options.train}")
            self.train(masked)
            save(masked.eval(), options.out / "masked.pt2")
        self._begin("speed up, verify in float64")
        small = speedup(masked.eval(), round_to=options.round_to)
        return _Results(dense, masked, small, self._quantized(small), metric, curves)

    def _curves(self, dense: CompiledModule) -> Curves | None:
        """What ``--sensitivity`` names, measured where it is not there."""
        from fxcompress.export.tables import read_curves
        from fxcompress.sensitivity import SensitivityAnalysis

        file = self.options.sensitivity
        if file is None:
            return None
        if not file.is_file():
            self._begin(f"measure the sensitivity of every layer: {self.options.evaluator}")
            return SensitivityAnalysis(dense, self.evaluator, file=file).run()
        return read_curves(file, dict(dense.named_modules()), "a sensitivity analysis")

    def _check_quantizers(self, dense: CompiledModule) -> None:
        """Whether quantizers do without data where they are given none, before anything takes long."""
        from fxcompress.passes.convert import convert

        if self.quantization and self.data is None and self.tune is None:
            convert(self._compiled(copy.deepcopy(dense), self.quantization))

    def _quantized(self, small: CompiledModule) -> CompiledModule:
        options = self.options
        if not self.quantization:
            return small
        self._begin(f"insert the quantizers that {options.config} asks for")
        final = self._compiled(small, self.quantization)
        if self.tune is not None:
            self._begin(f"train with rounding: {options.train_quantized}")
            self.tune(final)
        return final.eval()

    def _compiled(self, module: CompiledModule, entries: Entries) -> CompiledModule:
        from fxcompress.compiler import compile

        with naming(self.options.config):
            return compile(module, entries, data=self.data, loss_fn=self.loss)

    def _write(self, results: _Results, folder: Path, elsewhere: Path) -> tuple[dict[str, Any], list[str]]:
        """Every file of the folder; returns the facts of ``report.json``, and lines to print."""
        from fxcompress.commands.export import onnx_facts, onnx_lines
        from fxcompress.export.archive import save
        from fxcompress.export.onnx import export_onnx

        options, report = self.options, results.small.report
        save(results.final, folder / "small.pt2")
        facts: dict[str, Any] = {
            "model": options.model,
            "config": self.config_list,
            "out": str(options.out),
            "quantized": bool(self.quantization),
            "metrics": {n: (results.metric[n], m) for n, m in self._metric(results.final, "after").items()},
            "report": report.to_dict(),
            "onnx": None,
            "advice": None,
            "files": ["small.pt2", *([] if options.no_onnx else ["small.onnx"]), "report.json"],
        }
        lines, written, files = [str(report)], None, {}
        if not options.no_onnx:
            self._begin("export to ONNX, compare with onnxruntime")
            files = {"dense": elsewhere / "dense.onnx", "small": folder / "small.onnx"}
            written = export_onnx(results.final, files["small"], amx=options.amx)
            facts["onnx"] = {
                **onnx_facts(written),
                "onnx": "small.onnx",
                "bytes_before": files["dense"].stat().st_size,
            }
            lines += ["", *onnx_lines(written, options.out / "small.onnx")]
        compared = None
        if options.rounds:
            self._begin("measure latency")
            if self.quantization and files:
                files["float32"] = elsewhere / "small.onnx"
                export_onnx(results.small, files["float32"], verify=False)
            compared = Comparison(results.dense, results.small, files, options.rounds)
            facts["latency"] = compared.facts()
            facts["advice"] = compared.advice("small.onnx")
        if not options.no_page:
            lines += self._page(results, folder, facts, written, compared)
        (folder / "report.json").write_text(as_json(facts, indent=1) + "\n", encoding="utf-8")
        return facts, lines

    def _metric(self, module: CompiledModule, when: str) -> dict[str, float]:
        """What ``--evaluator`` says, by its name."""
        from fxcompress.graph.module import eval_mode

        if self.evaluator is None:
            return {}
        self._begin(f"evaluate {when}: {self.options.evaluator}")
        with eval_mode(module):
            return {self.options.evaluator.rpartition(":")[2]: float(self.evaluator(module))}

    def _page(
        self,
        results: _Results,
        folder: Path,
        facts: dict[str, Any],
        onnx: OnnxReport | None,
        compared: Comparison | None,
    ) -> list[str]:
        """``page.html`` and ``page.json``, added to the files of ``facts``; or a line that says what they
        need."""
        if not all(find_spec(name) for name in ("jinja2", "matplotlib")):
            return ["", "page.html: not written; pip install 'fxcompress[report]' for it"]
        from fxcompress.page import write_report
        from fxcompress.sqnr import sqnr

        self._begin("write page.html")
        rounded = self.quantization and self.data is not None
        noise = sqnr(results.final, self.data, end_to_end=False) if rounded and self.data else None
        with one_thread():
            write_report(
                folder / "page.html",
                results.small,
                onnx=onnx,
                sensitivity=results.curves,
                sqnr=noise,
                metrics=facts["metrics"],
                latency=compared.timings() if compared else False,
            )
        facts["files"] += ["page.html", "page.json"]
        return []

    def _begin(self, told: str) -> None:
        """Say which step begins, on standard error."""
        self._stage += 1
        print(f"[{self._stage}] {told}", file=sys.stderr, flush=True)


def _refuse_halves(module: nn.Module) -> None:
    """Integer kernels and their simulation are about float32."""
    halves = [(name, p.dtype) for name, p in module.named_parameters() if p.dtype.itemsize == 2]
    if halves:
        (name, dtype), *_ = halves
        raise FxcompressError(
            f"{name!r} is {str(dtype).removeprefix('torch.')}: quantization starts from float32; call "
            ".float() where the model is made, and give --input without a type"
        )


def _refuse_own_rounding(entries: Entries) -> None:
    """Files hold integers and the steps between them, not methods."""
    from fxcompress.quantization.base import Quantizer
    from fxcompress.quantization.registry import QUANTIZERS

    for entry in entries:
        chosen = entry.get("quantizer")
        name = chosen["name"] if isinstance(chosen, dict) else chosen
        cls = QUANTIZERS.get(name or "")
        if cls is not None and cls.fake_quantizer is Quantizer.fake_quantizer:
            raise ConfigError(
                f"quantizer {name!r} rounds by methods of {cls.__name__}, which no file can hold; call "
                "fxcompress.compile and train in Python, or override fake_quantizer with a FakeQuantize"
            )


def split(config_list: Entries) -> tuple[Entries, Entries]:
    """The config list of each stage, empty where nothing asks for it. Exclusions hold in both."""
    from fxcompress.config.schema import PRUNING_KEYS, QUANT_KEYS, parse

    parse(config_list)
    stages = []
    for own, other in ((PRUNING_KEYS, QUANT_KEYS), (QUANT_KEYS, PRUNING_KEYS)):
        entries = [{k: v for k, v in entry.items() if k not in other} for entry in config_list]
        kept = [entry for entry in entries if "exclude" in entry or any(key in own for key in entry)]
        stages.append(kept if any(key in own for entry in kept for key in entry) else [])
    return stages[0], stages[1]
