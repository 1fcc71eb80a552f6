"""What a sampler is: options, a grid of times, a pure step down one row of it, and what it remembers."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ddpm_jax import display
from ddpm_jax.denoisers import Denoiser
from ddpm_jax.errors import UserError
from ddpm_jax.named import Named
from ddpm_jax.processes import Estimate, GaussianDiffusion, Level, Process
from ddpm_jax.samplers import grids


class Stepped(NamedTuple):
    """Where a step leads."""

    x: Float[Array, "b *shape"]
    """x_s."""
    hat: Estimate
    """What the denoiser said last, which a self-conditioned network is given next."""
    memory: Any = ()
    """What the next step is to be given, of the structure that `Sampler.init` made."""
    shown: Float[Array, "b *shape"] | None = None
    """What a frame shows; None: x."""

    def __repr__(self) -> str:
        return display.of_fields(self)


class Walked(NamedTuple):
    """Where a walk leads."""

    x_0: Float[Array, "b *shape"]
    """The samples."""
    frames: Float[Array, "k b *shape"]
    """States evenly spaced over the walk, the starting noise first and the samples last."""
    num_steps: Int[Array, "b"]
    """How many steps each sample took."""
    broke: Int[Array, "b"]
    """After how many steps a sample first held NaN or infinity; -1: never."""

    def __repr__(self) -> str:
        return display.of_fields(self)


class Sampler(Named, abc.ABC, family="sampler"):
    """A method of sampling: `@dataclass(frozen=True) class DDIM(Sampler, name="ddim")`, whose fields are its options.

    A subclass defines `step`. spacing: the grid of GRIDS that it walks on a chain unless told otherwise.
    """

    spacing: ClassVar[str] = "even"

    def misfit(self, process: Process) -> str:
        """Why it does not fit a process; empty: it does."""
        return ""

    def grid(self, process: Process, num_steps: int | None = None, spacing: Any = None) -> np.ndarray:
        """Its grid: a row (t, s) for each step, from the noisiest time to the clean end.

        num_steps: None for the whole chain. spacing: one of GRIDS, or times of one's own, (num_steps + 1,) descending; None: the
        sampler's own on a chain, even on a straight path.

        Raises:
            UserError: a process that it does not fit (says which samplers do), num_steps out of range, or an unknown spacing.
        """
        if reason := self.misfit(process):
            fitting = ", ".join(name for name, kind in self.members.items() if not kind().misfit(process))
            raise UserError(f"{reason} Samplers that fit: {fitting}.")
        if spacing is None:
            spacing = self.spacing if isinstance(process, GaussianDiffusion) else "even"
        return grids.rows(grids.times(process, num_steps, spacing))

    def init(self, x_T: Float[Array, "b *shape"]) -> Any:
        """Its memory at the start of a walk: a pytree, () where it has none."""
        return ()

    @abc.abstractmethod
    def step(self, denoise: Denoiser, x_t: Float[Array, "b *shape"], times: Any, noise: Any, memory: Any) -> Stepped:
        """x_t -> x_s. times: a row of its grid, traced. noise: of the shape of x_t, zeros in the last step."""

    def walk(
        self,
        denoise: Denoiser,
        x_T: Float[Array, "b *shape"],
        noise: Callable[[jax.Array], jax.Array],
        grid: Any,
        num_frames: int = 0,
    ) -> Walked:
        """Walk x_T down a grid as one lax.scan; traceable.

        noise(i): that of the i-th step, of the shape of x_T; the last step takes none. num_frames: how many states to keep.
        """
        num_steps = len(grid)
        grid = jnp.asarray(grid, jnp.int32 if jnp.issubdtype(grid.dtype, jnp.integer) else x_T.dtype)
        frames = jnp.zeros((num_frames, *x_T.shape), x_T.dtype)
        slots = np.full(num_steps, num_frames)  # where the state after each step is kept; past the end: nowhere
        if num_frames:
            frames = frames.at[0].set(x_T)
            slots[frame_steps(num_steps, num_frames)[1:] - 1] = np.arange(1, num_frames)
        guess = jnp.zeros_like(x_T) if denoise.self_conditioned else None

        def body(carry: Any, xs: Any) -> tuple[Any, None]:
            x_t, frames, memory, guess, broke = carry
            index, times, slot = xs
            z = jnp.where(index < num_steps - 1, noise(index), 0)
            x_s, hat, memory, shown = self.step(denoise.given(guess), x_t, times, z, memory)
            x_s = x_s.astype(x_T.dtype)
            if num_frames:
                kept = x_s if shown is None else shown.astype(x_T.dtype)
                frames = frames.at[slot].set(kept, mode="drop")
            guess = None if guess is None else hat.x_0.astype(x_T.dtype)
            broke = jnp.where((broke < 0) & ~finite(x_s), index + 1, broke)
            return (x_s, frames, memory, guess, broke), None

        start = (x_T, frames, self.init(x_T), guess, jnp.where(finite(x_T), -1, 0))
        (x_0, frames, _, _, broke), _ = jax.lax.scan(body, start, (jnp.arange(num_steps), grid, jnp.asarray(slots)))
        return Walked(x_0, frames, jnp.full_like(broke, num_steps), broke)

    def failure(self, bad: str, first: int, grid: np.ndarray, remedies: list[str]) -> str:
        """What to say of samples that are not finite since the first step that is named."""
        if first == 0:
            since, remedies = "what the walk starts from", ["data that is finite"]
        else:
            since = f"step {first} of {len(grid)} (t = {grid[first - 1, 0]:g})"
            last = "more steps or another sampler" if first > 1 else "other weights: these may be damaged"
            remedies = [*remedies, last]
        return f"{bad} samples hold NaN or infinity, the first since {since}. Try {', or '.join(remedies)}."


SAMPLERS: dict[str, type[Sampler]] = Sampler.members
"""Every sampler by name."""


def finite(x: Float[Array, "b *shape"]) -> Bool[Array, "b"]:
    """Whether each example is finite throughout."""
    return jnp.isfinite(x).all(tuple(range(1, x.ndim)))


def frame_steps(num_steps: int, num_frames: int) -> np.ndarray:
    """After how many steps each frame is taken: evenly spaced from 0 to num_steps."""
    return np.round(np.linspace(0, num_steps, num_frames)).astype(int)


def levels(process: Process, times: Any, like: Float[Array, "b *shape"]) -> tuple[Level, ...]:
    """The levels of each time of a row, which broadcast against `like`."""
    return tuple(process.level(time[None], like) for time in times)
