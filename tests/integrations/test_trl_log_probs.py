"""selective_log_softmax from hidden states: TRL's own of the whole logits is the truth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from frameworks import framework

framework("trl")

from trl.trainer.utils import selective_log_softmax as of_logits  # noqa: E402

from powergrad_ext.integrations.trl import selective_log_softmax  # noqa: E402

CLASSES, FEATURES, SHAPE = 61, 12, (3, 7)
TOLERANCES = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-13},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2**-6, "atol": 2**-6},
}


def assert_close(found, right, dtype):
    """In half precision an error of the logits is as large as the largest: so is atol."""
    tolerance = TOLERANCES[dtype].copy()
    if dtype == torch.bfloat16:
        tolerance["atol"] *= float(right.abs().max())
    torch.testing.assert_close(found, right, **tolerance)


def problem(dtype=torch.float64, bias=True):
    random = torch.Generator().manual_seed(5)

    def leaf(*shape, scale=1.0):
        values = torch.randn(*shape, generator=random, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_()

    layer = [leaf(*SHAPE, FEATURES), leaf(CLASSES, FEATURES, scale=0.8)]
    layer += [leaf(CLASSES)] if bias else []
    index = torch.randint(CLASSES, SHAPE, generator=random)
    mask = torch.rand(SHAPE, generator=random) < 0.7
    grad_output = torch.randn(SHAPE, generator=random, dtype=torch.float64)
    return layer, index, mask, grad_output


def with_gradients(values, layer, grad_output):
    return values.detach(), torch.autograd.grad(
        (values * grad_output.to(values.dtype)).sum(), layer
    )


def ours(layer, index, grad_output, **options):
    hidden, weight, *bias = layer
    bias = bias[0] if bias else None
    values = selective_log_softmax(hidden, weight, index, linear_bias=bias, **options)
    assert values.shape == index.shape
    return with_gradients(values, layer, grad_output)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "all rows"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_trls_own(temperature, masked, bias, dtype):
    """In half precision TRL rounds more than we do: its float32 is the truth."""
    layer, index, mask, grad_output = problem(dtype, bias)
    options = {"temperature": temperature, "row_mask": mask if masked else None}
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    leaves = [each.detach().to(wide).requires_grad_() for each in layer]
    expected = with_gradients(of_logits(F.linear(*leaves), index, **options), leaves, grad_output)
    values, gradients = ours(layer, index, grad_output, chunk_rows=5, **options)
    assert values.dtype == wide
    assert_close(values, expected[0], dtype)
    for found, right in zip(gradients, expected[1], strict=True):
        assert found.dtype == dtype
        assert_close(found.to(wide), right, dtype)
    if masked:
        assert not values[~mask].any()
        assert not gradients[0][~mask].any()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_another_alpha(temperature):
    """The values stay; the gradient is the ordinary one at alpha z, over alpha."""
    layer, index, mask, grad_output = problem()
    options = {"temperature": temperature, "row_mask": mask}
    values, gradients = ours(layer, index, grad_output, alpha=0.3, **options)
    torch.testing.assert_close(values, of_logits(F.linear(*layer), index, **options))
    identity = of_logits(0.3 * F.linear(*layer), index, **options) / 0.3
    _, expected = with_gradients(identity, layer, grad_output)
    torch.testing.assert_close(gradients, expected, **TOLERANCES[torch.float64])


def test_rows_without_a_token():
    layer, index, _, grad_output = problem()
    index[0, 2] = -100
    values, gradients = ours(layer, index, grad_output)
    assert values[0, 2] == 0.0
    assert not gradients[0][0, 2].any()


def test_the_logits_are_never_whole():
    layer, index, _, grad_output = problem(torch.float32, bias=False)
    with torch.profiler.profile(record_shapes=True) as profile:
        ours(layer, index, grad_output, chunk_rows=5)
    shapes = [shape for event in profile.events() for shape in event.input_shapes or []]
    assert [5, CLASSES] in shapes
    assert not any(shape[-1:] == [CLASSES] and shape[:-1] in ([21], [3, 7]) for shape in shapes)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be .* got nan"),
        ({"index": torch.zeros(21).long()}, r"index must have the shape .*\(3, 7\), got \(21,\)"),
        ({"row_mask": torch.ones(3)}, r"row_mask must have the shape .*\(3, 7\), got \(3,\)"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_bad_arguments(options, why):
    layer, index, _, _ = problem()
    with pytest.raises(ValueError, match=why):
        selective_log_softmax(
            layer[0], layer[1], **{"index": index, "linear_bias": layer[2]} | options
        )
