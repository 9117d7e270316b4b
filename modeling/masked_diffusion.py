"""Masked diffusion as pure functions: noise schedules, the reverse posterior, SUBS log-probabilities, draws.

Nothing here knows a network. Shapes: B rows, L positions, V vocabulary (mask token included), k candidates.
Times t lie in [0, 1]; alpha_t is the probability that a token is still visible at time t, and sigma = -log alpha_t is
the total noise that a time-conditioned network is given.
"""

import math
from dataclasses import dataclass
from numbers import Real

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

    def time(self, masked: torch.Tensor) -> torch.Tensor:
        """The time t at which a share `masked` = 1 - alpha_t of the tokens is masked, the inverse of `alpha`."""
        low, high = torch.zeros_like(masked), torch.ones_like(masked)
        for _ in range(60):  # bisection: alpha falls
            middle = (low + high) / 2
            early = 1 - self.alpha(middle) < masked
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return (low + high) / 2

    def check_reaches_full_mask(self) -> None:
        """Raise ValueError unless (almost) every token is masked at t = 1, which sampling starts from."""
        visible = math.exp(-float(self.total(torch.ones((), dtype=torch.float64, device="cpu"))))
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

    def time(self, masked):
        return masked

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
        if not isinstance(params[key], Real) or isinstance(params[key], bool):
            raise ValueError(f"noise_schedule_params has {key}={params[key]!r}, but it must be a number.")

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
    visible = noisy_ids.clamp_max(logits.shape[-1] - 1)  # the logits may lack a row for the mask token
    carried = torch.full_like(log_probs, -torch.inf).scatter_(-1, visible.unsqueeze(-1), 0)
    return torch.where((noisy_ids == mask_token_id).unsqueeze(-1), log_probs, carried)


def subs_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, noisy_ids: torch.Tensor | None, mask_token_id: int
) -> torch.Tensor:
    """Mean of -log p(label) under SUBS over the positions with `labels != -100`, in nats per token.

    A visible token has probability one: it adds nothing when it equals its label, and makes the loss infinite when it
    does not. Without `noisy_ids` every labelled position counts as masked.

    Args:
        logits: (B, L, V). labels: (B, L) with -100 where nothing is to be predicted. noisy_ids: (B, L) or None.

    Raises:
        ValueError: labels has another shape.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, but {tuple(logits.shape[:-1])} is needed.")
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


def reverse_posterior(
    log_probs: torch.Tensor, noisy_ids: torch.Tensor, mask_token_id: int, alpha_s: torch.Tensor, alpha_t: torch.Tensor
) -> torch.Tensor:
    """q(x_s | x_t) with p_theta in place of x_0: r p_theta(v) for a token v, 1 - r for staying masked.

    Args:
        log_probs: (B, L, V) of `subs_log_probs`. noisy_ids: (B, L). alpha_s, alpha_t: scalars or (B, 1, 1).

    Returns:
        (B, L, V) probabilities; visible tokens are kept.
    """
    r = reveal_probability(alpha_s, alpha_t)
    posterior = r * log_probs.exp()
    posterior[..., mask_token_id] += (1 - r).expand(posterior.shape[:-1] + (1,)).squeeze(-1)
    return torch.where((noisy_ids == mask_token_id).unsqueeze(-1), posterior, log_probs.exp())


def uniform(shape, device: torch.device, generator: torch.Generator | None = None) -> torch.Tensor:
    """float64 uniforms on [0, 1); drawn on the generator's device (the CPU where that knows no float64)."""
    source = generator.device if generator is not None else device
    if source.type == "mps":
        seed = torch.randint(2**31 - 1, (), device=source, generator=generator).item()
        source, generator = torch.device("cpu"), torch.Generator().manual_seed(seed)
    draws = torch.rand(shape, dtype=torch.float64, device=source, generator=generator)
    return draws if device.type == "mps" else draws.to(device)


