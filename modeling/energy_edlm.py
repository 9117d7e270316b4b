"""Residual energies E(x_0, x_t) of whole sequences; low energy = likely (EDLM, arXiv 2410.21357, section 4).

    p(x_0|x_t) = p_theta(x_0|x_t) exp(-E(x_0, x_t)) / Z(x_t)

The autoregressive energies read a causal language model; the NCE energy is a scalar network of its own. Shapes: B rows,
k candidates per row, L positions, V vocabulary.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_mdlm import MDLMConfig
from .masked_diffusion import at_least_float32
from .modeling_mdlm import MDLMModel, MDLMPreTrainedModel, ZeroLinear, is_plain_linear


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


class EDLMSharedEnergyModel(MDLMPreTrainedModel):
    """An energy that owns only `vocab_proj`, the output projection, the head and perhaps low-rank updates.

    The trunk is the denoiser's, a reference and not a sub-module: its weights are stored once, with the denoiser. The
    energy runs them through modules of its own, so that the denoiser keeps its bare weights and its own mode (eval
    while an energy is trained), and calls from several threads do not meet. The linear layers of the blocks are
    sub-modules (`SharedLinear`) under the names they have in an energy with weights of its own: what is put in their
    place, adapters of PEFT for example, is what runs.

    Args:
        trunk: the denoiser's `backbone`.
        adapter_rank: rank of the updates of all linear layers in the blocks; 0 for none.
    """

    base_model_prefix = "ebm"
    _keep_in_fp32_modules_strict = ["energy_head"]

    def __init__(self, trunk: MDLMModel, adapter_rank: int = 0):
        super().__init__(trunk.config)
        self.__dict__ |= {"trunk": trunk, "twin": None}
        self.blocks = shared_layers(trunk.blocks, adapter_rank)
        self.output_layer = nn.ModuleDict({"linear": ZeroLinear(trunk.config.hidden_dim, trunk.config.hidden_dim)})
        self.vocab_proj, self.energy_head = energy_layers(trunk.config.hidden_dim)
        self.post_init()
        start_as_mean(self.vocab_proj)
        self.to(trunk.device, trunk.dtype)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.trunk.vocab_embed

    def run_trunk(self, **kwargs):
        """The trunk's forward with the linear layers of this energy."""
        if self.twin is None:
            self.__dict__["twin"] = twin_of(self.trunk, {"blocks": self.blocks}).train(self.training)
        return self.twin(**kwargs)

    def train(self, mode: bool = True):
        if self.twin is not None:
            self.twin.train(mode)
        return super().train(mode)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if not isinstance(module, SharedLinear):
            super()._init_weights(module)
        elif module.rank:
            initialization.kaiming_uniform_(module.down, a=math.sqrt(5))
            # Not zero, as is usual: the output projection is, and with two zero factors in a row no gradient flows.
            initialization.uniform_(module.up, -0.02, 0.02)

    def _apply(self, fn, recurse=True):
        return keep_head_wide(super()._apply(fn, recurse))

    @can_return_tuple
    def forward(self, candidate_ids, noisy_ids, attention_mask=None, timesteps=None, **kwargs) -> EDLMEnergyOutput:
        """As `EDLMEnergyModel.forward`."""
        inputs = candidate_ids, noisy_ids, attention_mask, timesteps
        return sequence_energy(self, self.run_trunk, self.output_layer["linear"], *inputs, **kwargs)


