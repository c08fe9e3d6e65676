"""POST /v1/predict: equal to `tetravit predict`, for every kind of model; every hostile body gets its line."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.test_decode import RGB, bomb_png, encode, huge_headers
from tests.serve.conftest import client_of, file_of, picture

from tetravit.cli import main
from tetravit.data.masks import counts_mask
from tetravit.predictors import predict, stream
from tetravit.predictors.parts.predictions import Prepared
from tetravit.rle import decode_rle
from tetravit.serve.limits import Limits


def ask(client, body, query="", **options):
    return client.post(f"/v1/predict{query}", content=body, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("digits", {"topk": 3}), ("shapes", {"threshold": 0.05}), ("scenes", {"flip": True})],
)
def test_equal_to_tetravit_predict(client, weights, capsys, tmp_path, name, options):
    flags = [f"--{k}" if v is True else f"--{k}={v}" for k, v in options.items()]
    query = "&".join(f"{k}={int(v) if v is True else v}" for k, v in options.items())
    for i, size in enumerate([(48, 64), (96, 33), (200, 100)]):
        (tmp_path / "image.jpg").write_bytes(file_of(picture(*size, seed=i), "JPEG"))
        with pytest.raises(SystemExit):
            main(["predict", str(weights[name]), str(tmp_path / "image.jpg"), "--json", *flags])
        expected = json.loads(capsys.readouterr().out)
        got = ask(client, (tmp_path / "image.jpg").read_bytes(), f"?model={name}&{query}")
        assert got.status_code == 200, got.text
        found = got.json()
        assert (found.pop("model"), found["height"], found["width"]) == (name, *size)
        del found["task"], expected["image"]
        if name == "digits":
            del found["height"], found["width"]
        for row in found.get("classes", ()):
            del row["segmentation"]
        assert found == expected


@pytest.mark.parametrize("name", ["digits", "shapes", "scenes"])
def test_an_image_prepared_beforehand_gives_the_same_bits(models, name):
    model, image = models[name], picture(70, 90)
    expected = predict(model, image)
    prepared = Prepared("image", model.preprocess(image), (70, 90))
    assert str(prepared) == "image"
    (got,) = stream(model, [prepared], batch_size=1)
    for field in ("guesses", "objects", "size"):
        assert getattr(got, field, None) == getattr(expected, field, None)
    if name == "scenes":
        assert torch.equal(got.labels, expected.labels)
        (other,) = stream(model, [prepared], scales=(0.5, 1.0))
        assert other.error == "it is prepared for the model; its pixels are not kept"


def test_masks_of_objects(client):
    body = file_of(picture())
    query = "?model=shapes&threshold=0.05&masks="
    rle, png, none = (ask(client, body, query + kind).json()["objects"] for kind in ("rle", "png", "none"))
    assert len(rle) == len(png) == len(none) > 0
    for a, b, c in zip(rle, png, none, strict=True):
        expected = counts_mask(decode_rle(a["segmentation"]["counts"].encode()), 48, 64)
        with Image.open(io.BytesIO(base64.b64decode(b["mask_png"]))) as mask:
            assert np.array_equal(np.array(mask), expected)
        assert {"segmentation", "mask_png"}.isdisjoint(c)


def test_masks_of_classes(client, models):
    body = file_of(picture())
    labels = predict(models["scenes"], picture()).labels.numpy()
    rle, png, none = (
        ask(client, body, f"?model=scenes&masks={kind}").json() for kind in ("rle", "png", "none")
    )
    with Image.open(io.BytesIO(base64.b64decode(png["label_map_png"]))) as label_map:
        assert np.array_equal(np.array(label_map), labels)
    for row in rle["classes"]:
        mask = counts_mask(decode_rle(row["segmentation"]["counts"].encode()), 48, 64)
        assert np.array_equal(mask, labels == row["index"])
    assert "label_map_png" not in none


@pytest.mark.parametrize("name", ["digits", "shapes", "scenes"])
def test_the_picture(client, models, name):
    got = ask(client, file_of(picture()), f"?model={name}&draw=1")
    assert got.headers["content-type"] == "image/png"
    expected = predict(models[name], picture()).draw()
    with Image.open(io.BytesIO(got.content)) as drawn:
        assert np.array_equal(np.array(drawn), np.array(expected))


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("?topk=0", 400, "topk is 1 or more; got 0."),
        ("?topk=three", 400, "topk takes a whole number; got 'three'."),
        ("?topk=1&topk=2", 400, "topk is given twice."),
        ("?top=3", 400, "A classifier has no option 'top'. Did you mean 'topk'?"),
        ("?model=digit", 404, "Unknown model 'digit'. Did you mean 'digits'?"),
        ("?model=shapes&threshold=2", 400, "threshold is a score from 0 to 1; got 2.0."),
        ("?model=shapes&threshold=nan", 400, "threshold is a score from 0 to 1; got nan."),
        ("?model=shapes&class_agnostic=maybe", 400, "class_agnostic takes 1 or 0; got 'maybe'."),
        (
            "?model=shapes&side=9999",
            400,
            "side is an option of tetravit predict; a server does not offer it.",
        ),
        ("?masks=all", 400, "masks takes one of rle, png, none; got 'all'."),
        ("?draw=yes", 400, "draw takes 1 or 0; got 'yes'."),
    ],
)
def test_mistakes_in_the_query(client, query, status, text):
    got = ask(client, file_of(picture()), query)
    assert (got.status_code, got.json()) == (status, {"error": text})


def test_what_is_no_image(client):
    for body, headers, status, text in [
        (b"", {}, 400, "The body is empty; it is the image itself: curl --data-binary @FILE."),
        (
            b"<html>no</html>",
            {},
            422,
            "The image cannot be read: it is not an image (it begins with b'<html>no</ht').",
        ),
        (
            b"http://example.org/cat.jpg",
            {},
            422,
            "The image cannot be read: it is not an image (it begins with b'http://examp').",
        ),
        (
            b"--x",
            {"content-type": "multipart/form-data; boundary=x"},
            415,
            "The body is the image itself, not a form: curl --data-binary @FILE.",
        ),
        (
            b"x",
            {"content-encoding": "gzip"},
            415,
            "Content-Encoding 'gzip' is not supported; send the file as it is.",
        ),
    ]:
        got = ask(client, body, headers=headers)
        assert (got.status_code, got.json()) == (status, {"error": text})


@pytest.mark.slow
def test_hostile_bodies_get_their_line(client):
    """The zoo of tests/data/test_decode.py; nothing is a fault of the server."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    bodies = {f"huge {kind}": (body, 413) for kind, body in huge_headers().items()}
    bodies["bomb"] = (bomb_png(7_200), 413)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = encode(noise, kind)
        bodies |= {f"{kind} cut at {s}": (whole[: int(len(whole) * s)], 422) for s in (0.1, 0.5, 0.9, 0.99)}
    float_tiff = encode(np.full((8, 8), 1e6, np.float32), "TIFF")
    bodies |= {
        "pickle": (b"\x80\x04\x95\x10\x00\x00\x00", 422),
        "numpy": (b"\x93NUMPY\x01\x00v\x00{'descr': '|O'", 422),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422),
        "path": (b"/etc/passwd", 422),
        "zeros": (b"\0" * 1000, 422),
        "float tiff": (float_tiff, 422),
        "line": (encode(Image.new("RGB", (1, 60_000)), "PNG"), 413),
    }
    for what, (body, status) in bodies.items():
        for name in ("digits", "shapes", "scenes"):
            got = ask(client, body, f"?model={name}")
            wanted = status if what != "line" or name == "digits" else 200  # a fit shrinks the long side
            assert got.status_code == wanted, (what, name, got.text)
            if wanted != 200:
                assert list(got.json()) == ["error"]
                assert "\n" not in got.json()["error"]
    for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("TIFF", {}), ("BMP", {})):
        assert ask(client, encode(RGB, kind, **options)).status_code == 200, kind


def test_images_that_are_too_large(models):
    limits = Limits(megapixels=0.01, body_mib=0.05)
    with client_of({"digits": models["digits"]}, limits) as client:
        for body, text in [
            (
                file_of(picture(101, 100)),
                "The image has 100 x 101 pixels; the limit is 0.01 million (--max-megapixels).",
            ),
            (
                file_of(Image.new("RGB", (1, 400))),
                "The image of 1 x 400 pixels would be resized to 32 x 12800 pixels; the limit is 0.01 million"
                " (--max-megapixels).",
            ),
            (b"x" * 60_000, "The body has more than 0.05 MiB (--max-body-mib)."),
            (iter([b"x" * 30_000] * 2), "The body has more than 0.05 MiB (--max-body-mib)."),
        ]:
            got = ask(client, body)
            assert (got.status_code, got.json()) == (413, {"error": text})
