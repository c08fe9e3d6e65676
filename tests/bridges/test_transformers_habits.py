"""What users of Hugging Face try with any image model: features, tuples, sizes, targets, number formats, adapters."""

import numpy as np
import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers")

from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification  # noqa: E402

import tetravit  # noqa: E402
import tetravit.bridges.transformers as bridge  # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
SIZE = (64, 96)
SMALL = {
    "xcit_nano_12_p16": {"depth": 4, "out_blocks": (0, 1, 2, 3)},
    "convit_tiny": {"depth": 2, "num_gpsa": 1},
    "gcvit_xxtiny": {"depths": (2, 1, 1, 1)},
    "twins_svt_small": {"depths": (1, 1, 1, 1)},
    "deit_tiny": {"depth": 1},
}


def classifier(name="xcit_nano_12_p16", classes=3):
    torch.manual_seed(0)
    return tetravit.create_model(name, num_classes=classes, image_size=SIZE, **SMALL[name]).eval()


def images(count=2):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def picture(width=300, height=200):
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


@pytest.mark.parametrize("name", SMALL)
def test_automodel_gives_tokens_and_an_embedding(tmp_path, name):
    ours = classifier(name)
    bridge.TetravitForImageClassification.of(ours).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is bridge.TetravitModel
    output = loaded(images())
    assert torch.equal(output.last_hidden_state, ours.backbone.forward_features(images()))
    torch.testing.assert_close(output.pooler_output, ours.backbone(images()))
    assert loaded.get_input_embeddings() is loaded.ours.backbone.stages()[0][0]


def test_a_pipeline_extracts_features(tmp_path):
    ours = classifier()
    bridge.TetravitForImageClassification.of(ours).save_pretrained(tmp_path)
    bridge.TetravitImageProcessor.of(ours).save_pretrained(tmp_path)
    pipe = transformers.pipeline("image-feature-extraction", model=str(tmp_path), pool=True)
    (found,) = pipe(picture())
    expected = ours.backbone(ours.preprocess(picture())[None])[0]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-4, rtol=1e-3)


def test_outputs_are_tuples_where_return_dict_is_false(tmp_path):
    model = bridge.TetravitForImageClassification.of(classifier())
    labels = torch.tensor([0, 2])
    loss, logits = model(images(), labels=labels, return_dict=False)
    output = model(pixel_values=images(), labels=labels)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output["logits"])
    model.config.return_dict = False
    assert isinstance(model(images()), tuple)


def test_what_is_not_given_says_where_it_is():
    model = bridge.TetravitForImageClassification.of(classifier())
    with pytest.raises(ValueError) as error:
        model(images(), output_attentions=True)
    assert str(error.value) == (
        "output_attentions: the layouts of the families differ; model.ours.backbone.attention(pixel_values) gives the"
        " weights of every layer."
    )
    with pytest.raises(ValueError, match=r"^output_hidden_states: AutoBackbone gives the maps of the levels"):
        model(images(), output_hidden_states=True)


def test_problem_types_choose_the_loss():
    model = bridge.TetravitForImageClassification.of(classifier())
    logits = model(images()).logits
    several = torch.tensor([[1, 0, 1], [0, 0, 1]])
    model.config.problem_type = "multi_label_classification"
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, several.float())
    assert torch.equal(model(images(), labels=several).loss, expected)
    single = bridge.TetravitForImageClassification.of(classifier(classes=1))
    single.config.num_labels = 1
    targets = torch.tensor([0.5, -1.0])
    expected = (single(images()).logits.flatten() - targets).square().mean()
    torch.testing.assert_close(single(images(), labels=targets).loss, expected)


def test_the_processor_takes_sizes_and_batches():
    processor = bridge.TetravitImageProcessor.of(classifier())
    assert processor(picture(), return_tensors="pt")["pixel_values"].shape == (1, 3, *SIZE)
    for size, shape in (
        ({"height": 32, "width": 48}, (32, 48)),
        (96, (96, 96)),
        ({"shortest_edge": 40}, (40, 40)),
    ):
        assert processor(images=picture(), size=size)["pixel_values"].shape[2:] == shape
    batch = torch.randint(0, 255, (3, 3, 80, 100), dtype=torch.uint8)
    assert processor(batch)["pixel_values"].shape == (3, 3, *SIZE)
    plain = processor(picture(), image_mean=[0.5] * 3, image_std=[0.5] * 3, do_normalize=True)
    assert plain["pixel_values"].min() >= -1.001
    with pytest.raises(ValueError) as error:
        processor(picture(), do_resize=False)
    assert str(error.value) == (
        "TetravitImageProcessor always resizes, rescales and normalizes; got do_resize=False. Prepared tensors go to"
        " the model as they are."
    )
    with pytest.raises(
        ValueError, match=r"^TetravitImageProcessor has no argument 'siez'. Did you mean 'size'\?$"
    ):
        processor(picture(), siez=3)


