"""What several verbs share, beside `base`."""
