"""Augmentations: what each promises, and that they are those of timm, on which the papers trained."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import auto_augment, random_erasing
from timm.data import mixup as timm_mixup
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms.v2 import functional as F

from tetravit.data.augment import parse
from tetravit.data.geometry import Boxes
from tetravit.data.imageops import FILL, OPERATIONS, apply
from tetravit.data.transforms import TRANSFORMS
from tetravit.data.transforms.affine import Affine
from tetravit.data.transforms.autoaugment import POLICY
from tetravit.data.transforms.base import from_pillow, to_pillow
from tetravit.data.transforms.crop import RandomResizedCrop
from tetravit.data.transforms.erase import Erase
from tetravit.data.transforms.mixup import parse_mix, soft_targets
from tetravit.data.transforms.normalize import Normalize
from tetravit.data.transforms.randaugment import CHOICES, RandAugment

PHOTO = torch.from_numpy(np.array(load_sample_image("flower.jpg"))[100:180, 200:300]).permute(
    2, 0, 1
)  # (3, 80, 100)
FULL = "crop(32, interpolation='random') | flip | color(0.4, hue=0.1) | randaugment(2, 9) | erase(0.5)"

# fmt: off
EXAMPLES = {
    "crop": "crop(24)", "pad_crop": "pad_crop(80)", "resize": "resize(24)", "center_crop": "center_crop(24)",
    "flip": "flip", "color": "color(0.4)", "affine": "affine(10, 0.1, (0.9, 1.1), 5)", "rotate": "rotate(20)",
    "shift": "shift(0.1)", "randaugment": "randaugment(2, 9)", "three_augment": "three_augment",
    "autoaugment": "autoaugment", "normalize": "normalize", "erase": "erase(1.0)",
    "rescale": "rescale(40, 200)", "cut": "cut(24)", "distort": "distort", "fill": "fill(120)",
    "fit": "fit(40, 60)", "multiscale": "multiscale",
    "jitter": "jitter", "gray": "gray(0.5)", "blur": "blur", "solarize": "solarize(0.5)", "elastic": "elastic",
}
SIZES = {
    "crop": (24, 24), "resize": (24, 24), "center_crop": (24, 24), "pad_crop": (80, 80), "cut": (24, 24),
    "fill": (120, 120), "fit": (40, 50), "rescale": None, "multiscale": None,  # as drawn
}
FIXED = {"resize", "center_crop", "normalize", "fill", "fit"}  # nothing random
# fmt: on


# Every augmentation


def test_every_augmentation_has_an_example_here():
    assert set(EXAMPLES) == set(TRANSFORMS)


@pytest.mark.parametrize("layout", ["contiguous", "decoded"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_result_is_float_and_repeats_with_the_seed(name, layout):
    image = PHOTO.contiguous() if layout == "contiguous" else PHOTO
    before = image.clone()
    transform = parse(EXAMPLES[name])
    torch.manual_seed(3)
    out = transform(image)
    torch.manual_seed(3)
    assert torch.equal(transform(image), out)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert out.isfinite().all()
    assert torch.equal(image, before)  # what the data set keeps is not written to
    size = SIZES.get(name, (80, 100))
    assert size is None or out.shape == (3, *size)


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - FIXED))
def test_other_seeds_give_other_views(name):
    transform = parse(EXAMPLES[name])
    views = []
    for seed in range(12):
        torch.manual_seed(seed)
        views.append(transform(PHOTO))
    assert any(not torch.equal(view, views[0]) for view in views)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_the_stack_takes_images_of_any_shape(shape):
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    for seed in range(10):
        torch.manual_seed(seed)
        assert parse(FULL)(image).shape == (3, 32, 32)


def test_only_torchs_generator_is_drawn_from():
    state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    parse(FULL)(PHOTO)
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002


def test_boxes_follow_where_they_can_and_are_refused_where_not():
    boxes = Boxes(torch.tensor([[10.0, 20.0, 30.0, 40.0]]), (80, 100))
    image, flipped = TRANSFORMS["flip"](1.0)(PHOTO, boxes)
    assert flipped.values.tolist() == [[70.0, 20.0, 90.0, 40.0]]
    assert torch.equal(image, PHOTO.flip(-1))
    for step in (RandAugment(), Affine(10), Erase(1.0)):
        with pytest.raises(ValueError) as caught:
            step(PHOTO, boxes)
        assert (
            str(caught.value) == f"{type(step).__name__} moves pixels only; boxes and masks cannot follow it."
        )


# The text


def test_normalizing_is_put_where_it_belongs():
    def kinds(text):
        return [type(step).__name__ for step in parse(text).steps]

    assert kinds("crop(8) | flip | erase(0.2)") == ["RandomResizedCrop", "Flip", "Normalize", "Erase"]
    assert kinds("flip") == ["Flip", "Normalize"]
    assert kinds("") == ["Normalize"]
    assert kinds("flip | normalize | erase") == ["Flip", "Normalize", "Erase"]


def test_the_size_may_come_from_the_recipe():
    assert parse("crop | flip", size=48).steps[0].size == (48, 48)
    assert parse("crop(24)", size=48).steps[0].size == (24, 24)
    assert parse("crop(size=24)", size=48).steps[0].size == (24, 24)
    assert parse("affine(10)", size=48).steps[0].size == (48, 48)
    assert parse("affine(10)").steps[0].size is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flipp", "Unknown augmentation 'flipp'. Did you mean 'flip'?"),
        ("pad_crop", "pad_crop takes (size, pad=4); got 'pad_crop'."),
        ("flip(0.5, 2)", "flip takes (p=0.5); got 'flip(0.5, 2)'."),
        ("flip(q=1)", "flip takes (p=0.5); got 'flip(q=1)'."),
        ("crop(24", "An augmentation reads name or name(arguments), parts joined by |; got 'crop(24'."),
        ("flip || flip", "An augmentation reads name or name(arguments), parts joined by |; got ''."),
        ("flip(print(1))", "An augmentation reads name or name(arguments), parts joined by |; got 'flip(print(1))'."),
        ("os.getcwd()", "An augmentation reads name or name(arguments), parts joined by |; got 'os.getcwd()'."),
        ("flip(**{})", "An augmentation reads name or name(arguments), parts joined by |; got 'flip(**{})'."),
        ("flip(2)", "flip takes a probability from 0 to 1; got 2."),
        ("crop(0)", "crop takes a size in pixels from 1 up; got 0."),
        ("crop(24.5)", "crop takes a size in pixels from 1 up; got 24.5."),
        ("crop(24, (1, 0.5))", "crop takes scale as (from, to), 0 to 1; got (1, 0.5)."),
        ("crop(24, interpolation='cubic')", "crop has no interpolation 'cubic'. Did you mean 'bicubic'?"),
        ("randaugment(0)", "randaugment takes a count n from 1 up; got 0."),
        ("randaugment(2, 11)", "randaugment takes a level m, 0 to 10; got 11."),
        ("color(-1)", "color takes brightness, 0 up; got -1."),
        ("resize(24, keep='it')", "resize takes keep as one of square, ratio; got 'it'."),
        ("erase | flip", "flip works on pixels; put it before erase in 'erase | flip'."),
        ("erase | normalize", "erase works on normalized values; put it after normalize in 'erase | normalize'."),
        ("normalize((1,), (0,))", "normalize takes one mean and one std above 0 per channel; got (1,), (0,)."),
    ],
)  # fmt: skip
def test_texts_that_do_not_read(text, message):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value) == message


def test_a_crop_that_does_not_fit_says_so():
    with pytest.raises(ValueError) as caught:
        parse("pad_crop(96, 4)")(PHOTO)
    assert str(caught.value) == "pad_crop(96, 4) does not fit an image of 80 x 100 pixels."


# Against timm


RESAMPLE = Image.Resampling.BICUBIC


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", [0.0, 0.7, 3.3, 5.0, 8.61, 9.0, 9.99, 10.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_timm(name, level, sign, monkeypatch):
    monkeypatch.setattr(random, "random", lambda: 0.9 if sign < 0 else 0.1)
    hparams = {"img_mean": FILL, "interpolation": RESAMPLE}
    level_to_arg = auto_augment.LEVEL_TO_ARG[name]
    args = level_to_arg(level, hparams) if level_to_arg else ()
    image = to_pillow(PHOTO)
    ours = np.asarray(apply(name, image, level, sign, RESAMPLE))
    if name.startswith("Posterize") and args[0] == 0:  # black; Pillow itself no longer allows it
        assert not ours.any()
        return
    theirs = auto_augment.NAME_TO_OP[name](image, *args, fillcolor=FILL, resample=RESAMPLE)
    assert (ours == np.asarray(theirs)).all()


def test_randaugment_draws_from_timms_list():
    assert list(CHOICES) == auto_augment._RAND_INCREASING_TRANSFORMS


def test_randaugment_draws_as_timm_does():
    """Operations evenly, with replacement, each half of the time; levels normal around 9, cut at 10."""
    step = RandAugment(2, 9)
    torch.manual_seed(0)
    drawn = [step.make_params([PHOTO])["steps"] for _ in range(4000)]
    steps = [s for d in drawn for s in d]
    assert len(steps) / 8000 == pytest.approx(0.5, abs=0.02)
    counts = np.unique([name for name, _, _ in steps], return_counts=True)[1]
    assert len(counts) == 15
    assert counts / len(steps) == pytest.approx(1 / 15, abs=0.015)
    levels = np.array([level for _, level, _ in steps])
    assert levels.max() == 10
    assert (levels == 10).mean() == pytest.approx(0.0228, abs=0.01)  # above two deviations
    assert np.median(levels) == pytest.approx(9, abs=0.03)
    assert np.quantile(levels, 0.1587) == pytest.approx(8.5, abs=0.05)
    assert np.mean([s for _, _, s in steps]) == pytest.approx(0, abs=0.05)
    assert any(len(d) == 2 and d[0][0] == d[1][0] for d in drawn)


def test_autoaugment_has_timms_policy():
    theirs = auto_augment.auto_augment_policy_original(auto_augment._HPARAMS_DEFAULT)
    assert [[(op.name, op.prob, op.magnitude) for op in pair] for pair in theirs] == [list(p) for p in POLICY]


def test_three_augment_takes_one_of_three():
    step = TRANSFORMS["three_augment"]()
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        params = step.make_params([PHOTO])
        assert 0.1 <= params["radius"] <= 2
        out = step.transform(PHOTO, params)
        seen.add(params["choice"])
        if params["choice"] == "gray":
            assert torch.equal(out[0], out[1])
            assert torch.equal(out[1], out[2])
        elif params["choice"] == "solarize":
            assert torch.equal(out, torch.where(PHOTO < 128, PHOTO, 255 - PHOTO))
        else:
            assert out.float().std() < PHOTO.float().std()
    assert seen == {"gray", "solarize", "blur"}


class Numbers:
    """Hands the same random numbers to both sides."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.made = []

    def uniform(self, low, high):
        self.made.append(self.rng.random())
        return low + (high - low) * self.made[-1]

    def randint(self, low, high):
        self.made.append(self.rng.random())
        return low + int(self.made[-1] * (high - low + 1))


