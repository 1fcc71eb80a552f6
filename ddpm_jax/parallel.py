"""Devices: which of them holds what, and how a program is compiled for all of them. The rest of the project knows of none."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddpm_jax import display
from ddpm_jax.errors import UserError
from ddpm_jax.launch import MIN_SHARD, ParallelConfig

AXIS = "data"
"""The mesh's axis: along it lie the examples of a batch, and with fsdp the shares of the state."""


@dataclass(frozen=True)
class Layout:
    """What lies where. Every device works on its share of each batch.

    A program is written for the whole batch and knows of no device: the compiler shares it out by where its arguments lie.
    """

    mesh: Mesh | None = None
    """All devices, along AXIS; None: one device, and nothing is spread."""
    mode: Literal["data", "fsdp", "pmap"] = "data"
    """data: whole state on every device; fsdp: shares of it; pmap: like data, by a program for one device."""
    min_shard: int = MIN_SHARD
    """With fsdp, tensors of fewer numbers are whole on every device."""

    def __repr__(self) -> str:
        return display.line(self, "one device" if self.mesh is None else f"{self.size} devices, {self.mode}")

    # Around programs ----------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many devices there are."""
        return 1 if self.mesh is None else self.mesh.size

    def rounded_up(self, batch_size: int) -> int:
        """The smallest batch from batch_size up that the devices divide."""
        return -(-batch_size // self.size) * self.size

    def abstract(self, tree: Any) -> Any:
        """Arrays, or shapes, as jax.ShapeDtypeStructs that say where they lie."""
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self._of_state(a)), tree)

    def place(self, tree: Any) -> Any:
        """A state, the same in every process, laid out on the devices."""
        if self.mesh is None:
            return tree

        def put(leaf: jax.Array) -> jax.Array:
            host, sharding = np.asarray(leaf), self._of_state(leaf)
            assert sharding is not None
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        return jax.tree.map(put, tree)

    def feed(self, batch: Any, *, axis: int = 0) -> Any:
        """A batch of which this process holds the examples `rows`, laid out on the devices; axis: that of the examples."""
        if self.mesh is None:
            return jax.device_put(batch)
        if self.mode == "pmap":  # which lays out what it is given
            return batch
        sharding = NamedSharding(self.mesh, P(*(None,) * axis, AXIS))
        return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, sharding), batch)

    def deal(self, batch: Any) -> Any:
        """A batch that every process holds whole, laid out on the devices."""
        if self.mode == "pmap" and self.mesh is not None:  # one process, whose programs are told where their batch lies
            return jax.device_put(batch, NamedSharding(self.mesh, P(AXIS)))
        rows = self.rows(len(jax.tree.leaves(batch)[0]))
        return self.feed(batch if rows is None else jax.tree.map(lambda a: a[rows], batch))

    def everywhere(self, tree: Any) -> Any:
        """Arrays that may lie in shares, whole on every device."""
        if self.mesh is None:
            return tree
        return jax.jit(lambda tree: tree, out_shardings=NamedSharding(self.mesh, P()))(tree)

    def rows(self, batch_size: int) -> np.ndarray | None:
        """Which examples of a batch the devices of this process work on, ascending; None: all of them."""
        if self.mesh is None or jax.process_count() == 1:
            return None
        whole = np.arange(batch_size)
        places = NamedSharding(self.mesh, P(AXIS)).addressable_devices_indices_map((batch_size,))
        return np.unique(np.concatenate([whole[index] for index in places.values()]))

    def host(self) -> contextlib.AbstractContextManager[Any]:
        """While entered, arrays are made in the host's memory: a state that is shared out may not fit one device."""
        return (
            contextlib.nullcontext() if self.mesh is None else jax.default_device(jax.local_devices(backend="cpu")[0])
        )

    def gather(self, array: Any) -> np.ndarray:
        """An array in the memory of every process."""
        if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
            from jax.experimental import multihost_utils

            return np.asarray(multihost_utils.process_allgather(array, tiled=True))
        return np.asarray(array)

    # Within programs ----------------------------------------------------------------------------------------------

    def brought_together(self, params: Any, dtype: Any = None) -> Any:
        """Parameters that may lie in shares, whole on every device to compute with; their gradients are put back into shares, in
        the dtype of the parameters.

        dtype: what is computed in, and moved; None: the dtype of the parameters.
        """
        return _gathered(params, self, dtype)

    def as_state(self, tree: Any) -> Any:
        """A state, or part of one, kept as `place` lays it out."""
        if self.mesh is None or self.mode == "pmap":
            return tree
        return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, self._of_state(a)), tree)

    def _constrained(self, tree: Any, spec: P) -> Any:
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, sharding), tree)

    def _of_state(self, leaf: Any) -> NamedSharding | None:
        """Along its largest dimension that the devices divide, with fsdp; whole otherwise."""
        if self.mesh is None:
            return None
        axes: list[str | None] = [None] * len(leaf.shape)
        divisible = [i for i, size in enumerate(leaf.shape) if size % self.size == 0]
        if self.mode == "fsdp" and divisible and np.prod(leaf.shape) >= self.min_shard:
            axes[max(divisible, key=lambda i: leaf.shape[i])] = AXIS
        return NamedSharding(self.mesh, P(*axes))


