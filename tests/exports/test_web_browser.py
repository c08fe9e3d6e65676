"""export --format web in a real browser: the page, and the outputs of every family beside those of the model."""

import base64
import json
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.exports.test_exports import classifier, detector
from tests.serve import conftest as toys
from tests.toys import COLUMN, TOYS

from tetravit.data.shapes import draw
from tetravit.exports import FOLDERS, export, web
from tetravit.exports.parts import npm
from tetravit.models import create_model, create_segmenter
from tetravit.models.portable import flat
from tetravit.predictors import predict
from tetravit.weights.store import home

pytest.importorskip("websockets")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
from tests.serve.browser import Browser, program

KEPT = home() / "npm" / f"{web.RUNTIME.name}-{web.RUNTIME.version}.tgz"
pytestmark = [
    pytest.mark.skipif(program() is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not KEPT.is_file(), reason=f"{web.RUNTIME} has not been fetched into {KEPT.parent}"),
]
TOLERANCE = 2e-5  # of the largest output: that of exported files


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Site:
    """A host of static files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name: str, model, **options) -> None:
        export(model, self.folder / name, "web", settings={"runtime": KEPT}, **options)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"))
    (made.folder / "blank.html").write_text(
        '<!doctype html><link rel="icon" href="data:,"><title>blank</title>'
    )
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(draw(3, size=256).image).save(file)
    return file


def opened(browser, site, name, width=1280, scheme="light"):
    browser.console.clear()
    browser.requests.clear()
    browser.open(f"{site.url}/{name}/index.html", width, scheme=scheme)
    browser.wait("state.models.length === 1 || !$('alert').hidden")


def dropped(browser, scene):
    browser.drop(scene)
    browser.wait("state.panels.length === 1 || !$('alert').hidden", 120)
    assert browser.run("$('alert').textContent") == ""
    return json.loads(browser.run("JSON.stringify(state.panels[0].prediction)"))


@pytest.mark.slow
def test_a_picture_dropped_on_the_page(browser, site, scene, tmp_path):
    model = toys.classifier()
    site.add("digits", model)
    expected = predict(model, scene, topk=10).guesses
    for width, scheme in [(1280, "light"), (390, "dark")]:
        opened(browser, site, "digits", width, scheme)
        assert browser.run("$('about').textContent") == "xcit_nano_12_p16: classifier, 10 classes"
        found = dropped(browser, scene)
        assert [row["class"] for row in found["top"]] == [guess.name for guess in expected]
        assert [row["score"] for row in found["top"]] == pytest.approx([g.score for g in expected], abs=2e-6)
        assert browser.run("document.documentElement.scrollWidth") == width  # nothing sticks out
        assert browser.console == []
        assert {
            url.removeprefix(f"{site.url}/digits/") for url in browser.requests if "data:" not in url
        } <= {*("index.html", "model.js", "model.json", "model.onnx", "ort.js", "ort.wasm")}
    (tmp_path / "notes.png").write_text("no picture")
    browser.drop(tmp_path / "notes.png")
    browser.wait("!$('alert').hidden")
    assert browser.run("$('alert').textContent") == "This browser cannot read notes.png as an image."
    dropped_again = dropped(browser, scene)  # and the next picture works
    assert dropped_again["top"] == found["top"]
    browser.run("$('camera').click()")
    browser.wait("$('video').videoWidth > 0")
    browser.run("$('take').click()")
    browser.wait("state.panels.length === 1 && state.file.name === 'camera.jpg'")


@pytest.mark.slow
def test_a_browser_that_cannot_run_it(browser, site):
    (site.folder / "empty").mkdir()
    (site.folder / "empty" / "index.html").write_text(web.page())
    (site.folder / "empty" / "model.js").write_text((web.HERE / "model.js").read_text())
    opened(browser, site, "empty")
    assert browser.run("$('alert').textContent") == (
        "The model cannot be loaded: model.json cannot be loaded from this site (status 404)."
    )
    browser.open((site.folder / "empty" / "index.html").as_uri(), 1280)
    browser.wait("!$('alert').hidden")
    assert browser.run("$('alert').textContent") == (
        "Browsers load no model from a file: serve this folder, for example with python -m http.server, and open its"
        " address."
    )
    given = browser.send("Page.addScriptToEvaluateOnNewDocument", source="WebAssembly.validate = () => false")
    opened(browser, site, "empty")
    browser.send("Page.removeScriptToEvaluateOnNewDocument", **given)
    assert browser.run("$('alert').textContent") == (
        "This browser has no WebAssembly SIMD, which the model needs; current versions of Chrome, Edge, Firefox and"
        " Safari have it."
    )


def outputs(browser, name, images, sizes):
    """The outputs of the browser for prepared images (1, C, Hi, Wi), in the order of the file."""
    data = base64.b64encode(images.numpy().tobytes()).decode()
    size = list(images.shape[2:])
    code = f"""(async () => {{
      const model = window.made ??= await (await import("/{name}/model.js")).Model.open();
      const bytes = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
      const got = await model.run(new Float32Array(bytes.buffer), {size}, {sizes or size});
      const rows = Object.entries(got).map(([name, {{ dims, data }}]) => [name, [dims, Array.from(data, Number)]]);
      return JSON.stringify(Object.fromEntries(rows));
    }})()"""
    return json.loads(browser.run(code))


def check(browser, site, name, model, shapes):
    """The outputs of the browser are those of the model, at each size (height, width) of prepared images."""
    plain = model.eval()
    browser.open(f"{site.url}/blank.html?{name}", 1280)
    for height, width in shapes:
        images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        others = plain.other_inputs(images)
        with torch.no_grad():
            expected = flat(plain(images, *others))
        got = outputs(browser, name, images, others[0][0].tolist() if others else None)
        tensors = [
            torch.tensor(got[key][1], dtype=torch.float32).view(got[key][0]).to(want.dtype)
            for key, want in zip(plain.output_names, expected, strict=True)
        ]
        assert plain.difference(tensors, expected) < TOLERANCE, (name, height, width)


@pytest.mark.slow
def test_the_outputs_of_one_family(browser, site):
    model = classifier("gcvit_xxtiny")
    site.add("toy", model)
    check(browser, site, "toy", model, [(64, 64), (77, 110)])


@pytest.mark.nightly
@pytest.mark.parametrize("name", TOYS)
def test_the_outputs_of_every_family(browser, site, name):
    """The smallest published size of each, at the size of its images and at another one."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=1000)
    site.add(name, model)
    check(browser, site, name, model, [(224, 224), (150, 197)])


