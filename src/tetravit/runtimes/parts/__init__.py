"""What `optimize` is made of: kept programs, comparisons, the load of the machine."""
