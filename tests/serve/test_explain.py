"""POST /v1/predict?explain=METHOD: the maps of tetravit.explain as pictures."""

import io

import numpy as np
import pytest
from PIL import Image
from tests.serve.conftest import file_of, picture

from tetravit.explainers import explain, methods_of


def shown(response):
    assert response.headers["content-type"] == "image/png", response.text
    with Image.open(io.BytesIO(response.content)) as found:
        return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "shapes", "scenes"])
def test_every_method_of_a_model(client, models, name):
    methods = next(row["explain"] for row in client.get("/v1/models").json()["models"] if row["name"] == name)
    assert methods
    assert {row["name"] for row in methods} <= {n for n, why in methods_of(models[name]).items() if not why}
    body = file_of(picture(64, 96))
    assert client.post(f"/v1/predict?model={name}", content=body).status_code == 200
    for row in methods:
        got = client.post(f"/v1/predict?model={name}&explain={row['name']}", content=body)
        if got.status_code != 200:  # a tiny model may lack the layers
            assert "no layer has weights of that kind" in got.json()["error"], row["name"]
            continue
        shown(got)


@pytest.mark.slow
def test_the_map_lies_over_the_picture_and_draw_gives_all_maps(client, models):
    body = file_of(picture(64, 96))
    got = shown(client.post("/v1/predict?explain=class-attention", content=body))
    assert got.shape == (64, 96, 3)
    found = explain(models["digits"], picture(64, 96), "class-attention")
    whole = shown(client.post("/v1/predict?explain=class-attention&draw=1", content=body))
    assert np.array_equal(whole, np.array(found.draw()))


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("explain=gradcams", 400, "Unknown method 'gradcams'. Did you mean 'gradcam'?"),
        ("explain=gradcam&topk=3", 400, "explain has no option 'topk'."),
        ("explain=gradcam&clas=3", 400, "explain has no option 'clas'. Did you mean 'class'?"),
        ("explain=occlusion", 400, "occlusion runs the model hundreds of times; tetravit explain draws it."),
        ("explain=temperatures", 400, "temperatures is not of a picture; tetravit explain draws it."),
        ("explain=gradcam&class=42", 422, "Class 42 does not exist: classes are 0 to 9."),
        ("explain=class-attention&head=-1", 400, "head takes a whole number; got '-1'."),
    ],
)
def test_mistakes(client, query, status, text):
    got = client.post(f"/v1/predict?{query}", content=file_of(picture()))
    assert got.status_code == status
    assert got.json()["error"].startswith(text)


def test_a_method_without_a_meaning_for_the_model(client):
    got = client.post("/v1/predict?model=scenes&explain=class-attention", content=file_of(picture()))
    assert got.status_code == 400
    assert got.json()["error"].startswith("class-attention has no meaning for twins_svt_small: ")
