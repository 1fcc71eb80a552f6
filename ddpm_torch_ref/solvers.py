"""Solvers: whole trajectories x_T -> x_0 of methods that remember earlier steps, or look at the network twice in one.

All work on the levels alpha, sigma of a process, and on one of three clocks: lambda = log(alpha/sigma), tau = sigma/alpha, or,
on a straight path, t itself. A step leads from t to s < t. The times are a strictly descending grid that ends at the clean end.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import exp, expm1, inf, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm_torch_ref.processes import Estimate, FlowMatching, GaussianDiffusion, Predict, Process

Times = Sequence[float] | NDArray[np.int64] | NDArray[np.float64]
Noises = Sequence[Tensor] | Tensor
Trajectory = tuple[Tensor, list[Tensor]]


@torch.no_grad()
def dpmpp_2m(process: Process, predict: Predict, x_T: Tensor, times: Times, *, clip: float | None = None) -> Trajectory:
    """DPM-Solver++(2M): x_0 hat is carried along the line through its last two values, in lambda.

    The first step and one to sigma = 0 are of first order, which is DDIM.

    Args:
        process: turns the network's output into the pair (x_0, eps).
        predict: the network, (x_t, process.network_time(t)) -> output, t of shape (B,).
        x_T: (B, C, H, W) or (B, D) standard normal.
        times: n + 1 times, strictly descending, the last one process.clean_end.
        clip: clip x_0 to [-clip, clip] at every evaluation and recompute eps from it; None leaves both.

    Returns:
        The images, and the list of all n + 1 states from x_T to them.

    Raises:
        ValueError: times that do not descend strictly, or do not end at the clean end.

    Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", algorithm 2.
    """
    return _dpmpp_2m(process, predict, x_T, times, None, clip)


@torch.no_grad()
def dpmpp_2m_sde(
    process: Process, predict: Predict, x_T: Tensor, times: Times, noises: Noises, *, clip: float | None = None
) -> Trajectory:
    """SDE-DPM-Solver++(2M): the reverse stochastic equation, with x_0 hat extrapolated as in dpmpp_2m.

    Args:
        process: see dpmpp_2m.
        predict: see dpmpp_2m.
        x_T: see dpmpp_2m.
        times: see dpmpp_2m.
        noises: noises[i], of x_T's shape, is the noise of step i; the last step takes none.
        clip: see dpmpp_2m.

    Returns:
        The images, and the list of all n + 1 states from x_T to them.

    Raises:
        ValueError: see dpmpp_2m.

    Lu et al. 2022, "DPM-Solver++", the section on solvers of the diffusion SDE.
    """
    return _dpmpp_2m(process, predict, x_T, times, noises, clip)


@torch.no_grad()
def dpmpp_3m(process: Process, predict: Predict, x_T: Tensor, times: Times, *, clip: float | None = None) -> Trajectory:
    """DPM-Solver++(3M): x_0 hat is carried along by its last three values, in lambda.

    The first step is of first order, the second that of dpmpp_2m, and one to sigma = 0 of first order. D2 is h^2 times the second
    derivative, twice a divided difference; without that 2, as in the authors' code and in the libraries, the order is 2, not 3.

    Args:
        process: see dpmpp_2m.
        predict: see dpmpp_2m.
        x_T: see dpmpp_2m.
        times: see dpmpp_2m.
        clip: see dpmpp_2m.

    Returns:
        The images, and the list of all n + 1 states from x_T to them.

    Raises:
        ValueError: see dpmpp_2m.

    Lu et al. 2022, "DPM-Solver++", section 4: the multistep update of order 3.
    """
    times = _checked(process, times)
    x_t, states = x_T, [x_T]
    m1, m2, h_prev, h_prevprev = None, None, None, None
    for t, s in pairwise(times):
        (_, sigma_t), (alpha_s, sigma_s) = process.level(t), process.level(s)
        h = _log_ratio(process, s) - _log_ratio(process, t)
        m0 = _estimate(process, predict, x_t, t, clip).x_0
        phi1 = expm1(-h)
        if m1 is None or m2 is None or h_prev is None or h_prevprev is None or sigma_s == 0:
            D = _extrapolated(m0, m1, h, h_prev, sigma_s)
            x_t = sigma_s / sigma_t * x_t - alpha_s * phi1 * D
        else:
            phi2 = phi1 / h + 1
            phi3 = phi2 / h - 0.5
            r0, r1 = h_prev / h, h_prevprev / h
            # An infinite r, after a first time with alpha = 0, makes the terms it divides vanish.
            D1_0, D1_1 = (m0 - m1) / r0, (m1 - m2) / r1
            D1 = D1_0 + r0 / (r0 + r1) * (D1_0 - D1_1)
            D2 = 2 * (D1_0 - D1_1) / (r0 + r1)
            x_t = sigma_s / sigma_t * x_t - alpha_s * phi1 * m0 + alpha_s * phi2 * D1 - alpha_s * phi3 * D2
        m2, m1, h_prevprev, h_prev = m1, m0, h_prev, h
        states.append(x_t)
    return x_t, states


@torch.no_grad()
def unipc(process: Process, predict: Predict, x_T: Tensor, times: Times, *, clip: float | None = None) -> Trajectory:
    """UniPC-2 of the data, B_2(h) = e^-h - 1: a step by UniP-2, corrected by UniC-2 once the network has seen its arrival.

    The corrector needs no evaluation of its own: the next step's serves, made at the predicted state. The last arrival, the
    clean end, has none and stays uncorrected. The first predictor and corrector are of first order, and so is a predictor to
    sigma = 0.

    Args:
        process: see dpmpp_2m.
        predict: see dpmpp_2m.
        x_T: see dpmpp_2m.
        times: see dpmpp_2m.
        clip: see dpmpp_2m.

    Returns:
        The images, and the list of all n + 1 states from x_T to them, each as predicted, before its correction.

    Raises:
        ValueError: see dpmpp_2m.

    Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", algorithms 1 and 2, in
    their form for data prediction.
    """
    times = _checked(process, times)
    x_t, states = x_T, [x_T]
    m0 = _estimate(process, predict, x_t, times[0], clip).x_0
    m1, h_prev = None, None
    for t, s in pairwise(times):
        (_, sigma_t), (alpha_s, sigma_s) = process.level(t), process.level(s)
        h = _log_ratio(process, s) - _log_ratio(process, t)
        B = expm1(-h)
        first_order = sigma_s / sigma_t * x_t - alpha_s * expm1(-h) * m0
        # In units of h from t, the state before lies at r < 0, and s at 1. An infinite r makes D1 vanish.
        D1, r = None, -inf
        if m1 is not None and h_prev is not None and sigma_s != 0:
            r = -h_prev / h
            D1 = (m1 - m0) / r

        predicted = first_order if D1 is None else first_order - alpha_s * B * 0.5 * D1
        states.append(predicted)
        x_t = predicted
        if s == process.clean_end:
            break

        m_s = _estimate(process, predict, predicted, s, clip).x_0
        if D1 is None:
            x_t = first_order - alpha_s * B * 0.5 * (m_s - m0)
        else:
            # rho1 + rho2 = b1 and r rho1 + rho2 = b2, by hand, as r may be infinite: then rho1 = 0.
            phi2 = expm1(-h) / -h - 1
            phi3 = phi2 / -h - 0.5
            b1, b2 = phi2 / B, 2 * phi3 / B
            rho1 = (b1 - b2) / (1 - r)
            rho2 = b1 - rho1
            x_t = first_order - alpha_s * B * (rho1 * D1 + rho2 * (m_s - m0))
        m1, m0, h_prev = m0, m_s, h
    return x_t, states


@torch.no_grad()
def euler(process: Process, predict: Predict, x_T: Tensor, times: Times, *, clip: float | None = None) -> Trajectory:
    """Euler's method: dy/dtau = eps for y = x/alpha; on a straight path dx/dt = eps - x_0.

    Args:
        process: see dpmpp_2m. A Gaussian diffusion's levels have alpha > 0.
        predict: see dpmpp_2m.
        x_T: see dpmpp_2m.
        times: see dpmpp_2m.
        clip: see dpmpp_2m.

    Returns:
        The images, and the list of all n + 1 states from x_T to them.

    Raises:
        ValueError: see dpmpp_2m; or a Gaussian diffusion's first alpha is 0, where tau is infinite.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", table 1; on a straight path
    Liu et al. 2023, "Flow Straight and Fast", and Heitz et al. 2023, "Iterative alpha-(de)Blending", algorithm 4.
    """
    times = _checked(process, times)
    x_t, states = x_T, [x_T]
    for t, s in pairwise(times):
        x_0, eps, _ = _estimate(process, predict, x_t, t, clip)
        if isinstance(process, FlowMatching):
            x_t = x_t + (s - t) * (eps - x_0)
        else:
            y = x_t / _alpha(process, t) + (_tau(process, s) - _tau(process, t)) * eps
            x_t = _alpha(process, s) * y
        states.append(x_t)
    return x_t, states


@torch.no_grad()
def midpoint(
    process: FlowMatching, predict: Predict, x_T: Tensor, times: Times, *, clip: float | None = None
) -> Trajectory:
    """The midpoint rule on a straight path: the velocity is taken half-way between t and s.

    Args:
        process: FlowMatching or AlphaBlending.
        predict: see dpmpp_2m.
        x_T: see dpmpp_2m.
        times: see dpmpp_2m.
        clip: see dpmpp_2m.

    Returns:
        The images, and the list of all n + 1 states from x_T to them.

    Raises:
        ValueError: see dpmpp_2m; or a process that has no time between two of its times.

    Runge 1895; of second order.
    """
    if not isinstance(process, FlowMatching):
        raise ValueError(
            f"process must be FlowMatching or AlphaBlending, whose times are real; got {type(process).__name__}."
        )
    times = _checked(process, times)
    x_t, states = x_T, [x_T]
    for t, s in pairwise(times):
        x_0, eps, _ = _estimate(process, predict, x_t, t, clip)
        x_middle = x_t + (s - t) / 2 * (eps - x_0)
        x_0, eps, _ = _estimate(process, predict, x_middle, (t + s) / 2, clip)
        x_t = x_t + (s - t) * (eps - x_0)
        states.append(x_t)
    return x_t, states


@torch.no_grad()
def heun(
    process: Process,
    predict: Predict,
    x_T: Tensor,
    times: Times,
    *,
    clip: float | None = None,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = inf,
    churn_noise: float = 1.0,
    noises: Noises | None = None,
) -> Trajectory:
    """Heun's method: the mean of the slopes at both ends of a step; the step to the clean end is Euler's.

    With churn, each step first goes back up to tau hat = tau (1 + gamma) by fresh noise, gamma = min(churn/n, sqrt(2) - 1) where
    churn_min <= tau <= churn_max. The network being trained on a chain, tau hat is rounded, in log tau, to that of a valid time no
    earlier than t: churn that is smaller than half a step of the chain does nothing.

    Args:
        process: see dpmpp_2m. A Gaussian diffusion's levels have alpha > 0.
        predict: see dpmpp_2m.
        x_T: see dpmpp_2m.
        times: see dpmpp_2m.
        clip: see dpmpp_2m.
        churn: at least 0; on a straight path 0.
        churn_min: in units of tau.
        churn_max: in units of tau.
        churn_noise: standard deviation of the noise, 1 or a little more.
        noises: with churn, noises[i], of x_T's shape, is the noise that precedes step i, the last one included.

    Returns:
        The images, and the list of all n + 1 states from x_T to them, each before its churn.

    Raises:
        ValueError: see dpmpp_2m; a Gaussian diffusion's first alpha is 0, where tau is infinite; churn < 0, churn on a straight
            path, or churn without noises.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 2.
    """
    times = _checked(process, times)
    if not churn >= 0:
        raise ValueError(f"churn must be at least 0; got {churn}.")
    if churn > 0 and noises is None:
        raise ValueError(f"noises must be given with churn = {churn}; got None.")
    if isinstance(process, FlowMatching):
        if churn > 0:
            raise ValueError(f"churn must be 0 on a straight path, where tau may be infinite; got {churn}.")
        return _heun_straight(process, predict, x_T, times, clip)

    x_t, states = x_T, [x_T]
    num_steps = len(times) - 1
    for i, (t, s) in enumerate(pairwise(times)):
        tau, tau_s = _tau(process, t), _tau(process, s)
        y = x_t / _alpha(process, t)
        t_hat = t
        if churn > 0 and noises is not None and churn_min <= tau <= churn_max:
            gamma = min(churn / num_steps, sqrt(2) - 1)
            t_hat = _nearest_later(process, t, tau * (1 + gamma))
        tau_hat = _tau(process, t_hat)
        if t_hat > t and noises is not None:
            y = y + churn_noise * sqrt(tau_hat**2 - tau**2) * noises[i]

        slope = _estimate(process, predict, _alpha(process, t_hat) * y, t_hat, clip).eps
        y_s = y + (tau_s - tau_hat) * slope
        if s != process.clean_end:
            slope_s = _estimate(process, predict, _alpha(process, s) * y_s, s, clip).eps
            y_s = y + (tau_s - tau_hat) * (slope + slope_s) / 2
        x_t = _alpha(process, s) * y_s
        states.append(x_t)
    return x_t, states


@torch.no_grad()
def euler_ancestral(
    process: GaussianDiffusion,
    predict: Predict,
    x_T: Tensor,
    times: Times,
    noises: Noises,
    *,
    clip: float | None = None,
) -> Trajectory:
    """Euler's method in tau down to tau_down, below tau_s, and noise of tau_up from there, tau_down^2 + tau_up^2 = tau_s^2.

    Args:
        process: see dpmpp_2m; a Gaussian diffusion whose levels have alpha > 0.
        predict: see dpmpp_2m.
        x_T: see dpmpp_2m.
        times: see dpmpp_2m.
        noises: noises[i], of x_T's shape, is the noise of step i; the last step takes none.
        clip: see dpmpp_2m.

    Returns:
        The images, and the list of all n + 1 states from x_T to them.

    Raises:
        ValueError: see dpmpp_2m; or the first alpha is 0, where tau is infinite.

    Crowson, k-diffusion, sample_euler_ancestral; with its tau_up this is Ho et al. 2020, algorithm 2, with the posterior variance.
    """
    times = _checked(process, times)
    x_t, states = x_T, [x_T]
    for i, (t, s) in enumerate(pairwise(times)):
        tau, tau_s = _tau(process, t), _tau(process, s)
        tau_up = sqrt(tau_s**2 * (tau**2 - tau_s**2) / tau**2)
        tau_down = sqrt(tau_s**2 - tau_up**2)
        eps = _estimate(process, predict, x_t, t, clip).eps
        y = x_t / _alpha(process, t) + (tau_down - tau) * eps
        if i < len(times) - 2:
            y = y + tau_up * noises[i]
        x_t = _alpha(process, s) * y
        states.append(x_t)
    return x_t, states


@torch.no_grad()
def ddim_inversion(process: Process, predict: Predict, x_0: Tensor, times: Times) -> Trajectory:
    """DDIM's deterministic step run upwards, from images to the noise that it makes them of.

    Each step takes the network at the time that it leaves, so that inversion and sampling undo each other in the limit of small
    steps only. A chain's network knows no clean end: there it is asked for eps at the first valid t.

    Args:
        process: see dpmpp_2m.
        predict: see dpmpp_2m.
        x_0: (B, C, H, W) or (B, D) data.
        times: see dpmpp_2m: the grid to sample with, descending; it is run from its end to its beginning.

    Returns:
        x_T, and the list of all n + 1 states from x_0 to it.

    Raises:
        ValueError: see dpmpp_2m.

    Song et al. 2021, "Denoising Diffusion Implicit Models", section 4.3.
    """
    times = _checked(process, times)[::-1]
    x_t, states = x_0, [x_0]
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.level(t), process.level(s)
        asked = max(t, process.schedule.first) if isinstance(process, GaussianDiffusion) else t
        eps = _estimate(process, predict, x_t, asked).eps
        x_t = alpha_s * (x_t - sigma_t * eps) / alpha_t + sigma_s * eps
        states.append(x_t)
    return x_t, states


def _estimate(process: Process, predict: Predict, x_t: Tensor, t: float, clip: float | None = None) -> Estimate:
    """The network's estimate at one time for the whole batch, clipped."""
    dtype = torch.int64 if isinstance(process, GaussianDiffusion) else x_t.dtype
    t_batch = torch.full((len(x_t),), t, dtype=dtype, device=x_t.device)
    estimate = process.estimate(x_t, predict(x_t, process.network_time(t_batch)), t_batch)
    if clip is None:
        return estimate
    x_0 = estimate.x_0.clamp(-clip, clip)
    return Estimate(x_0, process.eps_given_x_0(x_t, x_0, t_batch))


