"""The server as a process: many clients at once, memory, the end, and what it says when it cannot start."""

import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tests.serve.conftest import Process, file_of, picture

from tetravit.cli import main
from tetravit.predictors import predict
from tetravit.serve import server

REQUESTS = int(os.environ.get("TETRAVIT_SERVE_REQUESTS", "500"))  # of the test of memory
SIZES = [(48, 64), (64, 48), (33, 97), (120, 80), (10, 300)]


@pytest.mark.nightly
def test_200_images_of_mixed_sizes_from_32_clients_equal_predictions_one_by_one(weights, models):
    pictures = [picture(*SIZES[i % len(SIZES)], seed=i) for i in range(200)]
    names = ["digits", "shapes", "digits", "scenes"]
    with Process(*weights.values()) as running, ThreadPoolExecutor(32) as pool:
        clients = threading.local()

        def ask(i):
            if not hasattr(clients, "client"):
                clients.client = httpx.Client(base_url=running.url, timeout=60)
            query = f"?model={names[i % 4]}&masks=none"
            return clients.client.post(f"/v1/predict{query}", content=file_of(pictures[i]))

        answers = list(pool.map(ask, range(200)))
        for i, got in enumerate(answers):
            assert got.status_code == 200, got.text
            expected = predict(models[names[i % 4]], pictures[i]).facts()
            for row in expected.get("objects", ()):
                row.pop("segmentation", None)
            assert {key: got.json()[key] for key in expected} == expected, i
        assert running.end() == 0


@pytest.mark.nightly
def test_memory_does_not_grow_with_requests(weights):
    """Under 1 KB a request after the first of them; TETRAVIT_SERVE_REQUESTS=20000 is the full measurement."""
    bodies = [file_of(picture(*size, seed=i), "JPEG") for i, size in enumerate(SIZES)]
    with Process(weights["digits"]) as running, httpx.Client(base_url=running.url, timeout=60) as client:

        def ask(count):
            for i in range(count):
                status = 422 if i % 10 == 9 else 200
                body = b"no image" if status == 422 else bodies[i % len(bodies)]
                assert client.post("/v1/predict", content=body).status_code == status

        ask(max(300, REQUESTS // 10))
        before = running.resident()
        ask(REQUESTS)
        slope = (running.resident() - before) / REQUESTS
        allowance = 512 * 1024 / REQUESTS  # an arena that the allocator takes once
        assert slope < 1024 + allowance, f"{slope:.0f} bytes a request"
        assert running.end() == 0


@pytest.mark.slow
def test_sigterm_loses_no_request_that_was_accepted(weights):
    """Under load: whatever the server accepted has its response, and clients find the port closed."""
    body = file_of(picture())
    with Process(weights["digits"], "--queue", "500") as running:
        outcomes = []

        def ask():
            with httpx.Client(base_url=running.url, timeout=60) as client:
                while True:
                    try:
                        outcomes.append(client.post("/v1/predict", content=body).status_code)
                    except httpx.TransportError as error:
                        outcomes.append(type(error).__name__)
                        return

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while len(outcomes) < 64 and time.monotonic() < end:
            time.sleep(0.01)
        assert running.end() == 0
        for thread in threads:
            thread.join(60)
        running.reader.join(10)
        assert running.lines[-2].startswith("Ends: ")
        assert running.lines[-1] == f"Ended; {outcomes.count(200)} requests were accepted."
        assert len(outcomes) == outcomes.count(200) + 16
        # A connection that the system had, but the server had not taken yet, is reset.
        assert set(outcomes) <= {200, "ConnectError", "ReadError", "RemoteProtocolError"}
        assert outcomes.count("ConnectError") >= 12


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(weights, second):
    """The first one waits for a request whose body is not there yet, up to its deadline of 30 seconds."""
    with Process(weights["digits"]) as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nP")
            while "tetravit_requests_in_flight 1" not in httpx.get(f"{running.url}/metrics").text:
                time.sleep(0.02)
            running.process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                running.process.wait(server.DRAIN_S + 1)
            running.process.send_signal(second)
            assert running.process.wait(1) == -second
        running.reader.join(10)
        ended = ["Ends: 1 requests to finish.", "Ended at once; 1 requests were not finished."]
        assert running.lines[-2:] == ended


@pytest.fixture
def says(capsys):
    """The last line on standard error of a command that fails with exit code 2."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


def test_a_port_in_use(says, weights):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = f"Port {port} of 127.0.0.1 is in use; --port 0 takes a free one."
        assert says("serve", weights["digits"], "--port", port) == f"tetravit serve: {line}"
        assert says("explore", weights["digits"], "--port", port) == f"tetravit explore: {line}"


def test_what_cannot_be_served(says, weights, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("no weights")
    for arguments, line in [
        (["none.safetensors"], "No checkpoint named 'none.safetensors', and no such file or run folder."),
        ([weights["digits"], "--port", "70000"], "port is 0 to 65535, 0 for any that is free; got 70000."),
        ([weights["digits"], "--host", "192.0.2.1"], "'192.0.2.1' is no address of this machine."),
        ([weights["digits"], "--queue", "0"], "queue is 1 or more; got 0."),
        (
            [weights["digits"], "--device", "gpu"],
            "A device is auto, cpu, cuda, cuda:N or mps; got 'gpu'.",
        ),
    ]:
        assert says("serve", "--port", "0", *arguments) == f"tetravit serve: {line}"
    assert says("serve", "--port", "0", tmp_path / "notes.txt").startswith(
        f"tetravit serve: {tmp_path}/notes.txt"
    )
    monkeypatch.setattr(
        server, "needs", lambda package, extra: f"it needs the extra: pip install 'tetravit[{extra}]'"
    )
    line = "A server cannot run here: it needs the extra: pip install 'tetravit[serve]'."
    assert says("serve", weights["digits"]) == f"tetravit serve: {line}"


def test_addresses():
    with server.bound("127.0.0.1", 0) as place:
        assert server.address(place) == f"http://127.0.0.1:{place.getsockname()[1]}"
    with server.bound("0.0.0.0", 0) as place:
        assert server.address(place).startswith("http://127.0.0.1:")