def test_the_processor_makes_labels_of_maps_and_annotations():
    processor = bridge.TetravitImageProcessor(preprocess={"size": 64, "longest": 96, "mode": "fit"})
    maps = [np.full((200, 300), 7, dtype=np.uint8), np.full((200, 250), 3, dtype=np.uint8)]
    maps[0][:, 150:] = 9
    pictures = [picture(300, 200), picture(250, 200)]
    found = processor(pictures, segmentation_maps=maps, return_tensors="pt")
    assert found["labels"].shape == (2, *found["pixel_values"].shape[2:])
    assert found["labels"][0, 0, [0, 95]].tolist() == [7, 9]
    assert set(found["labels"][1].flatten().tolist()) == {3, 255}
    row = {
        "image_id": 4,
        "annotations": [
            {"bbox": [30, 20, 60, 40], "category_id": 2},
            {"bbox": [0, 0, 9, 9], "category_id": 1, "iscrowd": 1},
        ],
    }
    (label,) = processor(picture(), annotations=row, return_tensors="pt")["labels"]
    assert label["class_labels"].tolist() == [2]
    torch.testing.assert_close(label["boxes"], torch.tensor([[0.2, 0.2, 0.2, 0.2]]))
    with pytest.raises(
        ValueError, match=r"^Targets do not follow a centre crop: pass mode='squash' or mode='fit'"
    ):
        bridge.TetravitImageProcessor.of(classifier())(picture(), segmentation_maps=maps[0])


def test_a_detector_trains_on_what_the_processor_makes():
    ours = tetravit.create_detector(
        "xcit_nano_12_p16", head="retinanet", num_classes=4, **SMALL["xcit_nano_12_p16"]
    )
    model = bridge.TetravitForObjectDetection.of(ours).train()
    processor = bridge.TetravitImageProcessor(preprocess={"size": 64, "longest": 96, "mode": "fit"})
    row = {"annotations": [{"bbox": [30, 20, 60, 40], "category_id": 2}]}
    inputs = processor([picture(), picture(250, 200)], annotations=[row, row], return_tensors="pt")
    assert model(**inputs).loss.isfinite()


def test_weights_load_in_bfloat16_and_onto_a_device(tmp_path):
    bridge.TetravitForImageClassification.of(classifier()).save_pretrained(tmp_path)
    half = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert half(images().bfloat16()).logits.dtype == torch.bfloat16
    pytest.importorskip("accelerate")
    spread = AutoModelForImageClassification.from_pretrained(tmp_path, device_map="auto").eval()
    assert spread(images()).logits.shape == (2, 3)


def test_labels_by_name_and_gradient_checkpointing(tmp_path):
    names = {0: "cat", 1: "dog", 2: "owl"}
    bridge.TetravitForImageClassification.of(classifier()).save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(
        tmp_path, id2label=names, label2id={name: i for i, name in names.items()}
    )
    assert model.config.label2id["owl"] == 2
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    model.gradient_checkpointing_enable()
    model.train()(images(), labels=torch.tensor([0, 1])).loss.backward()
    assert model.get_input_embeddings()[0][0].weight.grad is not None


@pytest.mark.slow
def test_peft_wraps_and_trains(tmp_path):
    peft = pytest.importorskip("peft")
    model = bridge.TetravitForImageClassification.of(classifier())
    lora = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=["head"])
    )
    lora(pixel_values=images(), labels=torch.tensor([0, 1])).loss.backward()
    assert any(p.grad is not None for n, p in lora.named_parameters() if "lora_B" in n)
    lora.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(bridge.TetravitForImageClassification.of(classifier()), tmp_path)
    assert again.eval()(pixel_values=images()).logits.shape == (2, 3)


def test_from_config_builds_fresh_weights():
    config = bridge.TetravitConfig("gcvit_xxtiny", num_labels=5, backbone_options={"depths": (1, 1, 1, 1)})
    model = AutoModelForImageClassification.from_config(config)
    assert model(images()).logits.shape == (2, 5)
    assert model.head.weight.std() > 0


@pytest.mark.slow
def test_trainer_evaluates_with_metrics(tmp_path):
    pytest.importorskip("accelerate")
    ours = classifier()
    rows = [{"pixel_values": x, "labels": i % 3} for i, x in enumerate(images(6))]
    processor = bridge.TetravitImageProcessor.of(ours)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=3,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        bf16=True,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model=bridge.TetravitForImageClassification.of(ours),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=processor,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())},
    )
    trainer.train()
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    trainer.save_model(str(tmp_path / "best"))
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "best")) is bridge.TetravitImageProcessor
    assert trainer.predict(rows).predictions.shape == (6, 3)
