"""Run the notebooks of docs/notebooks, keep what a reader needs of their outputs, and show them as pages of the site.

    python docs/notebook.py               run all, and write their outputs; minutes
    python docs/notebook.py explain       one

Needs nbclient and ipykernel. What is written has no times, no paths and no messages: printed text and pictures alone.
The cell with the tag `parameters` says how long things take; papermill and the tests give others.
"""

import base64
import io
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "notebooks"
KEPT = ("image/png", "text/plain")
TIMEOUT_S = 1800


def read(path: Path) -> dict[str, Any]:
    """A notebook as JSON."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def with_parameters(notebook: dict[str, Any], values: Mapping[str, object]) -> dict[str, Any]:
    """The notebook with other values in its cell of parameters, lines `NAME = VALUE`.

    Raises:
        ValueError: if the cell has no such name.
    """
    (cell,) = (c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", ()))
    lines = source(cell).splitlines()
    for name, value in values.items():
        places = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
        if not places:
            raise ValueError(f"The notebook has no parameter {name!r}.")
        lines[places[0]] = f"{name} = {value!r}"
    cell["source"] = "\n".join(lines).splitlines(keepends=True)
    return notebook


def execute(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook after all of its cells ran in a folder.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    loaded = nbformat.reads(json.dumps(notebook), as_version=4)
    client = NotebookClient(
        loaded, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return dict(client.execute())


def cleaned(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook without what differs from run to run: counts, messages, forms other than text and PNG."""
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        kept = {"id": f"cell-{number}", "cell_type": cell["cell_type"], "metadata": {}}
        if tags := cell["metadata"].get("tags"):
            kept["metadata"] = {"tags": list(tags)}
        kept["source"] = source(cell).splitlines(keepends=True)
        if cell["cell_type"] == "code":
            kept |= {"execution_count": None, "outputs": [o for o in map(_output, cell["outputs"]) if o]}
        cells.append(kept)
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _output(output: Mapping[str, Any]) -> dict[str, Any] | None:
    if output["output_type"] == "stream":
        if output["name"] != "stdout":
            return None
        return {
            "output_type": "stream",
            "name": "stdout",
            "text": "".join(output["text"]).splitlines(keepends=True),
        }
    if "<progress" in "".join(
        output.get("data", {}).get("text/html", "")
    ):  # a bar, which differs from run to run
        return None
    data = {kind: output["data"][kind] for kind in KEPT if kind in output.get("data", {})}
    if "image/png" in data:
        data = {"image/png": _small("".join(data["image/png"])), "text/plain": ["picture"]}
    return {"output_type": "display_data", "data": data, "metadata": {}} if data else None


def _small(png: str) -> str:
    """A picture in at most 128 colours, base64; one that has a palette stays as it is."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        if image.mode == "P":
            return png.strip()
        buffer = io.BytesIO()
        image.convert("RGB").quantize(128).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def page(path: Path, folder: Path) -> str:
    """A notebook as Markdown; its pictures are written into the folder."""
    lines = [f"*Notebook: `docs/notebooks/{path.name}`.*", ""]
    for number, cell in enumerate(read(path)["cells"]):
        if cell["cell_type"] == "markdown":
            lines += [source(cell), ""]
            continue
        lines += ["```python", source(cell), "```", ""]
        for place, output in enumerate(cell["outputs"]):
            if "image/png" in output.get("data", {}):
                file = folder / f"{path.stem}-{number}-{place}.png"
                file.write_bytes(base64.b64decode(output["data"]["image/png"]))
                lines += [f"![Output of the cell above]({file.name})", ""]
            else:
                text = output.get("text") or output["data"]["text/plain"]
                lines += ["```text", "".join(text).rstrip("\n"), "```", ""]
    heading = next(i for i, line in enumerate(lines) if line.startswith("# "))
    return "\n".join([lines[heading], "", *lines[:heading], *lines[heading + 1 :]])


def write(notebook: dict[str, Any], path: Path) -> None:
    path.write_text(
        json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as place:
            file = FOLDER / f"{name}.ipynb"
            write(cleaned(execute(read(file), Path(place))), file)
            print(f"{name}: done")
