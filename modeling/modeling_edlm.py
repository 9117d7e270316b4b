"""EDLM: a masked diffusion denoiser and a residual energy in one model (arXiv 2410.21357).

Shapes: B rows, L positions, V vocabulary, k candidates.
"""

import torch
from torch import nn
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from .autoregressive_energy import AutoregressiveEnergy
from .canvas_edlm import check_zeros_and_ones
from .causal_log_probs import as_output_object
from .component_checks import check_candidates, check_causal, check_parts, check_vocabularies
from .components import (
    build_denoiser,
    build_energy,
    config_of_parts,
    load_denoiser,
    load_energy,
    load_tokenizer,
    reference_name,
)
from .configuration_edlm import EDLMConfig
from .edlm_pretrained import EDLMPreTrainedModel
from .energies import Candidates, Energy
from .evaluation_mode import in_eval_mode
from .foreign_denoisers import as_denoiser, default_shift
from .generation_edlm import EDLMGenerationConfig, MaskedDiffusionGenerationMixin
from .masked_diffusion import subs_cross_entropy
from .network_energy import EDLMEnergyModel, EDLMEnergyOutput
from .network_facts import accepts, is_compiled, logits_of, num_ids, on_device_of
from .network_probes import align_left, sees_padding, without_padding
from .noise_contrastive_energy import NoiseContrastiveEnergy
from .positions import Positions
from .proposal import Proposal
from .vocabulary import check_integers, check_token_ids


