"""The choice of a backend, kept and compared again: backends whose times a test sets, with a simulated clock."""

import json
import sys
from functools import partial

import pytest
import torch

from tetravit.models import create_model
from tetravit.runtimes import base, optimize
from tetravit.runtimes.base import Way
from tetravit.runtimes.parts import kept, tune
from tetravit.runtimes.parts.compare import compare
from tetravit.runtimes.parts.watch import EVERY_S, WAIT_S, Watch

MODULE = sys.modules["tetravit.runtimes.optimize"]
X = torch.zeros(4, 3, 64, 64)


class Machine:
    """Backends that take as long as `times` says, per backend or per (backend, threads, split)."""

    def __init__(self, monkeypatch):
        self.now, self.busy, self.times, self.built, self.exported = 0.0, 0.0, {}, [], []
        rows = {name: self.row(name) for name in ("openvino", "onnxruntime", "eager")}
        monkeypatch.setattr("tetravit.runtimes.BACKENDS", rows)
        monkeypatch.setattr(MODULE, "perf_counter", lambda: self.now)
        monkeypatch.setattr(MODULE, "Watch", partial(Watch, clock=lambda: self.now))
        monkeypatch.setattr(MODULE, "Load", lambda: self)
        monkeypatch.setattr(tune, "compare", partial(compare, clock=lambda: self.now, wait=lambda _: None))
        monkeypatch.setattr(MODULE, "compare", partial(compare, clock=lambda: self.now, wait=lambda _: None))
        monkeypatch.setattr(tune, "KNOWN", (tune.platform.machine().lower(),))
        monkeypatch.setattr("torch.get_num_threads", lambda: 2)
        monkeypatch.setattr("tetravit.runtimes.parts.load.cores", lambda: frozenset((0, 1)))
        monkeypatch.setattr(base, "exported", self.export)

    def export(self, model, example, *, one_size):
        assert next(model.parameters()).dtype == torch.float32
        self.exported.append(tuple(example.shape[2:]) if one_size else "any")
        return b"graph"

    def others(self):
        return self.busy

    def row(self, name):
        def build(source):
            self.built.append(name)
            if name != "eager":
                assert source.onnx == b"graph"
            key = name, source.way.threads, source.way.split
            dtype, outputs = source.example.dtype, {}

            def run(images):
                found = self.times.get((name, dtype), self.times.get(key, self.times.get(name, 1.0)))
                self.now += (
                    found.pop(0)
                    if isinstance(found, list) and len(found) > 1
                    else (found[0] if isinstance(found, list) else found)
                )
                if images.data_ptr() not in outputs:  # the model itself runs once
                    outputs[images.data_ptr()] = source.model(images)
                return outputs[images.data_ptr()]

            return run

        def ways(batch, threads, free):
            several = name == "openvino" and free < threads
            return (Way(threads, split=False), Way(free), Way(threads)) if several else (Way(threads),)

        return base.Backend(
            build, compared=name != "eager", ways=ways, parts=lambda batch, way: 1 + way.split
        )


@pytest.fixture
def machine(monkeypatch, tmp_path):
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path))
    monkeypatch.setenv("TETRAVIT_PROGRAMS_GB", "1")
    return Machine(monkeypatch)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("xcit_nano_12_p16", num_classes=3, image_size=64, depth=1).eval()


def run(machine, fast, seconds, images=X):
    """Calls for so many seconds of the machine's clock."""
    end = machine.now + seconds
    while machine.now < end:
        fast(images)


def test_the_likely_winner_stays_without_the_others_being_built(machine, model):
    machine.times = {"openvino": 0.10, "eager": 0.20, "onnxruntime": 0.05}
    fast = optimize(model, example=X)
    assert fast.optimized.backend == "openvino"
    assert machine.built == ["openvino", "eager"]
    assert str(fast.optimized) == "openvino, 2 threads, 2 parts (images/s: openvino 40, eager 20)"


def test_where_it_does_not_lead_clearly_all_are_compared(machine, model):
    machine.times = {"openvino": 0.10, "eager": 0.11, "onnxruntime": 0.05}
    assert optimize(model, example=X).optimized.backend == "onnxruntime"
    assert machine.exported == [(64, 64)]


def test_a_noisy_first_moment_does_not_take_its_place(machine, model):
    machine.times = {"openvino": [0.1, 0.9, 0.9, 0.1], "eager": 0.2, "onnxruntime": 0.3}
    assert optimize(model, example=X).optimized.backend == "openvino"


