"""Adapters to other libraries; one file per library, imported by name.

`import tetravit.bridges.timm` registers every model with timm. Nothing here is imported implicitly.
"""
