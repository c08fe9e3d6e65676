"""A model to another format, with proof that it answers the same; one target per file."""
