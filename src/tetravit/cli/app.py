"""The command `tetravit`; one file per verb: parse, call, print.

Results go to standard output, messages to standard error. A user error becomes one line and exit code 2. Importing
this loads no torch, so that `tetravit --help` is fast; a verb imports what it needs when it runs.
"""

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from tetravit.cli.base import Group
from tetravit.registry import SYNONYMS, discover

MISTAKE = 2  # exit code of user errors

# How long idle OpenMP threads spin. On a busy machine (data loading, for example) long spinning makes a step many
# times slower; for pure measurements, short spinning costs a quarter of the speed of small models.
SPINS, SPINS_ALONE = "2000", "20000"

# Cures for a lack of memory, by verb.
CURES = {
    "train": "run.accumulate=2, or more, takes the same steps in smaller parts, and run.recompute=true stores fewer"
    " values; both go with --resume RUN too.",
    **dict.fromkeys(("predict", "evaluate", "embed"), "--batch 1 takes one image at once."),
    "": "A smaller model or image size takes less.",
}
UsageError: Any = typer.BadParameter.__base__  # typer's own class, from whichever copy of click it bundles

# Listed first in the help, in this order, before the other verbs of the folder.
FIRST = ("train", "evaluate", "predict", "explain", "export", "benchmark", "convert", "list", "show", "copy")


def application(only: str | None = None, *, brief: bool = False) -> typer.Typer:
    """The command with every verb and group defined in this folder.

    only: the requested verb or group; if given, the other files are not imported. brief: for the top-level help;
    groups that are slow to build get no verbs.
    """
    chosen, groups = offered(only)
    app = typer.Typer(
        name="tetravit",
        help="XCiT, ConViT, GC ViT and Twins: train, evaluate, predict, measure.",
        epilog="First steps: `tetravit train digits`, then `tetravit list models`.",
        rich_markup_mode=None,  # rich is slower to load than the help is to print
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback(invoke_without_command=True)(start)
    for name, verb in chosen.items():
        app.command(name, context_settings=getattr(verb, "context_settings", None))(catch(name)(verb))
    for name, group in groups.items():
        part = typer.Typer(help=group.help, no_args_is_help=True, rich_markup_mode=None)
        inside = group.verbs if isinstance(group.verbs, dict) else {"": start} if brief else group.verbs()
        for word, verb in inside.items():
            part.command(word)(catch(f"{name} {word}")(verb))
        app.add_typer(part, name=name)
    return app


def offered(only: str | None) -> tuple[dict[str, Callable[..., None]], dict[str, Group]]:
    """Verbs in help order, and groups; only those called `only` if it is one of them."""
    verbs: dict[str, Callable[..., None]] = discover("tetravit.cli", "VERBS", only=only)
    groups: dict[str, Group] = discover("tetravit.cli", "GROUPS", only=only)
    if only is not None and only not in verbs and only not in groups:
        return offered(None)
    verbs = {name: verbs[name] for name in (*FIRST, *verbs) if name in verbs and only in (None, name)}
    return verbs, {name: group for name, group in groups.items() if only in (None, name)}


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"tetravit {version('tetravit')}")
        raise typer.Exit()


def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    trace: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    context.obj = {"traceback": trace}
    spins = SPINS_ALONE if context.invoked_subcommand == "benchmark" else SPINS
    os.environ.setdefault("GOMP_SPINCOUNT", spins)  # for OpenMP, when torch is loaded
    if context.invoked_subcommand != "benchmark":
        os.environ.setdefault("KMP_BLOCKTIME", "1")  # ms: the same for LLVM's and Intel's OpenMP
    if context.invoked_subcommand is None:
        print(context.get_help())


def catch(verb: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a user error in `verb` into one line on standard error and exit code 2.

    User errors are `ValueError`s (every error of this package that a user can cause is one), errors of the
    operating system, and a lack of memory. Anything else is a bug and keeps its traceback.
    """

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
                sys.stdout.flush()
            except BrokenPipeError:  # a closed pipe: `tetravit list models | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            except (ValueError, OSError) as error:
                if _wants_traceback():
                    traceback.print_exc()
                print(f"tetravit {verb}: {one_line(error)}", file=sys.stderr)
                from tetravit.engine.signals import mistake_code

                raise typer.Exit(mistake_code(MISTAKE)) from None
            except (RuntimeError, MemoryError) as error:
                text = out_of_memory(error, verb)
                if not text or _wants_traceback():
                    raise
                print(f"tetravit {verb}: {text}", file=sys.stderr)
                from tetravit.engine.signals import mistake_code

                raise typer.Exit(mistake_code(MISTAKE)) from None

        return run

    return wrap


def out_of_memory(error: BaseException, verb: str) -> str:
    """The message for a lack of memory, with the cure; empty for any other error."""
    text = str(error)
    words = ("out of memory", "can't allocate memory", "not enough memory", "caught memoryerror")
    if not isinstance(error, MemoryError) and not any(word in text.lower() for word in words):
        return ""
    size = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    more = f" ({_size(size[1])} more)" if size else ""
    where = "of the GPU" if "CUDA" in text else "of this machine"
    return f"The memory {where} does not suffice{more}. {CURES.get(verb, CURES[''])}"


def _size(text: str) -> str:
    """An amount of memory; one in bytes is given in GiB."""
    number, unit = text.split()
    return f"{int(number) / 2**30:.1f} GiB" if unit == "bytes" else text


def one_line(error: Exception) -> str:
    """An error message in one line."""
    details = getattr(error, "errors", None)
    if callable(details) and hasattr(error, "error_count"):  # pydantic
        first = details()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}." if place else f"{first['msg']}."
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def _wants_traceback() -> bool:
    return "--traceback" in sys.argv[1:]


def _without_dashes(error: Any) -> str:
    """A hint for an option that is a key of recipes: `--epochs 3` is `epochs=3`."""
    option = str(getattr(error, "option_name", None) or "").partition("=")[0].lstrip("-").replace("-", "_")
    key = SYNONYMS.get(option, option)
    verb = getattr(error.ctx, "info_name", "")
    if verb not in ("train", "evaluate") or (key not in ("epochs", "steps") and "." not in key):
        return ""
    return f" Keys of a recipe have no dashes: {key}=VALUE."


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line `args` (None: that of this process) and exit with its code."""
    for stream in (sys.stdout, sys.stderr):  # file names may have bytes that are not valid text
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        given = sys.argv[1:] if args is None else args
        args = given = ["--help"] if list(given) == ["help"] else given
        verb = next((text for text in given if not text.startswith("-")), None)
        code = application(verb, brief=given in (["--help"], ["-h"], []))(
            args=args, prog_name="tetravit", standalone_mode=False
        )
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without its verb: the message is the help
            print(error.format_message(), file=sys.stderr)
            sys.exit(MISTAKE)
        command = error.ctx.command_path if error.ctx else "tetravit"
        text = error.format_message()
        text = text if text.endswith((".", "?")) else f"{text}."
        print(f"{command}: {text}{_without_dashes(error)} See `{command} --help`.", file=sys.stderr)
        sys.exit(MISTAKE)
    except typer.Abort:
        sys.exit(130)
    sys.exit(code or 0)
