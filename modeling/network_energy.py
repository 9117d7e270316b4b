"""The NCE energy: a scalar network over [x_t; x_0] (EDLM, arXiv 2410.21357, section 4.2).

Shapes: B rows, k candidates per row, L positions, H hidden.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_mdlm import MDLMConfig
from .masked_diffusion import at_least_float32
from .mdlm_blocks import ZeroLinear
from .modeling_mdlm import MDLMModel
from .projection import HALF, full_precision, precision_of


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
        model = cls(copy.deepcopy(denoiser.config)).to(denoiser.device, denoiser.dtype)
        trunk = denoiser.backbone.state_dict()
        own = {name for name in trunk if name.startswith("output_layer.linear.")}  # the denoiser's is H -> V
        model.load_state_dict({name: weight for name, weight in trunk.items() if name not in own}, strict=False)
        start_as_mean(model.vocab_proj)
        return model

    def _apply(self, fn, recurse=True):
        return keep_head_wide(super()._apply(fn, recurse))

    @can_return_tuple
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


def energy_layers(hidden_dim: int) -> tuple[nn.Linear, nn.Sequential]:
    """The projection of the joined embeddings and the head (its random start keeps gradients alive)."""
    head = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1, bias=False))
    return nn.Linear(2 * hidden_dim, hidden_dim), head


@torch.no_grad()
def start_as_mean(projection: nn.Linear) -> None:
    """u = (emb(x_t) + emb(x_0)) / 2: a visible token enters a trained trunk as that trunk knows it.

    Published code starts the projection at random, and the trunk copied from the denoiser then sees noise.
    """
    half = torch.eye(projection.out_features, device=projection.weight.device) / 2
    projection.weight.copy_(torch.cat([half, half], dim=1))
    projection.bias.zero_()


def keep_head_wide(model: nn.Module) -> nn.Module:
    """The energy head computes in at least float32: a cast of the model to half precision leaves it there."""
    if precision_of(model.energy_head, torch.float32) in HALF:
        model.energy_head.float()
    return model


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
        **(kwargs | {"return_dict": True}),
    ).last_hidden_state
    features = at_least_float32(project(hidden))
    weight = features.new_ones(1, features.shape[1], 1)
    if attention_mask is not None:
        weight = attention_mask.to(features.dtype).unsqueeze(-1)
    pooled = (features * weight).sum(1) / weight.sum(1).clamp_min(1)
    # Differences of energies decide: the head stays out of autocast and keeps its own precision (float32 when loaded).
    with full_precision(pooled):
        energy = at_least_float32(model.energy_head(pooled.to(precision_of(model.energy_head, pooled.dtype))))
    shape = candidate_ids.shape[:-1]
    return EDLMEnergyOutput(energy=energy.view(shape), pooler_output=pooled.view(*shape, -1))
