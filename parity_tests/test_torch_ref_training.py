"""The twin's training: rates, draws of t, self-conditioning, and updates by hand."""

import copy
from math import sqrt

import pytest
import torch
from gaussian_data import normal
from torch import nn

from ddpm_torch_ref import processes, schedules, training
from ddpm_torch_ref.processes import FlowMatching, GaussianDiffusion
from ddpm_torch_ref.training import Chance, Examples, Update, averages, create_state, loss_aware, make_step


def adam(model, lr):
    return torch.optim.Adam(model.parameters(), lr=lr)


def test_learning_rate():
    assert [training.learning_rate(2.0, 4)(step) for step in (0, 1, 4, 100)] == [0, 0.5, 2, 2]
    assert training.learning_rate(2.0, 0)(0) == 2
    rates = [training.learning_rate(2.0, 4, 12)(step) for step in (2, 4, 6, 8, 12, 20)]
    assert rates == pytest.approx([1, 2, 1 + sqrt(0.5), 1, 0, 0], abs=1e-15)


def test_ema_decay_warms_up():
    assert [averages.decays(step, 0.999)[0] for step in (0, 8, 90)] == pytest.approx([0.1, 0.5, 0.91])
    assert averages.decays(10**6, 0.999) == [0.999]


class Scale(nn.Module):
    """Predicts w x_t, and counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x_t, t, labels=None):
        self.calls += 1
        return self.w * x_t


@pytest.mark.parametrize(("grad_clip", "kept"), [(None, 1.0), (1e9, 1.0), (0.1, None)])
def test_an_update_by_hand(grad_clip, kept):
    process, model = processes.GaussianDiffusion(schedules.linear(10)), Scale()
    state, update = create_state(model, adam(model, 0.1)), Update(process, ema=0.2, grad_clip=grad_clip)
    x_0, noise, t = normal(5, 1, 2, 2), normal(5, 1, 2, 2, seed=1), torch.tensor([0, 2, 4, 6, 9])
    x_t = process.add_noise(x_0, noise, t)
    w, average, m, v = 2.0, 2.0, 0.0, 0.0
    for k in range(3):
        same, metrics = update.with_draws(state, Examples(x_0, noise, t))
        assert same is state
        gradient = float((2 * (w * x_t - noise) * x_t).mean())
        assert float(metrics["loss"]) == pytest.approx(float(((w * x_t - noise) ** 2).mean()), rel=1e-12)
        assert float(metrics["grad_norm"]) == pytest.approx(abs(gradient), rel=1e-12)
        gradient *= kept or min(1, 0.1 / abs(gradient))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= 0.1 * (m / (1 - 0.9 ** (k + 1))) / (sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        decay = min(0.2, (1 + k) / (10 + k))
        average = decay * average + (1 - decay) * w
        assert float(state.model.w.detach()) == pytest.approx(w, rel=1e-12)
        assert float(state.ema_model.w) == pytest.approx(average, rel=1e-12)
    assert state.step == 3 and int(state.ema_model.calls) == 3


def test_loss_aware_times():
    history, losses = loss_aware.empty(4, 3), normal(16, seed=3).exp()
    for k in range(11):
        history = loss_aware.record(history, torch.tensor([k % 4]), losses[k : k + 1])
        assert loss_aware.probabilities(history).tolist() == [0.25] * 4
    history = loss_aware.record(history, torch.tensor([3, 0, 0]), losses[11:14])
    remembered = [[losses[8], losses[12], losses[13]], losses[[1, 5, 9]], losses[[2, 6, 10]], losses[[3, 7, 11]]]
    roots = [sqrt(sum(float(loss) ** 2 for loss in row) / 3) for row in remembered]
    for share in (0.1, loss_aware.UNIFORM_SHARE):
        wanted = [(1 - share) * root / sum(roots) + share / 4 for root in roots]
        p = loss_aware.probabilities(history, share)
        assert p.tolist() == pytest.approx(wanted, rel=1e-12) and float(p.sum()) == pytest.approx(1, rel=1e-12)
    index, weights = loss_aware.draw(history, torch.Generator().manual_seed(0), 20_000)
    assert weights.tolist() == pytest.approx([1 / (4 * wanted[i]) for i in index], rel=1e-12)
    # The weighted mean over draws by p is the plain mean over uniform ones.
    assert float((weights * index).mean()) == pytest.approx(1.5, abs=0.05)
    for call, message in (
        (lambda: loss_aware.empty(0), "num_steps must be at least 1; got 0"),
        (lambda: loss_aware.empty(4, 0), "length must be at least 1; got 0"),
        (lambda: loss_aware.probabilities(history, 1.5), r"uniform_share must lie in \[0, 1\]; got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_times_drawn_by_their_losses():
    """A step draws t by the history, weighs the losses by it, and remembers them unweighted."""
    process, model = GaussianDiffusion(schedules.linear_inclusive(2)), Scale()
    history = loss_aware.empty(2, 1)
    history = loss_aware.record(history, torch.tensor([0, 1]), torch.tensor([1.0, 9.0]))
    state = create_state(model, adam(model, 0.0), loss_history=history)
    update, x_0 = Update(process), normal(4000, 3)
    examples, _ = update.draw(state, {"x_0": x_0}, torch.Generator().manual_seed(0))
    p = loss_aware.probabilities(history)
    assert set(examples.t.tolist()) == {1, 2}
    assert float((examples.t == 2).double().mean()) == pytest.approx(float(p[1]), abs=0.02)
    torch.testing.assert_close(examples.weights, 1 / (2 * p[examples.t - 1]), rtol=1e-12, atol=0)
    found = update.gradients(state, examples)
    state, metrics = update.apply(state, examples, found)
    assert float(metrics["loss"]) == pytest.approx(float((examples.weights * found.losses).mean()), rel=1e-12)
    last = [found.losses[examples.t == t][-1] for t in (1, 2)]
    assert state.loss_history.losses[:, 0].tolist() == pytest.approx([float(loss) for loss in last], rel=1e-12)
    with pytest.raises(ValueError, match="loss_history must be None for a FlowMatching"):
        Update(FlowMatching()).draw(state, {"x_0": x_0}, torch.Generator())


class Labelled(nn.Module):
    """Predicts a number of each class; the last class stands for none."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 2)

    def forward(self, x_t, t, labels=None):
        return x_t * self.embed(labels)


