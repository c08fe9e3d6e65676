"""Ids of images in COCO's result format."""

from pathlib import Path

from tetravit.predictors.parts.numbers import numbers


def test_numbers_of_files_that_collide_are_counted_from_1():
    one, two = Path("cam1/0001.png"), Path("cam2/1.png")
    found = numbers([one, two], ("red",))
    assert list(found.images.values()) == [1, 2]
    assert found.note == (
        "Ids of images are counted from 1, because 'cam1/0001.png' and 'cam2/1.png' have one number, ids of"
        " categories counted from 1; --annotations FILE takes both from COCO's JSON."
    )
    apart = numbers([one, Path("cam2/7.png")], ("red",))
    assert list(apart.images.values()) == [1, 7]
