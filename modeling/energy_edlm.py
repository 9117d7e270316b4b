"""Residual energies E(x_0, x_t) of whole sequences; low energy = likely (EDLM, arXiv 2410.21357, section 4).

    p(x_0|x_t) = p_theta(x_0|x_t) exp(-E(x_0, x_t)) / Z(x_t)

The autoregressive energies read a causal language model; the NCE energy is a scalar network of its own. Shapes: B rows,
k candidates per row, L positions, V vocabulary.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from .configuration_mdlm import MDLMConfig
from .masked_diffusion import at_least_float32
from .modeling_mdlm import MDLMModel, MDLMPreTrainedModel, ZeroLinear


@dataclass
class EDLMEnergyOutput(ModelOutput):
    """Output of an energy network.

    Args:
        energy: (B, k), or (B,) for one candidate per row; at least float32.
        pooler_output: (B, k, H) or (B, H), the mean over positions that the energy is computed from.
    """

    energy: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None


class EDLMEnergyModel(MDLMModel):
    """The NCE energy network as published: the denoiser's transformer over [x_t; x_0], a mean and a small head.

    u = vocab_proj([emb(x_t); emb(x_0)]) -> blocks -> output layer (H -> H, starts at zero) -> mean over positions ->
    Linear(H, H), ReLU, Linear(H, 1). At initialisation the energy is a constant. Keys are the published `ebm.*`.
    """

    base_model_prefix = "ebm"
    _composite_part = "energy_model"
    _auto_class = None
    _keep_in_fp32_modules_strict = ["energy_head"]

    def __init__(self, config: MDLMConfig):
        if config.causal:
            raise ValueError("EDLMEnergyModel sees the whole sequence, but the configuration says causal=True.")
        super().__init__(config)
        self.output_layer.linear = ZeroLinear(config.hidden_dim, config.hidden_dim)
        self.vocab_proj, self.energy_head = energy_layers(config.hidden_dim)
        self.post_init()

    @classmethod
    def from_denoiser(cls, denoiser: nn.Module) -> "EDLMEnergyModel":
        """An energy whose trunk starts from the weights of an `MDLMForMaskedLM`, as in the paper."""
        model = cls(denoiser.config).to(denoiser.device, denoiser.dtype)
        head = set(model.state_dict()) - set(MDLMModel(denoiser.config).state_dict())
        trunk = {name: weight for name, weight in denoiser.backbone.state_dict().items() if name not in head}
        model.load_state_dict(trunk, strict=False)
        return model

    def forward(
        self,
        candidate_ids: torch.LongTensor,
        noisy_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        **kwargs,
    ) -> EDLMEnergyOutput:
        """E(x_0, x_t) for candidates (B, k, L) or (B, L) given noisy ids (B, L).

        Args:
            attention_mask: (B, L), 0 at padding, which enters neither attention nor the mean.
            timesteps: (B,) total noise sigma, needed with `time_conditioning` only.
        """
        inputs = candidate_ids, noisy_ids, attention_mask, timesteps
        return sequence_energy(self, super().forward, self.output_layer.linear, *inputs, **kwargs)


class EDLMSharedEnergyModel(MDLMPreTrainedModel):
    """An energy that owns only `vocab_proj`, the output projection and the head; the trunk is the denoiser's.

    The trunk is a reference, not a sub-module: its weights are stored once, with the denoiser.
    """

    base_model_prefix = "ebm"
    _keep_in_fp32_modules_strict = ["energy_head"]

    def __init__(self, trunk: MDLMModel):
        super().__init__(trunk.config)
        self.__dict__["trunk"] = trunk
        self.output_layer = nn.ModuleDict({"linear": ZeroLinear(trunk.config.hidden_dim, trunk.config.hidden_dim)})
        self.vocab_proj, self.energy_head = energy_layers(trunk.config.hidden_dim)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.trunk.vocab_embed

    def forward(self, candidate_ids, noisy_ids, attention_mask=None, timesteps=None, **kwargs) -> EDLMEnergyOutput:
        """As `EDLMEnergyModel.forward`."""
        inputs = candidate_ids, noisy_ids, attention_mask, timesteps
        return sequence_energy(self, self.trunk, self.output_layer["linear"], *inputs, **kwargs)


def energy_layers(hidden_dim: int) -> tuple[nn.Linear, nn.Sequential]:
    """The projection of the joined embeddings and the head (its random start keeps gradients alive)."""
    head = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1, bias=False))
    return nn.Linear(2 * hidden_dim, hidden_dim), head


def sequence_energy(
    model: nn.Module,
    run_trunk: Callable,
    project: nn.Linear,
    candidate_ids: torch.LongTensor,
    noisy_ids: torch.LongTensor,
    attention_mask: torch.Tensor | None,
    timesteps: torch.Tensor | None,
    **kwargs,
) -> EDLMEnergyOutput:
    """What both energy networks compute; `run_trunk` maps input embeddings to hidden states, `project` comes after."""
    candidates = candidate_ids if candidate_ids.dim() == 3 else candidate_ids.unsqueeze(1)
    if candidates.dim() != 3 or candidates[:, 0].shape != noisy_ids.shape:
        raise ValueError(
            f"candidate_ids has shape {tuple(candidate_ids.shape)} and noisy_ids {tuple(noisy_ids.shape)}, but "
            "(B, k, L) or (B, L) and (B, L) are needed."
        )
    k = candidates.shape[1]
    embed = model.get_input_embeddings()
    joined = torch.cat([embed(noisy_ids).unsqueeze(1).expand(-1, k, -1, -1), embed(candidates)], dim=-1)
    if attention_mask is not None:
        attention_mask = attention_mask.repeat_interleave(k, 0)
    if timesteps is not None and timesteps.numel() > 1:
        timesteps = timesteps.reshape(-1).repeat_interleave(k)
    hidden = run_trunk(
        inputs_embeds=model.vocab_proj(joined).flatten(0, 1),
        attention_mask=attention_mask,
        timesteps=timesteps,
        **kwargs,
    ).last_hidden_state
    features = at_least_float32(project(hidden))
    weight = features.new_ones(1, features.shape[1], 1)
    if attention_mask is not None:
        weight = attention_mask.to(features.dtype).unsqueeze(-1)
    pooled = (features * weight).sum(1) / weight.sum(1).clamp_min(1)
    # Differences of energies decide: the head stays out of autocast and keeps its own precision (float32 when loaded).
    with torch.autocast(pooled.device.type, enabled=False):
        energy = at_least_float32(model.energy_head(pooled.to(next(model.energy_head.parameters()).dtype)))
    shape = candidate_ids.shape[:-1]
    return EDLMEnergyOutput(energy=energy.view(shape), pooler_output=pooled.view(*shape, -1))


# -------------------------------------------------------------------------------------------- autoregressive energies


def autoregressive_log_probs(
    causal_lm: nn.Module,
    ids: torch.LongTensor,
    *,
    denoiser_vocab_size: int,
    mask_token_id: int,
    start_token_id: int | None = None,
    needs_start: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    chunk_bytes: int = 2**28,
) -> torch.Tensor:
    """log p_AR(x_i | x_<i) of every token under a causal language model, normalised over what the denoiser can emit.

    A row that needs no start token (or has none) has its first token as context only: it counts 0, as does padding.

    Args:
        causal_lm: called as `causal_lm(input_ids=..., attention_mask=...)`, returns `.logits`.
        ids: (N, L) token ids without mask tokens.
        denoiser_vocab_size, mask_token_id: the denoiser emits every id below the size except the mask.
        start_token_id: put in front of the rows with `needs_start` (N,) (every row unless given).
        attention_mask: (N, L), 0 at padding on either side.
        chunk_bytes: bound on the bytes of logits that are alive at once.

    Returns:
        (N, L) log-probabilities in at least float32.

    Raises:
        ValueError: the denoiser can emit an id for which the model has no row.
    """
    real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    ids = ids.masked_fill(~real, 0)
    if start_token_id is not None and needs_start is None:
        needs_start = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    if start_token_id is None or not needs_start.any():
        start_token_id = None
    first = real.long().argmax(-1, keepdim=True)  # (N, 1) where the text of a row begins

    # Input i holds the token before x_i, so that logits i are those of x_i; column `first` holds the start token.
    inputs = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], dim=1)
    inputs_real = torch.cat([torch.zeros_like(real[:, :1]), real[:, :-1]], dim=1)
    if start_token_id is not None:
        inputs = inputs.scatter(1, first, start_token_id)
        inputs_real = inputs_real.scatter(1, first, needs_start.unsqueeze(1))
    scored = real & inputs_real
    drop = 1 if start_token_id is None else 0  # no row has a token in column 0
    if drop == ids.shape[1]:
        return torch.zeros(ids.shape, device=ids.device)
    inputs, inputs_real = inputs[:, drop:], inputs_real[:, drop:]
    arguments = {"input_ids": inputs, "attention_mask": None if inputs_real.all() else inputs_real.long()}
    if arguments["attention_mask"] is not None and accepts(causal_lm, "position_ids"):
        arguments["position_ids"] = (inputs_real.long().cumsum(-1) - 1).clamp_min(0)
    fixed = {"use_cache": False} if accepts(causal_lm, "use_cache") else {}

    chunks, begin, size = [], 0, 1  # the first row tells how large the logits of one are
    while begin < len(ids):
        rows = slice(begin, begin + size)
        logits = causal_lm(**{name: x if x is None else x[rows] for name, x in arguments.items()}, **fixed).logits
        chunks.append(emittable_log_probs(logits, ids[rows, drop:], denoiser_vocab_size, mask_token_id))
        begin += size
        size = max(1, chunk_bytes // (3 * logits[0].numel() * 4))
    log_probs = nn.functional.pad(torch.cat(chunks), (drop, 0))
    return torch.where(scored, log_probs, 0)


def emittable_log_probs(
    logits: torch.Tensor, targets: torch.LongTensor, denoiser_vocab_size: int, mask_token_id: int
) -> torch.Tensor:
    """log softmax of `logits` (N, L, V) over the denoiser's tokens, at `targets` (N, L) -> (N, L)."""
    rows = logits.shape[-1]
    highest = denoiser_vocab_size - 1 - (mask_token_id == denoiser_vocab_size - 1)
    if rows <= highest:
        raise ValueError(
            f"The denoiser can emit ids up to {highest}, but the autoregressive energy model has only {rows} rows. Use "
            "a causal language model of the same vocabulary."
        )
    logits = at_least_float32(logits)
    ids = torch.arange(rows, device=logits.device)
    foreign = (ids >= denoiser_vocab_size) | (ids == mask_token_id)
    logits = logits.masked_fill(foreign, -torch.inf)
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def accepts(module: nn.Module, name: str) -> bool:
    """Whether the forward of `module` has a parameter called `name`."""
    return name in inspect.signature(module.forward).parameters


__all__ = ["EDLMEnergyModel", "EDLMEnergyOutput", "EDLMSharedEnergyModel", "autoregressive_log_probs"]
