"""ddpm_jax.training.checkpoints: what is saved comes back, bit for bit, or is refused by name."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ddpm_jax.errors import UserError
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.state import create_state


class Table(nnx.Module):
    """One matrix; nothing is computed with it here."""

    def __init__(self, rows, columns, *, rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (rows, columns)))


def state_of(rows=3, columns=2, *, step=0, seed=0):
    """A state whose moments and average are not zero and differ from the parameters."""
    state = create_state(Table(rows, columns, rngs=nnx.Rngs(seed)), optax.adam(1e-3))
    number = iter(range(1000))
    moved = jax.tree.map(lambda leaf: leaf + next(number), state)
    return replace(moved, step=jnp.int32(step))


def leaves(state):
    return [np.array(leaf) for leaf in jax.tree.leaves(state)]


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_round_trip(tmp_path):
    """Every leaf with its dtype, into arrays or into shapes alone; the newest unless a step is named."""
    states = {step: state_of(step=step, seed=step) for step in (3, 7)}
    with Checkpoints(tmp_path / "c", keep=5) as checkpoints:
        for state in states.values():
            checkpoints.save(state)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step == 7
        assert_same(checkpoints.restore(state_of()), states[7])
        assert_same(checkpoints.restore(jax.eval_shape(state_of), step=3), states[3])


def test_the_newest_n_are_kept(tmp_path):
    """Saved faster than they are written: none of them is left out because the one before is still under way."""
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step in (1, 2, 5, 9):
            checkpoints.save(state_of(step=step))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["5", "9"]


def test_a_step_that_is_there_stays(tmp_path):
    first, second = state_of(step=4, seed=1), state_of(step=4, seed=2)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        checkpoints.save(first)
        checkpoints.save(second)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert_same(checkpoints.restore(first), first)


def test_reading_deletes_nothing(tmp_path):
    """`ddpm sample` opens the checkpoints of a run that may still be training: all of them stay, half-written ones too."""
    with Checkpoints(tmp_path / "c", keep=9) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_of(step=step))
    shutil.copytree(tmp_path / "c" / "3", tmp_path / "c" / "4.orbax-checkpoint-tmp-1")
    before = sorted(path.name for path in (tmp_path / "c").iterdir())
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step == 3
        checkpoints.restore(state_of())
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == before


def test_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        assert checkpoints.latest_step is None
        with pytest.raises(UserError, match="holds no checkpoint"):
            checkpoints.restore(state_of())
        checkpoints.save(state_of(step=1))
        with pytest.raises(UserError, match="step 2"):
            checkpoints.restore(state_of(), step=2)


@pytest.mark.parametrize("shape", [(3, 3), (4, 2)])
def test_a_state_of_another_shape_is_refused(tmp_path, shape):
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        checkpoints.save(state_of(step=1))
        with pytest.raises(UserError, match="step 1"):
            checkpoints.restore(state_of(*shape))


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    """Every file of it below `d`, where the numbers are, is cut short or deleted."""
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        checkpoints.save(state_of(300, 20, step=1))
    files = [path for path in (tmp_path / "c" / "1").rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(UserError, match="step 1"):
        checkpoints.restore(state_of(300, 20))


def test_donation_does_not_reach_what_is_being_written(tmp_path):
    """A saved state is given away at once and its successors overwritten; the file holds what they held at the save."""
    saved, twin = state_of(2000, 1000, step=1), state_of(2000, 1000, step=1)
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 2 + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        checkpoints.save(saved)
        later = state = step(saved)  # jax itself spares what Orbax looks at
        for _ in range(20):
            state = step(state)
        jax.block_until_ready(state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(later))
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert_same(checkpoints.restore(jax.eval_shape(lambda: state_of(2000, 1000))), twin)