def replay(numbers, monkeypatch, module):
    rest = iter(numbers.made)
    monkeypatch.setattr(module, "uniform", lambda low, high: low + (high - low) * next(rest))
    monkeypatch.setattr(module, "randint", lambda high: int(next(rest) * high))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shape", [(80, 100), (20, 300), (300, 20)])
def test_crop_boxes_are_those_of_timm(shape, seed, monkeypatch):
    import tetravit.data.transforms.crop as module

    numbers = Numbers(seed)
    monkeypatch.setattr(random, "uniform", numbers.uniform)
    monkeypatch.setattr(random, "randint", numbers.randint)
    image = Image.new("RGB", shape[::-1])
    theirs = RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
    replay(numbers, monkeypatch, module)
    assert RandomResizedCrop(24)._box(*shape) == theirs


def test_crops_are_resized_as_by_pillow():
    step = RandomResizedCrop(48)
    params = {"top": 5, "left": 9, "height": 70, "width": 60, "interpolation": "bicubic"}
    ours = step.transform(PHOTO, params)
    theirs = from_pillow(to_pillow(PHOTO).crop((9, 5, 69, 75)).resize((48, 48), RESAMPLE))
    difference = (ours.int() - theirs.int()).abs().float()
    assert difference.max() <= 2
    assert difference.mean() < 0.1


