"""Last layers, the options of their loss, and what is right, for the tests of the two fused."""

import torch
import torch.nn.functional as F
from oracle import definition

import powergrad_ext as pg

ALPHA = 0.4
# Of the largest gradient: the logits, the sums over rows and classes, and the result are rounded.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}
OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.2},
    "class weights": {"weighted": True},
    "row weights": {"weighted_rows": True},
    "z-loss": {"z_loss": 0.05},
    "all": {"weighted": True, "weighted_rows": True, "z_loss": 0.05, "label_smoothing": 0.1},
}
OPTIONS["all, capped"] = OPTIONS["all"] | {"logit_scale": 0.7, "softcap": 3.0}


def make_layer(rows, features, classes, dtype=torch.float64, device="cpu", mean=0.0, scale=1.0):
    random = torch.Generator().manual_seed(0)
    layer = [
        mean + torch.randn(rows, features, generator=random),
        scale * torch.randn(classes, features, generator=random),
        torch.randn(classes, generator=random),
    ]
    return [tensor.to(device, dtype) for tensor in layer]


def prepared(options, target, classes, **more):
    """With the tensors that they name, of the device of the target."""
    options = {**options, **more}
    if options.pop("weighted", False):
        options["weight"] = torch.linspace(0.5, 2.0, classes, device=target.device).double()
    if options.pop("weighted_rows", False):
        rows = target.shape[:1] if target.is_floating_point() else target.shape
        numbers = torch.arange(rows.numel(), device=target.device).view(rows)
        options["row_weight"] = 0.25 * (numbers % 4).double()
    return options


def make_grad_output(loss):
    return torch.linspace(-1.5, 2.0, loss.numel()).reshape(loss.shape).to(loss)


def solve(function, layer, grad_output_of=make_grad_output, wanted=(True, True, True)):
    """The loss, and a gradient for each of the layer's tensors."""
    layer = [
        tensor.detach().clone().requires_grad_(is_wanted)
        for tensor, is_wanted in zip(layer, wanted, strict=True)
    ]
    loss = function(*layer)
    loss.backward(grad_output_of(loss))
    return loss.detach(), [tensor.grad for tensor in layer]


def ours(target, alpha=ALPHA, **options):
    def loss(input, linear_weight, linear_bias):
        return pg.linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, alpha=alpha, **options
        )

    return loss


def expected(
    target, layer, grad_output_of=make_grad_output, logit_scale=1.0, softcap=None, **options
):
    """The definition of the loss of logits, and torch's derivative of the layer, in float64."""
    layer = [tensor.detach().double().requires_grad_() for tensor in layer]
    logits = logit_scale * F.linear(*layer)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    of_rows = logits.shape[:-1] if options.get("reduction") == "none" else ()
    grad_output = grad_output_of(torch.empty(of_rows, dtype=torch.float64))
    right = definition(logits, target, grad_output, alpha=ALPHA, **options)
    gradient = right.gradient.to(logits.device)
    return right.loss.to(logits.device), torch.autograd.grad(logits, layer, gradient)


def assert_close(actual, wanted, dtype):
    for name, each, right in zip(("input", "weight", "bias"), actual, wanted, strict=True):
        assert each.dtype == dtype
        error = (each.double() - right).abs().max() / right.abs().max()
        assert error <= TOLERANCE[dtype], (name, error.item())
