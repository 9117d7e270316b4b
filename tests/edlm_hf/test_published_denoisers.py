"""Denoisers of LLaDA, Dream and their kin compute and sample as published, without their code."""

import published_samplers
import pytest
import torch
from published import randomised, seed
from published_configs import END, MASK, START, VOCABULARY
from published_families import HOLES, PUBLISHED
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from edlm_hf import EDLMForMaskedDiffusion, load_published_denoiser
from edlm_hf.modeling.custom_generate import generate

PROMPT = torch.tensor([START, 3, 9, 5])
GREEDY = {"do_sample": False, "eos_token_id": None, "num_candidates": 1}
build = EDLMForMaskedDiffusion.from_components


@pytest.fixture(scope="module", params=PUBLISHED)
def loaded(request, tmp_path_factory):
    """A family, its random weights in three files, and the denoiser that was loaded from them."""
    published = PUBLISHED[request.param]
    folder = tmp_path_factory.mktemp("published")
    weights = published.write(folder, num_files=3)
    return published, weights, load_published_denoiser(str(folder), mask_token_id=MASK, dtype="float32")


def published_sampler(published, weights, ids, steps, block_length=None, gen_start=0):
    """The tokens of LLaDA's loop, or of Dream's for shifted networks."""
    logits_of = published.denoiser(weights)
    if published.shift:
        return published_samplers.dream(logits_of, ids, MASK, steps, "maskgit_plus")[0]
    return published_samplers.llada_low_confidence(logits_of, ids, MASK, steps, block_length, gen_start)[0]


@torch.no_grad()
def test_logits_are_those_of_the_published_network(loaded):
    published, weights, denoiser = loaded
    expected = published.logits(published.config, weights, HOLES)
    torch.testing.assert_close(
        denoiser(input_ids=HOLES[None]).logits[0].double(),
        expected,
        rtol=0,
        atol=2e-5,
    )

    # Padding takes no part
    ids = torch.nn.functional.pad(HOLES[None], (0, 3), value=4)
    padded = denoiser(input_ids=ids, attention_mask=(torch.arange(12) < 9).long()[None]).logits[0, :9]
    torch.testing.assert_close(padded.double(), expected, rtol=0, atol=2e-5)


def test_configuration_says_what_the_others_need(loaded):
    published, _, denoiser = loaded
    config = denoiser.config
    assert (config.is_causal, config.mask_token_id, config.logits_shift) == (False, MASK, published.shift)
    assert (config.bos_token_id, config.eos_token_id) == tuple(
        published.config.get(name) for name in ("bos_token_id", "eos_token_id")
    )
    assert not denoiser.training and type(denoiser).__module__.startswith("transformers.")

    model = build(denoiser)
    assert (model.config.mask_token_id, model.config.logits_shift) == (MASK, published.shift)


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_greedy_tokens_are_those_of_the_published_sampler(loaded, steps):
    published, weights, denoiser = loaded
    model = build(denoiser)
    counts = "dream" if published.shift else "even"
    options = GREEDY | {"sampler": "top_k", "max_denoising_steps": steps, "reveal_counts": counts}

    filled = model.generate(HOLES[None], **options)[0]
    assert torch.equal(filled, published_sampler(published, weights, HOLES, steps))
    assert MASK not in filled and torch.equal(filled[HOLES != MASK], HOLES[HOLES != MASK])

    ids = torch.cat([PROMPT, torch.full((6,), MASK)])
    longer = model.generate(PROMPT[None], max_new_tokens=6, **options)[0]
    assert torch.equal(longer, published_sampler(published, weights, ids, steps))

    if not published.shift:
        blocks = model.generate(PROMPT[None], max_new_tokens=6, block_length=3, **options)[0]
        assert torch.equal(blocks, published_sampler(published, weights, ids, 2 * steps, 3, len(PROMPT)))


@pytest.mark.parametrize("score", ["confidence", "margin", "entropy"])
def test_dream_orders_are_those_of_its_sampler(loaded, score):
    published, weights, denoiser = loaded
    algorithm = {"confidence": "maskgit_plus", "margin": "topk_margin", "entropy": "entropy"}[score]
    expected = published_samplers.dream(published.denoiser(weights), HOLES, MASK, 3, algorithm)[0]
    options = GREEDY | {
        "sampler": "top_k",
        "score": score,
        "max_denoising_steps": 3,
        "reveal_counts": "dream",
    }
    assert torch.equal(build(denoiser).generate(HOLES[None], **options)[0], expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_rows_are_those_of_each_row_alone(loaded, side):
    published, weights, denoiser = loaded
    rows = [HOLES[:5], HOLES, PROMPT]
    width = max(map(len, rows))
    pads = [((width - len(row), 0) if side == "left" else (0, width - len(row))) for row in rows]
    ids = torch.stack([torch.nn.functional.pad(row, pad, value=END) for row, pad in zip(rows, pads, strict=True)])
    mask = torch.stack(
        [torch.nn.functional.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)]
    )

    options = GREEDY | {
        "sampler": "top_k",
        "max_denoising_steps": 3,
        "max_new_tokens": 4,
        "block_length": 4,
    }
    together = build(denoiser).generate(ids, attention_mask=mask, **options)
    for row, alone in enumerate(rows):
        expected = build(denoiser).generate(alone[None], **options)[0]
        kept = torch.cat([mask[row].bool(), torch.ones(4, dtype=torch.bool)])
        assert torch.equal(together[row][kept], expected)


