"""Semantic FPN equals mmsegmentation's, with the weights of a published layout."""

import pytest
from dense.segmentation import Case


@pytest.fixture(scope="module")
def case():
    return Case.build("sem_fpn_xcit_tiny_12_p16", "xcit_tiny_12_p16", "semantic_fpn")


def test_names_go_there_and_back(case):
    case.check_names()


@pytest.mark.parametrize("which", ["a", "b"])
def test_maps_probabilities_and_labels(case, which):
    case.check_answers(which)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eval", "train_bn"])
def test_losses_gradients_and_statistics(case, kind):
    case.check_losses(kind)
