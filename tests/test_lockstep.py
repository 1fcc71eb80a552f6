"""Training in lockstep: sound pairs agree, and every planted fault is named at the first quantity that it touches."""

import copy
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ddpm_jax import verify
from ddpm_jax.errors import UserError
from ddpm_jax.verify.lockstep.distributions import differ, initialiser

torch = pytest.importorskip("torch")
R = np.random.default_rng(0)
BATCHES = [(R.standard_normal((8, 4)), R.standard_normal((8, 3))) for _ in range(4)]
OPTIM = torch.optim


class Net(nnx.Module):
    def __init__(self, norm=None):
        rngs = nnx.Rngs(0)
        self.fc1 = nnx.Linear(4, 6, rngs=rngs)
        self.norm = None if norm is None else nnx.BatchNorm(6, rngs=rngs, epsilon=1e-5, use_fast_variance=False, **norm)
        self.fc2 = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        h = self.fc1(x)
        return self.fc2(jnp.tanh(h if self.norm is None else self.norm(h)))


class TorchNet(torch.nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)
        self.norm = torch.nn.BatchNorm1d(6) if norm else torch.nn.Identity()

    def forward(self, x):
        return self.fc2(torch.tanh(self.norm(self.fc1(x))))


def loss(model, x, y):
    return jnp.square(model(x) - y).mean()


def torch_loss(module, x, y):
    return (module(x) - y).square().mean()


def compare(ours, make=None, *, ours_loss=loss, theirs_loss=torch_loss, norm=None, **options):
    """ours: optax's; make: parameters -> PyTorch's optimiser; options of either training by name, and of compare_training."""
    module = TorchNet(norm is not None)
    optimizer = (make or (lambda p: OPTIM.Adam(p, 1e-2)))(module.parameters())
    theirs = {name: options.pop(name) for name in ("clip", "scheduler") if name in options}
    if "scheduler" in theirs:
        theirs["scheduler"] = theirs["scheduler"](optimizer)
    ema, batches = options.pop("ema", None), options.pop("batches", BATCHES)
    if "torch_ema" in options:
        theirs["ema"] = options.pop("torch_ema")(module)
    return verify.compare_training(
        verify.JaxTraining(ours_loss, Net(norm), ours, ema=ema),
        verify.TorchTraining(theirs_loss, module, optimizer, **theirs),
        batches,
        **options,
    )


def test_a_sound_pair_agrees_and_is_left_as_it_was():
    module = TorchNet()
    optimizer = OPTIM.AdamW(module.parameters(), 1e-2, weight_decay=0.1)
    before, settings = copy.deepcopy(module.state_dict()), copy.deepcopy(optimizer.state_dict())
    ours = verify.JaxTraining(loss, Net(), optax.adamw(1e-2, weight_decay=0.1))
    report = verify.compare_training(ours, verify.TorchTraining(torch_loss, module, optimizer), BATCHES)
    assert report.ok and not report.cause, report.table()
    stages = [row.stage for row in report.rows if row.stage.startswith("step 2")]
    wanted = ["data", "loss", "gradient", "first moment", "second moment", "learning rate", "weight decay", "update"]
    assert list(dict.fromkeys(stages)) == [f"step 2 {name}" for name in wanted]
    gradients = [row.name for row in report.rows if row.stage == "step 0 gradient"]
    assert set(gradients[:2]) == {"fc2.weight", "fc2.bias"} and len(gradients) == 4  # the last layer's come first
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert str(optimizer.state_dict()) == str(settings)


def averaged(decay):
    functions = torch.optim.swa_utils
    return lambda module: functions.AveragedModel(module, multi_avg_fn=functions.get_ema_multi_avg_fn(decay))


def copied_first(average, params, step):
    return jax.tree.map(lambda a, p: jnp.where(step == 0, p, 0.9 * a + 0.1 * p), average, params)


