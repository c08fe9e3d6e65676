"""Images from disk to batches."""
