"""What users ask of generate(): prompts, lengths, padding, blocks, ends of text, filters, energies, clear errors."""

import copy
from types import SimpleNamespace

import pytest
import torch
from published import randomised, seed, tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2, with_ar
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.modeling.energies import Candidates

MASK, PAD = 12, 11
build = EDLMForMaskedDiffusion.from_components


class Echo(torch.nn.Module):
    """A denoiser that is sure of token (position among the real tokens) mod 11, and records what it is asked."""

    def __init__(self, config=None):
        super().__init__()
        self.config, self.seen = config, []

    def forward(self, input_ids, attention_mask=None):
        self.seen.append((input_ids.clone(), attention_mask))
        place = torch.arange(input_ids.shape[1]).expand(input_ids.shape) % 11
        return SimpleNamespace(logits=torch.nn.functional.one_hot(place, 13) * 50.0)


def echo(length=12):
    return build(
        Echo(SimpleNamespace(vocab_size=13, max_position_embeddings=length)),
        mask_token_id=MASK,
    )


# ------------------------------------------------------------------------------------------------ lengths and prompts


def test_rows_from_nothing():
    model = tiny_denoiser()
    assert model.generate(generator=seed()).shape == (1, 12)
    assert model.generate(batch_size=3, max_length=5, generator=seed()).shape == (3, 5)
    assert model.generate(num_return_sequences=4, max_new_tokens=2, generator=seed()).shape == (4, 2)
    assert model.generate(batch_size=2, num_return_sequences=3, max_new_tokens=2, generator=seed()).shape == (6, 2)


def test_prompt_is_kept_masks_are_filled_and_new_tokens_follow():
    prompt = torch.tensor([[5, MASK, 7], [MASK, 3, 3]])
    model = tiny_denoiser()
    filled = model.generate(prompt, generator=seed())
    assert filled.shape == prompt.shape and (filled != MASK).all()
    assert torch.equal(filled[prompt != MASK], prompt[prompt != MASK])

    longer = model.generate(prompt, max_new_tokens=4, generator=seed())
    assert longer.shape == (2, 7) and (longer != MASK).all()
    assert torch.equal(longer[:, :3][prompt != MASK], prompt[prompt != MASK])
    assert model.generate(prompt, max_length=5, generator=seed()).shape == (2, 5)
    # The input is not changed in place
    assert torch.equal(prompt, torch.tensor([[5, MASK, 7], [MASK, 3, 3]]))


def test_text_without_masks_comes_back():
    text = torch.tensor([[1, 2, 3]])
    assert torch.equal(tiny_denoiser().generate(text), text)


def test_return_sequences_repeat_each_row():
    prompt = torch.tensor([[5, MASK], [6, MASK]])
    tokens = tiny_denoiser().generate(prompt, num_return_sequences=3, generator=seed())
    assert tokens[:, 0].tolist() == [5, 5, 5, 6, 6, 6]


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_ragged_rows_continue_after_their_own_last_token(side):
    rows = [[1, 2, 3, 4], [5, 6], [7]]
    lead = {"left": lambda n: 4 - n, "right": lambda n: 0, "both": lambda n: (4 - n) // 2}[side]

    ids, mask = torch.full((3, 4), PAD), torch.zeros(3, 4, dtype=torch.long)
    for i, row in enumerate(rows):
        begin = lead(len(row))
        ids[i, begin : begin + len(row)] = torch.tensor(row)
        mask[i, begin : begin + len(row)] = 1

    model = echo()
    tokens = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=3,
        max_denoising_steps=2,
        generator=seed(),
    )
    assert torch.equal(tokens[:, :4], ids)  # the input columns, padding included, then the new ones
    assert tokens[:, 4:].tolist() == [[4, 5, 6], [2, 3, 4], [1, 2, 3]]

    # The network sees the text without gaps, padding behind it
    for seen, attention in model.denoiser.seen:
        for row, present in zip(seen, attention if attention is not None else [None] * len(seen), strict=True):
            present = torch.ones_like(row) if present is None else present
            assert (present.diff() <= 0).all() and (row[present == 1] != PAD).all()


