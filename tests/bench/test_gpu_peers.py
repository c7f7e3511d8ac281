"""How the peers that need a GPU are called, with stand-ins that have their signatures."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.cases import CASES, FRESH, Group
from bench.check import ResultCheck
from bench.peers import WITHOUT_PGT, UnavailableError
from bench.problem import Problem

TINY = Group(CASES["tiny"], "float32", FRESH)


def liger_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    return F.cross_entropy(input, target, reduction=reduction)


def quack_cross_entropy(
    x: Tensor,
    target: Tensor,
    lse_partial: Any = None,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> Tensor:
    return F.cross_entropy(x, target, reduction=reduction)


def quack_cross_entropy_fwd(
    x: Tensor,
    target: Tensor,
    target_logit: Any = None,
    weight: Any = None,
    ignore_index: int = -100,
    return_lse: bool = False,
    return_dx: bool = False,
    inplace_backward: bool = False,
) -> tuple[Tensor, Tensor]:
    assert return_dx
    x = x.detach().requires_grad_()
    losses = F.cross_entropy(x, target, reduction="none")
    return losses, torch.autograd.grad(losses.sum(), x)[0]


class FlashCrossEntropyLoss(nn.Module):
    def __init__(
        self, ignore_index: int = -100, reduction: str = "mean", inplace_backward: bool = False
    ) -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input, target, reduction=self.reduction)


class ApexCrossEntropyLoss:
    @staticmethod
    def apply(
        logits: Tensor, labels: Tensor, smoothing: float, padding_idx: int, half_to_float: bool
    ) -> Tensor:
        assert half_to_float == (logits.dtype != torch.float32)
        return F.cross_entropy(logits, labels, ignore_index=padding_idx, reduction="none")


STAND_INS = {
    "liger_kernel.transformers.functional": {"liger_cross_entropy": liger_cross_entropy},
    "quack.cross_entropy": {
        "cross_entropy": quack_cross_entropy,
        "cross_entropy_fwd": quack_cross_entropy_fwd,
    },
    "flash_attn.losses.cross_entropy": {"CrossEntropyLoss": FlashCrossEntropyLoss},
    "apex.contrib.xentropy": {"SoftmaxCrossEntropyLoss": ApexCrossEntropyLoss},
}
NAMES = ("liger", "quack", "quack-dx", "flash-attention", "apex")
PEERS = [peer for peer in WITHOUT_PGT if peer.name in NAMES]


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.require_cuda", lambda problem: None)
    for module, names in STAND_INS.items():
        for depth in range(1, module.count(".") + 1):
            package = ".".join(module.split(".")[:depth])
            monkeypatch.setitem(sys.modules, package, SimpleNamespace(__path__=[]))
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**names))


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peer_is_called_as_it_asks_to_be(peer: Any) -> None:
    for mode in peer.modes:
        problem = Problem(replace(TINY, mode=mode))
        step = peer.make(problem)
        step.prepare()
        ResultCheck(problem)(step.as_tensor(step.run()), 1.0)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peer_of_two_dimensions_says_so(peer: Any) -> None:
    problem = Problem(replace(TINY, case=replace(TINY.case, inner=(2,))))
    with pytest.raises(UnavailableError, match="two dimensions"):
        peer.make(problem)
