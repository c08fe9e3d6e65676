"""One small model per class of backbone, for tests of properties that every family has.

A new family is in the menu once it has `VARIANTS`: without a row in `NARROW`, its smallest published model is used.
"""

from tetravit.backbones import VARIANTS, Backbone
from tetravit.benchmark.flops import table
from tetravit.models import family

# Narrow models with the usual number of levels; a pyramid is also shallow.
NARROW = {
    "convit": {"dim": 32, "num_heads": 4},
    "deit": {"dim": 32, "num_heads": 2},
    "gcvit": {"dim": 16, "depths": (2, 2, 2, 2), "num_heads": (2, 2, 2, 4)},
    "twins": {"dims": (8, 16, 24, 32), "depths": (2, 2, 3, 2), "num_heads": (1, 2, 2, 4)},
    "xcit": {"dim": 32, "num_heads": 2},
}
SHALLOW = {
    "convit": {"depth": 2, "num_gpsa": 1},
    "deit": {"depth": 2},
    "twins": {"depths": (2, 1, 1, 1)},
    "xcit": {"depth": 2},
}


def _smallest() -> list[str]:
    """The model of fewest parameters of each class of backbone."""
    best: dict[object, tuple[int, str]] = {}
    for name, row in VARIANTS.items():
        key = (family(name), row.func)
        size = table()[name].params if name in table() else 0
        best[key] = min(best.get(key, (2**63, "")), (size, name))
    return sorted(name for _, name in best.values())


SMALLEST = _smallest()


def narrow_options(name: str) -> dict[str, object]:
    """Constructor options that make `name` narrow; none for a family without a row."""
    return dict(NARROW.get(family(name), {}))


def shallow(name: str) -> Backbone:
    """A narrow model with few blocks, for tests that compile it."""
    return narrow(name, **SHALLOW.get(family(name), {}))


def narrow(name: str, **options: object) -> Backbone:
    """A narrow model of the class of `name`, with random weights."""
    return VARIANTS[name](**{**narrow_options(name), **options})