@pytest.mark.parametrize("seed", range(20))
def test_erased_boxes_are_those_of_timm(seed, monkeypatch):
    import tetravit.data.transforms.erase as module

    numbers = Numbers(seed)
    monkeypatch.setattr(random, "uniform", numbers.uniform)
    monkeypatch.setattr(random, "randint", numbers.randint)
    monkeypatch.setattr(random, "random", lambda: 0.0)
    theirs = torch.zeros(3, 40, 60)
    random_erasing.RandomErasing(1.0, mode="pixel", device="cpu")(theirs)
    replay(numbers, monkeypatch, module)
    image = torch.zeros(3, 40, 60)
    ours = Erase(1.0)(image)
    assert torch.equal(ours != 0, theirs != 0)
    assert not image.any()


def test_erasing_fills_with_normal_noise_as_often_as_asked():
    step = Erase(0.25)
    torch.manual_seed(0)
    erased = [step(torch.full((3, 64, 64), 99.0)) for _ in range(400)]
    hit = [e for e in erased if (e != 99).any()]
    assert len(hit) / 400 == pytest.approx(0.25, abs=0.06)
    noise = torch.cat([e[e != 99] for e in hit])
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    areas = [(e[0] != 99).float().mean().item() for e in hit]
    assert min(areas) > 0.015
    assert max(areas) < 0.35


