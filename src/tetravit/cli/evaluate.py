"""`tetravit evaluate`: score weights on a data set."""

from typing import Annotated, Any

import typer

from tetravit.cli.base import AcceptLicense, print_rows, print_table, progress, say
from tetravit.cli.base import optimized as optimized_form
from tetravit.registry import pick

SPLITS = ("val", "train", "test")
WIDE_SCORES = 6  # more scores than this get a separate table


def evaluate(
    weights: Annotated[str, typer.Argument(help="A run folder, a weights file, or a published name.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION.KEY=VALUE]...",
            help="Changes to the recipe of the weights, such as another data set.",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The protocol: accuracy, knn, ... (`tetravit list protocols`)."),
    ] = None,
    split: Annotated[str, typer.Option(help="val, train or test.")] = "val",
    batch: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images per call of the model.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also print the scores of each class.")
    ] = False,
    optimized: Annotated[
        bool, typer.Option("--optimize", help="First find the fastest backend for the model on this machine.")
    ] = False,
    accept_license: AcceptLicense = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Score weights on a data set."""
    pick(dict.fromkeys(SPLITS), split, "split")
    from tetravit.runs.evaluate import evaluate as score

    chosen = [f"evaluate.protocol={protocol}"] if protocol else []
    overrides = [*chosen, *(changes or []), *([f"data.val_batch_size={batch}"] if batch else [])]
    with progress("images") as advance:
        result = score(
            weights,
            overrides,
            split=split,  # type: ignore[arg-type]
            device=device,
            accept_license=accept_license,
            prepare=optimized_form if optimized else None,
            on_batch=advance,
        )
    for name, cause in result.bad.items():
        say(f"tetravit evaluate: {name}: {cause}; skipped.")
    for name, pixels in result.findings.get("unknown", {}).items():
        say(f"tetravit evaluate: {name}: {pixels} pixels have labels that are no class; they are left out.")
    for line in result.notes:
        say(f"tetravit evaluate: {line}.")
    classes = _classes(result.findings) if per_class else []
    if per_class and not classes:
        raise ValueError(f"The protocol measures nothing per class for {weights}; --per-class shows nothing.")
    row: dict[str, Any] = {
        "weights": result.weights,
        "data": result.data,
        "split": result.split,
        "images": result.images,
        **result.scores,
        "bad": len(result.bad),
        "seconds": round(result.seconds, 3),
        "images_per_s": round(result.images_per_s, 1),
        "device": result.device,
    }
    against: list[dict[str, Any]] = [
        {
            "score": r.score,
            "kind": r.kind,
            "by": r.by,
            "value": r.value,
            "gap": result.scores[r.score] - r.value,
        }
        for r in result.references
    ]
    whole = max((r.images for r in result.references), default=result.images)
    if result.images != whole:
        say(f"Others' figures are for all {whole} images of {result.data}; these are {result.images}.")
    if as_json:
        print_rows([{**row, **({"classes": classes} if per_class else {}), "references": against}])
        return
    shown = {**row, **{name: _share(name, value) for name, value in result.scores.items()}}
    shown |= {"seconds": f"{result.seconds:.1f}", "images_per_s": f"{result.images_per_s:.0f}"}
    apart = list(result.scores) if len(result.scores) > WIDE_SCORES else []
    columns = [name for name in shown if (name != "bad" or result.bad) and name not in apart]
    print_table(
        [name.replace("images_per_s", "images/s") for name in columns], [[shown[name] for name in columns]]
    )
    if apart:
        print_table(["score", "value"], [[name, shown[name]] for name in apart], right=["value"])
    if classes:
        heads = [name.replace("iou", "IoU") for name in classes[0]]
        cells = [[_cell(k, v) for k, v in c.items()] for c in classes]
        print_table(heads, cells, right=heads[1:])
    if against:
        print_table(
            ["score", "ours", "others", "gap", "", "by"],
            [
                [
                    r["score"],
                    _share(r["score"], result.scores[r["score"]]),
                    _share(r["score"], r["value"]),
                    f"{100 * r['gap']:+.2f}",
                    r["kind"],
                    r["by"],
                ]
                for r in against
            ],
            right=["ours", "others", "gap"],
        )


def _share(name: str, value: float) -> str:
    if name == "false_alarms":
        return f"{value:.2f}"
    return f"{value:.4f}" if name == "loss" else f"{100 * value:.2f} %"


def _cell(name: str, value: Any) -> Any:
    """A figure of a class: counts and names as they are, a threshold of probability, shares in percent."""
    if value is None or name in ("class", "pixels", "objects", "images"):
        return value
    return f"{value:.3f}" if name == "threshold" else f"{100 * value:.2f} %"


def _classes(findings: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per class; none if the findings have no classes."""
    if "classes" in findings:
        named = zip(findings["class_names"], findings["classes"], strict=True)
        return [{"class": name, **row} for name, row in named]
    if "iou" not in findings:
        return []
    columns = [findings[name] for name in ("class_names", "iou", "accuracy", "pixels")]
    return [
        dict(zip(("class", "iou", "accuracy", "pixels"), row, strict=True))
        for row in zip(*columns, strict=True)
    ]


VERBS = {"evaluate": evaluate}
