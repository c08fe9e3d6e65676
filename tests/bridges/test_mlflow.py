"""MLflow's pyfunc on these models: logged, loaded and fed with paths of images, without a server."""

import pytest
import torch
from PIL import Image

mlflow = pytest.importorskip("mlflow")
pandas = pytest.importorskip("pandas")
pytestmark = pytest.mark.slow  # its import and its data base take seconds

import tetravit  # noqa: E402
from tetravit.models.files import save  # noqa: E402


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """A classifier that MLflow has, loaded again, and a picture."""
    from tetravit.bridges.mlflow import log_model

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    model = tetravit.create_model("xcit_nano_12_p16", num_classes=3, depth=1, image_size=64).eval()
    model.class_names = ("a", "b", "c")
    save(model, tmp_path / "mine.safetensors")
    Image.linear_gradient("L").resize((80, 64)).convert("RGB").save(tmp_path / "x.png")
    with mlflow.start_run():
        info = log_model(tmp_path / "mine.safetensors")
    return model, mlflow.pyfunc.load_model(info.model_uri), tmp_path / "x.png"


def test_a_logged_model_predicts_paths(logged):
    model, loaded, file = logged
    expected = tetravit.predict(model, file).to_dict()
    assert loaded.predict([str(file)]) == [expected]
    table = pandas.DataFrame({"image": [str(file), str(file)]})
    assert loaded.predict(table) == [expected, expected]
    with pytest.raises(ValueError, match=r"^This model takes paths of images; got float.$"):
        loaded.unwrap_python_model().predict(None, [0.5])


def test_the_weights_in_mlflow_are_ours(logged):
    model, loaded, _ = logged
    again = loaded.unwrap_python_model().model
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
