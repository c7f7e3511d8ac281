"""Mixed precision as it is used: autocast with bfloat16, and float16 with a GradScaler."""

import pytest
import torch
import torch.nn.functional as F

import powergrad_ext as pg

STEPS = 20


def make_model():
    torch.manual_seed(0)
    layers = torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1000)
    return torch.nn.Sequential(*layers).cuda()


def train(loss_of, dtype):
    """Losses and the final parameters; a GradScaler where float16 needs one."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(1)).cuda()
    target = (x[:, :10].argmax(1) * 100).contiguous()
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=dtype):
            logits = model(x)
            loss = loss_of(logits, target)
        assert logits.dtype == dtype
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    assert scaler.get_scale() >= 2.0**16 or not scaler.is_enabled(), "no step was skipped"
    return torch.stack(losses), [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_ordinary_cross_entropy_trains_as_torch_s(dtype):
    ours, our_parameters = train(lambda z, t: pg.cross_entropy(z, t, alpha=1.0), dtype)
    torchs, torch_s_parameters = train(F.cross_entropy, dtype)
    torch.testing.assert_close(ours, torchs, rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(our_parameters, torch_s_parameters, rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_power_gradient_trains(dtype):
    losses, parameters = train(lambda z, t: pg.cross_entropy(z, t, alpha=0.3), dtype)
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.isfinite().all() for parameter in parameters)


def test_the_scale_of_a_scaler_reaches_the_gradient_before_it_is_rounded():
    """1 / N is below float16 at N = 2^26 rows; times 65536 it is not."""
    rows = 2**26
    logits = torch.zeros(rows, 2, dtype=torch.float16, device="cuda", requires_grad=True)
    target = torch.zeros(rows, dtype=torch.int32, device="cuda")
    loss = pg.cross_entropy(logits, target)
    loss.backward(torch.full_like(loss, 65536.0))
    torch.testing.assert_close(logits.grad[-1].float().cpu(), torch.tensor([-1.0, 1.0]) / 2048)
