"""torch.func: grad, vmap and their compositions, against the same calls of the specification."""

import pytest
import torch
from cases import generator, make_logits, make_problem
from torch.func import functionalize, grad, grad_and_value, jacrev, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import powergrad_ext as pg
from powergrad_ext import reference

OPS = torch.ops.powergrad
ALPHA = torch.tensor(0.3, dtype=torch.float64)
SAMPLES = 4
CASES = {
    "mean": {},
    "sum, weights, smoothing": {"reduction": "sum", "weighted": True, "label_smoothing": 0.1},
    "mean, a class ignored": {"ignore_index": 2, "weighted": True},
    "none": {"reduction": "none"},
    "probabilities": {"targets": "probabilities"},
    "row weights, z-loss": {"weighted_rows": True, "z_loss": 0.1},
    "the same, probabilities": {
        "weighted_rows": True,
        "z_loss": 0.1,
        "targets": "probabilities",
        "reduction": "none",
    },
}
SHAPES = {"one row each": (7,), "rows": (5, 7), "inner": (2, 7, 3)}
calls = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def samples(device, shape, **options):
    """A batch of problems of one kind; the options of the first serve all."""
    problems = [
        make_problem(shape, torch.float64, device, seed=seed, **options) for seed in range(SAMPLES)
    ]
    logits = torch.stack([problem.logits for problem in problems])
    target = torch.stack([problem.target for problem in problems])
    return logits, target, problems[0]


def loss_of(module, problem, scalar=True):
    def loss(logits, target):
        value = module.cross_entropy(logits, target, problem.weight, alpha=0.3, **problem.options)
        return value.square().sum() if scalar and value.dim() else value

    return loss


def assert_same(transform, logits, target, problem, **how):
    """The transformed kernels and the transformed specification are the same function."""
    ours = transform(loss_of(pg, problem, **how))(logits, target)
    specified = transform(loss_of(reference, problem, **how))(logits, target)
    torch.testing.assert_close(ours, specified, rtol=1e-11, atol=1e-13, equal_nan=True)


@calls
@shapes
def test_grad(shape, options, device):
    logits, target, problem = samples(device, shape, **options)
    assert_same(grad, logits[0], target[0], problem)
    assert_same(grad_and_value, logits[0], target[0], problem)


@calls
@shapes
def test_vmap(shape, options, device):
    logits, target, problem = samples(device, shape, **options)
    assert_same(vmap, logits, target, problem, scalar=False)


@calls
@shapes
def test_vmap_of_grad(shape, options, device):
    """Per-sample gradients."""
    logits, target, problem = samples(device, shape, **options)
    assert_same(lambda loss: vmap(grad(loss)), logits, target, problem)


@shapes
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (-1, 0), (1, -1)], ids=str)
def test_vmap_over_other_dimensions(in_dims, shape, device):
    logits, target, problem = samples(device, shape)
    placed = [
        tensor[0] if dim is None else tensor.movedim(0, dim)
        for tensor, dim in zip((logits, target), in_dims, strict=True)
    ]
    assert_same(lambda loss: vmap(loss, in_dims), *placed, problem)
    assert_same(lambda loss: vmap(grad(loss), in_dims), *placed, problem)


@calls
def test_grad_of_vmap(options, device):
    logits, target, problem = samples(device, (5, 7), **options)
    assert_same(lambda loss: grad(lambda z, t: vmap(loss)(z, t).sum()), logits, target, problem)


@calls
def test_grad_of_grad(options, device):
    logits, target, problem = samples(device, (5, 7), **options)
    assert_same(
        lambda loss: grad(lambda z, t: grad(loss)(z, t).square().sum()),
        logits[0],
        target[0],
        problem,
    )


def test_vmap_of_vmap(device):
    logits, target, problem = samples(device, (5, 7))
    deeper = logits.reshape(2, 2, 5, 7), target.reshape(2, 2, 5)
    assert_same(lambda loss: vmap(vmap(loss)), *deeper, problem)
    assert_same(lambda loss: vmap(vmap(grad(loss))), *deeper, problem)


