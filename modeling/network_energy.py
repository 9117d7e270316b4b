"""The NCE energy: a scalar network over [x_t; x_0] (EDLM, arXiv 2410.21357, section 4.2).

Shapes: B rows, k candidates per row, L positions, H hidden.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_mdlm import MDLMConfig
from .masked_diffusion import at_least_float32
from .mdlm_blocks import ZeroLinear
from .mdlm_trunk import MDLMModel
from .projection import HALF, full_precision, precision_of


@dataclass
class EDLMEnergyOutput(ModelOutput):
    """Output of an energy network.

    Args:
        energy: (B, k), or (B,) for one candidate per row, in at least float32.
        pooler_output: (B, k, H) or (B, H), the mean over positions from which the energy is made.
    """

    energy: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None


class NetworkEnergyMixin:
    """The energy network around a transformer, which a class provides by `read`.

    1. u = vocab_proj([emb(x_t); emb(x_0)]), two embeddings of width H in, one out
    2. features of u by the transformer and a projection H -> H that starts at zero
    3. their mean over positions, then Linear(H, H), ReLU, Linear(H, 1)

    So the energy is a constant at initialisation.
    """

    base_model_prefix = "ebm"
    _keep_in_fp32_modules_strict = ["energy_head"]

    def add_energy_layers(self, hidden_dim: int) -> None:
        """Make `vocab_proj` and `energy_head`, whose random start keeps gradients alive."""
        self.vocab_proj = nn.Linear(2 * hidden_dim, hidden_dim)
        self.energy_head = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, 1, bias=False),
        )

    def read(self, **inputs) -> torch.Tensor:
        """Features (N, L, H) of `inputs_embeds` (N, L, H) by the transformer and its projection."""
        raise NotImplementedError

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

        Raises:
            ValueError: the shapes of candidates and noisy ids do not fit.
        """
        candidates = candidate_ids if candidate_ids.dim() == 3 else candidate_ids.unsqueeze(1)
        if candidates.dim() != 3 or candidates[:, 0].shape != noisy_ids.shape:
            raise ValueError(
                f"candidate_ids has shape {tuple(candidate_ids.shape)} and noisy_ids {tuple(noisy_ids.shape)}, but "
                "(B, k, L) or (B, L) and (B, L) are needed."
            )

        # Every candidate is a row of the transformer: (B k, L)
        k = candidates.shape[1]
        if attention_mask is not None:
            attention_mask = attention_mask.repeat_interleave(k, 0)
        if timesteps is not None and timesteps.numel() > 1:
            timesteps = timesteps.reshape(-1).repeat_interleave(k)

        # u = vocab_proj([emb(x_t); emb(x_0)]): (B, k, L, 2 H) -> (B k, L, H)
        embed = self.get_input_embeddings()
        noisy = embed(noisy_ids).unsqueeze(1).expand(-1, k, -1, -1)
        joined = torch.cat([noisy, embed(candidates)], dim=-1)
        inputs_embeds = self.vocab_proj(joined).flatten(0, 1)

        # Features (B k, L, H)
        kwargs["return_dict"] = True
        features = self.read(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            timesteps=timesteps,
            **kwargs,
        )
        # Their mean (B k, H) in at least float32, and the energies
        pooled = mean_over_positions(at_least_float32(features), attention_mask)
        energy = self.energy_of(pooled)

        shape = candidate_ids.shape[:-1]  # (B, k) or (B,)
        return EDLMEnergyOutput(
            energy=energy.view(shape),
            pooler_output=pooled.view(*shape, -1),
        )

    def energy_of(self, pooled: torch.Tensor) -> torch.Tensor:
        """The head: (N, H) -> (N, 1) in at least float32.

        Differences of energies decide, so the head stays out of autocast and keeps its own
        precision, which is float32 when it is loaded.
        """
        with full_precision(pooled):
            dtype = precision_of(self.energy_head, pooled.dtype)
            energy = self.energy_head(pooled.to(dtype))
            return at_least_float32(energy)

    def _apply(self, fn, recurse=True):
        """Cast or move the model. A cast to half precision leaves the head in float32."""
        super()._apply(fn, recurse)
        if precision_of(self.energy_head, torch.float32) in HALF:
            self.energy_head.float()
        return self


class EDLMEnergyModel(NetworkEnergyMixin, MDLMModel):
    """The NCE energy network as published, with a transformer like the denoiser's of its own.

    Keys are the published `ebm.*`.
    """

    _composite_part = "energy_model"
    _auto_class = None

    def __init__(self, config: MDLMConfig):
        if config.causal:
            raise ValueError("EDLMEnergyModel sees the whole sequence, but the configuration says causal=True.")
        super().__init__(config)
        self.output_layer.linear = ZeroLinear(config.hidden_dim, config.hidden_dim)
        self.add_energy_layers(config.hidden_dim)
        self.post_init()

    @classmethod
    def from_denoiser(cls, denoiser: nn.Module) -> "EDLMEnergyModel":
        """An energy whose trunk starts from the weights of an `MDLMForMaskedLM`, as in the paper.

        Raises:
            ValueError: the denoiser has other weights, as with adapters in it.
        """
        model = cls(copy.deepcopy(denoiser.config)).to(denoiser.device, denoiser.dtype)

        # All but the projection, which is H -> V in a denoiser
        weights = denoiser.backbone.state_dict()
        for name in list(weights):
            if name.startswith("output_layer.linear."):
                del weights[name]
        unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
        if unexpected:
            raise ValueError(
                f"An energy cannot start from a denoiser with adapters or other weights in it ({unexpected[0]}). Merge "
                "them first (merge_and_unload), or give an energy."
            )

        start_as_mean(model.vocab_proj)
        return model

    def read(self, **inputs) -> torch.Tensor:
        hidden = MDLMModel.forward(self, **inputs).last_hidden_state
        return self.output_layer.linear(hidden)


def mean_over_positions(features: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The mean (N, H) of features (N, L, H) over the positions (N, L) that are not padding."""
    # (N, L, 1), or one row for all
    weight = features.new_ones(1, features.shape[1], 1)
    if attention_mask is not None:
        weight = attention_mask.to(features.dtype).unsqueeze(-1)

    # A row of nothing but padding has the mean 0
    total = (features * weight).sum(1)
    return total / weight.sum(1).clamp_min(1)


@torch.no_grad()
def start_as_mean(projection: nn.Linear) -> None:
    """Start with u = (emb(x_t) + emb(x_0)) / 2.

    A visible token then enters a trained trunk as that trunk knows it. Published code starts the
    projection at random, and the trunk copied from the denoiser then sees noise.
    """
    # W = [I / 2, I / 2], (H, 2 H)
    half = torch.eye(projection.out_features, device=projection.weight.device) / 2
    projection.weight.copy_(torch.cat([half, half], dim=1))
    projection.bias.zero_()
