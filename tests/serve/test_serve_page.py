"""docs/serve.md: its commands are run against a server as the page starts it."""

import json
import re
import shlex
import shutil
import subprocess

import pytest
from tests.serve.conftest import Process
from tests.test_readme import ROOT, clone, code, run  # noqa: F401  a fixture

PAGE = "docs/serve.md"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_page_on_serving_runs(clone, capsys):  # noqa: F811
    run(PAGE, capsys)
    (command,) = code(PAGE, "serve", "bash")
    program, verb, *arguments = shlex.split(command)
    assert (program, verb, arguments[-2:]) == ("tetravit", "serve", ["--port", "8000"])
    with Process(*arguments[:-2]) as running:
        (lines,) = code(PAGE, "request", "bash")
        outputs = []
        for line in lines.splitlines():
            given = shlex.split(line.replace("http://127.0.0.1:8000", running.url))
            outputs.append(
                subprocess.run([*given, "--silent", "--fail"], capture_output=True, check=True).stdout
            )
        assert len(json.loads(outputs[0])["top"]) == 3
        assert {file.read_bytes()[:4] for file in (clone / "drawn.png", clone / "map.png")} == {b"\x89PNG"}
        assert json.loads(outputs[3])["models"][0]["name"] == "run"
        assert b"tetravit_requests_total" in outputs[4]
        capsys.readouterr()
        (script,) = code(PAGE, "request", "python")
        exec(script.replace("http://127.0.0.1:8000", running.url), {})
        assert re.fullmatch(r"\d 0\.\d+", capsys.readouterr().out.strip())
        assert running.end() == 0


def test_the_page_names_every_limit():
    from tetravit.serve.limits import Limits

    rows = dict(re.findall(r"^\| `--([\w-]+)` \| ([\d.]+) \|", (ROOT / PAGE).read_text(), re.M))
    flags = {"max-body-mib": "body_mib", "max-megapixels": "megapixels", "queue": "queue"}
    flags |= {"deadline-s": "deadline_s", "max-batch": "max_batch"}
    assert {flag: float(value) for flag, value in rows.items()} == {
        flag: getattr(Limits(), name) for flag, name in flags.items()
    }
