"""What the methods share: measures, geometry, gradients, targets, pictures."""