def test_jacobian_of_unreduced_losses(device):
    logits, target, problem = samples(device, (5, 7), reduction="none")
    assert_same(jacrev, logits[0], target[0], problem, scalar=False)


def test_gradient_of_probabilities(device):
    logits, target, problem = samples(device, (5, 7), targets="probabilities")
    assert_same(lambda loss: grad(loss, argnums=(0, 1)), logits[0], target[0], problem)
    assert_same(lambda loss: vmap(grad(loss, argnums=(0, 1))), logits, target, problem)


def test_targets_that_weigh_nothing(device):
    """With label smoothing, that sample's mean and gradient are NaN, as torch's."""
    logits = torch.randn(2, 5, 4, generator=generator(0)).to(device)
    target = torch.tensor([[0, 0, 0, 0, -100], [1, 2, 0, 3, 1]], device=device)
    weight = torch.tensor([0.0, 1.0, 0.5, 2.0], device=device)

    def solve(function, **alpha):
        def loss(z, y):
            return function(z, y, weight, label_smoothing=0.1, **alpha)

        return vmap(grad_and_value(loss))(logits, target)

    found, right = solve(pg.cross_entropy, alpha=1.0), solve(torch.nn.functional.cross_entropy)
    assert right[1].isnan().tolist() == [True, False]
    torch.testing.assert_close(found, right, equal_nan=True)


def test_ensemble_over_alpha_and_weights(device):
    """One sample, several exponents or class weights."""
    logits, target, _ = samples(device, (5, 7))
    alphas = torch.tensor([0.25, 0.3, 1.0, 2.0], dtype=torch.float64, device=device)
    weights = torch.rand(SAMPLES, 7, generator=generator(1), dtype=torch.float64).to(device)

    def gradient(module, weight, alpha):
        return grad(lambda z: module.cross_entropy(z, target[0], weight, alpha=alpha))(logits[0])

    for_alpha = vmap(lambda alpha: gradient(pg, None, alpha))(alphas)
    for_weight = vmap(lambda weight: gradient(pg, weight, 0.3))(weights)
    for i in range(SAMPLES):
        torch.testing.assert_close(for_alpha[i], gradient(reference, None, float(alphas[i])))
        torch.testing.assert_close(for_weight[i], gradient(reference, weights[i], 0.3))


