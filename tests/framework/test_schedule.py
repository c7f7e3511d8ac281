"""Schedules of alpha: their values, their states, and who sees them change."""

import math

import pytest
import torch
from cases import devices, make_problem

import powergrad_ext as pg


def alphas(schedule, steps):
    """Alpha at each of so many steps, as training sees it."""
    seen = []
    for _ in range(steps):
        seen.append(schedule.alpha.item())
        schedule.step()
    return seen


def test_constant():
    assert alphas(pg.AlphaSchedule(0.3), 3) == [0.3] * 3
    assert alphas(pg.AlphaSchedule(0.3, 0.3), 3) == [0.3] * 3


def test_linear():
    seen = alphas(pg.AlphaSchedule(0.2, 1.0, steps=4), 7)
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0], rel=1e-15)
    assert seen[4] == 1.0, "exactly"


def test_cosine():
    seen = alphas(pg.AlphaSchedule(1.0, 0.25, steps=8, shape="cosine"), 10)
    expected = [0.625 + 0.375 * math.cos(math.pi * step / 8) for step in range(8)] + [0.25, 0.25]
    assert seen == pytest.approx(expected, rel=1e-14)
    # torch's learning rates of the same name
    (parameter,) = [torch.nn.Parameter(torch.zeros(()))]
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8, eta_min=0.25)
    for ours in seen[:9]:
        assert ours == pytest.approx(torchs.get_last_lr()[0])
        optimizer.step()
        torchs.step()


def test_hold():
    seen = alphas(pg.AlphaSchedule(0.25, 1.0, steps=8, hold=0.5), 9)
    assert seen[:5] == [0.25] * 5
    assert seen[5:] == pytest.approx([0.4375, 0.625, 0.8125, 1.0])


def test_a_state_goes_on_where_it_was():
    one, other = (pg.AlphaSchedule(0.25, 1.0, steps=5, shape="cosine") for _ in range(2))
    alphas(one, 3)
    seen = other.alpha
    other.load_state_dict(one.state_dict())
    assert other.alpha is seen, "the loss holds it"
    assert alphas(other, 3) == alphas(one, 3)


def test_a_state_that_comes_before_the_number_of_steps():
    whole = pg.AlphaSchedule(0.25, 1.0, steps=5)
    alphas(whole, 3)
    other = pg.AlphaSchedule(0.25, 1.0)
    other.load_state_dict(whole.state_dict())
    assert other.state_dict() == whole.state_dict()
    other.steps = 5
    assert alphas(other, 3) == alphas(whole, 3)
    with pytest.raises(ValueError, match="steps must be at least 1, got -1"):
        other.steps = -1
    assert other.steps == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0.0}, "start must be finite and greater than 0, got 0.0"),
        ({"start": math.nan}, "start must be .* got nan"),
        ({"start": 0.3, "end": math.inf}, "end must be .* got inf"),
        ({"start": 0.3, "end": -1.0}, "end must be .* got -1.0"),
        ({"start": 0.3, "steps": 0}, "steps must be at least 1, got 0"),
        ({"start": 0.3, "shape": "step"}, "shape must be one of linear, cosine, got 'step'"),
        ({"start": 0.3, "hold": 1.0}, "hold must be at least 0 and less than 1, got 1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        pg.AlphaSchedule(**arguments)


def test_steps_have_to_be_known_before_alpha_changes():
    schedule = pg.AlphaSchedule(0.3, 1.0)
    with pytest.raises(ValueError, match="steps must be known"):
        schedule.step()
    schedule.steps = 2
    schedule.step(1)
    assert schedule.alpha == pytest.approx(0.65)


def test_compiled_code_sees_every_value(device):
    torch._dynamo.reset()
    schedule = pg.AlphaSchedule(0.25, 1.0, steps=4, device=device)
    criterion = pg.PowerGradCrossEntropyLoss(alpha=schedule.alpha)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    problem = make_problem((6, 10), torch.float64, device)
    for step in range(5):
        logits = problem.logits.clone().requires_grad_()
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            (found,) = torch.autograd.grad(compiled(logits, problem.target), logits)
        problem.alpha = schedule.value(step)
        (expected,) = torch.autograd.grad(problem.loss(logits, problem.target), logits)
        torch.testing.assert_close(found, expected)
        schedule.step()


@pytest.mark.skipif("cuda" not in devices(), reason="needs a GPU")
def test_a_cuda_graph_sees_every_value():
    schedule = pg.AlphaSchedule(0.25, 1.0, steps=4, device="cuda")
    problem = make_problem((6, 10), torch.float32, "cuda")
    logits = problem.logits.clone().requires_grad_()

    def gradient(alpha):
        return torch.autograd.grad(pg.cross_entropy(logits, problem.target, alpha=alpha), logits)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradient(schedule.alpha)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gradient(schedule.alpha)
    for step in range(5):
        graph.replay()
        torch.testing.assert_close(found, gradient(schedule.value(step)))
        schedule.step()


def test_repr():
    schedule = pg.AlphaSchedule(0.25, 1.0, 8, shape="cosine", hold=0.5)
    assert repr(schedule) == "AlphaSchedule(0.25, 1, 8, shape='cosine', hold=0.5)"


def test_made_in_inference_mode():
    with torch.inference_mode():
        schedule = pg.AlphaSchedule(1.0, 0.5, 2)
    logits = torch.randn(3, 5, requires_grad=True)
    for _ in range(2):
        schedule.step()
        pg.log_softmax(logits, alpha=schedule.alpha).sum().backward()
    assert schedule.alpha == 0.5
