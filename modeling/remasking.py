"""Samplers that take back what they have filled: visible tokens become masks again, or are replaced.

Shapes: B rows of a batch, R rows of a step, L positions.
"""

from dataclasses import dataclass

import torch

from .confidence import Score, take_best
from .masked_diffusion import reveal_probability
from .planners import Planner, check_range, counts_of, rounding_errors
from .samplers import TOKENS, Sampler, State, Step, reveal_times, same_time

# Smaller products of float64 are started anew
SMALL = 1e-200
MOST_SWEEPS = 10**6


@dataclass(frozen=True)
class ReMDM(Sampler):
    """`Ancestral` in which visible tokens become masks again with sigma_t, so that masks keep their marginals.

    ReMDM (arXiv 2503.00307): a token stays with 1 - sigma, and a mask is revealed with
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). sigma_max = min(1, (1 - alpha_s) / alpha_t);
    `cap`: sigma = min(eta, sigma_max), `rescale`: sigma = eta sigma_max. `loop`: as `cap`, and alpha stands still at
    `loop_alpha` inside the window, before which it rises from 0 and after which to 1, both along straight lines.

    Args:
        num_steps: T. remasking: cap, rescale or loop. eta: in [0, 1]; 0 is `Ancestral` (but for `loop`).
        remasking_window: tokens become masks again in steps that start at low < t <= high. All of them unless given,
            and (0.05, 0.55) for `loop`.
        loop_alpha: the share of tokens that are visible inside the window of `loop`.
    """

    num_steps: int = 128
    remasking: str = "cap"
    eta: float = 0.02
    remasking_window: tuple[float, float] | None = None
    loop_alpha: float = 0.9
    has_clock = True

    def __post_init__(self):
        if self.remasking not in ("cap", "rescale", "loop"):
            raise ValueError(f"remasking is {self.remasking!r}, but it must be cap, rescale or loop.")
        check_range("eta", self.eta, 0, 1)
        check_range("loop_alpha", self.loop_alpha, 0, 1 - 1e-9)
        low, high = self.window
        if not 0 <= low < high <= 1 or (self.remasking == "loop" and not 0 < low < high < 1):
            allowed = "0 < low < high < 1" if self.remasking == "loop" else "0 <= low < high <= 1"
            raise ValueError(f"remasking_window is {self.remasking_window!r}, but it must be (low, high), {allowed}.")

    @property
    def window(self) -> tuple[float, float]:
        """The times between which tokens become masks again."""
        if self.remasking_window is not None:
            return tuple(self.remasking_window)
        return (0.05, 0.55) if self.remasking == "loop" else (0.0, 1.0)

    def steps_in(self, free):
        return self.num_steps

    def steps(self, state, noise):
        """A mask stays while u < survival, the product of 1 - r over its steps; one that comes back starts anew."""
        free = state.free.cpu()
        all_rows = torch.arange(len(free), device="cpu")
        u = reveal_times(free, noise)
        masked, survival = free.clone(), 1.0
        for n in range(self.num_steps, 0, -1):
            alpha_s, alpha_t = self.alphas(n, state)
            sigma = self.sigma(alpha_s, alpha_t, n / self.num_steps)
            if sigma == 0 and survival == 1 - alpha_t:
                survival = 1 - alpha_s  # exactly, so that eta = 0 is `Ancestral`
            else:
                survival = survival * (1 - reveal_probability(alpha_s + sigma * alpha_t, alpha_t))
            revealed = masked & (u >= survival)
            if survival < SMALL:
                u = u / survival if survival > 0 else u
                survival = 1.0

            again = torch.zeros_like(free)
            if sigma > 0:
                visible = free & ~masked
                again = visible & (noise.per_position(all_rows, free) < sigma)
                u = torch.where(again, survival * noise.per_position(all_rows, free), u)
            masked = (masked & ~revealed) | again
            if bool(revealed.any() | again.any()):
                t = same_time(self.time(n, alpha_t, state), free)
                yield Step(t, revealed, mask_again=again, index=self.num_steps - n)

    def alphas(self, n: int, state: State) -> tuple[float, float]:
        """alpha at the end and at the start of step n."""
        times = torch.tensor([n - 1, n], dtype=torch.float64, device="cpu") / self.num_steps
        if self.remasking == "loop":
            return tuple(self.alpha_of_loop(t) for t in times.tolist())
        return tuple(state.schedule.alpha(times).tolist())

    def alpha_of_loop(self, t: float) -> float:
        """From 0 up to `loop_alpha`, which stands still inside the window, then up to 1."""
        low, high = self.window
        if t > high:
            return self.loop_alpha * (1 - t) / (1 - high)
        if t > low:
            return self.loop_alpha
        return 1 - (1 - self.loop_alpha) * t / low

    def time(self, n: int, alpha_t: float, state: State) -> float:
        """The time of step n for the networks: for `loop` the one at which as many masks are expected."""
        if self.remasking != "loop":
            return n / self.num_steps
        share = torch.tensor(1 - alpha_t, dtype=torch.float64, device="cpu")
        return float(state.schedule.time(share))

    def sigma(self, alpha_s: float, alpha_t: float, t: float) -> float:
        """The chance with which a visible token becomes a mask again."""
        low, high = self.window
        if not low < t <= high or alpha_t == 0:
            return 0.0
        most = min(1.0, (1 - alpha_s) / alpha_t)
        return self.eta * most if self.remasking == "rescale" else min(self.eta, most)


