"""The transformer: padding, precision, conditioning, cache, losses and clear errors."""

import pytest
import torch
from checkpointing import switch_checkpointing
from published import randomised, tiny_causal, tiny_config, tiny_denoiser
from transformers.cache_utils import DynamicCache

from edlm_hf import MDLMConfig, MDLMForCausalLM, MDLMForMaskedLM, MDLMModel
from edlm_hf.modeling.mdlm_blocks import ZeroLinear
from edlm_hf.modeling.prefix_cache import CACHE_NAMES, returned_cache

IDS = torch.tensor([[3, 12, 5, 0, 12, 7], [1, 2, 12, 12, 4, 9]])


def padded(ids, left, right):
    """Each row with padding (token 6) on both sides, and its attention mask."""
    ids = torch.nn.functional.pad(ids, (left, right), value=6)
    mask = torch.ones_like(ids)
    mask[:, :left] = 0
    mask[:, ids.shape[1] - right :] = 0
    return ids, mask


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("make", [tiny_denoiser, tiny_causal])
@torch.no_grad()
def test_padded_row_has_the_logits_of_the_unpadded_one(make, implementation):
    model = make()
    model.set_attn_implementation(implementation)
    plain = model(IDS).logits
    for left, right in [(3, 0), (0, 3), (2, 1)]:
        ids, mask = padded(IDS, left, right)
        logits = model(ids, attention_mask=mask).logits[:, left : left + IDS.shape[1]]
        torch.testing.assert_close(logits, plain, rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_of_different_length_do_not_touch_each_other():
    model = tiny_denoiser()
    ids = torch.stack([IDS[0], torch.cat([IDS[1, :4], torch.tensor([6, 6])])])
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    both = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(both[:1], model(IDS[:1]).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1:, :4], model(IDS[1:, :4]).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_attention_backends_agree():
    model = tiny_denoiser()
    reference = model(IDS).logits
    for implementation in ("eager", "flex_attention"):
        model.set_attn_implementation(implementation)
        torch.testing.assert_close(model(IDS).logits, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_stays_near_single(dtype):
    model = tiny_denoiser()
    single = model(IDS).logits
    half = model.to(dtype)(IDS).logits
    assert half.dtype == dtype
    assert (half.float() - single).abs().max() < 0.1 * single.abs().max()


@torch.no_grad()
def test_double_precision_is_not_lost_on_the_way():
    model = tiny_denoiser().double()
    model.set_attn_implementation("eager")
    one = model(IDS).logits
    model.set_attn_implementation("sdpa")
    assert one.dtype == torch.float64
    assert (model(IDS).logits - one).abs().max() < 1e-12


@torch.no_grad()
def test_time_matters_only_to_a_conditioned_model():
    sigma = torch.tensor([0.1, 3.0])
    unconditioned, conditioned = tiny_denoiser(), tiny_denoiser(time_conditioning=True)
    assert torch.equal(unconditioned(IDS, timesteps=sigma).logits, unconditioned(IDS).logits)
    torch.testing.assert_close(
        conditioned(IDS, timesteps=torch.zeros(2)).logits, unconditioned(IDS).logits, rtol=0, atol=1e-5
    )

    later = conditioned(IDS, timesteps=sigma).logits
    assert (later - unconditioned(IDS).logits).abs().max() > 0.01
    torch.testing.assert_close(
        later[1:],
        conditioned(IDS[1:], timesteps=sigma[1:]).logits,
        rtol=0,
        atol=1e-5,
    )


def test_conditioned_model_asks_for_its_noise_level():
    model = tiny_denoiser(time_conditioning=True)
    with pytest.raises(ValueError, match=r"timesteps=None.*total noise sigma"):
        model(IDS)
    with pytest.raises(ValueError, match="3 entries for 2 rows"):
        model(IDS, timesteps=torch.zeros(3))


def test_published_initialisation_predicts_uniformly():
    torch.manual_seed(0)
    model = MDLMForMaskedLM(tiny_config(n_blocks=1))
    assert torch.equal(model(IDS).logits, torch.zeros(2, 6, 13))

    zero = [name for name, module in model.named_modules() if isinstance(module, ZeroLinear)]
    assert zero == [
        "backbone.blocks.0.adaLN_modulation",
        "backbone.output_layer.adaLN_modulation",
        "backbone.output_layer.linear",
    ]

    others = [p for name, p in model.named_parameters() if name.rsplit(".", 1)[0] not in zero]
    assert all(p.abs().sum() > 0 for p in others)


@torch.no_grad()
def test_denoiser_from_a_causal_model_computes_the_same_where_both_see_everything():
    for causal, ids in ((tiny_causal(n_blocks=1), IDS), (tiny_causal(), IDS[:, :1])):
        denoiser = MDLMForMaskedLM.from_causal(
            causal,
            cond_dim=4,
            time_conditioning=True,
            noise_schedule="cosine",
        )
        config = denoiser.config
        assert (config.cond_dim, config.noise_schedule, config.causal, config.vocab_size) == (4, "cosine", False, 13)
        for sigma in (0.1, 3.0):
            logits = denoiser(ids, timesteps=torch.full((2,), sigma)).logits
            # The last one sees all
            torch.testing.assert_close(logits[:, -1, :12], causal(ids).logits[:, -1, :12])

    denoiser.train().requires_grad_(True)
    with torch.enable_grad():
        denoiser(ids, timesteps=torch.ones(2)).logits.square().sum().backward()
    assert all(block.adaLN_modulation.weight.grad.abs().sum() > 0 for block in denoiser.backbone.blocks)


@torch.no_grad()
def test_trunk_and_projection_make_the_logits():
    model = tiny_denoiser()
    hidden = model.backbone(IDS).last_hidden_state
    assert torch.equal(model.get_output_embeddings()(hidden), model(IDS).logits)
    by_embedding = model(inputs_embeds=model.get_input_embeddings()(IDS)).logits
    assert torch.equal(by_embedding, model(IDS).logits)


def test_logits_at_some_positions_are_those_of_the_full_pass_and_not_for_labels():
    model = tiny_denoiser()
    ids = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor(
        [[1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]],
        dtype=torch.bool,
    )
    with torch.no_grad():
        assert torch.equal(model(ids, logits_at=wanted).logits, model(ids).logits[wanted])
    with pytest.raises(ValueError, match="give labels or logits_at"):
        model(ids, labels=ids, logits_at=wanted)


def test_loss_is_the_mean_subs_cross_entropy_of_the_labelled_positions():
    model = tiny_denoiser()
    labels = torch.where(IDS == 12, torch.tensor([[0, 8, 0, 0, 2, 0], [0, 0, 5, 11, 0, 0]]), -100)
    output = model(IDS, labels=labels)
    log_probs = output.logits[..., :12].log_softmax(-1)  # the mask token, id 12, is impossible
    by_hand = -torch.stack([log_probs[0, 1, 8], log_probs[0, 4, 2], log_probs[1, 2, 5], log_probs[1, 3, 11]]).mean()
    torch.testing.assert_close(output.loss, by_hand)

    # Visible tokens carry over: they add nothing but count
    everywhere = torch.where(IDS == 12, labels, IDS)
    torch.testing.assert_close(model(IDS, labels=everywhere).loss, by_hand * 4 / 12)
    contradicted = everywhere.clone()
    contradicted[0, 0] = 4
    assert model(IDS, labels=contradicted).loss.isinf()

    model(IDS, labels=contradicted).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_causal_model_is_causal_and_never_offers_the_mask():
    model = tiny_causal()
    changed = IDS.clone()
    changed[:, 4] = 1
    one, two = model(IDS).logits, model(changed).logits
    torch.testing.assert_close(one[:, :4], two[:, :4], rtol=0, atol=1e-5)
    assert (one[:, 4:] - two[:, 4:]).abs().max() > 0.01
    assert (one.softmax(-1)[..., 12] == 0).all()

    loss = model(IDS, labels=IDS.masked_fill(IDS == 12, -100)).loss
    log_probs = one[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(loss, -log_probs[IDS[:, 1:] != 12].mean())


@torch.no_grad()
@pytest.mark.parametrize("name", CACHE_NAMES)
def test_cached_decoding_equals_the_full_pass(name):
    model = tiny_causal()
    full = model(IDS).logits
    cache = returned_cache(model(IDS[:, :3], use_cache=True))

    for i in range(3, 6):
        step = model(IDS[:, i : i + 1], use_cache=True, **{name: cache})
        assert returned_cache(step) is cache
        torch.testing.assert_close(step.logits[:, 0], full[:, i], rtol=0, atol=1e-5)

    kept = model(IDS, logits_to_keep=2).logits
    torch.testing.assert_close(kept, full[:, -2:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_generation_through_the_cache_gives_the_tokens_of_whole_passes():
    model = tiny_causal()
    read = []

    def note_length(module, args, kwargs):
        read.append(kwargs["input_ids"].shape[1])

    model.backbone.register_forward_pre_hook(note_length, with_kwargs=True)
    through_cache = model.generate(IDS, max_new_tokens=5, do_sample=False)
    assert read == [6, 1, 1, 1, 1]
    assert torch.equal(through_cache, model.generate(IDS, max_new_tokens=5, do_sample=False, use_cache=False))


@pytest.mark.parametrize("make", [tiny_denoiser, tiny_causal])
def test_a_cache_is_given_once_and_to_causal_models(make):
    cache = DynamicCache()
    with pytest.raises(ValueError, match="Both cache and past_key_values|no key/value cache"):
        make()(IDS, cache=cache, past_key_values=cache)
    with pytest.raises(ValueError, match="no key/value cache"):
        tiny_denoiser()(IDS, cache=cache)


def test_a_checkpointed_model_in_training_leaves_a_cache_alone():
    model = tiny_causal().train()
    switch_checkpointing(model, True)
    cache = DynamicCache()
    model(IDS, labels=IDS, cache=cache).loss.backward()
    assert cache.get_seq_length() == 0


@torch.no_grad()
def test_causal_model_generates_ragged_batches_like_single_rows():
    model = tiny_causal()
    alone = [model.generate(row[None], max_new_tokens=5, do_sample=False)[0, -5:] for row in (IDS[0, :3], IDS[1])]
    batch = torch.stack([torch.cat([torch.tensor([6, 6, 6]), IDS[0, :3]]), IDS[1]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    together = model.generate(
        batch,
        attention_mask=mask,
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=6,
    )
    assert torch.equal(together[:, -5:], torch.stack(alone))


def test_gradient_checkpointing_changes_no_gradient():
    model = tiny_denoiser().train()
    labels = torch.where(IDS == 12, 1, -100)
    model(IDS, labels=labels).loss.backward()
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    switch_checkpointing(model, True)
    model(IDS, labels=labels).loss.backward()
    again = [p.grad for p in model.parameters() if p.grad is not None]
    for one, two in zip(plain, again, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("make", [tiny_denoiser, tiny_causal])
def test_trunk_compiles_without_graph_breaks(make):
    trunk = make().backbone
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    for arguments in ({}, {"attention_mask": mask}):
        explained = torch._dynamo.explain(trunk)(IDS, use_cache=False, **arguments)
        assert explained.graph_break_count == 0, explained.break_reasons
    torch._dynamo.reset()


def test_embedding_can_be_resized():
    model = tiny_denoiser()
    before = model(IDS).logits
    model.resize_token_embeddings(20, mean_resizing=False)
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == 20
    assert model.config.vocab_size == 20 and model.config.mask_token_id == 12
    torch.testing.assert_close(model(IDS).logits[..., :13], before, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_token_id": 13}, "mask_token_id is 13.*0 to 12"),
        ({"mask_token_id": -1}, "mask_token_id is -1"),
        ({"n_heads": 3}, "hidden_dim=16 and n_heads=3"),
        ({"n_blocks": 0}, "n_blocks is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"noise_schedule": "quadratic"}, "noise_schedule is 'quadratic'.*loglinear, cosine"),
        ({"noise_schedule_params": {"sigma_max": 3}}, "'sigma_max'.*takes only eps"),
        ({"noise_schedule": "linear", "noise_schedule_params": {"sigma_max": -1.0}}, "sigma_max=-1.0"),
        ({"noise_schedule_params": {"eps": "x"}}, "noise_schedule_params is .*dict.str, float . int"),
        ({"vocab_size": "29"}, "vocab_size is '29', but a value of type int is needed"),
        ({"time_conditioning": 1}, "time_conditioning is 1, but a value of type bool"),
    ],
)
def test_bad_configuration_says_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_what_became_wrong_later_is_a_value_error_before_saving(tmp_path):
    config = tiny_config()
    with pytest.raises(ValueError, match="dropout is 'none'"):
        config.dropout = "none"
    config.hidden_dim = 7
    with pytest.raises(ValueError, match="hidden_dim=7 and n_heads=2"):
        config.save_pretrained(tmp_path)


def test_configuration_speaks_the_usual_names_and_ignores_stored_tuples():
    config = MDLMConfig(
        hidden_size=48,
        num_hidden_layers=3,
        return_dict=False,
        noise_schedule="log-linear",
    )
    assert (config.hidden_dim, config.n_blocks, config.max_position_embeddings) == (48, 3, 1024)
    assert config.mask_token_id == 50257
    assert config.return_dict
    assert config.noise_schedule == "loglinear"
    assert tiny_config(noise_schedule="cosine_squared").noise_schedule == "cosinesqr"


def test_wrong_use_says_what_to_do():
    with pytest.raises(ValueError, match="MDLMForCausalLM"):
        MDLMForMaskedLM(tiny_config(causal=True))
    with pytest.raises(ValueError, match="MDLMForMaskedLM"):
        MDLMForCausalLM(tiny_config())

    model = tiny_denoiser()
    with pytest.raises(ValueError, match="13 tokens but model_length is 12"):
        model(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        MDLMModel(tiny_config())()


def test_tied_embeddings_are_one_tensor():
    model = randomised(MDLMForMaskedLM(tiny_config(tie_word_embeddings=True)))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
def test_few_positions_have_the_logits_of_the_full_pass(implementation, padding):
    model = tiny_denoiser()
    model.set_attn_implementation(implementation)
    ids, mask = padded(IDS, *padding)
    full = model(ids, attention_mask=mask).logits
    generator = torch.Generator().manual_seed(0)

    for share in (0.1, 0.3, 0.9):  # rows with different numbers of positions, some with none
        positions = (torch.rand(ids.shape, generator=generator) < share) & mask.bool()
        positions[0, padding[0] + 1] = True
        hidden = model.hidden_at(positions, ids, mask)
        assert len(hidden) == positions.sum()
        torch.testing.assert_close(model.projection()(hidden), full[positions], rtol=0, atol=1e-5)


class OlderDenoiser(MDLMForMaskedLM):
    """A denoiser whose code came with a checkpoint of 0.1.0."""

    takes_positions = False

    def hidden_at(self, at, input_ids, attention_mask=None, timesteps=None):
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "timesteps": timesteps}
        return self.backbone(**inputs).last_hidden_state[at]


@pytest.mark.parametrize("sampler", ["ancestral", "spaced"])
def test_code_of_older_checkpoints_is_given_masks(sampler):
    model = tiny_denoiser()
    older = OlderDenoiser(model.config)
    older.load_state_dict(model.state_dict())
    settings = {"max_length": 6, "sampler": sampler, "max_denoising_steps": 3}

    rows = [
        network.eval().generate(**settings, generator=torch.Generator().manual_seed(0)) for network in (model, older)
    ]
    assert torch.equal(*rows)


def test_another_weight_takes_the_place_of_the_embedding():
    model = tiny_denoiser()
    weight = torch.nn.Parameter(torch.zeros_like(model.get_input_embeddings().weight))
    model.get_input_embeddings().weight = weight
    assert model.backbone.vocab_embed.embedding is weight
    assert "backbone.vocab_embed.weight" not in model.state_dict()
