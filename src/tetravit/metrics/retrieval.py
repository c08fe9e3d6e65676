"""Retrieval: mean average precision of revisited Oxford and Paris, whitening, and the ground truth of both sets.

Radenovic et al. 2018, arXiv:1803.11285. Protocols: easy `E`, medium `M`, hard `H`.

Shapes: N database images, Q queries, C width.
Source: facebookresearch/dino@7c446df utils.py, eval_copy_detection.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tetravit.weights.fileformat import BadFile
from tetravit.weights.pickles import Inert, Machine, Refused

PRECISIONS = (1, 5, 10)
# The positives of each protocol, and the images ignored in its ranking.
PROTOCOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "E": (("easy",), ("junk", "hard")),
    "M": (("easy", "hard"), ("junk",)),
    "H": (("hard",), ("junk", "easy")),
}


@dataclass(frozen=True)
class Retrieval:
    """map: mean average precision. aps (Q,): NaN for queries without positives.

    precisions: (Q, 3), at 1, 5 and 10; mean_precisions: their mean over queries with positives.
    """

    map: float
    aps: np.ndarray
    precisions: np.ndarray

    @property
    def mean_precisions(self) -> tuple[float, ...]:
        kept = self.precisions[~np.isnan(self.aps)]
        return tuple(kept.mean(0)) if len(kept) else (float("nan"),) * len(PRECISIONS)


def mean_ap(
    ranks: np.ndarray | Tensor,
    gnd: Sequence[Mapping[str, Any]],
    protocol: Literal["E", "M", "H"],
    *,
    total: Sequence[int] | None = None,
) -> Retrieval:
    """Average precision of every query.

    Args:
        ranks: database images, best first, (N, Q): one column per query; may be truncated.
        gnd: per query the indices of its `easy`, `hard` and `junk` images.
        protocol: easy, medium or hard.
        total: number of positives in the denominator, per query; None: all positives of the ground truth.

    Raises:
        ValueError: for an unknown protocol, or a wrong number of queries.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol takes one of {', '.join(PROTOCOLS)}; got {protocol!r}.")
    table = np.asarray(ranks)
    if table.ndim != 2 or table.shape[1] != len(gnd):
        raise ValueError(f"ranks are (N, {len(gnd)}), a column per query; got {tuple(table.shape)}.")
    positive, junk = PROTOCOLS[protocol]
    aps = np.full(len(gnd), np.nan)
    precisions = np.full((len(gnd), len(PRECISIONS)), np.nan)
    for q, truth in enumerate(gnd):
        wanted = _numbers(truth, positive)
        if not len(wanted):
            continue
        column = table[:, q]
        column = column[~np.isin(column, _numbers(truth, junk))]
        places = np.flatnonzero(np.isin(column, wanted))  # 0-based ranks without junk
        aps[q] = average_precision(places, len(wanted) if total is None else total[q])
        if len(places):
            for i, k in enumerate(PRECISIONS):
                within = min(int(places.max()) + 1, k)
                precisions[q, i] = (places < within).sum() / within
        else:
            precisions[q] = 0.0
    known = aps[~np.isnan(aps)]
    return Retrieval(float(known.mean()) if len(known) else float("nan"), aps, precisions)


def average_precision(places: np.ndarray, positives: int) -> float:
    """Area under the precision-recall curve by the trapezoidal rule; places: ranks of retrieved positives, from 0."""
    j = np.arange(len(places))
    before = np.where(places > 0, j / np.maximum(places, 1), 1.0)
    after = (j + 1) / (places + 1)
    return float(((before + after) / 2).sum() / positives)


def _numbers(truth: Mapping[str, Any], kinds: Sequence[str]) -> np.ndarray:
    parts = [np.asarray(truth[kind], dtype=np.int64).reshape(-1) for kind in kinds if kind in truth]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def ranking(queries: Tensor, database: Tensor) -> Tensor:
    """Database images by descending similarity with each query: (Q, C), (N, C) -> int64 (N, Q)."""
    return (database @ queries.T).argsort(dim=0, descending=True, stable=True)


