"""A new engine for many images: one file."""

import pytest
from PIL import Image
from tests.dropped import package_with, python

pytestmark = pytest.mark.slow  # whole runs and other processes

ENGINE = '''
"""Units in the other order, in this process."""
from tetravit.bulk.base import Engine


def run(plan, units, settings, progress):
    from tetravit.bulk.parts.work import do_unit

    for unit in reversed(units):
        do_unit(plan, unit, settings.device)
    return f"{settings.options['greeting']}, {len(units)} units."


ENGINES = {"backwards": Engine("the last unit first", run, ("greeting",))}
'''

MODEL = """
from tetravit.models import create_model, save
save(create_model("xcit_nano_12_p16", num_classes=2, image_size=32, depth=1, dim=32), "w.safetensors")
"""


def test_one_file(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "package").mkdir()
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (40, 40), (80 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    package = package_with(tmp_path / "package", {"bulk/backwards.py": ENGINE})
    python(package, "-c", MODEL, cwd=tmp_path)
    words = (
        "embed w.safetensors --data images --to out --unit 2 --engine backwards --engine-option greeting=Done"
    )
    python(package, "-m", "tetravit", *words.split(), cwd=tmp_path)
    assert sorted(file.name for file in (tmp_path / "out").glob("*.parquet")) == [
        "000000.parquet",
        "000001.parquet",
    ]
