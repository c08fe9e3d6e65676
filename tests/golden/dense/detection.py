"""What every detector is asked: the checkpoint loads, and maps, boxes, masks, losses, gradients are the authors'."""

from dataclasses import dataclass
from functools import cached_property

import torch
from dense.answers import DenseGolden, image, unpack
from torch import Tensor

from tetravit.boxes.sampling import Sampler
from tetravit.heads.parts.dense import Dense
from tetravit.models import Detector, create_detector, family
from tetravit.structures import Batch, Detections, Target
from tetravit.weights.layouts import DenseMap, dense_map

SIZES = [(300, 400), (320, 352)]
ORIGINAL = (450, 600)  # of the first image


@dataclass
class Case:
    """A detector with the golden's weights, and the golden."""

    golden: DenseGolden
    names: DenseMap
    detector: Detector

    @classmethod
    def build(cls, name: str, model: str, head: str) -> "Case":
        golden = DenseGolden(name)
        names = dense_map(family(model), head)
        detector = create_detector(model, head=head).eval()
        loaded = detector.load_state_dict(names.to_ours(golden.state), strict=False)
        assert loaded.unexpected_keys == []
        assert [key for key in loaded.missing_keys if not key.startswith(names.unused)] == []
        return cls(golden, names, detector)

    @cached_property
    def maps(self) -> list[Tensor]:
        """What the head reads of the first image."""
        with torch.no_grad():
            return self.detector.feature_maps(self.images()[:1])

    @cached_property
    def dense(self) -> Dense:
        with torch.no_grad():
            return self.detector.head(self.maps)

    def images(self) -> Tensor:
        canvas = torch.zeros(2, 3, 320, 416)
        for i, (height, width) in enumerate(SIZES):
            canvas[i, :, :height, :width] = image(f"det{i}", height, width)
        return canvas

    def batch(self) -> Batch:
        targets = []
        for i in range(2):
            boxes = self.golden[f"gt_boxes{i}"]
            masks = unpack(self.golden[f"gt_masks{i}_packed"], (len(boxes), 320, 416))
            targets.append(Target(boxes, self.golden[f"gt_labels{i}"].long(), masks))
        return Batch(self.images(), targets, torch.tensor(SIZES))

    def check_names(self) -> None:
        """The key map is undone exactly; what a published file holds for classification alone stays behind."""
        theirs = self.names.to_theirs(self.detector.state_dict())
        theirs = {key: value for key, value in theirs.items() if not key.endswith("relative_position_index")}
        surplus = set(self.golden.state) - set(theirs)
        assert surplus <= {f"backbone.{part}.{p}" for part in ("norm", "head") for p in ("weight", "bias")}
        assert set(theirs) <= set(self.golden.state)
        assert all(torch.equal(theirs[key], self.golden.state[key]) for key in theirs)

    def check_maps(self) -> None:
        """Of the backbone, the neck and the dense predictions."""
        for i, x in enumerate(self.maps):
            self.golden.check_slice(f"backbone{i}", x)
        for i in range(5):
            self.golden.check_slice(f"neck{i}", self.dense.levels[i])
            self.golden.check_slice(f"dense_cls{i}", self.dense.logits[i])
            self.golden.check_slice(f"dense_reg{i}", self.dense.deltas[i])

    @torch.no_grad()
    def check_detections(self, monkeypatch) -> None:
        """In the frame of the network and in that of the original picture, with pasted masks."""
        detector, golden, masks = self.detector, self.golden, self.detector.head.has_masks
        dense = self.dense
        picked = detector.head.decode(dense, torch.tensor(SIZES[:1]))
        monkeypatch.setattr(detector, "feature_maps", lambda images: self.maps)  # once is enough
        monkeypatch.setattr(detector.head, "forward", lambda maps, sizes=None, targets=None: dense)
        monkeypatch.setattr(detector.head, "decode", lambda dense, sizes: picked)

        (found,) = detector.detect(self.images()[:1], SIZES[:1], masks="probabilities" if masks else "none")
        assert len(found.boxes) == golden.meta["n_det_net"]
        assert_found(found, golden["det_net"], golden["lab_net"])
        if masks:
            torch.testing.assert_close(found.masks[:5], golden["mask_prob28"], atol=1e-4, rtol=0)
        (found,) = detector.detect(
            self.images()[:1], SIZES[:1], output_sizes=[ORIGINAL], masks="pasted" if masks else "none"
        )
        assert len(found.boxes) == golden.meta["n_det_rescaled"]
        assert_found(found, golden["det_rescaled"], golden["lab_rescaled"])
        if masks:
            want = unpack(golden["mask_full_packed"], tuple(golden.meta["mask_full_shape"]))
            assert (found.masks[:5] != want).sum() <= 3  # pixels that lie at one half

    def check_proposals(self) -> None:
        sizes = torch.tensor(SIZES[:1])
        boxes, scores, valid = self.detector.head.rpn.propose(self.dense, sizes, before=1000, after=1000)
        assert int(valid.sum()) == self.golden.meta["n_proposals"]
        labels = torch.zeros(scores.shape[1], dtype=torch.int64)
        found = Detections(boxes[0], scores[0], labels)
        assert_found(found, self.golden["proposals"], labels[:50])

    @torch.no_grad()
    def check_branches(self) -> None:
        """Box and mask branches on fixed regions."""
        head, levels = self.detector.head, self.dense.levels
        regions = torch.nn.functional.pad(self.golden["rois"], (1, 0))
        for i in range(len(head.stages)):
            logits, deltas = head.box_predictions(i, levels, regions)
            torch.testing.assert_close(logits, self.golden[f"head{i}_cls"], atol=1e-4, rtol=0)
            torch.testing.assert_close(deltas.flatten(1), self.golden[f"head{i}_reg"], atol=1e-4, rtol=0)
            self.golden.check_slice(f"mask_logits{i}", head.mask_logits(i, levels, regions[::12]))

    def check_losses(self, monkeypatch, gradient_bound: float = 1e-4) -> None:
        """With every candidate in the losses and, for two stages, with the first ones.

        gradient_bound: of the norms in front of a ReLU. An input within rounding of zero falls on either side of
        it, and everything in front moves by a share of its own. Layers with no ReLU behind them are held to 1e-5.
        """
        head, batch = self.detector.head, self.batch()
        if hasattr(head, "rpn"):
            proposals = self.golden.meta["train_proposals"]
            head.train_candidates, head.train_proposals = proposals["nms_pre"], proposals["max_per_img"]
            with monkeypatch.context() as patch:
                patch.setattr(torch, "randperm", lambda n, device=None: torch.arange(n))
                self._check_losses("loss_first", self.detector.loss(batch))
            monkeypatch.setattr(head.rpn, "sampler", Sampler(10**6, 0.5))
            monkeypatch.setattr(head, "sampler", Sampler(10**6, 0.25))
        losses = self.detector.loss(batch)
        self._check_losses("loss_all", losses)
        self.detector.zero_grad()
        sum(losses.values()).backward()
        gradients = {k: p.grad for k, p in self.detector.named_parameters() if p.grad is not None}
        theirs = self.names.to_theirs(gradients)
        for key, norm in self.golden.meta["grad_all"].items():
            if key in theirs:
                got = theirs[key].double().norm().item()
                bound = 1e-5 if any(layer in key for layer in LAST) else gradient_bound
                assert abs(got - norm) <= bound * norm + 1e-7, (key, got, norm)
            else:
                assert not norm, key

    def _check_losses(self, kind: str, losses: dict[str, Tensor]) -> None:
        want: dict[str, float] = {}
        for key, value in self.golden.meta[kind].items():
            if "acc" not in key and key != "total":
                want[OUR_LOSSES.get(key, key)] = sum(value)
        assert set(losses) == set(want)
        for key, value in losses.items():
            assert abs(value.item() - want[key]) <= 1e-4 * want[key], (kind, key)


LAST = ("rpn_cls.", "rpn_reg.", "retina_cls.", "retina_reg.", "fc_cls.", "fc_reg.", "conv_logits.")
OUR_LOSSES = {
    "loss_rpn_cls": "loss_rpn_class",
    "loss_rpn_bbox": "loss_rpn_box",
    "loss_cls": "loss_class",
    "loss_bbox": "loss_box",
    **{
        f"s{i}.loss_{theirs}": f"loss_{ours}_{i + 1}"
        for i in range(3)
        for theirs, ours in (("cls", "class"), ("bbox", "box"), ("mask", "mask"))
    },
}


def assert_found(found: Detections, boxes: Tensor, labels: Tensor) -> None:
    """Every wanted row (x1 y1 x2 y2 score) has a detection of its own, wherever in the list."""
    free = torch.ones(len(found.boxes), dtype=torch.bool)
    for row, label in zip(boxes, labels, strict=True):
        near = (found.boxes - row[:4]).abs().amax(dim=1) < 1e-2
        same = near & ((found.scores - row[4]).abs() < 1e-4) & (found.labels == label) & free
        assert same.any(), row
        free[same.nonzero()[0]] = False
