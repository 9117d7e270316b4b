"""Masked diffusion as pure functions: noise schedules, the reverse posterior, SUBS log-probabilities, draws.

Nothing here knows a network. Shapes: B rows, L positions, V vocabulary (mask token included), k candidates.
Times t lie in [0, 1]; alpha_t is the probability that a token is still visible at time t, and sigma = -log alpha_t is
the total noise that a time-conditioned network is given.
"""

import math
from dataclasses import dataclass

import torch

# ------------------------------------------------------------------------------------------------ noise schedules


@dataclass(frozen=True)
class NoiseSchedule:
    """A noise schedule of the forward process q(x_t | x_0): every token is masked with probability 1 - alpha_t.

    `total(t)` and `rate(t)` are sigma(t) and its derivative exactly as published (MDLM, arXiv 2406.07524, with its
    `eps` that keeps sigma(1) finite). `alpha(t)` is what sampling and bounds use: it is exact at both ends,
    alpha_0 = 1 and alpha_1 = 0.
    """

    def total(self, t: torch.Tensor) -> torch.Tensor:
        """sigma(t), the total noise; same shape as `t`."""
        raise NotImplementedError

    def rate(self, t: torch.Tensor) -> torch.Tensor:
        """d sigma / dt; same shape as `t`."""
        raise NotImplementedError

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """Probability that a token is visible at time t; same shape as `t`."""
        alpha = torch.exp(-self.total(t))
        return torch.where(t <= 0, torch.ones_like(alpha), torch.where(t >= 1, torch.zeros_like(alpha), alpha))

    def check_reaches_full_mask(self) -> None:
        """Raise ValueError unless (almost) every token is masked at t = 1, which sampling starts from."""
        visible = math.exp(-float(self.total(torch.ones((), dtype=torch.float64))))
        if visible > 0.01:
            raise ValueError(
                f"{self} leaves a share of {visible:.3f} of the tokens visible at t = 1, but sampling starts from an "
                "all-masked sequence (at most 0.01 is allowed). Use loglinear, cosine or cosinesqr, or raise sigma_max."
            )


@dataclass(frozen=True)
class LogLinear(NoiseSchedule):
    """sigma(t) = -log(1 - (1 - eps) t), alpha_t = 1 - t: the schedule of MDLM and EDLM."""

    eps: float = 1e-3

    def total(self, t):
        return -torch.log1p(-(1 - self.eps) * t)

    def rate(self, t):
        return (1 - self.eps) / (1 - (1 - self.eps) * t)

    def alpha(self, t):
        return 1 - t

    def importance_time(self, u: torch.Tensor) -> torch.Tensor:
        """Map uniform `u` in [0, 1] to times whose density is proportional to the weight of the bound."""
        sigma = _importance_sigma(u, self.eps, -math.log(self.eps))
        return -torch.expm1(-sigma) / (1 - self.eps)


@dataclass(frozen=True)
class Cosine(NoiseSchedule):
    """sigma(t) = -log(eps + (1 - eps) cos(pi t / 2)), alpha_t = cos(pi t / 2)."""

    eps: float = 1e-3

    def total(self, t):
        return -torch.log(self.eps + (1 - self.eps) * torch.cos(t * math.pi / 2))

    def rate(self, t):
        angle = t * math.pi / 2
        return (1 - self.eps) * (math.pi / 2) * torch.sin(angle) / (self.eps + (1 - self.eps) * torch.cos(angle))

    def alpha(self, t):
        return torch.cos(t * math.pi / 2).clamp_min(0)


@dataclass(frozen=True)
class CosineSquared(NoiseSchedule):
    """sigma(t) = -log(eps + (1 - eps) cos^2(pi t / 2)), alpha_t = cos^2(pi t / 2)."""

    eps: float = 1e-3

    def total(self, t):
        return -torch.log(self.eps + (1 - self.eps) * torch.cos(t * math.pi / 2) ** 2)

    def rate(self, t):
        cos = torch.cos(t * math.pi / 2)
        return (1 - self.eps) * (math.pi / 2) * torch.sin(t * math.pi) / (self.eps + (1 - self.eps) * cos**2)

    def alpha(self, t):
        return torch.cos(t * math.pi / 2) ** 2


