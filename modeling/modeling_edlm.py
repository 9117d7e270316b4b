"""EDLM: a masked diffusion denoiser and a residual energy in one model (arXiv 2410.21357)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils import cached_file, logging
from transformers.utils.generic import can_return_tuple

from .autoregressive_energy import accepts, as_output_object, autoregressive_log_probs
from .card_edlm import CardMixin
from .configuration_edlm import ENERGY_TYPES, EDLMConfig, PlainModuleConfig, check_choice
from .configuration_mdlm import MDLMConfig
from .denoising_edlm import fill_candidates
from .evaluation_mode import in_eval_mode
from .generation_edlm import EDLMGenerationConfig, MaskedDiffusionGenerationMixin
from .masked_diffusion import at_least_float32, check_token_ids, subs_cross_entropy, token_log_probs
from .modeling_mdlm import (
    CheckpointingMixin,
    MDLMForCausalLM,
    MDLMForMaskedLM,
    MDLMPreTrainedModel,
    list_keys,
    set_auto_map,
)
from .network_energy import EDLMEnergyModel, EDLMEnergyOutput
from .network_facts import device_of, num_ids, start_token
from .network_probes import align_left, is_causal, sees_padding, without_padding
from .shared_energy import EDLMSharedEnergyModel
from .vocabulary import absent_ids, check_mask_token, suppress_impossible

logger = logging.get_logger(__name__)

# Arguments of from_pretrained that say where from, not what
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "proxies")


class EDLMForMaskedDiffusion(CardMixin, CheckpointingMixin, PreTrainedModel, MaskedDiffusionGenerationMixin):
    """A denoiser p_theta(x_0|x_t) and an energy E(x_0, x_t); together p(x_0|x_t) = p_theta exp(-E) / Z.

    `model.denoiser` and `model.energy_model` are plain sub-modules; either may be replaced by another with the same
    call. `energy_type` says what the energy is: `none`, `ar`, `coar` or `nce` (see `EDLMConfig`).
    """

    config: EDLMConfig
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    generation_config_class = EDLMGenerationConfig
    _auto_class = "AutoModelForMaskedLM"
    _auto_map = {
        "AutoModel": "modeling_edlm.EDLMForMaskedDiffusion",
        "AutoModelForMaskedLM": "modeling_edlm.EDLMForMaskedDiffusion",
        "AutoModelForCausalLM": "modeling_edlm.EDLMForMaskedDiffusion",
    }

    def __init__(self, config: EDLMConfig, denoiser: nn.Module | None = None, energy_model: nn.Module | None = None):
        """Build the parts from `config`, or take the given ones as they are (`from_components` checks them)."""
        super().__init__(config)
        self.denoiser = denoiser if denoiser is not None else build_denoiser(config)
        self.energy_model = energy_model if energy_model is not None else build_energy(config, self.denoiser)
        self.post_init()

    def init_weights(self):
        """Nothing: parts initialise and tie their weights when they are made, and given ones stay as they are."""

    # ------------------------------------------------------------------------------------------ putting it together

    @classmethod
    def from_components(
        cls,
        denoiser: nn.Module | str,
        energy: nn.Module | str | None = None,
        energy_type: str | None = None,
        energy_scope: str = "sequence",
        *,
        energy_weights: str = "own",
        energy_adapter_rank: int = 0,
        energy_by_reference: bool = False,
        energy_revision: str | None = None,
        trust_energy_code: bool = False,
        mask_token_id: int | None = None,
        tokenizer=None,
        energy_tokenizer=None,
        logits_shift: int = 0,
        **kwargs,
    ) -> "EDLMForMaskedDiffusion":
        """Combine any masked language model with any causal language model of the same vocabulary, or an NCE energy.

        Args:
            denoiser: a module called as `denoiser(input_ids=..., attention_mask=...)`, returning `.logits`; or a name.
            energy: a causal language model (`ar`, `coar`), an `EDLMEnergyModel` (`nce`), or a name. None with
                `energy_type="nce"` makes a new energy network that starts from the denoiser.
            energy_type: `none` without an energy, `nce` for an `EDLMEnergyModel`, `ar` for the rest, unless given.
            energy_weights: `shared` lets a new NCE energy read the denoiser's own trunk, with low-rank updates of
                `energy_adapter_rank` unless that is 0.
            energy_by_reference: `save_pretrained` stores the name (and `energy_revision`) of the AR energy instead of
                its weights.
            trust_energy_code: run the code in the repository of an energy given by name; `trust_remote_code` is for
                the denoiser alone.
            mask_token_id: taken from the denoiser's configuration or `tokenizer` unless given.
            tokenizer, energy_tokenizer: tokenizers or names; where both are known their vocabularies are compared. Ids
                that the denoiser's tokenizer lacks are never drawn (its special tokens can be).
            kwargs: passed to `from_pretrained` of the parts given by name (`dtype`, `trust_remote_code`, ...).

        Raises:
            ValueError: the denoiser is causal, the vocabularies differ, or the choices contradict each other.
        """
        tokenizer = load_tokenizer(tokenizer, denoiser, kwargs)
        energy_kwargs = kwargs | {"revision": energy_revision or "main", "trust_remote_code": trust_energy_code}
        with explained_trust(energy_tokenizer if isinstance(energy_tokenizer, str) else energy):
            energy_tokenizer = load_tokenizer(energy_tokenizer, energy, energy_kwargs)
        if isinstance(denoiser, str):
            denoiser = load_denoiser(denoiser, **kwargs)
        if energy_type is None:
            energy_type = "none" if energy is None else "nce" if isinstance(energy, EDLMEnergyModel) else "ar"
        check_choice("energy_type", energy_type, ENERGY_TYPES)
        if isinstance(energy, str) and energy_type == "nce":
            energy = EDLMEnergyModel.from_pretrained(energy, **energy_kwargs)
        elif isinstance(energy, str):
            energy = load_causal(energy, **energy_kwargs)
        if (energy is None) != (energy_type == "none") and not (energy is None and energy_type == "nce"):
            given = "no energy" if energy is None else f"an energy ({type(energy).__name__})"
            raise ValueError(
                f"energy_type is {energy_type!r} but {given} was given. Pass a causal language model for 'ar' or "
                "'coar', an EDLMEnergyModel (or nothing, to start one from the denoiser) for 'nce', nothing for 'none'."
            )
        check_module("denoiser", denoiser)
        if energy is not None:
            check_module("energy", energy)
        check_denoiser(denoiser)
        if energy_type == "nce":
            check_loaded(denoiser) if energy is None else check_network(energy)
        reference = name_of(energy) if energy_by_reference else None
        denoiser_config = config_of(denoiser)
        if mask_token_id is None and getattr(denoiser_config, "mask_token_id", None) is None and tokenizer is not None:
            mask_token_id = tokenizer.mask_token_id
        config = EDLMConfig(
            denoiser_config=denoiser_config,
            energy_config=None if energy is None else config_of(energy),
            energy_type=energy_type,
            energy_scope=energy_scope,
            energy_weights=energy_weights,
            energy_adapter_rank=energy_adapter_rank,
            energy_name_or_path=reference,
            energy_revision=energy_revision if reference else None,
            mask_token_id=mask_token_id,
            absent_token_ids=None if tokenizer is None else absent_ids(tokenizer, num_ids(denoiser)),
            logits_shift=logits_shift,
            attn_implementation={  # setting it would set that of the parts, which are built already
                "": attention_of_part(denoiser),
                "denoiser_config": attention_of_part(denoiser),
                "energy_config": attention_of_part(energy),
            },
        )
        if tokenizer is not None:
            check_mask_token(tokenizer, config, required=False)
        if energy_type in ("ar", "coar"):
            check_vocabularies(config, tokenizer, energy_tokenizer)
            check_causal(energy)
        if energy is None and energy_type == "nce" and energy_weights == "own":
            energy = EDLMEnergyModel.from_denoiser(denoiser)
            config.energy_config = energy.config
        return cls(config, denoiser, energy).eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        output_loading_info=False,
        trust_energy_code: bool = False,
        **kwargs,
    ):
        """`PreTrainedModel.from_pretrained` of the whole; an AR energy kept by reference is loaded from its own place.

        Args:
            trust_energy_code: run the code in the repository of such an energy. Whoever wrote the configuration chose
                that repository: `trust_remote_code` does not reach it. Pin what you have read by `energy_revision`.

        Raises:
            ValueError: the file lacks a weight of the model or has one too many; the energy needs code that is not
                trusted, or is itself a composite.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
        if pretrained_model_name_or_path is not None and (missing or unexpected):
            raise ValueError(
                f"The weights of {pretrained_model_name_or_path} do not fit its configuration: "
                f"{list_keys('missing', missing)}{list_keys('not part of the model', unexpected)}"
                "Save it again with save_pretrained, or check energy_type and the two sub-configurations."
            )
        if model.config.energy_name_or_path is not None and model.energy_model is None:
            shared = ("dtype", "torch_dtype", "device_map", "attn_implementation", *HUB_ARGUMENTS)
            model.energy_model = load_causal(
                model.config.energy_name_or_path,
                revision=model.config.energy_revision or "main",
                trust_remote_code=trust_energy_code,
                **{name: kwargs[name] for name in shared if name in kwargs},
            )
            model.config.energy_config = model.energy_model.config
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """`PreTrainedModel.save_pretrained` of the whole, with a model card and the code for `trust_remote_code=True`.

        Raises:
            ValueError: a part is neither from this package nor from transformers, so nobody could load it again.
        """
        stored = {"denoiser": self.denoiser}
        if self.config.energy_name_or_path is None and self.energy_model is not None:
            stored["energy_model"] = self.energy_model
        for name, part in stored.items():
            if not isinstance(part, MDLMPreTrainedModel) and not type(part).__module__.startswith("transformers."):
                raise ValueError(
                    f"The {name} is a {type(part).__module__}.{type(part).__name__}, whose code is not part of this "
                    "package or of transformers, so the whole could not be loaded again. Save that part by itself and "
                    "use from_components after loading it."
                )
        if self.config.energy_name_or_path is not None:
            weights = kwargs.get("state_dict") or self.state_dict()
            kwargs["state_dict"] = {name: w for name, w in weights.items() if not name.startswith("energy_model.")}
        dtypes = {name: part.dtype for name, part in stored.items()}
        if len(set(dtypes.values())) > 1:
            raise ValueError(
                f"The parts have different precisions ({dtypes}), but a checkpoint has one. Cast the whole, for "
                "example with model.to(torch.bfloat16)."
            )
        if self.config.energy_weights == "shared" and self.energy_model.trunk is not self.denoiser.backbone:
            raise ValueError(
                "energy_weights='shared', but the energy reads the trunk of another denoiser than model.denoiser. Put "
                "them together with from_components."
            )
        self.config.denoiser_config = self.denoiser.config
        if self.energy_model is not None and self.config.energy_weights == "own":
            self.config.energy_config = self.energy_model.config
        set_auto_map(self)
        for part in stored.values():
            part.config.dtype = part.dtype
            part.config.__dict__.pop("auto_map", None)  # the code of the whole is beside it
        super().save_pretrained(save_directory, *args, **kwargs)

    # --------------------------------------------------------------------------------------------------- computing

    def get_input_embeddings(self) -> nn.Module:
        return self.denoiser.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.denoiser.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.denoiser.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module):
        self.denoiser.set_output_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """Resize the vocabulary of both parts; the mask token keeps its id."""
        embeddings = self.denoiser.resize_token_embeddings(*args, **kwargs)
        if self.energy_model is not None and self.config.energy_weights == "own":
            self.energy_model.resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = self.denoiser.config.vocab_size
        return embeddings

    @property
    def vocab_size(self) -> int | None:
        return self.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the parts compute, also while their weights are offloaded; the CPU for parts without any."""
        return device_of(self)

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating-point parameter or buffer."""
        floats = (x.dtype for x in (*self.parameters(), *self.buffers()) if x.is_floating_point())
        return next(floats, torch.get_default_dtype())

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        candidate_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput | EDLMEnergyOutput:
        """The denoiser's logits (B, L, V), position by position whatever `logits_shift` is.

        Args:
            input_ids, attention_mask: (B, L), as for the denoiser.
            timesteps: (B,) total noise sigma, for denoisers that are conditioned on time.
            labels: (B, L), -100 where nothing is to be predicted; mean cross-entropy of the SUBS log-probabilities.
            candidate_ids: (B, k, L). With it the output is the `energy` (B, k) of the NCE network and no logits: the
                call by which it is trained (wrappers for several processes see `forward` alone); elsewhere `energy()`.

        Raises:
            ValueError: `candidate_ids` for an energy that is not a network.
        """
        if candidate_ids is not None:
            if self.config.energy_type != "nce":
                raise ValueError(
                    f"candidate_ids was given, but energy_type is {self.config.energy_type!r}: only the network of "
                    "'nce' is called this way. Use energy(candidate_ids, noisy_ids)."
                )
            return self.energy_model(candidate_ids, input_ids, attention_mask=attention_mask, timesteps=timesteps)
        if self.config.time_conditioning:
            kwargs["timesteps"] = timesteps
        kwargs |= as_output_object(self.denoiser)
        outputs = self.denoiser(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        logits = outputs.logits
        if self.config.logits_shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        loss = None
        if labels is not None:
            loss = subs_cross_entropy(logits, labels.to(logits.device), input_ids, self.config.mask_token_id)
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
        )

    def features_at(self, positions, input_ids, attention_mask=None, timesteps=None, **inputs):
        """What the logits at `positions` are made of, and how: see `MDLMForMaskedLM.features_at`."""
        if hasattr(self.denoiser, "features_at") and not self.config.logits_shift:
            return self.denoiser.features_at(positions, input_ids, attention_mask, timesteps, **inputs)
        return super().features_at(positions, input_ids, attention_mask, timesteps, **inputs)

    def text_logits(self, input_ids, attention_mask=None, timesteps=None, **inputs):
        """Logits (B, L, V) of rows that are aligned left: a denoiser that sees padding runs them without it."""
        rows = input_ids, attention_mask, timesteps

        def logits_of(ids, real, sigma, **of_ids):
            return self(input_ids=ids, attention_mask=real, timesteps=sigma, **of_ids).logits

        padded = attention_mask is not None and bool(attention_mask.any()) and not bool(attention_mask.all())
        if padded and sees_padding(self.denoiser, logits_of, *rows, **inputs):
            return without_padding(logits_of, *rows, **inputs)
        return logits_of(*rows, **inputs)

    @in_eval_mode
    def energy(
        self,
        candidate_ids: torch.LongTensor,
        noisy_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """E(x_0, x_t) of every candidate, in eval mode; low = likely. Zero for `energy_type="none"`.

        Args:
            candidate_ids: (B, k, L) clean sequences that agree with `noisy_ids` wherever those are visible; with
                `energy_scope="revealed"` the mask stays where nothing is revealed.
            noisy_ids: (B, L). attention_mask: (B, L), 0 at padding on either side, which changes nothing.
            timesteps: (B,) total noise sigma, for networks that are conditioned on time.

        Returns:
            (B, k), at least float32; float64 where the networks compute in it.

        Raises:
            ValueError: shapes do not fit, a candidate changes a visible token or still holds a mask; an AR energy of
                scope `revealed` whose reveal set is not the next block of the text.
        """
        partial = self.config.energy_scope == "revealed"
        check_token_ids("noisy_ids", noisy_ids, num_ids(self), self.config.mask_token_id)
        check_candidates(candidate_ids, noisy_ids, attention_mask, self.config.mask_token_id, partial)
        if timesteps is not None and timesteps.numel() not in (1, len(noisy_ids)):
            raise ValueError(f"timesteps has {timesteps.numel()} values, but one per row ({len(noisy_ids)}) is needed.")
        if attention_mask is not None:  # networks count positions in different ways, but all from the left
            order, attention_mask = align_left(attention_mask.to(noisy_ids.device))
            noisy_ids = noisy_ids.gather(1, order)
            candidate_ids = candidate_ids.gather(2, order.unsqueeze(1).expand_as(candidate_ids))
        masked = noisy_ids == self.config.mask_token_id
        proposed = candidate_ids[masked.unsqueeze(1).expand_as(candidate_ids)]
        if self.config.energy_type not in ("ar", "coar"):
            check_token_ids("candidate_ids", proposed, self.config.vocab_size, self.config.mask_token_id)
            return self.candidate_energies(candidate_ids, noisy_ids, None, None, attention_mask, timesteps)

        # log p_theta of the N masked tokens (N, V), and of those of the candidates (B, k, L), 0 where visible
        positions = masked | ~masked.any()
        features, project = self.features_at(positions, noisy_ids, attention_mask, timesteps)
        log_probs = token_log_probs(suppress_impossible(project(features), self.config), self.config.mask_token_id)
        vocab_size = log_probs.shape[-1]
        check_token_ids("candidate_ids", proposed, vocab_size, self.config.mask_token_id)
        tokens = candidate_ids.transpose(1, 2)[positions].clamp(0, vocab_size - 1)
        nothing = torch.zeros(noisy_ids.shape, dtype=log_probs.dtype, device=log_probs.device)
        proposal = fill_candidates(nothing, positions, log_probs.gather(-1, tokens))
        proposal = torch.where(masked.unsqueeze(1), proposal, 0)
        return self.candidate_energies(candidate_ids, noisy_ids, proposal, vocab_size, attention_mask, timesteps)

    def candidate_energies(
        self,
        candidate_ids: torch.LongTensor,
        noisy_ids: torch.LongTensor,
        proposal_log_probs: torch.Tensor | None,
        vocab_size: int | None,
        attention_mask: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        chunk_size: int | None = None,
        energy_scope: str | None = None,
    ) -> torch.Tensor:
        """`energy()` for proposals at hand: the log-probability of every token (B, k, L), 0 where visible, out of V.

        Positions of `candidate_ids` that still hold the mask are outside the reveal set (`energy_scope="revealed"`,
        the model's unless given): an autoregressive energy then needs the reveal set to be the next block of the text.
        """
        if self.config.energy_type == "none":
            return torch.zeros(candidate_ids.shape[:2], device=candidate_ids.device)
        if self.energy_model is None:
            raise ValueError(
                f"The energy ({self.config.energy_name_or_path}) is kept by reference and was not loaded. Load the "
                "model with from_pretrained, or set model.energy_model."
            )
        if self.config.energy_type == "nce":
            return self._network_energy(candidate_ids, noisy_ids, attention_mask, timesteps, chunk_size)
        partial = (energy_scope or self.config.energy_scope) == "revealed"
        return self._autoregressive_energy(
            candidate_ids, noisy_ids, proposal_log_probs, vocab_size, attention_mask, chunk_size, partial
        )

    def _network_energy(self, candidate_ids, noisy_ids, attention_mask, timesteps, chunk_size) -> torch.Tensor:
        batch, k, length = candidate_ids.shape
        if chunk_size is None:
            chunk_size = max(1, 2**28 // (4 * 32 * length * (self.config.hidden_size or 1024)))
        energies = []
        for rows in torch.arange(batch, device=noisy_ids.device).split(chunk_size):
            mask = None if attention_mask is None else attention_mask[rows]
            sigma = timesteps if timesteps is None or timesteps.numel() == 1 else timesteps[rows]
            of_rows = [
                self.energy_model(part, noisy_ids[rows], attention_mask=mask, timesteps=sigma).energy
                for part in candidate_ids[rows].split(max(1, chunk_size // len(rows)), dim=1)
            ]
            energies.append(torch.cat(of_rows, dim=1))
        return at_least_float32(torch.cat(energies))

    def _autoregressive_energy(
        self, candidate_ids, noisy_ids, proposal, vocab_size, attention_mask, chunk_size, partial
    ) -> torch.Tensor:
        """E = -log p_AR(x_0) + log p_theta(x_0|x_t); `coar` sums the first term over masked positions only.

        `partial`: both terms over the reveal set only, E_S, for `ar` and `coar` alike.
        """
        mask_token_id = self.config.mask_token_id
        real = torch.ones_like(noisy_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        revealed = masked = real & (noisy_ids == mask_token_id)
        if partial:
            revealed = revealed_block(candidate_ids, masked, real, mask_token_id)
        counted = real if self.config.energy_type == "ar" and not partial else revealed
        first = real.long().argmax(-1, keepdim=True)
        first_token = noisy_ids.gather(1, first).squeeze(1)
        start = start_token(getattr(self.energy_model, "config", None))
        # A row whose visible first token is the start token needs no other in front.
        needs_start = (first_token != start) | (first_token == mask_token_id) if start is not None else None
        text_masked = masked.gather(1, (~real).long().argsort(dim=-1, stable=True))  # aligned left
        causal = autoregressive_log_probs(
            self.energy_model,
            candidate_ids,
            counted,
            denoiser_vocab_size=vocab_size,
            mask_token_id=mask_token_id,
            absent_token_ids=self.config.absent_token_ids,
            start_token_id=start,
            needs_start=needs_start,
            attention_mask=attention_mask,
            shared=int(text_masked.long().argmax(-1).min()),
            chunk_size=chunk_size,
        )
        dtype = torch.promote_types(causal.dtype, proposal.dtype)
        causal, proposal = causal.to(dtype), proposal.to(dtype)
        if start is None:  # nothing scores the first token: it keeps the proposal's own probability, which cancels
            if self.config.energy_type == "ar":
                logger.warning_once(
                    "The autoregressive energy model has no bos_token_id, so the first token keeps the law of the "
                    "proposal and the energy is approximate. Set energy_model.config.bos_token_id if it has one."
                )
            at_first = counted & (torch.arange(noisy_ids.shape[1], device=first.device) == first)
            causal = torch.where(at_first.unsqueeze(1), proposal, causal)
        log_p_theta, log_p_ar = torch.where(revealed.unsqueeze(1), proposal, 0).sum(-1), causal.sum(-1)
        return torch.where(log_p_ar == -torch.inf, torch.inf, log_p_theta - log_p_ar)  # impossible text is rejected


def revealed_block(
    candidate_ids: torch.Tensor, masked: torch.Tensor, real: torch.Tensor, mask_token_id: int
) -> torch.Tensor:
    """The revealed positions (B, L), in every row a contiguous block between a visible prefix and a masked suffix.

    Args:
        candidate_ids: (B, k, L), the mask where nothing is revealed. masked, real: (B, L) bool.

    Raises:
        ValueError: they are not, so that an autoregressive model cannot score them by themselves; or the candidates of
            a row reveal different positions.
    """
    hidden = (candidate_ids == mask_token_id) & masked.unsqueeze(1)
    if (hidden != hidden[:, :1]).any():
        raise ValueError("The candidates of a row reveal different positions. Energies compare those of one step.")
    hidden = hidden[:, 0]
    revealed = masked & ~hidden
    some = revealed.any(-1, keepdim=True)
    started = revealed.long().cumsum(-1) > 0  # from the first revealed position on
    ended = revealed.long().flip(-1).cumsum(-1).flip(-1) == 0  # behind the last one
    gap, out_of_order = started & ~ended & ~revealed, started & ended & ~hidden
    if ((masked & ~started & some) | ((gap | out_of_order) & real)).any():
        raise ValueError(
            "An AR energy with energy_scope='revealed' needs every step to reveal the next tokens of the text, left to "
            "right. Use max_denoising_steps=1 with block_length, or energy_scope='sequence'."
        )
    return revealed


# ------------------------------------------------------------------------------------------------- building the parts


def build_denoiser(config: EDLMConfig) -> PreTrainedModel:
    if config.denoiser_config.model_type == MDLMConfig.model_type:
        return MDLMForMaskedLM(config.denoiser_config)
    return AutoModelForMaskedLM.from_config(config.denoiser_config, trust_remote_code=False)


def build_energy(config: EDLMConfig, denoiser: nn.Module) -> PreTrainedModel | None:
    if config.energy_type == "none" or config.energy_name_or_path is not None:
        return None
    if config.energy_weights == "shared":
        return EDLMSharedEnergyModel(denoiser.backbone, config.energy_adapter_rank)
    if config.energy_type == "nce":
        return EDLMEnergyModel(config.energy_config)
    if config.energy_config.model_type == MDLMConfig.model_type:
        return MDLMForCausalLM(config.energy_config)
    return AutoModelForCausalLM.from_config(config.energy_config, trust_remote_code=False)


def where_from(kwargs: dict) -> dict:
    """The arguments of `from_pretrained` that say where a part comes from."""
    return {key: kwargs[key] for key in (*HUB_ARGUMENTS, "revision", "trust_remote_code") if key in kwargs}


def load_denoiser(name: str, **kwargs) -> PreTrainedModel:
    """A masked language model by name; diffusion models of the Hub live under other auto classes as well."""
    config = AutoConfig.from_pretrained(name, **where_from(kwargs))
    listed = getattr(config, "auto_map", None) or {}
    for auto_class in (AutoModelForMaskedLM, AutoModelForCausalLM, AutoModel):
        if type(config) in auto_class._model_mapping or auto_class.__name__ in listed:
            return auto_class.from_pretrained(name, **kwargs)
    raise ValueError(f"{name} (model_type {config.model_type!r}) has no language model to load as the denoiser.")


def load_causal(name: str, **kwargs) -> PreTrainedModel:
    """An autoregressive energy by name; `trust_remote_code` is that of `trust_energy_code`.

    Raises:
        ValueError: it needs code that is not trusted, or is a composite, which might refer to itself.
    """
    with explained_trust(name):
        config = AutoConfig.from_pretrained(name, **where_from(kwargs))
        if config.model_type == EDLMConfig.model_type:
            raise ValueError(
                f"The energy {name!r} is itself a composite of denoiser and energy. Give a causal language model."
            )
        return AutoModelForCausalLM.from_pretrained(name, config=config, **kwargs)


@contextmanager
def explained_trust(energy: str | None) -> Iterator[None]:
    """Where transformers refuses to run the code of an energy's repository, say which argument is for that."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"The energy {energy!r} needs the code in its repository, which trust_remote_code of the whole does not "
            "allow. Read that code, and pass trust_energy_code=True with the commit as energy_revision; or load the "
            "energy yourself, and give the model to from_components."
        ) from error


def load_tokenizer(tokenizer, component, kwargs: dict):
    """The given tokenizer, loaded if it is a name; else the one beside a component given by name, if there is one."""
    where = where_from(kwargs)
    if isinstance(tokenizer, str):
        return AutoTokenizer.from_pretrained(tokenizer, **where)
    if tokenizer is not None or not isinstance(component, str):
        return tokenizer
    files = {key: value for key, value in where.items() if key != "trust_remote_code"}
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt"):
        if cached_file(component, file, _raise_exceptions_for_missing_entries=False, **files) is not None:
            return AutoTokenizer.from_pretrained(component, **where)
    return None


def config_of(module: nn.Module) -> PreTrainedConfig:
    """The configuration of a part, or what a plain module tells about itself."""
    config = getattr(module, "config", None)
    if isinstance(config, PreTrainedConfig):
        return config
    known = {name: getattr(config, name, None) for name in PlainModuleConfig.__annotations__}
    known["vocab_size"] = known["vocab_size"] or getattr(module, "vocab_size", None)
    return PlainModuleConfig(**known)


def name_of(energy: nn.Module | None) -> str:
    name = getattr(getattr(energy, "config", None), "_name_or_path", None)
    if not name:
        raise ValueError(
            "energy_by_reference=True, but the energy was not loaded from a repository or folder, so there is nothing "
            "to refer to. Give its name as `energy`, or store it inside (energy_by_reference=False)."
        )
    return name


def attention_of_part(part: nn.Module | None) -> str | None:
    return getattr(getattr(part, "config", None), "_attn_implementation", None)


# -------------------------------------------------------------------------------------------------------------- checks


def check_causal(energy: nn.Module) -> None:
    """Refuse a model that sees what it is to predict in the place of the AR energy."""
    if not is_causal(energy):
        raise ValueError(
            f"The {type(energy).__name__} is no causal language model: its prediction of a token depends on later "
            "ones. Pass a causal one (AutoModelForCausalLM), or energy_type='nce' for an energy network."
        )


def check_module(name: str, part) -> None:
    """Refuse what is no model, a callable among it."""
    if not isinstance(part, nn.Module):
        raise ValueError(
            f"The {name} is a {type(part).__name__}, but a model is needed (torch.nn.Module) or the name of one. A "
            "function that weighs proposals goes to generate(energy=...)."
        )


def check_loaded(denoiser: nn.Module) -> None:
    """Refuse weights that are offloaded as the start of an energy."""
    if any(parameter.device.type == "meta" for parameter in denoiser.parameters()):
        raise ValueError(
            "An energy cannot start from a denoiser whose weights are offloaded (on the device `meta`). Put the energy "
            "on it first, and offload the whole."
        )


def check_network(energy: nn.Module) -> None:
    """Refuse a model that does not read candidates in the place of the NCE energy; modules of others are believed."""
    if isinstance(energy, PreTrainedModel) and not accepts(energy, "candidate_ids"):
        raise ValueError(
            f"energy_type is 'nce', but the {type(energy).__name__} takes no candidate_ids. Pass an EDLMEnergyModel or "
            "a module that is called as one. A causal language model goes with energy_type='ar' or 'coar'."
        )


def check_denoiser(denoiser: nn.Module) -> None:
    """Refuse a causal language model in the place of the denoiser.

    Classes that transformers lists as causal are asked (a GPT-2 made bidirectional, as in DiffuGPT, passes).
    """
    config = getattr(denoiser, "config", None)
    causal = bool(getattr(config, "causal", False))
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    if isinstance(denoiser, known) and not isinstance(denoiser, MDLMPreTrainedModel):
        causal = is_causal(denoiser)
    if causal:
        raise ValueError(
            f"The denoiser is a causal language model ({type(denoiser).__name__}), which cannot fill masks. Pass a "
            "masked language model (AutoModelForMaskedLM) as the denoiser and the causal one as `energy`."
        )


def check_vocabularies(config: EDLMConfig, tokenizer, energy_tokenizer, shown: int = 5) -> None:
    """Where both tokenizers are known, every id the denoiser can emit is the same token to the AR model."""
    if tokenizer is None or energy_tokenizer is None:
        return
    ours = {i: token for token, i in tokenizer.get_vocab().items() if i != config.mask_token_id}
    theirs = {i: token for token, i in energy_tokenizer.get_vocab().items()}
    different = sorted(
        i for i in ours if ours[i] != theirs.get(i) and (config.vocab_size is None or i < config.vocab_size)
    )
    if different:
        examples = ", ".join(f"{i} ({ours[i]!r} against {theirs.get(i)!r})" for i in different[:shown])
        raise ValueError(
            f"The vocabularies of denoiser and energy differ at {len(different)} ids: {examples}"
            f"{', ...' if len(different) > shown else ''}. An AR energy must use the denoiser's tokenizer."
        )


def check_candidates(candidate_ids, noisy_ids, attention_mask, mask_token_id: int, partial: bool) -> None:
    """Shapes fit, visible tokens are carried over, and unless `partial` no mask is left among the real positions."""
    shape = tuple(candidate_ids.shape)
    if len(shape) != 3 or 0 in shape or (shape[0], shape[2]) != tuple(noisy_ids.shape):
        raise ValueError(
            f"candidate_ids has shape {shape} and noisy_ids {tuple(noisy_ids.shape)}, but (B, k, L) and (B, L) are "
            "needed, none of them 0."
        )
    if attention_mask is not None and attention_mask.shape != noisy_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but (B, L) like noisy_ids is needed."
        )
    real = torch.ones_like(noisy_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    visible = noisy_ids != mask_token_id
    changed = (candidate_ids != noisy_ids.unsqueeze(1)) & (visible & real).unsqueeze(1)
    if changed.any():
        row, candidate, position = changed.nonzero()[0].tolist()
        raise ValueError(
            f"Candidate {candidate} of row {row} changes the visible token at position {position}. Candidates must "
            "agree with noisy_ids wherever that is not the mask token."
        )
    if not partial and ((candidate_ids == mask_token_id) & real.unsqueeze(1)).any():
        raise ValueError("candidate_ids still holds mask tokens. Energies are those of complete sequences.")


__all__ = ["EDLMForMaskedDiffusion"]
