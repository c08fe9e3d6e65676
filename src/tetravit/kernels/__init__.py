"""Fast implementations of operations, each with its plain reference."""
