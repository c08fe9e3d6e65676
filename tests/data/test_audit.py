"""`tetravit data check`: each finding on files that have it, duplicates, leaks, labels; it continues when cut."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tetravit.cli.app import main
from tetravit.data.audit import check_data, duplicates
from tetravit.data.audit.facts import facts, fingerprint
from tetravit.data.decode import decode


def photo(seed, size=(64, 48), mode="RGB"):
    """A smooth random picture: noise of 8 x 6 pixels, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo") / "set"
    for part in ("train", "val"):
        for name in ("cat", "dog", "owl"):
            (root / part / name).mkdir(parents=True)
    for i in range(6):
        photo(i).save(root / "train" / ("cat", "dog")[i % 2] / f"{i}.jpg")
    photo(20).save(root / "val" / "cat" / "20.jpg")
    photo(21).save(root / "val" / "dog" / "21.jpg")
    cat = root / "train" / "cat"
    whole = (cat / "0.jpg").read_bytes()
    (cat / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (cat / "page.jpg").write_bytes(b"<!doctype html><title>404</title>")
    (cat / "empty.jpg").write_bytes(b"")
    (cat / "raw.heic").write_bytes(b"x")
    (cat / "album.jpg").mkdir()
    photo(30).save(cat / "album.jpg" / "in.png")
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(cat / "deep.png")
    photo(31).convert("CMYK").save(cat / "print.jpg")
    photo(32).save(cat / "film.gif", save_all=True, append_images=[photo(33)])
    photo(34, (16, 16)).save(cat / "icon.png")
    photo(35).save(cat / "wrong.jpg", "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(36).save(cat / "turned.jpg", exif=exif)
    shutil.copy(cat / "0.jpg", cat / "copy.jpg")
    shutil.copy(root / "train" / "dog" / "1.jpg", root / "val" / "dog" / "seen.jpg")
    photo(2).save(root / "val" / "cat" / "again.jpg", quality=40)
    return root


def by_name(audit):
    return {f.name: f for f in audit.findings}


def snapshot(root):
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*"))


def test_every_finding(zoo, tmp_path):
    before = snapshot(zoo)
    audit = check_data(zoo, tmp_path / "out", workers=2)
    found = by_name(audit)
    places = {name: [place for place, _ in f.places] for name, f in found.items()}
    cat = "train/cat/"
    assert places["truncated"] == [f"{cat}cut.jpg"]
    assert places["unreadable"] == [f"{cat}empty.jpg", f"{cat}page.jpg"]
    assert places["foreign"] == [f"{cat}raw.heic"]
    assert places["folder"] == [f"{cat}album.jpg"]
    assert places["deep"] == [f"{cat}deep.png"]
    assert places["cmyk"] == [f"{cat}print.jpg"]
    assert places["animated"] == [f"{cat}film.gif"]
    assert places["tiny"] == [f"{cat}icon.png"]
    assert places["wrong_ending"] == [f"{cat}wrong.jpg"]
    assert places["turned"] == [f"{cat}turned.jpg"]
    assert places["empty_class"] == ["train: owl", "val: owl"]
    assert found["duplicate"].places == [(f"{cat}copy.jpg", f"as {cat}0.jpg")]
    assert found["leak"].places == [("val/dog/seen.jpg", "as train/dog/1.jpg")]
    assert found["near_leak"].places == [("val/cat/again.jpg", f"as {cat}2.jpg")]
    assert "near_duplicate" not in found
    assert found["truncated"].level == "error"
    assert found["turned"].line() == (
        "1 images that EXIF turns; they are read upright; the first: train/cat/turned.jpg (orientation 6)"
    )
    assert snapshot(zoo) == before
    page = (tmp_path / "out" / "check.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 8
    assert json.loads((tmp_path / "out" / "check.json").read_text())["errors"] == audit.errors == 6


@pytest.mark.slow
def test_continues_when_cut_and_reads_changed_files_again(zoo, tmp_path):
    root, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(zoo, root)
    whole = check_data(root, out, workers=1)
    lines = (out / "records.jsonl").read_text().splitlines(keepends=True)
    (out / "records.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    again = check_data(root, out, workers=1)
    assert (whole.reused, again.reused) == (0, 5)
    assert again.row() == whole.row()
    photo(50).save(root / "train" / "cat" / "cut.jpg")
    mended = check_data(root, out, workers=1)
    assert mended.reused == mended.files - 1
    assert "truncated" not in by_name(mended)


@pytest.mark.slow
def test_command(zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as code:
        main(["data", "check", str(zoo), "--workers", "1"])
    assert code.value.code == 1
    out, err = capsys.readouterr()
    assert "error: 1 images that break off; the first: train/cat/cut.jpg" in out
    assert "files as image_folder: 6 errors. The report: check-set/check.html" in err
    clean = tmp_path / "clean"
    for i, folder in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (clean / folder).mkdir(parents=True)
        photo(60 + i).save(clean / folder / "1.png")
    with pytest.raises(SystemExit) as code:
        main(["data", "check", str(clean), "--workers", "1"])
    assert code.value.code == 0
    with pytest.raises(SystemExit) as code:
        main(["data", "check", str(clean), "--to", str(clean / "report")])
    assert code.value.code == 2
    assert (
        f"A check writes nothing into the data; {str(clean / 'report')!r} lies in" in capsys.readouterr().err
    )


def test_label_maps(tmp_path):
    root = tmp_path / "maps"
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / part).mkdir(parents=True)
    (root / "classes.txt").write_text("road\nsky\n")
    for i in range(3):
        photo(i, (40, 40)).save(root / "images" / "train" / f"{i}.jpg")
        Image.fromarray(np.arange(1600, dtype=np.uint8).reshape(40, 40) % 2).save(
            root / "labels" / "train" / f"{i}.png"
        )
    photo(9, (40, 40)).save(root / "images" / "val" / "9.jpg")
    odd = np.zeros((30, 40), np.uint8)
    odd[:3] = 7
    odd[3:9] = 1
    Image.fromarray(odd).save(root / "labels" / "val" / "9.png")
    found = by_name(check_data(root, tmp_path / "out", workers=1))
    assert found["values"].places == [("labels/val/9.png", "7: 10.0 % of its pixels")]
    assert found["size"].places == [("labels/val/9.png", "40 x 30, its image images/val/9.jpg 40 x 40")]
    assert "duplicate" not in found  # equal label maps are no duplicates


def test_boxes_that_a_loader_drops(tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    photo(1, (64, 64)).save(root / "train2017" / "1.jpg")
    row = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 100}
    boxes = [[0, 0, 10, 10], [5, 5, 0, 10], [100, 100, 5, 5]]
    table = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 64, "width": 64}],
        "annotations": [row | {"id": i, "bbox": box} for i, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(table))
    found = by_name(check_data(root, tmp_path / "out", workers=1))
    details = [detail for _, detail in found["labels"].places]
    assert "boxes with zero or negative sides, left out" in details
    assert "boxes outside their image, left out" in details
    assert [place for place, _ in found["empty_class"].places] == ["train: dog"]


def crash(root, jobs):
    """Stands for a decoder that ends its process at one file."""
    if any(path.endswith("1.jpg") for path, _, _ in jobs):
        os._exit(11)
    return [facts(root, path) for path, _, _ in jobs]


@pytest.mark.slow
def test_a_file_that_ends_its_process_is_named(tmp_path, monkeypatch):
    from tetravit.data.audit import check

    monkeypatch.setattr(check, "_chunk", crash)
    monkeypatch.setattr(check, "CHUNK", 2)
    for i in range(3):
        photo(i).save(tmp_path / f"{i}.jpg")
    jobs = [(f"{i}.jpg", None, None) for i in range(3)]
    records = sorted(
        (r for some in check._parallel(str(tmp_path), jobs, 2) for r in some), key=lambda r: r["path"]
    )
    assert [[name for name, _ in r["findings"]] for r in records] == [[], ["crash"], []]


@pytest.mark.slow
def test_near_duplicates_and_flat_images(tmp_path):
    looks, tints = [], []
    for seed in range(200):
        look, tint = fingerprint(decode_image(photo(seed, (96, 80))))
        looks.append(int(look, 16))
        tints.append(np.frombuffer(bytes.fromhex(tint), np.uint8))
    smaller = fingerprint(decode_image(photo(7, (96, 80)).resize((48, 40))))
    looks.append(int(smaller[0], 16))
    tints.append(np.frombuffer(bytes.fromhex(smaller[1]), np.uint8))
    assert duplicates.near(np.array(looks, np.uint64), np.stack(tints)) == [(7, 200)]
    assert fingerprint(decode_image(Image.new("RGB", (50, 50), "red"))) == ("", "")
    assert list(duplicates.exact(["a", "b", "a"])) == [[0, 2]]


def decode_image(picture):
    import io

    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return decode(buffer.getvalue())


def test_shards(zoo, tmp_path, monkeypatch):
    from tetravit.data import storage
    from tetravit.data.shards.pack import pack
    from tetravit.data.shards.source import ShardSource

    monkeypatch.setattr(storage.base, "TRIES", storage.base.Tries(count=2, pause=0.001))
    pack(zoo, tmp_path / "shards", shard_size=64_000, workers=1)
    source = ShardSource(str(tmp_path / "shards"), "train")
    shard = tmp_path / "shards" / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    largest = max((row for row in source.rows if row["shard"] == 0), key=lambda row: int(row["size"]))
    data[int(largest["offset"]) + 50] ^= 1
    shard.write_bytes(data)
    audit = check_data(tmp_path / "shards", tmp_path / "out", workers=1)
    found = by_name(audit)
    assert audit.layout.name == "shards"
    assert found["changed"].count == 1
    assert "its bytes are not those of the index" in found["changed"].places[0][1]
    assert found["unreadable"].count >= 1
    assert {place.partition("/")[0] for place, _ in found["leak"].places} == {"val"}
