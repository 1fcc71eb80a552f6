"""A network as a pure function of plain pytrees, so that jit never sees a module."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from ddpm_jax import display
from ddpm_jax.errors import UserError

Variables = dict[str, Any]
"""{"params": nested dict of arrays, "batch_stats": the same for running statistics and whatever else a network keeps that is not
trained, empty where it keeps nothing}."""

Model = nnx.Module | tuple[nnx.GraphDef[Any], Variables]
"""A network, or what `split` made of it."""


@jax.tree_util.register_static
class Structure(nnx.GraphDef[nnx.Module]):
    """A GraphDef that finds its hash once: jit asks for it in each call, and flax goes through all layers: 0.8 ms for 60.

    streams: where the network has random streams of its own, as nnx.Dropout(rate, rngs=rngs) does: which of their arrays are keys.
    """

    def __init__(self, graphdef: nnx.GraphDef[Any], streams: Any):
        super().__init__(graphdef.nodes, graphdef.attributes, graphdef.num_leaves)
        object.__setattr__(self, "streams", streams)  # it is frozen

    @functools.cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)

    def __repr__(self) -> str:
        return display.line(self, name_of(self))


def split(model: nnx.Module, *, training: bool = False) -> tuple[nnx.GraphDef[Any], Variables]:
    """A module's structure (hashable) and its arrays, for evaluation, or with `training` on: dropout, statistics of the batch."""
    view = nnx.view(model, deterministic=not training, use_running_average=not training, raise_if_not_found=False)
    graphdef, params, streams, others = nnx.split(view, nnx.Param, nnx.RngState, ...)  # type: ignore[misc]
    keys = jax.tree.map(lambda leaf: isinstance(leaf, nnx.RngKey), streams, is_leaf=_is_variable)
    variables = {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(others)}
    return Structure(graphdef, keys), variables


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def config_of(graphdef: nnx.GraphDef[Any]) -> Any:
    """The options that a structure was built of; None: it is no network of this project."""
    for name, value in graphdef.attributes:
        if name == "config" and hasattr(value, "value"):  # the outermost module's come first
            return value.value
    return None


def name_of(graphdef: nnx.GraphDef[Any]) -> str:
    """The class of the module that a structure is of."""
    return getattr(graphdef.nodes[0], "type", nnx.Module).__name__ if graphdef.nodes else "Module"


def parts(model: Model) -> tuple[nnx.GraphDef[Any], Variables]:
    """A network's structure and arrays for evaluation, where it is not taken apart yet."""
    return split(model) if isinstance(model, nnx.Module) else model


def merge(graphdef: nnx.GraphDef[Any], variables: Variables, *, key: jax.Array | None = None) -> Any:
    """The module that `split` took apart.

    key: what random streams of its own start from; key(0) unless given.
    """
    states = [nnx.State(variables["params"])]
    if jax.tree.leaves(streams := getattr(graphdef, "streams", {})):
        states.append(_begun(streams, jax.random.key(0) if key is None else key))
    return nnx.merge(graphdef, *states, nnx.State(variables["batch_stats"]))


def _begun(streams: Any, key: jax.Array) -> nnx.State[Any, Any]:
    """Random streams that have drawn nothing yet, each with a key of its own."""
    leaves, structure = jax.tree.flatten(streams)
    filled = [
        jax.random.fold_in(key, index) if is_key else jnp.zeros((), jnp.uint32) for index, is_key in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, filled)


def for_training(graphdef: nnx.GraphDef[Any], variables: Variables) -> nnx.GraphDef[Any]:
    """The structure in training of what `split` took apart for evaluation."""
    return split(merge(graphdef, variables), training=True)[0]


def fact(model: nnx.Module, name: str) -> Any:
    """What a network, or the config that it was made of, says of itself, as num_classes; None: nothing."""
    return getattr(model, name, getattr(getattr(model, "config", None), name, None))


def apply(
    graphdef: nnx.GraphDef[Any],
    variables: Variables,
    x_t: Float[Array, "b *shape"],
    t: Num[Array, "b *two"],
    labels: Int[Array, "b"] | None = None,
    *,
    key: jax.Array | None = None,
    dtype: Any = None,
) -> tuple[Float[Array, "b *out"], Any]:
    """The network's output in the dtype of x_t, and its running statistics after the call.

    The network is called as model(x_t, t, labels), or as model(x_t, t) where it takes no labels and there are none; with
    rngs=nnx.Rngs(dropout=key) where its call takes that.

    key: randomness of dropout, needed only where training uses it. dtype: compute dtype; the parameters and x_t are cast to it,
    so that parameters kept in float32 see their gradients in float32 (None: no cast).

    Raises:
        UserError: labels for a network whose call takes none.
    """
    params = variables["params"]
    x = x_t
    if dtype is not None:
        params, x = jax.tree.map(lambda a: a.astype(dtype), (params, x_t))
    model = merge(graphdef, variables | {"params": params}, key=key)
    output = _call(model, x, t, labels, None if key is None else nnx.Rngs(dropout=key))
    batch_stats = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.RngState))))
    return output.astype(jnp.result_type(x_t)), batch_stats


def _call(model: Any, x_t: jax.Array, t: jax.Array, labels: jax.Array | None, rngs: nnx.Rngs | None) -> jax.Array:
    parameters = inspect.signature(model.__call__).parameters.values()
    kinds = [parameter.kind for parameter in parameters]
    takes_rngs = inspect.Parameter.VAR_KEYWORD in kinds or any(part.name == "rngs" for part in parameters)
    options = {"rngs": rngs} if takes_rngs else {}
    by_position = kinds.count(inspect.Parameter.POSITIONAL_ONLY) + kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if by_position > 2 or inspect.Parameter.VAR_POSITIONAL in kinds:
        return model(x_t, t, labels, **options)
    if labels is not None:
        raise UserError(f"labels were given, but {type(model).__name__} is called as model(x_t, t) and takes none.")
    return model(x_t, t, **options)