@dataclass(frozen=True)
class Gibbs(Sampler):
    """A corrector after another sampler: K of the filled positions become masks again and are drawn anew, n times over.

    Positions are picked at random, which leaves the distribution of a consistent denoiser as it is where K = 1 (random
    scan; Koh et al. 2024, arXiv 2411.06438, pick by entropy). An energy weighs these steps as any other. Every row has
    as many steps as it needs for itself.

    Args:
        base: the sampler that fills the masks. sweeps: how often every position is expected to be drawn anew.
        positions: K, for every step.
    """

    base: Sampler
    sweeps: float = 1.0
    positions: int = 1

    def __post_init__(self):
        check_range("corrector_sweeps", self.sweeps, 0, MOST_SWEEPS)
        check_range("corrector_positions", self.positions, 1, None)

    @property
    def sees(self):
        return self.base.sees

    @property
    def is_deterministic(self):
        return False

    def corrections(self, free: torch.Tensor) -> torch.Tensor:
        """How many steps (B,) the sweeps take in every row."""
        return torch.ceil(self.sweeps * free.sum(-1).double() / self.positions).long()

    def steps_in(self, free):
        corrections = self.corrections(free)
        return self.base.steps_in(free) + (int(corrections.max()) if len(corrections) else 0)

    def looks_at(self, state, rows):
        return self.base.looks_at(state, rows)

    def steps(self, state, noise):
        before = self.base.steps_in(state.free.cpu())
        yield from self.base.steps(state, noise)

        free = state.free.cpu()
        total = free.sum(-1)
        corrections = self.corrections(free)
        for n in range(int(corrections.max()) if len(free) else 0):
            rows = (n < corrections).nonzero().squeeze(-1)
            order = torch.full(free.shape, -torch.inf, dtype=torch.float64, device="cpu")
            order[rows] = torch.where(free[rows], noise.per_position(rows, free[rows]).cpu(), -torch.inf)
            picked = take_best(Score(order, torch.zeros_like(order)), total.clamp_max(self.positions))
            state.mask_again(picked)
            t = state.time_of(picked.sum(-1), total)
            yield Step(t, picked, index=before + n if self.base.has_clock else None)

    def reveal(self, step, proposal):
        return self.base.reveal(step, proposal)


@dataclass(frozen=True)
class Edit(Planner):
    """As `Threshold`, and a generated token is replaced where another one is drawn with p > `editing_threshold`.

    LLaDA2.1. It ends when no mask is left and no token has changed, or after T steps.

    Args:
        threshold: theta. editing_threshold: 0 < p <= 1. num_steps: T, at most.
    """

    threshold: float = 0.9
    editing_threshold: float = 0.9
    num_steps: int = 128
    sees = TOKENS

    def __post_init__(self):
        check_range("threshold", self.threshold, 0, 1)
        check_range("editing_threshold", self.editing_threshold, 0, 1)

    def steps_in(self, free):
        return self.num_steps

    def looks_at(self, state, rows):
        return state.free[rows]

    def steps(self, state, noise):
        total = state.free.sum(-1).cpu()
        active, before = total > 0, None
        for index in range(self.num_steps):
            left = state.masked.sum(-1).cpu()
            if before is not None:
                active = active & ((left > 0) | (state.ids != before).any(-1).cpu())
            if not bool(active.any()):
                return
            before = state.ids
            counts = self.share(left, index)
            yield Step(state.time_of(left, total), counts=counts, rows=active.nonzero().squeeze(-1), index=index)

    def reveal(self, step, proposal):
        masked = proposal.masked & proposal.at
        chance = torch.where(proposal.at, -proposal.nats(proposal.drawn), -torch.inf)
        hidden = torch.where(masked, chance, -torch.inf)
        counts = torch.minimum(counts_of(step, proposal), masked.sum(-1))
        errors = rounding_errors(chance)
        sure = masked & (chance.exp() >= self.threshold)
        revealed = sure | take_best(Score(hidden, errors), counts)
        changed = proposal.at & ~masked & (proposal.drawn != proposal.ids) & (chance.exp() > self.editing_threshold)
        return revealed | changed
