"""A small convolutional classifier of the real images: what it sees in samples, and features to compare distributions by."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange, reduce
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from ddpm_jax import display, models, progress
from ddpm_jax.compilation import jit, once
from ddpm_jax.errors import UserError

NUM_FEATURES = 128
"""Width of the penultimate layer."""

_BATCH = 128
_PREDICTION_BATCH = 500
_PEAK_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 0.05
_LEAST_PRESENTATIONS = 80_000
_LEAST_EPOCHS = 10
_LEAST_SIDE, _LARGE_SIDE = 4, 32


class Network(nnx.Module):
    """Images -> (logits, features): strided 3x3 convolutions with BatchNorm down to a side of 3 or 4, and a hidden layer.

    Strides rather than pooling: on a CPU, one convolution at full size costs more than all the rest. Images whose short side is
    64 or more are first averaged over square blocks, down to a side of 32 to 63.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, rngs: nnx.Rngs):
        height, width, in_dim = image_shape
        self.shrink = max(1, min(height, width) // _LARGE_SIDE)
        height, width, dim = height // self.shrink, width // self.shrink, 32
        convs, norms = [], []
        while True:
            stride = 2 if min(height, width) > _LEAST_SIDE else 1
            convs.append(nnx.Conv(in_dim, dim, (3, 3), strides=stride, use_bias=False, rngs=rngs))
            norms.append(_batch_norm(dim, rngs=rngs))
            if stride == 1:
                break
            height, width = -(-height // 2), -(-width // 2)
            in_dim, dim = dim, min(2 * dim, 128)
        self.convs, self.norms = nnx.List(convs), nnx.List(norms)
        self.hidden = nnx.Linear(height * width * dim, NUM_FEATURES, use_bias=False, rngs=rngs)
        self.hidden_norm = _batch_norm(NUM_FEATURES, rngs=rngs)
        self.out = nnx.Linear(NUM_FEATURES, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b k"], Float[Array, "b f"]]:
        """x (B, H, W, C) in [-1, 1] -> logits (B, num_classes), features (B, NUM_FEATURES)."""
        height, width = x.shape[1] // self.shrink, x.shape[2] // self.shrink
        x = x[:, : height * self.shrink, : width * self.shrink]
        x = reduce(x, "b (h i) (w j) c -> b h w c", "mean", i=self.shrink, j=self.shrink)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        features = nnx.relu(self.hidden_norm(self.hidden(rearrange(x, "b h w c -> b (h w c)"))))
        return self.out(features), features


def _batch_norm(dim: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(dim, momentum=0.9, rngs=rngs)


@dataclass(frozen=True)
class Classifier:
    """A trained network: its structure for evaluation, and its arrays."""

    graphdef: nnx.GraphDef[Any]
    """Its structure, as `models.split` gives it."""
    variables: models.Variables
    """What `models.split` makes: float32 parameters and running statistics."""
    image_shape: tuple[int, int, int]
    """(H, W, C) of the images it takes."""
    num_classes: int
    """How many classes it tells apart."""

    def __repr__(self) -> str:
        size = "x".join(map(str, self.image_shape))
        parameters = f"{display.count(self.variables['params']):,} parameters"
        return display.line(self, f"images {size}", f"{self.num_classes} classes", parameters)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The most likely class of each uint8 image (N, H, W, C): int64 (N,).

        Raises:
            UserError: the images are not uint8, or of another shape than those it was trained on.
        """
        return self._outputs(images)[0].argmax(axis=1)

    def features(self, images: np.ndarray) -> np.ndarray:
        """The penultimate layer for each uint8 image (N, H, W, C): float32 (N, NUM_FEATURES), none negative.

        Raises:
            UserError: the images are not uint8, or of another shape than those it was trained on.
        """
        return self._outputs(images)[1]

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of the images (N, H, W, C) whose predicted class is that of labels (N,): 0..1.

        Raises:
            UserError: there are no images, they do not fit the classifier, or there is not one label for each.
        """
        if len(images) == 0 or labels.shape != (len(images),):
            raise UserError(
                "accuracy needs at least 1 image and a label for each; "
                f"got {len(images)} images and labels of shape {labels.shape}."
            )
        return float((self.predict(images) == labels).mean())

    def _outputs(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            size = ", ".join(map(str, self.image_shape))
            raise UserError(
                f"the classifier takes uint8 images of shape (N, {size}); got {images.dtype} of shape {images.shape}."
            )
        logits, features = [np.zeros((0, self.num_classes), np.float32)], [np.zeros((0, NUM_FEATURES), np.float32)]
        for start in range(0, len(images), _PREDICTION_BATCH):
            batch = images[start : start + _PREDICTION_BATCH]
            count = len(batch)
            rest = np.zeros((_PREDICTION_BATCH - count, *self.image_shape), np.uint8)  # one shape, one compilation
            outputs = _apply(self.variables, np.concatenate([batch, rest]), graphdef=self.graphdef)
            logits.append(np.asarray(outputs[0])[:count])
            features.append(np.asarray(outputs[1])[:count])
        return np.concatenate(logits), np.concatenate(features)


def create(image_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0) -> Classifier:
    """An untrained classifier of images (H, W, C): any channels, sides of at least 4.

    Raises:
        UserError: the images are too small, or there are fewer than 2 classes.
    """
    if min(image_shape[:2]) < _LEAST_SIDE:
        raise UserError(f"a classifier needs images of at least {_LEAST_SIDE} x {_LEAST_SIDE}; got {image_shape}.")
    if num_classes < 2:
        raise UserError(f"a classifier needs at least 2 classes; got num_classes = {num_classes}.")

    def build(key: jax.Array) -> nnx.Module:
        return Network(image_shape, num_classes, rngs=nnx.Rngs(params=key))

    draw = jax.jit(lambda key: models.split(build(key))[1], compiler_options=once())
    graphdef, _ = models.split(nnx.eval_shape(build, jax.random.key(0)))
    return Classifier(graphdef, draw(jax.random.key(seed)), image_shape, num_classes)


def train_classifier(
    images: np.ndarray, labels: np.ndarray, num_classes: int, *, seed: int = 0, epochs: int | None = None
) -> Classifier:
    """A classifier of uint8 images (N, H, W, C) with classes labels (N,), integers in 0..num_classes - 1.

    epochs: 10, or as many as present 80,000 images where there are few (None). Training is AdamW (Loshchilov & Hutter 2019) in
    batches of 128 on shifted images, of which those with colour are mirrored half the time; the learning rate warms up and falls
    to 0. On a CPU, the same arguments give the same classifier, bit for bit.

    Raises:
        UserError: the images are not uint8 or too small, there are fewer than 2 of them or of the classes, a label is out of range,
            or epochs is below 1.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    check_images(images, labels, num_classes)
    if epochs is None:
        epochs = max(_LEAST_EPOCHS, math.ceil(_LEAST_PRESENTATIONS / len(images)))
    if epochs < 1:
        raise UserError(f"epochs must be at least 1; got {epochs}.")
    height, width, channels = images.shape[1:]
    untrained = create((height, width, channels), num_classes, seed=seed)
    size = min(_BATCH, len(images))
    steps = epochs * (len(images) // size)
    state = _State(jnp.zeros((), jnp.int32), untrained.variables, _optimizer(steps).init(untrained.variables["params"]))
    graphdef = _for_training(untrained)
    key = jax.random.fold_in(jax.random.key(seed), 1)  # not the key that the parameters were drawn with
    for epoch in progress.each(range(epochs), epochs, "a classifier of real images", unit="epoch"):
        order = np.random.default_rng((seed, epoch)).permutation(len(images))
        for start in range(0, len(images) - size + 1, size):
            chosen = order[start : start + size]
            state = _train_step(
                state, images[chosen], labels[chosen].astype(np.int32), key, graphdef=graphdef, steps=steps
            )
    return Classifier(untrained.graphdef, state.variables, untrained.image_shape, num_classes)


def check_images(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Refuse what no classifier can be trained on.

    Raises:
        UserError: the images are not uint8 (N, H, W, C), N at least 2; not one integer label for each, in 0..num_classes - 1.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2:
        raise UserError(
            f"images must be uint8 of shape (N, H, W, C), N at least 2; got {images.dtype} of shape {images.shape}."
        )
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise UserError(
            f"labels must be integers of shape ({len(images)},), one for each image; got {labels.dtype} of shape {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"labels must lie in 0..{num_classes - 1}; got {labels.min()}..{labels.max()}.")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    step: Any
    variables: models.Variables
    opt_state: optax.OptState


def _for_training(classifier: Classifier) -> nnx.GraphDef[Any]:
    network = models.merge(classifier.graphdef, classifier.variables)
    return models.split(network, training=True)[0]


def _optimizer(steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, _PEAK_LEARNING_RATE, max(steps // 10, 1), max(steps, 2))
    return optax.adamw(rate, weight_decay=_WEIGHT_DECAY)


def _step(
    state: _State,
    images: UInt8[Array, "b h w c"],
    labels: Int[Array, "b"],
    key: jax.Array,
    *,
    graphdef: nnx.GraphDef[Any],
    steps: int,
) -> _State:
    x = augment(images, jax.random.fold_in(key, state.step))

    def mean_loss(params: Any) -> tuple[jax.Array, Any]:
        network = models.merge(graphdef, state.variables | {"params": params})
        logits, _ = network(_scale(x))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    params = state.variables["params"]
    grads, batch_stats = jax.grad(mean_loss, has_aux=True)(params)
    updates, opt_state = _optimizer(steps).update(grads, state.opt_state, params)
    variables = {"params": optax.apply_updates(params, updates), "batch_stats": batch_stats}
    return _State(state.step + 1, variables, opt_state)


_train_step = jit(_step, static_argnames=("graphdef", "steps"), donate_argnums=0)


@functools.partial(jit, static_argnames="graphdef")
def _apply(
    variables: models.Variables, images: UInt8[Array, "b h w c"], *, graphdef: nnx.GraphDef[Any]
) -> tuple[Array, Array]:
    return models.merge(graphdef, variables)(_scale(images))


def _scale(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return images.astype(jnp.float32) / 127.5 - 1


def augment(images: UInt8[Array, "b h w c"], key: jax.Array) -> UInt8[Array, "b h w c"]:
    """Each image shifted by up to an eighth of its size, edges repeated; mirrored half the time if it has colour."""
    count, height, width, channels = images.shape
    shift = min(height, width) // 8
    shifts, flips = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    corners = jax.random.randint(shifts, (count, 2), 0, 2 * shift + 1)
    cut = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, channels)))
    images = cut(padded, corners)
    if channels == 1:
        return images
    mirrored = jax.random.bernoulli(flips, shape=(count, 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)
