"""Without a network: one try, a few seconds, a message that says how weights come here all the same."""

import socket
import threading
import time

import pytest
from loopback import QUICK, answer, get

from tetravit import weights
from tetravit.weights import hub, network, store
from tetravit.weights.base import Checkpoint, Source
from tetravit.weights.download import NoNetwork, Unavailable

NAME = "xcit_nano_12_p16.test"
OUTSIDE = ("https://one.invalid/w.pth", "https://two.invalid/w.pth")


@pytest.fixture
def lookups(monkeypatch, tmp_path):
    """A resolver that fails as one does without a network; the names that it was given."""
    names = []

    def fail(host, *_, **__):
        names.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "home"))
    for name in ("TETRAVIT_OFFLINE", "HF_ENDPOINT", "https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(network, "getproxies", dict)
    return names


@pytest.fixture
def listed(monkeypatch):
    def add(*urls):
        row = Checkpoint(
            *NAME.split("."),
            tuple(Source(url, "official") for url in urls),
            data="-",
            licence="MIT",
            commercial=True,
        )
        monkeypatch.setattr(weights, "CHECKPOINTS", {**weights.CHECKPOINTS, NAME: row})

    return add


def message(cause):
    return (
        f"{NAME} is not in {store.home()}, and there is no network ({cause}). On a connected machine: "
        f"`tetravit weights bundle {NAME}`; here: `tetravit weights import FILE`. "
        "TETRAVIT_OFFLINE=1 skips the try."
    )


def test_a_name_that_is_not_resolved_is_tried_once(lookups, listed, capsys, monkeypatch):
    monkeypatch.setattr("tetravit.weights.download._OPENER", _direct())
    listed(*OUTSIDE)
    with pytest.raises(Unavailable) as error:
        store.fetch(NAME)  # with the usual patience
    assert str(error.value) == message("one.invalid: Temporary failure in name resolution")
    assert lookups == ["one.invalid", "two.invalid"]
    assert capsys.readouterr().err == ""


def test_a_resolver_that_does_not_answer_is_not_waited_for(lookups, listed, monkeypatch):
    monkeypatch.setattr("tetravit.weights.download._OPENER", _direct())
    monkeypatch.setattr(network, "CONNECT_S", 0.2)
    monkeypatch.setattr(store, "QUICK_S", 0.1)
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(20) and [])
    listed(*OUTSIDE)
    start = time.monotonic()
    with pytest.raises(Unavailable) as error:
        store.fetch(NAME)
    over.set()
    assert time.monotonic() - start < 2
    assert str(error.value) == message("one.invalid: name not resolved within 0.2 s")


def test_the_limits_together_are_under_5_s():
    assert network.CONNECT_S + store.QUICK_S < 5


def test_no_route_is_tried_once(lookups, listed, monkeypatch):
    monkeypatch.setattr("tetravit.weights.download._OPENER", _direct())
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 9))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [place, place])

    def unreachable(self, _):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(network.socket, "socket", type("S", (socket.socket,), {"connect": unreachable}))
    listed(OUTSIDE[0])
    with pytest.raises(Unavailable) as error:
        store.fetch(NAME)
    assert str(error.value) == message("one.invalid: Network is unreachable")


def test_a_refusal_is_tried_once_and_names_the_cure(server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(NoNetwork) as error:
        get(server)
    assert str(error.value) == (
        f"{server.url('/w.pth')} cannot be fetched: there is no network (127.0.0.1: Connection refused). "
        "Bring the file here and `tetravit weights import FILE --as NAME.TAG`. "
        "TETRAVIT_OFFLINE=1 skips the try."
    )


def test_a_mirror_is_tried_where_the_first_host_refuses(server, body, listed, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but it takes no connections
        listed(f"http://127.0.0.1:{closed.getsockname()[1]}/w.pth", server.url("/w.pth"))
        server.behave["/w.pth"] = lambda h, n: answer(h, body)
        assert store.fetch(NAME, patience=QUICK).path.read_bytes() == body
    assert capsys.readouterr().err == ""


def test_a_network_that_goes_away_meanwhile_is_tried_again_and_the_part_stays(server, body, monkeypatch):
    server.behave["/w.pth"] = lambda h, n: answer(h, body, send=len(body) // 2)
    real, calls = network.connect, []

    def connect(*args):
        calls.append(args)
        if len(calls) > 1:
            raise network.Unreached("127.0.0.1", "Network is unreachable")
        return real(*args)

    monkeypatch.setattr("tetravit.weights.download.connect", connect)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1: Network is unreachable.* \(4 attempts\)\."):
        get(server, sha256="00")
    assert len(calls) == 5
    with pytest.raises(NoNetwork):  # a later process, still without a network
        get(server, sha256="00")
    part = store.place(server.url("/w.pth"))
    assert part.with_name(part.name + ".part").read_bytes() == body[: len(body) // 2]


class Client:
    """The hub's client: what it keeps, and how it was called."""

    def __init__(self, folder=None):
        self.folder, self.local = folder, []

    def snapshot_download(self, _, *, local_files_only, **__):
        self.local.append(local_files_only)
        if not self.folder:
            raise RuntimeError("not in the cache")
        return self.folder


def test_the_hub_is_tried_once(lookups, monkeypatch, tmp_path):
    client = Client()
    monkeypatch.setattr(hub, "_api", lambda: client)
    with pytest.raises(Unavailable) as error:
        hub.fetch("hf:me/mine")
    assert str(error.value) == (
        f"hf:me/mine is not in {store.home()}, and there is no network (huggingface.co: Temporary failure in "
        "name resolution). On a connected machine: `tetravit convert hf:me/mine --as NAME.TAG`; here: "
        "`tetravit weights import FILE --as NAME.TAG`. TETRAVIT_OFFLINE=1 skips the try."
    )
    assert (client.local, lookups) == ([True], ["huggingface.co"])
    client.folder = tmp_path  # fetched before
    assert hub.fetch("hf:me/mine") == tmp_path


def test_a_hub_that_is_there_is_used(server, monkeypatch, tmp_path):
    client = Client(tmp_path)
    monkeypatch.setattr(hub, "_api", lambda: client)
    monkeypatch.setenv("HF_ENDPOINT", server.url(""))
    hub.fetch("hf:me/mine")
    assert client.local == [False]


def test_the_proxy_is_what_must_be_reached(lookups, monkeypatch):
    monkeypatch.setattr(network, "getproxies", lambda: {"https": "proxy.invalid:3128"})
    assert network.unreachable("https://huggingface.co") == (
        "proxy.invalid: Temporary failure in name resolution"
    )


def _direct():
    """The opener, made anew without the proxies of this machine's environment."""
    from tetravit.weights.download import _opener

    return _opener()