def _dpmpp_2m(
    process: Process, predict: Predict, x_T: Tensor, times: Times, noises: Noises | None, clip: float | None
) -> Trajectory:
    """The second-order solver of the flow, or, with noises, of the stochastic equation."""
    times = _checked(process, times)
    x_t, states = x_T, [x_T]
    m1, h_prev = None, None
    for i, (t, s) in enumerate(pairwise(times)):
        (_, sigma_t), (alpha_s, sigma_s) = process.level(t), process.level(s)
        h = _log_ratio(process, s) - _log_ratio(process, t)
        m0 = _estimate(process, predict, x_t, t, clip).x_0
        D = _extrapolated(m0, m1, h, h_prev, sigma_s)
        if noises is None:
            x_t = sigma_s / sigma_t * x_t - alpha_s * expm1(-h) * D
        else:
            x_t = sigma_s / sigma_t * exp(-h) * x_t - alpha_s * expm1(-2 * h) * D
            if i < len(times) - 2:
                x_t = x_t + sigma_s * sqrt(-expm1(-2 * h)) * noises[i]
        m1, h_prev = m0, h
        states.append(x_t)
    return x_t, states


def _extrapolated(m0: Tensor, m1: Tensor | None, h: float, h_prev: float | None, sigma_s: float) -> Tensor:
    """x_0 hat half a step ahead, on the line through its last two values (DPM-Solver++, algorithm 2)."""
    if m1 is None or h_prev is None or sigma_s == 0:
        return m0
    r = h_prev / h
    return (1 + 1 / (2 * r)) * m0 - 1 / (2 * r) * m1


