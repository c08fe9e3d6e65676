"""Hugging Face transformers on these models: automatic classes, round trips, pipelines, Trainer, the hub's layout."""

import json

import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
)

import tetravit  # noqa: E402
import tetravit.bridges.transformers as bridge  # noqa: E402
from tetravit.models.files import save  # noqa: E402
from tetravit.weights import hub  # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
SIZE = (64, 96)
TINY = {"depth": 4, "out_blocks": (0, 1, 2, 3)}


def classifier(classes=3):
    model = tetravit.create_model("xcit_nano_12_p16", num_classes=classes, image_size=SIZE, **TINY).eval()
    model.class_names = tuple("abc") if classes == 3 else ()
    return model


def detector():
    options = {"max_detections": 5, "score_threshold": 0.0}
    return tetravit.create_detector(
        "xcit_nano_12_p16", head="retinanet", num_classes=4, head_options=options, **TINY
    ).eval()


def segmenter():
    return tetravit.create_segmenter(
        "xcit_nano_12_p16", head="semantic_fpn", num_classes=4, head_options={"width": 16}, **TINY
    ).eval()


def images(count=2):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def picture():
    return Image.linear_gradient("L").resize((300, 200)).convert("RGB")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "wrapped", "auto"),
    [
        (classifier, bridge.TetravitForImageClassification, AutoModelForImageClassification),
        (segmenter, bridge.TetravitForSemanticSegmentation, AutoModelForSemanticSegmentation),
        (detector, bridge.TetravitForObjectDetection, AutoModelForObjectDetection),
    ],
)
def test_a_round_trip_gives_the_same_outputs(tmp_path, build, wrapped, auto):
    ours = build()
    wrapped.of(ours).save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path).eval()
    assert type(loaded) is wrapped
    outputs = loaded(pixel_values=images())
    if wrapped is bridge.TetravitForObjectDetection:
        expected = ours.detect(images())
        rows = outputs.pred_boxes[0][outputs.valid[0]] * torch.tensor([96.0, 64, 96, 64])
        torch.testing.assert_close(rows, expected[0].boxes)
        assert torch.equal(outputs.scores[0][outputs.valid[0]], expected[0].scores)
    else:
        assert torch.equal(outputs.logits, ours(images()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convit_tiny", {"depth": 2, "num_gpsa": 1}),
        ("gcvit_xxtiny", {"depths": (2, 1, 1, 1)}),
        ("twins_svt_small", {"depths": (1, 1, 1, 1)}),
        ("deit_tiny_distilled", {"depth": 1}),
    ],
)
def test_every_family_survives_loading(tmp_path, name, options):
    ours = tetravit.create_model(name, num_classes=3, image_size=SIZE, **options).eval()
    bridge.TetravitForImageClassification.of(ours).save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(images()).logits, ours(images()))


def test_what_push_writes_is_loaded(tmp_path):
    ours = classifier()
    header = save(ours, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hub.config(header)))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(hub.processor_config(header)))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(images()).logits, ours(images()))
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(processor(picture())["pixel_values"][0], ours.preprocess(picture()))


def test_the_kind_of_a_file_is_checked(tmp_path):
    save(classifier(), tmp_path / "ours.safetensors")
    with pytest.raises(ValueError) as error:
        bridge.TetravitForObjectDetection.of(tmp_path / "ours.safetensors")
    assert str(error.value) == (
        "TetravitForObjectDetection is for kind 'detect'; the model is of kind 'classify'."
    )


def test_another_number_of_labels_gives_a_fresh_head(tmp_path):
    bridge.TetravitForImageClassification.of(classifier()).save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True
    )
    assert loaded(images()).logits.shape == (2, 7)
    assert loaded.head.weight.std() > 0


