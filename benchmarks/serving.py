"""Images per second of `tetravit serve` beside a plain loop of `predict`, at 1, 8 and 32 clients.

    python benchmarks/serving.py [MODEL] [--size PX] [--images N] [--rounds N] [--options "--no-exact"] [--into FILE]

The loop reads each JPEG file, predicts it with `tetravit.predict` and goes to the next. The server is a process of
its own on the same processors, so are its clients (one process, a thread each, kept connections). Loop and server
run in turns, the server waits while the loop runs, and the medians of the rounds are compared: another program on the
machine slows both. `processor_ratio` compares the time of the processor per image, that of the loop over that of the
server, which other programs blur less. Every response is compared with the prediction of the loop.
"""

import argparse
import datetime
import io
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

import tetravit
from tetravit.benchmark.speed import device_name

CLIENTS = (1, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="xcit_tiny_12_p16")
    parser.add_argument("--size", type=int, default=224, help="pixels a side of the model's input")
    parser.add_argument("--images", type=int, default=48, help="per round and number of clients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", default="", help="of tetravit serve")
    parser.add_argument("--into", type=Path, help="add a JSON line per number of clients")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(given, Path(folder)):
            print(json.dumps(row), flush=True)
            if given.into:
                with given.into.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def measure(given: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """A row per number of clients."""
    torch.manual_seed(0)
    model = tetravit.create_model(given.model, num_classes=1000).eval()
    weights = folder / f"{given.model}.safetensors"
    from tetravit.models import save

    save(model, weights)
    model = tetravit.load(weights)
    files = written(folder, given.images)
    server = Server([str(weights), *shlex.split(given.options)])
    loops: list[float] = []
    busy: list[float] = []  # processor seconds per image of the loop
    served: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    rates: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    try:
        expected = [json.loads(json.dumps(tetravit.predict(model, file).facts())) for file in files]  # warm
        for _ in range(given.rounds):
            for clients in CLIENTS:
                start, used = time.perf_counter(), time.process_time()
                for file in files:
                    tetravit.predict(model, file)
                loops.append(len(files) / (time.perf_counter() - start))
                busy.append((time.process_time() - used) / len(files))
                used = server.processor_s
                rates[clients].append(asked(server.url, files, expected, clients, bool(given.options)))
                served[clients].append((server.processor_s - used) / len(files))
    finally:
        server.end()
    loop = statistics.median(loops)
    return [
        {
            "command": shlex.join(["python", "benchmarks/serving.py", *sys.argv[1:]]),
            "model": given.model,
            "size": given.size,
            "clients": clients,
            "server_images_per_s": round(statistics.median(found), 2),
            "loop_images_per_s": round(loop, 2),
            "ratio": round(statistics.median(found) / loop, 3),
            "processor_ratio": round(statistics.median(busy) / statistics.median(served[clients]), 3),
            "rounds": given.rounds,
            "images": given.images,
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 1),
            "device": device_name(torch.device("cpu")),
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
        }
        for clients, found in rates.items()
    ]


def written(folder: Path, count: int) -> list[Path]:
    """JPEG files of 500 x 375 pixels, the usual size of ImageNet."""
    files = []
    for i in range(count):
        values = np.random.default_rng(i).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        files.append(folder / f"{i}.jpg")
        Image.fromarray(values).resize((500, 375), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def asked(url: str, files: list[Path], expected: list[object], clients: int, about: bool) -> float:
    """Images per second of `clients` clients; about: scores may differ in their last digits."""
    sessions = [httpx.Client(base_url=url, timeout=120) for _ in range(clients)]
    bodies = [io.BytesIO(file.read_bytes()).getvalue() for file in files]

    def one(number: int) -> list[tuple[int, dict[str, object]]]:
        mine = range(number, len(files), clients)
        return [(i, sessions[number].post("/v1/predict", content=bodies[i]).json()) for i in mine]

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda session: session.get("/health/live"), sessions))
        start = time.perf_counter()
        found = [row for rows in pool.map(one, range(clients)) for row in rows]
        rate = len(files) / (time.perf_counter() - start)
    for session in sessions:
        session.close()
    for i, response in found:
        assert about or response["top"] == expected[i]["top"], response  # type: ignore[index]
    return rate


class Server:
    """`tetravit serve` in a process of its own, ready."""

    def __init__(self, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "tetravit", "serve", *arguments, "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            print(line, end="", file=sys.stderr)
            place = re.search(r"Serving at (http://\S+) ", line)
            if place:
                self.url = place[1]
                return
        raise SystemExit("the server did not start")

    @property
    def processor_s(self) -> float:
        """Seconds of the processor so far, all threads together."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


if __name__ == "__main__":
    main()
