"""What a streamer is shown is the output, also of ragged rows, ends of texts and blocks."""

from types import SimpleNamespace

import pytest
import torch
from composites import IDS, MASK, PAD
from published import seed, tiny_denoiser
from streamers import Shown

from edlm_hf import EDLMForMaskedDiffusion


def test_a_streamer_that_fails_leaves_everything_as_it_was():
    class Broken(Shown):
        def put_draft(self, tokens):
            raise KeyError("nobody listens")

    model = tiny_denoiser(dropout=0.1).train()
    with pytest.raises(KeyError, match="nobody listens"):
        model.generate(IDS, streamer=Broken())
    assert all(module.training for module in model.modules())


def test_a_row_of_a_ragged_batch_is_shown_without_its_padding():
    shown = Shown()
    ids, mask = torch.tensor([[3, 0, 0], [4, 5, 6]]), torch.tensor([[1, 0, 0], [1, 1, 1]])
    tokens = tiny_denoiser().generate(ids, mask, max_new_tokens=3, streamer=shown, generator=seed())
    assert shown.got == [3, *tokens[0, 3:].tolist()]
    assert all(len(draft) == 3 for draft in shown.drafts)


def test_what_is_shown_is_the_output_also_where_a_text_ends():
    class Ends(torch.nn.Module):
        config = SimpleNamespace(vocab_size=13, max_position_embeddings=12)

        def forward(self, input_ids, attention_mask=None):
            return SimpleNamespace(
                logits=torch.nn.functional.one_hot(torch.arange(input_ids.shape[1]), 13).expand(len(input_ids), -1, -1)
                * 50.0
            )

    model = EDLMForMaskedDiffusion.from_components(Ends(), mask_token_id=MASK)
    ids, options = torch.tensor([[0, 1], [5, 6]]), {"max_new_tokens": 8, "block_length": 2, "max_denoising_steps": 2}
    for way in ({"eos_token_id": 4}, {"stopping_criteria": lambda ids, scores: ids.shape[1] >= 6}):
        shown = Shown()
        tokens = model.generate(ids, **options, **way, pad_token_id=PAD, streamer=shown)
        assert shown.got == tokens[0].tolist() and shown.ended == 1
        assert tokens[0].tolist()[:2] == [0, 1] and tokens[0, -1] == PAD
        assert len(shown.drafts) == 4  # two blocks of two steps, none after the end
        assert all(draft[0] in (2, 4, MASK) for draft in shown.drafts)


@pytest.mark.parametrize("options", [{}, {"eos_token_id": 1}, {"stopping_criteria": lambda ids, scores: True}])
def test_what_is_shown_is_the_output_also_of_texts_longer_than_the_model(options):
    ids = torch.tensor([[MASK, 3, MASK, 4, 5, 6]])
    for n in range(6):
        shown = Shown()
        tokens = tiny_denoiser().generate(
            ids, max_new_tokens=11, block_length=3, pad_token_id=PAD, streamer=shown, generator=seed(n), **options
        )
        assert shown.got == tokens[0].tolist() and shown.ended == 1