@torch.no_grad()
def test_padding_changes_no_token_of_a_row():
    """The same row alone, left-padded and right-padded: the same likeliest tokens from a real network."""
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    bert = randomised(BertForMaskedLM(BertConfig(vocab_size=13, **sizes)))  # positions by column
    for model in (tiny_denoiser(), build(bert, mask_token_id=MASK)):
        row, options = [3, MASK, 5], {"max_new_tokens": 3, "do_sample": False, "max_denoising_steps": 3}
        alone = model.generate(torch.tensor([row]), **options)
        padded = torch.tensor([[PAD, PAD, *row], [*row, PAD, PAD]])
        mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
        together = model.generate(padded, attention_mask=mask, **options)
        assert torch.equal(together[0, 2:], alone[0]) and together[0, :2].tolist() == [PAD, PAD]
        assert torch.equal(together[1, [0, 1, 2, 5, 6, 7]], alone[0])


def test_batch_of_64_rows_with_different_prompts_and_lengths():
    ids, mask = torch.full((64, 6), PAD), torch.zeros(64, 6, dtype=torch.long)
    for row in range(64):
        length = row % 6 + 1
        begin = (6 - length) * (row % 2)
        ids[row, begin : begin + length] = torch.arange(row, row + length) % 11
        mask[row, begin : begin + length] = 1

    model = echo()
    tokens = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=4,
        max_denoising_steps=3,
        generator=seed(),
    )
    for row in range(64):
        length = row % 6 + 1
        assert tokens[row, 6:].tolist() == [(length + i) % 11 for i in range(4)]


# ---------------------------------------------------------------------------------------------------------- blocks


def test_blocks_carry_a_text_beyond_the_length_of_the_model():
    model = echo(length=6)
    model.generate(torch.tensor([[0, 1]]), max_new_tokens=11, block_length=3, generator=seed())
    model.denoiser.seen.clear()  # it was tried whether it sees padding
    tokens = model.generate(torch.tensor([[0, 1]]), max_new_tokens=11, block_length=3, generator=seed())
    assert tokens.shape == (1, 13)

    widths = {ids.shape[1] for ids, _ in model.denoiser.seen}
    assert widths == {6}
    last, _ = model.denoiser.seen[-1]
    # Four tokens of context before the last block of two
    assert torch.equal(last[0, :4], tokens[0, 7:11])

    first, attention = model.denoiser.seen[0]
    assert first[0, :2].tolist() == [0, 1]
    # Nothing behind the block
    assert attention[0].tolist() == [1, 1, 1, 1, 1, 0]


def test_text_that_fits_is_seen_whole_while_its_blocks_are_filled():
    model = echo(length=12)
    prompt = torch.tensor([[4, MASK, MASK, MASK]])
    model.generate(prompt, max_new_tokens=4, block_length=2, max_denoising_steps=1, generator=seed())
    filled = [(ids[0] == MASK).sum().item() for ids, _ in model.denoiser.seen]
    assert filled == [7, 4, 2]  # the masks of the prompt first, then two blocks of two
    assert all(ids.shape[1] == 8 for ids, _ in model.denoiser.seen)


def test_ragged_rows_in_blocks():
    ids, mask = torch.tensor([[1, 2, 3], [PAD, PAD, 4]]), torch.tensor([[1, 1, 1], [0, 0, 1]])
    model = tiny_denoiser(model_length=6)
    tokens = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=9,
        block_length=2,
        generator=seed(),
    )
    assert tokens.shape == (2, 12) and torch.equal(tokens[:, :3], ids) and (tokens != MASK).all()


def test_rows_of_any_integer_type_are_taken():
    ids = torch.tensor([[3, MASK, 4]])
    tokens = tiny_denoiser().generate(ids.int(), generator=seed())
    assert tokens.dtype == torch.long
    assert torch.equal(tokens, tiny_denoiser().generate(ids, generator=seed()))


