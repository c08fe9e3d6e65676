"""Files of torch.save, without trust: tensors come back, nothing runs, damage has a name."""

import argparse
import collections
import io
import os
import pickle
import random
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tetravit.weights.fileformat import BadFile
from tetravit.weights.pickles import Inert
from tetravit.weights.torchfile import load, named_tensors


class HistoryBuffer:
    """Stands for a class of a package that is not installed where the file is read."""

    def __init__(self):
        self.values = np.arange(3.0)


def checkpoint():
    base = torch.randn(6, 4)
    state = collections.OrderedDict(
        weight=nn.Parameter(base),
        turned=base.t(),
        row=base[2],
        half=torch.randn(3).half(),
        bf16=torch.randn(3).bfloat16(),
        steps=torch.tensor(7),
        mask=torch.tensor([True, False]),
        empty=torch.empty(0, 3),
        complex=torch.randn(2, dtype=torch.complex64),
    )
    state._metadata = {"": {"version": 1}}
    return {
        "model": state,
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, where=Path("x")),
        "best": np.float64(0.5),
        "curve": np.ones(3),
        "history": HistoryBuffer(),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "size": base.shape,
        "counts": collections.defaultdict(int, a=1),
        "names": {"a", "b"},
        "rng": np.random.RandomState(0),
    }


