"""The exact likelihood of causal language models."""

import torch
from torch import nn

from edlm_hf.evaluation.noising import Noised, Noising
from edlm_hf.evaluation.scoring import LikelihoodEstimate, estimate, total
from edlm_hf.evaluation.texts import read_texts
from edlm_hf.modeling.causal_log_probs import StartToken, autoregressive_log_probs
from edlm_hf.modeling.network_facts import device_of
from edlm_hf.modeling.network_probes import is_causal
from edlm_hf.modeling.vocabulary import not_emitted


@torch.no_grad()
def autoregressive_nll(
    model: nn.Module,
    input_ids,
    attention_mask=None,
    *,
    scored=None,
    batch_size: int = 16,
    distributed: bool = False,
    progress_bar: bool = False,
) -> LikelihoodEstimate:
    """-log p_AR(x) per token of a causal language model: exact, so its Monte-Carlo standard error is 0.

    The model's `bos_token_id` goes in front of a text that does not start with it; without one (or with one outside its
    vocabulary) the first token is context and does not count. Of an EDLM-AR or coAR composite it is the energy's causal
    model, normalised over what the denoiser can emit. Arguments as in `nelbo`.

    Raises:
        ValueError: as `nelbo`; the model is not causal; a text of one token without a start token.
    """
    energy_type = getattr(model.config, "energy_type", None)
    if energy_type in ("none", "nce") or energy_type is None and not is_causal(model):
        raise ValueError(
            f"model is a {type(model).__name__}, which predicts a token from later ones too: its autoregressive "
            "likelihood does not exist. For a denoiser there are nelbo, discrete_nelbo and sampler_bound."
        )
    texts = read_texts(model.config, input_ids, attention_mask, scored)
    causal, rows, mask = model, model.config.vocab_size, getattr(model.config, "mask_token_id", None)
    if energy_type is not None:
        causal = model.energy_model
        rows = rows or model(input_ids=texts.ids[0].unsqueeze(0).to(device_of(model))).logits.shape[-1]
    start = causal.config.bos_token_id
    if start is not None and not 0 <= start < causal.config.vocab_size:
        start = None
    noising = Noising(texts, None, 1, batch_size, 0, distributed)
    if start is None:
        for i, kept in enumerate(texts.scored):
            kept[0] = False
            if not kept.any():
                raise ValueError(f"Text {i} has no token to score: without a start token its first one is context.")

    absent = getattr(model.config, "absent_token_ids", None)
    never_emitted = not_emitted(rows, -1 if mask is None else mask, absent)

    def nats(noised: Noised) -> torch.Tensor:
        log_probs = autoregressive_log_probs(
            causal,
            noised.clean.unsqueeze(1),
            noised.masked,
            never_emitted,
            start=None if start is None else StartToken(start, noised.clean[:, 0] != start),
            attention_mask=noised.real,
        )
        return total(-log_probs[:, 0].double(), noised.masked)

    return estimate(model, noising, noising.everything(device_of(causal)), nats, progress_bar, exact=True)
