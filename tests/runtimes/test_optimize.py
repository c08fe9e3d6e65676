"""The optimised form is the same model: same answers at every size, whatever runs it."""

import pytest
import torch

import tetravit
from tetravit.models import create_backbone, create_detector, create_model, create_segmenter
from tetravit.runtimes import BACKENDS, CannotRun, base, optimize
from tetravit.runtimes.openvino import streams
from tetravit.runtimes.parts.compare import Compared

pytestmark = pytest.mark.slow  # whole runs and other processes

SHAPES = [(1, 3, 128, 128), (3, 3, 96, 160), (2, 3, 64, 64), (1, 3, 32, 48)]
SMALL = {"depth": 2}
SMALLER = {
    "xcit_nano_12_p8": SMALL,
    "deit_tiny": SMALL,
    "convit_tiny": {"depth": 3, "num_gpsa": 2},
    "gcvit_xxtiny": {"depths": (1, 1, 1, 1)},
    "twins_svt_small": {"depths": (1, 1, 2, 1)},
    "twins_pcpvt_small": {"depths": (1, 1, 1, 1)},
}
OTHER_OPERATIONS = ("xcit_nano_12_p8", "convit_tiny", "gcvit_xxtiny", "twins_svt_small")


@pytest.fixture(scope="module")
def model():
    return create_model("xcit_nano_12_p16", num_classes=5, image_size=64, **SMALL).eval()


def images(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def error(fast, plain, shape):
    x = images(shape)
    with torch.no_grad():
        got, wanted = fast(x), plain(x)
    pairs = [(got, wanted)] if isinstance(got, torch.Tensor) else zip(got, wanted, strict=True)
    return max(((g - w).abs().max() / w.abs().max().clamp(min=1)).item() for g, w in pairs)


def test_norms_behind_convolutions_are_folded_away(model):
    fast = optimize(model, backend="eager")
    assert max(error(fast, model, shape) for shape in SHAPES) < 2e-6
    assert fast.optimized.backend == "eager"
    assert isinstance(model.backbone.patch_embed[0][1], torch.nn.BatchNorm2d)  # the model itself is as it was


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "onnxruntime") for name in SMALLER), *((name, "openvino") for name in OTHER_OPERATIONS)],
)
def test_one_graph_serves_every_batch_and_size(name, backend):
    """OpenVINO reads the same graph: one model for each kind of operations."""
    pytest.importorskip(backend)
    plain = create_model(name, num_classes=5, image_size=64, **SMALLER[name]).eval()
    fast = optimize(plain, backend=backend, example=images(SHAPES[0]))
    assert max(error(fast, plain, shape) for shape in SHAPES) < 2e-5


@pytest.mark.slow
def test_maps_of_a_backbone_and_logits_of_a_segmenter():
    pytest.importorskip("openvino")
    for plain in (
        create_backbone("xcit_nano_12_p16", depth=4, out_blocks=(0, 1, 2, 3)),
        create_segmenter(
            "xcit_nano_12_p16", head="semantic_fpn", num_classes=3, depth=4, out_blocks=(0, 1, 2, 3)
        ),
    ):
        plain = plain.eval()
        fast = optimize(plain, backend="openvino", example=images((1, 3, 64, 96)))
        assert max(error(fast, plain, shape) for shape in [(1, 3, 64, 96), (2, 3, 96, 64)]) < 2e-5


def test_a_detector_finds_the_same():
    plain = create_detector("xcit_nano_12_p16", num_classes=3, depth=4, out_blocks=(0, 1, 2, 3)).eval()
    fast = optimize(plain, backend="eager", example=images((1, 3, 64, 64)))
    (got,), (wanted,) = (m.detect(images((1, 3, 96, 64))) for m in (fast, plain))
    torch.testing.assert_close(got.boxes, wanted.boxes, rtol=1e-4, atol=1e-3)
    assert type(fast) is type(plain)


def test_auto_takes_the_fastest_and_says_what_it_tried(model, monkeypatch):
    def compare(calls, usual):
        seconds = {one: {"other": 0.01, "eager": 1 / 300}[one.backend] for one in calls}
        return Compared(min(seconds, key=seconds.get), seconds, {})

    monkeypatch.setattr("tetravit.runtimes.parts.tune.compare", compare)
    eager = BACKENDS["eager"]
    broken = base.Backend(lambda source: pytest.fail("was built"), lambda: "it needs luck")
    wrong = base.Backend(lambda source: lambda x: source.model(x) + 1.0)
    monkeypatch.setattr(
        "tetravit.runtimes.BACKENDS", {"eager": eager, "other": eager, "wrong": wrong, "broken": broken}
    )
    fast = optimize(model)
    assert fast.optimized.backend == "eager"
    threads = torch.get_num_threads()
    assert str(fast.optimized) == (
        f"eager, {threads} thread{'s' if threads > 1 else ''} (images/s: eager 300, other 100); without broken: it"
        " needs luck; without wrong: its outputs differ by 1.0e+00 of the largest, more than 2e-05"
    )


