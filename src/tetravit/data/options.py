"""Free tables of a recipe: constructor arguments of a data set, a model or a head."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator


def _written(value: Any) -> Any:
    """Raises: ValueError for None, which TOML cannot represent."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for part in inner:
        if part is None:
            raise ValueError(f"A table of options has a value for every key; got {value!r}.")
        _written(part)
    return value


Options = Annotated[dict[str, Any], AfterValidator(_written)]
