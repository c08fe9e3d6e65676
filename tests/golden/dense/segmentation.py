"""What every segmenter is asked: the checkpoint loads; maps, labels, losses, gradients, norms are the authors'."""

from dataclasses import dataclass

import torch
from dense.answers import DenseGolden, image
from torch import Tensor

from tetravit.heads.parts.fpn import FPN
from tetravit.models import Segmenter, create_segmenter, family
from tetravit.weights.layouts import DenseMap, dense_map

WIDTHS = {"a": 341, "b": 336}  # of the images, which are 256 high
ORIGINALS = {"a": (300, 400), "b": (384, 504)}


@dataclass
class Case:
    """A segmenter with the golden's weights, and the golden."""

    golden: DenseGolden
    names: DenseMap
    segmenter: Segmenter

    @classmethod
    def build(cls, name: str, model: str, head: str) -> "Case":
        """As a whole published file is read."""
        golden = DenseGolden(name)
        file = {
            "meta": {"CLASSES": ("wall", "building")},
            "state_dict": golden.state,
            "optimizer": {"state": {}},
        }
        segmenter = create_segmenter(model, head=head, weights=file).eval()
        assert segmenter.num_classes == 150
        return cls(golden, dense_map(family(model), head), segmenter)

    def check_names(self) -> None:
        """The key map is undone exactly; what a published file holds for classification alone stays behind."""
        assert self.segmenter.report.layout == "mmseg"
        assert all(key.startswith(self.names.unused) for key in self.segmenter.report.missing)
        theirs = self.names.to_theirs(self.segmenter.state_dict())
        surplus = set(self.golden.state) - set(theirs)
        assert surplus <= {f"backbone.{part}.{p}" for part in ("norm", "head") for p in ("weight", "bias")}
        assert set(theirs) <= set(self.golden.state)
        assert all(torch.equal(theirs[key], self.golden.state[key]) for key in theirs)

    @torch.no_grad()
    def check_answers(self, which: str) -> None:
        """Maps, logits, probabilities and labels of image "a" or "b"."""
        golden, segmenter = self.golden, self.segmenter
        images = image(f"seg{which}", 256, WIDTHS[which])[None]
        maps = segmenter.feature_maps(images)
        logits = segmenter.head(maps)
        found = {f"backbone{i}": x for i, x in enumerate(maps)} | {"decode": logits}
        if isinstance(getattr(segmenter.head, "neck", None), FPN):
            found |= {f"neck{i}": x for i, x in enumerate(segmenter.head.neck(maps))}
        if segmenter.head.auxiliary is not None:
            found["aux"] = segmenter.head.auxiliary_logits(maps)
        assert {key for key in golden.meta["summary"] if key[0] == which} == {
            f"{which}/{key}" for key in found
        }
        for key, value in found.items():
            golden.check_slice(f"{which}/{key}", value)
        assert_close(logits[0, ::10, ::4, ::4], golden[f"{which}/decode_sub"][0])

        segmenter.forward = lambda images: logits  # once is enough
        probabilities = segmenter.probabilities(images, ORIGINALS[which])
        (labels,) = segmenter.segment(images, [ORIGINALS[which]])
        del segmenter.forward
        assert list(probabilities.shape) == golden.meta[f"{which}/prob_shape"]
        assert_close(probabilities[0, ::10, ::8, ::8], golden[f"{which}/prob_sub"])
        assert (labels != golden[f"{which}/seg"]).sum() <= 2  # pixels where two classes are equal

    def check_losses(
        self, kind: str, gradient_bound: float = 1e-4, dtype: torch.dtype = torch.float32
    ) -> None:
        """`kind`: "eval", or "train_bn": with the statistics of the batch."""
        golden, segmenter = self.golden, self.segmenter.to(dtype)
        images = torch.stack([image(f"segtrain{i}", 128, 160) for i in range(2)]).to(dtype)
        before = {key: value.clone() for key, value in segmenter.state_dict().items()}
        if kind == "train_bn":
            segmenter.train()
            for module in segmenter.modules():
                if type(module).__name__ == "Dropout2d":  # torch's, or ours
                    module.eval()
        segmenter.zero_grad()
        losses = segmenter.loss(images, golden["train/gt"][:, 0])
        want = golden.meta[f"loss_{kind}"]
        assert_same(losses["loss_class"].item(), want["decode.loss_ce"], "loss_class")
        if "aux.loss_ce" in want:
            assert_same(losses["loss_auxiliary"].item(), want["aux.loss_ce"], "loss_auxiliary")
        total = sum(losses.values())
        assert_same(total.item(), want["total"], "total")
        total.backward()
        self._check_gradients(golden.meta[f"grad_{kind}"], gradient_bound)
        if kind == "train_bn":
            self._check_statistics()
            segmenter.load_state_dict(before)
            segmenter.eval()
        segmenter.float()

    def _check_gradients(self, want: dict[str, float | None], bound: float) -> None:
        gradients = {k: p.grad for k, p in self.segmenter.named_parameters() if p.grad is not None}
        theirs = self.names.to_theirs(gradients)
        largest = max(norm for norm in want.values() if norm)
        for key, norm in want.items():
            if norm:
                got = theirs.pop(key).double().norm().item()
                assert abs(got - norm) <= bound * norm + 1e-7 * largest, (key, got, norm)
        assert not theirs

    def _check_statistics(self) -> None:
        state = self.names.to_theirs(self.segmenter.state_dict())
        for key, (mean, std) in self.golden.meta["bn_after_one_step"].items():
            got = state[key].double()
            assert abs(got.mean().item() - mean) < 1e-4, key
            assert abs(got.std().item() - std) < 1e-4, key


def assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def assert_same(got: float, want: float, name: str) -> None:
    assert abs(got - want) <= 1e-4 * abs(want), (name, got, want)