@pytest.mark.parametrize(
    ("batch", "threads", "parts"),
    [(8, 2, 2), (1, 2, 1), (3, 2, 1), (6, 4, 2), (12, 6, 6), (5, 5, 5), (8, 1, 1)],
)
def test_a_batch_goes_into_equal_parts_with_equal_threads(batch, threads, parts):
    assert streams(batch, threads) == parts


def test_parts_of_a_batch_come_back_in_order(model):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fast = optimize(model, backend="openvino", example=images((4, 3, 64, 64)))
        x = images((4, 3, 64, 64))
        first = fast(x)
        kept = first.clone()
        fast(torch.zeros_like(x))
        with torch.no_grad():
            wanted = model(x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first, kept)  # an answer is not overwritten by the next one
    torch.testing.assert_close(first, wanted, rtol=0, atol=2e-5)
    assert (wanted[0] - wanted[2]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kept_program_of_openvino_gives_the_same_outputs(model, dtype, monkeypatch, tmp_path):
    """It is read in place of the graph: equal to the bit, also for batches that are compiled later."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path))
    monkeypatch.setenv("TETRAVIT_PROGRAMS_GB", "1")
    monkeypatch.setattr(
        "tetravit.runtimes.parts.load.Load.others", lambda load: 0.0
    )  # choices are kept per load
    fast = [optimize(model, dtype, backend="openvino", example=images(SHAPES[2])) for _ in range(2)]
    assert [one.optimized.cached for one in fast] == [False, True]
    for shape in (SHAPES[2], (1, 3, 64, 64), SHAPES[1]):
        assert torch.equal(fast[0](images(shape)), fast[1](images(shape)))
    (file,) = tmp_path.glob("programs/*/*.openvino")
    file.write_bytes(b"another")
    assert not optimize(model, dtype, backend="openvino", example=images(SHAPES[2])).optimized.cached


def test_a_foreign_program_is_compiled_again(model):
    """As another build of OpenVINO might leave it."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")

    class Foreign(base.Programs):
        def read(self, name):
            return b"meta=1.0;ov=1" * 100

    x = images(SHAPES[2])
    runner = BACKENDS["openvino"].build(base.Source(model, x, graphs=base.Graphs(model, programs=Foreign())))
    assert not runner.restore(x.shape)
    with torch.no_grad():
        torch.testing.assert_close(runner(x), model(x), rtol=0, atol=2e-5)


@pytest.mark.parametrize("mask", ["none", "float", "bool"])
def test_attention_keeps_its_answers_in_onnx(mask):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")

    class Attention(torch.nn.Module):
        def forward(self, q, k, v, mask=None):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, generator=generator) for n in (5, 7, 7))
    bias = torch.randn(1, 3, 5, 7, generator=generator)
    given = {"none": (), "float": (bias,), "bool": (bias > -0.5,)}[mask]
    form = base.onnx_form(torch.export.export(Attention(), (q, k, v, *given)))
    steps = [node.op_type for node in form.graph.node]
    assert steps.count("MatMul") == 2
    assert "Reshape" not in steps  # of which torch's own form has two
    names = [x.name for x in form.graph.input]
    feed = {name: x.numpy() for name, x in zip(names, (q, k, v, *given), strict=True)}
    (found,) = reference.ReferenceEvaluator(form).run(None, feed)
    torch.testing.assert_close(torch.from_numpy(found), Attention()(q, k, v, *given), rtol=1e-5, atol=1e-6)


def test_a_size_with_other_answers_stays_with_the_plain_model(model, monkeypatch):
    def build(source):
        return lambda x: source.model(x) + (1.0 if x.shape[2] == 96 else 0.0)

    monkeypatch.setitem(BACKENDS, "odd", base.Backend(build, smallest=64, compared=True))
    fast = optimize(model, backend="odd")
    assert all(error(fast, model, shape) < 1e-6 for shape in SHAPES)