@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_blocks_of_ragged_rows_can_be_weighed_by_themselves(energy_type):
    model = with_ar(energy_type=energy_type)
    ids, mask = torch.tensor([[1, 2, 3], [PAD, PAD, 4]]), torch.tensor([[1, 1, 1], [0, 0, 1]])
    options = {
        "block_length": 2,
        "max_denoising_steps": 1,
        "energy_scope": "revealed",
        "num_candidates": 3,
    }
    tokens = model.generate(ids, attention_mask=mask, max_new_tokens=4, generator=seed(), **options)
    assert tokens.shape == (2, 7) and torch.equal(tokens[:, :3], ids) and (tokens != MASK).all()


@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_next_block_can_be_weighed_by_itself(energy_type):
    """T = 1 reveals a block at once: an AR energy on the reveal set alone is exact and gives the AR law (section 5)."""
    model, steps = with_ar(energy_type=energy_type), {"max_denoising_steps": 1, "block_length": 2}
    out = model.generate(
        torch.tensor([[3, 1, 4]]).repeat(50, 1),
        max_new_tokens=4,
        energy_scope="revealed",
        num_candidates=3,
        generator=seed(),
        return_dict_in_generate=True,
        **steps,
    )
    assert out.energies.shape == (2, 50, 3)

    noisy = torch.nn.functional.pad(out.sequences[:, :5], (0, 2), value=MASK)
    first = torch.nn.functional.pad(torch.tensor([[3, 1, 4]]), (0, 4), value=MASK).repeat(50, 1)
    log_theta = model(first).logits[:, 3:5, :12].log_softmax(-1)
    log_ar = model.energy_model(torch.tensor([[10, 3, 1, 4]]).repeat(50, 1)).logits[:, -1, :12].log_softmax(-1)

    assert torch.isfinite(log_theta).all()
    assert torch.isfinite(log_ar).all()
    assert noisy.shape == (50, 7)
    with pytest.raises(ValueError, match="needs every step to reveal the next tokens"):
        model.generate(first, energy_scope="revealed", max_denoising_steps=3, generator=seed())


# ------------------------------------------------------------------------------------------------------- end of text


def test_text_ends_at_the_first_end_token():
    class Ends(Echo):
        def forward(self, input_ids, attention_mask=None):
            out = super().forward(input_ids, attention_mask)
            out.logits[:, [0, 4]] = torch.nn.functional.one_hot(torch.tensor(9), 13) * 50.0
            return out

    model = build(Ends(SimpleNamespace(vocab_size=13, max_position_embeddings=8)), mask_token_id=MASK)
    whole = model.generate(max_length=8, generator=seed())
    assert whole[0].tolist() == [9, 1, 2, 3, 9, 5, 6, 7]  # no end token, no padding

    ended = model.generate(max_length=8, eos_token_id=9, pad_token_id=PAD, generator=seed())
    assert ended[0].tolist() == [9, 1, 2, 3, 9, PAD, PAD, PAD]  # position 0 never counts
    by_itself = model.generate(max_length=8, eos_token_id=[8, 9], generator=seed())
    assert by_itself[0].tolist() == [9, 1, 2, 3, 9, 8, 8, 8]

    model.generation_config.eos_token_id = 9
    off = model.generate(max_length=8, eos_token_id=None, generator=seed())
    assert torch.equal(off, whole)  # an explicit None switches it off

    prompt = torch.tensor([[1, 9, 9, 3]])
    after = model.generate(prompt, max_new_tokens=3, eos_token_id=9, pad_token_id=PAD, generator=seed())
    assert after[0].tolist() == [1, 9, 9, 3, 9, PAD, PAD]  # the prompt never counts

    model.denoiser.seen.clear()
    blocks = model.generate(
        max_length=8,
        block_length=2,
        eos_token_id=9,
        pad_token_id=PAD,
        max_denoising_steps=1,
    )
    assert blocks[0].tolist() == [9, 1, 2, 3, 9, PAD, PAD, PAD]
    assert len(model.denoiser.seen) == 3  # a text that has ended asks for no more blocks


