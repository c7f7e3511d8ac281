"""row_weight, z_loss and return_metrics of modules and tensor subclasses."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import pytest
import torch
from last_layer import C, H, N, make_layer, make_target
from row_options import make_finite_rows

import powergrad_ext as pg

MODULES = {
    "loss": lambda: pg.PowerGradCrossEntropyLoss(z_loss=0.1, return_metrics=True),
    "layer": lambda: pg.PowerGradLinearCrossEntropyLoss(H, C, z_loss=0.1, return_metrics=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    module = MODULES[name]()
    assert "z_loss=0.1, return_metrics=True" in repr(module)
    input = make_layer("cpu", torch.float32)[0].detach()
    target, row_weight = make_target("cpu"), (torch.arange(N) % 4).float()
    target = target.clamp_max(H - 1)
    found = module(input, target, row_weight)
    copies = (copy.deepcopy(module), pickle.loads(pickle.dumps(module)))
    for each in copies:
        again = each(input, target, row_weight)
        assert torch.equal(again[0], found[0])
        assert torch.equal(again[1].entropy, found[1].entropy)
    if name == "loss":
        expected = pg.cross_entropy(
            input, target, row_weight=row_weight, z_loss=0.1, return_metrics=True
        )
    else:
        expected = pg.linear_cross_entropy(
            input,
            module.linear.weight,
            target,
            row_weight=row_weight,
            z_loss=0.1,
            return_metrics=True,
        )
    torch.testing.assert_close((found[0], *found[1]), (expected[0], *expected[1]))
    assert "z_loss" not in repr(pg.PowerGradCrossEntropyLoss())
    with pytest.raises(RuntimeError, match="return_metrics must be False under"):
        torch.jit.script(module)


def test_scripts():
    logits, target, row_weight = make_finite_rows(dtype=torch.float32)
    module = pg.PowerGradCrossEntropyLoss(z_loss=0.1)
    script = torch.jit.script(module)
    for rows in (None, row_weight):
        torch.testing.assert_close(script(logits, target, rows), module(logits, target, rows))


class Traced(torch.Tensor):
    """A subclass that records the keywords of what is called."""

    seen: ClassVar[dict] = {}

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (pg.cross_entropy, pg.linear_cross_entropy):
            cls.seen = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def test_torch_function_hands_them_on():
    logits, target, row_weight = make_finite_rows()
    options = {"row_weight": row_weight.as_subclass(Traced), "z_loss": 0.1, "return_metrics": True}
    loss, _ = pg.cross_entropy(logits, target, **options)
    assert {name: Traced.seen[name] for name in ("z_loss", "return_metrics")} == {
        "z_loss": 0.1,
        "return_metrics": True,
    }
    plain = options | {"row_weight": row_weight}
    expected = pg.cross_entropy(logits, target, **plain)
    torch.testing.assert_close(torch.Tensor(loss), expected[0])
    layer = [each.detach() for each in make_layer("cpu")[:2]]
    rows = (torch.arange(N) % 4).double()
    found, _ = pg.linear_cross_entropy(
        *layer,
        make_target("cpu"),
        row_weight=rows.as_subclass(Traced),
        z_loss=0.1,
        return_metrics=True,
    )
    right = pg.linear_cross_entropy(*layer, make_target("cpu"), row_weight=rows, z_loss=0.1)
    torch.testing.assert_close(torch.Tensor(found), right)


@pytest.mark.parametrize(
    "module", [pg.PowerGradCrossEntropyLoss(), pg.PowerGradLinearCrossEntropyLoss(4, 7)], ids=type
)
def test_modules_that_were_saved_before_these_options(module):
    for name in ("z_loss", "return_metrics", "logit_scale", "softcap"):
        vars(module).pop(name, None)
    again = pickle.loads(pickle.dumps(module))
    width = 4 if hasattr(again, "linear") else 7
    assert again(torch.randn(3, width), torch.arange(3)).isfinite()
