"""Plans, and the work of a unit."""