def test_end_of_text_is_off_where_it_is_the_start_token():
    same = tiny_denoiser(bos_token_id=3, eos_token_id=3)
    assert same.generation_config.eos_token_id is None
    assert tiny_denoiser(bos_token_id=3, eos_token_id=4).generation_config.eos_token_id == 4


def test_stopping_criteria_end_the_text_between_blocks():
    model = echo(length=12)
    stop = StoppingCriteriaList([lambda ids, scores, **k: torch.ones(len(ids), dtype=torch.bool)])
    tokens = model.generate(
        max_length=8,
        block_length=3,
        stopping_criteria=stop,
        pad_token_id=PAD,
        generator=seed(),
    )
    assert tokens[0].tolist() == [0, 1, 2] + [PAD] * 5
    with pytest.raises(ValueError, match="no pad_token_id"):
        model.generate(max_length=8, block_length=3, stopping_criteria=stop, generator=seed())
    never = StoppingCriteriaList([MaxLengthCriteria(100)])
    assert (model.generate(max_length=8, block_length=3, stopping_criteria=never) != PAD).all()


# ----------------------------------------------------------------------------------------------- without sampling


def test_likeliest_tokens_are_revealed_in_the_order_of_confidence():
    class Confident(torch.nn.Module):
        """Position i is sure of token i with the given strength. Visible tokens change nothing."""

        def forward(self, input_ids, attention_mask=None):
            strength = torch.tensor([1.0, 3.0, 2.0, 3.0, 0.5, 4.0])[: input_ids.shape[1]]
            logits = torch.nn.functional.one_hot(torch.arange(input_ids.shape[1]), 13) * strength[:, None]
            return SimpleNamespace(logits=logits.expand(len(input_ids), -1, -1))

    model = build(Confident(), mask_token_id=MASK)
    ids = torch.full((1, 6), MASK)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    options = {"do_sample": False, "output_history": True, "return_dict_in_generate": True}
    out = model.generate(ids, max_denoising_steps=4, **options)
    assert torch.equal(torch.random.get_rng_state(), state)  # no random number

    shown = [(h[0] != MASK).nonzero().squeeze(-1).tolist() for h in out.history]
    # 6 masks, r = 1/4, 1/3, 1/2, 1: round(1.5) = 2, round(4/3) = 1, round(3/2) = 2, the rest; ties by index
    assert shown == [[], [1, 5], [1, 3, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]]
    assert out.sequences[0].tolist() == [0, 1, 2, 3, 4, 5] and out.num_energy_calls.sum() == 0

    one_by_one = model.generate(ids, sampler="first_hitting", **options)
    order = [(h[0] != MASK).sum().item() for h in one_by_one.history]
    assert order == [0, 1, 2, 3, 4, 5, 6] and one_by_one.history[1][0, 5] == 5


@pytest.mark.parametrize("option", [{"temperature": 0.05}, {"top_k": 1}, {"top_p": 0.3}])
def test_options_of_sampling_change_nothing_without_it(option):
    """As in transformers. Temperature and filters would change which position is the most confident."""
    ids, model = torch.full((1, 8), MASK), tiny_denoiser()
    options = {
        "do_sample": False,
        "max_denoising_steps": 4,
        "output_history": True,
        "return_dict_in_generate": True,
    }
    plain, changed = model.generate(ids, **options), model.generate(ids, **options, **option)
    assert all(torch.equal(x, y) for x, y in zip(plain.history, changed.history, strict=True))


def test_steps_that_reveal_nothing_cost_nothing_without_sampling_too():
    out = tiny_denoiser().generate(
        max_length=3,
        do_sample=False,
        max_denoising_steps=50,
        return_dict_in_generate=True,
    )
    assert out.num_denoiser_calls.tolist() == [3] and (out.sequences != MASK).all()


