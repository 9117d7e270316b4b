"""Masked diffusion as pure functions: schedules, SUBS, the reverse posterior and draws.

Nothing here knows a network. Shapes: B rows, L positions, V vocabulary (mask token included), k
draws. Times t lie in [0, 1]. alpha_t is the probability that a token is still visible at time t,
and sigma = -log alpha_t is the total noise, the input of a network that is conditioned on time.
The formulas stand in docs/mathematics.md, sections 1 to 4.
"""

import math
from dataclasses import dataclass
from numbers import Real

import torch

from .devices import has_float64, send

# Their place in 0.1.0
from .importance_weights import effective_sample_size, importance_weights  # noqa: F401

HALVINGS = 60  # of [0, 1]: finer than float64
MOST_VISIBLE = 0.01  # share of the tokens at t = 1, where sampling starts


@dataclass(frozen=True)
class NoiseSchedule:
    """A schedule of the forward process q(x_t | x_0), which masks a token with chance 1 - alpha_t.

    `total(t)` and `rate(t)` are sigma(t) and its derivative exactly as published (MDLM, arXiv
    2406.07524, with its `eps` that keeps sigma(1) finite). `alpha(t)` is for sampling and bounds:
    it is exact at both ends, alpha_0 = 1 and alpha_1 = 0.
    """

    def total(self, t: torch.Tensor) -> torch.Tensor:
        """sigma(t), the total noise, in the shape of `t`."""
        raise NotImplementedError

    def rate(self, t: torch.Tensor) -> torch.Tensor:
        """d sigma / dt in the shape of `t`."""
        raise NotImplementedError

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """Probability that a token is visible at time t, in the shape of `t`."""
        # exp(-sigma) alone would leave some tokens visible at t = 1
        alpha = torch.exp(-self.total(t))
        alpha = torch.where(t >= 1, torch.zeros_like(alpha), alpha)
        return torch.where(t <= 0, torch.ones_like(alpha), alpha)

    def time(self, masked: torch.Tensor) -> torch.Tensor:
        """The time t at which a share `masked` = 1 - alpha_t of the tokens is masked."""
        low = torch.zeros_like(masked)
        high = torch.ones_like(masked)

        # Bisection, since 1 - alpha_t grows with t
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            too_early = 1 - self.alpha(middle) < masked
            low = torch.where(too_early, middle, low)
            high = torch.where(too_early, high, middle)

        return (low + high) / 2

    def check_reaches_full_mask(self) -> None:
        """Raise ValueError unless (almost) every token is masked at t = 1, the start of sampling."""
        end = torch.ones((), dtype=torch.float64, device="cpu")
        visible = math.exp(-float(self.total(end)))
        if visible > MOST_VISIBLE:
            raise ValueError(
                f"{self} leaves a share of {visible:.3f} of the tokens visible at t = 1, but "
                "sampling starts from an all-masked sequence (at most 0.01 is allowed). Use "
                "loglinear, cosine or cosinesqr, or raise sigma_max."
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

    def time(self, masked):
        return masked

    def importance_time(self, u: torch.Tensor) -> torch.Tensor:
        """Times with a density proportional to the weight of the bound, from uniforms in [0, 1]."""
        sigma = importance_sigma(u, self.eps, -math.log(self.eps))

        # t from 1 - exp(-sigma) = (1 - eps) t
        return -torch.expm1(-sigma) / (1 - self.eps)


@dataclass(frozen=True)
class Cosine(NoiseSchedule):
    """sigma(t) = -log(eps + (1 - eps) cos(pi t / 2)), alpha_t = cos(pi t / 2)."""

    eps: float = 1e-3

    def total(self, t):
        cos = torch.cos(t * math.pi / 2)
        return -torch.log(self.eps + (1 - self.eps) * cos)

    def rate(self, t):
        # d/dt cos(pi t / 2) = -(pi / 2) sin(pi t / 2)
        angle = t * math.pi / 2
        slope = (1 - self.eps) * (math.pi / 2) * torch.sin(angle)
        visible = self.eps + (1 - self.eps) * torch.cos(angle)
        return slope / visible

    def alpha(self, t):
        return torch.cos(t * math.pi / 2).clamp_min(0)


@dataclass(frozen=True)
class CosineSquared(NoiseSchedule):
    """sigma(t) = -log(eps + (1 - eps) cos^2(pi t / 2)), alpha_t = cos^2(pi t / 2)."""

    eps: float = 1e-3

    def total(self, t):
        cos = torch.cos(t * math.pi / 2)
        return -torch.log(self.eps + (1 - self.eps) * cos**2)

    def rate(self, t):
        # d/dt cos^2(pi t / 2) = -(pi / 2) sin(pi t)
        cos = torch.cos(t * math.pi / 2)
        slope = (1 - self.eps) * (math.pi / 2) * torch.sin(t * math.pi)
        visible = self.eps + (1 - self.eps) * cos**2
        return slope / visible

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
        log_ratio = math.log(self.sigma_max) - math.log(self.sigma_min)
        return self.total(t) * log_ratio


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
        """Times with a density proportional to the weight of the bound, from uniforms in [0, 1]."""
        sigma = importance_sigma(u, self.sigma_min, self.sigma_max)
        return (sigma - self.sigma_min) / (self.sigma_max - self.sigma_min)


def importance_sigma(u: torch.Tensor, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """sigma in [sigma_min, sigma_max] for u in [0, 1], with log(1 - exp(-sigma)) linear in u."""
    low = math.log(-math.expm1(-sigma_min))
    high = math.log(-math.expm1(-sigma_max))
    log_masked = u * high + (1 - u) * low

    # sigma = -log(1 - share)
    return -torch.log(-torch.expm1(log_masked))


SCHEDULES = {
    "loglinear": LogLinear,
    "cosine": Cosine,
    "cosinesqr": CosineSquared,
    "geometric": Geometric,
    "linear": Linear,
}


def canonical_schedule_name(name: str) -> str:
    """The published name of a schedule: `log-linear` is `loglinear`, `cosine_squared` `cosinesqr`.

    Raises:
        ValueError: no such schedule.
    """
    canonical = str(name).lower()
    for separator in ("-", "_", " "):
        canonical = canonical.replace(separator, "")
    if canonical == "cosinesquared":
        canonical = "cosinesqr"

    if canonical not in SCHEDULES:
        allowed = ", ".join(SCHEDULES)
        raise ValueError(f"noise_schedule is {name!r}, but it must be one of {allowed}.")
    return canonical


def make_schedule(name: str, **params) -> NoiseSchedule:
    """The noise schedule called `name` with its parameters (`eps`, or `sigma_min` and `sigma_max`).

    Raises:
        ValueError: unknown name or parameter, or parameters out of range.
    """
    schedule_class = SCHEDULES[canonical_schedule_name(name)]
    allowed = schedule_class.__dataclass_fields__
    for key, value in params.items():
        if key not in allowed:
            raise ValueError(f"noise_schedule_params has {key!r}, but {name} takes only {', '.join(allowed)}.")
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"noise_schedule_params has {key}={value!r}, but it must be a number.")

    # sigma has to be positive and to grow with t
    schedule = schedule_class(**params)
    if "eps" in allowed and not 0 < schedule.eps < 1:
        raise ValueError(f"eps is {schedule.eps}, but it must lie strictly between 0 and 1.")
    if "sigma_min" in allowed and not 0 < schedule.sigma_min < schedule.sigma_max:
        raise ValueError(
            f"sigma_min={schedule.sigma_min} and sigma_max={schedule.sigma_max}: 0 < sigma_min < sigma_max is needed."
        )
    return schedule


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32 if it has a lower precision, else unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def token_log_probs(logits: torch.Tensor, mask_token_id: int) -> torch.Tensor:
    """log p_theta(. | x_t) at masked positions, where the mask token gets probability zero.

    Args:
        logits: (..., V) raw network output.

    Returns:
        (..., V) in at least float32, -inf at the mask token.
    """
    logits = at_least_float32(logits)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    is_mask = ids == mask_token_id
    return logits.masked_fill(is_mask, -torch.inf).log_softmax(-1)


def subs_log_probs(
    logits: torch.Tensor,
    noisy_ids: torch.Tensor,
    mask_token_id: int,
) -> torch.Tensor:
    """The SUBS parameterisation: `token_log_probs` where masked, certainty where visible.

    Args:
        logits: (B, L, V). noisy_ids: (B, L).

    Returns:
        (B, L, V) log-probabilities, at least float32.
    """
    log_probs = token_log_probs(logits, mask_token_id)

    # Probability one for the visible token. The logits may lack a row for the mask token.
    last_id = logits.shape[-1] - 1
    visible = noisy_ids.clamp_max(last_id).unsqueeze(-1)
    carried = torch.full_like(log_probs, -torch.inf)
    carried.scatter_(-1, visible, 0)

    masked = (noisy_ids == mask_token_id).unsqueeze(-1)  # (B, L, 1)
    return torch.where(masked, log_probs, carried)


def subs_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    noisy_ids: torch.Tensor | None,
    mask_token_id: int,
) -> torch.Tensor:
    """Mean of -log p(label) under SUBS over the positions with `labels != -100`, in nats per token.

    A visible token has probability one: it adds nothing when it equals its label, and makes the
    loss infinite when it does not. Without `noisy_ids` every labelled position counts as masked.

    Args:
        logits: (B, L, V). noisy_ids: (B, L) or None.
        labels: (B, L), -100 where nothing is to be predicted.

    Raises:
        ValueError: labels has another shape.
    """
    expected_shape = logits.shape[:-1]
    if labels.shape != expected_shape:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, but {tuple(expected_shape)} is needed.")
    counted = labels != -100
    targets = labels.clamp_min(0)  # any id, where nothing is counted

    # (B, L): -log p_theta(label) where masked, 0 or infinity where visible
    log_probs = token_log_probs(logits, mask_token_id)
    of_targets = log_probs.gather(-1, targets.unsqueeze(-1))
    losses = -of_targets.squeeze(-1)
    if noisy_ids is not None:
        carried = torch.where(targets == noisy_ids, 0.0, torch.inf)
        carried = carried.to(losses.dtype)
        losses = torch.where(noisy_ids == mask_token_id, losses, carried)

    total = torch.where(counted, losses, 0).sum()
    return total / counted.sum().clamp_min(1)


