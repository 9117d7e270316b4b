"""Facts that a network states: the length of its texts, the number of its ids, its special tokens.

Configurations differ in names, in nesting and in the meaning of their numbers. Everything that
needs one of these facts asks here, and nowhere else. Functions take a configuration of any kind, or
a model, whose weights count as well.
"""

import inspect
import math
from collections.abc import Iterator
from itertools import chain
from numbers import Integral

import torch
from torch import nn

# Names of the length of a text in configurations, most telling first
LENGTH_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_length",
    "max_seq_len",
    "model_length",
    "model_max_length",
    "seq_length",
    "n_ctx",
    "max_target_positions",
    "max_source_positions",
)
VOCABULARY_NAMES = ("vocab_size", "n_vocab", "n_words")

# Names of tables of learned positions, which stand beside the embedding of the tokens
POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")

# Names of the configurations of text inside another configuration
TEXT_PARTS = (
    "denoiser_config",
    "text_config",
    "llm_config",
    "language_config",
    "decoder",
    "encoder",
    "text_encoder",
)

# Model types that count positions from pad_token_id + 1 on, as fairseq does: the rows before it
# hold no token.
COUNTS_FROM_PADDING = {
    "altclip_text_model",
    "bridgetower_text_model",
    "camembert",
    "clap_text_model",
    "data2vec-text",
    "esm",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


def longest_text(network) -> int | None:
    """The most tokens that a network reads, None where its configuration names no length.

    A network with learned positions reads as many tokens as its table has rows for, a RoBERTa two
    fewer than its `max_position_embeddings`. Rotary and relative positions have no such limit: the
    length that the configuration names counts, the one of training.

    Args:
        network: a model or a configuration. The table of positions of a model counts where it is
            smaller.
    """
    config = getattr(network, "config", network)
    lengths = [length_of_config(part) for part in text_configs(config)]

    # The length of the whole comes before the lengths of its parts.
    limits = lengths[1:]
    if lengths and lengths[0] is not None:
        limits = lengths[:1]

    # A table may be smaller than its configuration says
    if isinstance(network, nn.Module):
        limits += lengths_of_position_tables(network)
    return min((limit for limit in limits if limit is not None), default=None)


def length_of_config(config) -> int | None:
    """The usable length of one configuration, without its parts."""
    model_type = getattr(config, "model_type", None)
    if model_type == "reformer":
        return length_of_reformer(config)
    length = first_positive(config, LENGTH_NAMES)

    padding = getattr(config, "pad_token_id", None)
    if length is None or padding is None or not counts_from_padding(config):
        return length
    return positive_or_none(length - padding - 1)


def counts_from_padding(config) -> bool:
    """Whether positions are counted from pad_token_id + 1 on, over the tokens that are not padding.

    Only learned positions are.
    """
    kind_of_positions = getattr(config, "position_embedding_type", None) or "absolute"
    model_type = getattr(config, "model_type", None)
    return model_type in COUNTS_FROM_PADDING and kind_of_positions == "absolute"


def length_of_reformer(config) -> int | None:
    """The length of a Reformer, which fills its input up to whole chunks of positions."""
    rows = config.max_position_embeddings
    if config.axial_pos_embds:
        rows = math.prod(config.axial_pos_shape)

    # A text that fits one chunk is not filled up
    chunks = [getattr(config, f"{kind}_attn_chunk_length") for kind in set(config.attn_layers)]
    if rows <= min(chunks):
        return rows
    whole = math.lcm(*chunks)
    return positive_or_none(rows // whole * whole)


def lengths_of_position_tables(model: nn.Module) -> list[int]:
    """Tokens for which there are rows in the tables of positions beside the token embedding."""
    token_embedding = input_embedding(model)
    if token_embedding is None:
        return []

    lengths = []
    for parent in model.modules():
        siblings = dict(parent.named_children())
        if not any(child is token_embedding for child in siblings.values()):
            continue
        for name in POSITION_TABLES:
            length = length_of_position_table(siblings.get(name))
            if length is not None:
                lengths.append(length)
    return lengths


def length_of_position_table(table: nn.Module | None) -> int | None:
    """Rows of a table of positions, without the ones that are reserved at its beginning."""
    weight = getattr(table, "weight", None)
    if weight is None or weight.dim() != 2:
        return None

    # OPT and BART say how many rows are reserved, RoBERTa reserves those up to the padding token.
    reserved = getattr(table, "offset", None)
    if not isinstance(reserved, int):
        padding = getattr(table, "padding_idx", None)
        reserved = 0 if padding is None else padding + 1
    return positive_or_none(weight.shape[0] - reserved)


def positive_or_none(length: int) -> int | None:
    return length if length >= 1 else None


def num_ids(model) -> int | None:
    """The number of token ids that a model reads, by its embedding and its configuration."""
    weight = getattr(input_embedding(model), "weight", None)
    rows = 0 if weight is None else weight.shape[0]
    configured = vocabulary_size(getattr(model, "config", None)) or 0
    return max(rows, configured) or None


def vocabulary_size(config) -> int | None:
    """The size of the vocabulary in a configuration."""
    for part in text_configs(config):
        size = first_positive(part, VOCABULARY_NAMES)
        if size is not None:
            return size
    return None


def input_embedding(model) -> nn.Module | None:
    """The embedding of the tokens, None for modules of others that do not tell."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def accepts(module: nn.Module, name: str) -> bool:
    """Whether the forward of a module, or of the model inside a wrapper of PEFT, has a parameter `name`."""
    return name in inspect.signature(without_adapters(module).forward).parameters


def without_adapters(model: nn.Module) -> nn.Module:
    """The model inside a wrapper of PEFT, with its adapters in place. Other models as they are."""
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def device_of(model: nn.Module) -> torch.device:
    """Where a network computes: the device of its first weight, the CPU if it has none.

    Offloaded weights count where they are moved to. It is `meta` if nothing says where that is.
    """
    has_weights = False
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
        has_weights = True

    # All weights are offloaded: hooks of accelerate know where they will be.
    for module in model.modules():
        for device in execution_devices(getattr(module, "_hf_hook", None)):
            return device
    return torch.device("meta" if has_weights else "cpu")


def logits_of(network: nn.Module, output) -> torch.Tensor:
    """The logits of what a call of a network returned.

    Raises:
        ValueError: it has none.
    """
    logits = getattr(output, "logits", None)
    if torch.is_tensor(logits):
        return logits
    raise ValueError(
        f"The {type(network).__name__} returned a {type(output).__name__}, but an object with `.logits` (B, L, V) is "
        "needed, such as the output of a language model of transformers. Wrap the module in one that returns it."
    )


def is_compiled(network: nn.Module) -> bool:
    """Whether calls of a network run compiled code, which its other methods would go past."""
    is_wrapped = hasattr(network, "_orig_mod")  # by torch.compile(network)
    return is_wrapped or getattr(network, "_compiled_call_impl", None) is not None  # network.compile()


def on_device_of(network: nn.Module, *tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Inputs of a network where it computes.

    They stay where they are if it has no weights, or if nothing says where these will be.
    """
    # A tensor has no truth value: it counts that there is one
    device = device_of(network)
    weights = chain(network.parameters(), network.buffers())
    has_weights = any(True for _ in weights)
    if not has_weights or device.type == "meta":
        return list(tensors)
    return [tensor.to(device) if torch.is_tensor(tensor) else tensor for tensor in tensors]


def execution_devices(hook) -> Iterator[torch.device]:
    """The devices to which a hook of accelerate moves weights and inputs.

    Args:
        hook: one hook, a sequence of several, or None.
    """
    for single in getattr(hook, "hooks", [hook]):
        device = getattr(single, "execution_device", None)
        if device is not None:
            yield torch.device(device)


def start_token(config) -> int | None:
    """The first token of texts: `bos_token_id`, or else the first one of a decoder or an encoder.

    The latter are often defaults of a class that nobody set, and count only inside the vocabulary.
    """
    ids = token_ids(config, "bos_token_id")
    if ids:
        return ids[0]

    size = vocabulary_size(config)
    for name in ("decoder_start_token_id", "cls_token_id"):
        for token_id in token_ids(config, name):
            if size is None or token_id < size:
                return token_id
    return None


def special_ids(config) -> set[int]:
    """Ids of the start, end and padding tokens that a configuration names."""
    ids = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids.update(token_ids(config, name))
    return ids


def token_ids(config, name: str) -> list[int]:
    """The ids, one or several, under the name of a special token. Empty if there are none."""
    for part in text_configs(config):
        value = getattr(part, name, None)
        if value is not None:
            return list(value) if isinstance(value, (list, tuple, set)) else [value]
    return []


def text_configs(config) -> Iterator:
    """A configuration, then the configurations of its text inside it."""
    if config is None:
        return
    yield config
    for name in TEXT_PARTS:
        part = getattr(config, name, None)
        if part is not None and hasattr(part, "__dict__"):
            yield from text_configs(part)


def first_positive(config, names: tuple[str, ...]) -> int | None:
    """The first positive number under one of the names: -1 and 0 mean that nothing is known."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, Integral) and not isinstance(value, bool) and value >= 1:
            return int(value)
    return None
