"""Published layouts of masked diffusion models, and the classes of transformers that compute the same.

LLaDA, Dream and their kin ship modelling code of their own, written for transformers 4. The networks
are decoders that transformers has, with the causal mask left out (`is_causal=False` in the
configuration). Here are the differences: names of settings, names of weights, and conventions.

All functions are pure functions of config.json and of the names of the weights. Settings are in
published_settings.py.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from edlm_hf.modeling.generation_config_edlm import given_whole_number
from edlm_hf.published_settings import (
    check_numbers,
    settings_as_they_are,
    settings_of_llada,
    settings_of_llada_moe,
    settings_without_window,
)

# Buffers that old versions stored: they follow from the configuration.
FOLLOWS_FROM_CONFIGURATION = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")


@dataclass(frozen=True)
class Layout:
    """How a family of models is published.

    Args:
        name: of the family.
        model_types: in config.json, in lower case.
        model_class: the class of transformers that computes the same.
        settings: from config.json to the arguments of that class's configuration. It raises
            ValueError for a setting that the class cannot have.
        renames: patterns in the published names of weights, and what replaces them, in this order.
        logits_shift: 1 if the logits at position i - 1 predict token i.
        mask_token: the mask in the tokenizer, for where neither the tokenizer nor config.json says.
        tokenizer_class: of transformers, for repositories without tokenizer.json.
        setting: one that config.json has, where families share a model_type.
        prefix: of the names of some weights, where models that are causal have the same model_type.
        embedding: the published name of the embedding, for families whose config.json may be out of
            date about the number of its rows.
    """

    name: str
    model_types: tuple[str, ...]
    model_class: str
    settings: Callable[[dict], dict]
    renames: Mapping[str, str] = field(default_factory=dict)
    logits_shift: int = 0
    mask_token: str | None = None
    tokenizer_class: str | None = None
    setting: str = "vocab_size"
    prefix: str = ""
    embedding: str | None = None

    def matches(self, published: dict, weights: Iterable[str]) -> bool:
        """Whether a config.json and the names of the weights are of this family."""
        # LLaDA and LLaDA-MoE share a model_type, and DiffuLLaMA has the one of every Llama
        model_type = str(published.get("model_type", "")).lower()
        if model_type not in self.model_types or self.setting not in published:
            return False
        return any(name.startswith(self.prefix) for name in weights)

    def network_class(self) -> type[PreTrainedModel]:
        """The class of transformers, which is imported only now."""
        return getattr(transformers, self.model_class)

    def configuration(self, published: dict, mask_token_id: int | None, rows: int | None = None) -> PreTrainedConfig:
        """The configuration of the class.

        Args:
            published: config.json. rows: of the embedding, where the weights say so.

        Raises:
            ValueError: a number is not allowed, the mask token has no row, or the published network
                computes something else than the class.
        """
        check_numbers(published)
        try:
            settings = self.settings(published)
        except KeyError as missing:
            raise ValueError(
                f"config.json has no {missing.args[0]}, which every {self.name} has. Download it again."
            ) from None
        if rows is not None:
            settings["vocab_size"] = rows
        if mask_token_id is not None:
            check_mask_id(mask_token_id, settings.get("vocab_size"))

        # Unless they are named, the classes have special tokens of their own.
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            settings[name] = published.get(name)
        settings["mask_token_id"] = mask_token_id
        settings["logits_shift"] = self.logits_shift

        # Bidirectional attention, so that a cache of keys would be wrong after every change of a token
        settings["dtype"] = published.get("dtype") or published.get("torch_dtype")
        settings["is_causal"] = False
        settings["use_cache"] = False
        return self.network_class().config_class(**settings)


def check_mask_id(mask_token_id: int, rows: int | None) -> None:
    """Raise ValueError unless the embedding, if the number of its rows is known, has a row for the mask token."""
    mask = given_whole_number("mask_token_id", mask_token_id, 0)
    if rows is not None and mask >= rows:
        raise ValueError(
            f"mask_token_id is {mask}, but the embedding has rows for the ids 0 to {rows - 1}. Give that of the "
            "published model."
        )


def layout_of(published: dict, weights: Iterable[str]) -> Layout:
    """The layout of a model by its config.json and the names of its weights.

    Raises:
        ValueError: it is none of those that are known.
    """
    # An iterable may be read once only, and every family looks at the names
    weights = list(weights)
    for layout in LAYOUTS:
        if layout.matches(published, weights):
            return layout
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise ValueError(
        f"config.json and the names of the weights (model_type {published.get('model_type')!r}) are "
        f"not of a published layout that is known here: {known}. Load models that transformers has "
        "with from_pretrained. from_components takes any module that returns logits."
    )


LLADA = Layout(
    name="LLaDA",
    model_types=("llada",),
    setting="d_model",
    model_class="LlamaForCausalLM",
    settings=settings_of_llada,
    renames={
        r"^model\.transformer\.ff_out\.": "lm_head.",
        r"^model\.transformer\.wte\.": "model.embed_tokens.",
        r"^model\.transformer\.ln_f\.": "model.norm.",
        r"^model\.transformer\.blocks\.": "model.layers.",
        r"\.attn_norm\.": ".input_layernorm.",
        r"\.q_proj\.": ".self_attn.q_proj.",
        r"\.k_proj\.": ".self_attn.k_proj.",
        r"\.v_proj\.": ".self_attn.v_proj.",
        r"\.attn_out\.": ".self_attn.o_proj.",
        r"\.ff_norm\.": ".post_attention_layernorm.",
        r"\.ff_proj\.": ".mlp.gate_proj.",
        r"\.up_proj\.": ".mlp.up_proj.",
        r"\.ff_out\.": ".mlp.down_proj.",
    },
    mask_token="<|mdm_mask|>",
)

LLADA_MOE = Layout(
    name="LLaDA-MoE",
    model_types=("llada", "lladamoe"),
    setting="num_experts",
    model_class="Qwen3MoeForCausalLM",
    settings=settings_of_llada_moe,
    mask_token="<|mask|>",
)

DREAM = Layout(
    name="Dream",
    model_types=("dream",),
    model_class="Qwen2ForCausalLM",
    settings=settings_without_window,
    logits_shift=1,
    mask_token="<|mask|>",
    tokenizer_class="Qwen2Tokenizer",
)

# What dLLM makes of causal models (A2D)
A2D_LLAMA = Layout(
    name="A2D-Llama",
    model_types=("a2d-llama",),
    model_class="LlamaForCausalLM",
    settings=settings_as_they_are,
    mask_token="<|mask|>",
)
A2D_QWEN2 = Layout(
    name="A2D-Qwen2",
    model_types=("a2d-qwen2",),
    model_class="Qwen2ForCausalLM",
    settings=settings_without_window,
    mask_token="<|mask|>",
    tokenizer_class="Qwen2Tokenizer",
)
A2D_QWEN3 = Layout(
    name="A2D-Qwen3",
    model_types=("a2d-qwen3",),
    model_class="Qwen3ForCausalLM",
    settings=settings_without_window,
    mask_token="<|mask|>",
    tokenizer_class="Qwen2Tokenizer",
)

DIFFUGPT = Layout(
    name="DiffuGPT",
    model_types=("gpt2",),
    prefix="denoise_model.",
    model_class="GPT2LMHeadModel",
    settings=settings_as_they_are,
    renames={r"^denoise_model\.": "transformer.", r"^embed_tokens\.": "transformer.wte."},
    logits_shift=1,
    tokenizer_class="GPT2Tokenizer",
    embedding="embed_tokens.weight",
)
DIFFULLAMA = Layout(
    name="DiffuLLaMA",
    model_types=("llama",),
    prefix="denoise_model.",
    model_class="LlamaForCausalLM",
    settings=settings_as_they_are,
    renames={r"^denoise_model\.": "model.", r"^embed_tokens\.": "model.embed_tokens."},
    logits_shift=1,
    tokenizer_class="LlamaTokenizer",
    embedding="embed_tokens.weight",
)

LAYOUTS = (LLADA, LLADA_MOE, DREAM, A2D_LLAMA, A2D_QWEN2, A2D_QWEN3, DIFFUGPT, DIFFULLAMA)


__all__ = ["FOLLOWS_FROM_CONFIGURATION", "LAYOUTS", "Layout", "layout_of"]
