"""Launches every kernel over every way to divide rows, for compute-sanitizer to watch.

Results are not looked at: that is what the tests are for.
"""

import itertools

import torch

import powergrad_ext as pg  # registers the operators
from powergrad_ext.options import Options

OPS = torch.ops.powergrad
# Every branch of the plan for an H100 (csrc/cuda/plan.cpp), in each type.
# Rows, of so many packs of 16 bytes; few classes are rows where they do not follow each other.
ROWS = [
    (9, 3),  # 2 threads on a row
    (9, 15),  # 4
    (9, 31),  # 8
    (9, 255),  # 16
    (9, 599),  # 32
    (5, 1099),  # 64, which are two warps
    (3, 8499),  # 256
    (80, 9000),  # 512
    (2, 9001),  # too few rows for all multiprocessors: a cluster of 8 blocks of 128 threads
    (2, 14000),  # the same, since a block has no room
    (2, 20000),  # 8 blocks of 256 threads
    (2, 40000),  # 16
    (1, 240000),  # 16, in two rounds
]
# Rows of up to 512 classes, which follow each other, in several chunks of which the last is short.
CHUNKS = [
    (70000, 3),  # 1 thread on a row; more chunks than the settling backward has blocks
    (300, 8),  # 2
    (300, 40),  # 4
    (300, 64),  # 8
    (300, 512),  # 16
]
# Classes a stride apart, in tiles of four positions a thread, and of one in float64 or where their
# number is odd. The more classes, the more threads are on a position: 1 to 16, the same for fewer
# classes in wider types.
CLASSES_OF_TILES = [19, 36, 70, 150, 300, 600, 1000, 2000, 16000]  # the last in several rounds
TILES = [
    (2, classes, (600 if classes == 19 else 20) + odd)  # the first in several tiles
    for odd in (0, 1)
    for classes in CLASSES_OF_TILES
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ALPHAS = [1.0, 0.25, 0.3]  # of which kernels make different things


def random_rows(shape, dtype):
    """Logits that do not follow each other, and the first of which lies at no multiple of 16."""
    rows, packs = shape
    return random_logits((rows, packs * 16 // dtype.itemsize + 2), dtype)[:, 1:-1]


def random_logits(shape, dtype):
    """Logits as they are made."""
    return torch.randn(shape, device="cuda", dtype=dtype)


def solve(logits, alpha, targets):
    """All operators of cross-entropy, with targets of one kind."""
    shape, dtype = logits.shape, logits.dtype
    options = Options(alpha=alpha)
    if targets == "probabilities":
        target = logits.softmax(1)
    else:
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64, device="cuda")
        target.view(-1)[-1] = shape[1] - 1
    if targets == "smoothed":
        weight = torch.ones(shape[1], device="cuda", dtype=dtype)
        options = Options(weight, reduction="sum", label_smoothing=0.1, alpha=alpha)
    OPS.cross_entropy_forward(logits, target, *options, False)
    _, statistics, total = OPS.cross_entropy_forward(logits, target, *options, True)
    grad_output = torch.ones_like(total, dtype=statistics.dtype)
    saved = (target, statistics, total)
    OPS.cross_entropy_backward(grad_output, logits, *saved, *options)
    if targets != "probabilities":
        solve_shards(logits, target, options)


def solve_shards(logits, target, options):
    """Two shards of the classes, as two processes would have them."""
    first, second = logits.tensor_split(2, 1)
    places = [(first, 0, second.shape[1]), (second, first.shape[1], 0)]
    messages = []
    for shard, *place in places:
        message, total = OPS.cross_entropy_shard_forward(shard, target, *options, *place, 1)
        messages.append(message)
    loss, numbers = OPS.cross_entropy_merge_shards(torch.stack(messages), total, *options)
    rest = (target, numbers[:3], total, *options)
    for shard, *place in places:
        OPS.cross_entropy_backward(loss, shard, *rest, *place)


def train(logits, alpha):
    """Eager steps: forward assumes the grad_output that came last, backward settles it."""
    logits = logits.detach().requires_grad_()
    target = torch.zeros(logits[:, 0].shape, dtype=torch.int64, device="cuda")
    for grad_output in (2.0, 0.5, 0.5):  # another one, another one, the same
        loss = pg.cross_entropy(logits, target, alpha=alpha)
        loss.backward(torch.full_like(loss, grad_output))


def solve_log_softmax(logits, alpha):
    """Both directions."""
    OPS.log_softmax_forward(logits, 1, alpha, False)
    output, statistics = OPS.log_softmax_forward(logits, 1, alpha, True)
    OPS.log_softmax_backward(output, logits, 1, alpha, statistics)


def main():
    """Every shape in every type, the exponents in turn: each layout meets each of them."""
    alphas = [torch.tensor(alpha, dtype=torch.float64) for alpha in ALPHAS]
    alphas.append(torch.tensor(0.3, device="cuda"))
    for shapes, make in ((ROWS, random_rows), (CHUNKS, random_logits), (TILES, random_logits)):
        for (shape, alpha), dtype in itertools.product(
            zip(shapes, itertools.cycle(alphas), strict=False), DTYPES
        ):
            for targets in ("indices", "smoothed", "probabilities"):
                solve(make(shape, dtype), alpha, targets)
            solve_log_softmax(make(shape, dtype), alpha)
            train(make(shape, dtype), alpha)
    torch.cuda.synchronize()
    print(f"powergrad_ext {pg.__version__}: every kernel was launched")


if __name__ == "__main__":
    main()
