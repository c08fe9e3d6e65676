"""Batches of many sizes, as the loader makes them, take a handful of graphs: not one per size."""

import pytest
import torch

from tetravit.data.augment import parse
from tetravit.data.datasets import Dataset
from tetravit.data.loader import TrainLoader
from tetravit.models import create_detector, create_segmenter
from tetravit.structures import Sample, Target

SIZES = [(100, 150), (150, 100), (120, 200), (90, 91), (200, 130), (140, 170), (300, 200), (111, 222)]
COLUMN = {"dim": 16, "depth": 4, "num_heads": 2, "out_blocks": (0, 1, 2, 3)}
STAGES = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
STEPS = 10


class Pictures(Dataset):
    """Noise with an object, in eight sizes."""

    num_classes, class_names = 3, tuple("abc")

    def __len__(self):
        return 32

    def __getitem__(self, index):
        image = torch.randint(256, (3, *SIZES[index % len(SIZES)]), dtype=torch.uint8)
        masks = torch.zeros(1, *image.shape[1:], dtype=torch.bool)
        masks[:, 10:70, 10:60] = True
        return Sample(image, Target(torch.tensor([[10.0, 10, 60, 70]]), torch.tensor([1]), masks), str(index))


def batches(bucket):
    augment = parse("flip | multiscale((144, 176, 208), 300, (160, 200), (100, 150))")
    loader = TrainLoader(Pictures(), augment, batch_size=2, bucket=bucket, seed=0, shuffle="table")
    return [batch for (batch,), _ in zip(loader.batches(), range(STEPS), strict=False)]


@pytest.fixture
def graphs():
    """A backend that runs each graph as it is and notes it; the notes."""
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    yield backend, made
    torch._dynamo.reset()


def test_padding_to_buckets_leaves_few_canvases():
    sizes = {tuple(size) for batch in batches(32) for size in batch.sizes.tolist()}
    assert len(sizes) > STEPS  # nearly every image has a size of its own
    for bucket, most in ((32, STEPS - 3), (128, 2)):
        canvases = {tuple(batch.images.shape[2:]) for batch in batches(bucket)}
        assert all(side % bucket == 0 for canvas in canvases for side in canvas)
        assert len(canvases) <= most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        # one canvas, another that shares a side with it, then any
        ("xcit_nano_12_p16", COLUMN, 3),
        # of any: rows and columns that windows divide, or not
        pytest.param("twins_svt_small", STAGES | {"window_size": 2}, 2 + 4, marks=pytest.mark.nightly),
    ],
)
def test_batches_of_many_sizes_take_few_graphs(graphs, name, options, most):
    backend, made = graphs
    torch.manual_seed(0)
    model = create_detector(
        name, head="mask_rcnn", num_classes=3, head_options={"width": 8}, **options
    ).train()
    model.compile(backend=backend)
    canvases = set()
    for batch in batches(32):
        canvases.add(tuple(batch.images.shape[2:]))
        sum(model.loss(batch).values()).backward()
    assert len(canvases) > most
    assert 2 <= len(made) <= most + 3  # the head has no windows
    assert most < torch._dynamo.config.recompile_limit  # beyond it nothing is compiled


@pytest.mark.slow
def test_segmenters_train_compiled(graphs):
    """Their loss calls the backbone and the head, not the segmenter: compiling its call alone would do nothing."""
    backend, made = graphs
    model = create_segmenter("xcit_nano_12_p16", num_classes=3, head_options={"width": 8}, **COLUMN).train()
    names = set(model.state_dict())
    model.compile(backend=backend)
    model.loss(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long))["loss_class"].backward()
    assert len(made) == 2
    assert set(model.state_dict()) == names
