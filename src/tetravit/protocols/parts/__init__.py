"""Pieces that several protocols share."""
