"""Token types go from a tokenizer through `generate()` to the network."""

import pytest
import torch
from composites import IDS
from published import randomised, seed, tiny_denoiser
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from edlm_hf import EDLMForMaskedDiffusion


def tokenizer_with_types():
    words = {"[UNK]": 0, "[MASK]": 1} | {f"w{i}": i + 2 for i in range(20)}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]", pad_token="[UNK]", model_input_names=names
    )


def bert():
    sizes = {"vocab_size": 22, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return randomised(
        BertForMaskedLM(
            BertConfig(
                **sizes,
                intermediate_size=16,
                max_position_embeddings=16,
            )
        )
    )


def test_what_a_tokenizer_gives_is_what_generate_takes():
    model = EDLMForMaskedDiffusion.from_components(bert(), tokenizer=tokenizer_with_types())
    inputs = tokenizer_with_types()(["w1 w2 [MASK] w3", "[MASK] w5"], padding=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}

    rows = model.generate(**inputs, max_new_tokens=2, generator=seed())
    assert rows.shape == (2, 6) and (rows != 1).all()
    inputs.pop("token_type_ids")
    assert torch.equal(rows, model.generate(**inputs, max_new_tokens=2, generator=seed()))

    # Types that are all 0 say nothing to a network without types
    types = {"token_type_ids": torch.zeros_like(IDS)}
    assert tiny_denoiser().generate(IDS, **types).shape == IDS.shape


@pytest.mark.parametrize("options", [{}, {"block_length": 2}, {"num_return_sequences": 2}])
def test_token_types_reach_the_network_as_in_forward(options):
    """Aligned with the text of every row. New tokens have the type of its last one."""
    network = bert()
    model, seen = EDLMForMaskedDiffusion.from_components(network, mask_token_id=1), []
    network.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    ids = torch.tensor([[5, 1, 6, 7], [0, 0, 8, 1]])
    types, mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    model.generate(ids, mask, token_type_ids=types, max_new_tokens=3, max_denoising_steps=1, **options)
    expected = {5: [0, 0, 1, 1, 1, 1, 1], 8: [0, 0, 0, 0, 0]}

    for call in seen:
        for i, row in enumerate(call["input_ids"].tolist()):
            assert call["token_type_ids"][i].tolist()[: len(expected[row[0]])] == expected[row[0]]
    assert seen
    with pytest.raises(ValueError, match="types from 0 to 2, but the denoiser knows 2"):
        model.generate(ids, mask, token_type_ids=2 * types)