def test_log_softmax_of_an_ensemble_over_alpha(device):
    """Value and gradient of one sample for several exponents, as of each alone."""
    logits, _, _ = samples(device, (5, 7))
    alphas = torch.tensor([0.25, 0.3, 1.0, 2.0], dtype=torch.float64, device=device)

    def solve(module, alpha):
        def loss(z):
            return (module.log_softmax(z, alpha=alpha) * logits[1]).sum()

        return grad_and_value(loss)(logits[0])

    gradients, values = vmap(lambda alpha: solve(pg, alpha))(alphas)
    for i in range(SAMPLES):
        right = solve(reference, float(alphas[i]))
        torch.testing.assert_close((gradients[i], values[i]), right)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_softmax(dim, device):
    logits = make_logits((SAMPLES, 5, 7), torch.float64, device)

    def solve(module):
        def function(z):
            return module.log_softmax(z, dim, alpha=0.3)

        output, pull_back = vjp(vmap(function), logits)
        second = grad(lambda z: grad(lambda y: function(y).square().sum())(z).square().sum())
        return (
            output,
            pull_back(torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output)),
            vmap(second)(logits),
        )

    torch.testing.assert_close(solve(pg), solve(reference), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_per_sample_gradients_are_the_gradients_of_the_samples(dtype, device):
    """In the types that models are trained in: the bits of separate calls."""
    logits = make_logits((SAMPLES, 5, 7), dtype, device)
    target = torch.arange(5, device=device).expand(SAMPLES, 5)
    per_sample = vmap(grad(lambda z, t: pg.cross_entropy(z, t)))(logits, target)
    for i in range(SAMPLES):
        alone = grad(lambda z: pg.cross_entropy(z, target[0]))(logits[i])
        torch.testing.assert_close(per_sample[i], alone)


def test_bad_input_inside_a_transform():
    with pytest.raises(ValueError, match="alpha"):
        grad(lambda z: pg.cross_entropy(z, torch.tensor([0]), alpha=-1.0))(torch.randn(1, 3))
    with pytest.raises(IndexError, match="Target 3"):
        grad(lambda z: pg.cross_entropy(z, torch.tensor([3])))(torch.randn(1, 3))


class Losses(torch.nn.Module):
    def forward(self, logits, target):
        loss, metrics = pg.cross_entropy(logits, target, z_loss=0.1, return_metrics=True)
        return loss + pg.log_softmax(logits)[:, 1].mean() + metrics.entropy.mean()


def test_exported_module(device):
    logits, target, _ = samples(device, (5, 7))
    exported = torch.export.export(Losses(), (logits[0], target[0])).module()
    expected = grad(Losses())(logits[0], target[0])
    torch.testing.assert_close(grad(exported)(logits[0], target[0]), expected)


@pytest.mark.parametrize("transform", [grad, jacrev, lambda f: vmap(f, (0, None))])
def test_functionalize(transform, device):
    """Around a transform, and traced."""
    logits, target, _ = samples(device, (5, 7))
    arguments = logits[0], target[0]
    if transform not in (grad, jacrev):
        arguments = logits, target[0]
    expected = transform(Losses())(*arguments)
    functional = functionalize(transform(Losses()))
    torch.testing.assert_close(functional(*arguments), expected)
    torch.testing.assert_close(make_fx(functional)(*arguments)(*arguments), expected)


def test_a_value_of_alpha_outlives_the_transform_that_used_it_first():
    """The tensor made of it is kept for the next call, but not one that belongs to a transform."""
    logits, target = torch.randn(4, 5), torch.arange(4)
    grad(lambda z: pg.cross_entropy(z, target, alpha=0.123))(logits)
    loss = pg.cross_entropy(logits.requires_grad_(), target, alpha=0.123)
    loss.backward()
    scaled = torch.nn.functional.cross_entropy(0.123 * logits, target) / 0.123
    torch.testing.assert_close(logits.grad, torch.autograd.grad(scaled, logits)[0])


def test_inplace_backward_inside_a_transform():
    """What lies below a transform's tensors is not the caller's to give."""
    logits, target = torch.randn(3, 4, 5), torch.arange(4)
    before = logits.clone()

    def loss(z):
        return pg.cross_entropy(z * 1.0, target, inplace_backward=True) + z.square().mean()

    expected = torch.stack([grad(loss)(z) for z in logits])
    torch.testing.assert_close(vmap(grad(loss))(logits), expected)
    vmapped = 1.0 * logits.clone().requires_grad_()  # a leaf would be spared anyhow
    vmap(lambda z: pg.cross_entropy(z, target, inplace_backward=True))(vmapped).sum().backward()
    assert torch.equal(vmapped.detach(), before)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 7, 3), (0, 7)], ids=str)
@pytest.mark.parametrize("shared_weight", [True, False], ids=["shared weight", "own weight"])
def test_empty_batch(shared_weight, shape, device):
    problem = make_problem(shape, torch.float64, device)
    logits, target, weight = (
        tensor.new_empty(0, *tensor.shape)
        for tensor in (problem.logits, problem.target, torch.ones(7, dtype=torch.float64))
    )
    if shared_weight:
        weight = torch.ones(7, dtype=torch.float64, device=device)
    in_dims = (0, 0, None if shared_weight else 0)

    def unreduced(z, y, w):
        return pg.cross_entropy(z, y, w, reduction="none")

    def log_softmax(z, y, w):
        return pg.log_softmax(z).sum()

    losses = vmap(unreduced, in_dims)(logits, target, weight)
    assert losses.shape == target.shape
    for loss in (pg.cross_entropy, log_softmax):
        assert vmap(loss, in_dims)(logits, target, weight).shape == (0,)
        assert vmap(grad(loss), in_dims)(logits, target, weight).shape == logits.shape
