"""A new head of every kind, an export target and a backend: one file each, used from Python and a recipe."""

import re

import pytest
from tests.dropped import PACKAGE, package_with, python

HEADS = '''
"""The smallest heads: of every kind one."""
import torch
from torch import nn
from torch.nn import functional as F
from tetravit.boxes.suppression import SelectedBoxes
from tetravit.heads.base import DetectionHead, Head


class Cosine(Head):
    """Cosine similarity to a direction per class."""

    kind = "classify"
    fresh = ("rows",)

    def __init__(self, embed_dim, num_classes, *, scale=8.0):
        super().__init__()
        self.num_classes, self.scale = num_classes, scale
        self.rows = nn.Parameter(torch.randn(num_classes, embed_dim))

    def forward(self, maps, sizes=None, targets=None):
        return self.scale * F.linear(F.normalize(maps, dim=1), F.normalize(self.rows, dim=1))

    def loss(self, outputs, targets, sizes=None):
        return {"loss_class": F.cross_entropy(outputs, targets)}

    @classmethod
    def classes_in(cls, state):
        return len(state["rows"]) if "rows" in state else None


class OneByOne(Head):
    """A convolution on the finest map."""

    kind = "segment"

    def __init__(self, channels, strides, *, num_classes, sharpness=1.0, width=8):
        super().__init__()
        self.num_classes, self.sharpness = num_classes, sharpness
        self.score = nn.Conv2d(sum(channels), num_classes, 1)

    def forward(self, maps, sizes=None, targets=None):
        size = maps[0].shape[2:]
        return self.sharpness * self.score(torch.cat([F.interpolate(x, size=size) for x in maps], 1))

    def loss(self, outputs, targets, sizes=None):
        logits = F.interpolate(outputs, size=targets.shape[1:])
        return {"loss_class": F.cross_entropy(logits, targets.long(), ignore_index=255)}

    def decode(self, outputs, sizes, image_size):
        return [F.interpolate(x[None], size=tuple(s)).argmax(1)[0] for x, s in zip(outputs, sizes)]


class Centre(DetectionHead):
    """One box per image, without suppression; needs the sizes and, in training, the targets."""

    first_map = 3

    def __init__(self, channels, strides, *, num_classes, max_detections=1, width=8):
        super().__init__()
        self.num_classes, self.max_detections = num_classes, max_detections
        self.out = nn.Linear(channels[-1], num_classes + 4)

    def forward(self, maps, sizes=None, targets=None):
        assert sizes is not None
        assert (targets is not None) == self.training
        return self.out(maps[-1].mean((2, 3)))

    def loss(self, outputs, targets, sizes):
        return {"loss_box": outputs.square().mean() + 0 * sum(len(t.boxes) for t in targets)}

    def decode(self, outputs, sizes, *, max_detections=None):
        score, label = outputs[:, :-4].sigmoid().max(1, keepdim=True)
        sides = sizes.flip(1).repeat(1, 2)
        boxes = (sides * sides.new_tensor([0.25, 0.25, 0.75, 0.75], dtype=torch.float32))[:, None]
        return SelectedBoxes(boxes, score, label, torch.ones_like(label, dtype=torch.bool))


HEADS = {"cosine": Cosine, "one_by_one": OneByOne, "centre": Centre}
'''
TARGET = """
import torch
from tetravit.exports.base import Folder, Target

class Plain(Target):
    suffix = ".plain"

    def write(self, graph, path):
        torch.export.save(graph.program, path)

    def load(self, path):
        with open(path, "rb") as file:
            program = torch.export.load(file).module()
        return lambda inputs: program(*inputs)

class Kit(Folder):
    main, inside, first, dtypes = "m.plain", "plain", "README", ("float32",)
    names = ("m.plain", "m.plain.certificate.json", "README")
    settings = ("text",)

    def add(self, folder, model, settings):
        (folder / "README").write_text(settings["text"])

TARGETS = {"plain": Plain()}
FOLDERS = {"kit": Kit()}
"""
BACKEND = """
import torch
from tetravit.runtimes.base import Backend

def build(source):
    def run(images):
        with torch.no_grad():
            return source.model(images)
    return run

BACKENDS = {"mirror": Backend(build)}
"""
SCRIPT = """
import torch
import tetravit
from tetravit.models import create_detector, create_model, create_segmenter, save
from tetravit.structures import Batch, Target

SMALL = {"dim": 16, "depth": 4, "num_heads": 2, "out_blocks": (0, 1, 2, 3)}
x = torch.randn(2, 3, 64, 64)
for create, head, options in (
    (create_model, "cosine", {"scale": 4.0}),
    (create_segmenter, "one_by_one", {"sharpness": 2.0}),
    (create_detector, "centre", {}),
):
    model = create("xcit_nano_12_p16", head=head, head_options=options, num_classes=3, **SMALL).eval()
    save(model, "m.safetensors")
    again = tetravit.load("m.safetensors")
    assert type(again) is type(model) and again.head_name == head and again.options == model.options
    print(model.kind, again.header().head)
    sizes = [torch.tensor([[64, 64], [60, 50]])] if model.kind == "detect" else []
    a, b = model(x, *sizes), again(x, *sizes)
    assert all(torch.equal(a[k], b[k]) for k in a) if isinstance(a, dict) else torch.equal(a, b)
(found, _) = again.detect(x, max_detections=1)
print(len(found.boxes))
target = Target(torch.tensor([[1.0, 1.0, 9.0, 9.0]]), torch.tensor([1]))
print(list(again.train().loss(Batch(x, [target] * 2))))
try:
    again.detect(x, class_agnostic=True)
except ValueError as error:
    print(error)
try:
    create_model("xcit_nano_12_p16", head="centre", **SMALL)
except ValueError as error:
    print(error)
model = create_model("xcit_nano_12_p16", head="cosine", num_classes=3, image_size=64, **SMALL).eval()
print(tetravit.export(model, "m.plain").format)
print([file.name for file in tetravit.export(model, "kit", "kit", settings={"text": "run me"}).files])
print(tetravit.optimize(model, backend="mirror").optimized.backend)
"""
EXPECTED = """classify cosine
segment one_by_one
detect centre
1
['loss_box']
Centre has no option class_agnostic.
Unknown classification head 'centre'. Known: cosine, linear.
plain
['README', 'm.plain', 'm.plain.certificate.json']
mirror
"""
SMALL = "model.options={dim=16,depth=4,num_heads=2,out_blocks=[0,1,2,3]}"
RUNS = {"digits": "cosine", "shapes-seg": "one_by_one", "shapes-det": "centre"}