def reveal_probability(alpha_s: torch.Tensor, alpha_t: torch.Tensor) -> torch.Tensor:
    """The chance r = (alpha_s - alpha_t) / (1 - alpha_t) that a step from t to s reveals a mask."""
    return (alpha_s - alpha_t) / (1 - alpha_t)


def reverse_posterior(
    log_probs: torch.Tensor,
    noisy_ids: torch.Tensor,
    mask_token_id: int,
    alpha_s: torch.Tensor,
    alpha_t: torch.Tensor,
) -> torch.Tensor:
    """q(x_s | x_t) with p_theta in place of x_0: r p_theta(v) for a token v, 1 - r for a mask.

    Args:
        log_probs: (B, L, V) of `subs_log_probs`.
        noisy_ids: (B, L).
        alpha_s: a scalar or (B, 1, 1), as is `alpha_t`.
        alpha_t: likewise.

    Returns:
        (B, L, V) probabilities. Visible tokens are kept.
    """
    probs = log_probs.exp()  # one-hot where visible
    r = reveal_probability(alpha_s, alpha_t)

    # r p_theta(v), and 1 - r more for the mask
    posterior = r * probs
    posterior[..., mask_token_id : mask_token_id + 1] += 1 - r

    masked = (noisy_ids == mask_token_id).unsqueeze(-1)  # (B, L, 1)
    return torch.where(masked, posterior, probs)


