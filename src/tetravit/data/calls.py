"""Parse `crop(224) | flip | erase(p=0.2)`: names with literal arguments, separated by bars; no code is run."""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tetravit.registry import pick


@dataclass(frozen=True)
class Call:
    """One name with its arguments; `text` is the source text."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    text: str

    def build(self, menu: Mapping[str, Any], kind: str, **defaults: Any) -> Any:
        """Call the row of that name; `defaults` fill in arguments that the row accepts and the text omits.

        Raises:
            ValueError: for an unknown name (`kind` names the menu) or arguments that the row does not accept.
        """
        row = pick(menu, self.name, kind)
        signature = inspect.signature(row)
        try:
            given = signature.bind_partial(*self.args, **self.kwargs).arguments
            missing = {k: v for k, v in defaults.items() if k in signature.parameters and k not in given}
            signature.bind(*self.args, **self.kwargs, **missing)
        except TypeError:
            takes = ", ".join(str(p.replace(annotation=p.empty)) for p in signature.parameters.values())
            raise ValueError(f"{self.name} takes ({takes}); got {self.text!r}.") from None
        return row(*self.args, **self.kwargs, **missing)


def parse_calls(text: str, kind: str) -> list[Call]:
    """The calls in `text`, in order; none for an empty text. `kind` names it in an error ("An augmentation").

    Raises:
        ValueError: if a part is not a name or a name with literal arguments.
    """
    if not text.strip():
        return []
    calls = []
    for part in map(str.strip, text.split("|")):
        call = _read(part)
        if call is None:
            raise ValueError(f"{kind} reads name or name(arguments), parts joined by |; got {part!r}.")
        calls.append(call)
    return calls


def _read(part: str) -> Call | None:
    try:
        node = ast.parse(part, mode="eval").body
        if isinstance(node, ast.Name):
            return Call(node.id, (), {}, part)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            args = tuple(ast.literal_eval(a) for a in node.args)
            kwargs = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg is not None}
            if len(kwargs) == len(node.keywords):
                return Call(node.func.id, args, kwargs, part)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        pass
    return None