def test_normalizing():
    out = Normalize((0.5, 0.4, 0.3), (0.2, 0.1, 0.5))(torch.full((3, 1, 1), 51, dtype=torch.uint8))
    assert out.flatten().tolist() == pytest.approx([(0.2 - 0.5) / 0.2, (0.2 - 0.4) / 0.1, (0.2 - 0.3) / 0.5])
    floats = torch.full((3, 1, 1), 0.2)
    assert torch.allclose(Normalize((0.5, 0.4, 0.3), (0.2, 0.1, 0.5))(floats), out)
    assert floats[0, 0, 0] == pytest.approx(0.2)  # left as it was


# Affine maps


def turned(**params):
    defaults = {"angle": 0.0, "shift": (0.0, 0.0), "scale": 1.0, "shear": 0.0}
    return Affine().transform(PHOTO, {**defaults, **params})


def test_affine_maps_do_what_their_numbers_say():
    assert torch.equal(turned(), PHOTO)
    shifted = turned(shift=(2 * 10 / 100, 2 * 5 / 80))
    assert torch.equal(shifted[:, 5:, 10:], PHOTO[:, :-5, :-10])
    assert not shifted[:, :5].any()
    assert not shifted[:, :, :10].any()
    half = turned(angle=math.pi)
    assert (half.int() - PHOTO.flip(1, 2).int()).abs().max() <= 1
    square = PHOTO[:, :, :80].contiguous()
    quarter = Affine().transform(
        square, {"angle": math.pi / 2, "shift": (0.0, 0.0), "scale": 1.0, "shear": 0.0}
    )
    assert min((quarter.int() - square.rot90(k, (1, 2)).int()).abs().max() for k in (1, -1)) <= 1
    assert not turned(scale=0.5)[:, 0].any()


def test_a_turn_keeps_shapes_also_in_oblong_images():
    centred = torch.zeros(3, 40, 80, dtype=torch.uint8)
    centred[:, 10:30, 30:50] = 255  # a square in the middle
    out = Affine().transform(centred, {"angle": math.pi / 2, "shift": (0.0, 0.0), "scale": 1.0, "shear": 0.0})
    assert (out.int() - centred.int()).abs().max() <= 1


def test_affine_with_a_size_samples_the_original_once():
    small = F.resize(PHOTO, [8, 8])
    still = {"angle": 0.0, "shift": (0.0, 0.0), "scale": 1.0, "shear": 0.0}
    out = Affine(size=32).transform(small, still)
    reference = F.resize(small, [32, 32], interpolation=F.InterpolationMode.BICUBIC, antialias=True)
    assert out.shape == (3, 32, 32)
    inside = (out.int() - reference.int())[:, 8:24, 8:24].abs().float()
    assert inside.mean() < 8  # another cubic kernel (-0.75 for -0.5), same place


def test_affine_draws_within_its_limits():
    step = Affine(15, 0.1, (0.5, 2.0), 10)
    drawn = [step.make_params([PHOTO]) for _ in range(300)]
    assert max(abs(d["angle"]) for d in drawn) <= math.radians(15)
    assert max(abs(v) for d in drawn for v in d["shift"]) <= 0.2
    assert 0.5 <= min(d["scale"] for d in drawn) < 0.6
    assert 1.7 < max(d["scale"] for d in drawn) <= 2
    assert np.median([d["scale"] for d in drawn]) == pytest.approx(1, abs=0.15)
    assert max(abs(d["shear"]) for d in drawn) <= math.tan(math.radians(10))