@pytest.mark.nightly
@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn", "cascade"])
def test_the_outputs_of_detectors(browser, site, head):
    model = detector(head)
    site.add(head, model, size=(160, 192))
    check(browser, site, head, model, [(160, 192), (224, 160)])


@pytest.mark.nightly
@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_the_outputs_of_segmenters(browser, site, head):
    model = create_segmenter(
        "xcit_nano_12_p16", head=head, num_classes=3, head_options={"width": 8}, **COLUMN
    )
    site.add(head, model, size=(96, 128))
    check(browser, site, head, model, [(96, 128), (131, 100)])


@pytest.mark.nightly
def test_objects_and_masks_on_the_page(browser, site, scene):
    model = toys.detector().eval()
    model.input = replace(model.input, size=160, longest=256)  # files of detectors take 160 pixels and more
    site.add("shapes", model)
    opened(browser, site, "shapes", 390)
    found = dropped(browser, scene)
    expected = predict(model, scene, threshold=0.05).facts()
    assert (found["width"], found["height"]) == (256, 256)
    assert [row["class"] for row in found["objects"]] == [row["class"] for row in expected["objects"]]
    for mine, theirs in zip(found["objects"], expected["objects"], strict=True):
        assert mine["bbox"] == pytest.approx(theirs["bbox"], abs=0.5)
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-3)
        assert mine["category_id"] == theirs["category_id"]
        assert sum(mine["segmentation"]["counts"]) == 256 * 256


@pytest.mark.nightly
def test_a_label_map_on_the_page(browser, site, scene):
    model = toys.segmenter().eval()
    site.add("scenes", model)
    opened(browser, site, "scenes")
    found = dropped(browser, scene)
    expected = predict(model, scene).facts()["classes"]
    assert [row["class"] for row in found["classes"]] == [row["class"] for row in expected]
    for mine, theirs in zip(found["classes"], expected, strict=True):
        assert mine["share"] == pytest.approx(theirs["share"], abs=1e-3)
        assert sum(mine["segmentation"]["counts"][1::2]) == round(mine["share"] * 256 * 256)


@pytest.mark.slow
def test_the_row_of_the_menu():
    assert FOLDERS["web"].names[:2] == ("model.onnx", "model.onnx.certificate.json")
    assert npm.files(web.RUNTIME, KEPT).version == web.RUNTIME.version
