"""Shared components of detectors: anchors, box coding, matching, sampling, NMS, RoI pooling and mask pasting."""
