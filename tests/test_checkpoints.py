"""ddpm_jax.training.checkpoints: what is saved comes back, bit for bit, or is refused by name."""

import errno
import json
import os
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from run_checks import assert_same_bits

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


def test_round_trip(tmp_path):
    """Every leaf with its dtype, into arrays or into shapes alone; the newest unless a step is named."""
    states = {step: state_of(step=step, seed=step) for step in (3, 7)}
    with Checkpoints(tmp_path / "c", keep=5) as checkpoints:
        for state in states.values():
            checkpoints.save(state)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step == 7
        assert_same_bits(checkpoints.restore(state_of()), states[7])
        assert_same_bits(checkpoints.restore(jax.eval_shape(state_of), step=3), states[3])


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
        assert_same_bits(checkpoints.restore(first), first)


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
        assert_same_bits(checkpoints.restore(jax.eval_shape(lambda: state_of(2000, 1000))), twin)


# Damage, and the checkpoint before it ------------------------------------------------------------------------------


def saved(folder, *steps, keep=9, **options):
    with Checkpoints(folder, keep=keep, **options) as checkpoints:
        for step in steps:
            checkpoints.save(state_of(step=step, seed=step))
    return folder


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def test_one_flipped_bit_anywhere_is_found_and_the_one_before_is_used(tmp_path):
    """In each of the files in turn, the manifest too; the file is named, or the manifest said to be damaged."""
    folder = saved(tmp_path / "c", 3, 7)
    files = sorted(path for path in (folder / "7").rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) > 5
    rng = np.random.default_rng(0)
    for path in files:
        whole = bytearray(path.read_bytes())
        whole[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        healthy = path.read_bytes()
        path.write_bytes(whole)
        named = "step 7 in .*" if path.name == "manifest.json" else f"step 7 in .*{path.relative_to(folder / '7')}"
        with Checkpoints(folder) as checkpoints:
            with pytest.warns(UserWarning, match=f"{named}.* Going back to step 3"):
                assert_same_bits(checkpoints.restore(state_of()), state_of(step=3, seed=3))
            with pytest.raises(UserError, match=named):
                checkpoints.restore(state_of(), step=7)
        path.write_bytes(healthy)
    with Checkpoints(folder) as checkpoints:
        assert_same_bits(checkpoints.restore(state_of()), state_of(step=7, seed=7))


@pytest.mark.parametrize("what", ["manifest.json", "_CHECKPOINT_METADATA", "state/_METADATA", "state", "more"])
def test_missing_and_strange_files_are_found(tmp_path, what):
    folder = saved(tmp_path / "c", 3, 7)
    path = folder / "7" / what
    if what == "more":
        path.write_text("was not there")
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with Checkpoints(folder) as checkpoints, pytest.warns(UserWarning, match=f"step 7 .*{what}.*step 3"):
        assert int(checkpoints.restore(state_of()).step) == 3


def test_all_damaged(tmp_path):
    """Each is named."""
    folder = saved(tmp_path / "c", 3, 7)
    for step in (3, 7):
        (folder / str(step) / "manifest.json").write_text("{")
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(UserError, match=r"step 7 .*damaged.*step 3 .*damaged"),
    ):
        checkpoints.restore(state_of())


def test_a_damaged_one_is_replaced_when_its_step_comes_again(tmp_path):
    """It does not count among the newest that are kept, so that the sound ones stay."""
    folder = saved(tmp_path / "c", 3, 7)
    (folder / "7" / "manifest.json").write_text("{")
    with Checkpoints(folder, keep=2) as checkpoints:
        with pytest.warns(UserWarning, match="step 7"):
            checkpoints.restore(state_of())
        checkpoints.save(state_of(step=5, seed=5))
        checkpoints.wait()
        assert steps_in(folder) == [3, 5, 7]
        checkpoints.save(state_of(step=7, seed=8))
    assert steps_in(folder) == [5, 7]
    with Checkpoints(folder) as checkpoints:
        assert_same_bits(checkpoints.restore(state_of()), state_of(step=7, seed=8))


