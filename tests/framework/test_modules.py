"""The modules: arguments as torch's own, alpha in sight, and all that a module is put through."""

import copy
import io
import pickle

import pytest
import torch
from cases import make_problem

import powergrad_ext as pg

ALPHAS = {"float": 0.5, "tensor": torch.tensor(0.5)}
alphas = pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS.keys())


WRONG = [0, -1, float("nan"), float("inf"), "0.3", None]
WRONG += map(torch.tensor, [-1.0, [0.3], 1, float("nan")])


@pytest.mark.parametrize("make", [pg.PowerGradCrossEntropyLoss, pg.PowerGradLogSoftmax])
@pytest.mark.parametrize("alpha", WRONG, ids=repr)
def test_a_wrong_alpha_is_refused_when_the_module_is_made(make, alpha):
    with pytest.raises(ValueError, match=r"alpha must be .* got"):
        make(alpha=alpha)


def test_nobody_looks_at_a_value_that_is_not_there():
    with torch._subclasses.FakeTensorMode():
        pg.PowerGradLogSoftmax(alpha=torch.full((), 0.5))


def make_loss(alpha=0.5):
    return pg.PowerGradCrossEntropyLoss(
        torch.linspace(0.5, 2.0, 7),
        ignore_index=2,
        reduction="sum",
        label_smoothing=0.1,
        alpha=alpha,
    )


def solve(module, problem):
    logits = problem.logits.clone().requires_grad_()
    loss = module(logits, problem.target)
    loss.backward()
    return loss.detach(), logits.grad


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@alphas
def test_is_the_function(alpha, device):
    problem = make_problem(
        (6, 7), torch.float32, device, ignore_index=2, reduction="sum", label_smoothing=0.1
    )
    problem.weight, problem.alpha = torch.linspace(0.5, 2.0, 7, device=device), alpha
    expected = solve(problem.loss, problem)
    torch.testing.assert_close(solve(make_loss(alpha).to(device), problem), expected)


def test_arguments_are_those_of_torch():
    """A drop-in: positional weight, the same attributes, and a subclass of torch's own loss."""
    ours, torchs = pg.PowerGradCrossEntropyLoss(), torch.nn.CrossEntropyLoss()
    assert isinstance(ours, torch.nn.Module)
    for name in ("weight", "ignore_index", "reduction", "label_smoothing"):
        assert getattr(ours, name) == getattr(torchs, name)
    assert ours.alpha == 0.3
    assert pg.PowerGradLogSoftmax().alpha == 0.3
    assert pg.PowerGradLogSoftmax().dim == -1


@alphas
@pytest.mark.parametrize("through", [copy.deepcopy, copy.copy, through_pickle, through_a_file])
def test_copies(through, alpha, device):
    problem = make_problem((6, 7), torch.float32, device, ignore_index=2)
    module = make_loss(alpha).to(device)
    twin = through(module)
    torch.testing.assert_close(solve(twin, problem), solve(module, problem), rtol=0, atol=0)
    logits = problem.logits
    softmax = pg.PowerGradLogSoftmax(0, alpha=alpha)
    assert torch.equal(through(softmax)(logits), softmax(logits))


def test_state_dict_is_that_of_torch():
    """Checkpoints of torch's loss load into ours and the other way round; alpha is a setting."""
    ours, torchs = make_loss(), torch.nn.CrossEntropyLoss(torch.zeros(7))
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    torchs.load_state_dict(ours.state_dict())
    assert torch.equal(torchs.weight, ours.weight)
    other = pg.PowerGradCrossEntropyLoss(torch.zeros(7), alpha=0.7)
    other.load_state_dict(torchs.state_dict())
    assert torch.equal(other.weight, ours.weight)
    assert other.alpha == 0.7
    assert not pg.PowerGradLogSoftmax().state_dict()


