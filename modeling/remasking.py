"""Samplers that take back what they have filled: visible tokens become masks again, or are replaced.

Shapes: B rows of a batch, R rows of a step, L positions.
"""

from dataclasses import dataclass
from numbers import Real

import torch

from .confidence import Score, take_best
from .masked_diffusion import reveal_probability
from .planners import Planner, check_range, counts_of, rounding_errors
from .samplers import TOKENS, Sampler, State, Step, most_masks, reveal_times, same_time

MOST_SWEEPS = 10**6


@dataclass(frozen=True)
class ReMDM(Sampler):
    """`Ancestral` in which visible tokens become masks again with sigma_t, so that masks keep their marginals.

    ReMDM (arXiv 2503.00307): a token stays with 1 - sigma, and a mask is revealed with
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). sigma_max = min(1, (1 - alpha_s) / alpha_t);
    `cap`: sigma = min(eta, sigma_max), `rescale`: sigma = eta sigma_max.

    Args:
        num_steps: T. remasking: cap or rescale. eta: in [0, 1]; 0 is `Ancestral`.
        remasking_window: the times (low, high) at which tokens may become masks again.
    """

    num_steps: int = 128
    remasking: str = "cap"
    eta: float = 0.02
    remasking_window: tuple[float, float] = (0.0, 1.0)
    has_clock = True

    def __post_init__(self):
        if self.remasking not in ("cap", "rescale"):
            raise ValueError(f"remasking is {self.remasking!r}, but it must be cap or rescale.")
        check_range("eta", self.eta, 0, 1)
        window = self.remasking_window
        are_times = len(window) == 2 and all(isinstance(time, Real) for time in window)
        if not are_times or not 0 <= window[0] <= window[1] <= 1:
            raise ValueError(f"remasking_window is {window!r}, but it must be a pair with 0 <= t_low <= t_high <= 1.")

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

            again = torch.zeros_like(free)
            if sigma > 0:
                visible = free & ~masked
                again = visible & (noise.per_position(all_rows, free) < sigma)
                u = torch.where(again, survival * noise.per_position(all_rows, free), u)
            masked = (masked & ~revealed) | again
            if bool(revealed.any() | again.any()):
                t = same_time(n / self.num_steps, free)
                yield Step(t, revealed, mask_again=again, index=self.num_steps - n)

    def alphas(self, n: int, state: State) -> tuple[float, float]:
        """alpha at the end and at the start of step n."""
        times = torch.tensor([n - 1, n], dtype=torch.float64, device="cpu") / self.num_steps
        alpha_s, alpha_t = state.schedule.alpha(times).tolist()
        return alpha_s, alpha_t

    def sigma(self, alpha_s: float, alpha_t: float, t: float) -> float:
        """The chance with which a visible token becomes a mask again."""
        low, high = self.remasking_window
        if not low <= t <= high or alpha_t == 0:
            return 0.0
        most = min(1.0, (1 - alpha_s) / alpha_t)
        return min(self.eta, most) if self.remasking == "cap" else self.eta * most


@dataclass(frozen=True)
class Gibbs(Sampler):
    """A corrector after another sampler: K of the filled positions become masks again and are drawn anew, n times over.

    Positions are picked at random, which leaves the distribution of a consistent denoiser as it is (random scan;
    Koh et al. 2024, arXiv 2411.06438, pick by entropy). An energy weighs these steps as any other.

    Args:
        base: the sampler that fills the masks. sweeps: how often every position is expected to be drawn anew.
        positions: K, for every step.
    """

    base: Sampler
    sweeps: float = 1.0
    positions: int = 1
    is_deterministic = False

    def __post_init__(self):
        check_range("corrector_sweeps", self.sweeps, 0, MOST_SWEEPS)
        check_range("corrector_positions", self.positions, 1, None)

    @property
    def sees(self):
        return self.base.sees

    def corrections(self, free: torch.Tensor) -> int:
        """How many steps the sweeps take."""
        return int(-(-self.sweeps * most_masks(free) // self.positions))

    def steps_in(self, free):
        return self.base.steps_in(free) + self.corrections(free)

    def steps(self, state, noise):
        yield from self.base.steps(state, noise)
        free = state.free.cpu()
        total = free.sum(-1)
        first = self.base.steps_in(free)
        all_rows = torch.arange(len(free), device="cpu")
        for n in range(self.corrections(free)):
            order = torch.where(free, noise.per_position(all_rows, free), -torch.inf)
            picked = take_best(Score(order, torch.zeros_like(order)), total.clamp_max(self.positions))
            state.mask_again(picked)
            yield Step(state.time_of(picked.sum(-1), total), picked, index=first + n)

    def reveal(self, step, proposal):
        return Sampler.reveal(self, step, proposal) if step.reveal is not None else self.base.reveal(step, proposal)


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
