"""What detectors share: anchors, box coding, matching, sampling, suppression, pooling and pasting."""
