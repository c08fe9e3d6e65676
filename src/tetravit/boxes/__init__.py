"""Shared parts of detectors: anchors, box coding, matching, sampling, suppression, pooling and pasting."""
