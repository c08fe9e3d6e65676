"""Metrics: tensors -> numbers."""
