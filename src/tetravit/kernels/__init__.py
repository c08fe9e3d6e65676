"""Fast forms of operations, each beside its plain reference."""