def test_a_step_draws_times_noise_and_dropped_labels():
    """One generator decides on everything; pixels are scaled; the step is what its parts are."""
    process, model = GaussianDiffusion(schedules.linear(50)), Labelled()
    pixels, labels = torch.arange(6000).reshape(3000, 2).remainder(256).to(torch.uint8), torch.arange(3000) % 2
    update = Update(process, label_dropout=0.25)
    state = create_state(model, adam(model, 1e-2))
    examples, chance = update.draw(state, {"x_0": pixels, "label": labels}, torch.Generator().manual_seed(1))
    torch.testing.assert_close(examples.x_0, pixels.double().sub(127.5).div(127.5).float(), rtol=1e-6, atol=1e-6)
    assert chance.guess is None and examples.weights is None
    assert examples.noise.shape == (3000, 2) and abs(float(examples.noise.std()) - 1) < 0.03
    assert torch.bincount(examples.t, minlength=50).min() > 20
    dropped = examples.labels == 2
    assert float(dropped.double().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(examples.labels[~dropped], labels[~dropped])

    step, other = make_step(process, label_dropout=0.25), copy.deepcopy(state)
    for batch in ({"x_0": pixels, "label": labels}, {"image": pixels, "label": labels}, (pixels, labels)):
        _, metrics = step(copy.deepcopy(state), batch, torch.Generator().manual_seed(1))
        assert torch.equal(metrics["loss"], update.with_draws(other, examples)[1]["loss"])
        other = copy.deepcopy(state)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 2.0, 0.1, 1.0, 3.0], dtype=torch.float64)])
def test_accumulation_is_the_same_update(weights):
    process, updates = GaussianDiffusion(schedules.linear(10)), []
    examples = Examples(normal(6, 4), normal(6, 4, seed=1), torch.tensor([0, 2, 4, 6, 8, 9]), None, weights)
    for accumulate in (1, 2, 3):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4)).double()
        model.forward = lambda x, t, labels=None, model=model: model[0](x)
        update = Update(process, accumulate=accumulate)
        updates.append(update.gradients(create_state(model, adam(model, 1e-3)), examples))
    for other in updates[1:]:
        torch.testing.assert_close(other.losses, updates[0].losses, rtol=1e-12, atol=0)
        for name, gradient in other.params.items():
            torch.testing.assert_close(gradient, updates[0].params[name], rtol=1e-12, atol=1e-15)


