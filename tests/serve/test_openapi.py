"""/openapi.json describes the routes that there are, and responses keep to it."""

import os
import re

import httpx
import pytest
from tests.serve.conftest import Process, file_of, picture

from tetravit.serve.app import PATHS

OWN = {"model", "draw", "masks", "explain", "class", "layer", "head"}
EXAMPLES = int(os.environ.get("TETRAVIT_SERVE_EXAMPLES", "15"))  # requests that are drawn per route


def test_every_route_is_described(client):
    paths = set(client.get("/openapi.json").json()["paths"])
    pages = {"/", "/docs", "/openapi.json"}
    models = {"/v2/models/{name}", "/v2/models/{name}/ready", "/v2/models/{name}/infer"}
    assert paths == (set(PATHS) - pages) | models


def test_options_of_every_model_are_described(client):
    (operation,) = client.get("/openapi.json").json()["paths"]["/v1/predict"].values()
    described = {p["name"]: p["schema"] for p in operation["parameters"]}
    assert described.keys() == OWN | {"topk", "threshold", "class_agnostic", "flip"}
    assert described["topk"] == {"type": "integer", "minimum": 1}
    assert described["model"]["enum"] == ["digits", "shapes", "scenes"]


def test_pages_load_nothing_from_elsewhere(client):
    for path in ("/", "/docs"):
        got = client.get(path)
        assert got.headers["content-type"] == "text/html; charset=utf-8"
        policy = got.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?((?:https?:)?//[^"')\s]+)""", got.text)
        assert addresses == []


@pytest.mark.slow
def test_schemathesis(weights):
    """Requests drawn from the description: no response is a fault, and all keep to their schema."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    # Most bodies that the schema allows are no image, and are refused.
    schemathesis.checks.load_all_checks()
    excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
    quiet = settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    with Process(weights["digits"], weights["shapes"], "--max-body-mib", "1") as running:
        schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
        count = 0
        for found in schema.get_all_operations():
            operation = found.ok()

            def check(case):
                case.call_and_validate(excluded_checks=excluded)

            quiet(given(case=operation.as_strategy())(check))()
            count += 1
        assert count == 11
        assert httpx.post(f"{running.url}/v1/predict", content=file_of(picture())).status_code == 200
        assert running.end() == 0
