"""Mean IoU of label maps: intersection over union per class, from the totals of a set.

Shapes: K classes, (Hi, Wi) a label map. Source of the definitions: mmsegmentation 0.30.0, mean_iou.
"""

import torch
from torch import Tensor

IGNORE = 255  # label of ignored pixels
BEYOND = 256  # row for labels above 255


class MeanIoU:
    """Running pixel counts.

    counts: int64 (257, K), row: raw label, column: predicted class; to combine ranks, all-reduce it in place. Labels
    above the last class count only in `unknown`.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(BEYOND + 1, num_classes, dtype=torch.int64, device=device)

    def update(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Add a label map, or a batch of them, of any integer dtype.

        Args:
            predicted: 0 to K - 1.
            labels: same shape; `IGNORE` pixels are skipped.

        Returns:
            The counts of these pixels only, int64 (257, K).

        Raises:
            ValueError: for different shapes, or a prediction out of range.
        """
        counts = counted(predicted, labels, self.num_classes)
        self.counts += counts
        return counts

    @property
    def confusion(self) -> Tensor:
        """Confusion matrix, int64 (K, K): row: true class, column: predicted class."""
        return self.counts[: self.num_classes]

    @property
    def unknown(self) -> int:
        """Number of pixels whose label is neither a class nor `IGNORE`."""
        return int(unknown(self.counts))

    def per_class(self) -> tuple[Tensor, Tensor]:
        """IoU and accuracy of each class, float64 (K,); NaN for a class without pixels."""
        both, true, said = _areas(self.confusion)
        return both / (true + said - both), both / true

    def result(self) -> dict[str, float]:
        """Shares in [0, 1]: miou, macc (means over the classes that occur) and aacc (over pixels); NaN without
        pixels."""
        iou, accuracy = self.per_class()
        both, true, _ = _areas(self.confusion)
        return {
            "miou": float(iou.nanmean()),
            "macc": float(accuracy.nanmean()),
            "aacc": float(both.sum() / true.sum()),
        }


def counted(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The pixels of two maps by label and prediction, int64 (257, K); see `MeanIoU.update`.

    Raises:
        ValueError: as there.
    """
    if predicted.shape != labels.shape:
        raise ValueError(
            f"Predicted {tuple(predicted.shape)} and true {tuple(labels.shape)} maps differ in size."
        )
    K = num_classes
    low, high = map(int, torch.aminmax(predicted)) if predicted.numel() else (0, 0)
    if low < 0 or high >= K:
        raise ValueError(f"Predicted classes are 0 to {K - 1}; got {low if low < 0 else high}.")
    rows = labels.to(torch.int32)
    if labels.dtype != torch.uint8:
        rows = torch.where((rows < 0) | (rows > IGNORE), BEYOND, rows)
    cells = (
        rows.mul(K).add_(predicted.to(torch.int32)).flatten()
    )  # rows may alias `labels`: not modified in place
    return torch.bincount(cells, minlength=(BEYOND + 1) * K).view(BEYOND + 1, K)


def unknown(counts: Tensor) -> Tensor:
    """Of counts (257, K): number of pixels whose label is neither a class nor `IGNORE`, int64 ()."""
    rows = counts.sum(dim=1)
    return rows[counts.shape[1] :].sum() - rows[IGNORE]


def pixel_accuracy(counts: Tensor) -> float:
    """Of counts (257, K): pixel accuracy over pixels with a class; NaN without such pixels."""
    both, true, _ = _areas(counts[: counts.shape[1]])
    return float(both.sum() / true.sum())


def _areas(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """True positives, labelled pixels and predicted pixels of each class, float64 (K,)."""
    confusion = confusion.cpu().double()
    return confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
