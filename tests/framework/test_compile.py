"""torch.compile(fullgraph=True): under Inductor where it generates code around the operators.

Elsewhere the backend "aot_eager" traces the same graphs, and compiles nothing.
"""

import pytest
import torch
from cases import check, make_logits, make_problem
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jacrev, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import powergrad_ext as pg

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def check_compiled(problem, compiled):
    """The whole check of an eager call, with the compiled function in its place."""
    problem.loss = lambda logits, target: compiled(
        logits, target, problem.weight, alpha=problem.alpha, **problem.options
    )
    check(problem)


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((6, 50), torch.float32, {"weighted": True, "label_smoothing": 0.1}),
        ((2, 5, 37), torch.bfloat16, {"reduction": "none", "targets": "int32"}),
        ((6, 50), torch.float64, {"targets": "probabilities", "reduction": "sum"}),
    ],
    ids=["rows, all options", "segmentation in bfloat16", "probabilities in float64"],
)
def test_forward_and_backward(shape, dtype, options, device):
    compiled = torch.compile(pg.cross_entropy, fullgraph=True)
    check_compiled(make_problem(shape, dtype, device, **options), compiled)


@pytest.mark.parametrize("metrics", [False, True], ids=["", "metrics"])
def test_dynamic_batch(metrics, device):
    """The graph of the first batch serves every other size."""

    def loss(*arguments, **options):
        returned = pg.cross_entropy(*arguments, **options, return_metrics=metrics)
        return returned[0] if metrics else returned

    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    compilations = []
    for batch in (4, 7, 64):
        options = {"weighted_rows": True, "z_loss": 0.1, "seed": batch}
        check_compiled(make_problem((batch, 10), torch.float32, device, **options), compiled)
        compilations.append(counter.frame_count)
    assert compilations == compilations[:1] * 3


def test_alpha_schedule(device):
    """Ten values of a 0-d tensor, one compilation."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(pg.cross_entropy, fullgraph=True, backend=counter)
    for step in range(10):
        alpha = torch.tensor(1.0 - 0.07 * step)
        check_compiled(make_problem((6, 10), torch.float32, device, alpha=alpha), compiled)
    assert counter.frame_count == 1


def test_alpha_made_in_inference_mode(device):
    """Also in a graph that was made for another, and where the partitioner saves what it likes."""
    logits = make_logits((6, 7), torch.float32, device).requires_grad_()
    weight = make_logits((5, 7), torch.float32, device)
    target = torch.arange(6, device=device)
    losses = [
        lambda a: pg.cross_entropy(logits, target, alpha=a),
        lambda a: pg.log_softmax(logits, alpha=2 * a).square().sum(),
        lambda a: pg.linear_cross_entropy(logits, weight, target % 5, reduction="sum", alpha=a),
    ]
    for loss in losses:
        torch._dynamo.reset()
        compiled = torch.compile(loss, backend="aot_eager_decomp_partition", fullgraph=True)
        for value in (0.6, 0.3):
            ordinary = torch.tensor(value, dtype=torch.float64)
            with torch.inference_mode():
                alpha = ordinary.clone()
            for each in (ordinary, alpha):
                (found,) = torch.autograd.grad(compiled(each), logits)
                (right,) = torch.autograd.grad(loss(ordinary), logits)
                torch.testing.assert_close(found, right)


def test_model_and_both_modules(device):
    """Fused into a graph with what comes before and after, and differentiated through it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 10).to(device)
    loss_of = pg.PowerGradCrossEntropyLoss(label_smoothing=0.1, alpha=0.5)
    log_probabilities_of = pg.PowerGradLogSoftmax(alpha=0.25)

    def step(x, target):
        logits = torch.relu(model(x))
        distilled = -(log_probabilities_of(logits) * logits.detach().softmax(-1)).sum(-1).mean()
        return 2.0 * loss_of(logits, target) + distilled

    x, target = torch.randn(6, 8, device=device), torch.arange(6, device=device)
    eager = torch.autograd.grad(step(x, target), list(model.parameters()))
    compiled = torch.compile(step, fullgraph=True)(x, target)
    torch.testing.assert_close(torch.autograd.grad(compiled, list(model.parameters())), eager)


