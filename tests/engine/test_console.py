"""The terminal of a run: the bar moves with every step, and a line shows what matters."""

import io

from tetravit.engine.log import Console, Plan


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(step: int, **values: float) -> dict:
    return {"step": step, "epoch": 1.0, **values, "timing": {"images_per_s": 10.0, "left_s": 0.0}}


def test_the_bar_moves_with_every_step_and_names_an_evaluation():
    console = Console(Terminal())
    console.start(Plan([("model", "small")], total_steps=10, steps_per_epoch=5))
    task = console._bar.progress.tasks[0]
    for done in (1, 2, 3):
        console.tick(done)
        assert task.completed == done
    console.step(record(3, lr=0.1, loss=1.0))
    assert "left" in task.description
    console.evaluating()
    assert task.description == "evaluating"
    console.evaluated(record(3, top1=0.5))
    assert task.description.startswith("epoch 1.0")
    console.step(record(10, lr=0.1, loss=1.0))
    assert "0:00" not in task.description
    console.stop()


def test_a_detectors_line_shows_the_learning_rate_and_the_losses():
    stream = io.StringIO()
    console = Console(stream)
    console.start(Plan([], total_steps=10, steps_per_epoch=5))
    console.step(record(5, lr=0.1, loss=4.0, loss_rpn_class=1.0, loss_box=1.0, loss_mask=2.0, accuracy=0.5))
    line = stream.getvalue()
    assert "lr 0.1  loss 4  loss_rpn_class 1  loss_box 1  loss_mask 2  10 images/s" in line
    assert "accuracy" not in line


def test_the_time_left_follows_the_steps_and_leaves_evaluations_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tetravit.engine.log.time.perf_counter", lambda: now[0])
    console = Console(Terminal())
    console.start(Plan([], total_steps=100, steps_per_epoch=50))
    task = console._bar.progress.tasks[0]
    for step in range(1, 11):
        now[0] = 2.0 * step
        console.tick(step)
    assert task.description == "3:00 left"  # 90 steps of 2 s
    console.step(record(10, loss=1.0))
    console.evaluating()
    now[0] = 1000.0  # the evaluation took minutes
    for step in range(11, 16):
        console.tick(step)
        now[0] += 1.0
    assert task.description == "epoch 1.0  loss 1  10 images/s  1:25 left"
    console.stop()


def test_an_evaluation_of_a_detector_shows_ap_and_ap50():
    stream = io.StringIO()
    console = Console(stream)
    console.start(Plan([], total_steps=10, steps_per_epoch=5))
    console.evaluated(
        record(5, box_ap=0.5, box_ap50=0.7, box_ar100=0.6, ema_box_ap=0.6, ema_box_ap_small=0.1)
    )
    assert stream.getvalue() == "step 5/10  epoch 1.0  box_ap 0.5  box_ap50 0.7  ema_box_ap 0.6\n"