def recipe(name):
    """A recipe of the package without the options of its head."""
    text = (PACKAGE / "recipes" / f"{name}.toml").read_text()
    text = re.sub(r"\[model.head_options\].*?(?=\n\[)", "", text, flags=re.DOTALL)
    lines = [
        line for line in text.splitlines() if not line.startswith(("head =", "head_options", "options ="))
    ]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    files = {"heads/mine.py": HEADS, "exports/plain.py": TARGET, "runtimes/mirror.py": BACKEND}
    files |= {f"recipes/my_{name}.toml": recipe(name) for name in RUNS}
    return package_with(tmp_path_factory.mktemp("package"), files)


@pytest.mark.slow
def test_they_are_used_from_python(folder):
    assert python(folder, "-c", SCRIPT, cwd=folder) == EXPECTED


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), RUNS.items())
def test_a_recipe_trains_the_heads(folder, name, head):
    run = folder / name
    python(
        *(
            folder,
            "-m",
            "tetravit",
            "train",
            f"my_{name}",
            f"model.head={head}",
            "model.name=xcit_nano_12_p16",
        ),
        *(SMALL, "steps=2", "data.workers=0", "--into", run),
    )
    told = python(folder, "-c", f"import tetravit; print(tetravit.load({str(run)!r}).head_name)", cwd=folder)
    assert told.strip() == head
