"""Tar shards: packed from files of every kind, read by other programs, indexed for those of others; faults stop."""

import json
import multiprocessing
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.test_audit import photo

from tetravit.cli.app import main
from tetravit.data import storage
from tetravit.data.build import build_dataset
from tetravit.data.config import DataConfig
from tetravit.data.layouts import write_shapes
from tetravit.data.loader import make_train_loader
from tetravit.data.permutation import Permutation
from tetravit.data.shards import pack as packing
from tetravit.data.shards.index import ROW, read_meta
from tetravit.data.shards.pack import pack, parse_size
from tetravit.data.shards.scan import index_shards, part_of_shard, scan_shard
from tetravit.data.shards.source import ShardSource
from tetravit.data.storage import StorageError
from tetravit.data.storage.base import Tries


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    for _ in write_shapes(root, train=24, val=6, size=64):
        pass
    return root


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(storage.base, "TRIES", Tries(count=5, seconds=0.5, pause=0.001))


def dataset(root, split="train", **keys):
    return build_dataset(DataConfig(**{"name": "shards", "root": root, "batch_size": 1} | keys), split)


def packed(source, folder, **options):
    pack(source, folder, shard_size=64_000, workers=1, **options)
    return folder


def tree(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}


@pytest.mark.slow
def test_classes_are_packed_the_same_every_time_and_read_alike(drawn, tmp_path):
    a, b = packed(drawn / "folders", tmp_path / "a"), tmp_path / "b"
    pack(drawn / "folders", b, shard_size=64_000, workers=2)
    assert tree(a) == tree(b)
    assert len(list(a.glob("train-*.tar"))) > 1
    assert (a / "train.index").stat().st_size == 24 * ROW.itemsize == 24 * 24
    for split in ("train", "val"):
        files = build_dataset(DataConfig(name="image_folder", root=drawn / "folders", batch_size=1), split)
        shards = dataset(a, split)
        assert shards.class_names == tuple(files.class_names)
        by_key = {files.key(i).rpartition(".")[0]: i for i in range(len(files))}
        assert len(shards) == len(files)
        for i in range(len(shards)):
            other = files[by_key[shards.key(i).rpartition(".")[0]]]
            sample = shards[i]
            assert torch.equal(sample.image, other.image)
            assert sample.target == other.target == shards.labels[i]
        assert shards[0].name == f"{a}/{split}-000000.tar/{shards.key(0)}"
    assert [files.key(i) for i in range(3)] == [shards.key(i) for i in range(3)]  # val is not mixed


def test_other_programs_read_them(drawn, tmp_path):
    folder = packed(drawn / "folders", tmp_path / "a")
    counts = 0
    for file in sorted(folder.glob("train-*.tar")):
        with tarfile.open(file) as tar:
            names = tar.getnames()
            assert all(info.mtime == 0 for info in tar)
            counts += sum(name.endswith(".jpg") for name in names)
            image = next(info for info in tar if info.name.endswith(".jpg"))
            assert Image.open(tar.extractfile(image)).size == (64, 64)
    assert counts == 24
    webdataset = pytest.importorskip("webdataset")
    urls = [str(file) for file in sorted(folder.glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "cls"))
    assert [label for _, label in samples] == dataset(folder).labels.tolist()
    assert samples[0][0].size == (64, 64)


def test_objects_and_label_maps(drawn, tmp_path):
    for name, row in (("coco", "coco"), ("ade20k", "ade20k")):
        folder = packed(drawn / name, tmp_path / name, name=row)
        for split in ("train", "val"):
            files = build_dataset(DataConfig(name=row, root=drawn / name, batch_size=1), split)
            shards = dataset(folder, split, name=row)  # found by the root
            keys = [files.key(i).rpartition("/")[2].partition(".")[0] for i in range(len(files))]
            assert shards.class_names == files.class_names
            for i in range(len(shards)):
                sample = shards[i]
                other = files[keys.index(shards.key(i).rpartition("/")[2].partition(".")[0])]
                assert torch.equal(sample.image, other.image)
                if name == "ade20k":
                    assert torch.equal(sample.target, other.target)
                    continue
                for field in ("boxes", "labels", "masks", "crowd", "area"):
                    assert torch.equal(getattr(sample.target, field), getattr(other.target, field)), field
                assert sample.target.image_id == other.target.image_id
            assert len(shards) == len(files)


