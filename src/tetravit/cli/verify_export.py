"""`tetravit verify-export`: repeat the comparison of an exported file with its model."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tetravit.cli.base import Trust, print_rows, print_table, say


def verify_export(
    file: Annotated[Path, typer.Argument(help="A file that `tetravit export` wrote; of OpenVINO the .xml.")],
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Compare on the images of this folder, with the model."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS", help="The weights it was exported from; those that the certificate names."
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="FILE.certificate.json, beside the file.")
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Of int8: the images it was calibrated on, where they are not at their place.",
        ),
    ] = None,
    trust: Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check an exported file against its certificate and compare it with its model again.

    Without the weights its outputs for drawn scenes are compared with those that the certificate holds. Of int8 the
    predictions for the images held out of calibration are compared too, and the speed beside bfloat16. The table says
    what was not repeated. Exit code 1 where it differs by more than the certificate allows.
    """
    from tetravit.exports import verify_export as verify
    from tetravit.exports.parts.certificate import NOT_REPEATED

    done = verify(
        file, images=images, weights=weights, certificate=certificate, trust=trust, calibrate=calibrate
    )
    for note in done.notes:
        say(f"tetravit verify-export: {note.rstrip('.')}.")
    if as_json:
        rows = {row.name: {"certificate": row.certificate, "here": row.here} for row in done.rows}
        print_rows([{"file": str(done.file), "weights": done.weights, "problem": done.problem, "rows": rows}])
    else:
        print_table(["", "certificate", "here"], [list(asdict(row).values()) for row in done.rows])
        skipped = [row.name for row in done.rows if row.here == NOT_REPEATED]
        if skipped:
            say(f"tetravit verify-export: not repeated: {'; '.join(skipped)}.")
    if done.problem:
        say(f"tetravit verify-export: {done.problem}.")
        raise typer.Exit(1)
    if not as_json:
        with_what = f"the weights {done.weights}" if done.weights else "the recorded outputs"
        say(f"{done.file} is the file of its certificate and agrees with {with_what}.")


VERBS = {"verify-export": verify_export}
