"""report.html: whole, self-contained, and true to the run folder."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from tetravit.data.datasets import DATASETS
from tetravit.models import create_model, save
from tetravit.recipe import dump, find, load
from tetravit.report import read, write
from tetravit.report.charts import Series, line_chart, log_ticks, number, smooth, thin, ticks
from tetravit.report.html import duration, percent

VOID = {"meta", "br", "img", "i", "line", "path", "circle", "rect"}


class Outline(HTMLParser):
    """Checks that tags close in order, and collects texts and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID - {"i"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def run(tmp_path):
    """A run folder with made-up figures and two mistakes; the second class name is hostile."""
    folder = tmp_path / "2026-11-21 <run> & co"
    folder.mkdir()
    (folder / "recipe.toml").write_text(dump(load(find("digits"))))
    (folder / "run.json").write_text(
        json.dumps({"version": "0.1.0", "end": "2026-11-21T10:02:44+00:00", "seed": 0})
    )
    digits = DATASETS["digits"](None, "val")
    steps = [
        {"event": "step", "step": s, "epoch": s / 10, "lr": 1e-3, "loss": 2 / s} for s in range(10, 101, 10)
    ]
    scores = [
        {
            "event": "evaluation",
            "step": s,
            "epoch": s / 10,
            "top1": 0.9 + s / 2000,
            "ema_top1": 0.99,
            "loss": 0.3,
        }
        for s in (50, 100)
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in steps + scores) + '{"event": "st'
    )
    (folder / "timing.jsonl").write_text(
        '{"event": "step", "step": 10, "images_per_s": 250.0, "seconds": 125.0}\n'
    )
    matrix = [[35 if i == j else 0 for j in range(10)] for i in range(10)]
    matrix[3][8] = 2
    mistakes = [
        {"name": digits[i].name, "index": i, "label": 3, "predicted": 8, "confidence": p}
        for i, p in ((7, 0.913), (9, 0.5))
    ]
    evaluation = {"step": 100, "weights": "ema", "top1": 0.9944, "top5": 1.0, "loss": 0.031, "count": 359}
    names = ["0", "<script>alert(1)</script>", *"23456789"]
    found = {**evaluation, "class_names": names, "confusion": {"matrix": matrix}, "mistakes": mistakes}
    (folder / "evaluation.json").write_text(json.dumps(found))
    return folder


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_is_whole_and_needs_nothing_else(run):
    html = write(run).read_text()
    found = outline(html)
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert len(found.addresses) == 2
    assert not re.search(r"@import|url\(|<link|https?://(?!www\.w3\.org/)", html)
    assert html.isascii()


def test_the_page_says_what_the_folder_says(run):
    texts = " ".join(outline(write(run).read_text()).texts)
    for words in (
        "xcit_nano_12_p8 on digits",
        "99.44 %",
        "EMA weights of step 100",
        "of 359 images",
        "2 min 5 s",
        "91.3 %",
        "2026-11-21 10:02 UTC",
        f"epochs={2 * load(find('digits')).epochs:g}",  # twice the recipe's
        'name = "classify"',
    ):
        assert words in texts, words


def test_what_users_write_stays_text(run):
    html = write(run).read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "2026-11-21 &lt;run&gt; &amp; co" in html


def test_a_run_without_scores_has_a_page(tmp_path):
    (tmp_path / "recipe.toml").write_text(dump(load(find("digits"))))
    found = outline(write(tmp_path).read_text())
    assert "Most confident mistakes" not in found.texts
    assert "Recipe" in found.texts


def test_data_that_has_gone_costs_only_the_pictures(run):
    recipe = (
        (run / "recipe.toml").read_text().replace('name = "digits"', 'name = "image_folder"\nroot = "/gone"')
    )
    (run / "recipe.toml").write_text(recipe)
    found = outline(write(run).read_text())
    assert found.addresses == []
    assert "Confusion matrix" in found.texts