def uniform(
    shape,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """float64 uniforms on [0, 1), drawn on the generator's device and moved to `device`.

    Numbers for a device without float64 stay on the CPU.
    """
    source = device if generator is None else generator.device
    if not has_float64(source):  # a generator of the CPU takes its seed from there
        seed = torch.randint(2**31 - 1, (), device=source, generator=generator).item()
        source = torch.device("cpu")
        generator = torch.Generator().manual_seed(seed)

    uniforms = torch.rand(shape, dtype=torch.float64, device=source, generator=generator)
    return send(uniforms, device) if has_float64(device) else uniforms


def sample_categorical(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens drawn by inverse CDF, one CDF for all candidates, and their log-probabilities.

    The CDF accumulates in float64 and so do the uniforms: float32 Gumbel noise would cut off every
    event rarer than about 2^-24 and so lower the entropy of large vocabularies.

    Args:
        logits: (N, V) unnormalised log-probabilities in at least float32. -inf is never drawn.
        uniforms: (N, k) float64 on [0, 1).

    Returns:
        Token ids (N, k) and their normalised log-probabilities (N, k).

    Raises:
        ValueError: a row holds NaN or no finite entry.
    """
    tokens, log_probs = inverse_cdf(logits, uniforms)
    check_tokens_left(log_probs == log_probs)  # NaN compares false
    return tokens, log_probs


def inverse_cdf(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`sample_categorical` without its check: a row with NaN or no finite entry has log-probabilities NaN."""
    device = logits.device
    if not has_float64(device):
        tokens, log_probs = inverse_cdf(logits.cpu(), uniforms.cpu())
        return tokens.to(device), log_probs.to(device)

    # 1. The CDF F(v) = sum_{u <= v} exp(l_u - max l), (N, V), and its total F(V), (N, 1)
    highest = logits.amax(-1, keepdim=True)
    cdf = (logits - highest).exp_().cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:]

    # 2. The first v whose F(v) exceeds u F(V). A threshold strictly below F(V) never hits an entry
    #    of probability zero.
    below_total = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(uniforms * total, below_total)
    last_id = logits.shape[-1] - 1  # a row of NaN goes beyond it
    tokens = torch.searchsorted(cdf, threshold, right=True).clamp_max(last_id)

    # 3. log p(v) = l_v - max l - log F(V)
    log_total = total.log().to(logits.dtype)
    log_probs = logits.gather(-1, tokens) - highest - log_total
    return tokens, log_probs


def resample(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One candidate per row with the probabilities `weights` (B, k), by uniforms (B, 1): (B,)."""
    # A weight of zero has the logarithm -inf, which is never drawn
    chosen, _ = inverse_cdf(weights.log(), uniforms)
    return chosen.squeeze(-1)


def check_tokens_left(has_token: torch.Tensor) -> None:
    """Raise ValueError unless every row of a proposal has a token to take. NaN compares false."""
    if not bool(has_token.all()):
        raise ValueError(
            "A row of the proposal has no token left (top_k, top_p or a logits processor removed all of them) or NaN."
        )