def test_a_wrong_choice_is_mended_while_running(machine, model):
    """The likely winner was disturbed in every round of the first comparison."""
    machine.times = {"openvino": 0.5, "eager": 0.2, "onnxruntime": 0.4}
    fast = optimize(model, example=X)
    assert fast.optimized.backend == "eager"
    machine.times = {"openvino": 0.05, "eager": 0.1, "onnxruntime": 0.4}  # alone again: all are faster
    run(machine, fast, WAIT_S + 5)
    assert fast.optimized.backend == "openvino"
    assert fast.optimized.images_per_s["openvino"] == pytest.approx(80)


def test_calls_as_fast_as_measured_are_left_alone(machine, model):
    machine.times = {"openvino": 0.1, "eager": 0.2}
    fast = optimize(model, example=X)
    built = list(machine.built)
    run(machine, fast, 10 * WAIT_S)
    assert machine.built == built


def test_slower_calls_bring_another_way(machine, model):
    """One core is taken by another process: parts of equal size wait for the slower one."""
    machine.times = {"openvino": 0.1, "eager": 0.2}
    fast = optimize(model, example=X)
    assert (fast.optimized.threads, fast.optimized.parts) == (2, 2)
    machine.busy = 1.0
    machine.times = {
        ("openvino", 2, True): 0.2,
        ("openvino", 2, False): 0.13,
        ("openvino", 1, True): 0.19,
        "eager": 0.4,
    }
    run(machine, fast, WAIT_S + 10)
    assert (fast.optimized.backend, fast.optimized.threads, fast.optimized.parts) == ("openvino", 2, 1)
    assert set(fast.optimized.images_per_s) == {
        "openvino, 2 threads, 2 parts",
        "openvino, 2 threads",
        "openvino, 1 thread, 2 parts",
        "eager",
    }


def test_an_idle_machine_is_noticed_by_its_load(machine, model):
    """Calls on the one free core take as long as before; only the load says that there is another."""
    machine.busy = 1.0
    machine.times = {"openvino": 0.3, ("openvino", 1, True): 0.1, "eager": 0.4}
    fast = optimize(model, example=X)
    assert fast.optimized.threads == 1
    machine.busy = 0.0
    machine.times[("openvino", 2, True)] = 0.05
    run(machine, fast, WAIT_S + 3 * EVERY_S)
    assert fast.optimized.threads == 2


def test_a_comparison_that_fails_changes_nothing(machine, model):
    machine.times = {"openvino": 0.1, "eager": 0.2}
    fast = optimize(model, example=X)
    before = fast(X)
    machine.times = {"openvino": 0.2, "eager": "broken"}
    run(machine, fast, WAIT_S + 5)
    assert fast.optimized.backend == "openvino"
    assert torch.equal(fast(X), before)


def test_answers_stay_within_the_tolerance_whichever_runs(machine, model):
    machine.times = {"openvino": 0.5, "eager": 0.2, "onnxruntime": 0.4}
    fast = optimize(model, example=X)
    x = torch.randn(4, 3, 64, 64)
    before = fast(x)
    machine.times = {"openvino": 0.05, "eager": 0.1}
    run(machine, fast, WAIT_S + 5)
    assert (fast(x) - before).abs().max() <= tune.ERROR


def test_the_second_start_exports_and_measures_nothing(machine, model):
    machine.times = {"openvino": 0.10, "eager": 0.20}
    first = optimize(model, example=X)
    machine.built.clear()
    machine.times = {"openvino": 0.10, "eager": 0.01}
    second = optimize(model, example=X)
    assert (machine.built, machine.exported) == (["openvino"], [(64, 64)])
    assert not first.optimized.cached
    assert second.optimized.cached
    assert str(second.optimized).endswith(" (images/s: openvino 40, eager 20); read from the cache")
    assert torch.equal(first(X), second(X))


@pytest.mark.slow
def test_another_than_the_likely_winner_is_confirmed_by_the_next_start(machine, model):
    machine.times = {"openvino": 0.5, "eager": 0.2, "onnxruntime": 0.4}
    assert [optimize(model, example=X).optimized.cached for _ in range(3)] == [False, False, True]
    assert machine.exported == [(64, 64)]
    machine.times = {"openvino": 0.1}
    assert optimize(model, example=X).optimized.backend == "eager"