@dataclass(frozen=True)
class Geometric(NoiseSchedule):
    """sigma(t) = sigma_min^(1 - t) sigma_max^t."""

    sigma_min: float = 1e-3
    sigma_max: float = 1.0

    def total(self, t):
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def rate(self, t):
        return self.total(t) * (math.log(self.sigma_max) - math.log(self.sigma_min))


@dataclass(frozen=True)
class Linear(NoiseSchedule):
    """sigma(t) = sigma_min + t (sigma_max - sigma_min)."""

    sigma_min: float = 1e-3
    sigma_max: float = 7.0

    def total(self, t):
        return self.sigma_min + t * (self.sigma_max - self.sigma_min)

    def rate(self, t):
        return torch.full_like(t, self.sigma_max - self.sigma_min)

    def importance_time(self, u: torch.Tensor) -> torch.Tensor:
        """Map uniform `u` in [0, 1] to times whose density is proportional to the weight of the bound."""
        return (_importance_sigma(u, self.sigma_min, self.sigma_max) - self.sigma_min) / (
            self.sigma_max - self.sigma_min
        )


def _importance_sigma(u: torch.Tensor, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """sigma with log(1 - exp(-sigma)) uniform between its values at sigma_min (u = 0) and sigma_max (u = 1)."""
    low, high = math.log(-math.expm1(-sigma_min)), math.log(-math.expm1(-sigma_max))
    return -torch.log(-torch.expm1(u * high + (1 - u) * low))


SCHEDULES = {
    "loglinear": LogLinear,
    "cosine": Cosine,
    "cosinesqr": CosineSquared,
    "geometric": Geometric,
    "linear": Linear,
}


def canonical_schedule_name(name: str) -> str:
    """The published name of a schedule: `log-linear` -> `loglinear`, `cosine_squared` -> `cosinesqr`.

    Raises:
        ValueError: no such schedule.
    """
    canonical = str(name).lower().replace("-", "").replace("_", "").replace(" ", "")
    canonical = {"cosinesquared": "cosinesqr"}.get(canonical, canonical)
    if canonical not in SCHEDULES:
        raise ValueError(f"noise_schedule is {name!r}, but it must be one of {', '.join(SCHEDULES)}.")
    return canonical


def make_schedule(name: str, **params) -> NoiseSchedule:
    """The noise schedule called `name` with its parameters (`eps`, or `sigma_min` and `sigma_max`).

    Raises:
        ValueError: unknown name or parameter, or parameters out of range.
    """
    schedule_class = SCHEDULES[canonical_schedule_name(name)]
    allowed = schedule_class.__dataclass_fields__
    for key in params:
        if key not in allowed:
            raise ValueError(f"noise_schedule_params has {key!r}, but {name} takes only {', '.join(allowed)}.")
    schedule = schedule_class(**params)
    if "eps" in allowed and not 0 < schedule.eps < 1:
        raise ValueError(f"eps is {schedule.eps}, but it must lie strictly between 0 and 1.")
    if "sigma_min" in allowed and not 0 < schedule.sigma_min < schedule.sigma_max:
        raise ValueError(
            f"sigma_min={schedule.sigma_min} and sigma_max={schedule.sigma_max}: 0 < sigma_min < sigma_max is needed."
        )
    return schedule


# --------------------------------------------------------------------------------------------- SUBS log-probabilities


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32 if it has a lower precision, else unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def token_log_probs(logits: torch.Tensor, mask_token_id: int) -> torch.Tensor:
    """log p_theta(. | x_t) at masked positions: the mask token gets probability zero (zero masking probability).

    Args:
        logits: (..., V) raw network output.

    Returns:
        (..., V), at least float32; -inf at the mask token.
    """
    logits = at_least_float32(logits)
    is_mask = torch.arange(logits.shape[-1], device=logits.device) == mask_token_id
    return logits.masked_fill(is_mask, -torch.inf).log_softmax(-1)


def subs_log_probs(logits: torch.Tensor, noisy_ids: torch.Tensor, mask_token_id: int) -> torch.Tensor:
    """The SUBS parameterisation at every position: `token_log_probs` where masked, the visible token carried over.

    Args:
        logits: (B, L, V). noisy_ids: (B, L).

    Returns:
        (B, L, V) log-probabilities, at least float32.
    """
    log_probs = token_log_probs(logits, mask_token_id)
    carried = torch.full_like(log_probs, -torch.inf).scatter_(-1, noisy_ids.unsqueeze(-1), 0)
    return torch.where((noisy_ids == mask_token_id).unsqueeze(-1), log_probs, carried)


def subs_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, noisy_ids: torch.Tensor | None, mask_token_id: int
) -> torch.Tensor:
    """Mean of -log p(label) under SUBS over the positions with `labels != -100`, in nats per token.

    A visible token has probability one: it adds nothing when it equals its label, and makes the loss infinite when it
    does not. Without `noisy_ids` every labelled position counts as masked.

    Args:
        logits: (B, L, V). labels: (B, L) with -100 where nothing is to be predicted. noisy_ids: (B, L) or None.
    """
    counted = labels != -100
    targets = labels.clamp_min(0)
    losses = -token_log_probs(logits, mask_token_id).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if noisy_ids is not None:
        carried = torch.where(targets == noisy_ids, 0.0, torch.inf).to(losses.dtype)
        losses = torch.where(noisy_ids == mask_token_id, losses, carried)
    return torch.where(counted, losses, 0).sum() / counted.sum().clamp_min(1)


