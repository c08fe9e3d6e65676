"""Pieces that two families share; a piece used once stays in its family's file."""