def test_custom_generate_knows_the_conventions(loaded):
    _, _, denoiser = loaded
    expected = build(denoiser).generate(
        HOLES[None],
        eos_token_id=None,
        max_denoising_steps=4,
        generator=seed(),
    )
    got = generate(denoiser, HOLES[None], eos_token_id=None, max_denoising_steps=4, generator=seed())
    assert torch.equal(got, expected)


@torch.no_grad()
def test_saved_composites_and_denoisers_load_again(loaded, tmp_path):
    published, weights, denoiser = loaded
    model = build(denoiser)
    model.save_pretrained(tmp_path / "whole")
    denoiser.save_pretrained(tmp_path / "denoiser")
    expected = model(HOLES[None]).logits

    whole = EDLMForMaskedDiffusion.from_pretrained(tmp_path / "whole")
    alone = build(str(tmp_path / "denoiser"))
    for again in (whole, alone):
        assert (again.config.mask_token_id, again.config.logits_shift) == (MASK, published.shift)
        torch.testing.assert_close(again(HOLES[None]).logits, expected)
        tokens = again.generate(HOLES[None], max_denoising_steps=3, **GREEDY)
        assert torch.equal(tokens, model.generate(HOLES[None], max_denoising_steps=3, **GREEDY))

    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "denoiser"), type(denoiser))


def qwen2(rows=VOCABULARY):
    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 1,
    }
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 64, "vocab_size": rows}
    return randomised(
        Qwen2ForCausalLM(Qwen2Config(**sizes, bos_token_id=END, eos_token_id=END)),
        seed=3,
    )


@torch.no_grad()
@pytest.mark.parametrize("energy_type", ["ar", "coar"])
@pytest.mark.parametrize("name", ["Dream", "LLaDA"])
def test_energy_of_a_causal_qwen_is_its_own_and_the_denoisers(name, energy_type, tmp_path):
    """E = -log p_AR(x_0) + log p_theta(x_0 | x_t) by hand, p_theta from the second writing of the network."""
    published, causal = PUBLISHED[name], qwen2()
    weights = published.write(tmp_path / "denoiser")
    denoiser = load_published_denoiser(str(tmp_path / "denoiser"), dtype="float32")
    model = build(denoiser, causal, energy_type=energy_type)

    candidates = HOLES.repeat(1, 3, 1)
    candidates[:, :, HOLES == MASK] = torch.randint(0, MASK, (1, 3, 4), generator=seed())
    energies = model.energy(candidates, HOLES[None])[0]

    masked = HOLES == MASK
    logits = published.denoiser(weights)(HOLES[None])[0]
    logits[:, MASK] = -torch.inf
    log_theta = logits.log_softmax(-1)
    impossible = [MASK] if name == "Dream" else [MASK, *range(VOCABULARY, len(logits[0]))]

    for candidate, energy in zip(candidates[0], energies, strict=True):
        inputs = torch.cat([torch.tensor([END]), candidate[:-1]])
        logits_ar = causal(input_ids=inputs[None]).logits[0].double()
        logits_ar[:, [i for i in impossible if i < VOCABULARY]] = -torch.inf
        log_ar = logits_ar.log_softmax(-1)
        counted = masked if energy_type == "coar" else torch.ones_like(masked)
        at = torch.arange(len(candidate))
        by_hand = (log_theta[at, candidate] * masked).sum() - (log_ar[at, candidate] * counted).sum()
        torch.testing.assert_close(energy.double(), by_hand, rtol=0, atol=1e-4)

    tokens = model.generate(
        HOLES[None],
        max_denoising_steps=3,
        num_candidates=4,
        eos_token_id=None,
        generator=seed(),
    )
    assert MASK not in tokens
    model.save_pretrained(tmp_path / "whole")
    again = EDLMForMaskedDiffusion.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(again.energy(candidates, HOLES[None])[0], energies)

    same = again.generate(
        HOLES[None],
        max_denoising_steps=3,
        num_candidates=4,
        eos_token_id=None,
        generator=seed(),
    )
    assert torch.equal(same, tokens)
