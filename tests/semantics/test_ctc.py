"""CTC, against the recursion over alignments differentiated by autograd in float64."""

import pytest
import torch
import torch.nn.functional as F
from cases import generator

import powergrad_ext as pg

FRAMES, CLASSES = 7, 5
TARGETS = torch.tensor([[1, 2, 2], [3, 1, 4], [2, 4, 0]])  # a repetition; three lengths
INPUT_LENGTHS, TARGET_LENGTHS = torch.tensor([7, 5, 6]), torch.tensor([3, 3, 2])


def loss_of_sample(log_p, target):
    """-log of the summed probability of all alignments of target; log_p is (T, C)."""
    labels = [0]
    for label in target.tolist():
        labels += [label, 0]
    nowhere = log_p.new_tensor(-1e30)  # finite: -inf - -inf would poison the gradient
    ways = [log_p[0, label] if place < 2 else nowhere for place, label in enumerate(labels)]
    for frame in log_p[1:]:
        after = []
        for place, label in enumerate(labels):
            come = ways[max(place - 1, 0) : place + 1]
            if place > 1 and label != 0 and label != labels[place - 2]:
                come = [ways[place - 2], *come]
            after.append(torch.stack(come).logsumexp(0) + frame[label])
        ways = after
    return -torch.stack(ways[-2:]).logsumexp(0)


def true_losses(log_p):
    return torch.stack(
        [
            loss_of_sample(log_p[:frames, n], TARGETS[n, :length])
            for n, (frames, length) in enumerate(
                zip(INPUT_LENGTHS.tolist(), TARGET_LENGTHS.tolist(), strict=True)
            )
        ]
    )


def reduced(losses, reduction):
    if reduction == "mean":
        return (losses / TARGET_LENGTHS).mean()
    return losses.sum() if reduction == "sum" else losses


