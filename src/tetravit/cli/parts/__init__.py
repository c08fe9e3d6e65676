"""Functions shared by several verbs, besides `base`."""
