"""Other libraries' interfaces over these models; one file per library, imported by name.

`import tetravit.bridges.timm` registers every model with timm. Nothing here is imported unless it is named.
"""
