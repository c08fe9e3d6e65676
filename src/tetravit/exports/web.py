"""A folder that runs a model in browsers: its ONNX file, ONNX Runtime Web, a page; for any host of static files."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tetravit import exports
from tetravit.data import coco
from tetravit.data.palettes import palette
from tetravit.exports.base import Folder
from tetravit.exports.parts import npm
from tetravit.models.portable import Portable, flat, share
from tetravit.report.explorer import explorer
from tetravit.runtimes.base import CannotRun

HERE = Path(__file__).parent / "page"
RUNTIME = npm.Package(
    "onnxruntime-web",
    "1.30.0",
    {
        "dist/ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
        "dist/ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    },
)
NAMES = {"dist/ort.wasm.bundle.min.mjs": "ort.js", "dist/ort-wasm-simd-threaded.wasm": "ort.wasm"}
SAME = 2e-5  # of the largest output, at sizes below those of the comparison
NOTICE = """ONNX Runtime Web (ort.js, ort.wasm), npm package onnxruntime-web {version}.
Copyright (c) Microsoft Corporation. Licensed under the MIT License.
{licence}"""


class Web(Folder):
    """A folder with index.html and what it loads: model.onnx, model.json, model.js, ort.js, ort.wasm.

    The page is that of `tetravit explore`; model.js prepares pictures as `model.preprocess` does. ONNX Runtime Web is
    not part of this package: the setting `runtime` names the npm package (its folder, node_modules, or the .tgz);
    without it the package is fetched once by npm, and its files are verified by their hashes.
    """

    main, inside, first = "model.onnx", "onnx", "index.html"
    names = (main, f"{main}.certificate.json", first, "model.json", "model.js", *NAMES.values(), "NOTICE.txt")
    dtypes = ("float32",)
    settings = ("runtime",)

    def check(self, model: Portable) -> None:
        if not getattr(model, "num_classes", 0):
            raise CannotRun("the page shows predictions, and a model without classes makes none")
        channels = model.backbone.in_chans
        if channels not in (1, 3):
            raise CannotRun(f"pictures have 1 or 3 channels, and the model takes {channels}")

    def add(self, folder: Path, model: Portable, settings: Mapping[str, Any]) -> None:
        files = npm.files(RUNTIME, settings.get("runtime"))
        for name, data in files.contents.items():
            (folder / NAMES[name]).write_bytes(data)
        facts = exports.TARGETS[self.inside].facts(folder / self.main)
        facts = _described(facts, self._smallest(folder, model, facts))
        (folder / "model.json").write_text(json.dumps(facts, indent=1) + "\n")
        (folder / "model.js").write_text((HERE / "model.js").read_text())
        (folder / self.first).write_text(page())
        licence = facts["licence"]
        text = f"The weights of {facts['name']} are licensed {licence}.\n" if licence else ""
        (folder / "NOTICE.txt").write_text(NOTICE.format(version=files.version, licence=text))

    def _smallest(self, folder: Path, model: Portable, facts: Mapping[str, Any]) -> int:
        """The smallest side in pixels that the page gives the model; a classifier's own may lie below the usual one.

        Raises:
            CannotRun: if the file does not agree with the model at that size.
        """
        usual: int = facts["sides"][0]
        sides = model.usual_sides(usual)
        if facts["task"] != "classify" or min(sides) >= usual:
            return usual
        plain = copy.deepcopy(model).cpu().eval()
        images = torch.randn(1, model.backbone.in_chans, *sides, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = flat(plain(images))
        try:
            got = exports.TARGETS[self.inside].load(folder / self.main)([images])
            apart = max(share(g, e) for g, e in zip(got, expected, strict=True))
        except Exception:  # of the runtime: its graph does not take the size
            apart = float("inf")
        if not apart <= SAME:
            raise CannotRun(
                f"its images have {sides[0]} x {sides[1]} pixels, and exported files take {usual} and more"
            )
        return min(sides)


def page() -> str:
    """index.html: it loads nothing but the files beside it."""
    marks = {"style": "STYLE", "script": "SCRIPT"}
    policy = (
        "default-src 'none'; style-src {style}; script-src {script}; worker-src 'self'; img-src blob: data:;"
        " media-src blob:; base-uri 'none'; form-action 'none'"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy.format(**marks)}">'
    page = explorer((HERE / "source.js").read_text(), head=head, foot="Made with tetravit.")
    filled = head.replace("STYLE", page.style_hash).replace("SCRIPT", page.script_hash)
    return page.text.replace(head, filled)


def _described(facts: Mapping[str, Any], smallest: int) -> dict[str, Any]:
    """The facts of a file, with what the page needs: names, colours, COCO's numbers, the smallest side."""
    names = tuple(facts["class_names"] or map(str, range(facts["num_classes"])))
    return {
        **facts,
        "name": facts["model"],
        "class_names": list(names),
        "colours": [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette(names)],
        "categories": list(coco.category_ids(names)),
        "masks": facts["task"] == "segment" or "masks" in facts["outputs"],
        "smallest": smallest,
    }


FOLDERS = {"web": Web()}
