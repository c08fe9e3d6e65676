"""Speed, memory and operation counts, measured."""
