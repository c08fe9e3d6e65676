"""The verbs; one file per verb: parse, call, print."""
