"""Every input behind ssl.npz, from names alone. Needs numpy, scipy (video) and ../dense/weights.py.

The text before the colon in a seed is the tag of the set, TAG; arrays are float32 unless said otherwise.
"""

import numpy as np
from dense import weights as W  # rng(name), value(key, shape), image(name, h, w)

TAG = "ssl-shared"


def rng(name):
    return W.rng(f"{TAG}:{name}")


def randn(name, shape):
    return rng(name).standard_normal(shape).astype(np.float32)


def image(name, h, w):
    return W.image(f"{TAG}:{name}", h, w)  # (3, h, w), as if normalised


def tensor(prefix, key, shape, *, spread_g=False):
    """A parameter or buffer. weight_g: ones, or 1 + 0.1 normal; counters: 0; all else by the rules of weights.py."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("weight_g"):
        return (
            (1 + 0.1 * rng(prefix + key).standard_normal(shape)).astype(np.float32)
            if spread_g
            else np.ones(shape, np.float32)
        )
    return W.value(f"{TAG}:{prefix}{key}", shape)


def state(prefix, keys, **options):
    """{key: shape} of a JSON -> {key: array}."""
    return {k: tensor(prefix, k, tuple(s), **options) for k, s in keys.items()}


def head_inputs(rows, width, prototypes):
    """Input of the head and the gradient that comes back."""
    return randn("head:x", (rows, width)), randn("head:gout", (rows, prototypes))


def loss_inputs(step, *, dim, views, batch):
    """Student (views * batch, dim) and teacher (2 * batch, dim) logits of step 0, 1, 2."""
    shift = 0.1 * randn("loss:shift", (dim,))
    return 0.3 * randn(f"loss:student{step}", (views * batch, dim)), 0.3 * randn(
        f"loss:teacher{step}", (2 * batch, dim)
    ) + shift


def two_views(*, dim, batch):
    return 0.3 * randn("loss2:student", (2 * batch, dim)), 0.3 * randn("loss2:teacher", (2 * batch, dim))


CLIP_SCALE = {"a.weight": 2, "a.bias": 0.3, "last_layer.weight": 0.5, "last_layer.bias": 1}
CLIP_SHAPE = {"a.weight": (4, 5), "a.bias": (4,), "last_layer.weight": (3, 4), "last_layer.bias": (3,)}


def clip_gradients():
    return {k: randn("clip:" + k, s) * CLIP_SCALE[k] for k, s in CLIP_SHAPE.items()}


def lars():
    """w (3, 4), b (4,), and their gradients in three steps."""
    return (
        randn("lars:w", (3, 4)),
        randn("lars:b", (4,)),
        [(randn(f"lars:g{s}:0", (3, 4)), randn(f"lars:g{s}:1", (4,))) for s in range(3)],
    )


def crops(step, *, local_views, batch=2):
    """Views of training step 0..3: two of 64 x 64, then `local_views` of 32 x 32, each (batch, 3, h, w)."""

    def stack(name, side):
        return np.stack([image(f"tr{step}_{name}_{k}", side, side) for k in range(batch)])

    return [stack(f"g{v}", 64) for v in range(2)] + [stack(f"l{v}", 32) for v in range(local_views)]


def eval_images():
    return np.stack([image(f"ev{k}", 64, 64) for k in range(2)])


def feature_images():
    return np.stack([image(f"fe{k}", 64, 48) for k in range(2)])


def multi_scale_image():
    return image("ms", 96, 64)[None]


def copy_images():
    """Three uint8 pictures (32, 32, 3)."""
    made = [(256 * rng(f"copy:img{i}").random((32, 32, 3))).astype(np.uint8) for i in range(3)]
    return [m[::4, ::4].repeat(4, 0).repeat(4, 1) for m in made]


def knn(*, classes, sizes, n_test, width=16):
    """Features before L2-normalisation and labels: train features, train labels, test features, test labels."""
    means = randn("knn:means", (classes, width))
    labels = np.repeat(np.arange(classes), sizes)
    labels = labels[rng("knn:perm").permutation(len(labels))]
    tests = rng("knn:testlab").integers(0, classes, n_test)
    return (
        means[labels] + 1.6 * randn("knn:train", (len(labels), width)),
        labels,
        means[tests] + 1.6 * randn("knn:test", (n_test, width)),
        tests,
    )


def retrieval(images=25, queries=7):
    """Features of the data base and of the queries, before L2-normalisation."""
    return randn("map:db", (images, 8)), randn("map:q", (queries, 8))


def whitening():
    """Rows to learn from (60, 10), queries (5, 10), data base (8, 10)."""
    return (
        randn("pca:x", (60, 10)) @ (0.6 * randn("pca:mix", (10, 10))),
        randn("pca:q", (5, 10)),
        randn("pca:db", (8, 10)),
    )


def video(*, tokens, dim, frames=7):
    """Features (H, W, dim) of each frame."""
    import scipy.ndimage

    h, w = tokens
    base = scipy.ndimage.uniform_filter(randn("vid:base", (h + 8, w + 8, dim)), (3, 3, 1)) * 3
    shifted = [base[2 + f % 4 : 2 + f % 4 + h, 1 + f : 1 + f + w] for f in range(frames)]
    return [
        (s + 0.15 * randn(f"vid:noise{f}", (h, w, dim))).astype(np.float32) for f, s in enumerate(shifted)
    ]


def attention():
    """Attention of three heads over 5 x 7 patches (3, 35), not normalised."""
    return rng("mask:att").random((3, 35)).astype(np.float32)


def series():
    return rng("jf:series").random(23)