def test_an_update_that_is_not_finite_can_be_skipped():
    process, model = GaussianDiffusion(schedules.linear(10)), Scale()
    state = create_state(model, adam(model, 0.1))
    good = Examples(normal(5, 2), normal(5, 2, seed=1), torch.tensor([0, 2, 4, 6, 9]))
    bad = good._replace(x_0=good.x_0 * float("nan"))
    update = Update(process, skip_nonfinite=True)
    update.with_draws(state, good)
    before = copy.deepcopy((model.state_dict(), state.ema_model.state_dict(), state.optimizer.state_dict()))
    _, metrics = update.with_draws(state, bad)
    after = (model.state_dict(), state.ema_model.state_dict(), state.optimizer.state_dict())
    assert state.step == 2 and metrics["loss"].isnan()
    assert before[0] == after[0] and before[1] == after[1] and before[2]["state"] == after[2]["state"]
    update.with_draws(state, good)
    assert state.step == 3 and float(model.w.detach()) != float(before[0]["w"])
    Update(process).with_draws(state, bad)
    assert model.w.isnan()


def test_any_optimiser():
    """The rate follows its schedule, moments are forgotten, and neither depends on the step that calls the optimiser."""
    process, x = GaussianDiffusion(schedules.linear(10)), normal(5, 2)
    examples = Examples(x, normal(5, 2, seed=1), torch.tensor([0, 2, 4, 6, 9]))
    model = Scale()
    state = create_state(model, torch.optim.SGD(model.parameters(), lr=0.5))
    found = Update(process).gradients(state, examples)
    Update(process).apply(state, examples, found)
    assert float(model.w.detach()) == pytest.approx(2 - 0.5 * float(found.params["w"]), rel=1e-12)

    model, rate = Scale(), training.learning_rate(0.1, 2)
    state = create_state(model, training.make_optimizer(model.parameters(), rate, epoch_steps=2))
    moved = []
    for _ in range(5):
        before = float(model.w.detach())
        Update(process).with_draws(state, examples)
        moved.append(abs(float(model.w.detach()) - before))
    # Adam's first step after it forgot is as long as its rate
    assert moved[0] == 0 and moved[2] == pytest.approx(0.1, rel=1e-6) == moved[4]
    assert 0 < moved[1] < 0.06 and moved[3] < 0.1
    with pytest.raises(ValueError, match="every must be at least 1; got 0"):
        training.forgetful(state.optimizer, 0)


def test_the_denoiser_of_a_state_outlives_its_steps():
    process, model = GaussianDiffusion(schedules.linear(10)), Scale()
    state, x_t = create_state(model, adam(model, 0.1)), normal(5, 2)
    examples = Examples(normal(5, 2), normal(5, 2, seed=1), torch.tensor([0, 2, 4, 6, 9]))
    Update(process, ema=0.5).with_draws(state, examples)
    kept = [state.denoiser(process, ema=ema) for ema in (True, False)]
    factors = [float(module.w.detach()) for module in (state.ema_model, model)]
    Update(process, ema=0.5).with_draws(state, examples)
    with torch.no_grad():
        for denoise, factor in zip(kept, factors, strict=True):
            torch.testing.assert_close(denoise.output(x_t, 3), factor * x_t, rtol=1e-12, atol=0)
    assert factors[0] != factors[1]


