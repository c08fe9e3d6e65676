"""export --format web, without a browser: what is written, and what is refused; pictures prepared by JavaScript."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.data.preprocess import preprocess
from tetravit.exports import FOLDERS, check_folder, export, web
from tetravit.exports.parts import npm
from tetravit.exports.parts.npm import Package
from tetravit.models import create_backbone, create_model
from tetravit.structures import Preprocess

PACKAGE = Package("some-runtime", "1.2.3", {"dist/a.js": hashlib.sha256(b"code").hexdigest()})


def archive(path, version="1.2.3", name="some-runtime", code=b"code"):
    """A package of npm as `npm pack` writes it."""
    with tarfile.open(path, "w:gz") as file:
        for place, data in {
            "package/package.json": json.dumps({"name": name, "version": version}).encode(),
            "package/dist/a.js": code,
        }.items():
            member = tarfile.TarInfo(place)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def test_files_of_an_archive_a_folder_and_node_modules(tmp_path):
    packed = archive(tmp_path / "p.tgz")
    shutil.unpack_archive(packed, tmp_path)
    (tmp_path / "node_modules").mkdir()
    shutil.copytree(tmp_path / "package", tmp_path / "node_modules" / "some-runtime")
    for place in (packed, tmp_path / "package", tmp_path / "node_modules"):
        assert npm.files(PACKAGE, place) == npm.Files("1.2.3", {"dist/a.js": b"code"})


def test_the_named_version_is_verified_and_another_is_taken_as_it_is(tmp_path):
    with pytest.raises(ValueError) as caught:
        npm.files(PACKAGE, archive(tmp_path / "p.tgz", code=b"other"))
    assert str(caught.value) == (f"{tmp_path}/p.tgz: dist/a.js is not that of some-runtime@1.2.3 (sha256).")
    newer = archive(tmp_path / "n.tgz", version="1.3.0", code=b"newer")
    assert npm.files(PACKAGE, newer) == npm.Files("1.3.0", {"dist/a.js": b"newer"})


@pytest.mark.parametrize("what", ["nothing", "another", "no archive", "an empty folder"])
def test_something_else_is_not_the_package(tmp_path, what):
    place = tmp_path / "p.tgz"
    if what == "another":
        archive(place, name="other")
    if what == "no archive":
        place.write_text("hello")
    if what == "an empty folder":
        place.mkdir()
    with pytest.raises(ValueError) as caught:
        npm.files(PACKAGE, place)
    assert str(caught.value) == (
        f"{place} is not the npm package some-runtime: its folder, a node_modules with it or the .tgz of"
        " `npm pack some-runtime@1.2.3`."
    )


CURE = "On a connected machine: `npm pack some-runtime@1.2.3`; here: --runtime FILE.tgz."


def test_the_package_is_fetched_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path))
    monkeypatch.delenv("TETRAVIT_OFFLINE", raising=False)
    monkeypatch.setattr(npm.shutil, "which", lambda name: f"/bin/{name}")
    calls = []

    def run(command, **_):
        calls.append(command)
        archive(f"{command[-1]}/some-runtime-1.2.3.tgz")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(npm.subprocess, "run", run)
    for _ in range(2):
        assert npm.files(PACKAGE).contents == {"dist/a.js": b"code"}
    (command,) = calls
    assert command[:4] == ["/bin/npm", "pack", "some-runtime@1.2.3", "--silent"]
    assert [file.name for file in (tmp_path / "npm").iterdir()] == ["some-runtime-1.2.3.tgz"]


@pytest.mark.parametrize(
    ("offline", "program", "why"),
    [
        (True, "npm", ", and TETRAVIT_OFFLINE is set"),
        (False, None, ", and npm, which fetches it, is not installed"),
        (False, "npm", ", and cannot be fetched (npm error no such host)"),
    ],
)
def test_a_package_that_cannot_be_fetched(tmp_path, monkeypatch, offline, program, why):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path))
    monkeypatch.setenv("TETRAVIT_OFFLINE", "1" if offline else "0")
    monkeypatch.setattr(npm.shutil, "which", lambda _: program)
    failed = subprocess.CompletedProcess([], 1, "", "npm warn\nnpm error no such host.\n")
    monkeypatch.setattr(npm.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError) as caught:
        npm.files(PACKAGE)
    assert str(caught.value) == f"some-runtime@1.2.3 is not in {tmp_path}{why}. {CURE}"


def small(**options):
    return create_model("xcit_nano_12_p16", image_size=64, dim=16, depth=1, num_heads=2, **options)


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        (
            lambda: small(num_classes=0),
            {},
            "The format 'web' cannot hold this model: the page shows predictions, and a model without classes makes"
            " none.",
        ),
        (
            lambda: create_backbone(
                "xcit_nano_12_p16", dim=16, depth=4, num_heads=2, out_blocks=(0, 1, 2, 3)
            ),
            {},
            "The format 'web' cannot hold this model: the page shows predictions, and a model without classes makes"
            " none.",
        ),
        (
            lambda: small(num_classes=2, in_chans=5),
            {},
            "The format 'web' cannot hold this model: pictures have 1 or 3 channels, and the model takes 5.",
        ),
        (lambda: small(), {"dtype": "float16"}, "dtype takes one of float32 for web; got 'float16'."),
        (
            lambda: small(),
            {"settings": {"runtme": "x"}},
            "The format 'web' has no setting 'runtme'. Did you mean 'runtime'?",
        ),
        (
            lambda: small(),
            {"format": "torch", "settings": {"runtime": "x"}},
            "The format 'torch' has no setting 'runtime'.",
        ),
    ],
    ids=["no classes", "backbone", "channels", "dtype", "setting", "file"],
)
def test_what_no_page_is_made_of(tmp_path, model, options, text):
    with pytest.raises(ValueError) as caught:
        export(model(), tmp_path / "m.pt2", **{"format": "web", **options})
    assert str(caught.value) == text
    assert list(tmp_path.iterdir()) == []


def test_a_place_for_a_folder(tmp_path):
    row = FOLDERS["web"]

    def refused(path, existing="refuse"):
        with pytest.raises(ValueError) as caught:
            check_folder(path, row, existing)
        return str(caught.value)

    site = tmp_path / "site"
    check_folder(site, row, "refuse")
    site.mkdir()
    check_folder(site, row, "refuse")
    (site / "index.html").write_text("before")
    assert refused(site) == f"{site} is there already; --force, in Python existing='replace', writes over it."
    check_folder(site, row, "replace")
    (site / "notes.txt").write_text("precious")
    assert refused(site, "replace") == (
        f"{site}/notes.txt is there, and not of an export; the folder is to be empty or new."
    )
    assert refused(site / "notes.txt") == f"{site}/notes.txt is a file; a folder is to be written there."
    assert refused(tmp_path / "no" / "site") == f"There is no folder '{tmp_path}/no'."


def test_the_page_loads_nothing_from_elsewhere():
    text = web.page()
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', text)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy  # the page itself fetches nothing; its worker, the files beside it
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?((?:https?:)?//[^"')\s]+)""", text) == []
    assert re.findall(r"https?://", text + (web.HERE / "model.js").read_text()) == []


