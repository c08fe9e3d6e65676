"""Strategies for several processes; one per file."""

from tetravit.engine.strategies.base import Strategy, Wrapped
from tetravit.registry import discover, pick
from tetravit.world import World

STRATEGIES: dict[str, type[Strategy]] = discover(__name__, "STRATEGIES")


def pick_strategy(name: str, world: World) -> Strategy:
    """The strategy called `name`; `auto`: single for one process, ddp for several."""
    if name == "auto":
        name = "single" if world.size == 1 else "ddp"
    return pick(STRATEGIES, name, "strategy")()


def known_strategy(name: str) -> str:
    """`name`, after checking that the strategy exists.

    Raises:
        ValueError: if it is unknown.
    """
    pick(STRATEGIES, name, "strategy")
    return name


__all__ = ["STRATEGIES", "Strategy", "Wrapped", "known_strategy", "pick_strategy"]
