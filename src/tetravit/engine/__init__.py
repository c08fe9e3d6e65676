"""How steps are repeated: the loop, optimizers, schedules, checkpoints; knows no task by name."""