def _heun_straight(
    process: FlowMatching, predict: Predict, x_T: Tensor, times: list[float], clip: float | None
) -> Trajectory:
    x_t, states = x_T, [x_T]
    for t, s in pairwise(times):
        x_0, eps, _ = _estimate(process, predict, x_t, t, clip)
        velocity = eps - x_0
        x_s = x_t + (s - t) * velocity
        if s != process.clean_end:
            x_0, eps, _ = _estimate(process, predict, x_s, s, clip)
            x_s = x_t + (s - t) * (velocity + eps - x_0) / 2
        x_t = x_s
        states.append(x_t)
    return x_t, states


def _log_ratio(process: Process, t: float) -> float:
    """lambda = log(alpha/sigma), -inf where there is only noise, inf where there is none."""
    alpha, sigma = process.level(t)
    if alpha == 0:
        return -inf
    return log(alpha / sigma) if sigma > 0 else inf


def _alpha(process: Process, t: float) -> float:
    return process.level(t)[0]


def _tau(process: Process, t: float) -> float:
    """sigma/alpha."""
    alpha, sigma = process.level(t)
    if alpha == 0:
        raise ValueError(f"times must have alpha above 0 for a solver in sigma/alpha; got {t}, where it is 0.")
    return sigma / alpha


def _nearest_later(process: GaussianDiffusion, t: float, tau: float) -> int:
    """The valid time, not below t, whose log tau is nearest to that of tau; the smaller of two as near."""
    candidates = [int(later) for later in process.schedule.timesteps if later >= t and process.level(later)[0] > 0]
    return min(candidates, key=lambda later: abs(log(_tau(process, later)) - log(tau)))


def _checked(process: Process, times: Times) -> list[float]:
    """The times as numbers of Python, which compute in double precision."""
    grid = np.asarray(times).tolist()
    if len(grid) < 2 or any(s >= t for t, s in pairwise(grid)):
        raise ValueError(f"times must be at least two and strictly descending; got {grid}.")
    if grid[-1] != process.clean_end:
        raise ValueError(f"times must end at the clean end, {process.clean_end}; got {grid[-1]}.")
    return grid
