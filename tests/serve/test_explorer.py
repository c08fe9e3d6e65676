"""The page in a real browser, at the width of a desk and of a phone."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.serve.conftest import Process

from tetravit.data.shapes import draw
from tetravit.predictors import predict

pytest.importorskip("websockets")
from tests.serve.browser import Browser, program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def server(weights):
    with Process(*weights.values()) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(draw(3, size=256).image).save(file)
    return file


def opened(browser, server, width, scheme="light"):
    browser.console.clear()
    browser.requests.clear()
    browser.open(f"{server.url}/", width, scheme=scheme)
    browser.wait("state.models.length === 3")


def choose(browser, model, other=""):
    browser.run(f"$('model').value = {model!r}; $('other').value = {other!r}; run()")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_picture_is_dropped_and_its_prediction_seen(browser, server, models, scene, width, scheme):
    opened(browser, server, width, scheme)
    browser.drop(scene, x=width // 2)
    browser.wait("state.panels.length === 1")
    expected = predict(models["digits"], scene, topk=10).guesses
    rows = browser.run("[...document.querySelectorAll('.results .name')].map((e) => e.textContent)")
    assert rows == [guess.name for guess in expected]
    first = f"{expected[0].name} {100 * expected[0].score:.1f} %"
    assert browser.run("$('status').textContent").startswith(f"digits: {first}, ")
    assert browser.run("document.querySelector('canvas').getAttribute('aria-label')").startswith(
        f"digits: {first}"
    )
    assert browser.run("document.documentElement.scrollWidth") == width  # nothing sticks out
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(246, 247, 249)" if scheme == "light" else "rgb(15, 18, 22)")
    assert browser.console == []
    assert {url.split("?")[0].removeprefix(server.url) for url in browser.requests if "data:" not in url} == {
        "/",
        "/v1/models",
        "/v1/predict",
    }


@pytest.mark.parametrize("width", [1280, 390])
def test_the_filter_of_scores(browser, server, models, scene, width):
    opened(browser, server, width)
    browser.drop(scene)
    browser.wait("state.panels.length === 1")
    choose(browser, "shapes")
    objects = predict(models["shapes"], scene, threshold=0.05).objects
    middle = (objects[0].score + objects[-1].score) / 2
    for score in (0.05, round(middle, 2), 1):
        browser.run(f"$('score').value = {score}; $('score').dispatchEvent(new Event('input'))")
        seen = browser.run("facts().models[0].objects.length")
        assert seen == sum(o.score >= score for o in objects)
        assert browser.run("$('score-value').textContent") == f"{score:.2f}"
    assert (
        browser.run("document.querySelector('.results').textContent")
        == "No object with a score of 1.00 or more."
    )
    browser.run("$('score').value = 0.05; $('score').focus()")
    browser.press("ArrowRight", 39)
    assert browser.run("$('score-value').textContent") == "0.06"  # by the keyboard


def pixels(browser):
    return browser.run(
        "(() => { const c = document.querySelector('canvas'); const p = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let s = 0; for (const v of p) s += v; return s; })()"
    )


def test_layers_and_classes_toggle(browser, server, scene):
    opened(browser, server, 1280)
    browser.drop(scene)
    browser.wait("state.panels.length === 1")
    choose(browser, "shapes")
    browser.run("$('score').value = 0.05; $('score').dispatchEvent(new Event('input'))")
    sums = [pixels(browser)]
    for layer in ("names", "masks", "boxes"):
        browser.run(f"$('{layer}').click()")
        sums.append(pixels(browser))
    assert len(set(sums)) == 4
    for layer in ("names", "masks", "boxes"):
        browser.run(f"$('{layer}').click()")
    assert pixels(browser) == sums[0]
    browser.run("document.querySelectorAll('.results input').forEach((box) => box.click())")
    assert pixels(browser) == sums[-1]  # no class is left: the picture alone
    assert browser.run("facts().models[0].objects") == []


def test_masks_are_drawn_where_they_are(browser, server, models, scene):
    """The colour of a class where its label map has it, at the size of the canvas."""
    opened(browser, server, 1280)
    browser.drop(scene)
    browser.wait("state.panels.length === 1")
    choose(browser, "scenes")
    browser.run("$('strength').value = 1; $('strength').dispatchEvent(new Event('input'))")
    labels = predict(models["scenes"], scene).labels
    names = models["scenes"].class_names
    for x, y in [(3, 200), (128, 128), (250, 250), (100, 2), (252, 246)]:
        got = browser.run(
            "(() => { const c = document.querySelector('canvas'), s = c.width / 256; return [...c.getContext('2d')"
            f".getImageData(({x} + 0.5) * s, ({y} + 0.5) * s, 1, 1).data].slice(0, 3); }})()"
        )
        colour = browser.run(f"state.panels[0].colour({names[labels[y, x]]!r})")
        assert got == [int(colour[i : i + 2], 16) for i in (1, 3, 5)], (x, y)


def test_the_methods_that_a_model_has(browser, server, scene):
    opened(browser, server, 1280)
    browser.drop(scene)
    browser.wait("state.panels.length === 1")
    methods = browser.run("[...$('explain').options].map((o) => o.value)")
    assert {"", "class-attention", "gradcam"} <= set(methods)
    plain = pixels(browser)
    browser.run("$('explain').value = 'class-attention'; $('explain').dispatchEvent(new Event('change'))")
    browser.wait("state.panels[0].picture !== null")
    assert pixels(browser) != plain
    browser.run("$('explain').value = ''; $('explain').dispatchEvent(new Event('change'))")
    browser.wait("state.panels[0].picture === null")
    assert pixels(browser) == plain


def test_two_models_side_by_side(browser, server, scene):
    opened(browser, server, 1280)
    browser.drop(scene)
    browser.wait("state.panels.length === 1")
    choose(browser, "digits", "scenes")
    assert browser.run("[...document.querySelectorAll('#panels h2')].map((e) => e.textContent)") == [
        "digits",
        "scenes",
    ]
    tops = browser.run(
        "[...document.querySelectorAll('#panels section')].map((e) => e.getBoundingClientRect().top)"
    )
    assert tops[0] == tops[1]
    found = json.loads(browser.run("JSON.stringify(facts())"))
    assert (found["image"], [row["model"] for row in found["models"]]) == ("scene.png", ["digits", "scenes"])


@pytest.mark.parametrize("width", [1280, 390])
def test_errors_are_shown(browser, server, scene, weights, tmp_path, width):
    opened(browser, server, width)
    (tmp_path / "notes.png").write_text("no picture")
    browser.drop(tmp_path / "notes.png")
    browser.wait("!$('alert').hidden")
    text = "The image cannot be read: it is not an image (it begins with b'no picture')."
    assert browser.run("$('alert').textContent") == text
    assert browser.run("$('alert').getAttribute('role')") == "alert"
    browser.drop(scene)
    browser.wait("state.panels.length === 1 && $('alert').hidden")  # and the next picture works
    browser.run("state.limits.body_bytes = 1000; load(state.file)")
    assert (
        browser.run("$('alert').textContent")
        == "scene.png has 0.1 MiB; the server takes up to 0 (--max-body-mib)."
    )


def test_the_camera_and_the_keyboard(browser, server):
    opened(browser, server, 1280)
    browser.run("$('camera').focus()")
    browser.press("Enter", 13, "\r")
    browser.wait("$('shot').open")
    browser.wait("$('video').videoWidth > 0")
    browser.run("$('take').click()")
    browser.wait("state.panels.length === 1")
    assert browser.run("state.file.name") == "camera.jpg"
    assert browser.run("$('video').srcObject === null")


def test_every_control_has_a_name(browser, server, scene):
    opened(browser, server, 1280)
    browser.drop(scene)
    browser.wait("state.panels.length === 1")
    choose(browser, "shapes", "scenes")
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "checkbox", "slider", "combobox", "image", "list", "link"}
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored") and node.get("role", {}).get("value") in roles
    ]
    assert [pair for pair in named if not pair[1].strip()] == []
    assert {role for role, _ in named} >= {"button", "checkbox", "slider", "combobox", "image", "list"}


def test_the_page_of_routes(browser, server):
    browser.console.clear()
    browser.open(f"{server.url}/docs", 1280)
    browser.wait("document.querySelectorAll('.route').length === 11")
    assert browser.console == []
