"""The names users may rely on. A change of this list is a line in CHANGELOG.md."""

import ast
import gc
import subprocess
import sys

import pytest

import tetravit

PUBLIC = [
    "AttentionMap",
    "Backbone",
    "Batch",
    "Classifier",
    "Detections",
    "Detector",
    "Preprocess",
    "Recipe",
    "Sample",
    "Segmenter",
    "Target",
    "__version__",
    "create_backbone",
    "create_detector",
    "create_feature_extractor",
    "create_model",
    "create_segmenter",
    "evaluate",
    "explain",
    "export",
    "list_models",
    "load",
    "optimize",
    "predict",
    "train",
    "verify_export",
]


def test_the_list_is_the_promise():
    assert sorted(tetravit.__all__) == dir(tetravit) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there(name):
    assert getattr(tetravit, name) is not None


def test_type_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING name what `__getattr__` finds, at the same place."""
    with open(tetravit.__file__) as file:
        tree = ast.parse(file.read())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == tetravit._HOMES


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'tetravit' has no attribute 'creat_model'$"):
        tetravit.creat_model  # noqa: B018


@pytest.mark.parametrize("code", ["import tetravit", "import tetravit.cli", "import tetravit; dir(tetravit)"])
def test_importing_loads_no_torch(code):
    heavy = "{'torch', 'torchvision', 'numpy', 'pydantic', 'rich', 'matplotlib', 'PIL'} & sys.modules.keys()"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print({heavy} or '')"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == ""


@pytest.mark.parametrize("enabled", [True, False])
def test_a_first_use_leaves_the_garbage_collector_as_it_was(enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        tetravit.__getattr__("Recipe")
        with pytest.raises(AttributeError):
            tetravit.__getattr__("Recipes")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
