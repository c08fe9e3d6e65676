"""The order and the augmentation of training samples depend on the seed alone."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from tetravit.data.augment import parse
from tetravit.data.build import resolve_workers
from tetravit.data.collate import collate
from tetravit.data.config import DataConfig
from tetravit.data.datasets import Dataset
from tetravit.data.datasets.digits import Digits
from tetravit.data.decode import BadImage
from tetravit.data.evaluation import EvalLoader, make_eval_loader
from tetravit.data.loader import TrainLoader, make_train_loader
from tetravit.data.preprocess import eval_transform
from tetravit.data.transforms.mixup import parse_mix
from tetravit.structures import Preprocess, Sample

AUGMENT = "affine(15, 0.1, (0.9, 1.1), 10, size=16) | flip | color(0.3) | randaugment(2, 9) | erase(0.5)"


class Few(Dataset):
    """The first digits of each class: small enough for many epochs."""

    num_classes = 10
    class_names = Digits.class_names

    def __init__(self, size=50, bad=()):
        self.digits = Digits(None, "train")
        self.size = size
        self.bad = set(bad)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.bad:
            raise BadImage(f"digit {index}", "the file is empty")
        return self.digits[index]


def loader(dataset=None, **options):
    options = {"batch_size": 12, "accumulate": 2, "seed": 5, **options}
    return TrainLoader(dataset or Few(), parse(AUGMENT), **options)


def take(n, start=0, dataset=None, **options):
    """The micro-batches of n steps, in one list."""
    train = loader(dataset, **options)
    batches = [batch for step in islice(train.batches(start), n) for batch in step]
    train.close()
    return batches


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.images, y.images)
        assert torch.equal(x.targets, y.targets)
        assert list(x.names) == list(y.names)
        assert list(x.indices) == list(y.indices)
    return True


@pytest.fixture(scope="module")
def reference():
    return take(10, repeats=3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_batches(workers, reference):
    assert same(take(10, repeats=3, workers=workers), reference)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 3, 4, 7])
def test_any_start_gives_the_same_batches(start, workers, reference):
    assert same(take(10 - start, start, repeats=3, workers=workers), reference[2 * start :])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_same_global_batch(world_size, reference):
    shares = [take(10, repeats=3, rank=r, world_size=world_size) for r in range(world_size)]
    for whole, *parts in zip(reference, *shares, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part.images, whole.images[rank::world_size])
            assert torch.equal(part.targets, whole.targets[rank::world_size])
            assert list(part.indices) == list(whole.indices[rank::world_size])


@pytest.mark.slow
def test_views_depend_on_their_own_number_alone(reference):
    def more(n, **options):
        crops = [parse(f"crop({size}) | color(0.4)") for size in (8, 6, 8)][:n]
        return take(10, repeats=3, more=crops, **options)

    three, one = more(3), more(1)
    assert same(three, reference)  # views change nothing of the first
    for a, b, whole in zip(three, one, reference, strict=True):
        assert [v.images.shape[1:] for v in a.views] == [(3, 8, 8), (3, 6, 6), (3, 8, 8)]
        assert len(a.views[0]) == len(whole)
        assert torch.equal(a.views[0].images, b.views[0].images)
        assert not torch.equal(a.views[0].images, a.views[2].images)  # same transform, another number
    for options in ({"workers": 2}, {"rank": 1, "world_size": 2}):
        share = more(3, **options)
        for a, b in zip(three, share, strict=True):
            step = slice(options.get("rank", 0), None, options.get("world_size", 1))
            assert all(torch.equal(v.images[step], w.images) for v, w in zip(a.views, b.views, strict=True))


def test_a_view_decodes_no_image_again():
    class Counting(Few):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    take(1, dataset=Counting(), more=[parse("crop(8)")] * 3)
    assert Counting.reads == 12


def test_views_of_a_recipe_replace_its_augmentation():
    config = DataConfig(name="digits", image_size=16, batch_size=8, augment="resize", workers=0)
    train = make_train_loader(config, seed=0, views=["crop | flip", "crop(6)", "crop(8) | erase(1.0)"])
    (batch,) = next(train.batches())
    sizes = [x.images.shape[-1] for x in (batch, *batch.views)]
    assert sizes == [16, 6, 8]


def test_accumulation_splits_the_same_global_batch(reference):
    whole = take(10, repeats=3, accumulate=1)
    halves = [torch.cat([a.images, b.images]) for a, b in zip(reference[::2], reference[1::2], strict=True)]
    assert all(torch.equal(w.images, h) for w, h in zip(whole, halves, strict=True))


@pytest.mark.parametrize("mix", ["mixup(0.8) | cutmix(1.0)"])
def test_mixed_batches_repeat_too(mix, reference):
    function = parse_mix(mix, 10, 0.1)

    def mixed(batches):
        return [
            function(b.images, b.targets, torch.Generator().manual_seed(i)) for i, b in enumerate(batches)
        ]

    for a, b in zip(mixed(reference), mixed(take(10, repeats=3, workers=2, mix=mix)), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_other_seeds_and_epochs_give_other_orders_and_other_views():
    first, second = take(4), take(4, start=4)  # epochs of 4 steps
    assert loader().steps_per_epoch == 4
    assert loader().samples_per_epoch == 48
    order = [i for b in first for i in b.indices]
    assert order != [i for b in second for i in b.indices]
    assert order != [i for b in take(4, seed=6) for i in b.indices]
    seen = dict(zip(order, torch.cat([b.images for b in first]), strict=True))
    again = dict(
        zip([i for b in second for i in b.indices], torch.cat([b.images for b in second]), strict=True)
    )
    common = set(seen) & set(again)
    assert len(common) > 40
    assert sum(torch.equal(seen[i], again[i]) for i in common) < 3


def test_no_two_samples_of_a_run_share_their_random_numbers():
    train = TrainLoader(Few(), lambda image: torch.rand(4), batch_size=10, seed=0, repeats=2)
    drawn = torch.cat([batch.images for step in islice(train.batches(), 40) for batch in step])
    assert len({tuple(row) for row in drawn.tolist()}) == 400


def test_an_epoch_shows_each_image_once_and_drops_the_rest():
    order = [i for b in take(4) for i in b.indices]
    assert len(set(order)) == len(order) == 48


@pytest.mark.slow
def test_repeats_draw_each_image_thrice_side_by_side_with_other_views():
    batches = take(4, repeats=3)
    order = [i for b in batches for i in b.indices]
    assert set(Counter(order).values()) == {3}
    assert order[0] == order[1] == order[2]
    views = batches[0].images
    assert not torch.equal(views[0], views[1])
    later = {i for step in range(4, 80, 4) for b in take(4, start=step, repeats=3) for i in b.indices}
    assert later == set(range(50))  # another third each epoch: no image is left out for good


@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_random_state_is_left_alone(workers):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    take(2, workers=workers)
    assert torch.equal(torch.rand(1), expected[0])
    assert np.random.rand() == expected[1]  # noqa: NPY002


def test_the_callers_random_state_has_no_influence(reference):
    torch.manual_seed(99)
    assert same(take(10, repeats=3), reference)


def test_a_new_iterator_ends_the_old_one():
    train = loader()
    old = train.batches()
    next(old)
    new = train.batches(0)
    next(new)
    assert list(old) == []
    train.close()
    assert list(new) == []
    train.close()


def test_names_and_indices_come_along():
    batch = take(1)[0]
    numbers = Few().digits.numbers
    assert list(batch.names) == [f"digits/train/{numbers[i]}" for i in batch.indices]


# Unreadable images


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_an_error_with_its_name(workers):
    with pytest.raises(BadImage, match="Cannot read image 'digit 3': the file is empty"):
        take(8, dataset=Few(bad=[3]), workers=workers)


@pytest.mark.slow
def test_skipped_images_are_replaced_listed_and_reported_once(caplog):
    whole = take(8)
    train = loader(Few(bad=[3]), on_bad="skip")
    batches = [b for step in islice(train.batches(), 8) for b in step]
    assert train.bad == {"digit 3": "the file is empty"}
    assert [r.getMessage() for r in caplog.records] == [
        "Cannot read image 'digit 3': the file is empty. It is skipped."
    ]
    hit = 0
    for a, b in zip(whole, batches, strict=True):
        assert len(b) == len(a)
        for i, (x, y) in enumerate(zip(a.indices, b.indices, strict=True)):
            hit += x == 3
            assert (y != 3) if x == 3 else (x == y and torch.equal(a.images[i], b.images[i]))
    assert hit
    assert same(take(8, dataset=Few(bad=[3]), on_bad="skip", workers=2), batches)


def test_too_many_unreadable_images_end_the_run():
    with pytest.raises(ValueError) as caught:
        take(8, dataset=Few(bad=[3, 4]), on_bad="skip")
    text = str(caught.value)
    assert text.startswith(
        "2 of 50 images cannot be read, more than data.bad_limit=0.001 allows; the last: Cannot"
    )
    take(8, dataset=Few(bad=[3, 4]), on_bad="skip", bad_limit=0.04)


def test_a_set_of_unreadable_images_ends():
    with pytest.raises(ValueError, match="images cannot be read"):
        take(1, dataset=Few(bad=range(50)), on_bad="skip")


# Errors


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"batch_size": 10, "world_size": 3},
            "data.batch_size must be a multiple of GPUs x accumulation; got batch_size=10, 3 GPUs, accumulate=2.",
        ),
        ({"batch_size": 60}, "The training set has 50 images, fewer than one batch of 60."),
        (
            {"batch_size": 6, "mix": "mixup(0.8)"},
            "data.mix pairs images, so each GPU needs an even number per micro-batch;"
            " got batch_size=6, 1 GPUs, accumulate=2: 3.",
        ),
    ],
)
def test_impossible_batches(options, text):
    with pytest.raises(ValueError) as caught:
        loader(**options)
    assert str(caught.value) == text


def test_images_of_different_size_in_a_batch():
    samples = [Sample(torch.zeros(3, n, 8), 0, "x") for n in (8, 9)]
    with pytest.raises(ValueError) as caught:
        collate(samples, [0, 1])
    assert str(caught.value) == (
        "The images of a batch must have one size; got (3, 8, 8) and (3, 9, 8). Let data.augment crop or resize."
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "digit"}, "Unknown data set 'digit'. Did you mean 'digits'?"),
        (
            {"options": {"fractoin": 1}},
            "The data set 'digits' has no option 'fractoin'. Did you mean 'fraction'?",
        ),
        (
            {"root": "/tmp"},
            "The data set 'digits' needs no root; got '/tmp'. data.name names a set that reads folders.",
        ),
        ({"options": {"fraction": 0}}, "fraction is above 0 and at most 1; got 0."),
        (
            {"name": "image_folder"},
            "An image folder needs its root (ROOT/train/CLASS/IMAGE and ROOT/val/CLASS/IMAGE).",
        ),
    ],
)
def test_configs_of_what_is_not_there(options, text):
    config = DataConfig(**{"name": "digits", "batch_size": 8, **options})
    with pytest.raises(ValueError) as caught:
        make_train_loader(config, seed=0)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"augment": "crp(224)"}, "Unknown augmentation 'crp'. Did you mean 'crop'?"),
        ({"mix": "mixup(-1)"}, "mixup takes alpha, 0.001 up; got -1."),
        ({"workers": -1}, "workers is auto, or 0 or more; got -1."),
    ],
)
def test_configs_are_checked_when_they_are_read(options, text):
    with pytest.raises(ValidationError) as caught:
        DataConfig(name="digits", batch_size=8, **options)
    assert text in str(caught.value)


# Evaluation


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_image_once(workers, world_size):
    config = DataConfig(name="digits", image_size=16, batch_size=64, val_batch_size=50, workers=workers)
    labels = {}
    for rank in range(world_size):
        evaluation = make_eval_loader(config, rank=rank, world_size=world_size)
        assert evaluation.total == 359
        batches = list(evaluation)
        assert len(batches) == len(evaluation)
        assert max(map(len, batches)) == 50
        for batch in batches:
            assert batch.images.shape[1:] == (3, 16, 16)
            for index, label in zip(batch.indices, batch.targets.tolist(), strict=True):
                assert index not in labels
                labels[index] = label
    assert [labels[i] for i in range(359)] == Digits(None, "val").labels.tolist()


def test_evaluation_goes_around_again():
    evaluation = make_eval_loader(DataConfig(name="digits", image_size=16, batch_size=128))
    assert same(list(evaluation), list(evaluation))


def test_evaluation_leaves_out_what_it_cannot_read():
    transform = eval_transform(Preprocess(size=16))
    evaluation = EvalLoader(Few(10, bad=[2, 3]), transform, batch_size=2, on_bad="skip", bad_limit=0.2)
    assert [i for b in evaluation for i in b.indices] == [0, 1, 4, 5, 6, 7, 8, 9]
    assert sorted(evaluation.bad) == ["digit 2", "digit 3"]
    with pytest.raises(BadImage):
        list(EvalLoader(Few(10, bad=[2]), transform, batch_size=2))


# Image folders, workers, signals


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(n):
                array = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
                Image.fromarray(array).save(tmp_path / split / name / f"{i}.jpg")
    return tmp_path


def test_an_image_folder_from_end_to_end(folder):
    config = DataConfig(name="image_folder", root=folder, image_size=32, batch_size=4, augment="crop | flip")
    runs = []
    for workers in (0, 2):
        train = make_train_loader(config.model_copy(update={"workers": workers}), seed=0)
        runs.append([b for step in islice(train.batches(), 5) for b in step])
        train.close()
    assert same(*runs)
    assert runs[0][0].images.shape == (4, 3, 32, 32)
    assert runs[0][0].images.is_contiguous()
    assert all(os.path.isfile(name) for name in runs[0][0].names)


def test_automatic_workers(monkeypatch):
    assert resolve_workers("auto", Digits(None, "train")) == 0
    assert resolve_workers(3, Digits(None, "train")) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    assert resolve_workers("auto", Few()) == 15
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert resolve_workers("auto", Few()) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert resolve_workers("auto", Few()) == 1


PROGRAM = """
import multiprocessing, sys, time
from tetravit.data.config import DataConfig
from tetravit.data.loader import make_train_loader
train = make_train_loader(
    DataConfig(name="digits", image_size=16, batch_size=8, augment="resize", workers=2), seed=0
)
batches = train.batches()
for _ in range(8):  # both workers have given batches, so both are past their start
    next(batches)
print(*(p.pid for p in multiprocessing.active_children()), flush=True)
sys.stdin.readline()
for _ in range(30):
    next(batches)
print("went on", flush=True)
"""


@pytest.fixture
def program():
    """A process whose loader has two workers; their ids."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = list(map(int, process.stdout.readline().split()))
    assert len(workers) == 2
    yield process, workers
    process.kill()
    process.communicate()


def gone(pids, seconds):
    """Whether all processes end in time; zombies of a dead parent count as ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.1)
    return False


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc")
def test_signals_to_the_workers_change_nothing_and_all_end_with_the_parent(program):
    process, workers = program
    for pid in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, number)
    out, err = process.communicate("\n", timeout=60)
    assert out == "went on\n"
    assert process.returncode == 0, err
    assert err == ""
    assert gone(workers, 1)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc")
def test_workers_end_when_the_parent_is_killed(program):
    process, workers = program
    process.kill()
    assert gone(workers, 30)
