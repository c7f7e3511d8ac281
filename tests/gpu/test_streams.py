"""Work goes to torch's current stream, on the device of the tensors."""

import pytest
import torch
from cases import check, make_problem

import powergrad_ext as pg


def delay():
    """Keeps the current stream busy for about 50 ms."""
    torch.cuda._sleep(100_000_000)


@pytest.mark.parametrize("function", [pg.cross_entropy, pg.log_softmax])
def test_current_stream(function):
    """Behind work that the same stream has not finished: elsewhere it would read stale logits."""
    logits = torch.zeros(64, 1000, device="cuda", requires_grad=True)
    arguments = [torch.arange(64, device="cuda")] if function is pg.cross_entropy else []
    ones = torch.ones(64, 1000, device="cuda").cumsum(1)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        delay()
        with torch.no_grad():
            logits.copy_(ones)
        function(logits, *arguments).sum().backward()
    torch.cuda.synchronize()
    found = logits.grad.clone()
    logits.grad = None
    function(logits, *arguments).sum().backward()
    torch.testing.assert_close(found, logits.grad, rtol=0, atol=0)


def test_check_on_another_stream():
    with torch.cuda.stream(torch.cuda.Stream()):
        check(make_problem((64, 1000), torch.float32, "cuda", weighted=True, label_smoothing=0.1))


@pytest.mark.parametrize(
    "options", [{}, {"targets": "probabilities", "reduction": "none"}], ids=str
)
def test_another_device_than_the_current_one(options):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    assert torch.cuda.current_device() == 0
    check(make_problem((64, 1000), torch.float32, "cuda:1", weighted=True, **options))
    alpha = torch.tensor(0.3, device="cuda:1")
    check(make_problem((64, 1000), torch.float32, "cuda:1", alpha=alpha, **options))
    assert torch.cuda.current_device() == 0
