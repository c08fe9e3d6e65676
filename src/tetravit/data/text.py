"""Text files of common tools: UTF-8 with or without a byte order mark, UTF-16 with one; and YAML."""

import codecs
from pathlib import Path
from typing import Any, Literal

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(file: Path, *, errors: Literal["strict", "replace"] = "strict") -> str:
    """The text of a file, without its byte order mark.

    errors: "strict" raises for undecodable bytes, "replace" replaces them by U+FFFD.

    Raises:
        ValueError: in one line, if the file cannot be read or decoded.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"Cannot read {str(file)!r}: {(error.strerror or str(error)).lower()}.") from None
    try:
        return data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Cannot read {str(file)!r}: it is not UTF-8 (byte 0x{data[error.start]:02x} at position"
            f" {error.start}); save it as UTF-8."
        ) from None


def read_lines(file: Path) -> list[str]:
    """The non-empty lines of a text file, stripped."""
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping in which every scalar stays a string: "no" is a name, not False.

    Raises:
        ValueError: in one line, if the file cannot be read, is not YAML, is not a mapping, or repeats a key.
    """
    import yaml

    class Loader(yaml.BaseLoader):  # constructs only strings, lists and mappings
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.value in seen if isinstance(key.value, str) else False:
                    raise ValueError(f"{file.name} gives the key {key.value!r} twice.")
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    text = read_text(file)
    try:
        content = yaml.load(text.expandtabs(4), Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{file.name} is not YAML{place}: {problem}.") from None
    except RecursionError:
        raise ValueError(f"{file.name} is not YAML: it is nested too deeply.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} is not a mapping of YAML, with keys such as names.")
    return content