@alphas
def test_repr_shows_alpha(alpha):
    assert "alpha=0.5" in repr(make_loss(alpha))
    assert "label_smoothing=0.1" in repr(make_loss(alpha))
    assert "alpha=0.5" in repr(pg.PowerGradLogSoftmax(alpha=alpha))
    assert "dim=-1" in repr(pg.PowerGradLogSoftmax(alpha=alpha))
    layer = {"chunk_rows": 3, "logit_scale": 0.5, "softcap": 30.0}
    shown = repr(pg.PowerGradLinearCrossEntropyLoss(4, 7, alpha=alpha, **layer))
    assert "alpha=0.5" in shown
    assert "chunk_rows=3, logit_scale=0.5, softcap=30.0" in shown


def losses(alpha):
    return [
        make_loss(alpha),
        pg.PowerGradLogSoftmax(alpha=alpha),
        pg.PowerGradLinearCrossEntropyLoss(4, 7, alpha=alpha),
    ]


def test_repr_of_an_alpha_without_a_value():
    meta = torch.full((), 0.5, device="meta")
    with torch._subclasses.FakeTensorMode():
        fake = torch.full((), 0.5)
    for alpha, sign in ((meta, "device='meta'"), (fake, "FakeTensor")):
        for module in losses(alpha):
            assert sign in repr(module)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_alpha_made_in_inference_mode(reduction):
    """Trains as any other, and its changes are seen."""
    with torch.inference_mode():
        alpha = torch.tensor(0.5)
    target, z = torch.tensor([0, 3, 6]), torch.randn(3, 7, requires_grad=True)
    features = torch.randn(3, 4)
    modules = {
        pg.PowerGradCrossEntropyLoss: ({"reduction": reduction}, (z, target)),
        pg.PowerGradLogSoftmax: ({}, (z,)),
        lambda **options: pg.PowerGradLinearCrossEntropyLoss(4, 7, **options): (
            {"reduction": reduction},
            (features, target),
        ),
    }
    for make, (options, arguments) in modules.items():
        module = make(alpha=alpha, **options)
        for value in (0.5, 0.25):
            with torch.inference_mode():
                alpha.fill_(value)
            ours = module(*arguments)
            of = [*module.parameters(), z] if z is arguments[0] else [*module.parameters()]
            grad_output = torch.randn(ours.shape)
            found = torch.autograd.grad(ours, of, grad_output)
            module.alpha = value
            expected = torch.autograd.grad(module(*arguments), of, grad_output)
            module.alpha = alpha
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    z.grad = None
    pg.calibration.probabilities(z, alpha=alpha).square().sum().backward()
    assert z.grad.isfinite().all()


def test_weight_moves_with_the_module():
    module = make_loss().double()
    assert module.weight.dtype == torch.float64
    assert make_loss().to("meta").weight.is_meta


def test_a_weight_that_hooks_of_the_layer_make():
    torch.manual_seed(0)
    loss = pg.PowerGradLinearCrossEntropyLoss(6, 5, alpha=1.0)
    torch.nn.utils.spectral_norm(loss.linear)
    input, target = torch.randn(4, 6), torch.arange(4)
    found = loss(input, target)
    (gradient,) = torch.autograd.grad(found, loss.linear.weight_orig)
    loss.linear.eval()  # the same estimate of the norm
    right = torch.nn.functional.cross_entropy(loss.linear(input), target)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(gradient, torch.autograd.grad(right, loss.linear.weight_orig)[0])


def test_what_would_change_the_layer_s_output_is_refused():
    loss = pg.PowerGradLinearCrossEntropyLoss(6, 5)
    hook = loss.linear.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(TypeError, match=r"\.linear must have no forward hooks"):
        loss(torch.randn(4, 6), torch.arange(4))
    hook.remove()
    loss.linear.forward = lambda input: input
    with pytest.raises(TypeError, match=r"\.linear must compute what nn\.Linear does"):
        loss(torch.randn(4, 6), torch.arange(4))
