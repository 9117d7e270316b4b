"""The exact likelihood of causal language models."""

import torch
from torch import nn

from edlm_hf.evaluation.noising import Noised, Noising
from edlm_hf.evaluation.scoring import LikelihoodEstimate, likelihood_estimate, sum_at
from edlm_hf.evaluation.texts import Texts, read_texts
from edlm_hf.modeling.causal_log_probs import autoregressive_log_probs
from edlm_hf.modeling.causal_texts import StartToken
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

    The model's `bos_token_id` goes in front of a text that does not start with it. Without one, or
    with one outside the vocabulary, the first token is context and does not count. For an EDLM-AR or
    coAR composite this is the likelihood of the causal model of its energy, normalised over the
    tokens that the denoiser can emit. Arguments as in `nelbo`.

    Raises:
        ValueError: as `nelbo`, the model is not causal, or a text has one token and there is no
            start token.
    """
    energy_type = getattr(model.config, "energy_type", None)
    check_is_causal(model, energy_type)
    texts = read_texts(model.config, input_ids, attention_mask, scored)

    # The causal model itself, or the one inside the energy of a composite
    causal_lm = model if energy_type is None else model.energy_model
    never_emitted = ids_never_emitted(model, texts)

    # Nothing is drawn: one sample per text, and a mask on every token that counts
    noising = Noising(
        texts,
        schedule=None,
        num_samples=1,
        batch_size=batch_size,
        seed=0,
        distributed=distributed,
    )
    start = start_token_of(causal_lm.config)
    if start is None:
        leave_out_first_tokens(texts)

    def nats(noised: Noised) -> torch.Tensor:
        # Rows that begin with the start token already get no second one
        start_token = None
        if start is not None:
            start_token = StartToken(start, needed=noised.clean[:, 0] != start)

        # (B, k = 1, L)
        log_probs = autoregressive_log_probs(
            causal_lm,
            noised.clean.unsqueeze(1),
            noised.masked,
            never_emitted,
            start=start_token,
            attention_mask=noised.real,
        )
        return sum_at(noised.masked, -log_probs[:, 0])

    batches = noising.all_masked(device_of(causal_lm))
    return likelihood_estimate(model, noising, batches, nats, progress_bar, exact=True)


def check_is_causal(model: nn.Module, energy_type: str | None) -> None:
    """Raise ValueError unless the model, or the energy of a composite, is a causal language model."""
    if energy_type is None:
        causal = is_causal(model)
    else:
        causal = energy_type not in ("none", "nce")

    if not causal:
        raise ValueError(
            f"model is a {type(model).__name__}, which predicts a token from later ones too: its autoregressive "
            "likelihood does not exist. For a denoiser there are nelbo, discrete_nelbo and sampler_bound."
        )


def ids_never_emitted(model: nn.Module, texts: Texts) -> torch.Tensor:
    """The ids that the denoiser of a composite, or a causal model of ours, never emits: (V,) bool."""
    config = model.config
    vocab_size = config.vocab_size
    is_composite = getattr(config, "energy_type", None) is not None

    # A composite that does not state V shows it in its logits, (1, L, V)
    if vocab_size is None and is_composite:
        device = device_of(model)
        row = texts.ids[0].unsqueeze(0).to(device)
        sigma = torch.ones(1, device=row.device)  # for a denoiser that is conditioned on time
        logits = model(input_ids=row, timesteps=sigma).logits
        vocab_size = logits.shape[-1]

    # -1 is the id of no token
    mask_token_id = getattr(config, "mask_token_id", None)
    if mask_token_id is None:
        mask_token_id = -1
    absent = getattr(config, "absent_token_ids", None)
    return not_emitted(vocab_size, mask_token_id, absent)


def start_token_of(config) -> int | None:
    """The start token of a causal model, None where it has none inside its vocabulary."""
    start = config.bos_token_id
    if start is not None and 0 <= start < config.vocab_size:
        return start
    return None


def leave_out_first_tokens(texts: Texts) -> None:
    """Make the first token of every text context, which does not count.

    Raises:
        ValueError: nothing is left of a text.
    """
    for i, scored in enumerate(texts.scored):
        scored[0] = False
        if not scored.any():
            raise ValueError(f"Text {i} has no token to score: without a start token its first one is context.")