# ------------------------------------------------------------------------------------- reverse posterior and its draws


def reveal_probability(alpha_s: torch.Tensor, alpha_t: torch.Tensor) -> torch.Tensor:
    """r = (alpha_s - alpha_t) / (1 - alpha_t): the chance that a masked position is revealed between t and s < t."""
    return (alpha_s - alpha_t) / (1 - alpha_t)


def draw_reveal_set(
    masked: torch.Tensor, probability: float | torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draw S, the positions revealed in this step; given x_t it does not depend on x_0, so it can be drawn first.

    Args:
        masked: (B, L) bool, the set M(x_t). probability: r of `reveal_probability`, scalar or (B, 1).

    Returns:
        (B, L) bool, a subset of `masked`.
    """
    return masked & (uniform(masked.shape, masked.device, generator) < probability)


def uniform(shape, device: torch.device, generator: torch.Generator | None = None) -> torch.Tensor:
    """float64 uniforms on [0, 1) on `device`; a generator of another device draws on its own."""
    source = generator.device if generator is not None else device
    if source.type == "mps":  # no float64 there: draw on the CPU with a seed taken from the device's generator
        seed = torch.randint(2**31 - 1, (), device=source, generator=generator).item()
        source, generator = torch.device("cpu"), torch.Generator().manual_seed(seed)
    draws = torch.rand(shape, dtype=torch.float64, device=source, generator=generator)
    return draws if device.type == "mps" else draws.to(device)


def draw_tokens(
    log_probs: torch.Tensor, num_candidates: int = 1, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Independent categorical draws by inverse CDF with float64 uniforms; one CDF serves all candidates.

    float32 Gumbel noise would cut off every event rarer than 2^-24 and so lower the entropy of large vocabularies.

    Args:
        log_probs: (N, V), need not be normalised; -inf is never drawn.

    Returns:
        (N, num_candidates) token ids.

    Raises:
        ValueError: a row has no finite entry, or a NaN.
    """
    device = log_probs.device
    work = log_probs.cpu() if device.type == "mps" else log_probs
    cdf = work.double().softmax(-1).cumsum(-1)
    total = cdf[:, -1:]
    if not bool((total > 0).all()):
        raise ValueError(
            "A row of proposal log-probabilities has no finite entry: a filter removed every token, or NaN."
        )
    u = uniform((len(cdf), num_candidates), work.device, generator)
    # The first index whose CDF exceeds a point strictly below the total: never an entry of probability zero.
    point = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, point, right=True).to(device)


__all__ = [
    "NoiseSchedule",
    "SCHEDULES",
    "canonical_schedule_name",
    "make_schedule",
    "at_least_float32",
    "token_log_probs",
    "subs_log_probs",
    "subs_cross_entropy",
    "reveal_probability",
    "draw_reveal_set",
    "draw_tokens",
    "uniform",
]
