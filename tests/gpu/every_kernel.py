"""Launches every kernel over every way to share out rows, for compute-sanitizer to watch.

Results are not looked at: that is what the tests are for.
"""

import itertools

import torch

import powergrad_ext as pg  # registers the operators

OPS = torch.ops.powergrad
SHAPES = [
    (5, 3),  # several rows per warp
    (3, 333),
    (3, 5001),  # a warp per row
    (2, 50257),  # a block per row
    (2, 140001),  # a cluster per row
    (1, 1500001),  # more than a cluster holds
    (2, 21, 77),  # across rows
    (1, 300, 5),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ALPHAS = [1.0, 0.25, 0.3, 0.7]


def solve(shape, dtype, alpha, targets):
    """All operators of cross-entropy, with targets of one kind."""
    logits = torch.randn(shape, device="cuda", dtype=dtype)
    options = [None, -100, "mean", 0.0]
    if targets == "probabilities":
        target = logits.softmax(1)
    else:
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64, device="cuda")
        target.view(-1)[-1] = shape[1] - 1
    if targets == "smoothed":
        options = [torch.ones(shape[1], device="cuda", dtype=dtype), -100, "sum", 0.1]
    OPS.cross_entropy_forward(logits, target, *options, alpha, False)
    _, statistics, total = OPS.cross_entropy_forward(logits, target, *options, alpha, True)
    OPS.cross_entropy_forward_gradient(logits, target, *options, alpha)
    upstream = torch.ones_like(total, dtype=statistics.dtype)
    saved = (target, *options, alpha, statistics, total)
    OPS.cross_entropy_backward(upstream, logits, *saved)
    OPS.cross_entropy_backward_(logits, upstream, *saved)
    if targets != "probabilities":
        solve_shards(logits, target, options, alpha)


def solve_shards(logits, target, options, alpha):
    """Two shards of the classes, as two processes would have them."""
    weight, ignore_index, reduction, smoothing = options
    first, second = logits.tensor_split(2, 1)
    places = [(first, 0, second.shape[1]), (second, first.shape[1], 0)]
    messages = []
    for shard, *place in places:
        message, total = OPS.cross_entropy_shard_forward(
            shard, target, weight, ignore_index, reduction, smoothing, alpha, *place, 1
        )
        messages.append(message)
    loss, numbers = OPS.cross_entropy_merge_shards(torch.stack(messages), reduction, alpha, total)
    rest = (target, weight, ignore_index, reduction, smoothing, alpha, numbers[:3], total)
    for shard, *place in places:
        OPS.cross_entropy_shard_backward(loss, shard, *rest, *place)


def solve_log_softmax(shape, dtype, alpha):
    """Both directions."""
    logits = torch.randn(shape, device="cuda", dtype=dtype)
    OPS.log_softmax_forward(logits, 1, alpha, False)
    output, statistics = OPS.log_softmax_forward(logits, 1, alpha, True)
    OPS.log_softmax_backward(output, logits, 1, alpha, statistics)


def main():
    """Every combination, with every exponent given on the CPU and one on the device."""
    alphas = [torch.tensor(alpha, dtype=torch.float64) for alpha in ALPHAS]
    alphas.append(torch.tensor(0.3, device="cuda"))
    for shape, dtype, alpha in itertools.product(SHAPES, DTYPES, alphas):
        for targets in ("indices", "smoothed", "probabilities"):
            solve(shape, dtype, alpha, targets)
        solve_log_softmax(shape, dtype, alpha)
    torch.cuda.synchronize()
    print(f"powergrad_ext {pg.__version__}: every kernel was launched")


if __name__ == "__main__":
    main()
