"""What the exchange of a vocabulary-parallel loss costs on many GPUs, calculated.

NCCL's own model (src/graph/tuning.cc at commit 01afd20: a latency for the call and for each step,
and what a protocol leaves of the bandwidth), with the links of DGX H100 nodes as their maker
publishes them: 450 GB/s from each GPU over NVLink, and 8 x 50 GB/s from each node over InfiniBand.
`python bench/exchange.py` prints the table of exchange.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ROWS = 8192
RANKS = (8, 64, 512)
NODE = 8  # GPUs
NUMBER = 4  # bytes of a float
TOLD = 5  # numbers of a row that a rank tells the others
REDUCTIONS = 3  # of one number a row: maximum, sum, target's logit

NVLINK, NETWORK = 450e3, 400e3  # bytes in a microsecond, each way: of a GPU, of a node's ring


@dataclass(frozen=True)
class Protocol:
    """Microseconds of a call, of a step within a node, of one between nodes; share of bandwidth."""

    base: float
    within: float
    between: float
    share: float


RINGS = (
    Protocol(base=3.6, within=0.47, between=2.7, share=1 / 4),
    Protocol(base=10.0, within=1.9, between=4.0, share=0.92),
    Protocol(base=8.4, within=3.4, between=9.6, share=1.0),
)
TREES = (
    Protocol(base=4.4, within=0.52, between=5.0, share=0.9 / 3.8),
    Protocol(base=4.4, within=1.2, between=8.5, share=0.9 * 0.915),
)


def all_gather(ranks: int, size: float) -> float:
    """Microseconds until every rank has what each told, of so many bytes."""
    return min(_ring(ranks, protocol, 1, (ranks - 1) * size) for protocol in RINGS)


def all_reduce(ranks: int, size: float) -> float:
    """Microseconds until every rank has the sums of all."""
    rings = (_ring(ranks, each, 2, 2 * (ranks - 1) / ranks * size) for each in RINGS)
    nodes, within = _nodes(ranks), min(ranks, NODE) - 1
    trees = (
        each.base
        + 2 * (within * each.within + math.log2(nodes) * each.between)
        + 2 * size / (_bandwidth(ranks) * each.share)
        for each in TREES
    )
    return min(*rings, *trees)


def _ring(ranks: int, protocol: Protocol, rounds: int, through_each_link: float) -> float:
    between = rounds * (_nodes(ranks) - 1)
    within = rounds * (ranks - 1) - between
    latency = protocol.base + within * protocol.within + between * protocol.between
    return latency + through_each_link / (_bandwidth(ranks) * protocol.share)


def _nodes(ranks: int) -> int:
    return max(1, ranks // NODE)


def _bandwidth(ranks: int) -> float:
    return NVLINK if ranks <= NODE else NETWORK


def table() -> str:
    """In Markdown."""
    lines = [
        "| ranks | one all-gather: bytes a row into each rank | µs "
        "| three all-reduces: bytes a row | µs | ours takes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for ranks in RANKS:
        gather = all_gather(ranks, ROWS * TOLD * NUMBER)
        reduce = REDUCTIONS * all_reduce(ranks, ROWS * NUMBER)
        gathered = (ranks - 1) * TOLD * NUMBER
        reduced = REDUCTIONS * 2 * (ranks - 1) / ranks * NUMBER
        lines.append(
            f"| {ranks} | {gathered} | {gather:.0f} | {reduced:.1f} | {reduce:.0f} "
            f"| {gather / reduce:.2f} of theirs |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
