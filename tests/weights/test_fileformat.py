"""Our file: whole or absent, every changed byte named, no larger in memory than on disk."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from tetravit.structures import Preprocess
from tetravit.weights import fileformat
from tetravit.weights.fileformat import BadFile, Header, read, read_header, read_index, save

HEADER = Header(
    model="xcit_nano_12_p16",
    options={"image_size": [224, 320], "in_chans": 1},
    num_classes=2,
    class_names=("caf\u00e9", 'a "quoted" one'),
    preprocess=Preprocess(size=320, crop=1.0, mode="squash", mean=(0.5,), std=(0.25,)),
    recipe='[task]\nname = "classify"\n',
    licence="Apache-2.0",
    source="a test",
)


def tensors():
    dtypes = [d for d in fileformat.NAMES if d.is_floating_point or d == torch.bool or "int" in str(d)]
    made = {f"of.{d}": torch.arange(7).to(d) for d in dtypes}
    made["scalar"] = torch.tensor(3)
    made["empty"] = torch.empty(0, 4)
    made["turned"] = torch.randn(3, 4).t()
    made["channels_last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    made["part"] = torch.randn(10)[3:7]
    return made


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, tensors(), HEADER)
    return path


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.safetensors"
    save(
        path,
        {"head.weight": torch.randn(20, 10), "head.bias": torch.randn(20), "steps": torch.tensor(9)},
        HEADER,
    )
    return path


def test_what_was_saved_comes_back(file):
    save(file, made := tensors(), HEADER)
    found, header = read(file)
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert bytes(fileformat._bytes(found[name])) == bytes(fileformat._bytes(tensor.contiguous()))
    assert replace(header, sha256={}) == HEADER
    assert header == read_header(file)
    assert set(header.sha256) == set(made)


def test_safetensors_itself_reads_it(small):
    theirs, ours = safetensors.torch.load_file(small), read(small)[0]
    assert theirs.keys() == ours.keys()
    assert all(theirs[name].equal(ours[name]) for name in ours)


def test_the_same_weights_make_the_same_bytes(tmp_path):
    a, b = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int64)}, {}
    b["b"], b["a"] = a["b"], a["a"]
    save(tmp_path / "1", a, HEADER)
    save(tmp_path / "2", b, HEADER)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert read_header(tmp_path / "1").fingerprint == read_header(tmp_path / "2").fingerprint


def test_the_fingerprint_depends_on_names_shapes_and_values():
    x = torch.arange(6.0)
    variants = [{"a": x}, {"b": x}, {"a": x.view(2, 3)}, {"a": x + 1}, {"a": x.view(torch.int32)}]
    assert len({fileformat.fingerprint(fileformat.digests(v)) for v in variants}) == len(variants)


def test_writing_into_a_read_tensor_does_not_change_the_file(small):
    before = small.read_bytes()
    read(small)[0]["head.bias"].zero_()
    assert small.read_bytes() == before
    assert read(small)[0]["head.bias"].abs().sum() > 0


@pytest.mark.slow
def test_every_flipped_bit_is_noticed(small):
    """1000 of them, over the whole file; in the tensors the tensor is named."""
    whole, rng = small.read_bytes(), random.Random(0)
    start, index = 8 + int.from_bytes(whole[:8], "little"), read_index(small)
    damaged = small.with_name("damaged")
    for k in range(1000):
        bit = rng.randrange(8 * len(whole)) if k % 2 else rng.randrange(8 * start)
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(changed)
        with pytest.raises(BadFile, match=re.escape(str(damaged))) as error:
            read(damaged)
        if bit // 8 >= start:
            offset = bit // 8 - start
            name = next(n for n, (_, _, first, last) in index.tensors.items() if first <= offset < last)
            assert (
                str(error.value) == f"{damaged}: tensor {name!r} has changed since it was written (sha256)."
            )


def test_an_escape_spelled_otherwise_is_a_changed_header(small):
    """JSON reads \\u00e9 and \\u00E9 as the same letter; the file does not."""
    save(small, {"caf\u00e9": torch.ones(2)}, replace(HEADER, class_names=("a", "b")))
    damaged = small.with_name("damaged")
    before, after = small.read_bytes().rsplit(b"u00e9", 1)
    damaged.write_bytes(before + b"u00E9" + after)
    with pytest.raises(BadFile, match="the header has changed since it was written"):
        read(damaged)


def test_every_truncation_is_noticed(small):
    whole = small.read_bytes()
    damaged = small.with_name("damaged")
    for k in range(64):
        damaged.write_bytes(whole[: len(whole) * k // 64])
        with pytest.raises(BadFile, match=re.escape(str(damaged))):
            read(damaged, verify=False)


def test_messages(small, tmp_path):
    def message(path):
        with pytest.raises(BadFile) as error:
            read(path)
        return str(error.value)

    whole, path = small.read_bytes(), tmp_path / "x.safetensors"
    path.write_bytes(whole[:-5])
    assert message(path) == (
        f"{path} is truncated: {len(whole) - 5} bytes on disk, {len(whole)} by its header; copy or download it again."
    )
    path.write_bytes(whole[:100])
    start = 8 + int.from_bytes(whole[:8], "little")
    assert message(path) == (
        f"{path} is truncated: 100 bytes on disk, {start} by its header; copy or download it again."
    )
    path.write_bytes(whole + b"tail")
    assert message(path) == f"{path} has 4 bytes too many; it should have {len(whole)}."
    path.write_bytes(b"not a checkpoint at all")
    assert message(path) == f"{path} is not a safetensors file, or its header is damaged."
    path.write_bytes(b"")
    assert message(path) == f"{path} is not a safetensors file, or its header is damaged."
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    assert message(path) == (
        f"{path} is a safetensors file of another program; "
        f"`tetravit convert {path} --as NAME.TAG` makes it ours."
    )


def rewrite(path, change):
    """The file with another header, its checksums right: what another version of the program would write."""
    index = read_index(path)
    table = json.loads(index.metadata["tetravit"])
    change(table)
    shapes = {name: (kind, shape) for name, (kind, shape, _, _) in index.tensors.items()}
    path.write_bytes(
        fileformat._spell_header(fileformat._spell(table), shapes) + path.read_bytes()[8 + len(index.raw) :]
    )


def test_another_format_version_is_named(small):
    rewrite(small, lambda table: table.update(format=2))
    with pytest.raises(BadFile) as error:
        read(small)
    assert str(error.value) == f"{small} has format 2; this version of tetravit reads format 1."


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("model"),
        lambda t: t.update(extra=1),
        lambda t: t.update(recipe=3),
        lambda t: t.update(preprocess=7),
        lambda t: t["preprocess"].update(colour="red"),
    ],
)
def test_a_header_with_other_fields_is_named(small, change):
    rewrite(small, change)
    with pytest.raises(BadFile) as error:
        read(small)
    assert str(error.value) == f"{small}: the header is not one that tetravit writes."


def test_a_missing_tensor_is_noticed(small):
    rewrite(small, lambda t: t["sha256"].update({"gone": "00"}))
    with pytest.raises(BadFile) as error:
        read(small)
    assert str(error.value) == f"{small}: the list of tensors has changed since it was written (sha256)."


def test_tensors_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(ValueError) as error:
        save(tmp_path / "x", {"a": torch.eye(3).to_sparse()}, HEADER)
    assert str(error.value) == (
        "'a' cannot be written: it is a torch.float32 tensor with layout torch.sparse_coo."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(small, monkeypatch):
    before = small.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(small, {"a": torch.ones(3)}, HEADER)
    assert small.read_bytes() == before
    assert [p.name for p in small.parent.iterdir()] == [small.name]


def test_offsets_outside_the_file_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for offsets, shape in (([0, 4096], [1024]), ([-8, 0], [2]), ([0, 8], [-2]), ([4, 12], [2])):
        raw = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(16))
        with pytest.raises(BadFile):
            read_index(path)


MEMORY = """
import re, sys
import torch
from tetravit.weights import fileformat
def peak():  # not ru_maxrss: that begins with the size of the parent process
    return int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
fileformat.read(sys.argv[1])  # what is loaded once: threads, hashlib
before = peak()
read = fileformat.read(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_reading_and_verifying_holds_the_file_once(small, tmp_path):
    path = tmp_path / "large.safetensors"
    save(path, {f"w{i}": torch.randn(1024, 1024) for i in range(24)}, HEADER)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(small), str(path)], capture_output=True, text=True, check=True
    )
    used = int(done.stdout) / path.stat().st_size
    assert 0.5 < used <= 1.3  # it was read, and once


def test_digest_is_sha256_of_description_and_bytes():
    x = torch.tensor([1, 2], dtype=torch.uint8)
    assert fileformat.digest("n", x) == hashlib.sha256(b"n|U8|[2]|\x01\x02").hexdigest()
