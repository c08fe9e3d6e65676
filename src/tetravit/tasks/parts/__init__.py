"""Pieces that several tasks share."""
