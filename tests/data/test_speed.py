"""`tetravit data bench`, decoders that give the same pixels, and memory that workers share."""

import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.test_audit import photo

from tetravit.cli.app import main
from tetravit.data import decode as decoding
from tetravit.data import jpeg, stream
from tetravit.data.config import DataConfig
from tetravit.data.decode import BadImage, decode
from tetravit.data.loader import image_bytes, make_train_loader
from tetravit.data.speed import worker_counts


@pytest.mark.slow
def test_bench(capsys, monkeypatch):
    words = "data bench digits data.batch_size=32 --workers 0,1 --seconds 0.1"
    with pytest.raises(SystemExit) as code:
        main(words.split())
    assert code.value.code == 0
    out, err = capsys.readouterr()
    assert "stage" in out
    assert "decode" in out
    assert err.startswith("The slowest stage is ")
    assert "images/s." in err
    with pytest.raises(SystemExit):
        main([*words.split(), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["workers"] for row in rows if "workers" in row] == [0, 1]
    assert {row["name"] for row in rows if "name" in row} >= {"decode", "normalize", "collate"}
    assert [worker_counts(cores) for cores in (1, 2, 6)] == [[0, 1], [0, 1, 2], [0, 1, 2, 4, 6]]


def jpeg_bytes(picture, **options):
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", **options)
    return buffer.getvalue()


def test_decoders_give_the_same_pixels(monkeypatch):
    exif = Image.Exif()
    files = [
        jpeg_bytes(photo(i, (97, 61)), quality=q, subsampling=s)
        for i, (q, s) in enumerate(((95, 0), (60, 2), (80, 1)))
    ]
    files += [jpeg_bytes(photo(5, (64, 50)), progressive=True), jpeg_bytes(photo(6, (33, 47)).convert("L"))]
    for turn in range(2, 9):
        exif[0x0112] = turn
        files.append(jpeg_bytes(photo(turn, (40, 30)), exif=exif))
    monkeypatch.setenv("TETRAVIT_DECODER", "pillow")
    wanted, tried = [decode(file) for file in files], []
    for name, make in jpeg.DECODERS.items():
        try:
            assert jpeg.largest_difference(make()) <= jpeg.BOUND
        except ImportError:
            continue
        monkeypatch.setenv("TETRAVIT_DECODER", name)
        monkeypatch.setattr(decoding, "_with_pillow", None)
        tried.append(name)
        for one, other in zip(wanted, map(decode, files), strict=True):
            assert torch.equal(one, other), name
    assert tried


def test_a_decoder_with_other_pixels_is_not_used(monkeypatch, caplog):
    def wrong():
        return jpeg.Decoder("wrong", lambda data: whole(data) // 2, turns=True)

    def whole(data):
        return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)

    def missing():
        raise ImportError

    monkeypatch.setattr(jpeg, "DECODERS", {"missing": missing, "wrong": wrong})
    jpeg._chosen.cache_clear()
    assert jpeg.decoder() is None
    (line,) = caplog.messages
    assert line.startswith("JPEGs are not decoded by wrong: its pixels differ from Pillow's by up to ")
    for name, text in (
        ("other", "TETRAVIT_DECODER takes one of pillow, missing, wrong; got 'other'."),
        ("missing", "TETRAVIT_DECODER names missing, which is not installed here: pip install missing."),
    ):
        monkeypatch.setenv("TETRAVIT_DECODER", name)
        with pytest.raises(ValueError) as error:
            decode(jpeg_bytes(photo(1, (20, 20))))
        assert str(error.value) == text
    jpeg._chosen.cache_clear()


def test_pillow_decides_on_what_a_decoder_refuses():
    whole = jpeg_bytes(photo(1, (200, 150)))
    decoder = jpeg.decoder()
    assert decoder is None or decoder.decode(whole[: len(whole) // 2]) is None
    with pytest.raises(BadImage, match="truncated"):
        decode(whole[: len(whole) // 2])


def test_shared_memory(monkeypatch):
    room = 64_000_000
    monkeypatch.setattr(stream, "_shared_bytes", lambda: room)
    assert stream.prefetch(4, 0) == 4
    assert stream.prefetch(4, 2_000_000) == 4
    assert stream.prefetch(8, 3_000_000) == 2
    with pytest.raises(ValueError) as error:
        stream.prefetch(8, 156_250_000)
    assert str(error.value) == (
        "/dev/shm has 64 MB, workers need 2,500 MB; use --shm-size or data.workers=0."
    )
    with pytest.raises(ValueError, match=r"use --shm-size or data.workers=3\.$"):
        stream.prefetch(8, 10_000_000)
    assert [stream.fitting(8, size) for size in (0, 1 << 20, 10_000_000, 10**9)] == [8, 8, 3, 1]
    monkeypatch.setattr(stream, "_shared_bytes", lambda: None)
    assert stream.fitting(8, 10**9) == 8
    assert stream.prefetch(8, 1 << 20) == 4
    assert stream.prefetch(8, 200 << 20) == 2  # bounded in bytes
    config = DataConfig(name="digits", batch_size=64, image_size=32, workers=2)
    assert image_bytes(config, 64) == 4 * 3 * 32 * 32
    monkeypatch.setattr(stream, "_shared_bytes", lambda: 1000)
    with pytest.raises(ValueError, match=r"^/dev/shm has 0 MB, workers need 3 MB"):
        next(make_train_loader(config, seed=0).batches())


def test_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    from tetravit.data.datasets.hf import HuggingFace

    def rows(seeds):
        images = [{"bytes": jpeg_bytes(photo(i, (30, 20))), "path": None} for i in seeds]
        features = datasets.Features(
            {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        )
        return datasets.Dataset.from_dict({"img": images, "label": [i % 2 for i in seeds]}, features=features)

    datasets.DatasetDict({"train": rows(range(5)), "validation": rows(range(2))}).save_to_disk(tmp_path / "a")
    train, val = HuggingFace(tmp_path / "a", "train"), HuggingFace(tmp_path / "a", "val")
    assert (len(train), len(val), train.class_names) == (5, 2, ("cat", "dog"))
    assert train.labels.tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(train[3].image, decode(jpeg_bytes(photo(3, (30, 20)))))
    assert train[3].name == f"{tmp_path / 'a'}/train/3"
    (tmp_path / "b").mkdir()
    rows(range(4)).to_parquet(tmp_path / "b" / "train-00000-of-00001.parquet")
    other = HuggingFace(tmp_path / "b", "train")
    assert torch.equal(other[1].image, train[1].image)
    assert other.class_names == ("cat", "dog")
    with pytest.raises(ValueError) as error:
        HuggingFace(tmp_path / "a", "test")
    assert (
        str(error.value)
        == f"The data set in {str(tmp_path / 'a')!r} has no part 'test'; it has 'train', 'validation'."
    )
    with pytest.raises(ValueError) as error:
        HuggingFace(tmp_path / "a", "train", label="species")
    assert str(error.value) == (
        f"The data set in {str(tmp_path / 'a')!r} has the columns 'img', 'label'; data.options.label names the one of"
        " the labels."
    )
    assert np.dtype("int32") == train.labels.dtype
    assert os.path.isdir(train.folder)