def test_likeliest_tokens_ask_no_energy():
    refuse = lambda *inputs: pytest.fail("candidates coincide: no energy is needed")  # noqa: E731
    one = tiny_denoiser().generate(batch_size=2, do_sample=False, energy=refuse, max_denoising_steps=4)
    assert torch.equal(one[0], one[1])


@pytest.mark.parametrize("sampler", ["edit", "low_confidence", "spaced", "ancestral"])
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_without_sampling_an_energy_changes_nothing(sampler, threshold):
    options = {"max_length": 8, "do_sample": False, "sampler": sampler, "max_denoising_steps": 6}
    if sampler == "edit":
        options |= {"threshold": threshold, "editing_threshold": 0.1}
    alone = build(tiny_denoiser()).generate(**options)
    assert torch.equal(with_ar().generate(**options), alone)


# ------------------------------------------------------------------------------------- what changes the proposal


def test_filters_and_processors_change_what_can_be_drawn():
    model = with_ar()
    ids = torch.full((200, 6), MASK)
    top = model.denoiser(ids[:1]).logits[0, 0, :12].topk(2).indices
    few = model.generate(ids, top_k=2, max_denoising_steps=1, num_candidates=2, generator=seed())
    assert set(few[:, 0].tolist()) <= set(top.tolist()) and len(set(few[:, 0].tolist())) == 2

    one = model.generate(ids, top_p=1e-6, max_denoising_steps=1, generator=seed())
    assert (one[:, 0] == top[0]).all()
    cold = model.generate(ids, temperature=1e-3, max_denoising_steps=1, generator=seed())
    assert (cold[:, 0] == top[0]).all()

    processors = LogitsProcessorList([SuppressTokensLogitsProcessor(list(range(3, 12)))])
    kept = model.generate(ids, logits_processor=processors, generator=seed(), max_denoising_steps=3)
    assert (kept < 3).all()


def test_energy_sees_the_probabilities_that_were_drawn_from():
    model, seen = tiny_denoiser(), []

    def energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
        logits = model(noisy_ids).logits[..., :12] / 0.5
        log_probs = logits.log_softmax(-1).gather(-1, candidate_ids.transpose(1, 2)).transpose(1, 2)
        expected = (log_probs * (noisy_ids == MASK).unsqueeze(1)).sum(-1)
        torch.testing.assert_close(proposal_log_probs, expected, rtol=0, atol=1e-4)
        seen.append(len(noisy_ids))
        return proposal_log_probs * 0

    model.generate(
        batch_size=3,
        temperature=0.5,
        energy=energy,
        max_denoising_steps=3,
        generator=seed(),
    )
    assert seen


def test_processors_are_given_the_row_of_each_position():
    rows = []

    class Look(torch.nn.Module):
        def __call__(self, input_ids, scores):
            assert input_ids.shape[0] == scores.shape[0]
            rows.append(input_ids)
            return scores

    ids = torch.tensor([[1, MASK, MASK], [2, MASK, MASK]])
    tiny_denoiser().generate(ids, logits_processor=[Look()], max_denoising_steps=1, generator=seed())
    assert rows[0][:, 0].tolist() == [1, 1, 2, 2]