class Whitening:
    """PCA whitening: principal components, each divided by its standard deviation to the power 2 * `power`.

    matrix: (dim, C) after `fit`, by descending eigenvalue of the uncentred second moment.
    """

    def __init__(self, dim: int, power: float = 0.5) -> None:
        if dim < 1:
            raise ValueError(f"dim of a whitening is 1 or more; got {dim}.")
        self.dim, self.power = dim, power
        self.matrix: Tensor | None = None

    def fit(self, x: Tensor | np.ndarray) -> "Whitening":
        """Fit to rows (n, C); eigenvalues are clamped to at least 1e-5 of the largest.

        Raises:
            ValueError: if the rows have fewer than `dim` columns.
        """
        rows = torch.as_tensor(x)
        if rows.ndim != 2 or rows.shape[1] < self.dim:
            raise ValueError(
                f"A whitening to {self.dim} dimensions takes rows at least that wide; got {tuple(rows.shape)}."
            )
        wide = rows.double()
        values, vectors = torch.linalg.eigh(wide.T @ wide / len(wide))
        values = values.clamp(min=float(values.max()) * 1e-5).flip(0)[: self.dim]
        self.matrix = (values**-self.power)[:, None] * vectors.flip(1).T[: self.dim]
        return self

    def apply(self, x: Tensor | np.ndarray, mean: Tensor | np.ndarray | None = None) -> Tensor:
        """Project rows (n, C), minus `mean` (C,), to (n, dim); not normalised.

        Raises:
            ValueError: before `fit`.
        """
        if self.matrix is None:
            raise ValueError("A whitening is fitted before it is applied.")
        rows = torch.as_tensor(x)
        wide = rows.double() if mean is None else rows.double() - torch.as_tensor(mean).double()
        return (wide @ self.matrix.to(wide.device).T).to(rows.dtype)


def read_ground_truth(path: str | Path) -> dict[str, Any]:
    """Read gnd_roxford5k.pkl or gnd_rparis6k.pkl without running code.

    Returns:
        `imlist`, `qimlist`: names; `gnd`: per query `bbx` (x1, y1, x2, y2) and index lists `easy`, `hard`, `junk`.

    Raises:
        ValueError: for a file with other content, or one that refers to code.
    """
    try:
        with Path(path).open("rb") as file:
            table = _plain(Machine().run(file))
    except Refused as error:
        raise ValueError(f"{path} was not read: it refers to {error}, which no ground truth needs.") from None
    except BadFile as error:
        raise ValueError(f"{path} holds no ground truth: {error}.") from None
    if not isinstance(table, dict) or not all(key in table for key in ("imlist", "qimlist", "gnd")):
        raise ValueError(f"{path} holds no ground truth: it lacks imlist, qimlist and gnd.")
    gnd = table["gnd"]
    if not isinstance(gnd, list) or not all(isinstance(row, dict) for row in gnd):
        raise ValueError(f"{path} holds no ground truth: gnd is no list of tables.")
    if len(gnd) != len(table["qimlist"]):
        raise ValueError(f"{path} has the ground truth of {len(gnd)} for {len(table['qimlist'])} queries.")
    return {
        "imlist": [str(name) for name in table["imlist"]],
        "qimlist": [str(name) for name in table["qimlist"]],
        "gnd": [{key: _listed(value) for key, value in row.items()} for row in gnd],
    }


def _listed(value: Any) -> Any:
    return value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value


def _plain(value: Any) -> Any:
    """The content of a pickle read as data, with numpy arrays and numbers rebuilt from their bytes."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if not isinstance(value, Inert):
        return value
    name = value.name.rsplit(".", 1)[-1]
    if value.name == "_codecs.encode":
        return str(value.args[0]).encode("latin-1")
    if name == "_reconstruct" and isinstance(value.state, tuple):
        _, shape, dtype, fortran, data = value.state
        if isinstance(data, list):
            return [_plain(item) for item in data]
        flat = np.frombuffer(_bytes(data), _dtype(dtype))
        return flat.reshape(tuple(shape), order="F" if fortran else "C")
    if name == "scalar":
        return np.frombuffer(_bytes(value.args[1]), _dtype(value.args[0]))[0].item()
    if name == "_frombuffer":
        data, dtype, shape, order = value.args
        return np.frombuffer(_bytes(data), _dtype(dtype)).reshape(tuple(shape), order=order)
    raise BadFile(f"it holds an object of {value.name}")


def _bytes(value: Any) -> bytes:
    value = _plain(value)
    return value.encode("latin-1") if isinstance(value, str) else bytes(value)


def _dtype(value: Any) -> np.dtype:
    """A numeric dtype, from its code ("i8") and byte order."""
    if not isinstance(value, Inert) or not value.name.endswith("dtype"):
        raise BadFile("it holds an array without a type")
    code = str(value.args[0])
    if code[:1] not in "biuf" or not code[1:].isdigit():
        raise BadFile(f"it holds an array of type {code!r}")
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
    return np.dtype(f">{code}" if order == ">" else code)
