"""Joules from the counters of a made-up machine, and where they go."""

import time
from dataclasses import replace

import pytest
import torch

from tetravit.benchmark import against, speed
from tetravit.benchmark.energy import _Power, joules

CPU = torch.device("cpu")


@pytest.fixture
def powercap(tmp_path):
    """`write(package=microjoules, ...)` sets the counters of a machine with two processors."""
    rows = {
        "intel-rapl:0": "package-0",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl:0:0": "core",
        "intel-rapl-mmio:0": "package-0",
    }
    (tmp_path / "intel-rapl").mkdir()
    for folder, name in rows.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(f"{name}\n")
        (tmp_path / folder / "max_energy_range_uj").write_text("262143328850\n")
        (tmp_path / folder / "energy_uj").write_text("5\n")

    def write(**counts):
        for number, count in counts.items():
            (tmp_path / f"intel-rapl:{number.removeprefix('p')}" / "energy_uj").write_text(f"{count}\n")

    write(p0=1_000_000, p1=7_000_000)
    return tmp_path, write


def test_joules_of_all_processors_since_the_start(powercap):
    folder, write = powercap
    used = joules(CPU, folder)
    assert used() == 0
    write(p0=3_500_000, p1=8_000_000)
    assert used() == pytest.approx(3.5)
    assert used() == pytest.approx(3.5)


def test_a_counter_that_began_again(powercap):
    folder, write = powercap
    write(p0=262_143_328_849)
    used = joules(CPU, folder)
    write(p0=2_000_000)
    assert used() == pytest.approx(2.000001)


def test_what_lies_inside_a_processor_or_around_all_counts_once(powercap):
    folder, _ = powercap
    used = joules(CPU, folder)
    for inner in ("intel-rapl:2", "intel-rapl:0:0", "intel-rapl-mmio:0"):
        (folder / inner / "energy_uj").write_text("99000000")
    assert used() == 0


def test_a_machine_that_does_not_tell(powercap, tmp_path):
    folder, _ = powercap
    assert joules(CPU, tmp_path / "nothing") is None
    assert joules(torch.device("mps"), folder) is None
    (folder / "intel-rapl:1" / "energy_uj").unlink()
    (folder / "intel-rapl:1" / "energy_uj").mkdir()  # an error of the system, for root too
    assert joules(CPU, folder) is None


def test_energy_from_power():
    count = _Power(lambda: 50.0)
    time.sleep(0.02)
    first = count()
    assert 1.0 <= first < 50
    assert count() - first < first


@pytest.mark.slow
def test_rows_and_tables_have_a_column_for_it_where_it_is_told(monkeypatch):
    from tetravit.benchmark.table import cells, columns

    start = time.perf_counter()
    monkeypatch.setattr(speed, "joules", lambda device: lambda: 10 * (time.perf_counter() - start))
    (row,) = speed.measure(["xcit_nano_12_p16"], size=32, batch=2, rounds=1, seconds=0.01)
    silent = replace(row, joules_per_image=None)
    assert row.joules_per_image == pytest.approx(10 / row.images_per_s, rel=0.05)
    assert columns([silent, row])[-1] == "J/image"
    assert cells(silent, [silent, row])[-1] == "-"
    assert len(cells(row, [silent, row])) == len(columns([row])) == len(columns([silent])) + 1


@pytest.mark.slow
def test_contests_too(monkeypatch):
    start = time.perf_counter()
    monkeypatch.setattr(against, "joules", lambda device: lambda: 10 * (time.perf_counter() - start))
    (row,) = against.contest(["xcit_nano_12_p16"], ["plain"], sizes=[32], batch=2, rounds=3, seconds=0.05)
    assert row.joules_per_image == pytest.approx(10 / row.images_per_s, rel=0.05)