def save(value, path, form):
    torch.save(value, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.parametrize("form", ["zip", "row"])
def test_tensors_come_back_and_other_objects_become_records(tmp_path, form):
    expected = checkpoint()
    save(expected, tmp_path / "c.pth", form)
    contents = load(tmp_path / "c.pth")
    found = contents.value
    assert found["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        assert found["model"][name].dtype == tensor.dtype
        assert torch.equal(found["model"][name], tensor)
    assert found["epoch"] == 3
    assert found["size"] == (6, 4)
    assert found["counts"] == {"a": 1}
    assert isinstance(found["args"], Inert)
    assert repr(found["args"]) == "<argparse.Namespace>"
    assert found["args"].state["lr"] == 0.1
    assert "argparse.Namespace" in contents.inert
    assert any(name.endswith("HistoryBuffer") for name in contents.inert)


def test_a_zip_is_mapped_not_copied(tmp_path):
    save({"a": torch.zeros(1000), "b": torch.ones(1000)}, tmp_path / "c.pth", "zip")
    value = load(tmp_path / "c.pth").value
    assert value["a"].untyped_storage().data_ptr() == value["b"].untyped_storage().data_ptr()
    value["a"].fill_(5)
    assert load(tmp_path / "c.pth").value["a"].sum() == 0


def test_the_oldest_form(tmp_path):
    """A tar archive, written by hand as torch 0.1.9 did; torch's own reader agrees."""
    storages, tensors, main = io.BytesIO(), io.BytesIO(), io.BytesIO()
    numbers = torch.arange(6.0)
    pickle.dump(1, storages, 2)
    pickle.dump(("11", "cpu", torch.FloatStorage), storages, 2)
    storages.write(struct.pack("<q", 6) + numbers.numpy().tobytes())
    pickle.dump([("12", "11", 1, 4)], storages, 2)
    pickle.dump(2, tensors, 2)
    for key, storage, size, stride, offset in (("21", "11", (2, 3), (3, 1), 0), ("22", "12", (2,), (1,), 1)):
        pickle.dump((key, storage, torch.FloatTensor), tensors, 2)
        tensors.write(
            struct.pack("<ii", len(size), 0) + struct.pack(f"<{2 * len(size) + 1}q", *size, *stride, offset)
        )

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.key if isinstance(value, Key) else None

    class Key:
        def __init__(self, key):
            self.key = key

    Pickler(main, 2).dump({"a": Key("21"), "b": Key("22")})
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (("storages", storages), ("tensors", tensors), ("pickle", main)):
            member = tarfile.TarInfo(name)
            member.size = content.tell()
            archive.addfile(member, io.BytesIO(content.getvalue()))
    found = load(path).value
    assert torch.equal(found["a"], numbers.view(2, 3))
    assert torch.equal(found["b"], numbers[2:4])


def payloads(canary):
    """Twelve ways to have a reader run `touch CANARY`, and the name each is found by."""
    command = f"touch {canary}"

    class Call:
        def __init__(self, function, *args):
            self.call = function, args

        def __reduce__(self):
            return self.call

    def raw(text):
        return text.format(command=command, canary=canary).encode()

    array = np.empty(1, dtype=object)
    array[0] = Call(os.system, command)
    inner = io.BytesIO()
    torch.save(Call(os.system, command), inner)
    state = collections.OrderedDict(bias=Call(eval, f"open({str(canary)!r}, 'w')"))
    return {
        "system": (Call(os.system, command), "system"),
        "eval inside a state dict": ({"model": state}, "eval"),
        "exec": (Call(exec, f"open({str(canary)!r}, 'w')"), "exec"),
        "open": (Call(open, str(canary), "w"), "open"),
        "subprocess, a class": (
            Call(__import__("subprocess").Popen, ["touch", str(canary)]),
            "Popen",
        ),
        "torch.load inside": (Call(torch.load, str(canary)), "load"),
        "torch storage from bytes": (
            Call(torch.storage._load_from_bytes, inner.getvalue()),
            "_load_from_bytes",
        ),
        "object array": ({"a": array}, "system"),
        "protocol 0 text": (raw("cposix\nsystem\n(S'{command}'\ntR."), "system"),
        "old-style instance": (raw("(S'{command}'\nios\nsystem\n."), "system"),
        "getattr chain": (
            b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x02os\x8c\x06system\x93\x86R.",
            "getattr",
        ),
        "hidden behind partial": (Call(__import__("functools").partial, os.system, command), "system"),
        "unknown package": (raw("cevil.module\nrun_me\n(S'{command}'\ntR."), "run_me"),
    }


KINDS = list(payloads("x"))


@pytest.mark.parametrize("form", ["zip", "row", "bare"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_ever_run(tmp_path, kind, form):
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    payload, name = payloads(canary)[kind]
    code = payload if isinstance(payload, bytes) else None
    if form == "bare":
        path.write_bytes(code or pickle.dumps(payload))
    elif form == "zip":
        save({"weight": torch.ones(3)} if code else payload, path, form)
        if code:
            replace_pickle(path, code)
    else:
        save({} if code else payload, path, form)
        if code:
            path.write_bytes(path.read_bytes().replace(pickle.dumps({}, 2), code))
    with pytest.raises(BadFile) as error:
        load(path)
    asked = re.fullmatch(
        re.escape(str(path))
        + r" refers to '[\w.]+\.(\w+)', which no tensor needs; it was not read and nothing was executed\.",
        str(error.value),
    )
    assert asked is not None
    assert asked[1] == name
    assert not canary.exists()


def test_the_payloads_are_live(tmp_path):
    """Python's reader does run them: the tests above would notice."""
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(payloads(canary)["system"][0]))
    assert canary.exists()


def replace_pickle(path, code):
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, code if name.endswith("data.pkl") else content)


def storage(count, key="0"):
    return f"(S'storage'\nctorch\nFloatStorage\nS'{key}'\nS'cpu'\nI{count}\ntQ".encode()


def tensor(offset, size, stride, count=3, key="0"):
    size, stride = ("".join(f"I{n}\n" for n in dims) for dims in (size, stride))
    return (
        b"(S'w'\nctorch._utils\n_rebuild_tensor_v2\n("
        + storage(count, key)
        + f"I{offset}\n({size}t({stride}tI00\ncollections\nOrderedDict\n(tRtRd.".encode()
    )


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (tensor(0, (4,), (1,)), "a tensor larger than its storage"),
        (tensor(2, (2,), (1,)), "a tensor larger than its storage"),
        (tensor(0, (2, 2), (2, 1)), "a tensor larger than its storage"),
        (tensor(0, (10**12,), (0,)), "a tensor larger than its storage"),
        (tensor(0, (2,), (-1,)), "a tensor with a negative shape"),
        (tensor(-1, (2,), (1,)), "a tensor with a negative shape"),
        (tensor(0, (2,), (1,), count=4), "storage '0' is compressed or of another size"),
        (tensor(0, (2,), (1,), key="9"), "'x/data/9'"),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, code, cause):
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", code)
        archive.writestr("x/data/0", np.ones(3, np.float32).tobytes())
    with pytest.raises(BadFile, match=re.escape(cause)):
        load(path)


def test_a_well_made_pickle_of_the_same_kind_is_read(tmp_path):
    """The counterpart of the test above: it is the numbers that are refused, not the form."""
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", tensor(1, (2,), (1,)))
        archive.writestr("x/data/0", np.arange(3, dtype=np.float32).tobytes())
    assert load(path).value["w"].tolist() == [1.0, 2.0]


def test_keys_that_would_take_forever_to_hash_are_refused(tmp_path):
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}" + b")" + b"2\x86" * 60 + b"Ns.")
    with pytest.raises(BadFile, match="a nested key"):
        load(path)


