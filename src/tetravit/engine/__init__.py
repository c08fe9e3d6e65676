"""The training loop, optimizers, averages, checkpoints, strategies and logs. Independent of any task."""
