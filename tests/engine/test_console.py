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
    task = console._bar.tasks[0]
    for done in (1, 2, 3):
        console.tick(done)
        assert task.completed == done
    console.step(record(3, lr=0.1, loss=1.0))
    assert "left" in task.description
    console.evaluating()
    assert task.description == "evaluating"
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
