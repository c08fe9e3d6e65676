"""A bridge without its library is one line that names the extra."""

import importlib
import sys

import pytest

LIBRARIES = {
    "mlflow": ("mlflow", "MLflow and pandas", "'tetravit[mlflow]' pandas"),
    "segmentation_models": (
        "segmentation_models_pytorch",
        "segmentation_models_pytorch",
        "'tetravit[segmentation-models]'",
    ),
    "timm": ("timm", "timm", "'tetravit[timm]'"),
    "transformers": ("transformers", "transformers", "'tetravit[transformers]'"),
}


@pytest.mark.parametrize("bridge", LIBRARIES)
def test_the_message_names_the_extra(bridge, monkeypatch):
    library, noun, install = LIBRARIES[bridge]
    module = f"tetravit.bridges.{bridge}"
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError) as error:
        importlib.import_module(module)
    assert str(error.value) == f"{module} needs {noun}: pip install {install}."