class SharedLinear(nn.Linear):
    """W x + b with the present parameters of another linear layer, + B A x with its own (LoRA, arXiv 2106.09685).

    Args:
        source: the layer whose parameters are read; a reference, not a sub-module.
        rank: of `down` (rank, in) = A and `up` (out, rank) = B; 0 for none, so that the layer owns nothing.
    """

    def __init__(self, source: nn.Linear, rank: int = 0):
        nn.Module.__init__(self)
        self.__dict__["source"] = source
        self.in_features, self.out_features = source.in_features, source.out_features
        self.down = nn.Parameter(torch.empty(rank, self.in_features)) if rank else None
        self.up = nn.Parameter(torch.empty(self.out_features, rank)) if rank else None

    @property
    def weight(self) -> torch.Tensor:
        return self.source.weight.detach().as_subclass(BorrowedTensor)

    @property
    def bias(self) -> torch.Tensor | None:
        return None if self.source.bias is None else self.source.bias.detach().as_subclass(BorrowedTensor)

    @property
    def rank(self) -> int:
        return 0 if self.down is None else len(self.down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.source(x)
        return y + nn.functional.linear(nn.functional.linear(x, self.down), self.up) if self.rank else y


class BorrowedTensor(torch.Tensor):
    """A tensor that can be read; what would change it in place raises ValueError."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name, kwargs = function.__name__, kwargs or {}
        changed = kwargs.get("out")
        if name in WRITING or (name.endswith("_") and not name.endswith("__")):
            changed = next(iter((*args, *kwargs.values())))
        if isinstance(changed, cls):
            raise ValueError(
                "This weight is the denoiser's, which the energy only reads (energy_weights='shared'): nothing can be "
                "merged into it, and no adapter can start by changing it. For merging use "
                "edlm_hf.training.merge_lora(model), for starting init_lora_weights=True or 'gaussian'."
            )
        if function == torch.Tensor.data.__get__:
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)


# x.data = y, x[i] = y, x += y, ...
WRITING = {"__set__", "__setitem__", *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod"))}


def shared_layers(module: nn.Module, rank: int) -> nn.ModuleDict:
    """The linear layers below `module` as `SharedLinear`, under their names."""
    layers = nn.ModuleDict()
    for name, part in module.named_children():
        if type(part) is nn.Linear:
            layers[name] = SharedLinear(part, rank)
        elif inner := shared_layers(part, rank):
            layers[name] = inner
    return layers


def twin_of(module: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """The same modules on the same parameters and buffers, with `layers` (as of `shared_layers`) for those named there.

    The copies hold the very dictionaries of the parameters, so a parameter that is replaced (in a model that is loaded
    or moved) is replaced in both. The layers are looked up when they are called.
    """
    twin, parts = copy.copy(module), {}
    for name, part in module._modules.items():
        inner = layers[name] if name in layers else {}
        parts[name] = twin_of(part, inner) if isinstance(inner, (dict, nn.ModuleDict)) else LookedUp(layers, name)
    twin.__dict__["_modules"] = parts
    return twin


class LookedUp(nn.Module):
    """Calls what a dictionary of modules holds under a name at the time."""

    def __init__(self, layers: nn.ModuleDict, name: str):
        super().__init__()
        self.__dict__ |= {"layers": layers, "name": name}

    def forward(self, *args, **kwargs):
        return self.layers[self.name](*args, **kwargs)


def energy_layers(hidden_dim: int) -> tuple[nn.Linear, nn.Sequential]:
    """The projection of the joined embeddings and the head (its random start keeps gradients alive)."""
    head = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1, bias=False))
    return nn.Linear(2 * hidden_dim, hidden_dim), head


@torch.no_grad()
def start_as_mean(projection: nn.Linear) -> None:
    """u = (emb(x_t) + emb(x_0)) / 2: a visible token enters a trained trunk as that trunk knows it.

    Published code starts the projection at random, and the trunk copied from the denoiser then sees noise.
    """
    half = torch.eye(projection.out_features) / 2
    projection.weight.copy_(torch.cat([half, half], dim=1))
    projection.bias.zero_()


def keep_head_wide(model: nn.Module) -> nn.Module:
    """The energy head computes in at least float32: a cast of the model to half precision leaves it there."""
    if next(model.energy_head.parameters()).dtype in (torch.bfloat16, torch.float16):
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
    with torch.autocast(pooled.device.type, enabled=False):
        energy = at_least_float32(model.energy_head(pooled.to(next(model.energy_head.parameters()).dtype)))
    shape = candidate_ids.shape[:-1]
    return EDLMEnergyOutput(energy=energy.view(shape), pooler_output=pooled.view(*shape, -1))


# -------------------------------------------------------------------------------------------- autoregressive energies

# Fewer shared columns than this are recomputed: a second pass would cost more than it saves.
SHORTEST_SHARED_PREFIX = 16


def autoregressive_log_probs(
    causal_lm: nn.Module,
    candidate_ids: torch.LongTensor,
    scored: torch.Tensor,
    *,
    denoiser_vocab_size: int,
    mask_token_id: int,
    start_token_id: int | None = None,
    needs_start: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    shared: int = 0,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """log p_AR(x_i | x_<i) of the scored tokens, normalised over what the denoiser can emit.

    Every row is fed as [start token?] + its text, aligned left: a causal model needs no attention mask for what comes
    behind, and rows cannot disturb each other. A row without start token has its first token as context: it counts 0.

    Args:
        causal_lm: called as `causal_lm(input_ids=..., attention_mask=None)`, returns `.logits`.
        candidate_ids: (B, k, L) without mask tokens up to the last scored position.
        scored: (B, L) bool, the positions whose log-probabilities are wanted.
        denoiser_vocab_size, mask_token_id: the denoiser emits every id below the size except the mask.
        start_token_id: put in front of the rows with `needs_start` (B,) bool.
        attention_mask: (B, L), 0 at padding on either side.
        shared: leading text tokens in which all candidates of a row agree; they run once per row, through the cache.
        chunk_size: candidates per call; bounded by memory unless given.

    Returns:
        (B, k, L) log-probabilities in at least float32, 0 where not scored.

    Raises:
        ValueError: the denoiser can emit an id for which the model has no row, or the text is too long for the model.
    """
    batch, k, length = candidate_ids.shape
    real = torch.ones_like(scored) if attention_mask is None else attention_mask.bool()
    if start_token_id is None:
        needs_start, start_token_id = torch.zeros(batch, dtype=torch.bool, device=scored.device), 0
    started = needs_start.unsqueeze(1)
    # Aligned left: column c of `text` is the c-th token of a row; `column` takes the input column that predicts it.
    order = (~real).long().argsort(dim=-1, stable=True)
    # The mask, which a causal model need not know, stands behind all that is scored of a row: any id will do there.
    text = candidate_ids.masked_fill(~real.unsqueeze(1) | (candidate_ids == mask_token_id), 0)
    text = text.gather(2, order.unsqueeze(1).expand(-1, k, -1))
    shifted = nn.functional.pad(text[..., :-1], (1, 0), value=start_token_id)
    inputs = torch.where(started.unsqueeze(1), shifted, text)
    column = torch.arange(length, device=scored.device) - (~started).long()
    wanted = (scored & real).gather(1, order) & (column >= 0)  # (B, L) by text token
    targets = torch.where(started.unsqueeze(1), text, nn.functional.pad(text[..., 1:], (0, 1)))
    predicts = torch.where(started, wanted, nn.functional.pad(wanted[:, 1:], (0, 1)))  # (B, L) by input column
    used = predicts.any(0).nonzero()
    if not len(used):
        return torch.zeros(candidate_ids.shape, device=candidate_ids.device)
    end = int(used.max()) + 1
    scorer = TokenScorer(causal_lm, denoiser_vocab_size, mask_token_id)
    scorer.check_length(end)

    split, cache, parts = 0, None, []
    shared -= int(not needs_start.all())  # without a start token, input column c already predicts token c + 1
    if shared >= SHORTEST_SHARED_PREFIX and accepts(causal_lm, "past_key_values"):
        split = min(shared, end)
        log_probs, cache = scorer(inputs[:, 0, :split], predicts[:, :split], targets[:, 0, :split], None, split < end)
        parts.append(log_probs.unsqueeze(1).expand(-1, k, -1))
    if split < end:
        row_of = torch.arange(batch, device=inputs.device).repeat_interleave(k)
        flat_inputs, flat_targets = (x.flatten(0, 1)[:, split:end] for x in (inputs, targets))
        size = chunk_size or scorer.affordable_rows(end - split)
        chunks = [
            scorer(flat_inputs[i], predicts[row_of[i], split:end], flat_targets[i], select_rows(cache, row_of[i]))[0]
            for i in torch.arange(batch * k, device=inputs.device).split(size)
        ]
        parts.append(torch.cat(chunks).view(batch, k, -1))
    by_column = nn.functional.pad(torch.cat(parts, dim=-1), (0, length - end))
    by_token = by_column.gather(2, column.clamp_min(0).unsqueeze(1).expand(batch, k, -1))
    by_token = torch.where(wanted.unsqueeze(1), by_token, 0)
    return torch.zeros_like(by_token).scatter(2, order.unsqueeze(1).expand(-1, k, -1), by_token)


class TokenScorer:
    """Scores tokens under a causal language model without holding the logits of a whole batch.

    Args:
        causal_lm: a causal language model; one with `projection` (ours) never builds logits that are not asked for.
        denoiser_vocab_size, mask_token_id: what the denoiser can emit; the softmax runs over that alone.
    """

    HIDDEN_BYTES = 2**28  # activations, or logits of foreign models, per call
    LOGIT_BYTES = 2**26  # logits per projection; smaller blocks fragment the heap of glibc (below 32 MB it keeps them)

    def __init__(self, causal_lm: nn.Module, denoiser_vocab_size: int, mask_token_id: int):
        self.causal_lm = causal_lm
        self.denoiser_vocab_size, self.mask_token_id = denoiser_vocab_size, mask_token_id
        self.project = causal_lm.projection() if hasattr(causal_lm, "projection") else None

    def affordable_rows(self, length: int) -> int:
        """Rows of `length` tokens that one call may have."""
        config = getattr(self.causal_lm, "config", None)
        vocab_size, hidden_size = getattr(config, "vocab_size", 1024), getattr(config, "hidden_size", 1024)
        floats = 32 * hidden_size if self.project is not None else 3 * vocab_size
        return max(1, self.HIDDEN_BYTES // (4 * floats * length))

    def __call__(self, input_ids, scored, targets, past_key_values=None, keep_cache=False):
        """log p of `targets` (N, L) where `scored` (N, L), else 0; and the key/value cache if it is kept."""
        arguments = {"input_ids": input_ids, "attention_mask": None}
        if accepts(self.causal_lm, "use_cache"):
            arguments["use_cache"] = keep_cache or past_key_values is not None
        if past_key_values is not None:
            arguments["past_key_values"] = past_key_values
        arguments |= as_output_object(self.causal_lm)
        if self.project is not None:
            output = self.causal_lm.backbone(**arguments)
            features = output.last_hidden_state[scored]
        else:
            output = self.causal_lm(**arguments)
            features = output.logits[scored]
        log_probs = self.score(features, targets[scored])
        result = torch.zeros(targets.shape, dtype=log_probs.dtype, device=targets.device)
        result[scored] = log_probs
        return result, getattr(output, "past_key_values", None) if keep_cache else None

    def score(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """log p of `targets` (N,) from what predicts them (N, ...): hidden states, or the logits of foreign models."""
        head = self.causal_lm.get_output_embeddings() if self.project is not None else None
        if is_plain_linear(head):
            self.check_rows(len(head.weight))
            return linear_log_probs(features, head, targets, self.foreign(len(head.weight), targets.device))
        project = self.project or at_least_float32
        rows = project(features[:0]).shape[-1]
        self.check_rows(rows)
        foreign, chunks, size = self.foreign(rows, targets.device), [], max(1, self.LOGIT_BYTES // (4 * rows))
        for part, target in zip(features.split(size), targets.split(size), strict=True):
            logits = project(part).masked_fill(foreign, -torch.inf)
            chunks.append(logits.gather(-1, target.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1))
        return torch.cat(chunks)

    def foreign(self, rows: int, device: torch.device) -> torch.Tensor:
        """(rows,) bool: the rows of the model's vocabulary that the denoiser cannot emit."""
        ids = torch.arange(rows, device=device)
        return (ids >= self.denoiser_vocab_size) | (ids == self.mask_token_id)

    def check_length(self, length: int) -> None:
        limit = getattr(getattr(self.causal_lm, "config", None), "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise ValueError(
                f"The autoregressive energy model reads at most {limit} tokens, but the text has {length}. Use a "
                "causal language model as long as the denoiser's texts, or shorter texts."
            )

    def check_rows(self, rows: int) -> None:
        highest = self.denoiser_vocab_size - 1 - (self.mask_token_id == self.denoiser_vocab_size - 1)
        if rows <= highest:
            raise ValueError(
                f"The denoiser can emit ids up to {highest}, but the autoregressive energy model has only {rows} rows. "
                "Use a causal language model of the same vocabulary."
            )


TILE = 512, 4096  # rows and vocabulary of the logits that exist at a time: 8 MB


def linear_log_probs(
    hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor, excluded: torch.Tensor
) -> torch.Tensor:
    """log softmax(W h + b) at `targets`: l_v - log sum_u exp(l_u), the sum taken tile by tile.

    Args:
        hidden: (N, H). head: H -> V, widened to at least float32 tile by tile. targets: (N,).
        excluded: (V,) bool, left out of the softmax; its log-probability is -inf.

    Returns:
        (N,), at least float32.
    """
    hidden = at_least_float32(hidden)
    bias = hidden.new_zeros(len(head.weight)) if head.bias is None else head.bias.to(hidden.dtype)
    bias, parts = bias.masked_fill(excluded, -torch.inf), []
    for rows, wanted in zip(hidden.split(TILE[0]), targets.split(TILE[0]), strict=True):
        normaliser = [
            nn.functional.linear(rows, weight.to(rows.dtype), shift).logsumexp(-1)
            for weight, shift in zip(head.weight.split(TILE[1]), bias.split(TILE[1]), strict=True)
        ]
        logits = (rows * head.weight[wanted].to(rows.dtype)).sum(-1) + bias[wanted]
        parts.append(logits - torch.stack(normaliser).logsumexp(0))
    return torch.cat(parts)


def select_rows(cache: Cache | None, rows: torch.Tensor) -> Cache | None:
    """A copy of a key/value cache with the given rows, each as often as it is named."""
    if cache is None:
        return None
    cache = copy.deepcopy(cache)
    cache.batch_select_indices(rows)
    return cache


def as_output_object(module: nn.Module) -> dict[str, bool]:
    """`return_dict=True` for models of transformers and ours, whose configuration may ask for tuples."""
    known = isinstance(module, MDLMPreTrainedModel) or type(module).__module__.startswith("transformers.")
    return {"return_dict": True} if known else {}


def accepts(module: nn.Module, name: str) -> bool:
    """Whether the forward of `module` has a parameter called `name`."""
    return name in inspect.signature(module.forward).parameters


__all__ = ["EDLMEnergyModel", "EDLMEnergyOutput", "EDLMSharedEnergyModel", "autoregressive_log_probs"]
