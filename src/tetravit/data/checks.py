"""Compare the labels in label maps with the classes of their data set."""

from collections.abc import Sequence

import numpy as np

from tetravit.data.files import some

IGNORE = 255  # label of ignored pixels
MOSTLY = 0.5  # share of ignored pixels above which a line is printed
NUMBERS = 1 << 16


class LabelCounts:
    """Pixel counts per label, over some label maps of a set with `num_classes`.

    pixels: (65536,) by label. stored: the raw values in the files. first: for each label outside the classes, the
    first image with it.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.pixels = np.zeros(NUMBERS, dtype=np.int64)
        self.stored: set[int] = set()
        self.maps = 0
        self.first: dict[int, str] = {}

    def add(self, labels: np.ndarray, stored: np.ndarray, name: str) -> None:
        """Add one label map (H, W), with the raw values of its file (H, W), of the image `name`."""
        counted = np.bincount(labels.ravel().astype(np.int64).clip(0, NUMBERS - 1), minlength=NUMBERS)
        self.pixels += counted
        self.stored |= set(np.unique(stored).tolist())
        self.maps += 1
        for label in np.flatnonzero(counted[self.num_classes :]) + self.num_classes:
            if label != IGNORE:
                self.first.setdefault(int(label), name)

    def _seen(self, class_names: Sequence[str], seen: set[int]) -> str:
        if not seen:
            return "none of them occurs"
        return (
            f"only {some(str(class_names[i]) for i in sorted(seen))} occurs"
            if len(seen) == 1
            else "others occur"
        )

    def findings(self, class_names: Sequence[str], *, refuse: bool = False) -> list[str]:
        """Mismatches, one line each: labels outside the classes, mostly ignored pixels, only one class.

        refuse: whether label maps unfit for training are an error.

        Raises:
            ValueError: in one line with its cure, for masks of 0 and 255, for labels that start at 1, and for labels
                outside the classes on most pixels or with only one class left.
        """
        lines: list[str] = []
        if not self.maps:
            return lines
        seen, total = set(np.flatnonzero(self.pixels[: self.num_classes]).tolist()), int(self.pixels.sum())
        ignored = int(self.pixels[IGNORE]) if self.num_classes <= IGNORE else 0
        read = f"in {self.maps} label maps"
        absent = [str(name) for i, name in enumerate(class_names) if i not in seen]
        problem = ""
        exactly = len(self.stored) == self.num_classes or len(self.stored) == 2  # 0 and 255; 0, 127 and 255
        if IGNORE in self.stored and exactly and len(seen) <= 1 < self.num_classes:
            values = ",".join(map(str, sorted(self.stored)))
            only = "no class occurs" if not seen else f"only the class {class_names[min(seen)]!r} occurs"
            problem = (
                f"{only} {read}, beside {100 * ignored / total:.0f} % of pixels of 255, which means no class;"
                f" {some(absent)} {'has' if len(absent) == 1 else 'have'} no pixel."
                f" data.options.values=[{values}] lists the numbers of the classes in their order"
            )
        elif 0 not in seen and self.num_classes in self.stored <= {*range(1, self.num_classes + 1), IGNORE}:
            problem = (
                f"the numbers {read} run from {min(self.stored)} to {self.num_classes}, and the classes from 0 to"
                f" {self.num_classes - 1}; data.options.first=1 counts them from 1"
            )
        strange = int(self.pixels[self.num_classes :].sum()) - ignored
        fitting = len(seen) <= 1 and len(self.stored) == self.num_classes > 1
        if not problem and self.first and (strange > MOSTLY * total or fitting):
            values = ",".join(map(str, sorted(self.stored)[: self.num_classes]))
            more = len(self.stored) - self.num_classes
            problem = (
                f"{100 * strange / total:.0f} % of the pixels {read} have numbers that are no class"
                f" ({some(map(str, sorted(self.first)))}); the {self.num_classes} classes are 0 to"
                f" {self.num_classes - 1}, and {self._seen(class_names, seen)}. "
                + (
                    f"data.options.values=[{values}] lists the numbers of the classes in their order"
                    if more == 0
                    else f"The files hold {len(self.stored)} numbers; data.options.values lists one per class"
                )
            )
        if problem and refuse:
            raise ValueError(f"{problem[0].upper()}{problem[1:]}.")
        if problem:
            return [problem]
        if self.first:
            label, name = next(iter(self.first.items()))
            numbers = some(map(str, sorted(self.first)))
            lines.append(
                f"{100 * strange / total:.2g} % of the pixels {read} have numbers that are no class ({numbers}),"
                f" left out; the first: {label} in {name};"
                " data.options.first or .values says how classes are numbered"
            )
        if ignored > MOSTLY * total:
            lines.append(f"{100 * ignored / total:.0f} % of the pixels {read} are 255, which means no class")
        if len(seen) == 1 < self.num_classes:
            lines.append(f"only the class {class_names[min(seen)]!r} occurs {read}")
        return lines
