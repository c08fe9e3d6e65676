"""metrics.csv in the run folder: one row per log line."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tetravit.files import replace_file
from tetravit.trackers.base import RunInfo, Tracker


class Csv(Tracker):
    """Columns are added on demand; on resuming, rows after the current step are dropped."""

    def __init__(self) -> None:
        self._path = Path()
        self._columns = ["step"]
        self._file: IO[str] | None = None

    def open(self, run: RunInfo, identity: str | None) -> str:
        self._path = run.folder / "metrics.csv"
        self.rewind(run.first_step)
        return self._path.name

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **{name: f"{value:.8g}" for name, value in values.items()}}
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite([*self._rows(), row])
            return
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8", newline="")
        csv.DictWriter(self._file, self._columns).writerow(row)
        self._file.flush()

    def rewind(self, step: int) -> None:
        rows = [row for row in self._rows() if int(row["step"]) <= step]
        self._columns = ["step", *(name for name in (rows[0] if rows else {}) if name != "step")]
        self._rewrite(rows)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rows(self) -> list[dict[str, str]]:
        if not self._path.is_file():
            return []
        with self._path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]

    def _rewrite(self, rows: Sequence[Mapping[str, object]]) -> None:
        self.close()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self._path, text.getvalue().encode())


TRACKERS = {"csv": Csv}
