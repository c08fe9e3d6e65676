"""Training loop, optimizers, EMA, checkpoints, strategies and logs. Independent of the task."""
