"""Models on the Hugging Face hub: read timm's and ours, publish ours with a model card."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tetravit import weights
from tetravit.backbones import ALIASES, VARIANTS
from tetravit.structures import Preprocess
from tetravit.weights import store
from tetravit.weights.download import Unavailable
from tetravit.weights.fileformat import Header, read, read_header
from tetravit.weights.network import unreachable

PREFIXES = ("hf:", "hf-hub:")
TRANSFORMERS = {  # classes of tetravit.bridges.transformers
    "classify": "TetravitForImageClassification",
    "detect": "TetravitForObjectDetection",
    "segment": "TetravitForSemanticSegmentation",
}
FILES = ["config.json", "model.safetensors", "pytorch_model.bin"]


def is_repository(source: str) -> bool:
    """Whether a text is a repository: "hf:OWNER/NAME", "hf:OWNER/NAME@REVISION"."""
    return source.startswith(PREFIXES)


def fetch(source: str) -> Path:
    """The local folder of a repository's weights, downloaded if needed.

    Raises:
        ValueError: if the extra `hub` is not installed, or the text is not a repository.
        Unavailable: if the download fails.
    """
    api = _api()
    repository, _, revision = source.split(":", 1)[1].partition("@")
    if repository.count("/") != 1:
        raise ValueError(
            f"A repository on the hub is hf:OWNER/NAME, or hf:OWNER/NAME@REVISION; got {source!r}."
        )
    offline = store.offline()
    cause = "" if offline else unreachable(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        folder = api.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=FILES,
            cache_dir=store.home() / "hub",
            local_files_only=offline or bool(cause),
        )
    except Exception as error:  # the client raises many types of errors
        if cause:
            raise Unavailable(
                f"{source} is not in {store.home()}, and there is no network ({cause}). On a connected machine: "
                f"`tetravit convert {source} --as NAME.TAG`; here: `tetravit weights import FILE --as NAME.TAG`. "
                "TETRAVIT_OFFLINE=1 skips the try."
            ) from None
        cause = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise Unavailable(f"{source} is not available from the hub: {cause}.") from None
    return Path(folder)


def push(file: Path, repository: str, *, private: bool = False, token: str | None = None) -> str:
    """Publish a weights file of ours with a model card and a config.

    Args:
        file: in our format; it is verified first.
        repository: OWNER/NAME; created if it does not exist.
        private: whether a new repository is private.
        token: None: the token stored by the client.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: if the extra `hub` is not installed.
        BadFile: if the file is damaged, or not ours.
    """
    api = _api()
    _, header = read(file)
    client = api.HfApi(token=token)
    client.create_repo(repository, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "README.md").write_text(card(header), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(config(header), indent=2), encoding="utf-8")
        (folder / "preprocessor_config.json").write_text(
            json.dumps(processor_config(header)), encoding="utf-8"
        )
        (folder / "model.safetensors").symlink_to(file.resolve())
        done = client.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=f"Add {header.model}"
        )
    return str(done)


def config(header: Header) -> dict[str, Any]:
    """Content of `config.json`: the model for transformers, and its input in timm's form."""
    p = header.preprocess
    return {
        "library_name": "tetravit",
        "model_type": "tetravit",
        **transformers_config(header),
        "num_classes": header.num_classes,
        "pretrained_cfg": {
            "input_size": [p.channels, *p.sides],
            "crop_pct": p.crop,
            "crop_mode": p.mode,
            "interpolation": p.interpolation,
            "mean": list(p.mean),
            "std": list(p.std),
        },
    }


def transformers_config(header: Header) -> dict[str, Any]:
    """A header as arguments of `tetravit.bridges.transformers.TetravitConfig`."""
    names = header.class_names or tuple(f"LABEL_{i}" for i in range(header.num_classes))
    return {
        "architecture": header.model,
        "architectures": [TRANSFORMERS[header.task]] if header.task in TRANSFORMERS else [],
        "head": header.head,
        "head_options": header.options.get("head_options", {}),
        "backbone_options": {
            k: v for k, v in header.options.items() if k not in ("head_options", "in_chans")
        },
        "preprocess": asdict(header.preprocess),
        "num_channels": header.preprocess.channels,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def processor_config(header: Header) -> dict[str, Any]:
    """Content of `preprocessor_config.json`, for transformers."""
    return {"image_processor_type": "TetravitImageProcessor", "preprocess": asdict(header.preprocess)}


def card(header: Header) -> str:
    """A model card: description, source and use of the weights."""
    licence = header.licence or "unknown"
    height, width = header.preprocess.sides
    sides = str(height) if height == width else f"{height} x {width}"
    rows = {
        "Model": header.model,
        "Task": header.task + (f", head `{header.head}`" if header.head else ""),
        "Classes": str(header.num_classes),
        "Image": f"{sides} pixels, crop {header.preprocess.crop:g} ({header.preprocess.mode}), "
        f"{header.preprocess.interpolation}",
        "Source": header.source or "trained with tetravit",
        "Licence": licence,
        "Weights (sha256)": f"`{header.fingerprint}`",
        "Written by": f"tetravit {header.version}",
    }
    row = (
        None if header.recipe else store.row_at(header.source)
    )  # with a recipe, the weights were trained further
    if row:
        rows["Trained on"] = row.data
        rows["Published"] = f"{_figures(row.published)} ({row.published_in})"
        if row.measured:
            rows["Measured by others"] = f"{_figures(row.measured)} ({row.measured_by})"
    recipe = f"\n## Recipe\n\n```toml\n{header.recipe.strip()}\n```\n" if header.recipe else ""
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"---\nlibrary_name: tetravit\nlicense: {licence.lower()}\ntags:\n- image-classification\n---\n\n"
        f"# {header.model}\n\n| | |\n|---|---|\n{table}\n\n"
        f'## Use\n\n```python\nimport tetravit\n\nmodel = tetravit.load("model.safetensors")\n'
        f"logits = model(model.preprocess(image)[None])\n```\n{recipe}"
    )


def model_of(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Our name and options of the model in a timm or hub config; None: unknown model."""
    theirs = config.get("architecture", "")
    if theirs in VARIANTS or theirs in ALIASES:
        return ALIASES.get(theirs, theirs), {}
    for row in weights.CHECKPOINTS.values():
        repositories = (
            s.url.split("/")[4] for s in row.sources if s.url.startswith("https://huggingface.co/timm/")
        )
        if any(repository.split(".")[0] == theirs for repository in repositories):
            return row.model, dict(row.options)
    return None


def preprocess_of(config: Mapping[str, Any]) -> Preprocess | None:
    """The preprocessing in a timm or hub config; None: not specified."""
    published = config.get("pretrained_cfg")
    if not isinstance(published, Mapping) or "input_size" not in published:
        return None
    usual = Preprocess()
    return Preprocess(
        size=int(published["input_size"][-1]),
        crop=float(published.get("crop_pct", usual.crop)),
        interpolation="bilinear" if published.get("interpolation") == "bilinear" else "bicubic",
        mode="squash" if published.get("crop_mode") == "squash" else "center",
        mean=tuple(published.get("mean", usual.mean)),
        std=tuple(published.get("std", usual.std)),
    )


def header_of(folder: Path) -> Header | None:
    """The header of the weights in a folder, if they are ours."""
    file = folder / "model.safetensors"
    try:
        return read_header(file)
    except (OSError, ValueError):
        return None


def _figures(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in figures.items())


def _api() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError("Repositories on the hub need the extra: pip install 'tetravit[hub]'.") from None
    return huggingface_hub
