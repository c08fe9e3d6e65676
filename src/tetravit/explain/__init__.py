"""What attention maps say of a model, as numbers and maps."""
