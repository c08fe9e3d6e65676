"""Functions shared by several strategies."""
