"""Filters and processors change what tokens are drawn from, and what energies are given."""

import torch
from composites import MASK
from published import seed, tiny_denoiser, with_ar
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor


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
