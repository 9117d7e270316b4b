"""Samples of the AR model of a study, as long as those of its denoiser and from the same tokens."""

import torch
from transformers import GenerationConfig

from edlm_hf.benchmarks.study import Study
from edlm_hf.modeling.generation_edlm import EDLMGenerationOutput


def sample_left_to_right(study: Study, count: int) -> EDLMGenerationOutput:
    """`count` samples of the AR model, drawn from torch's global generator. A call is one token."""
    options = left_to_right_options(study)
    start = torch.full((count, 1), options.bos_token_id, device=study.device)
    rows = study.causal.generate(start, attention_mask=torch.ones_like(start), generation_config=options)

    # Without the start token: (count, L) or (count, L - 1). Every row takes a call for each new token
    kept = study.length - len(study.prompt)
    calls = torch.full((count,), options.max_new_tokens)
    return EDLMGenerationOutput(
        sequences=rows[:, rows.shape[1] - kept :],
        num_denoiser_calls=calls,
        num_energy_calls=torch.zeros_like(calls),
    )


def left_to_right_options(study: Study) -> GenerationConfig:
    """Plain sampling of complete rows, from the tokens that the denoiser can emit."""
    config = study.mdlm.config
    causal_config = study.causal.config
    start = study.causal_start

    # The start token may come again where it is also the end of a text
    forbidden = {config.mask_token_id, *range(config.vocab_size, causal_config.vocab_size)}
    if start != study.tokenizer.eos_token_id:
        forbidden.add(start)
    suppressed = sorted(token for token in forbidden if token < causal_config.vocab_size)

    # Whether the start token is one of the L tokens
    counts_start = bool(study.prompt) or study.wraps
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        bos_token_id=start,
        pad_token_id=start,
        eos_token_id=[],  # None would mean the end token of the model, which ends rows early
        max_new_tokens=study.length - counts_start,
        suppress_tokens=suppressed,
    )


__all__ = ["sample_left_to_right"]
