"""Functions shared by several bridges."""
