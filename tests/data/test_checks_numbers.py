"""Label maps whose numbers are no classes."""

import numpy as np
import pytest

from tetravit.data.checks import LabelCounts

NAMES = ("back", "a", "b")


def counts(numbers):
    """Ten rows of the first number, and one of each."""
    labels = np.array([[numbers[0]] * 8] * 10 + [[number] * 8 for number in numbers], np.uint8)
    found = LabelCounts(len(NAMES))
    found.add(labels, labels, "0.png")
    return found


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        (
            (0, 100, 200),
            "15 % of the pixels in 1 label maps have numbers that are no class ('100', '200'); the 3 classes are 0 to"
            " 2, and only 'back' occurs. data.options.values=[0,100,200] lists the numbers of the classes in their"
            " order.",
        ),
        (
            (7, 0, 1),
            "85 % of the pixels in 1 label maps have numbers that are no class ('7'); the 3 classes are 0 to 2, and"
            " others occur. data.options.values=[0,1,7] lists the numbers of the classes in their order.",
        ),
        (
            (9, 10),
            "100 % of the pixels in 1 label maps have numbers that are no class ('9', '10'); the 3 classes are 0 to"
            " 2, and none of them occurs. The files hold 2 numbers; data.options.values lists one per class.",
        ),
    ],
)
def test_numbers_that_leave_nothing_to_learn_are_refused(numbers, line):
    with pytest.raises(ValueError) as error:
        counts(numbers).findings(NAMES, refuse=True)
    assert str(error.value) == line
    assert counts(numbers).findings(NAMES) == [line[:-1]]


def test_a_few_pixels_of_other_numbers_are_counted():
    assert counts((0, 1, 7)).findings(NAMES, refuse=True) == [
        "7.7 % of the pixels in 1 label maps have numbers that are no class ('7'), left out; the first: 7 in 0.png;"
        " data.options.first or .values says how classes are numbered"
    ]
