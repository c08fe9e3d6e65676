"""What detectors share: anchors, box coding, matching, sampling, pooling, pasting."""
