"""A pruner in the training loop of Hugging Face's ``Trainer``.

    pruner = L1FilterPruner(model, config_list, example_inputs=dict(batch))
    trainer = Trainer(pruner.compress(), arguments, callbacks=[PruningCallback(pruner)], ...)

``Trainer`` reads the loss from the model's output: give ``labels`` in ``example_inputs``.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch

from fxcompress.callbacks.binding import bind, checked
from fxcompress.training.compressor import Compressor

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "fxcompress.callbacks.transformers needs transformers: pip install 'fxcompress[transformers]'"
    ) from error

FILE = "pruner.pt"
"""The pruner's state in a checkpoint folder."""


class PruningCallback(TrainerCallback):
    """Tells ``pruner`` (or a quantizer) of epochs and of the optimizer's steps.

    Its state is written to ``pruner.pt`` in every checkpoint, and read where training resumes from one.
    """

    def __init__(self, pruner: Compressor[Any]) -> None:
        self.pruner = checked(pruner)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Watch the optimizer, which the trainer makes when training begins; resume from a checkpoint."""
        bind(self.pruner, kwargs["model"], [kwargs["optimizer"]])
        if state.global_step > 0:
            self._resume(_checkpoint(args, state))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the pruner the epoch's number, from 0; the trainer's own is a fraction."""
        self.pruner.update_epoch(math.floor((state.epoch or 0) + 1e-6))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the pruner's state beside the model's."""
        folder = _written(args, state)
        if state.is_world_process_zero and folder.is_dir():
            torch.save(self.pruner.state_dict(), folder / FILE)

    def _resume(self, folder: Path) -> None:
        if (folder / FILE).is_file():
            self.pruner.load_state_dict(torch.load(folder / FILE, weights_only=True))
        else:
            warnings.warn(
                f"fxcompress: training resumes, and there is no {folder / FILE}: the pruner starts anew; set "
                "resume_from_checkpoint in TrainingArguments to the folder that holds it",
                stacklevel=2,
            )


def _written(args: Any, state: Any) -> Path:
    """The checkpoint folder of the step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _checkpoint(args: Any, state: Any) -> Path:
    """The folder that training resumes from."""
    given = args.resume_from_checkpoint
    if isinstance(given, str) and Path(given).is_dir():
        return Path(given)
    return _written(args, state)
