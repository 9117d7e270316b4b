"""What users hand to generate() in all the forms that it comes in, and what their own functions may do."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from published import randomised, seed, tiny_causal, tiny_config, tiny_denoiser
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, EDLMGenerationConfig

MASK, PAD = 12, 11
IDS = torch.tensor([[3, MASK, 4], [5, 6, MASK]])


def draws(model, **options):
    """Whether different seeds give different texts."""
    texts = {str(model.generate(max_length=12, max_denoising_steps=2, generator=seed(n), **options)) for n in range(4)}
    return len(texts) > 1


# ---------------------------------------------------------------------------------------------------------- yes and no

NO = [False, 0, np.False_, np.int64(0), np.array(False), torch.tensor(False), torch.tensor([0])]
YES = [True, 1, np.True_, np.int32(1), np.array([True]), torch.tensor(True), torch.tensor(1)]


@pytest.mark.parametrize(("values", "yes"), [(NO, False), (YES, True)])
def test_yes_and_no_of_python_numpy_and_torch(values, yes, capsys):
    model = tiny_denoiser()
    for value in values:
        assert draws(model, do_sample=value) is yes
        assert EDLMGenerationConfig(do_sample=value).do_sample is yes
        out = model.generate(IDS, return_dict_in_generate=value)
        assert torch.is_tensor(out) is not yes

        out = model.generate(IDS, return_dict_in_generate=True, output_history=value)
        assert (out.history is not None) is yes
        assert model.generate(IDS, use_cache=value).shape == (2, 3)

        capsys.readouterr()
        model.generate(IDS, progress_bar=value)
        assert ("denoising" in capsys.readouterr().err) is yes


@pytest.mark.parametrize(
    "name", ["do_sample", "return_dict_in_generate", "output_history", "use_cache", "progress_bar"]
)
@pytest.mark.parametrize(
    "value", ["no", "False", "", 2, -1, 0.0, [], (0,), torch.tensor([0, 1]), np.zeros(2), object()]
)
def test_what_is_neither_yes_nor_no_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*, but it must be True or False"):
        tiny_denoiser().generate(IDS, **{name: value})


def test_a_stored_configuration_says_yes_or_no(tmp_path):
    tiny_denoiser().save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    for value, samples in ((0, False), (False, False), (1, True), (True, True)):
        path.write_text(json.dumps({"do_sample": value}))
        assert draws(AutoModelForMaskedLM.from_pretrained(tmp_path)) is samples
        assert EDLMGenerationConfig.from_pretrained(tmp_path).do_sample is samples

    path.write_text(json.dumps({"do_sample": "no"}))
    with pytest.raises(ValueError, match="do_sample is 'no', but it must be True or False"):
        AutoModelForMaskedLM.from_pretrained(tmp_path).generate(IDS)

    plain = GenerationConfig(do_sample=0)
    assert not draws(tiny_denoiser(), generation_config=plain) and plain.do_sample == 0


# --------------------------------------------------------------------------------------------------------- rows, masks


def test_no_new_tokens_fill_the_holes():
    for holes in (
        torch.tensor([[3, MASK, 4]]),
        torch.tensor([[3, 4]]),
        torch.zeros(1, 0, dtype=torch.long),
    ):
        for options in ({}, {"block_length": 2}, {"do_sample": False}, {"sampler": "first_hitting"}):
            filled = tiny_denoiser().generate(holes, max_new_tokens=0, generator=seed(), **options)
            assert filled.shape == holes.shape and (filled != MASK).all()
            assert torch.equal(filled[holes != MASK], holes[holes != MASK])
    assert tiny_denoiser().generate(max_new_tokens=0, batch_size=3).shape == (3, 0)
    config = EDLMGenerationConfig(max_new_tokens=0)
    assert tiny_denoiser().generate(torch.tensor([[3, MASK]]), generation_config=config).shape == (1, 2)


class Shown:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.got, self.drafts, self.ended = [], [], 0

    def put(self, tokens):
        self.got += tokens.tolist()

    def put_draft(self, tokens):
        self.drafts.append(tokens.tolist())

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("options", [{}, {"do_sample": False}, {"sampler": "first_hitting"}, {"block_length": 2}])
def test_no_rows_and_no_columns_come_back(options):
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal(bos_token_id=10))
    extras = {
        "eos_token_id": 1,
        "pad_token_id": 0,
        "stopping_criteria": lambda ids, scores: True,
        "num_candidates": 2,
    }
    for shape in ((0, 2), (0, 0), (2, 0)):
        for new in (0, 3):
            shown = Shown()
            out = model.generate(
                torch.zeros(shape, dtype=torch.long),
                max_new_tokens=new,
                streamer=shown,
                return_dict_in_generate=True,
                output_history=True,
                **options,
                **extras,
            )

            assert out.sequences.shape == (shape[0], shape[1] + new) and shown.ended == 1
            assert len(out.num_denoiser_calls) == len(out.tokens_per_forward) == shape[0]
            assert shown.got == (out.sequences[0].tolist() if shape[0] else [])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32])
def test_ids_of_any_integer_type(dtype):
    tokens = tiny_denoiser().generate(IDS.to(dtype), generator=seed())
    assert torch.equal(tokens, tiny_denoiser().generate(IDS, generator=seed()))
    assert tokens.dtype == torch.long


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.float16])
def test_attention_mask_of_any_type_holds_zeros_and_ones(dtype):
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    expected = tiny_denoiser().generate(IDS, mask, max_new_tokens=2, generator=seed())
    assert torch.equal(tiny_denoiser().generate(IDS, mask.to(dtype), max_new_tokens=2, generator=seed()), expected)


@pytest.mark.parametrize("wrong", [[0.0, -torch.inf], [1, 2], [1, -1], [1, torch.nan], [0.5, 1]])
def test_attention_mask_of_another_kind_is_refused(wrong):
    with pytest.raises(ValueError, match="attention_mask has values besides 0 and 1"):
        tiny_denoiser().generate(torch.tensor([[1, 2]]), torch.tensor([wrong]), max_new_tokens=2)


def test_a_gap_in_a_row_is_padding_like_any_other():
    """The text of a row is what the mask leaves of it, in its order."""
    ids = torch.tensor([[3, 9, MASK, 4, 9], [3, MASK, 9, 9, 4]])
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 0, 1]])
    alone = tiny_denoiser().generate(torch.tensor([[3, MASK, 4]]), max_new_tokens=3, do_sample=False)[0].tolist()
    tokens = tiny_denoiser().generate(ids, mask, max_new_tokens=3, do_sample=False).tolist()
    assert tokens[0] == [3, 9, alone[1], 4, 9, *alone[3:]]
    assert tokens[1] == [3, alone[1], 9, 9, 4, *alone[3:]]


def test_rows_of_padding_alone_are_texts_from_nothing():
    ids, mask = torch.tensor([[3, 4], [5, 6]]), torch.tensor([[1, 1], [0, 0]])
    alone = tiny_denoiser().generate(max_new_tokens=4, do_sample=False, max_denoising_steps=2)[0]
    tokens = tiny_denoiser().generate(
        ids,
        mask,
        max_new_tokens=4,
        do_sample=False,
        max_denoising_steps=2,
    )
    assert torch.equal(tokens[1, 2:], alone) and tokens[1, :2].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS.to("meta")}, "input_ids is on the device `meta`"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 3, device="meta")}, "attention_mask is on the device"),
        ({"input_ids": IDS.numpy()}, "input_ids is of type ndarray"),
        ({"input_ids": IDS, "eos_token_id": []}, "eos_token_id is .*None to switch the end of the text off"),
        ({"input_ids": IDS, "eos_token_id": True}, "eos_token_id is True"),
        ({"input_ids": IDS, "eos_token_id": [1, 13]}, r"eos_token_id is \[1, 13\].*0 to 12 without the mask token 12"),
        ({"input_ids": IDS, "eos_token_id": MASK}, "eos_token_id is 12.*without the mask token"),
        ({"input_ids": IDS, "pad_token_id": MASK}, "pad_token_id is 12.*without the mask token"),
        ({"input_ids": IDS, "pad_token_id": 13}, "pad_token_id is 13"),
        ({"input_ids": IDS, "pad_token_id": [1]}, r"pad_token_id is \[1\]"),
        ({"batch_size": True}, "batch_size is True"),
        ({"max_denoising_steps": 10**30}, "max_denoising_steps is 10.*at most 9007199254740992"),
        ({"max_new_tokens": 10**30}, "max_new_tokens is 10"),
        ({"logits_processor": [None]}, "logits_processor holds None"),
        ({"logits_processor": [torch.nn.ReLU]}, "logits_processor holds <class"),
        ({"streamer": Shown}, "streamer is a class.*put"),
        ({"energy": torch.nn.Linear}, "energy is a class.*callable"),
        ({"input_ids": IDS, "token_type_ids": torch.ones(2, 3)}, "token_type_ids is of type torch.float32"),
        ({"input_ids": IDS, "token_type_ids": torch.ones(2, 2).long()}, r"token_type_ids has shape \(2, 2\)"),
        ({"input_ids": IDS, "token_type_ids": torch.ones(2, 3).long()}, "the denoiser takes no token types"),
    ],
)
def test_wrong_arguments_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_denoiser().generate(**arguments)


def test_special_tokens_of_the_model_that_no_text_can_hold_are_left_out():
    model = tiny_denoiser()
    model.generation_config.update(eos_token_id=[40, 5], pad_token_id=MASK)
    tokens = model.generate(batch_size=30, max_new_tokens=8, generator=seed())
    ended = (tokens[:, 1:-1] == 5).any(-1)
    assert ended.any()
    assert (tokens[ended, -1] == 5).all()
    # 5 is the padding then
    assert (tokens != MASK).all()
    assert model.generation_config.pad_token_id == MASK
    assert model.generation_config.eos_token_id == [40, 5]


# --------------------------------------------------------------------------------------------------------- token types


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


# --------------------------------------------------------------------------------------------- functions of the user


def test_processors_cannot_bring_the_mask_back():
    level = [lambda ids, scores: torch.zeros_like(scores)]
    only = [lambda ids, scores: scores.new_full(scores.shape, -torch.inf).index_fill(1, torch.tensor([MASK]), 0.0)]
    for options in ({}, {"do_sample": False}, {"top_k": 3}, {"top_p": 0.5, "temperature": 2.0}):
        tokens = tiny_denoiser().generate(
            batch_size=20, max_denoising_steps=3, logits_processor=level, generator=seed(), **options
        )
        assert (tokens != MASK).all()
        with pytest.raises(ValueError, match="no token left"):
            tiny_denoiser().generate(logits_processor=only, **options)


def test_a_table_that_a_processor_returns_stays_as_it_is():
    table = torch.zeros(12, 13)
    tiny_denoiser().generate(
        max_denoising_steps=1,
        logits_processor=[lambda ids, scores: table],
        temperature=0.5,
    )
    assert (table == 0).all()


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (lambda ids, scores: None, r"returned NoneType, but scores of shape \(\d+, 13\)"),
        (lambda ids, scores: scores[:, :1], r"returned torch.float32 of shape \(\d+, 1\)"),
        (lambda ids, scores: scores[:1].repeat(99, 1), r"of shape \(99, 13\)"),
        (lambda ids, scores: scores.long(), "returned torch.int64"),
        (lambda ids, scores: scores.tolist(), "returned list"),
        (lambda ids, scores: scores * torch.nan, "or NaN"),
        (lambda ids, scores: scores + torch.inf, "or NaN"),
    ],
)
def test_processors_that_return_no_scores_are_refused(processor, message, do_sample):
    with pytest.raises(ValueError, match=message):
        tiny_denoiser().generate(
            logits_processor=[processor],
            do_sample=do_sample,
            max_denoising_steps=2,
        )


def writes_into_noisy(candidates, noisy, log_probs, attention_mask):
    noisy[noisy == MASK] = 0
    return candidates.double().mean(-1)


def writes_into_all(candidates, noisy, log_probs, attention_mask):
    energies = candidates.double().mean(-1)
    for tensor in (candidates, noisy, log_probs, attention_mask):
        tensor.zero_()
    return energies


@pytest.mark.parametrize("scope", ["sequence", "revealed"])
@pytest.mark.parametrize("energy", [writes_into_noisy, writes_into_all])
def test_energies_may_write_into_what_they_are_given(energy, scope):
    def clean(candidates, noisy, log_probs, attention_mask):
        return candidates.double().mean(-1)

    ids, mask = torch.tensor([[3, MASK, 4], [5, 6, PAD]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    options = {
        "max_new_tokens": 4,
        "max_denoising_steps": 3,
        "num_candidates": 3,
        "energy_scope": scope,
    }
    one, two = (
        tiny_denoiser().generate(ids, mask, energy=e, generator=seed(), return_dict_in_generate=True, **options)
        for e in (energy, clean)
    )
    assert torch.equal(one.sequences, two.sequences)
    assert torch.equal(one.energies.nan_to_num(-1), two.energies.nan_to_num(-1))


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda c, *rest: torch.zeros(len(c)), r"returned \(1,\), but a tensor of shape \(1, 8\)"),
        (lambda c, *rest: torch.zeros(c.shape[:2], dtype=torch.complex64), "complex64"),
        (lambda c, *rest: torch.zeros(c.shape[:2], device="meta"), "meta"),
        (lambda c, *rest: c.double().mean(-1).tolist(), "returned list"),
        (lambda c, *rest: None, "returned NoneType"),
        (lambda c, *rest: torch.full(c.shape[:2], torch.nan), "NaN or -inf"),
    ],
)
def test_energies_that_are_none_are_refused(energy, message):
    with pytest.raises(ValueError, match=message):
        tiny_denoiser().generate(energy=energy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool])
def test_energies_of_any_number_type(dtype):
    out = tiny_denoiser().generate(
        energy=lambda c, *rest: (c.sum(-1) % 2).to(dtype), return_dict_in_generate=True, max_denoising_steps=2
    )
    assert out.energies.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_energies_may_keep_a_graph():
    weight = torch.nn.Parameter(torch.ones(()))

    def energy(candidates, *rest):
        with torch.enable_grad():
            return candidates.float().mean(-1) * weight

    out = tiny_denoiser().generate(energy=energy, return_dict_in_generate=True, max_denoising_steps=2)
    assert not out.energies.requires_grad and weight.grad is None


# ------------------------------------------------------------------------------------------------------- other devices


@pytest.mark.parametrize("kind", ["denoiser", "time", "cosine", "ar", "nce", "shared"])
def test_any_default_device_gives_the_same_tokens(kind):
    """The default is `meta` here, where nothing can be computed: every tensor must say where it is."""
    build = EDLMForMaskedDiffusion.from_components
    model = {
        "denoiser": tiny_denoiser,
        "time": lambda: tiny_denoiser(time_conditioning=True),
        "cosine": lambda: tiny_denoiser(noise_schedule="cosine"),
        "ar": lambda: build(tiny_denoiser(), tiny_causal(bos_token_id=10)),
        "nce": lambda: build(tiny_denoiser(), randomised(EDLMEnergyModel(tiny_config()))),
        "shared": lambda: build(tiny_denoiser(), energy_type="nce", energy_weights="shared", energy_adapter_rank=1),
    }[kind]()
    ids, mask = torch.tensor([[3, MASK, 4], [PAD, 5, 6]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    ways = [
        {"max_denoising_steps": 3, "return_dict_in_generate": True, "output_history": True},
        {"sampler": "first_hitting", "energy_window": 0.5},
        {"do_sample": False, "max_denoising_steps": 3},
        {"do_sample": False, "sampler": "first_hitting"},
        {"block_length": 2, "eos_token_id": [1, 2], "pad_token_id": 0, "stopping_criteria": [lambda ids, s: False]},
        {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "logits_processor": [lambda ids, scores: scores / 2]},
        {"token_type_ids": torch.zeros_like(ids), "num_return_sequences": 2, "streamer": Shown()},
    ]

    def texts():
        for way in ways:
            generator = torch.Generator("cpu").manual_seed(0) if way.get("do_sample", True) else None
            sampling = {} if "do_sample" in way else {"num_candidates": 2}
            out = model.generate(ids, mask, max_new_tokens=4, generator=generator, **(sampling | way))
            yield getattr(out, "sequences", out)

    expected = list(texts())
    with torch.device("meta"):
        found = list(texts())
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


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