# Mixup and CutMix


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("text", ["mixup(0.8)", "cutmix(1.0)", "mixup(0.8) | cutmix(1.0)"])
def test_mixing_is_that_of_timm(text, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.standard_normal((6, 3, 17, 23), dtype=np.float32))
    labels = torch.from_numpy(rng.integers(0, 10, 6))
    made = {}

    class Recorder:
        """numpy's generator, with a memory."""

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            def draw(*args, **kwargs):
                made.setdefault(name, []).append(getattr(self.inner, name)(*args, **kwargs))
                return made[name][-1]

            return draw

    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda s: Recorder(real(s)))
    kept = images.clone()
    ours = parse_mix(text, 10, 0.1)(images, labels, generator(seed))
    assert torch.equal(images, kept)

    part, *centres = made["integers"]
    both = "|" in text
    cutmix = part == 1 if both else text.startswith("cutmix")
    assert len(centres) == (2 if cutmix else 0)
    rest = iter(centres)
    monkeypatch.setattr(np.random, "beta", lambda a, b: made["beta"][0])
    monkeypatch.setattr(np.random, "rand", lambda: 0.0 if cutmix or not both else 0.9)
    monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: next(rest))
    theirs = timm_mixup.Mixup(
        mixup_alpha=0.8 if "mixup" in text else 0.0,
        cutmix_alpha=1.0 if "cutmix" in text else 0.0,
        label_smoothing=0.1,
        num_classes=10,
    )
    theirs.mix_prob = 2.0
    order = torch.tensor([0, 1, 2, 5, 4, 3])  # the partner of timm's image i is image 5 - i, ours is i + 3
    x, y = theirs(images[order], labels[order])
    assert torch.allclose(ours[0], x[order], atol=1e-6)
    assert torch.allclose(ours[1], y[order], atol=1e-6)
    assert ours[1].sum(1) == pytest.approx(1, abs=1e-5)


def test_mixing_depends_on_the_generator_alone():
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    mix = parse_mix("mixup(0.8) | cutmix(1.0)", 4, 0.1)
    a = mix(images, labels, generator(1))
    torch.manual_seed(5)
    b = mix(images, labels, generator(1))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    others = [mix(images, labels, generator(s))[1] for s in range(2, 8)]
    assert not any(torch.equal(a[1], o) for o in others)


def test_both_kinds_are_drawn_evenly_with_their_distributions():
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    mix = parse_mix("mixup(0.8) | cutmix(1.0)", 2)
    cut, shares = 0, []
    for seed in range(600):
        mixed, targets = mix(images, torch.tensor([0, 1]), generator(seed))
        whole = set(mixed[0].flatten().tolist()) <= {0.0, 1.0}
        cut += whole
        if not whole:
            shares.append(targets[0, 0].item())
            assert mixed[0, 0, 0, 0] == pytest.approx(1 - shares[-1], abs=1e-5)
        else:
            assert mixed[0].mean() == pytest.approx(1 - targets[0, 0].item(), abs=1e-5)
    assert cut / 600 == pytest.approx(0.5, abs=0.07)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.02)


def test_without_mixing_labels_are_smoothed():
    images, labels = torch.rand(3, 3, 4, 4), torch.tensor([0, 2, 1])
    out, targets = parse_mix("", 5, 0.1)(images, labels, generator())
    assert out is images
    assert targets[0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])
    assert torch.equal(soft_targets(labels, 5, 0.0), torch.eye(5)[labels])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixpu(1)", "Unknown mix 'mixpu'. Did you mean 'mixup'?"),
        ("mixup", "mixup takes (alpha); got 'mixup'."),
        ("mixup(0)", "mixup takes alpha, 0.001 up; got 0."),
        ("cutmix('a')", "cutmix takes alpha, 0.001 up; got 'a'."),
        (
            "mixup(0.8) cutmix(1)",
            "A mix reads name or name(arguments), parts joined by |; got 'mixup(0.8) cutmix(1)'.",
        ),
    ],
)
def test_mixes_that_do_not_read(text, message):
    with pytest.raises(ValueError) as caught:
        parse_mix(text, 10)
    assert str(caught.value) == message


def test_an_odd_batch_cannot_be_mixed():
    with pytest.raises(ValueError) as caught:
        parse_mix("mixup(0.8)", 10)(torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 2]), generator())
    assert str(caught.value) == "mix pairs images, so a batch holds an even number; got 3."