class EDLMForMaskedDiffusion(EDLMPreTrainedModel, MaskedDiffusionGenerationMixin):
    """A denoiser p_theta(x_0|x_t) and an energy E(x_0, x_t).

    Together: p(x_0|x_t) = p_theta(x_0|x_t) exp(-E(x_0, x_t)) / Z(x_t)

    `model.denoiser` and `model.energy_model` are plain sub-modules. Either may be replaced by
    another with the same call. `energy_type` names the kind of energy: `none`, `ar`, `coar` or
    `nce` (see `EDLMConfig`).
    """

    generation_config_class = EDLMGenerationConfig
    _auto_class = "AutoModelForMaskedLM"
    _auto_map = dict.fromkeys(
        ("AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM"), "modeling_edlm.EDLMForMaskedDiffusion"
    )

    def __init__(
        self,
        config: EDLMConfig,
        denoiser: nn.Module | None = None,
        energy_model: nn.Module | None = None,
    ):
        """Build the parts from `config`, or take the given ones as they are.

        `from_components` checks given parts.
        """
        super().__init__(config)
        if denoiser is None:
            denoiser = build_denoiser(config)
        if energy_model is None:
            energy_model = build_energy(config, denoiser)
        self.denoiser = denoiser
        self.energy_model = energy_model
        self.post_init()

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
        """Combine a masked language model with a causal one of its vocabulary, or an NCE energy.

        Args:
            denoiser: a module called as `denoiser(input_ids=..., attention_mask=...)`, which
                returns an output with `.logits`. Or a name.
            energy: a causal language model (`ar`, `coar`), an `EDLMEnergyModel` (`nce`), or a name.
                None with `energy_type="nce"` makes a new energy network that starts from the
                denoiser.
            energy_type: unless given, `none` without an energy, `nce` for an `EDLMEnergyModel` and
                `ar` for the rest.
            energy_weights: `shared` lets a new NCE energy read the denoiser's own trunk, with
                low-rank updates of `energy_adapter_rank` unless that is 0.
            energy_by_reference: `save_pretrained` stores the name (and `energy_revision`) of the AR
                energy instead of its weights.
            trust_energy_code: run the code in the repository of an energy given by name.
                `trust_remote_code` is for the denoiser alone.
            mask_token_id: taken from the denoiser's configuration or `tokenizer` unless given.
            tokenizer: of the denoiser, or its name. Ids that it lacks are never drawn (its special
                tokens can be).
            energy_tokenizer: of the energy, or its name. Where both are known their vocabularies
                are compared.
            logits_shift: 1 if the logits at position i - 1 predict token i, 0 if the logits at i
                do. Unless given: `denoiser.config.logits_shift`, else 1 for models of type "Dream"
                and 0 for all others.
            kwargs: passed to `from_pretrained` of the parts given by name (`dtype`,
                `trust_remote_code`, ...).

        Raises:
            ValueError: the denoiser is causal, the vocabularies differ, the choices contradict
                each other, or `kwargs` are given and nothing is loaded.
        """
        # 1. Load the parts that are given by name
        parts = (denoiser, energy, tokenizer, energy_tokenizer)
        if kwargs and not any(isinstance(part, str) for part in parts):
            raise ValueError(
                f"There is no use for {', '.join(sorted(kwargs))}: no part is given by name, to be loaded with it. "
                "Leave it out, or look for a misspelt argument."
            )
        tokenizer = load_tokenizer(tokenizer, denoiser, kwargs)
        if isinstance(denoiser, str):
            denoiser = load_denoiser(denoiser, **kwargs)
        denoiser = as_denoiser(denoiser)
        energy_kwargs = dict(kwargs)
        energy_kwargs["revision"] = energy_revision or "main"
        energy_kwargs["trust_remote_code"] = trust_energy_code
        energy, energy_type, energy_tokenizer = load_energy(
            energy,
            energy_type,
            energy_tokenizer,
            energy_kwargs,
        )
        check_parts(denoiser, energy, energy_type)

        # 2. Describe the whole, which checks the choices
        if logits_shift is None:
            logits_shift = default_shift(denoiser)
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
            logits_shift=logits_shift,
        )
        if energy_type in ("ar", "coar"):
            check_vocabularies(config, tokenizer, energy_tokenizer)
            check_causal(energy)

        # 3. Make the network of a new energy. One with shared weights is made by `__init__`.
        if energy is None and energy_type == "nce" and energy_weights == "own":
            energy = EDLMEnergyModel.from_denoiser(denoiser)
            config.energy_config = energy.config
        return cls(config, denoiser, energy).eval()

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
            input_ids: (B, L), as for the denoiser.
            attention_mask: (B, L), likewise.
            timesteps: (B,) total noise sigma, for denoisers that are conditioned on time.
            labels: (B, L), -100 where nothing is to be predicted. The loss is the mean
                cross-entropy of the SUBS log-probabilities.
            candidate_ids: (B, k, L). With it the output is the `energy` (B, k) of the NCE network
                and no logits. It is trained by this call, since wrappers for several processes see
                `forward` alone. Elsewhere use `energy()`.

        Raises:
            ValueError: `candidate_ids` for an energy that is not a network, or the logits of the
                denoiser are of other positions than the ids.
        """
        # 1. The energy network, if there are candidates
        if candidate_ids is not None:
            if self.config.energy_type != "nce":
                raise ValueError(
                    f"candidate_ids was given, but energy_type is {self.config.energy_type!r}: only the network of "
                    "'nce' is called this way. Use energy(candidate_ids, noisy_ids)."
                )
            return self.energy_model(
                candidate_ids,
                input_ids,
                attention_mask=attention_mask,
                timesteps=timesteps,
            )

        # 2. The denoiser. Most denoisers of others take no timesteps.
        if timesteps is not None and accepts(self.denoiser, "timesteps"):
            kwargs["timesteps"] = timesteps
        kwargs.update(as_output_object(self.denoiser))
        outputs = self.denoiser(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

        # 3. Logits at i - 1 that predict token i move to i. The first ones stay.
        logits = logits_of(self.denoiser, outputs)
        if logits.shape[:2] != input_ids.shape:
            raise ValueError(
                f"The denoiser ({type(self.denoiser).__name__}) returns logits of shape {tuple(logits.shape)} for ids "
                f"of shape {tuple(input_ids.shape)}, but (B, L, V) for (B, L) is needed. If it reads texts of one "
                "length alone, give it texts of that length."
            )
        if self.config.logits_shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)

        loss = None
        if labels is not None:
            labels = labels.to(logits.device)
            loss = subs_cross_entropy(logits, labels, input_ids, self.config.mask_token_id)
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
        )

    def projecting_network(self):
        """The denoiser, where it can project few positions alone and its logits are not shifted."""
        can_project = hasattr(self.denoiser, "hidden_at") and not is_compiled(self.denoiser)
        return self.denoiser if can_project and not self.config.logits_shift else None

    def text_logits(self, input_ids, attention_mask=None, timesteps=None, **inputs):
        """Logits (B, L, V) of rows that are aligned left.

        A denoiser that sees padding runs them without it.
        """

        def logits_of(ids, real, sigma, **of_ids):
            return self(input_ids=ids, attention_mask=real, timesteps=sigma, **of_ids).logits

        # Without any text there is nothing to try
        rows = input_ids, attention_mask, timesteps
        has_padding = False
        if attention_mask is not None:
            has_padding = bool(attention_mask.any()) and not bool(attention_mask.all())
        if has_padding and sees_padding(self.denoiser, logits_of, *rows, **inputs):
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
        """E(x_0, x_t) of every candidate in eval mode, low = likely. Zero for `energy_type="none"`.

        Args:
            candidate_ids: (B, k, L) clean sequences that agree with `noisy_ids` wherever those are
                visible. With `energy_scope="revealed"` the mask stays where nothing is revealed.
            noisy_ids: (B, L).
            attention_mask: (B, L), 0 at padding on either side, which changes nothing.
            timesteps: (B,) total noise sigma, for networks that are conditioned on time.

        Returns:
            (B, k), at least float32, and float64 where the networks compute in it.

        Raises:
            ValueError: shapes do not fit, or a candidate changes a visible token or still holds a
                mask. For an AR energy of scope `revealed`: the reveal set is not the next block of
                the text.
        """
        # 1. Inputs
        mask_token_id = self.config.mask_token_id
        may_hold_masks = self.config.energy_scope == "revealed"
        check_token_ids("noisy_ids", noisy_ids, num_ids(self), mask_token_id)
        check_integers("candidate_ids", candidate_ids)
        if attention_mask is not None:
            check_zeros_and_ones(attention_mask)
        noisy_ids = noisy_ids.long()
        candidate_ids = candidate_ids.long()
        if timesteps is not None:
            timesteps = torch.as_tensor(timesteps)
        noisy_ids, candidate_ids, attention_mask, timesteps = on_device_of(
            self,
            noisy_ids,
            candidate_ids,
            attention_mask,
            timesteps,
        )
        check_candidates(candidate_ids, noisy_ids, attention_mask, mask_token_id, may_hold_masks)
        batch = len(noisy_ids)
        num_times = batch if timesteps is None else timesteps.numel()
        if num_times not in (1, batch):
            raise ValueError(f"timesteps has {num_times} values, but one per row ({batch}) is needed.")

        # 2. Networks count positions in different ways, but all from the left
        if attention_mask is not None:
            order, attention_mask = align_left(attention_mask)
            noisy_ids = noisy_ids.gather(1, order)
            candidate_ids = candidate_ids.gather(2, order.unsqueeze(1).expand_as(candidate_ids))

        energy = self.own_energy(self.config.energy_scope)
        if energy is None:
            dtype = torch.promote_types(self.dtype, torch.float32)
            return torch.zeros(candidate_ids.shape[:2], dtype=dtype, device=candidate_ids.device)

        # 3. The proposal. An autoregressive energy needs log p_theta of every candidate, a network
        #    nothing of it.
        masked = noisy_ids == mask_token_id
        if self.config.energy_type == "nce":
            proposal = Proposal(
                noisy_ids,
                Positions(masked),
                self.config,
                attention_mask=attention_mask,
                timesteps=timesteps,
            )
            log_probs = None
            vocab_size = self.config.vocab_size
        else:
            # One position at least
            at = masked | ~masked.any()
            proposal = self.propose(noisy_ids, at, attention_mask, timesteps)
            log_probs = proposal.log_probs(candidate_ids)
            vocab_size = proposal.vocab_size

        # 4. The energies of candidates that the proposal can make
        proposed = candidate_ids[masked.unsqueeze(1).expand_as(candidate_ids)]
        check_token_ids("candidate_ids", proposed, vocab_size, mask_token_id)
        return energy(Candidates(candidate_ids, log_probs), proposal)

    def own_energy(self, scope: str, chunk_size: int | None = None) -> Energy | None:
        """The energy of this model for candidates of a `scope`, None for `energy_type="none"`.

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

        # A network knows the scope for which it was trained alone
        if scope != self.config.energy_scope:
            raise ValueError(
                f"energy_scope is {scope!r}, but the NCE energy of this model was trained for "
                f"{self.config.energy_scope!r}. Leave energy_scope out, or pass an energy of your own. If an adapter "
                "was trained for another scope than its base, load the base with from_pretrained(..., "
                "energy_scope=...)."
            )
        return NoiseContrastiveEnergy(self.energy_model, self.config, chunk_size)


__all__ = ["EDLMForMaskedDiffusion"]
