"""Our denoiser in the pipeline that diffusers has for masked diffusion language models."""

import pytest
import torch
from published import tiny_denoiser

from edlm_hf.tokenization import text8_tokenizer

diffusers = pytest.importorskip(
    "diffusers",
    reason="diffusers is not installed (pip install edlm-hf[diffusers])",
)

MASK, LENGTH = 12, 16


def prompts(length):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, MASK, (2, length), generator=generator)


def never_the_mask(model, arguments, output):
    """A forward hook for samplers of others: the logits of a denoiser say nothing about the mask token."""
    output.logits[..., model.config.mask_token_id] = torch.finfo(output.logits.dtype).min


def pipeline(model, tokenizer=None):
    model.register_forward_hook(never_the_mask)
    scheduler = diffusers.BlockRefinementScheduler()
    pipe = diffusers.LLaDA2Pipeline(model=model, scheduler=scheduler, tokenizer=tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("threshold", [0.2, 0.5, 2.0])
def test_the_pipeline_of_llada2_fills_masks_as_our_threshold_sampler(threshold):
    """Without sampling both reveal all that is surer than the threshold, and two of eight at least in four steps."""
    model = tiny_denoiser(model_length=LENGTH)
    theirs = pipeline(model)(
        input_ids=prompts(8),
        gen_length=8,
        block_length=8,
        num_inference_steps=4,
        sampling_method="greedy",
        threshold=threshold,
        editing_threshold=None,
        eos_early_stop=False,
        mask_token_id=MASK,
        output_type="seq",
    ).sequences

    ours = model.generate(
        prompts(8),
        max_new_tokens=8,
        max_denoising_steps=4,
        sampler="threshold",
        threshold=min(threshold, 1.0),
        fill_up=True,
        do_sample=False,
    )
    assert MASK not in theirs
    assert torch.equal(theirs, ours[:, -theirs.shape[1] :])


def test_the_pipeline_of_llada2_reads_and_writes_text_with_our_tokenizer():
    tokenizer = text8_tokenizer(LENGTH, start_token=False)
    model = tiny_denoiser(vocab_size=len(tokenizer), model_length=LENGTH)
    options = {
        "use_chat_template": False,
        "gen_length": 8,
        "block_length": 8,
        "generator": torch.manual_seed(0),
    }
    written = pipeline(model, tokenizer)(prompt="the cat", **options)
    assert tokenizer.mask_token_id not in written.sequences
    assert written.texts == tokenizer.batch_decode(written.sequences, skip_special_tokens=True)