SOUND = {
    "SGD with Nesterov's momentum": (optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9, nesterov=True)),
                                     lambda p: OPTIM.SGD(p, 0.1, 0.9, weight_decay=0.1, nesterov=True), {}),
    "RMSprop": (optax.rmsprop(1e-2, decay=0.99, eps_in_sqrt=False), lambda p: OPTIM.RMSprop(p, 1e-2), {}),
    "Adagrad": (optax.adagrad(1e-2, 0.0, eps=1e-20), lambda p: OPTIM.Adagrad(p, 1e-2, eps=1e-15), {}),
    "clipping, whose 1e-6 is known": ((optax.clip_by_global_norm(0.1), optax.adam(1e-2)), None, {"clip": 0.1}),
    "clipping within a chain": (optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)), None, {"clip": 0.1}),
    "average": (optax.adam(1e-2), None, {"ema": copied_first, "torch_ema": averaged(0.9)}),
    "float32": (optax.adam(1e-2), None, {"dtype": "float32"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_sound_pairs_agree(name):
    ours, make, options = SOUND[name]
    report = compare(ours, make, **dict(options))
    assert report.ok, report.table()
    assert ("1e-6" in str(report.warnings)) == name.startswith("clipping")


def parts(module, optimizer, clip):
    """A loop that accumulates two halves, and clips their sum."""

    def step(x, y):
        optimizer.zero_grad()
        total = 0.0
        for half in range(2):
            value = torch_loss(module, x[4 * half : 4 * half + 4], y[4 * half : 4 * half + 4]) / 2
            value.backward()
            total += value.detach()
        if clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        return total

    return step


def halves(clip, average):
    """JAX's step of two halves, each of which is clipped."""
    model = Net()
    graphdef, params = nnx.split(model)
    tx = verify.observed(optax.identity(), optax.adam(1e-2))

    def of(params, x, y):
        return loss(nnx.merge(graphdef, nnx.State(params)), x, y)

    def step(state, x, y):
        cut = optax.clip_by_global_norm(clip) if clip else optax.identity()
        grads = [jax.grad(of)(state["params"], x[i : i + 4], y[i : i + 4]) for i in (0, 4)]
        grads = [cut.update(jax.tree.map(lambda g: g / 2, g), cut.init(g))[0] for g in grads]
        total = jax.tree.map(lambda a, b: (a + b) * (1 if average else 2), *grads)
        updates, opt_state = tx.update(total, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, of(state["params"], x, y)

    params = nnx.to_pure_dict(params)
    return verify.JaxTraining.of_step(step, {"params": params, "opt_state": tx.init(params)}, model=model)


def accumulated(clip=None, average=True):
    module = TorchNet()
    optimizer = OPTIM.Adam(module.parameters(), 1e-2)
    theirs = verify.TorchTraining.of_step(parts(module, optimizer, clip), module, optimizer)
    return verify.compare_training(halves(clip, average), theirs, BATCHES)


def test_accumulation_by_whole_steps_agrees():
    report = accumulated()
    assert report.ok, report.table()


def cast(model, x, y):
    return loss(model, x.astype(jnp.bfloat16).astype(x.dtype), y)


@jax.custom_vjp
def rounded(x):
    return x


rounded.defvjp(lambda x: (x, None), lambda _, g: (g.astype(jnp.bfloat16).astype(g.dtype),))


def rounded_weights(model, x, y):
    graphdef, state = nnx.split(model)
    return loss(nnx.merge(graphdef, jax.tree.map(rounded, state)), x, y)


def scaled(model, x, y):
    value = loss(model, x, y)
    return jax.lax.stop_gradient(value) + 1024 * (value - jax.lax.stop_gradient(value))


def frozen(model, x, y):
    model.fc1.bias[...] = jax.lax.stop_gradient(model.fc1.bias[...])
    return loss(model, x, y)


def penalised(model, x, y):
    return loss(model, x, y) + 0.05 * sum(
        jnp.square(leaf).sum() for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))
    )


def warm(average, params, step):
    decay = jnp.minimum(0.99, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def ramp(step):
    return 1e-2 * jnp.minimum(1.0, (step + 1) / 3)


def no_biases(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def adam(**options):
    return optax.chain(optax.scale_by_adam(**options), optax.scale(-1e-2))


def uncorrected(b1=0.9, b2=0.999, eps=1e-8):
    tx = optax.scale_by_adam(b1, b2, eps)

    def update(grads, state, params=None):
        _, state = tx.update(grads, state, params)
        return jax.tree.map(lambda m, v: -1e-2 * m / (jnp.sqrt(v) + eps), state.mu, state.nu), state

    return optax.GradientTransformation(tx.init, update)


def adamw(p):
    return OPTIM.AdamW(p, 1e-2, weight_decay=0.1)


FAULTS = {
    "epsilon inside the root": (adam(eps=0.0, eps_root=1e-8), None, {}, "update", r"JAX: epsilon 1e-08 inside the root; PyTorch: epsilon 1e-08 outside"),
    "another epsilon": (adam(eps=1e-6), None, {}, "update", r"JAX: epsilon 1e-06 outside the root; PyTorch: epsilon 1e-08 outside"),
    "no bias correction": (uncorrected(), None, {}, "update", r"JAX: no bias correction; PyTorch: epsilon"),
    "decay of the first moment": (optax.adam(1e-2, b1=0.95), None, {}, "first moment", r"decay of the first moment is 0.95 in JAX, 0.9 in"),
    "decay of the second moment": (optax.adam(1e-2, b2=0.99), None, {}, "second moment", r"decay of the second moment is 0.99 in JAX, 0.999"),
    "coupled decay": (optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-2)), adamw, {}, "first moment", r"JAX adds 0.1 \* weights .*coupled"),
    "coupled decay in PyTorch": (optax.adamw(1e-2, weight_decay=0.1), lambda p: OPTIM.Adam(p, 1e-2, weight_decay=0.1), {}, "first moment", r"PyTorch adds 0.1 \* weights .*coupled"),
    "a decay of 5e-9 a step": (optax.adam(5e-5), lambda p: OPTIM.AdamW(p, 5e-5, weight_decay=1e-4), {}, "weight decay", r"JAX does not decay the weights"),
    "mask of the decay": (optax.adamw(1e-2, weight_decay=0.1, mask=no_biases), adamw, {}, "weight decay", r"mask differs: PyTorch alone decays fc1.bias, fc2.bias"),
    "no decay": (optax.adam(1e-2), adamw, {}, "weight decay", r"JAX does not decay the weights, PyTorch does"),
    "decay without the rate": (optax.chain(optax.scale_by_adam(), optax.scale(-1e-2), optax.add_decayed_weights(-0.1)), adamw, {}, "weight decay", r"JAX's decay is not multiplied by the learning rate: 0.1 against 0.001"),
    "another rate": (optax.adam(3e-2), None, {}, "learning rate", r"learning rate is 0.03 in JAX, 0.01 in PyTorch"),
    "step counted from 1": (optax.adam(lambda step: ramp(step + 1)), None, {"scheduler": lambda o: OPTIM.lr_scheduler.LambdaLR(o, lambda k: min(1.0, (k + 1) / 3))}, "learning rate", r"counted from 1 in JAX, from 0 in PyTorch"),
    "no clipping": (optax.adam(1e-2), None, {"clip": 0.1}, "first moment", r"JAX does not clip"),
    "clipped by value": ((optax.clip(0.02), optax.adam(1e-2)), None, {"clip": 0.1}, "clipped gradient", r"JAX clips each number to 0.02"),
    "clipped by parameter": ((optax.clip_by_block_rms(0.01), optax.adam(1e-2)), None, {"clip": 0.1}, "clipped gradient", r"JAX clips each parameter's gradient by itself"),
    "another limit": ((optax.clip_by_global_norm(0.2), optax.adam(1e-2)), None, {"clip": 0.1}, "clipped gradient", r"another limit: the norm becomes 0.2 in JAX, 0.1 in"),
    "a sum for a mean": (optax.adam(1e-2), None, {"ours_loss": lambda m, x, y: jnp.square(m(x) - y).mean(1).sum()}, "loss", r"8 times the other's, the examples of a batch: a sum"),
    "loss scale": (optax.adam(1e-2), None, {"ours_loss": scaled}, "gradient", r"1024 times the other's, and the losses agree: a loss scale is not undone"),
    "cast of the gradients": (optax.adam(1e-2), None, {"ours_loss": rounded_weights}, "gradient", r"JAX's numbers are rounded to bfloat16"),
    "a frozen weight": (optax.adam(1e-2), None, {"ours_loss": frozen}, "gradient", r"fc1.bias has no gradient in JAX"),
    "penalty": (optax.adam(1e-2), None, {"ours_loss": penalised}, "loss", r"JAX's loss has the penalty 0.05 \* \(sum of the squared"),
    "average warms up": (optax.adam(1e-2), None, {"ema": warm, "torch_ema": averaged(0.9)}, "average", r"PyTorch's first update of the average copies|JAX's decay of the average warms up"),
    "average of old weights": (optax.adam(1e-2), None, {"ema": 0.9, "torch_ema": averaged(0.9)}, "average", r"PyTorch's first update of the average copies the weights"),
    "momentum of BatchNorm": (optax.adam(1e-2), None, {"norm": {"momentum": 0.1}}, "statistics", r"9 times as far as PyTorch's: the momentum differs"),
    "biased variance": (optax.adam(1e-2), None, {"norm": {"momentum": 0.9}}, "statistics", r"biased variance of the batch, PyTorch the unbiased: .* n = 8"),
    "Nesterov": (optax.sgd(0.1, 0.9), lambda p: OPTIM.SGD(p, 0.1, 0.9, nesterov=True), {}, "update", r"JAX: plain momentum; PyTorch: Nesterov's"),
    "RMSprop's epsilon": (optax.rmsprop(1e-2, decay=0.99), lambda p: OPTIM.RMSprop(p, 1e-2), {}, "update", r"JAX: epsilon 1e-08 inside the root; PyTorch: epsilon 1e-08 outside"),
    "Adagrad's start": (optax.adagrad(1e-2), lambda p: OPTIM.Adagrad(p, 1e-2), {}, "sum", r"begins with 0.1 in JAX, with 0 in PyTorch"),
    "data in another order": (optax.adam(1e-2), None, {"torch_batches": [(x[::-1].copy(), y) for x, y in BATCHES]}, "data", r"same examples in another order"),
    "data scaled": (optax.adam(1e-2), None, {"torch_batches": [(2 * x + 1, y) for x, y in BATCHES]}, "data", r"JAX = 0.5 \* PyTorch - 0.5"),
    "data cast": (optax.adam(1e-2), None, {"torch_batches": [(x.astype(np.float16), y) for x, y in BATCHES]}, "data", r"PyTorch's numbers are rounded to float16"),
    "other kinds": (optax.sgd(0.1, 0.9), None, {}, "optimiser", r"JAX and PyTorch remember momentum and first, second"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_named(name):
    ours, make, options, stage, cause = FAULTS[name]
    report = compare(ours, make, **dict(options))
    first = report.first_divergence
    assert first is not None and re.search(stage, first.stage), report.table()
    assert re.search(cause, report.cause), f"{report.cause}\n{report.table()}"
    assert report.cause in report.verdict()


@pytest.mark.parametrize("clip, average, stage, cause", [
    (0.05, True, "gradient", r"JAX clips the gradients of each part and then adds them up"),
    (None, False, "gradient", r"2 times the other's: accumulated gradients are summed on one side and averaged"),
])  # fmt: skip
def test_faults_of_accumulation_are_named(clip, average, stage, cause):
    report = accumulated(clip, average)
    assert stage in report.first_divergence.stage and re.search(cause, report.cause), report.table()


def test_initial_weights_of_other_distributions_are_told():
    rng = np.random.default_rng(0)
    lecun, uniform = rng.normal(size=(64, 64)) / 8, rng.uniform(-1 / 8, 1 / 8, (64, 64))
    assert "lecun" in initialiser(lecun) and "PyTorch's default" in initialiser(uniform)
    assert not differ(lecun, rng.normal(size=(64, 64)) / 8, 10)
    assert "lecun" in differ(lecun, uniform, 10) and "uniform" in differ(lecun, uniform, 10)
    assert "all 0" in differ(np.zeros(6), rng.uniform(-1, 1, 6), 10)
    text = compare(optax.adam(1e-2)).verdict()  # biases of zero in flax
    assert "Initial weights are of other distributions: fc1.bias" in text and "agreement" in text


@pytest.mark.parametrize("wrong, message", [
    (lambda j, t: (t, t, BATCHES), r"jax_training must be a verify\.JaxTraining; got a TorchTraining"),
    (lambda j, t: (j, None, BATCHES), r"torch_training must be a verify\.TorchTraining; got a NoneType"),
    (lambda j, t: (j, t, []), r"at least 1; got 0 and 0"),
    (lambda j, t: (verify.JaxTraining(3, Net(), optax.sgd(1.0)), t, BATCHES), r"loss must be a function"),
    (lambda j, t: (verify.JaxTraining(loss, Net(), "adam"), t, BATCHES), r"optimizer must be one of optax's.*got a str"),
    (lambda j, t: (verify.JaxTraining.of_step(loss, {"params": 1}), t, BATCHES), r"state must have 'opt_state'"),
    (lambda j, t: (j, verify.TorchTraining(loss, TorchNet(), t.optimizer), BATCHES), r"made of the module's parameters"),
    (lambda j, t: (verify.JaxTraining(loss, nnx.Linear(4, 3, rngs=nnx.Rngs(0)), optax.sgd(1.0)), t, BATCHES), r"do not correspond"),
])  # fmt: skip
@pytest.mark.usefixtures("without_the_checker")
def test_mistakes(wrong, message):
    module = TorchNet()
    ours = verify.JaxTraining(loss, Net(), optax.sgd(1.0))
    theirs = verify.TorchTraining(torch_loss, module, OPTIM.SGD(module.parameters(), 1.0))
    with pytest.raises(UserError, match=message):
        verify.compare_training(*wrong(ours, theirs))
