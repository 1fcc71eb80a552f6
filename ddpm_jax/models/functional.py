"""A network as a pure function of plain pytrees, so that jit never sees a module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from ddpm_jax import display
from ddpm_jax.models.remat import rematerialise

Variables = dict[str, Any]
"""{"params": nested dict of arrays, "batch_stats": the same for running statistics, empty where a network has none}."""

Model = nnx.Module | tuple[nnx.GraphDef, Variables]
"""A network, or what `split` made of it."""


@jax.tree_util.register_static
class Structure(nnx.GraphDef[nnx.Module]):
    """A GraphDef that finds its hash once: jit asks for it in each call, and flax goes through all layers: 0.8 ms for 60."""

    def __init__(self, graphdef: nnx.GraphDef):
        super().__init__(graphdef.nodes, graphdef.attributes, graphdef.num_leaves)

    @functools.cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return display.line(self, name_of(self))


def split(model: nnx.Module, *, training: bool = False, remat: bool = False) -> tuple[nnx.GraphDef, Variables]:
    """A module's structure (hashable) and its arrays, for evaluation, or with `training` on: dropout, statistics of the batch.

    remat: gradients compute the activations within each block anew instead of keeping them.
    """
    view = nnx.view(model, deterministic=not training, use_running_average=not training, raise_if_not_found=False)
    if remat:
        rematerialise(view)  # a copy of the modules: the model stays as it is
    graphdef, params, batch_stats = nnx.split(view, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    return Structure(graphdef), {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(batch_stats)}


def config_of(graphdef: nnx.GraphDef) -> Any:
    """The options of `model_configs` that a structure was built of; None: it is no network of this project."""
    for name, value in graphdef.attributes:
        if name == "config" and hasattr(value, "value"):  # the outermost module's come first
            return value.value
    return None


def name_of(graphdef: nnx.GraphDef) -> str:
    """The class of the module that a structure is of."""
    return getattr(graphdef.nodes[0], "type", nnx.Module).__name__ if graphdef.nodes else "Module"


def parts(model: Model) -> tuple[nnx.GraphDef, Variables]:
    """A network's structure and arrays for evaluation, where it is not taken apart yet."""
    return split(model) if isinstance(model, nnx.Module) else model


def merge(graphdef: nnx.GraphDef, variables: Variables) -> Any:
    """The module that `split` took apart."""
    kinds: dict[str, type[nnx.Variable]] = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return nnx.merge(graphdef, *(nnx.State(jax.tree.map(kinds[name], variables[name])) for name in kinds))


def apply(
    graphdef: nnx.GraphDef,
    variables: Variables,
    x_t: Float[Array, "b *shape"],
    t: Num[Array, "b"],
    labels: Int[Array, "b"] | None = None,
    *,
    key: jax.Array | None = None,
    dtype: Any = None,
) -> tuple[Float[Array, "b *out"], Any]:
    """The network's output in the dtype of x_t, and its running statistics after the call.

    key: randomness of dropout, needed only where training uses it. dtype: compute dtype; the parameters and x_t are cast to it,
    so that parameters kept in float32 see their gradients in float32 (None: no cast).
    """
    params = variables["params"]
    x = x_t
    if dtype is not None:
        params, x = jax.tree.map(lambda a: a.astype(dtype), (params, x_t))
    model = merge(graphdef, variables | {"params": params})
    rngs = None if key is None else nnx.Rngs(dropout=key)
    output = model(x, t, labels, rngs=rngs)
    batch_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    return output.astype(jnp.result_type(x_t)), batch_stats
