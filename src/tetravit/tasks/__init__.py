"""What one training step means; one task per file."""