def logits(dtype=torch.float64):
    return (2.0 * torch.randn(FRAMES, 3, CLASSES, generator=generator(0))).to(dtype)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradient(dtype, alpha, reduction, device):
    """Per frame, softmax(alpha z) times what the occupancies sum to, minus the occupancies."""
    z = logits(dtype).to(device).requires_grad_()
    loss = pg.ctc_loss(
        pg.log_softmax(z, alpha=alpha),
        TARGETS.to(device),
        INPUT_LENGTHS.to(device),
        TARGET_LENGTHS.to(device),
        reduction=reduction,
    )
    grad_output = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64).reshape(loss.shape)
    loss.backward(grad_output.to(loss))

    log_p = logits().log_softmax(-1).requires_grad_()
    expected = reduced(true_losses(log_p), reduction)
    (by_log_p,) = torch.autograd.grad(expected, log_p, grad_output)
    gradient = by_log_p - (alpha * logits()).softmax(-1) * by_log_p.sum(-1, keepdim=True)
    torch.testing.assert_close(loss.detach().cpu().double(), expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(z.grad.cpu().double(), gradient, rtol=1e-4, atol=1e-5)
    counted = torch.arange(FRAMES)[:, None] < INPUT_LENGTHS
    assert (by_log_p.sum(-1)[counted] < 0).all()
    assert (z.grad[~counted.to(device)] == 0).all()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_with_torchs_log_softmax_it_is_torchs(reduction, device):
    results = []
    for function in (pg.ctc_loss, F.ctc_loss):
        z = logits().to(device).requires_grad_()
        loss = function(
            z.log_softmax(-1),
            TARGETS.to(device),
            tuple(INPUT_LENGTHS.tolist()),
            tuple(TARGET_LENGTHS.tolist()),
            reduction=reduction,
        )
        loss.sum().backward()
        results.append((loss.detach(), z.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_sample_without_labels(reduction, device):
    """Its loss is that of blanks alone, which a mean does not divide by its length of 0."""
    results = []
    for function in (pg.ctc_loss, F.ctc_loss):
        z = logits().to(device).requires_grad_()
        lengths = (INPUT_LENGTHS.to(device), torch.tensor([3, 0, 2], device=device))
        loss = function(z.log_softmax(-1), TARGETS.to(device), *lengths, reduction=reduction)
        loss.sum().backward()
        results.append((loss.detach(), z.grad))
    torch.testing.assert_close(*results)
    assert results[0][0].isfinite().all()


def test_torchs_ctc_loses_alpha():
    """What the README warns of: if torch changes this, the warning and ctc_loss must go."""
    gradients = []
    for alpha in (0.3, 1.0):
        z = logits().requires_grad_()
        F.ctc_loss(
            pg.log_softmax(z, alpha=alpha), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS
        ).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients)


def test_one_sample_without_a_batch():
    z = logits()[:, 0].requires_grad_()
    arguments = (TARGETS[0], INPUT_LENGTHS[:1], TARGET_LENGTHS[:1])
    loss = pg.ctc_loss(pg.log_softmax(z), *arguments)
    loss.backward()
    batched = logits()[:, :1].requires_grad_()
    pg.ctc_loss(pg.log_softmax(batched), TARGETS[:1], *arguments[1:]).backward()
    assert loss.shape == F.ctc_loss(z.log_softmax(-1), *arguments).shape
    torch.testing.assert_close(z.grad, batched.grad[:, 0])


def test_zero_infinity():
    """A sample with fewer frames than labels counts for nothing."""
    z = logits().requires_grad_()
    lengths = torch.tensor([7, 2, 6])
    losses = pg.ctc_loss(
        pg.log_softmax(z), TARGETS, lengths, TARGET_LENGTHS, reduction="none", zero_infinity=True
    )
    losses.sum().backward()
    assert losses[1] == 0
    assert (z.grad[:, 1] == 0).all()
    alone = logits()[:, ::2].requires_grad_()
    pg.ctc_loss(
        pg.log_softmax(alone), TARGETS[::2], lengths[::2], TARGET_LENGTHS[::2], reduction="sum"
    ).backward()
    torch.testing.assert_close(z.grad[:, ::2], alone.grad)


@pytest.mark.parametrize("function", [F.ctc_loss, pg.ctc_loss])
def test_what_torch_refuses_is_refused(function):
    arguments = (pg.log_softmax(logits()), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    with pytest.raises(ValueError, match="average is not a valid value for reduction"):
        function(*arguments, reduction="average")
    with pytest.raises(RuntimeError, match="blank must be in label range"):
        function(*arguments, blank=CLASSES)


@pytest.mark.parametrize(
    "loss",
    [
        lambda log_p, y, q: F.nll_loss(log_p, y),
        lambda log_p, y, q: -(q * log_p).sum(-1).mean(),
        lambda log_p, y, q: F.kl_div(log_p, q, reduction="batchmean"),
        lambda log_p, y, q: -log_p.gather(1, y[:, None]).mean(),
    ],
    ids=["NLL", "soft targets", "KL", "gathered"],
)
def test_losses_that_keep_alpha(loss):
    """Of a gradient that sums to -1 per row, the softmax is that of alpha z."""
    z = logits()[:, 0].requires_grad_()
    y, q = torch.arange(7) % CLASSES, torch.randn(7, CLASSES).double().softmax(-1)
    loss(pg.log_softmax(z, alpha=0.3), y, q).backward()
    log_p = z.detach().log_softmax(-1).requires_grad_()
    (g,) = torch.autograd.grad(loss(log_p, y, q), log_p)
    expected = g - (0.3 * z.detach()).softmax(-1) * g.sum(-1, keepdim=True)
    torch.testing.assert_close(z.grad, expected)
    torch.testing.assert_close(g.sum(-1), torch.full((7,), -1 / 7, dtype=torch.float64))


def test_categorical_loses_alpha_and_a_gather_does_not():
    z = logits()[:, 0].requires_grad_()
    y = torch.arange(7) % CLASSES
    gradients = [
        torch.autograd.grad(
            torch.distributions.Categorical(logits=log_softmax(z)).log_prob(y).sum(), z
        )[0]
        for log_softmax in (lambda z: pg.log_softmax(z, alpha=0.3), lambda z: z.log_softmax(-1))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("padding", [torch.nan, torch.inf, -torch.inf, 1e4], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_what_padding_frames_hold_does_not_matter(reduction, padding, device):
    """As for torch's: values and gradients, of frames that count and of those that do not."""
    padded = torch.arange(FRAMES)[:, None] >= INPUT_LENGTHS
    log_p = logits().log_softmax(-1)
    results = []
    for function in (pg.ctc_loss, F.ctc_loss):
        for at_padding in (0.0, padding):
            p = log_p.masked_fill(padded.unsqueeze(-1), at_padding).to(device).requires_grad_()
            lengths = (INPUT_LENGTHS.to(device), TARGET_LENGTHS.to(device))
            loss = function(p, TARGETS.to(device), *lengths, reduction=reduction)
            loss.sum().backward()
            results.append((loss.detach().cpu(), p.grad.cpu()))
    ours, ours_padded, _, torchs_padded = results
    torch.testing.assert_close(ours_padded, ours, rtol=0, atol=0)
    torch.testing.assert_close(ours_padded[0], torchs_padded[0])
    # torch's is the derivative by the logits: exp(log_p) more.
    share = 1.0 / (3 * TARGET_LENGTHS) if reduction == "mean" else torch.ones(3)
    by_logits = ours_padded[1] + log_p.exp() * share.unsqueeze(-1)
    torch.testing.assert_close(by_logits.masked_fill(padded.unsqueeze(-1), 0.0), torchs_padded[1])
    assert (ours_padded[1][padded] == 0).all()
