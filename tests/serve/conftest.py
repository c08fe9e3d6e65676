"""Tiny models of each kind, and servers in this process or in one of their own."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.data.datasets import DATASETS
from tetravit.data.shapes import CLASSES, SEGMENTS
from tetravit.models import create_detector, create_model, create_segmenter, load, save
from tetravit.serve.batcher import Batcher
from tetravit.serve.limits import Limits
from tetravit.serve.served import Served
from tetravit.structures import Preprocess

collect_ignore_glob = [] if all(map(find_spec, ("starlette", "uvicorn", "httpx"))) else ["test_*.py"]

DIGITS = DATASETS["digits"](None, "val")
SMALL = {"width": 16, "num_candidates": 30, "num_proposals": 30, "score_threshold": 0.0, "max_detections": 6}


def classifier():
    torch.manual_seed(0)
    model = create_model("xcit_nano_12_p16", num_classes=10, depth=1)
    model.class_names, model.input = DIGITS.class_names, Preprocess(size=32, crop=1.0)
    return model


def detector():
    """It has learnt nothing: it finds six objects anywhere."""
    torch.manual_seed(0)
    options = {"depth": 4, "out_blocks": (0, 1, 2, 3)}
    model = create_detector("xcit_nano_12_p16", num_classes=8, head_options=SMALL, **options)
    model.class_names = CLASSES
    model.input = Preprocess(size=64, longest=96, mode="fit", interpolation="bilinear")
    return model


def segmenter():
    torch.manual_seed(0)
    options = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    model = create_segmenter("twins_svt_small", num_classes=9, head_options={"width": 8}, **options)
    torch.nn.init.normal_(model.head.score.weight, std=5.0)
    model.class_names = SEGMENTS
    model.input = Preprocess(size=64, longest=256, mode="fit", interpolation="bilinear")
    return model


KINDS = {"digits": classifier, "shapes": detector, "scenes": segmenter}


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> dict[str, Path]:
    """A file of each kind of model, by the name that it is served under."""
    folder = tmp_path_factory.mktemp("weights")
    files = {name: folder / f"{name}.safetensors" for name in KINDS}
    for name, build in KINDS.items():
        save(build(), files[name])
    return files


@pytest.fixture(scope="session")
def models(weights):
    """The same as `load` gives them."""
    return {name: load(file) for name, file in weights.items()}


@contextlib.contextmanager
def client_of(models, limits=None, **options):
    """A client of an application in this process, whose models are warm."""
    from starlette.testclient import TestClient

    from tetravit.serve.app import application

    limits = limits or Limits()
    served = [
        Served(name, model, Batcher(name, limits.wait_ms / 1000), limits, device="cpu", **options)
        for name, model in models.items()
    ]
    app = application(served, limits)
    with TestClient(app, raise_server_exceptions=False) as client:
        while not app.service.ready:
            time.sleep(0.005)
        client.service = app.service
        yield client


@pytest.fixture(scope="session")
def client(models):
    with client_of(models) as found:
        yield found


def picture(height=48, width=64, seed=0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def file_of(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class Process:
    """`tetravit serve` in a process of its own; ends with the block."""

    def __init__(self, *arguments, verb="serve"):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tetravit", verb, *map(str, arguments), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines = []
        self.url = None
        self.told = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            found = re.search(r"Serving at (http://\S+) ", line)
            if found:
                self.url = found[1]
                self.told.set()
        self.told.set()

    def __enter__(self):
        self.told.wait(180)
        if not self.url:
            self.__exit__()
            raise AssertionError(self.lines)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.reader.join(5)
        self.process.stderr.close()

    def end(self, wait_s=30):
        """SIGTERM -> the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(wait_s)

    def resident(self) -> int:
        """Memory of the process in bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
