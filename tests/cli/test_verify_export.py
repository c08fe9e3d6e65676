"""verify-export: a short table, exit code 1 on a difference, one line for what cannot be checked."""

import json
from pathlib import Path

import pytest

from tetravit.exports import Verified
from tetravit.exports.parts.certificate import NOT_REPEATED, Row


@pytest.mark.parametrize(
    ("problem", "weights", "code", "last"),
    [
        ("", "w", 0, "m.onnx is the file of its certificate and agrees with the weights w."),
        ("", "", 0, "m.onnx is the file of its certificate and agrees with the recorded outputs."),
        ("m.onnx differs", "w", 1, "tetravit verify-export: m.onnx differs."),
    ],
)
def test_the_exit_code_says_whether_it_agrees(ask, monkeypatch, problem, weights, code, last):
    rows = (Row("equal top-1", "100.00 %", "98.00 %"),)
    done = Verified(Path("m.onnx"), None, rows, problem, ("A note.",), weights)
    monkeypatch.setattr("tetravit.exports.verify_export", lambda *_, **__: done)
    answer = ask("verify-export", "m.onnx")
    assert answer.code == code
    assert answer.err.splitlines() == ["tetravit verify-export: A note.", last]
    assert [line.split() for line in answer.out.strip().splitlines()][-1] == [
        *("equal", "top-1", "100.00", "%", "98.00", "%")
    ]
    (row,) = map(json.loads, ask("verify-export", "m.onnx", "--json").out.splitlines())
    assert row["problem"] == problem
    assert row["rows"] == {"equal top-1": {"certificate": "100.00 %", "here": "98.00 %"}}


def test_no_certificate(ask, tmp_path):
    answer = ask("verify-export", tmp_path / "m.onnx")
    assert (answer.code, answer.out, answer.err) == (
        2,
        "",
        f"tetravit verify-export: There is no certificate {tmp_path}/m.onnx.certificate.json: `tetravit export`"
        " writes it beside the file.\n",
    )


def test_what_was_not_repeated_is_named(ask, monkeypatch):
    rows = (Row("images", "a", "b"), Row("equal top-1", "1", NOT_REPEATED), Row("speed", "2", NOT_REPEATED))
    done = Verified(Path("m.xml"), None, rows, "", (), "")
    monkeypatch.setattr("tetravit.exports.verify_export", lambda *_, **__: done)
    answer = ask("verify-export", "m.xml")
    assert answer.err.splitlines() == [
        "tetravit verify-export: not repeated: equal top-1; speed.",
        "m.xml is the file of its certificate and agrees with the recorded outputs.",
    ]
