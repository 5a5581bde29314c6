"""Quantization algorithms: each says how the tensors that a config list selects are rounded."""

from fxcompress.quantization.base import Quantizer
from fxcompress.quantization.bnn import BNNQuantizer
from fxcompress.quantization.dorefa import DoReFaQuantizer
from fxcompress.quantization.dynamic import DynamicQuantizer
from fxcompress.quantization.gptq import GPTQQuantizer
from fxcompress.quantization.grad import QuantGrad, QuantType
from fxcompress.quantization.lsq import LSQQuantizer
from fxcompress.quantization.lsq_plus import LSQPlusQuantizer
from fxcompress.quantization.naive import NaiveQuantizer
from fxcompress.quantization.ptq import PTQ_Quantizer
from fxcompress.quantization.qat import QAT_Quantizer
from fxcompress.quantization.registry import QUANTIZERS, register
from fxcompress.quantization.weight_only import WeightOnlyQuantizer
from fxcompress.quantization.wrapper import Wrapper

for _quantizer in (
    NaiveQuantizer,
    QAT_Quantizer,
    DoReFaQuantizer,
    BNNQuantizer,
    LSQQuantizer,
    LSQPlusQuantizer,
    PTQ_Quantizer,
    WeightOnlyQuantizer,
    GPTQQuantizer,
    DynamicQuantizer,
):
    register(_quantizer)

__all__ = [
    "QUANTIZERS",
    "BNNQuantizer",
    "DoReFaQuantizer",
    "DynamicQuantizer",
    "GPTQQuantizer",
    "LSQPlusQuantizer",
    "LSQQuantizer",
    "NaiveQuantizer",
    "PTQ_Quantizer",
    "QAT_Quantizer",
    "QuantGrad",
    "QuantType",
    "Quantizer",
    "WeightOnlyQuantizer",
    "Wrapper",
    "register",
]
