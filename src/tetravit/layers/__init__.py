"""Layers shared by several families; a layer used once is in its family's file."""
