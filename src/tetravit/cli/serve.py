"""`tetravit serve` and `tetravit explore`: models over HTTP, with a page to explore them."""

from typing import Annotated, Any

import typer

from tetravit.cli.base import AcceptLicense, optimized, say

Weights = Annotated[
    list[str],
    typer.Argument(
        metavar="WEIGHTS...", help="Run folders, weights files or published names; the first is the default."
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all addresses of this machine.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Optimize = Annotated[bool, typer.Option("--optimize", help="First find the fastest backend for each model.")]


def serve(
    weights: Weights,
    port: Annotated[int, typer.Option(help="Port; 0: any free port.")] = 8000,
    host: Host = "127.0.0.1",
    optimize: Optimize = False,
    max_batch: Annotated[int, typer.Option(metavar="N", help="Images per call of a model.")] = 8,
    wait_ms: Annotated[
        float, typer.Option(metavar="MS", help="Maximum wait for further images to fill a batch.")
    ] = 3,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact/--no-exact",
            help="Batch only if outputs are bitwise those of single images, or always.",
        ),
    ] = True,
    queue: Annotated[
        int, typer.Option(metavar="N", help="Maximum number of open requests; more get 503.")
    ] = 64,
    deadline_s: Annotated[float, typer.Option(metavar="S", help="Timeout of a request.")] = 30,
    max_body_mib: Annotated[float, typer.Option(metavar="MIB", help="Largest body.")] = 20,
    max_megapixels: Annotated[
        float, typer.Option(metavar="MP", help="Maximum image size, in million pixels.")
    ] = 50,
    device: Device = "auto",
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    accept_license: AcceptLicense = False,
) -> None:
    """Serve models over HTTP: predictions, tensors, and a page to explore them (extra `serve`)."""
    _serve(
        weights,
        limits={
            "body_mib": max_body_mib,
            "megapixels": max_megapixels,
            "queue": queue,
            "deadline_s": deadline_s,
            "max_batch": max_batch,
            "wait_ms": wait_ms,
        },
        host=host,
        port=port,
        device=device,
        exact=exact,
        accept_license=accept_license,
        optimized=optimized if optimize else None,
        browser=browser,
    )


def explore(
    weights: Weights,
    port: Annotated[int, typer.Option(help="Port; 0: any free port.")] = 0,
    host: Host = "127.0.0.1",
    optimize: Optimize = False,
    device: Device = "auto",
    accept_license: AcceptLicense = False,
) -> None:
    """Open a page that shows the predictions of models on your pictures (extra `serve`)."""
    _serve(
        weights,
        limits={},
        host=host,
        port=port,
        device=device,
        accept_license=accept_license,
        optimized=optimized if optimize else None,
        browser=True,
    )


def _serve(weights: list[str], *, limits: dict[str, Any], **options: Any) -> None:
    from tetravit.serve.limits import Limits
    from tetravit.serve.server import serve as run

    run(weights, limits=Limits(**limits), say=say, **options)


VERBS = {"serve": serve, "explore": explore}