# --------------------------------------------------------------------------------------------- energies of the model


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ar", "coar", "nce", "shared"])
def test_recorded_energies_are_those_of_the_model(kind):
    if kind == "nce":
        model = build(tiny_denoiser(), randomised(EDLMEnergyModel(tiny_config())))
    elif kind == "shared":
        model = build(tiny_denoiser(), energy_type="nce", energy_weights="shared")
        randomised(model.energy_model, seed=3)
    else:
        model = with_ar(energy_type=kind)

    inner, checked = model.own_energy("sequence"), []
    bare = copy.deepcopy(model)

    def watched(candidates, proposal):
        energies = inner(candidates, proposal)
        torch.testing.assert_close(
            energies,
            bare.energy(candidates.ids, proposal.ids),
            rtol=0,
            atol=1e-4,
        )
        checked.append(energies)
        return energies

    model.own_energy = lambda scope, chunk_size: watched
    prompt = torch.tensor([[1, 2, MASK, 4], [MASK, MASK, 3, 3]])
    out = model.generate(
        prompt,
        max_new_tokens=3,
        max_denoising_steps=3,
        num_candidates=4,
        generator=seed(),
        return_dict_in_generate=True,
    )
    assert checked and out.energies.shape == (3, 2, 4) and out.effective_sample_size.shape == (3, 2)

    recorded = out.energies[~out.energies.isnan().any(-1)]
    torch.testing.assert_close(recorded, torch.cat(checked))
    sizes = out.effective_sample_size[~out.effective_sample_size.isnan()]
    assert ((sizes >= 1 - 1e-6) & (sizes <= 4 + 1e-6)).all()
    assert torch.equal((~out.effective_sample_size.isnan()).sum(0), out.num_energy_calls)


@torch.no_grad()
@pytest.mark.parametrize("causal", [lambda: tiny_causal(bos_token_id=10, model_length=40), lambda: long_gpt2()])
@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_shared_prefix_and_chunks_change_no_energy(causal, energy_type):
    model = build(tiny_denoiser(model_length=40), causal(), energy_type=energy_type)
    generator = seed(5)
    noisy = torch.randint(0, 10, (3, 36), generator=generator)
    noisy[0, 20:], noisy[1, 25::2], noisy[2, 30:] = MASK, MASK, MASK
    draws = torch.randint(0, 12, (3, 5, 36), generator=generator)
    candidates = torch.where(noisy.unsqueeze(1) == MASK, draws, noisy.unsqueeze(1))
    proposal = model.propose(noisy, noisy == MASK)
    proposed = Candidates(candidates, proposal.log_probs(candidates))
    whole = torch.stack([model.energy(candidates[:, j : j + 1], noisy)[:, 0] for j in range(5)], 1)
    fed = []
    model.energy_model.register_forward_pre_hook(
        lambda m, a, k: fed.append(k["input_ids"].shape),
        with_kwargs=True,
    )
    getattr(model.energy_model, "backbone", torch.nn.Identity()).register_forward_pre_hook(
        lambda m, a, k: fed.append(k["input_ids"].shape), with_kwargs=True
    )

    for chunk in (None, 1, 4, 7):
        fed.clear()
        energies = model.own_energy("sequence", chunk)(proposed, proposal)
        torch.testing.assert_close(energies, whole, rtol=0, atol=1e-4)
        # What every row shows before its first mask runs once per row, not per candidate
        assert fed[0] == (3, 20)
        assert sum(n for n, _ in fed[1:]) == 15 and all(n <= (chunk or 15) for n, _ in fed[1:])


def long_gpt2():
    return tiny_gpt2(n_positions=40, bos_token_id=10)


def test_energies_stay_single_precision_in_a_half_precision_model():
    model = with_ar().to(torch.bfloat16)
    out = model.generate(
        batch_size=2, max_denoising_steps=3, num_candidates=3, generator=seed(), return_dict_in_generate=True
    )
    assert out.energies.dtype == torch.float32 and (out.sequences != MASK).all()


def test_an_energy_does_not_go_with_a_sampler_that_looks_at_visible_tokens():
    class Looking:
        sees = "tokens"

        def steps(self, state, noise):
            from edlm_hf.modeling.samplers import Step

            for _ in range(8):
                yield Step(state.time_of(state.masked.sum(-1).cpu(), state.free.sum(-1).cpu()))

        def looks_at(self, state, rows):
            return state.free[rows]

        def reveal(self, step, proposal):
            return proposal.masked & (proposal.masked.cumsum(-1) == 1)

    with pytest.raises(ValueError, match="looks at visible tokens"):
        with_ar().generate(max_length=8, sampler=Looking(), generator=seed())
    assert not (with_ar().generate(max_length=8, sampler=Looking(), num_candidates=1, generator=seed()) == MASK).any()
