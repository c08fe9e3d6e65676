"""UPerNet equals mmsegmentation's, with the weights of a published layout."""

import pytest
import torch
from dense.segmentation import Case

pytestmark = pytest.mark.slow  # whole detectors and segmentors

MODELS = {"upernet_xcit_tiny_12_p8": "xcit_tiny_12_p8", "upernet_pcpvt_s": "twins_pcpvt_small"}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    return Case.build(request.param, MODELS[request.param], "upernet")


def test_names_go_there_and_back(case):
    case.check_names()


@pytest.mark.parametrize("which", ["a", "b"])
def test_maps_probabilities_and_labels(case, which):
    case.check_answers(which)


def test_losses_and_gradients(case):
    case.check_losses("eval")


def test_losses_gradients_and_statistics_of_a_batch(case):
    """Statistics of the two means of whole maps amplify rounding: the recorded norms are 5e-4 off in float64."""
    case.check_losses("train_bn", gradient_bound=5e-4, dtype=torch.float64)
