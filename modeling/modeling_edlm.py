"""EDLM: a masked diffusion denoiser and a residual energy in one model (arXiv 2410.21357)."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from .autoregressive_energy import AutoregressiveEnergy
from .causal_log_probs import as_output_object
from .checkpoints import CheckpointingMixin, list_keys, set_auto_map
from .component_checks import check_candidates, check_causal, check_parts, check_vocabularies
from .components import (
    HUB_ARGUMENTS,
    build_denoiser,
    build_energy,
    config_of_parts,
    load_causal,
    load_denoiser,
    load_energy,
    load_tokenizer,
    reference_name,
)
from .configuration_edlm import EDLMConfig
from .energies import Candidates, Energy
from .evaluation_mode import in_eval_mode
from .foreign_denoisers import as_denoiser, check_bidirectional, default_shift
from .generation_edlm import EDLMGenerationConfig, MaskedDiffusionGenerationMixin
from .masked_diffusion import subs_cross_entropy
from .modeling_mdlm import MDLMPreTrainedModel
from .network_energy import EDLMEnergyModel, EDLMEnergyOutput
from .network_facts import device_of, num_ids
from .network_probes import align_left, sees_padding, without_padding
from .noise_contrastive_energy import NoiseContrastiveEnergy
from .proposal import Proposal
from .vocabulary import check_token_ids


class EDLMForMaskedDiffusion(CheckpointingMixin, PreTrainedModel, MaskedDiffusionGenerationMixin):
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
        logits_shift: int | None = None,
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
            logits_shift: 1 if the logits at position i - 1 predict token i, 0 if those at i do. Unless given:
                `denoiser.config.logits_shift`, else 1 for models of type "Dream" and 0 for all others.
            kwargs: passed to `from_pretrained` of the parts given by name (`dtype`, `trust_remote_code`, ...).

        Raises:
            ValueError: the denoiser is causal, the vocabularies differ, or the choices contradict each other.
        """
        tokenizer = load_tokenizer(tokenizer, denoiser, kwargs)
        if isinstance(denoiser, str):
            denoiser = load_denoiser(denoiser, **kwargs)
        denoiser = as_denoiser(denoiser)
        where = kwargs | {"revision": energy_revision or "main", "trust_remote_code": trust_energy_code}
        energy, energy_type, energy_tokenizer = load_energy(energy, energy_type, energy_tokenizer, where)
        check_parts(denoiser, energy, energy_type)

        config = config_of_parts(
            denoiser,
            energy,
            tokenizer,
            energy_type=energy_type,
            energy_scope=energy_scope,
            energy_weights=energy_weights,
            energy_adapter_rank=energy_adapter_rank,
            energy_name_or_path=reference_name(energy) if energy_by_reference else None,
            energy_revision=energy_revision if energy_by_reference else None,
            mask_token_id=mask_token_id,
            logits_shift=default_shift(denoiser) if logits_shift is None else logits_shift,
        )
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
        """`PreTrainedModel.save_pretrained` of the whole, with the code beside it for `trust_remote_code=True`.

        Raises:
            ValueError: a part is neither from this package nor from transformers, or the denoiser's configuration is of
                a causal model, so nobody could load it again.
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
        if not isinstance(self.denoiser, MDLMPreTrainedModel):
            check_bidirectional(self.denoiser.config)
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

    def projecting_network(self):
        """The denoiser where it can project few positions alone, and its logits are not shifted."""
        knows = hasattr(self.denoiser, "hidden_at") and not self.config.logits_shift
        return self.denoiser if knows else None

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
        may_hold_masks = self.config.energy_scope == "revealed"
        check_token_ids("noisy_ids", noisy_ids, num_ids(self), self.config.mask_token_id)
        check_candidates(candidate_ids, noisy_ids, attention_mask, self.config.mask_token_id, may_hold_masks)
        if timesteps is not None and timesteps.numel() not in (1, len(noisy_ids)):
            raise ValueError(f"timesteps has {timesteps.numel()} values, but one per row ({len(noisy_ids)}) is needed.")
        if attention_mask is not None:  # networks count positions in different ways, but all from the left
            order, attention_mask = align_left(attention_mask.to(noisy_ids.device))
            noisy_ids = noisy_ids.gather(1, order)
            candidate_ids = candidate_ids.gather(2, order.unsqueeze(1).expand_as(candidate_ids))
        masked = noisy_ids == self.config.mask_token_id
        energy = self.own_energy(self.config.energy_scope)
        if energy is None:
            return torch.zeros(candidate_ids.shape[:2], device=candidate_ids.device)

        # The proposal, of which an autoregressive energy needs log p_theta of every candidate and a network nothing
        if self.config.energy_type == "nce":
            proposal = Proposal(noisy_ids, masked, self.config, attention_mask=attention_mask, timesteps=timesteps)
            log_probs, vocab_size = None, self.config.vocab_size
        else:
            at = masked | ~masked.any()  # one position at least
            proposal = self.propose(noisy_ids, at, attention_mask, timesteps)
            log_probs, vocab_size = proposal.log_probs(candidate_ids), proposal.vocab_size
        proposed = candidate_ids[masked.unsqueeze(1).expand_as(candidate_ids)]
        check_token_ids("candidate_ids", proposed, vocab_size, self.config.mask_token_id)
        return energy(Candidates(candidate_ids, log_probs), proposal)

    def own_energy(self, scope: str, chunk_size: int | None = None) -> Energy | None:
        """The energy of this model, which weighs candidates of a `scope`; None for `energy_type="none"`.

        Raises:
            ValueError: it was not loaded, or its network was trained for another scope.
        """
        if self.config.energy_type == "none":
            return None
        if self.energy_model is None:
            raise ValueError(
                f"The energy ({self.config.energy_name_or_path}) is kept by reference and was not loaded. Load the "
                "model with from_pretrained, or set model.energy_model."
            )
        if self.config.energy_type != "nce":
            return AutoregressiveEnergy(self.energy_model, self.config, scope, chunk_size)
        if scope != self.config.energy_scope:
            raise ValueError(
                f"energy_scope is {scope!r}, but the NCE energy of this model was trained for "
                f"{self.config.energy_scope!r}. Leave energy_scope out, or pass an energy of your own. If an adapter "
                "was trained for another scope than its base, load the base with from_pretrained(..., "
                "energy_scope=...)."
            )
        return NoiseContrastiveEnergy(self.energy_model, self.config, chunk_size)


__all__ = ["EDLMForMaskedDiffusion"]