def test_many_classes_are_shown_by_what_is_confused_most(run):
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["class_names"] = [f"class {i}" for i in range(100)]
    evaluation["confusion"] = {"pairs": [[5, 7, 12], [1, 2, 3]], "recall": [1 - i / 200 for i in range(100)]}
    (run / "evaluation.json").write_text(json.dumps({**evaluation, "mistakes": []}))
    texts = outline(write(run).read_text()).texts
    assert texts.index("class 5") < texts.index("class 1")
    assert "class 99" in texts
    assert "None: every image is classified correctly." in texts


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no run folder: it has no recipe\.toml\.$"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off_is_left_out(run):
    found = read(run)
    assert (len(found.steps), len(found.evaluations), len(found.timing)) == (10, 2, 1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.981, 0.993, [0.98, 0.9825, 0.985, 0.9875, 0.99, 0.9925, 0.995]),
        (7, 7, [6, 6.5, 7, 7.5, 8]),
    ],
)
def test_ticks_are_round_and_hold_the_range(low, high, expected):
    found = ticks(low, high, 5)
    assert found == pytest.approx(expected)
    assert found[0] <= low
    assert found[-1] >= high


def test_log_ticks_hold_the_range():
    assert log_ticks(0.3, 4) == pytest.approx([0.2, 0.5, 1, 2, 5])
    assert log_ticks(1e-5, 9) == pytest.approx([1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 10])


def test_smoothing_keeps_ends_and_means():
    points = [(i, float(i % 2)) for i in range(1000)]
    found = smooth(points)
    assert found[-1][0] == 999
    assert len(found) <= 201
    assert all(0.4 < y < 0.6 for _, y in found)
    assert smooth(points[:20]) == points[:20]
    assert thin([], 5) == []


def test_a_chart_puts_larger_values_higher():
    svg = line_chart([Series("a", [(0, 1.0), (10, 3.0)])])
    (path,) = re.findall(r'class="curve tone1" d="M(.*?)"', svg)
    (x0, y0), (x1, y1) = (map(float, p.split()) for p in path.split("L"))
    assert x0 < x1
    assert y0 > y1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.00044, "4.4e-4"), (0.12345, "0.1235"), (12345.6, "12,346"), (2e7, "2e7")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(47.6, "48 s"), (120, "2 min"), (125, "2 min 5 s"), (12000, "3 h 20 min"), (3600, "1 h")],
)
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.00 %"), (0.1234, "12.34 %"), (1.0, "100 %"), (None, "-"), (float("nan"), "-")],
)
def test_shares_are_percent_where_there_are_any(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(("top1", "good"), [(0.1, False), (0.19, False), (0.2, True), (0.99, True)])
def test_a_score_of_chance_is_not_green(run, top1, good):
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**evaluation, "top1": top1}))
    assert ('class="tile good"' in write(run).read_text()) is good


def test_recipe_and_environment_are_folded(run):
    html = write(run).read_text()
    assert '<details class="card"><summary>Recipe</summary>' in html
    assert '<details class="card"><summary>Environment</summary>' in html


def test_classes_have_recall_and_precision(run):
    html = write(run).read_text()
    heads = "".join(f'<th class="num">{name}</th>' for name in ("recall", "precision", "images"))
    assert f"<th>class</th>{heads}" in html


def test_axes_fit_the_curve():
    svg = line_chart([Series("a", [(0, 52.0), (10, 98.0)])])
    (path,) = re.findall(r'class="curve tone1" d="M(.*?)"', svg)
    heights = [float(p.split()[1]) for p in path.split("L")]
    top, bottom = 12, 240 - 40
    assert heights[1] - top < 0.06 * (bottom - top)
    assert bottom - heights[0] < 0.06 * (bottom - top)
    assert len(re.findall('class="grid"', svg)) >= 2


def test_maps_stand_beside_confident_mistakes(run):
    torch.manual_seed(0)
    model = create_model("xcit_nano_12_p8", num_classes=10, depth=1)
    save(model, run / "best.safetensors")
    html = write(run).read_text()
    assert html.count("data:image/") == 4  # two mistakes, each with its map
    assert html.count(": attention-gradient") >= 2
    assert "what the predicted class depends on: attention-gradient" in html


def test_maps_end_with_their_time(run, monkeypatch):
    save(create_model("xcit_nano_12_p8", num_classes=10, depth=1), run / "best.safetensors")
    monkeypatch.setattr("tetravit.report.maps.SECONDS", 0.0)
    assert write(run).read_text().count("data:image/") == 2