ALONE = Layout()
"""One device."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(params: Any, layout: Layout, dtype: Any) -> Any:
    if dtype is not None:
        # XLA would move the cast behind the gather, which would move twice the bytes
        params = jax.lax.optimization_barrier(layout.as_state(jax.tree.map(lambda a: a.astype(dtype), params)))
    return layout._constrained(params, P())


def _gathered_forward(params: Any, layout: Layout, dtype: Any) -> Any:
    return _gathered(params, layout, dtype), jax.tree.map(lambda a: jnp.zeros((), a.dtype), params)


def _gathered_backward(layout: Layout, dtype: Any, like: Any, grads: Any) -> Any:
    # with_sharding_constraint alone would have the gradients whole on every device as well
    return (jax.tree.map(lambda g, a: g.astype(a.dtype), layout.as_state(grads), like),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def layout_of(config: ParallelConfig, devices: Sequence[Any] | None = None) -> Layout:
    """The layout that a config asks for, of the devices of all processes, or of those given: programs can be compiled for devices
    that are only described.

    Raises:
        UserError: more devices than there are; pmap with several processes.
    """
    there = jax.devices() if devices is None else list(devices)
    count = config.devices or len(there)
    if count > len(there):
        raise UserError(
            f"parallel.devices must be at most {len(there)}, the {there[0].platform} devices here; got {count}."
        )
    if jax.process_count() > 1:
        if count != len(there):
            raise UserError(f"parallel.devices must be left out with several processes; got {count} of {len(there)}.")
        if config.mode == "pmap":
            raise UserError("--parallel pmap runs in one process; with several, use --parallel data or fsdp.")
    if count == 1 and devices is None:
        return ALONE
    mesh = jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=there[:count])
    return Layout(mesh, config.mode, config.min_shard)


def check_batch(layout: Layout, batch_size: int, accumulate: int = 1, examples: int | None = None) -> None:
    """Refuse a batch that cannot be shared out evenly; examples: how many the data has.

    Raises:
        UserError: fewer examples than devices; accumulate times the devices do not divide batch_size (says what would fit).
    """
    unit = accumulate * layout.size
    if batch_size % unit == 0:
        return
    parts = [f"{layout.size} devices"] * (layout.size > 1) + [f"train.accumulate = {accumulate}"] * (accumulate > 1)
    if examples is not None and examples < unit:
        raise UserError(
            f"the data's {examples} examples cannot be shared by {' times '.join(parts)}; use fewer, as by --parallel.devices."
        )
    below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
    most = max(n for n in range(1, layout.size + 1) if batch_size // accumulate % n == 0)
    fewer = f", or --parallel.devices {most}" if jax.process_count() == 1 else ""
    fitting = [size for size in (below, above) if 0 < size <= (examples or above)]
    raise UserError(
        f"train.batch_size must be a multiple of {unit} ({' times '.join(parts)}); got {batch_size}. "
        f"{' or '.join(map(str, fitting))} would fit{fewer}."
    )


def shared(update: Any, layout: Layout) -> Callable[..., Any]:
    """An update of a state, update(state, batch, key), as the devices of a layout share it: to be compiled.

    update: has pure `draw`, `gradients` and `apply`, and a field `gather`, as `training.update.Update`.
    """
    if layout.mesh is None:
        return update
    if layout.mode == "fsdp":
        update = dataclasses.replace(update, gather=functools.partial(layout.brought_together, dtype=update.dtype))
    gradients = _mapped(update.gradients, layout.mesh) if layout.mode == "pmap" else update.gradients

    def program(state: Any, batch: Any, key: jax.Array) -> Any:
        examples, chance = update.draw(state, batch, key)
        state, metrics = update.apply(state, examples, gradients(state, examples, chance))
        return layout.as_state(state), metrics

    return program


def _mapped(gradients: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """gradients(state, examples, chance) by jax.pmap: each device sees its share of the examples.

    Dropout has a key for each device. The losses are then those of all examples; gradients and statistics are means over the
    devices.
    """

    def on_one(index: jax.Array, state: Any, examples: Any, chance: Any) -> Any:
        chance = chance._replace(key=jax.random.fold_in(chance.key, index))
        losses, grads, statistics = gradients(state, examples, chance)
        return losses, *jax.lax.pmean((grads, statistics), AXIS)

    on_all = jax.pmap(
        on_one,
        axis_name=AXIS,
        in_axes=(0, None, 0, None),
        out_axes=(0, None, None),
        devices=tuple(mesh.devices.flat),
    )

    def on_shares(state: Any, examples: Any, chance: Any) -> Any:
        shares = jax.tree.map(lambda a: a.reshape(mesh.size, -1, *a.shape[1:]), examples)
        losses, grads, statistics = on_all(jnp.arange(mesh.size), state, shares, chance)
        return losses.reshape(-1), grads, statistics

    return on_shares
