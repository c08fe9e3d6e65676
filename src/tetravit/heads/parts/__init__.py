"""Shared parts of heads: the feature pyramid, region proposals, the branches on regions."""
