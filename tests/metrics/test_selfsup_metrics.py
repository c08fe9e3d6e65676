"""k-NN, retrieval, whitening and video scores equal those of the authors' scripts."""

import os
import pickle
from threading import Thread

import numpy as np
import pytest
import torch
from selfsup import inputs
from selfsup.answers import check, golden, meta
from torch.nn import functional as F

from tetravit.metrics import knn, retrieval, video


def knn_inputs():
    settings = meta()["knn"]
    arrays = inputs.knn(classes=settings["classes"], sizes=settings["sizes"], n_test=settings["n_test"])
    return settings, *(torch.from_numpy(np.asarray(a)) for a in arrays)


@pytest.mark.parametrize("chunks", [{}, {"test_chunk": 7, "train_chunk": 11}, {"train_chunk": 3}])
def test_votes_are_the_authors_whatever_the_chunks(chunks):
    settings, train, labels, test, wanted = knn_inputs()
    votes = knn.vote(train, labels, test, ks=settings["ks"], num_classes=settings["classes"], **chunks)
    for k in settings["ks"]:
        check(f"knn_k{k}_votes", votes[k][:20])
        recorded = meta()[f"knn_k{k}"]
        top1, top5 = knn.accuracy(votes[k], wanted, (1, min(5, k)))
        assert 100 * top1 == pytest.approx(recorded["top1"], abs=1e-4)
        assert 100 * top5 == pytest.approx(recorded["top5"], abs=1e-4)


def test_equal_neighbours_count_by_their_place():
    train = F.normalize(torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]]), dim=1)
    labels = torch.tensor([2, 0, 1, 3])
    for chunk in (1, 2, 3, 4):
        votes = knn.vote(train, labels, train[:1], ks=(1, 2), num_classes=4, train_chunk=chunk)
        assert votes[1].argmax().item() == 2
        assert votes[2].nonzero()[:, 1].tolist() == [0, 2]


class Ranks:
    """Two ranks in two threads: `gather` as `World` has it."""

    def __init__(self, size):
        from threading import Barrier

        self.size, self.barrier, self.box = size, Barrier(size), [None] * size

    def of(self, rank):
        outer = self

        class One:
            size = outer.size

            def gather(self, value):
                outer.box[rank] = value
                outer.barrier.wait()
                values = list(outer.box)
                outer.barrier.wait()
                return values

        return One()


def test_parts_of_the_training_set_on_two_ranks():
    settings, train, labels, test, _ = knn_inputs()
    ranks, answers = Ranks(2), {}

    def one(rank):
        mine = torch.arange(len(train))[rank::2]
        answers[rank] = knn.vote(
            train[mine], labels[mine], test, ks=(5, 12), num_classes=7, positions=mine, world=ranks.of(rank)
        )

    threads = [Thread(target=one, args=(rank,)) for rank in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for rank in range(2):
        check("knn_k5_votes", answers[rank][5][:20])
        check("knn_k12_votes", answers[rank][12][:20])
    assert settings["ks"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": (0,)}, "k-NN takes numbers of neighbours from 1 up; got (0,)."),
        ({"temperature": 0.0}, "The temperature of k-NN is above 0; got 0."),
        ({"num_classes": 1}, "Labels of 1 classes are 0 to 0; got 0 to 1."),
        ({"test": torch.ones(0, 2)}, "k-NN needs an image on either side; got 2 to train on and 0 to test."),
        (
            {"test": torch.ones(1, 3)},
            "k-NN takes features (N, C), labels (N,) and features (M, C); got (2, 2), (2,) and (1, 3).",
        ),
    ],
)
def test_bad_arguments_of_knn(change, message):
    given = {"train": torch.eye(2), "labels": torch.tensor([0, 1]), "test": torch.eye(2), "ks": (1,)}
    with pytest.raises(ValueError) as error:
        knn.vote(**{**given, **change})
    assert str(error.value) == message


@pytest.mark.parametrize("protocol", ["M", "H"])
def test_mean_average_precision(protocol):
    database, queries = (F.normalize(torch.from_numpy(x), dim=1) for x in inputs.retrieval())
    ranks = retrieval.ranking(queries, database)
    assert torch.equal(ranks, golden("map_ranks"))
    answer = retrieval.mean_ap(ranks, meta()["map_gnd"], protocol)
    check(f"map_{protocol}_aps", answer.aps)
    check(f"map_{protocol}_prs", answer.precisions)
    assert answer.map == pytest.approx(meta()[f"map_{protocol}"]["map"])
    assert answer.mean_precisions == pytest.approx(meta()[f"map_{protocol}"]["mp"])