def test_backbones_give_the_chosen_maps(tmp_path):
    ours = tetravit.create_backbone("xcit_nano_12_p16", **TINY).eval()
    config = bridge.TetravitConfig("xcit_nano_12_p16", backbone_options=TINY, out_indices=[2, 4])
    backbone = AutoBackbone.from_config(config).eval()
    backbone.load_state_dict(ours.state_dict())
    maps = backbone(images()).feature_maps
    expected = ours(images())
    assert backbone.channels == [ours.channels[1], ours.channels[3]]
    assert all(torch.equal(a, b) for a, b in zip(maps, (expected[1], expected[3]), strict=True))
    backbone.save_pretrained(tmp_path)
    again = bridge.TetravitBackbone.from_pretrained(tmp_path).eval()
    assert again.out_features == ["stage2", "stage4"]
    assert torch.equal(again(images()).feature_maps[0], maps[0])


def test_pipelines(tmp_path):
    folder = tmp_path / "classify"
    ours = classifier()
    bridge.TetravitForImageClassification.of(ours).save_pretrained(folder)
    bridge.TetravitImageProcessor.of(ours).save_pretrained(folder)
    pipe = transformers.pipeline("image-classification", model=str(folder))
    shares = ours(ours.preprocess(picture())[None]).softmax(1)[0]
    assert {row["label"]: pytest.approx(row["score"], abs=1e-5) for row in pipe(picture())} == dict(
        zip("abc", shares.tolist(), strict=True)
    )
    for ours, wrapped, task in (
        (detector(), bridge.TetravitForObjectDetection, "object-detection"),
        (segmenter(), bridge.TetravitForSemanticSegmentation, "image-segmentation"),
    ):
        processor = bridge.TetravitImageProcessor.of(ours)
        processor.preprocess_options |= {"size": 64, "longest": 128}
        pipe = transformers.pipeline(
            task,
            model=wrapped.of(ours),
            image_processor=processor,
            **({"threshold": 0.0} if "object" in task else {}),
        )
        rows = pipe(picture())
        assert rows
        if task == "object-detection":
            assert all(0 <= row["box"]["xmin"] <= row["box"]["xmax"] <= 300 for row in rows)
        else:
            assert all(row["mask"].size == (300, 200) for row in rows)


@pytest.mark.slow
def test_losses_of_dense_models_train():
    model = bridge.TetravitForObjectDetection.of(detector()).train()
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}] * 2
    mask = torch.ones(2, *SIZE, dtype=torch.int64)
    mask[1, :, 80:] = 0
    output = model(images(), pixel_mask=mask, labels=labels)
    assert set(output.loss_dict) == {"loss_class", "loss_box"}
    output.loss.backward()
    assert model.backbone.patch_embed[0][0].weight.grad.abs().sum() > 0
    model = bridge.TetravitForSemanticSegmentation.of(segmenter()).train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    output = model(images(), labels=torch.ones(2, *SIZE, dtype=torch.int64))
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.logits is None
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}
    assert model.eval()(images(), labels=torch.ones(2, *SIZE, dtype=torch.int64)).logits.shape[:2] == (2, 4)


@pytest.mark.slow
def test_trainer_trains_saves_and_resumes(tmp_path):
    pytest.importorskip("accelerate")
    generator = torch.Generator().manual_seed(0)
    rows = [{"pixel_values": torch.randn(3, *SIZE, generator=generator), "labels": i % 3} for i in range(8)]

    def run(steps, resume=None):
        torch.manual_seed(0)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=steps,
            per_device_train_batch_size=4,
            save_steps=2,
            use_cpu=True,
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
        )
        model = bridge.TetravitForImageClassification.of(classifier())
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    first = run(2)
    assert len(first.state.log_history) > 1
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "checkpoint-2").eval()
    assert torch.equal(loaded(images()).logits, first.model.eval()(images()).logits)
    assert run(4, str(tmp_path / "run" / "checkpoint-2")).state.global_step == 4


def test_the_configuration_is_found_by_its_type(tmp_path):
    bridge.TetravitConfig("gcvit_xxtiny", num_labels=5).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (type(config), config.architecture, config.num_labels) == (
        bridge.TetravitConfig,
        "gcvit_xxtiny",
        5,
    )