def test_images_alone_and_yolo(drawn, tmp_path):
    (tmp_path / "plain").mkdir()
    for i in range(3):
        photo(i).save(tmp_path / "plain" / f"{i}.v2.png")
    shutil.copy(tmp_path / "plain" / "0.v2.png", tmp_path / "plain" / "0_v2.png")  # one key for two images
    folder = packed(tmp_path / "plain", tmp_path / "a")
    shards = dataset(folder)
    assert {shards.key(i) for i in range(4)} == {"0_v2-0.png", "0_v2-1.png", "1_v2.png", "2_v2.png"}
    assert shards.info.kind == "unlabelled"
    assert shards[0].target is None
    yolo = tmp_path / "yolo"
    (yolo / "images" / "train").mkdir(parents=True)
    (yolo / "labels" / "train").mkdir(parents=True)
    (yolo / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    photo(1, (80, 60)).save(yolo / "images" / "train" / "1.jpg")
    (yolo / "labels" / "train" / "1.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    target = dataset(packed(yolo, tmp_path / "b"))[0].target
    assert target.boxes.tolist() == [[30.0, 15.0, 50.0, 45.0]]
    assert target.labels.tolist() == [1]


def test_shards_of_others(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    long = "n01440764/" + "x" * 120

    def add(tar, name, data):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, __import__("io").BytesIO(data))

    def jpeg(seed):
        buffer = __import__("io").BytesIO()
        photo(seed).save(buffer, "jpeg")
        return buffer.getvalue()

    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        with tarfile.open(folder / f"imagenet-train-{number}.tar", "w", format=form) as tar:
            for i in range(2):
                add(tar, f"{long}{number}{i}.cls", str(i).encode())
                add(tar, f"{long}{number}{i}.jpg", jpeg(2 * number + i))
    meta = index_shards(str(folder), workers=1)
    assert (meta.kind, meta.class_names, meta.count("train")) == ("classify", ("0", "1"), 4)
    shards = dataset(folder)
    assert [shards.key(i) for i in range(4)] == [f"{long}{n}{i}.jpg" for n in (0, 1) for i in (0, 1)]
    assert [shards[i].target for i in range(4)] == [0, 1, 0, 1]
    names = [
        "train-0.tar",
        "val/0.tar",
        "imagenet-val-000001.tar",
        "trainer.tar",
        "validation_1.tar",
        "0.tar",
    ]
    assert [part_of_shard(name) for name in names] == ["train", "val", "val", "train", "val", "train"]
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "a.tar").write_bytes(b"\x1f\x8b0000")
    with pytest.raises(ValueError) as error:
        index_shards(str(tmp_path / "z"), workers=1)
    assert str(error.value) == (
        f"{str(tmp_path / 'z' / 'a.tar')!r} is compressed; shards are plain tar files: their images are read one by"
        " one."
    )
    whole = (folder / "imagenet-train-0.tar").read_bytes()
    (tmp_path / "z" / "a.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="breaks off"):
        index_shards(str(tmp_path / "z"), workers=1)


def test_packing_goes_on_where_it_was_cut(drawn, tmp_path, monkeypatch):
    whole = packed(drawn / "folders", tmp_path / "whole")
    cut, count = tmp_path / "cut", [0]
    write = packing._write_shard

    def killed(job):
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        write(job)

    monkeypatch.setattr(packing, "_write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        packed(drawn / "folders", cut)
    assert not (cut / "shards.json").exists()
    first = (cut / "train-000000.tar").stat().st_mtime_ns
    packed(drawn / "folders", cut)
    assert (cut / "train-000000.tar").stat().st_mtime_ns == first
    assert tree(cut) == tree(whole)
    packed(drawn / "folders", cut)  # all is there
    with pytest.raises(ValueError) as error:
        pack(drawn / "folders", cut, shard_size=70_000)
    assert str(error.value) == (
        f"{str(cut)!r} holds other shards, or the data or options have changed since; take another folder, or"
        " remove it."
    )
    with pytest.raises(ValueError, match="Shards are written outside of the data"):
        pack(drawn / "folders", drawn / "folders" / "x")


@pytest.mark.slow
def test_wrong_bytes_and_a_lost_shard_stop_the_run_and_are_no_bad_images(drawn, tmp_path):
    folder = packed(drawn / "folders", tmp_path / "a")
    shard = folder / "train-000000.tar"
    row = dataset(folder).source.rows[0]
    data = bytearray(shard.read_bytes())
    data[int(row["offset"]) + 100] ^= 1
    shard.write_bytes(data)
    message = f"Cannot read {shard} after 5 tries (its bytes are not those of the index)."
    with pytest.raises(StorageError) as error:
        dataset(folder)[0]
    assert str(error.value) == message
    config = DataConfig(
        name="shards", root=folder, batch_size=24, image_size=32, on_bad="skip", bad_limit=1.0, workers=0
    )
    for workers in (0, 1):
        loader = make_train_loader(config.model_copy(update={"workers": workers}), seed=0)
        with pytest.raises(StorageError) as error:
            next(loader.batches())
        assert str(error.value) == message
        assert loader.bad == {}
        loader.close()
    shard.unlink()
    with pytest.raises(
        StorageError, match=r"^Cannot read .*train-000000.tar \(no such file or directory\)\.$"
    ):
        dataset(folder)[0]


def test_a_copy_in_another_process_reads(drawn, tmp_path):
    source = ShardSource(str(packed(drawn / "folders", tmp_path / "a")), "train")
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 5_000
    assert copy.read(3) == source.read(3)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(source.read, range(24)) == [source.read(i) for i in range(24)]


@pytest.mark.slow
def test_commands(drawn, tmp_path, capsys):
    with pytest.raises(SystemExit) as code:
        main(["data", "pack", str(drawn / "folders"), "--to", str(tmp_path / "a"), "--shard-size", "64KB"])
    assert code.value.code == 0
    count = len(list((tmp_path / "a").glob("*.tar")))
    said = f"24 train and 6 val images to classify in {count} shards"
    assert capsys.readouterr().err == f"Packed {said} into {tmp_path / 'a'}.\n"
    assert all(len(s.sha256) == 64 for s in read_meta(str(tmp_path / "a")).parts["train"])
    before = (tmp_path / "a" / "train.index").read_bytes()
    names = "\n".join(read_meta(str(tmp_path / "a")).class_names)
    (tmp_path / "a" / "classes.txt").write_text(f"\ufeff{names}", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["data", "index", str(tmp_path / "a")])
    assert capsys.readouterr().err == f"Indexed {said} in {tmp_path / 'a'}.\n"
    assert (tmp_path / "a" / "train.index").read_bytes() == before
    for text, size in (("256MB", 256_000_000), ("1GiB", 2**30), ("64000", 64_000), ("0.5 gb", 5 * 10**8)):
        assert parse_size(text) == size
    with pytest.raises(ValueError) as error:
        parse_size("1KB")
    assert str(error.value) == "A size of shards is 64KB or more, such as 256MB or 1GiB; got '1KB'."


def test_messages(drawn, tmp_path):
    folder = packed(drawn / "coco", tmp_path / "a", name="coco")
    with pytest.raises(ValueError) as error:
        dataset(tmp_path, name="shards")
    assert str(error.value) == (
        f"There is no shards.json in {str(tmp_path)!r}. `tetravit data index {tmp_path}` makes one for tar files."
    )
    from tetravit.data.datasets.shards import Shards

    with pytest.raises(ValueError) as error:
        Shards(folder, "train")
    assert (
        str(error.value)
        == f"The shards in {str(folder)!r} are to detect: data.name=shards_detect reads them."
    )
    with pytest.raises(ValueError) as error:
        dataset(folder, "test")
    assert str(error.value) == f"The shards in {str(folder)!r} have no part 'test'; they have train, val."


@pytest.mark.parametrize("size", [1, 2, 3, 10, 257, 5000])
def test_a_permutation_without_a_table(size):
    for key in (0, 1, 2**70):
        drawn = [Permutation(size, key)(i) for i in range(size)]
        assert sorted(drawn) == list(range(size))
    if size == 5000:
        assert [Permutation(size, 7)(i) for i in range(4)] == [Permutation(size, 7)(i) for i in range(4)]
        moved = np.array(drawn)
        assert abs(np.corrcoef(moved, np.arange(size))[0, 1]) < 0.05
        assert abs(np.corrcoef(moved[1:], moved[:-1])[0, 1]) < 0.05


def test_scans_are_kept_until_the_index_is_written(drawn, tmp_path):
    folder = packed(drawn / "folders", tmp_path / "a")
    assert not list(folder.glob(".*.rows"))
    file = str(folder / "val-000000.tar")
    first = scan_shard(file)
    kept = folder / ".val-000000.tar.rows"
    assert kept.exists()
    assert scan_shard(file)["sha256"] == first["sha256"]
    kept.write_bytes(b"cut")
    assert np.array_equal(scan_shard(file)["rows"], first["rows"])
    assert json.dumps(first["labels"])
    assert os.path.exists(kept)
