"""Samplers that mask visible tokens again, or replace them.

Shapes: B rows of a batch, R rows of a step, L positions.
"""

from dataclasses import dataclass

import torch

from .chain_state import State
from .confidence import Score, take_best
from .masked_diffusion import reveal_probability
from .planners import Planner, check_range, counts_of, rounding_errors
from .samplers import TOKENS, Sampler, Step, reveal_times, same_time

# Smaller products of float64 are started anew
SMALL = 1e-200
MOST_SWEEPS = 10**6


@dataclass(frozen=True)
class ReMDM(Sampler):
    """`Ancestral` in which visible tokens become masks again with the chance sigma_t.

    ReMDM (arXiv 2503.00307): a token stays with 1 - sigma, and a mask is revealed with
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), so that masks keep their marginals. With
    sigma_max = min(1, (1 - alpha_s) / alpha_t):

    cap: sigma = min(eta, sigma_max).
    rescale: sigma = eta sigma_max.
    loop: as `cap`, and alpha stands still at `loop_alpha` inside the window. Before the window it
        rises from 0, and after it to 1, both along straight lines.

    Args:
        num_steps: T.
        remasking: cap, rescale or loop.
        eta: in [0, 1]. With 0 this is `Ancestral` (but for `loop`).
        remasking_window: tokens become masks again in steps that start at low < t <= high. All of
            them unless given, and (0.05, 0.55) for `loop`.
        loop_alpha: the share of tokens that are visible inside the window of `loop`.
    """

    num_steps: int = 128
    remasking: str = "cap"
    eta: float = 0.02
    remasking_window: tuple[float, float] | None = None
    loop_alpha: float = 0.9
    has_clock = True
    revises = True

    def __post_init__(self):
        if self.remasking not in ("cap", "rescale", "loop"):
            raise ValueError(f"remasking is {self.remasking!r}, but it must be cap, rescale or loop.")
        check_range("eta", self.eta, 0, 1)
        check_range("loop_alpha", self.loop_alpha, 0, 1 - 1e-9)

        low, high = self.window
        fits = 0 <= low < high <= 1
        allowed = "0 <= low < high <= 1"
        if self.remasking == "loop":
            fits = 0 < low < high < 1
            allowed = "0 < low < high < 1"
        if not fits:
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
        """A mask stays while u < survival, the product of 1 - r over the steps it has been through.

        A token that becomes a mask again starts anew, with survival times a uniform as its u.
        """
        free = state.free.cpu()
        all_rows = torch.arange(len(free), device="cpu")
        masked = free.clone()
        u = reveal_times(free, noise)
        survival = 1.0

        for n in range(self.num_steps, 0, -1):
            # 1. S, with the chance r = (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)
            alpha_s, alpha_t = self.alphas(n, state)
            sigma = self.sigma(alpha_s, alpha_t, n / self.num_steps)
            if sigma == 0 and survival == 1 - alpha_t:
                # Exactly, so that eta = 0 is `Ancestral`
                survival = 1 - alpha_s
            else:
                r = reveal_probability(alpha_s + sigma * alpha_t, alpha_t)
                survival = survival * (1 - r)
            revealed = masked & (u >= survival)

            # Only the ratio of u and survival matters: start anew before it underflows
            if survival < SMALL:
                if survival > 0:
                    u = u / survival
                survival = 1.0

            # 2. The tokens that become masks again, with the chance sigma
            again = torch.zeros_like(free)
            if sigma > 0:
                visible = free & ~masked
                coins = noise.per_position(all_rows, free)
                again = visible & (coins < sigma)
                fresh = noise.per_position(all_rows, free)
                u = torch.where(again, survival * fresh, u)

            # 3. Steps that do nothing are left out
            masked = (masked & ~revealed) | again
            if bool(revealed.any() | again.any()):
                t = same_time(self.time(n, alpha_t, state), free)
                index = self.num_steps - n
                yield Step(t, reveal=revealed, mask_again=again, index=index)

    def alphas(self, n: int, state: State) -> tuple[float, float]:
        """alpha at the end and at the start of step n."""
        numbers = torch.tensor([n - 1, n], dtype=torch.float64, device="cpu")
        s_and_t = numbers / self.num_steps
        if self.remasking == "loop":
            return tuple(self.alpha_of_loop(time) for time in s_and_t.tolist())
        return tuple(state.schedule.alpha(s_and_t).tolist())

    def alpha_of_loop(self, t: float) -> float:
        """From 0 up to `loop_alpha`, which stands still inside the window, then up to 1."""
        # Time runs from 1 to 0: before, inside and after the window
        low, high = self.window
        if t > high:
            return self.loop_alpha * (1 - t) / (1 - high)
        if t > low:
            return self.loop_alpha
        return 1 - (1 - self.loop_alpha) * t / low

    def time(self, n: int, alpha_t: float, state: State) -> float:
        """The time of step n for the networks.

        For `loop` it is the time at which the schedule of the model expects as many masks.
        """
        if self.remasking != "loop":
            return n / self.num_steps
        share = torch.tensor(1 - alpha_t, dtype=torch.float64, device="cpu")
        return float(state.schedule.time(share))

    def sigma(self, alpha_s: float, alpha_t: float, t: float) -> float:
        """The chance with which a visible token becomes a mask again."""
        low, high = self.window
        if not low < t <= high or alpha_t == 0:
            return 0.0

        # Beyond sigma_max the chance with which masks are revealed would exceed 1
        sigma_max = min(1.0, (1 - alpha_s) / alpha_t)
        if self.remasking == "rescale":
            return self.eta * sigma_max
        return min(self.eta, sigma_max)


