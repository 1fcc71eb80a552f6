"""The twin's training: rates, draws of t, self-conditioning, and updates by hand."""

from math import sqrt

import pytest
import torch
from gaussian_data import normal
from torch import nn

from ddpm_torch_ref import processes, schedules, training
from ddpm_torch_ref.processes import FlowMatching, GaussianDiffusion


def test_learning_rate():
    assert [training.learning_rate(step, 2.0, 4) for step in (0, 1, 4, 100)] == [0, 0.5, 2, 2]
    assert training.learning_rate(0, 2.0, 0) == 2
    rates = [training.learning_rate(step, 2.0, 4, 12) for step in (2, 4, 6, 8, 12, 20)]
    assert rates == pytest.approx([1, 2, 1 + sqrt(0.5), 1, 0, 0], abs=1e-15)


def test_ema_decay_warms_up():
    assert [training.ema_decay(step, 0.999) for step in (0, 8, 90)] == pytest.approx([0.1, 0.5, 0.91])
    assert training.ema_decay(10**6, 0.999) == 0.999


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
def test_train_step_by_hand(grad_clip, kept):
    process = processes.GaussianDiffusion(schedules.linear(10))
    state = training.TrainState.create(Scale(), lr=1.0)
    x_0, noise, t = normal(5, 1, 2, 2), normal(5, 1, 2, 2, seed=1), torch.tensor([0, 2, 4, 6, 9])
    x_t = process.add_noise(x_0, noise, t)
    w, average, m, v = 2.0, 2.0, 0.0, 0.0
    for k in range(3):
        metrics = training.train_step(state, process, x_0, noise, t, ema=0.2, grad_clip=grad_clip, lr=0.1)
        gradient = float((2 * (w * x_t - noise) * x_t).mean())
        assert metrics["loss"] == pytest.approx(float(((w * x_t - noise) ** 2).mean()), rel=1e-12)
        assert metrics["grad_norm"] == pytest.approx(abs(gradient), rel=1e-12)
        gradient *= kept or min(1, 0.1 / abs(gradient))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= 0.1 * (m / (1 - 0.9 ** (k + 1))) / (sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        decay = min(0.2, (1 + k) / (10 + k))
        average = decay * average + (1 - decay) * w
        assert float(state.model.w.detach()) == pytest.approx(w, rel=1e-12)
        assert float(state.ema_model.w) == pytest.approx(average, rel=1e-12)
    assert state.step == 3 and int(state.ema_model.calls) == 3


def test_loss_aware_times():
    times = training.LossAwareTimes(4, history=3, uniform_share=0.1)
    losses = normal(16, seed=3).exp()
    for k in range(11):
        times.update(torch.tensor([k % 4]), losses[k : k + 1])
        assert times.weights().tolist() == [0.25] * 4
    times.update(torch.tensor([3, 0, 0]), losses[11:14])
    remembered = [[losses[8], losses[12], losses[13]], losses[[1, 5, 9]], losses[[2, 6, 10]], losses[[3, 7, 11]]]
    roots = [sqrt(sum(float(loss) ** 2 for loss in row) / 3) for row in remembered]
    wanted = [0.9 * root / sum(roots) + 0.1 / 4 for root in roots]
    assert times.weights().tolist() == pytest.approx(wanted, rel=1e-12)
    assert float(times.weights().sum()) == pytest.approx(1, rel=1e-12)
    index = torch.tensor([2, 0, 2])
    assert times.importance(index).tolist() == pytest.approx([1 / (4 * wanted[i]) for i in index], rel=1e-12)
    # The weighted mean over draws by p is the plain mean over uniform ones.
    assert float((times.weights() * times.importance(torch.arange(4)) * torch.arange(4)).sum()) == pytest.approx(1.5)
    for options in ({"num_steps": 0}, {"num_steps": 4, "history": 0}, {"num_steps": 4, "uniform_share": 1.5}):
        with pytest.raises(ValueError, match="must"):
            training.LossAwareTimes(**options)


def test_dropped_labels():
    labels, drop = torch.tensor([3, 1, 2]), torch.tensor([True, False, True])
    assert training.drop_labels(labels, 10, drop).tolist() == [10, 1, 10]
    assert labels.tolist() == [3, 1, 2]


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

        state = training.TrainState.create(model, 1e-3)
        metrics = training.train_step(state, process, x_0, noise, t, ema=0.9, self_condition=self_condition)
        torch.testing.assert_close(model.seen[-1], torch.cat([x_t, guess], 1), rtol=1e-12, atol=1e-13)
        assert len(model.seen) == (2 if self_condition else 1)
        assert metrics["loss"] == pytest.approx(float(error.detach().square().mean()), rel=1e-12)
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-12)


def test_flow_matching_trains():
    """The step takes a straight path as it takes a chain: a network told t (num_steps - 1)."""

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x_t, t, labels=None):
            assert t.tolist() == [0, 4.5, 9]
            return x_t + self.shift

    state = training.TrainState.create(Shift(), 0.1)
    t = torch.tensor([0, 0.5, 1], dtype=torch.float64)
    losses = [
        training.train_step(state, FlowMatching(10), normal(3, 2), 2 + normal(3, 2, seed=1), t, ema=0.5)["loss"]
        for _ in range(20)
    ]
    assert losses[-1] < losses[0] and state.step == 20


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: training.learning_rate(0, 1.0, 5, 5), r"decay_steps must exceed warmup_steps = 5; got 5"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