def test_inplace_backward_is_only_a_permission(device):
    """A graph decides about memory itself: the gradient is right and the logits may stay."""
    problem = make_problem((6, 50), torch.float32, device)
    problem.options["inplace_backward"] = True
    compiled = torch.compile(pg.cross_entropy, fullgraph=True, backend="aot_eager")
    options = dict(problem.options)
    logits = problem.logits.clone().requires_grad_()
    loss = compiled(logits, problem.target, **options)
    loss.backward()
    eager = problem.logits.clone().requires_grad_()
    pg.cross_entropy(eager, problem.target).backward()
    torch.testing.assert_close(logits.grad, eager.grad)


TARGET = torch.arange(4)
LOSSES = {
    "cross_entropy": lambda z: pg.cross_entropy(z, TARGET.to(z.device)),
    "log_softmax": lambda z: pg.log_softmax(z)[:, 0].square().sum(),
}
TRANSFORMS = {
    "grad": grad,
    "vjp": lambda f: lambda z: vjp(f, z)[1](torch.tensor(2.0, device=z.device))[0],
    "jacrev": jacrev,
    "vmap": vmap,
    "vmap of grad": lambda f: vmap(grad(f)),
    "grad of grad": lambda f: grad(lambda z: grad(f)(z).square().sum()),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_transforms_inside_a_graph(loss, transform, device):
    logits = make_logits((3, 4, 5), torch.float32, device)
    logits = logits if transform in (TRANSFORMS["vmap"], TRANSFORMS["vmap of grad"]) else logits[0]
    transformed = transform(loss)
    compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), transformed(logits))


@pytest.mark.parametrize("transform", [grad, vmap])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_graphs_inside_a_transform(loss, transform, device):
    """As far as torch goes: the compiler's backend "eager" only."""
    logits = make_logits((3, 4, 5), torch.float32, device)
    logits = logits[0] if transform is grad else logits
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(transform(compiled)(logits), transform(loss)(logits))


class MaskedLosses(torch.nn.Module):
    """Logits and targets chosen by two masks: only the data decides that they are equally many."""

    def forward(self, logits, target, of_logits, of_target):
        chosen = logits[of_logits]
        loss = pg.cross_entropy(chosen, target[of_target], label_smoothing=0.1)
        return loss + pg.log_softmax(chosen)[:, 0].mean()


@pytest.fixture
def masked():
    mask = torch.tensor([True, False, True, True])
    return torch.randn(4, 5), torch.arange(4), mask, mask.clone()


def test_sizes_that_the_data_decides(masked):
    expected = MaskedLosses()(*masked)
    exported = torch.export.export(MaskedLosses(), masked).module()
    torch.testing.assert_close(exported(*masked), expected)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(MaskedLosses(), fullgraph=True)
        torch.testing.assert_close(compiled(*masked), expected)
        logits, *rest = masked
        gradient = grad(lambda z: MaskedLosses()(z, *rest))(logits)
        compiled(logits.requires_grad_(), *rest).backward()
    torch.testing.assert_close(logits.grad, gradient)


def test_sizes_that_do_not_fit_are_refused_when_they_are_known(masked):
    logits, target, mask, _ = masked
    exported = torch.export.export(MaskedLosses(), masked).module()
    with pytest.raises(Exception, match=r"Runtime assertion failed|Eq\(u0, u1\)|batch_size"):
        exported(logits, target, mask, ~mask)


def test_a_number_goes_where_the_logits_are(monkeypatch):
    """With anything on the CPU in it a graph is not captured (mode="reduce-overhead")."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = torch.empty(4, 5, device="cuda")
        target = torch.empty(4, dtype=torch.long, device="cuda")

        def losses(z, y):
            return pg.cross_entropy(z, y), pg.log_softmax(z, alpha=0.5)

        graph = make_fx(losses, tracing_mode="fake")(logits, target).graph
        alphas = [node for node in graph.nodes if "full" in str(node.target)]
        assert [node.kwargs["device"].type for node in alphas] == ["cuda", "cuda"]
        with pytest.raises(ValueError, match="alpha must be finite"):
            pg.cross_entropy(logits, target, alpha=0.0)


def test_errors_are_those_of_eager_code(device):
    compiled = torch.compile(pg.cross_entropy, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="average is not a valid value for reduction"):
        compiled(torch.randn(3, 5), torch.tensor([0, 1, 2]), reduction="average")
