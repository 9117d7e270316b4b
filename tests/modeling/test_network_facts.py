"""What networks say of themselves, against what they do: lengths, vocabularies, special tokens."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BartConfig,
    BertConfig,
    BloomConfig,
    CamembertConfig,
    Data2VecTextConfig,
    EncoderDecoderConfig,
    EsmConfig,
    FlaubertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    IBertConfig,
    LongformerConfig,
    MistralConfig,
    ModernVBertConfig,
    MPNetConfig,
    MptConfig,
    OPTConfig,
    OPTForCausalLM,
    ReformerConfig,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaPreLayerNormConfig,
    WhisperConfig,
    XLMRobertaConfig,
    XLMRobertaXLConfig,
    XLNetConfig,
    XmodConfig,
    YosoConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from edlm_hf import EDLMConfig, EDLMForMaskedDiffusion, MDLMConfig, MDLMForMaskedLM
from edlm_hf.evaluation import autoregressive_nll, nelbo
from edlm_hf.modeling.network_facts import (
    longest_text,
    num_ids,
    special_ids,
    start_token,
    vocabulary_size,
)

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
    "pad_token_id": 1,
}
# Learned positions, some of them counted from the padding token on
NETWORKS = {
    BertConfig: {},
    RobertaConfig: {},
    XLMRobertaConfig: {},
    XLMRobertaXLConfig: {},
    XmodConfig: {"default_language": "en_XX"},
    CamembertConfig: {},
    RobertaPreLayerNormConfig: {},
    Data2VecTextConfig: {},
    IBertConfig: {},
    MPNetConfig: {},
    LongformerConfig: {"attention_window": [4]},
    EsmConfig: {"mask_token_id": 39, "position_embedding_type": "absolute"},
    YosoConfig: {},
    FlaubertConfig: {"emb_dim": 16, "n_layers": 1, "n_heads": 2},
    BartConfig: {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    },
    ReformerConfig: {
        "axial_pos_embds": False,
        "attn_layers": ["local"],
        "is_decoder": False,
        "feed_forward_size": 16,
        "local_attn_chunk_length": 5,
    },
}


def tiny(config_class, **changes):
    """A network of a configuration class with random weights."""
    torch.manual_seed(0)
    config = config_class(**(SIZES | NETWORKS.get(config_class, {}) | changes))
    return MODEL_FOR_MASKED_LM_MAPPING[config_class](config).eval()


@torch.no_grad()
def reads(model, length):
    ids = torch.full((1, length), 5)
    try:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape[1] == length
    except (IndexError, RuntimeError, ValueError):
        return False


@pytest.mark.parametrize("config_class", NETWORKS, ids=lambda config_class: config_class.model_type)
def test_the_longest_text_is_the_longest_that_a_network_reads(config_class):
    model = tiny(config_class)
    longest = longest_text(model)
    assert reads(model, longest) and not reads(model, longest + 1)
    assert longest_text(model.config) == longest


def test_a_roberta_of_514_rows_reads_512_tokens():
    config = RobertaConfig(max_position_embeddings=514)
    assert longest_text(config) == 512
    composite = EDLMConfig(denoiser_config=config, mask_token_id=50264)
    assert composite.max_position_embeddings == longest_text(composite) == 512


def test_the_table_of_positions_counts_where_the_configuration_promises_more():
    model = tiny(RobertaConfig)
    # A copy of RoBERTa's code that transformers does not know
    model.config.model_type = "of-others"
    assert longest_text(model.config) == 12 and longest_text(model) == 10

    opt = OPTConfig(
        vocab_size=40,
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=12,
    )
    model = OPTForCausalLM(opt)
    assert longest_text(model) == 12  # its table has 14 rows

    model.config.max_position_embeddings = 100
    assert longest_text(model) == 12


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2Config(n_positions=48), 48),
        (MptConfig(max_seq_len=96), 96),
        (WhisperConfig(max_target_positions=448, max_source_positions=1500), 448),
        (MDLMConfig(model_length=33), 33),
        (MistralConfig(max_position_embeddings=4096), 4096),  # rotary: the length of its training
        (BloomConfig(), None),  # ALiBi
        (XLNetConfig(), None),  # says -1
        (ModernVBertConfig(text_config={"model_type": "modernbert", "max_position_embeddings": 77}), 77),
        (EncoderDecoderConfig.from_encoder_decoder_configs(RobertaConfig(max_position_embeddings=9), BertConfig()), 7),
        (EsmConfig(max_position_embeddings=12, pad_token_id=1, position_embedding_type="rotary"), 12),
        (ReformerConfig(axial_pos_shape=(4, 8), axial_pos_embds_dim=(64, 192)), 32),
        (SimpleNamespace(max_position_embeddings=-1), None),
        (SimpleNamespace(max_position_embeddings=None, text_config=SimpleNamespace(n_ctx=9)), 9),
        (SimpleNamespace(), None),
        (None, None),
    ],
)
def test_lengths_are_found_under_every_name(config, expected):
    assert longest_text(config) == expected


def test_generation_and_likelihoods_keep_to_what_a_network_reads():
    model = EDLMForMaskedDiffusion.from_components(tiny(Data2VecTextConfig), mask_token_id=39)
    assert model.generate(max_denoising_steps=2).shape == (1, 10)
    with pytest.raises(ValueError, match="model's 10"):
        model.generate(max_length=11, max_denoising_steps=2)
    prompt = torch.full((2, 4), 5)
    assert model.generate(prompt, max_new_tokens=12, block_length=4, max_denoising_steps=2).shape == (2, 16)
    with pytest.raises(ValueError, match="at most 10"):
        nelbo(model, [[5] * 11])


def test_autoregressive_likelihoods_and_energies_keep_to_what_a_network_reads():
    from transformers import XLMRobertaForCausalLM

    config = XLMRobertaConfig(**SIZES, is_decoder=True, bos_token_id=0)
    causal = XLMRobertaForCausalLM(config).eval()
    assert autoregressive_nll(causal, [[5] * 10]).num_tokens == 10
    with pytest.raises(ValueError, match="at most 10"):
        autoregressive_nll(causal, [[5] * 11])

    sizes = {"vocab_size": 40, "hidden_dim": 16, "cond_dim": 8, "n_blocks": 1, "n_heads": 2, "model_length": 32}
    model = EDLMForMaskedDiffusion.from_components(MDLMForMaskedLM(MDLMConfig(**sizes)), causal)
    with pytest.raises(ValueError, match="at most 10"):
        model.generate(max_length=11, max_denoising_steps=2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SimpleNamespace(bos_token_id=3, cls_token_id=4), 3),
        (SimpleNamespace(bos_token_id=[6, 7]), 6),
        (SimpleNamespace(bos_token_id=None, cls_token_id=4), 4),
        (SimpleNamespace(bos_token_id=None, decoder_start_token_id=2, cls_token_id=4), 2),
        # A default that nobody set
        (SimpleNamespace(vocab_size=4, bos_token_id=None, cls_token_id=4), None),
        (SimpleNamespace(text_config=SimpleNamespace(bos_token_id=8)), 8),
        (BertConfig(), None),
    ],
)
def test_texts_begin_with_the_first_start_token_that_is_named(config, expected):
    assert start_token(config) == expected


def test_special_tokens_may_be_lists():
    config = SimpleNamespace(bos_token_id=1, eos_token_id=[2, 3], pad_token_id=(4,))
    assert special_ids(config) == {1, 2, 3, 4}
    assert special_ids(GPT2Config(bos_token_id=7, eos_token_id=7)) == {7}


def test_a_composite_takes_the_tokens_of_a_nested_configuration():
    text = {
        "model_type": "modernbert",
        "vocab_size": 77,
        "bos_token_id": 5,
        "pad_token_id": 6,
        "eos_token_id": [7, 8],
    }
    config = EDLMConfig(denoiser_config=ModernVBertConfig(text_config=text), mask_token_id=70)
    assert (config.vocab_size, config.bos_token_id, config.pad_token_id, config.eos_token_id) == (77, 5, 6, [7, 8])
    assert vocabulary_size(config) == 77


def test_ids_are_counted_by_the_embedding_where_that_has_more_rows():
    model = RobertaForMaskedLM(RobertaConfig(**SIZES))
    assert num_ids(model) == 40
    model.roberta.embeddings.word_embeddings = torch.nn.Embedding(64, 16)
    assert num_ids(model) == 64
    assert num_ids(GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_head=1, n_layer=1))) == 10
