"""What engines run: plans, and the work of a unit."""