@pytest.mark.parametrize("dim", [10, 6])
def test_whitening(dim):
    x, queries, database = inputs.whitening()
    whitening, mean = retrieval.Whitening(dim).fit(x), x.mean(0)
    check(f"pca{dim}_dvt_abs", whitening.matrix.abs(), 1e-4)
    a, b = (F.normalize(whitening.apply(rows, mean), dim=1) for rows in (queries, database))
    check(f"pca{dim}_similarity", a @ b.T, 1e-4)


TRUTH = {
    "imlist": ["a", "b"],
    "qimlist": ["q"],
    "gnd": [{"bbx": np.array([1.5, 2, 3, 4]), "easy": np.array([1, 0]), "hard": [0], "junk": np.int64(1)}],
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_ground_truth_without_pickle(tmp_path, protocol):
    path = tmp_path / "gnd.pkl"
    path.write_bytes(pickle.dumps(TRUTH, protocol))
    table = retrieval.read_ground_truth(path)
    assert table["imlist"] == ["a", "b"]
    assert table["gnd"] == [{"bbx": [1.5, 2, 3, 4], "easy": [1, 0], "hard": [0], "junk": 1}]


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def test_a_ground_truth_that_names_code(tmp_path):
    path = tmp_path / "gnd.pkl"
    path.write_bytes(pickle.dumps({**TRUTH, "gnd": Evil()}))
    with pytest.raises(ValueError) as error:
        retrieval.read_ground_truth(path)
    assert str(error.value) == f"{path} was not read: it refers to posix.system, which no ground truth needs."


def test_other_files_in_place_of_a_ground_truth(tmp_path):
    path = tmp_path / "gnd.pkl"
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="holds no ground truth: it lacks imlist, qimlist and gnd"):
        retrieval.read_ground_truth(path)
    path.write_bytes(b"\x80\x04nothing")
    with pytest.raises(ValueError, match="holds no ground truth"):
        retrieval.read_ground_truth(path)


@pytest.fixture(scope="module")
def clip():
    settings = meta()["vid"]
    frames = inputs.video(tokens=settings["tokens"], dim=settings["dim"], frames=settings["frames"])
    return torch.stack([torch.from_numpy(f).permute(2, 0, 1) for f in frames])


def propagated(clip, radius):
    settings = meta()["vid"]
    first = video.first_labels(golden("vid_seg0"), tuple(settings["tokens"]))
    assert torch.equal(first[None], golden("vid_first_onehot"))
    numbers = {key: settings[key] for key in ("context", "topk", "temperature")}
    return video.propagate(clip, first, radius=radius, **numbers)


def test_propagation(clip):
    settings = meta()["vid"]
    soft = propagated(clip, settings["radius"])
    check("vid_soft_first", soft[1][None])
    check("vid_soft_last", soft[-1][None])
    labels = torch.stack([video.label_map(s, settings["patch"], settings["original"]) for s in soft[1:]])
    wanted = golden("vid_labels")[1:]
    assert (labels != wanted).double().mean().item() <= 1e-4


def test_propagation_over_all_tokens(clip):
    check("vid_soft_last_noradius", propagated(clip, 0)[-1][None])


def test_region_and_boundary():
    shape = tuple(meta()["jf"]["shape"])
    truth, found = (
        np.unpackbits(golden(k).numpy())[: np.prod(shape)].reshape(shape) for k in ("jf_gt", "jf_seg")
    )
    check("jf_J", video.region(truth, found))
    check("jf_F", video.boundary(truth, found))
    assert tuple(video.statistics(inputs.series())) == pytest.approx(
        meta()["jf"]["series_mean_recall_decay"], abs=1e-8
    )


def test_boundaries_of_empty_masks():
    empty, full = np.zeros((1, 8, 8), bool), np.pad(np.ones((1, 3, 3), bool), ((0, 0), (2, 3), (2, 3)))
    assert video.boundary(empty, empty).tolist() == [1.0]
    assert video.boundary(full, empty).tolist() == [0.0]
    assert video.boundary(empty, full).tolist() == [0.0]
    assert video.region(empty, empty).tolist() == [1.0]
