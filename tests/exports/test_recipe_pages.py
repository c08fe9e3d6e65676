"""docs/tensorrt.md: the shapes of its commands are those that exported files take."""

import re
from pathlib import Path
from types import SimpleNamespace

from tetravit.backbones import VARIANTS
from tetravit.heads.base import Head
from tetravit.models import Detector, family
from tetravit.models.portable import Portable

TEXT = (Path(__file__).parents[2] / "docs" / "tensorrt.md").read_text()
LINES = re.findall(r"trtexec --onnx=\S+[^`\n]*--minShapes=[^`\n]*", TEXT)


def shapes(line, which):
    """Input -> sizes, of `--minShapes=images:1x3x64x64,sizes:1x2`."""
    (text,) = re.findall(rf"--{which}Shapes=(\S+)", line)
    return {name: [int(n) for n in sizes.split("x")] for name, sizes in re.findall(r"(\w+):([\dx]+)", text)}


def test_every_family_has_a_line():
    names = re.findall(r"--onnx=(\w+)\.onnx", "\n".join(LINES))
    assert {family(name) for name in names if name in VARIANTS} == {family(name) for name in VARIANTS}


def test_shapes_are_those_that_files_take():
    assert len(LINES) == 8
    for line in LINES:
        model = Detector if "detector" in line else Portable
        found = [shapes(line, which) for which in ("min", "opt", "max")]
        assert all(tuple(row) == model.program_inputs for row in found), line
        for row in found:
            batch, channels, height, width = row["images"]
            assert channels == 3
            sides = model.program_sides.fget(SimpleNamespace(head=Head))  # the least that all heads take
            assert {height, width} <= set(sides), line
            assert row.get("sizes", [batch, 2]) == [batch, 2]
        columns = list(zip(*(row["images"] for row in found), strict=True))
        assert all(tuple(sorted(column)) == column for column in columns), line