@pytest.mark.parametrize("what", ["weights", "size", "version", "hook"])
def test_other_models_share_nothing(machine, model, what, monkeypatch):
    optimize(model, example=X)
    other = create_model("xcit_nano_12_p16", num_classes=3, image_size=64, depth=1).eval()
    other.load_state_dict(model.state_dict())
    images = X
    if what == "weights":
        with torch.no_grad():
            other.head.bias[0] += 1
    elif what == "size":
        images = torch.zeros(4, 3, 96, 96)
    elif what == "version":
        monkeypatch.setattr("tetravit.runtimes.parts.keep.machine", lambda: {"torch": "another"})
    else:
        other.head.register_forward_hook(lambda module, given, found: found + 1)
    fast = optimize(other, example=images)
    assert not fast.optimized.cached
    assert torch.equal(fast(images), other(images))
    if what == "hook":
        assert fast.optimized.not_kept == "head has hooks"
        assert str(fast.optimized).endswith("; not kept for the next start: head has hooks")
        assert len(kept.entries()) == 1
    else:
        assert len(kept.entries()) == 2


@pytest.mark.parametrize("case", ["batch", "threads", "load", "dtype", "backend"])
def test_a_choice_holds_for_its_case_and_the_graph_for_all(machine, model, case, monkeypatch):
    optimize(model, example=X)
    options = {"example": X}
    if case == "batch":
        options["example"] = X[:1]
    elif case == "threads":
        monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    elif case == "load":
        machine.busy = 1.0
    elif case == "dtype":
        options["dtype"] = torch.bfloat16
    else:
        options["backend"] = "openvino"
    assert [optimize(model, **options).optimized.cached for _ in range(2)] == [False, True]
    assert machine.exported == [(64, 64)]
    assert len(kept.entries()) == 1


