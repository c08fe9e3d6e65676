"""Metrics, computed from tensors."""
