"""What a run's own losses and gradients say of its learning rate, on batches that the updates have not seen."""