PREPARED = [
    Preprocess(),
    Preprocess(size=32, crop=1.0),
    Preprocess(size=64, crop=1.0, interpolation="bilinear"),
    Preprocess(size=(48, 80), crop=0.9),
    Preprocess(size=65, mode="squash"),
    Preprocess(size=(40, 90), mode="squash", interpolation="bilinear"),
    Preprocess(size=64, longest=96, mode="fit", interpolation="bilinear"),
    Preprocess(size=64, longest=96, mode="fit", interpolation="bicubic"),
    Preprocess(size=50, crop=1.0, mean=(0.4,), std=(0.2,)),
]
SIZES = [(150, 110), (97, 131), (20, 31), (64, 64), (200, 40)]
SCRIPT = """
import { readFileSync } from "node:fs";
const { prepare } = await import("./model.mjs");
const rows = JSON.parse(readFileSync("rows.json")).map(({ rgba, height, width, p }) => {
  const { data, size } = prepare(Uint8ClampedArray.from(rgba), height, width, p);
  return { data: Buffer.from(data.buffer).toString("base64"), size };
});
console.log(JSON.stringify(rows));
"""


def photograph(height, width):
    """Noise over something smooth: edges, and values at both ends of the range."""
    random = np.random.default_rng(height * width)
    coarse = random.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return (smooth + random.integers(-20, 21, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_javascript_prepares_pictures_to_the_bit(tmp_path):
    """The resizing of PyTorch's uint8 kernels and the division in float32, for each mode and many sizes."""
    import base64

    cases = [(photograph(*size), p) for p in PREPARED for size in SIZES]
    rows = []
    for image, p in cases:
        alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
        rgba = np.concatenate([image, alpha], axis=2).ravel().tolist()
        rows.append({"rgba": rgba, "height": image.shape[0], "width": image.shape[1], "p": asdict(p)})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "script.mjs").write_text(SCRIPT)
    shutil.copy(web.HERE / "model.js", tmp_path / "model.mjs")
    done = subprocess.run(["node", "script.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    for (image, p), row in zip(cases, json.loads(done.stdout), strict=True):
        expected = preprocess(image, p)
        assert row["size"] == list(expected.shape[1:]), (image.shape, p)
        got = torch.frombuffer(bytearray(base64.b64decode(row["data"])), dtype=torch.float32)
        assert torch.equal(got.view(expected.shape), expected), (image.shape, p)
