"""The command line; one file per verb."""

from tetravit.cli.app import main

__all__ = ["main"]
