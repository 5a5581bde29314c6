"""A pruner in Lightning's training loop.

class Classifier(lightning.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net                                  # what pruner.compress() returned

pruner = TaylorFOWeightFilterPruner(net, config_list, statistics_batch_num=100, example_inputs=x)
trainer = lightning.Trainer(callbacks=[PruningCallback(pruner)])
trainer.fit(Classifier(pruner.compress()), loader)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxcompress.callbacks.binding import bind, checked
from fxcompress.training.compressor import Compressor

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    try:
        from pytorch_lightning.callbacks import Callback
    except ImportError as error:
        raise ImportError(
            "fxcompress.callbacks.lightning needs Lightning: pip install 'fxcompress[lightning]'"
        ) from error


class PruningCallback(Callback):
    """Tells ``pruner`` of epochs and of the optimizer's steps, with automatic or manual optimization.

    The pruner (or quantizer) watches the first of ``trainer.optimizers`` that trains a layer it works on. Its
    state is saved in the trainer's checkpoints.
    """

    def __init__(self, pruner: Compressor[Any]) -> None:
        super().__init__()
        self.pruner = checked(pruner)

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint, one per algorithm."""
        return f"{type(self).__qualname__}({self.pruner.name})"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Have the pruner restored before the model, whose state may need masks that are not there yet.

        Lightning restores callbacks last; the module's own ``on_load_checkpoint`` is what comes first.
        """
        own = pl_module.on_load_checkpoint

        def restore(checkpoint: dict[str, Any]) -> None:
            states = checkpoint.get("callbacks", {})
            if self.state_key in states:
                self.load_state_dict(states[self.state_key])
            own(checkpoint)

        pl_module.on_load_checkpoint = restore

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the module its own method back."""
        vars(pl_module).pop("on_load_checkpoint", None)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch the optimizer, which Lightning makes when fitting begins."""
        bind(self.pruner, pl_module, trainer.optimizers)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell the pruner the epoch's number, from 0."""
        self.pruner.update_epoch(trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the pruner."""
        return self.pruner.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.pruner.load_state_dict(state_dict)
