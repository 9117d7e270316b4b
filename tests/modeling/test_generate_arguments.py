"""Arguments of `generate()` in all the forms that they come in, and their errors."""

import pytest
import torch
from composites import IDS, MASK, PAD
from published import randomised, seed, tiny_causal, tiny_config, tiny_denoiser
from streamers import Shown

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, EDLMGenerationConfig


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