def sample_categorical(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws by inverse CDF, one CDF for all candidates, and their log-probabilities.

    The CDF accumulates in float64 and so do the uniforms: float32 Gumbel noise would cut off every event rarer than
    about 2^-24 and so lower the entropy of large vocabularies.

    Args:
        logits: (N, V) unnormalised log-probabilities in at least float32; -inf is never drawn.
        uniforms: (N, k) float64 on [0, 1).

    Returns:
        Token ids (N, k) and their normalised log-probabilities (N, k).

    Raises:
        ValueError: a row holds NaN or no finite entry.
    """
    device = logits.device
    if device.type == "mps":  # no float64 there
        tokens, log_probs = sample_categorical(logits.cpu(), uniforms.cpu())
        return tokens.to(device), log_probs.to(device)
    highest = logits.amax(-1, keepdim=True)
    cdf = (logits - highest).exp_().cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:]
    check_tokens_left(total > 0)
    # The first index whose CDF exceeds a point strictly below the total: never an entry of probability zero.
    point = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cdf, point, right=True)
    log_probs = logits.gather(-1, tokens) - highest - total.log().to(logits.dtype)
    return tokens, log_probs


def check_token_ids(name: str, ids: torch.Tensor, vocab_size: int | None, mask_token_id: int) -> None:
    """Raise ValueError unless `ids` is a tensor of integers below the vocabulary size, or the mask token."""
    if not torch.is_tensor(ids) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        kind = ids.dtype if torch.is_tensor(ids) else type(ids).__name__
        raise ValueError(f"{name} is of type {kind}, but token ids are a tensor of integers (torch.long).")
    if ids.device.type == "meta":
        raise ValueError(f"{name} is on the device `meta`, where tensors hold no values. Make it elsewhere.")
    values = ids.long()  # unsigned types know no min
    least, most = (int(values.min()), int(values.max())) if ids.numel() else (0, 0)
    if least < 0 or (vocab_size is not None and most >= max(vocab_size, mask_token_id + 1)):
        raise ValueError(
            f"{name} holds ids from {least} to {most}, but the vocabulary has 0 to {(vocab_size or most + 1) - 1} "
            f"(mask token {mask_token_id}). Use the tokenizer of the model."
        )


def check_tokens_left(rows: torch.Tensor) -> None:
    """Raise ValueError unless every row of a proposal has a token to take; NaN compares false."""
    if not bool(rows.all()):
        raise ValueError(
            "A row of the proposal has no token left (top_k, top_p or a logits processor removed all of them) or NaN."
        )


# ---------------------------------------------------------------------------------------------- importance resampling


def importance_weights(energies: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Self-normalised weights w_j proportional to exp(-E_j / tau): (B, k) -> (B, k) float64 where the device has it.

    Raises:
        ValueError: an energy is NaN or -inf, or all candidates of a row have energy +inf; tau is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"The energy temperature is {temperature!r}, but it must be positive.")
    if energies.device.type != "mps":
        energies = energies.double()
    check_energies(energies)
    if not bool((energies < torch.inf).any(-1).all()):
        raise ValueError("All candidates of a row have energy +inf, so there is nothing to choose from.")
    return log_weights(energies, temperature).softmax(-1)


def log_weights(energies: torch.Tensor, temperature: float) -> torch.Tensor:
    """-(E_j - min E) / tau, so that every tau in (0, inf] has its weights and +inf the weight zero: (..., k)."""
    excess = energies - energies.amin(-1, keepdim=True)
    return torch.where(energies == torch.inf, -torch.inf, -excess / temperature)


def check_energies(energies: torch.Tensor) -> None:
    """Raise ValueError if an energy is NaN or -inf."""
    if not bool((energies > -torch.inf).all()):  # NaN compares false
        raise ValueError("An energy is NaN or -inf. Energies are finite numbers, or +inf to reject a candidate.")


def effective_sample_size(weights: torch.Tensor) -> torch.Tensor:
    """1 / sum w^2: between 1 (one candidate has all the weight) and k (equal weights); (B, k) -> (B,)."""
    return 1 / weights.square().sum(-1)


def resample(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Pick one candidate per row with the given probabilities (B, k), by uniforms (B, 1): (B,) indices."""
    chosen, _ = sample_categorical(weights.log(), uniforms)
    return chosen.squeeze(-1)


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
    "reverse_posterior",
    "sample_categorical",
    "uniform",
    "check_token_ids",
    "check_tokens_left",
    "importance_weights",
    "log_weights",
    "check_energies",
    "effective_sample_size",
    "resample",
]