@dataclass(frozen=True)
class Gibbs(Sampler):
    """A corrector after another sampler: K filled positions are drawn anew, many times over.

    Positions are picked at random, which leaves the distribution of a consistent denoiser as it is
    where K = 1 (random scan; Koh et al. 2024, arXiv 2411.06438, pick by entropy). An energy weighs
    these steps as any other.

    Args:
        base: the sampler that fills the masks.
        sweeps: how often every position is expected to be drawn anew.
        positions: K, for every step.
    """

    base: Sampler
    sweeps: float = 1.0
    positions: int = 1
    revises = True

    def __post_init__(self):
        check_range("corrector_sweeps", self.sweeps, 0, MOST_SWEEPS)
        check_range("corrector_positions", self.positions, 1, None)

    @property
    def sees(self):
        return self.base.sees

    @property
    def is_deterministic(self):
        return False

    def corrections(self, free: torch.Tensor) -> torch.LongTensor:
        """How many steps (B,) the sweeps take in every row."""
        # ceil(sweeps |M| / K)
        num_masks = free.sum(-1).double()
        num_steps = self.sweeps * num_masks / self.positions
        return torch.ceil(num_steps).long()

    def steps_in(self, free):
        return self.base.steps_in(free) + self.most_corrections(free)

    def most_corrections(self, free: torch.Tensor) -> int:
        """How many steps the sweeps take in the row with the most of them."""
        if not len(free):
            return 0
        return int(self.corrections(free).max())

    def looks_at(self, state, rows):
        return self.base.looks_at(state, rows)

    def steps(self, state, noise):
        steps_before = 0
        for number, step in enumerate(self.base.steps(state, noise)):
            yield step
            steps_before = 1 + (number if step.index is None else step.index)
        if self.base.has_clock:
            steps_before = self.base.steps_in(state.free.cpu())

        free = state.free.cpu()
        total = free.sum(-1)
        corrections = self.corrections(free)
        most = self.most_corrections(free)
        for n in range(most):
            # (B, L) random priorities in the rows that go on, and the K positions with the highest
            rows = (n < corrections).nonzero().squeeze(-1)
            free_of_rows = free[rows]
            uniforms = noise.per_position(rows, free_of_rows).cpu()
            priorities = torch.full(free.shape, -torch.inf, dtype=torch.float64, device="cpu")
            priorities[rows] = torch.where(free_of_rows, uniforms, -torch.inf)
            score = Score(priorities, errors=torch.zeros_like(priorities))
            picked = take_best(score, total.clamp_max(self.positions))

            # They become masks, which the step reveals
            state.mask_again(picked)
            t = state.time_of(picked.sum(-1), total)
            yield Step(t, reveal=picked, index=steps_before + n)

    def reveal(self, step, proposal):
        return self.base.reveal(step, proposal)


@dataclass(frozen=True)
class Edit(Planner):
    """As `Threshold`, and a generated token is replaced where another one is likely enough.

    LLaDA2.1: the token that is drawn at a visible position takes its place if its probability is
    above `editing_threshold`. The chain ends when no mask is left and no token has changed, or
    after T steps.

    Args:
        threshold: theta.
        editing_threshold: 0 < p <= 1.
        num_steps: T, at most.
    """

    threshold: float = 0.9
    editing_threshold: float = 0.9
    num_steps: int = 128
    sees = TOKENS
    revises = True

    def __post_init__(self):
        check_range("threshold", self.threshold, 0, 1)
        check_range("editing_threshold", self.editing_threshold, 0, 1)

    def steps_in(self, free):
        return self.num_steps

    def looks_at(self, state, rows):
        return state.free[rows]

    def steps(self, state, noise):
        total = state.free.sum(-1).cpu()
        active = total > 0  # (B,)
        ids_before = None

        for index in range(self.num_steps):
            # Rows (B,) with masks, or with tokens that the last step has changed
            left = state.masked.sum(-1).cpu()
            if ids_before is not None:
                has_changed = (state.ids != ids_before).any(-1).cpu()
                active = active & ((left > 0) | has_changed)
            if not bool(active.any()):
                return

            ids_before = state.ids
            rows = active.nonzero().squeeze(-1)
            counts = self.share(left, index)
            t = state.time_of(left, total)
            yield Step(t, counts=counts, rows=rows, index=index)

    def reveal(self, step, proposal):
        # (R, L) log p and p of the drawn tokens
        log_probs = -proposal.nats(proposal.drawn)
        log_probs = torch.where(proposal.at, log_probs, -torch.inf)
        probs = log_probs.exp()

        # 1. Masks: all that are sure enough, and the K surest
        masked = proposal.masked & proposal.at
        sure = masked & (probs >= self.threshold)
        counts = torch.minimum(counts_of(step, proposal), masked.sum(-1))
        of_masks = torch.where(masked, log_probs, -torch.inf)
        score = Score(of_masks, rounding_errors(log_probs))
        surest = take_best(score, counts)

        # 2. Tokens that another one replaces
        visible = proposal.at & ~masked
        differs = proposal.drawn != proposal.ids
        replaced = visible & differs & (probs > self.editing_threshold)
        return sure | surest | replaced
