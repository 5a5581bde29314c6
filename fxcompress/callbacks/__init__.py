"""Pruners in the training loops of other libraries; each module needs its library installed.

from fxcompress.callbacks.lightning import PruningCallback       # pip install 'fxcompress[lightning]'
from fxcompress.callbacks.transformers import PruningCallback    # pip install 'fxcompress[transformers]'
"""
