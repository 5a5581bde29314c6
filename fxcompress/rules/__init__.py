"""What each operator does to channels: one file per operator family.

Importing this package fills the registry (``fxcompress.rules.registry``).
"""

from fxcompress.rules import (
    addressing,
    attention,
    compaction,
    convolution,
    creation,
    diagonals,
    fft,
    indexing,
    joining,
    linear,
    normalization,
    pointwise,
    pooling,
    products,
    quantization,
    recurrent,
    reduction,
    reshaping,
)

__all__ = [
    "addressing",
    "attention",
    "compaction",
    "convolution",
    "creation",
    "diagonals",
    "fft",
    "indexing",
    "joining",
    "linear",
    "normalization",
    "pointwise",
    "pooling",
    "products",
    "quantization",
    "recurrent",
    "reduction",
    "reshaping",
]
