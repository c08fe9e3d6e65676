"""A server that may do anything, and a store of its own for each test."""

import io

import pytest
import torch
from loopback import Server


@pytest.fixture(scope="module")
def body():
    file = io.BytesIO()
    torch.save({"model": {"weight": torch.randn(300, 100)}}, file)
    return file.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TETRAVIT_OFFLINE", raising=False)
    server = Server()
    yield server
    server.http.shutdown()