def test_another_load_changes_nothing_where_there_is_one_setting(machine, model, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    optimize(model, example=X)
    machine.busy = 1.0
    machine.built.clear()
    assert optimize(model, example=X).optimized.cached
    assert machine.built == ["openvino"]


@pytest.mark.parametrize("damage", ["graph", "choice"])
def test_a_damaged_entry_is_built_again(machine, model, damage):
    machine.times = {"openvino": 0.10, "eager": 0.20}
    optimize(model, example=X)
    (entry,) = kept.entries()
    if damage == "graph":
        entry.file("64x64.onnx").write_bytes(b"grapX")
    else:
        record = json.loads((entry.path / "entry.json").read_text())
        record["choices"] = {case: {"backend": 3} for case in record["choices"]}
        (entry.path / "entry.json").write_text(json.dumps(record))
    assert [optimize(model, example=X).optimized.cached for _ in range(2)] == [False, True]
    assert len(machine.exported) == (2 if damage == "graph" else 1)


def test_a_kept_backend_that_runs_no_more_is_chosen_again(machine, model, monkeypatch):
    machine.times = {"openvino": 0.10, "eager": 0.20, "onnxruntime": 0.3}
    optimize(model, example=X)

    def broken(source):
        raise RuntimeError("no such instruction")

    monkeypatch.setitem(sys.modules["tetravit.runtimes"].BACKENDS, "openvino", base.Backend(broken))
    fast = optimize(model, example=X)
    assert (fast.optimized.backend, fast.optimized.cached) == ("eager", False)
    assert fast.optimized.left_out["openvino"] == "no such instruction"


class Compiled(base.Keepable):
    """A backend whose programs can be kept; `events` are what happens to them."""

    def __init__(self, source, events):
        self.source, self.events, self.fails = source, events, False

    def __call__(self, images):
        if self.fails:
            raise RuntimeError("no such instruction")
        self.events.append("run")
        return self.source.model(images)

    def restore(self, shape):
        content = self.source.graphs.programs.read(self.name(shape))
        self.events.append("restored" if content else "nothing to restore")
        self.fails = content == b"broken"
        return content is not None

    def keep(self, shape):
        self.events.append("kept")
        self.source.graphs.programs.keep(self.name(shape), self.program)

    def name(self, shape):
        return f"{len(shape)}-{shape[0]}.program"

    program = b"program"


@pytest.fixture
def compiled(machine, monkeypatch):
    events = []

    def build(source):
        assert source.onnx == b"graph"
        return Compiled(source, events)

    rows = {"openvino": base.Backend(build, compared=True)}
    monkeypatch.setattr("tetravit.runtimes.BACKENDS", rows)
    return events


def test_the_second_start_reads_the_compiled_program(compiled, model):
    """It neither compiles nor calls anything."""
    first = optimize(model, example=X)
    assert compiled == ["run", "kept"]
    compiled.clear()
    second = optimize(model, example=X)
    assert (compiled, second.optimized.cached) == (["restored"], True)
    assert torch.equal(first(X), second(X))


def test_a_kept_program_is_for_its_shape(compiled, model):
    optimize(model, example=X)
    compiled.clear()
    assert not optimize(model, example=X[:1]).optimized.cached
    assert compiled == ["run", "kept"]
    assert optimize(model, example=X[:1]).optimized.cached


def test_a_changed_program_is_not_read(compiled, model):
    optimize(model, example=X)
    (entry,) = kept.entries()
    entry.file("4-4.program").write_bytes(b"progrAm")
    compiled.clear()
    assert not optimize(model, example=X).optimized.cached
    assert compiled == ["nothing to restore", "run", "kept"]


def test_a_kept_program_that_does_not_run_leaves_the_plain_model(compiled, model, monkeypatch):
    monkeypatch.setattr(Compiled, "program", b"broken")
    optimize(model, example=X)
    fast = optimize(model, example=X)
    assert fast.optimized.cached
    with torch.no_grad():
        assert torch.equal(fast(X), model(X))
        assert torch.equal(fast(X), model(X))


def test_an_entry_holds_few_programs(compiled, model):
    for count in range(1, 7):
        optimize(model, example=X[:1].expand(count, -1, -1, -1))
    (entry,) = kept.entries()
    assert list(entry.facts["files"]) == ["64x64.onnx", *(f"4-{count}.program" for count in range(3, 7))]
    assert len(list(entry.path.iterdir())) == 6


def test_programs_do_not_exceed_the_limit(compiled, model, monkeypatch):
    monkeypatch.setenv("TETRAVIT_PROGRAMS_GB", "8e-9")
    for _ in range(2):
        assert "kept" not in compiled
        optimize(model, example=X)
    (entry,) = kept.entries()
    assert list(entry.facts["files"]) == ["64x64.onnx"]


def test_without_a_folder_to_write_it_works(machine, model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TETRAVIT_HOME", str(tmp_path / "file"))
    machine.times = {"openvino": 0.10, "eager": 0.20}
    fast = optimize(model, example=X)
    assert str(fast.optimized).endswith(
        f"; not kept for the next start: {tmp_path}/file/programs cannot be written: Not a directory"
    )
    assert "\n" not in str(fast.optimized)


def test_auto_type_takes_bfloat16_where_it_is_clearly_faster(machine, model, monkeypatch):
    monkeypatch.setattr(MODULE, "bfloat16_missing", lambda: "")
    machine.times = {("openvino", torch.bfloat16): 0.05, "openvino": 0.10, "eager": 0.20}
    for cached in (False, True):
        fast = optimize(model, "auto", example=torch.randn(4, 3, 64, 64))
        how = fast.optimized
        assert (how.dtype, how.cached) == ("bfloat16", cached)
        assert 0 < how.difference < 0.1
        assert fast(X).dtype == torch.float32
        assert f"outputs within {how.difference:.1e} of those in float32" in str(how)
        assert str(how).startswith("openvino, 2 threads, 2 parts, bfloat16 (")


def test_auto_type_stays_with_float32_without_a_clear_lead_or_instructions(machine, model, monkeypatch):
    machine.times = {("openvino", torch.bfloat16): 0.099, "openvino": 0.10, "eager": 0.20}
    monkeypatch.setattr(MODULE, "bfloat16_missing", lambda: "")
    assert optimize(model, "auto", example=X).optimized.dtype == "float32"
    monkeypatch.setattr(MODULE, "bfloat16_missing", lambda: "no instructions")
    how = optimize(model, "auto", example=X).optimized
    assert (how.dtype, how.left_out) == ("float32", {"bfloat16": "no instructions"})


def test_a_type_that_is_none(model):
    with pytest.raises(ValueError) as error:
        optimize(model, "bf16")
    assert str(error.value) == "dtype takes a torch.dtype, 'auto' or None; got 'bf16'."
