"""Functions shared by several tasks."""