class Conditioned(nn.Module):
    """Linear in [x_t, guess], so that its gradient is known; remembers its inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2).double()
        self.seen = []

    def forward(self, x, t, labels=None):
        self.seen.append(x.detach().clone())
        return self.linear(x)


@pytest.mark.parametrize("process", [GaussianDiffusion(schedules.linear(20), "v"), FlowMatching(20)])
def test_self_conditioning(process):
    x_0, noise = normal(5, 2), normal(5, 2, seed=1)
    t = torch.tensor([0, 3, 9, 15, 19])
    t = t / 20.0 if isinstance(process, FlowMatching) else t
    x_t = process.add_noise(x_0, noise, t)
    for self_condition in (False, True):
        torch.manual_seed(0)
        model = Conditioned()
        with torch.no_grad():
            output = model.linear(torch.cat([x_t, 0 * x_t], 1))
        guess = process.estimate(x_t, output, t).x_0 if self_condition else 0 * x_t
        error = model.linear(torch.cat([x_t, guess], 1)) - process.target(x_0, noise, t)
        wanted = torch.autograd.grad(error.square().mean(), list(model.parameters()))
        norm = torch.sqrt(sum(g.square().sum() for g in wanted))

        state = create_state(model, adam(model, 1e-3))
        _, metrics = Update(process, ema=0.9).with_draws(state, Examples(x_0, noise, t), Chance(self_condition))
        torch.testing.assert_close(model.seen[-1], torch.cat([x_t, guess], 1), rtol=1e-12, atol=1e-13)
        assert len(model.seen) == (2 if self_condition else 1)
        assert float(metrics["loss"]) == pytest.approx(float(error.detach().square().mean()), rel=1e-12)
        assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-12)


def test_flow_matching_trains():
    """The step takes a straight path as it takes a chain: a network told t (num_steps - 1)."""

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x_t, t, labels=None):
            assert t.tolist() == [0, 4.5, 9]
            return x_t + self.shift

    model = Shift()
    state, update = create_state(model, adam(model, 0.1)), Update(FlowMatching(10), ema=0.5)
    t = torch.tensor([0, 0.5, 1], dtype=torch.float64)
    examples = Examples(normal(3, 2), 2 + normal(3, 2, seed=1), t)
    losses = [update.with_draws(state, examples)[1]["loss"] for _ in range(20)]
    assert losses[-1] < losses[0] and state.step == 20


# Errors


FLOW = FlowMatching()


def stepped(model, batch, **options):
    return make_step(FLOW, **options)(create_state(model, adam(model, 1e-3)), batch, torch.Generator())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: training.learning_rate(1.0, 5, 5), r"decay_steps must exceed warmup_steps = 5; got 5"),
        (lambda: training.learning_rate(1.0, -1), r"warmup_steps must be at least 0; got -1"),
        (lambda: training.learning_rate(1.0, 0, epoch_steps=0), r"epoch_steps must be at least 1; got 0"),
        (lambda: make_step(None), r"process must be one of ddpm_torch_ref.processes; got NoneType"),
        (lambda: make_step(FLOW, ema=1.0), r"ema must lie in \[0, 1\); got 1.0"),
        (lambda: make_step(FLOW, label_dropout=-0.1), r"label_dropout must lie in \[0, 1\); got -0.1"),
        (lambda: make_step(FLOW, accumulate=0), r"accumulate must be at least 1; got 0"),
        (lambda: make_step(FLOW, grad_clip=0.0), r"grad_clip must be above 0, or None; got 0.0"),
        (lambda: create_state(None, None), r"model must be an nn.Module; got NoneType"),
        (lambda: create_state(Scale(), 1e-3), r"optimizer must be an optimiser of the model's parameters.*got float"),
        (lambda: create_state(Scale(), adam(Scale(), 1e-3)), r"optimizer must be .*; got one of other parameters"),
        (lambda: stepped(Scale(), "a"), r"a batch must be \{'x_0': tensor.*; got str"),
        (lambda: stepped(Scale(), {"x": normal(3, 2)}), r"a batch must be .*; got \['x'\]"),
        (lambda: stepped(Scale(), normal(3)), r"x_0 must be a batch of examples, \(B, ...\); got the shape \(3,\)"),
        (lambda: stepped(Scale(), normal(3, 2), accumulate=2), r"accumulate must divide the batch, 3 examples; got 2"),
        (lambda: stepped(Scale(), 9 + normal(2, 1, 2, 2)), r"images must lie in \[-1, 1\]; got .* say bounded=False"),
        (lambda: stepped(Labelled(), normal(3, 2)), r"a batch needs labels, as the network has 3 classes"),
        (lambda: stepped(Labelled(), (normal(3, 2), normal(3))), r"labels must be 3 whole numbers; got torch.float64"),
        (lambda: stepped(Scale(), normal(3, 2), label_dropout=0.1), r"label_dropout must be 0 without labels"),
        (lambda: make_step(FLOW)(Scale(), normal(3, 2), None), r"state must be a TrainState.*; got Scale"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
