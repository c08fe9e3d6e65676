"""`tetravit embed` writes the features of images."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.cli.embed import embed
from tetravit.models import create_model, save


@pytest.fixture
def given(tmp_path):
    torch.manual_seed(0)
    model = create_model("xcit_nano_12_p8", num_classes=0, image_size=32, depth=1, dim=32).eval()
    save(model, tmp_path / "w.safetensors")
    for i in range(3):
        Image.new("RGB", (40, 36), (80 * i, 10, 200)).save(tmp_path / f"{i}.png")
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    with torch.inference_mode():
        wanted = torch.cat([model.backbone(model.preprocess(f)[None]) for f in files]).numpy()
    return str(tmp_path / "w.safetensors"), files, wanted


def test_npz(given, tmp_path):
    weights, files, wanted = given
    embed(weights, files, out=tmp_path / "f.npz", batch=2, device="cpu")
    with np.load(tmp_path / "f.npz") as found:
        np.testing.assert_allclose(found["features"], wanted, atol=1e-5)
        assert found["names"].tolist() == files


def test_csv(given, tmp_path):
    weights, files, wanted = given
    embed(weights, files, out=tmp_path / "f.csv", batch=8, device="cpu")
    with open(tmp_path / "f.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[:2] == ["name", "f0"]
    np.testing.assert_allclose([[float(v) for v in row[1:]] for row in rows], wanted, atol=1e-5)


def test_parquet(given, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    weights, files, wanted = given
    embed(weights, files, out=tmp_path / "f.parquet", batch=2, device="cpu")
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["name", *(f"f{i}" for i in range(32))]
    assert table.column("name").to_pylist() == files
    found = np.stack([table.column(f"f{i}").to_numpy() for i in range(32)], axis=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_parquet_without_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError) as error:
        embed("w.safetensors", ["x.png"], out=tmp_path / "f.parquet")
    assert str(error.value) == "A .parquet file needs the extra: pip install 'tetravit[parquet]'."


def test_another_ending(given, tmp_path):
    weights, files, _ = given
    with pytest.raises(ValueError) as error:
        embed(weights, files, out=tmp_path / "f.txt")
    assert str(error.value) == f"embed writes .npz, .csv, .parquet; got '{tmp_path}/f.txt'."
