"""What every algorithm in a training loop needs: steps of optimizers, batches, layers, checkpoints."""
