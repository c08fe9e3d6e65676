"""What several bridges share."""