@pytest.mark.slow
def test_openvino_keeps_the_answers_of_gc_vit():
    """Written otherwise, its gated convolutions came back changed."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model, images = create_model("gcvit_xxtiny").eval().requires_grad_(False), torch.randn(2, 3, 224, 224)
    found = BACKENDS["openvino"].build(base.Source(model, images[:1]))(images)
    torch.testing.assert_close(found, model(images), atol=2e-5, rtol=0)


def test_a_backend_that_fails_is_left_out_and_says_why(model, monkeypatch):
    """Whether it cannot be built or cannot run: errors of other programs are of every kind."""

    def broken(source):
        raise RuntimeError("no compiler\nlong story")

    def build(source):
        def run(x):
            raise TypeError("no such op")

        return run

    rows = {"eager": BACKENDS["eager"], "broken": base.Backend(broken), "mute": base.Backend(build)}
    monkeypatch.setattr("tetravit.runtimes.BACKENDS", rows)
    fast = optimize(model)
    assert fast.optimized.backend == "eager"
    assert fast.optimized.left_out == {"broken": "no compiler", "mute": "no such op"}
    with pytest.raises(ValueError, match=r"^The backend 'broken' cannot run this model: no compiler\.$"):
        optimize(model, backend="broken")


def test_a_size_at_which_a_backend_fails_stays_with_the_plain_model(model, monkeypatch):
    def build(source):
        def run(x):
            if x.shape[2] == 96:
                raise RuntimeError("too small")
            return source.model(x)

        return run

    monkeypatch.setitem(BACKENDS, "odd", base.Backend(build, compared=True))
    fast = optimize(model, backend="odd")
    assert all(error(fast, model, shape) < 1e-6 for shape in SHAPES)
    with pytest.raises(ValueError, match=r"got \(1, 5, 96, 96\)"):  # the model's own word, not the backend's
        fast(torch.zeros(1, 5, 96, 96))


def test_a_graph_that_does_not_exist_is_exported_once(model, monkeypatch):
    calls = []

    def exported(graph, example, one_size):
        calls.append(True)
        raise CannotRun("no graph")

    monkeypatch.setattr(base, "exported", exported)
    source = base.Source(model, torch.zeros(1, 3, 64, 64))
    for _ in range(2):
        with pytest.raises(CannotRun, match=r"^no graph$"):
            _ = source.onnx
    assert calls == [True]


def test_one_graph_serves_all_backends_and_its_size(model, monkeypatch):
    made, seen = [], []

    def exported(graph, example, one_size):
        made.append((next(graph.parameters()).dtype, tuple(example.shape[2:]), one_size))
        return b"graph"

    def build(source):
        seen.append(source.onnx)
        return source.model

    monkeypatch.setattr(base, "exported", exported)
    monkeypatch.setattr("tetravit.runtimes.BACKENDS", {"a": base.Backend(build), "b": base.Backend(build)})
    for dtype in (torch.float32, torch.bfloat16):
        made.clear()
        seen.clear()
        assert error(optimize(model, dtype), model, SHAPES[0]) < 0.1
        assert (made, seen) == ([(torch.float32, (64, 64), True)], [b"graph", b"graph"])


def test_few_sizes_have_their_own_graph_and_many_share_one(model, monkeypatch):
    made = []
    monkeypatch.setattr(
        base, "exported", lambda graph, example, one_size: made.append(example.shape[2]) or b"graph"
    )
    graphs = base.Graphs(model, one_size=True)
    for side in (64, 64, 96, 128, 160, 192, 224, 64):
        graphs.of(base.images_of((1, 3, side, side)))
    assert made == [64, 96, 128, 160, 192, 64]  # of graphs without a file, the last two are held
    assert sum(isinstance(graph, bytes) for graph in graphs._graphs.values()) == base.HELD


def test_weights_are_copied_once_and_folded_ones_beside_them(model, monkeypatch):
    sources = []

    def build(source):
        sources.append(source)
        return base.folded(source.model)

    monkeypatch.setitem(BACKENDS, "kept", base.Backend(build))
    fast = optimize(model, backend="kept")
    own, given = dict(fast.named_parameters()), dict(sources[0].model.named_parameters())
    assert all(given[name] is own[name] for name in own)
    assert not any(own[name].data_ptr() == x.data_ptr() for name, x in model.named_parameters())
    kept = dict(base.folded(sources[0].model).named_parameters())
    others = {name for name in kept if kept[name] is not own.get(name)}
    assert others
    assert all(name.startswith("backbone.patch_embed.") for name in others)


def test_lower_precision_keeps_float32_outputs(model):
    fast = optimize(model, torch.bfloat16, backend="eager")
    x = images(SHAPES[0])
    with torch.no_grad():
        got, wanted = fast(x), model(x)
    assert got.dtype == torch.float32
    assert 0 < (got - wanted).abs().max() < 0.1


def test_the_copy_has_no_gradients(model):
    assert not any(p.requires_grad for p in optimize(model, backend="eager").parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_mistakes(model, monkeypatch):
    with pytest.raises(ValueError, match=r"^Unknown backend 'openvin'\. Did you mean 'openvino'\?$"):
        optimize(model, backend="openvin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = (
        r"^The backend 'openvino' is not available: it needs the extra: pip install 'tetravit\[openvino\]'\.$"
    )
    with pytest.raises(ValueError, match=text):
        optimize(model, backend="openvino")


@pytest.mark.parametrize("verb", ["optimize", "export"])
def test_a_path_is_no_model(verb):
    text = (
        rf"^{verb} takes a model, as create_model or load gives it; got a str: tetravit\.load\('a'\) reads one from a"
        r" file\.$"
    )
    with pytest.raises(ValueError, match=text):
        getattr(tetravit, verb)(*("a", "b.onnx")[: 1 + (verb == "export")])
