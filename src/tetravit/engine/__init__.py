"""How steps are repeated: the loop, optimizers, averages, checkpoints, ranks, logs. Knows no task by name."""