@pytest.mark.parametrize("form", ["zip", "row"])
def test_every_truncation_is_noticed(tmp_path, form):
    path = tmp_path / "c.pth"
    save({"model": {"weight": torch.randn(100, 10), "bias": torch.randn(100)}}, path, form)
    whole = path.read_bytes()
    for k in range(64):
        path.write_bytes(whole[: len(whole) * k // 64])
        with pytest.raises(BadFile, match=re.escape(str(path))):
            load(path)


def test_a_flipped_bit_in_a_zip_names_the_tensor(tmp_path):
    path = tmp_path / "c.pth"
    save({"model": {"weight": torch.zeros(100, 10), "bias": torch.full((100,), 7.0)}}, path, "zip")
    whole = path.read_bytes()
    inside = whole.index(torch.full((100,), 7.0).numpy().tobytes()) + 33
    path.write_bytes(whole[:inside] + bytes([whole[inside] ^ 4]) + whole[inside + 1 :])
    with pytest.raises(BadFile) as error:
        load(path)
    assert str(error.value) == (
        f"{path} cannot be read: tensor 'model.bias' has changed since it was written (CRC-32)."
    )
    assert load(path, verify=False).value["model"]["weight"].sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "row"])
def test_random_damage_never_raises_anything_else(tmp_path, form):
    path, rng = tmp_path / "c.pth", random.Random(0)
    save(checkpoint(), path, form)
    whole = path.read_bytes()
    for _ in range(500):
        changed = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            load(path)
        except BadFile as error:
            assert str(error).startswith(str(path))  # noqa: PT017


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda p: p.write_bytes(b""),
            "it is no pickle, or a damaged one (pickle exhausted before seeing STOP)",
        ),
        (lambda p: p.write_text("<html>not found</html>"), "it is no pickle, or a damaged one"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "it is a pickle, but not one of torch.save"),
        (
            lambda p: zipfile.ZipFile(p, "w").writestr("a", "b"),
            "it is a zip archive, but not one of torch.save",
        ),
        (lambda p: tarfile.open(p, "w").close(), "it is a tar archive, but not one of torch.save"),
        (
            lambda p: program(p),
            "it is a TorchScript program; save the state dict of the module instead",
        ),
    ],
)
def test_other_files_are_named(tmp_path, make, text):
    path = tmp_path / "other.pth"
    make(path)
    with pytest.raises(BadFile, match=re.escape(f"{path} cannot be read: {text}")):
        load(path)


def program(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"N.")
        archive.writestr("m/constants.pkl", b").")


def test_named_tensors_gives_paths():
    value = {"a": {"b": [torch.ones(1)]}, "c": 3}
    assert [name for name, _ in named_tensors(value)] == ["a.b.0"]