def test_what_a_killed_run_left_is_cleared_away_by_the_next(tmp_path):
    """Half written, or half deleted; a reader leaves it alone and does not see it."""
    folder = saved(tmp_path / "c", 3)
    for name in ("7.partial", "8.partial.orbax-checkpoint-tmp", "2.deleted", "9.orbax-checkpoint-tmp-12"):
        shutil.copytree(folder / "3", folder / name)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps == [3] and checkpoints.latest_step == 3
    assert len(list(folder.iterdir())) == 5
    with Checkpoints(folder, keep=1):
        pass
    assert steps_in(folder) == [3]


def test_some_are_kept_for_good(tmp_path):
    folder = saved(tmp_path / "c", 2, 4, 6, 8, 10, 11, keep=2, keep_every=4)
    assert steps_in(folder) == [4, 8, 10, 11]


# Versions --------------------------------------------------------------------------------------------------------


def as_format_1(checkpoint):
    """What Orbax itself writes: no manifest, and no format among its metadata."""
    (checkpoint / "manifest.json").unlink()
    path = checkpoint / "_CHECKPOINT_METADATA"
    tree = json.loads(path.read_text())
    assert tree.pop("custom_metadata") == {"format": 2}
    path.write_text(json.dumps(tree | {"custom_metadata": {}}))


def test_checkpoints_of_before_manifests_are_read(tmp_path):
    """Those that are damaged so that Orbax notices are passed over too."""
    folder = saved(tmp_path / "c", 3, 7)
    for step in (3, 7):
        as_format_1(folder / str(step))
    with Checkpoints(folder) as checkpoints:
        assert_same_bits(checkpoints.restore(state_of()), state_of(step=7, seed=7))
    shutil.rmtree(folder / "7" / "state")
    with Checkpoints(folder) as checkpoints, pytest.warns(UserWarning, match="step 7 .* Going back to step 3"):
        assert_same_bits(checkpoints.restore(state_of()), state_of(step=3, seed=3))


def test_a_format_of_later_is_refused_by_its_number(tmp_path):
    folder = saved(tmp_path / "c", 3)
    path = folder / "3" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match=r"format 9; .* reads formats 1 and 2"):
        checkpoints.restore(state_of())


# Disks -----------------------------------------------------------------------------------------------------------


@contextmanager
def largest_file(size):
    """Writing more than so many bytes to a file fails in this process as on a full disk, for C++ too (EFBIG)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_fails_in_the_background_is_told_and_costs_nothing(tmp_path):
    """At the next save, when waited for and on leaving; nothing half-written stays, and with room again all goes on."""
    folder = saved(tmp_path / "c", 3)
    message = r"step 7 in .* cannot be written: File too large\. Those of the steps 3 are untouched"
    big = replace(state_of(300, 300, step=7), params={"noise": jax.random.normal(jax.random.key(0), (300, 300))})
    for notice in ("save", "wait", "leave"):
        with largest_file(50_000):
            if notice == "leave":
                with pytest.raises(UserError, match=message), Checkpoints(folder, keep=1) as checkpoints:
                    checkpoints.save(big)
            else:
                with Checkpoints(folder, keep=1) as checkpoints:
                    checkpoints.save(big)
                    with pytest.raises(UserError, match=message):
                        checkpoints.wait() if notice == "wait" else checkpoints.save(replace(big, step=jnp.int32(8)))
        assert steps_in(folder) == [3]
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(big)
    assert steps_in(folder) == [7]


@pytest.mark.parametrize("call", ["os.rename", "pathlib.Path.write_text"])
def test_a_disk_that_is_full_at_the_last_moment(tmp_path, monkeypatch, call):
    folder = saved(tmp_path / "c", 3)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpoints(folder, keep=1) as checkpoints:
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"step 7 .*No space left on device"):
            patch.setattr(call, full)
            checkpoints.save(state_of(step=7))
            checkpoints.wait()
        assert steps_in(folder) == [3]
        checkpoints.save(state_of(step=9))
    assert steps_in(folder) == [9]


def test_an_error_that_is_under_way_is_not_hidden_by_a_full_disk(tmp_path):
    with largest_file(50), pytest.warns(UserWarning, match="File too large"), pytest.raises(KeyError, match="first"):  # noqa: SIM117
        with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
            checkpoints.save(state_of(step=7))
            raise KeyError("first")


def test_a_place_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "c", tmp_path / "file"):
        with pytest.raises(UserError, match="cannot be written"):
            Checkpoints(folder, keep=1)
