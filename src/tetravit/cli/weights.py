"""`tetravit weights`: manage published weights. `tetravit convert`: convert between layouts."""

import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer

from tetravit.cli.base import AcceptLicense, Group, print_rows, print_table, say

As = Annotated[str, typer.Option("--as", metavar="NAME.TAG", help="NAME.TAG of the weights.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN", help="Patterns of tensors that may be missing or unused: 'head.*'. Repeatable."
    ),
]
Entry = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="The entry of the file with the weights: state_dict_ema, ..."),
]


def list_(
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Shell pattern: 'xcit_*.dino'.")] = "*",
    commercial_ok: Annotated[
        bool, typer.Option("--commercial-ok", help="Only weights whose licence allows commercial use.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List published weights, their scores and licences."""
    from tetravit.weights import CHECKPOINTS, store

    rows = [
        row
        for name, row in CHECKPOINTS.items()
        if fnmatch.fnmatch(name, pattern) and (row.commercial or not commercial_ok)
    ]
    if not rows:
        raise ValueError(f"No weights match {pattern!r}. `tetravit weights list` shows all.")
    if as_json:
        print_rows(_row(row, store.cached(row.name) is not None) for row in rows)
        return
    print_table(
        ["weights", "task", "published %", "measured top-1", "trained on", "licence", "here"],
        [
            [
                row.name,
                row.task,
                ", ".join(f"{metric} {value:g}" for metric, value in row.published.items()),
                row.measured.get("top1"),
                row.data,
                row.licence,
                "yes" if store.cached(row.name) else "",
            ]
            for row in rows
        ],
        right=["measured top-1"],
    )


def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME.TAG...", help="Weights to download.")],
    accept_license: AcceptLicense = False,
) -> None:
    """Download and verify weights; print their paths."""
    from tetravit.weights import store

    for name in names:
        print(store.fetch(name, accept_license=accept_license).path)


def bundle(
    names: Annotated[list[str], typer.Argument(metavar="NAME.TAG...", help="Weights to pack.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .zip or .tar file.")] = Path(
        "weights.zip"
    ),
    accept_license: AcceptLicense = False,
) -> None:
    """Pack weights into one file for a machine without a network; `import` unpacks it there."""
    from tetravit.weights.bundle import bundle as pack

    print(pack(names, out, accept_license=accept_license))


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME.TAG...]", help="Weights to check; none: all.")
    ] = None,
) -> None:
    """Compare weights on this machine with their hashes; name every file that has changed."""
    from tetravit.weights import store

    results = store.verify(names or ())
    for path, wrong in results:
        print(f"{'CHANGED' if wrong else 'ok':8} {path}{f': {wrong}' if wrong else ''}")
    changed = sum(bool(wrong) for _, wrong in results)
    if changed:
        raise ValueError(f"{changed} of {len(results)} files have changed since they were stored.")
    say(f"{len(results)} files verified, all intact.")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint, or a bundle.")],
    as_: As = "",
    allow: Allow = None,
    entry: Entry = None,
    accept_license: AcceptLicense = False,
) -> None:
    """Import a checkpoint (converted to our format) or a bundle into the cache of weights."""
    from tetravit.weights import store
    from tetravit.weights.bundle import unbundle

    if not as_:
        if file.suffix not in (".zip", ".tar"):
            raise ValueError(f"{file} needs a name: `tetravit weights import {file} --as NAME.TAG`.")
        for name in unbundle(file):
            print(name)
        return
    print(_convert(file, as_, store.imported(as_), allow or (), entry, accept_license))


def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A weights file in our format.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Created where it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Publish weights on the Hugging Face hub with a model card; load them as hf:OWNER/NAME."""
    from tetravit.weights import hub

    print(hub.push(file, repository, private=private))


def export_dino(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a self-supervised run.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE")] = Path("checkpoint.pth"),
) -> None:
    """Write a self-supervised run as the checkpoint of the DINO code: student, teacher, heads, centre."""
    from tetravit.runs.authors import write_authors

    done = write_authors(run, out)
    say(f"{run} after step {done:,} as the DINO code saves it")
    print(out)


def convert(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A file, a folder, NAME.TAG, a URL or hf:OWNER/NAME.")
    ],
    as_: As,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: NAME.TAG.safetensors here.")
    ] = None,
    to: Annotated[
        str, typer.Option(metavar="LAYOUT", help="Layout of the tensor names: ours, official or timm.")
    ] = "ours",
    allow: Allow = None,
    entry: Entry = None,
    accept_license: AcceptLicense = False,
) -> None:
    """Convert weights of any layout to our format, or to the authors' or timm's; report on every tensor."""
    target = out or Path(f"{as_}.safetensors" if to == "ours" else f"{as_}.{to}.pth")
    print(_convert(file, as_, target, allow or (), entry, accept_license, to))


def _convert(
    source: str | Path,
    name: str,
    target: Path,
    allow: Any,
    entry: str | None,
    accept_license: bool,
    to: str = "ours",
) -> Path:
    """Read `source` as the weights `name`, report, write `target`."""
    import torch

    from tetravit.models import create_model, resolve
    from tetravit.models.create import class_names
    from tetravit.weights import CHECKPOINTS
    from tetravit.weights import convert as work
    from tetravit.weights.read import load_into
    from tetravit.weights.store import check_license, imported

    imported(name)  # checks the form NAME.TAG
    model_name = resolve(name.split(".")[0])
    resolved = work.find(source, accept_license=accept_license)
    row = CHECKPOINTS.get(name)
    if row:
        if row.task not in ("classify", "embed"):
            raise ValueError(f"{name} is not a classifier; convert reads classifiers and their backbones.")
        check_license(row, accept=accept_license)
        resolved = work.ResolvedWeights(
            resolved.where, resolved.row or row, resolved.source, resolved.config, resolved.header
        )
    _, options = resolved.model or (model_name, {})
    state = work.state_of(resolved, entry)
    options = {"num_classes": work.num_classes(state), **options}
    with torch.device("meta"):
        model = create_model(model_name, **options)
    report = load_into(model, state, allow=allow)
    say(f"{source} as {name}")
    say(str(report))
    if to != "ours":
        work.write_as(target, model, to)
        return target
    classes = options.pop("num_classes")
    names = class_names(resolved)
    header = work.header_for(
        resolved, model_name, classes, options=options, class_names=names if len(names) == classes else ()
    )
    work.write(target, model, header)
    return target


def _row(row: Any, here: bool) -> dict[str, Any]:
    return {
        "name": row.name,
        "model": row.model,
        "tag": row.tag,
        "task": row.task,
        "head": row.head,
        "num_classes": row.num_classes,
        "data": row.data,
        "published": dict(row.published),
        "published_in": row.published_in,
        "measured": dict(row.measured),
        "measured_by": row.measured_by,
        "licence": row.licence,
        "commercial": row.commercial,
        "urls": [source.url for source in row.sources],
        "here": here,
    }


VERBS = {"convert": convert}
GROUPS = {
    "weights": Group(
        "Published weights: list, fetch, bundle for a machine without a network, verify, import, push, export-dino.",
        {
            "list": list_,
            "fetch": fetch,
            "bundle": bundle,
            "verify": verify,
            "import": import_,
            "push": push,
            "export-dino": export_dino,
        },
    )
}
