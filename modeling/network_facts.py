"""What a network says of itself: how long its texts are, how many ids it reads, and its special tokens.

Configurations differ in names, in nesting and in what their numbers mean. Everything that needs one of these facts asks
here, and nowhere else. Functions take a configuration of any kind, or a model, which is asked for its weights as well.
"""

import math
from collections.abc import Iterator
from numbers import Integral

import torch
from torch import nn

# The names under which configurations keep the length of a text, most telling first
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

# The names of tables of learned positions, which stand beside the embedding of the tokens
POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")

# Where a configuration of several parts keeps the one of its text
TEXT_PARTS = ("denoiser_config", "text_config", "llm_config", "language_config", "decoder", "encoder", "text_encoder")

# Types of transformers that count positions from pad_token_id + 1 on (fairseq's way): so many rows hold no token
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


# ------------------------------------------------------------------------------------------------------------- lengths


def longest_text(network) -> int | None:
    """How many tokens a network reads at most; None where it does not say, as for relative positions.

    A network with learned positions reads what its table has rows for, and a RoBERTa two fewer than its
    `max_position_embeddings`. One with rotary or relative positions is taken at its word, the length of its training.

    Args:
        network: a model, whose table of positions counts where it is smaller, or a configuration.
    """
    own, *of_parts = [length_in(part) for part in parts_of(getattr(network, "config", network))] or [None]
    limits = of_parts if own is None else [own]
    if isinstance(network, nn.Module):
        limits += position_rows(network)
    return min((limit for limit in limits if limit is not None), default=None)


def length_in(config) -> int | None:
    """The usable length of one configuration, without its parts."""
    length = first_number(config, LENGTH_NAMES)
    kind = getattr(config, "model_type", None)
    if kind == "reformer":
        return length_of_reformer(config)
    if length is None or kind not in COUNTS_FROM_PADDING:
        return length
    if getattr(config, "position_embedding_type", "absolute") not in ("absolute", None):
        return length
    padding = getattr(config, "pad_token_id", None)
    return length if padding is None else at_least_one(length - padding - 1)


def length_of_reformer(config) -> int | None:
    """A Reformer fills its input up to whole chunks, which must have positions too."""
    rows = config.max_position_embeddings
    if config.axial_pos_embds:
        rows = math.prod(config.axial_pos_shape)
    chunks = [getattr(config, f"{kind}_attn_chunk_length") for kind in set(config.attn_layers)]
    if rows <= min(chunks):
        return rows
    return at_least_one(rows // math.lcm(*chunks) * math.lcm(*chunks))


def position_rows(model: nn.Module) -> list[int]:
    """Tokens for which the tables of learned positions beside the embedding of the tokens have rows."""
    tokens = input_embedding(model)
    if tokens is None:
        return []
    beside = [part for part in model.modules() if any(child is tokens for child in part.children())]
    tables = [child for part in beside for name, child in part.named_children() if name in POSITION_TABLES]
    return [rows for table in tables if (rows := rows_for_tokens(table)) is not None]


def rows_for_tokens(table: nn.Module) -> int | None:
    """Rows of a table of positions, less those that are reserved at its beginning."""
    weight = getattr(table, "weight", None)
    if weight is None or weight.dim() != 2:
        return None
    padding, offset = getattr(table, "padding_idx", None), getattr(table, "offset", None)
    reserved = offset if isinstance(offset, int) else 0 if padding is None else padding + 1
    return at_least_one(weight.shape[0] - reserved)


def at_least_one(length: int) -> int | None:
    return length if length >= 1 else None


# -------------------------------------------------------------------------------------------------------- vocabularies


def num_ids(model) -> int | None:
    """How many token ids a model can read: rows of its embedding, or what it says of its vocabulary."""
    weight = getattr(input_embedding(model), "weight", None)
    rows = 0 if weight is None else weight.shape[0]
    return max(rows, vocabulary_size(getattr(model, "config", None)) or 0) or None


def vocabulary_size(config) -> int | None:
    """Ids that a configuration says the vocabulary has."""
    sizes = (first_number(part, VOCABULARY_NAMES) for part in parts_of(config))
    return next((size for size in sizes if size is not None), None)


def input_embedding(model) -> nn.Module | None:
    """The embedding of the tokens; None for modules of others that do not tell."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


# ------------------------------------------------------------------------------------------------------------- devices


def device_of(model: nn.Module) -> torch.device:
    """Where a network computes: at its first weight that is loaded, or where offloaded weights are moved to.

    The CPU for a network without weights.
    """
    devices = [x.device for x in (*model.parameters(), *model.buffers())]
    loaded = next((device for device in devices if device.type != "meta"), None)
    if loaded is not None:
        return loaded
    places = (place for module in model.modules() for place in execution_devices(getattr(module, "_hf_hook", None)))
    return next(places, devices[0] if devices else torch.device("cpu"))


def execution_devices(hook) -> Iterator[torch.device]:
    """The devices to which a hook of accelerate moves weights and inputs; a hook may be a sequence of others."""
    for part in getattr(hook, "hooks", [hook]):
        place = getattr(part, "execution_device", None)
        if place is not None:
            yield torch.device(place)


# ------------------------------------------------------------------------------------------------------ special tokens


def start_token(config) -> int | None:
    """The token that texts begin with: `bos_token_id`, or else the one that a decoder or an encoder starts with.

    The latter are often defaults of a class that nobody set, and count only inside the vocabulary.
    """
    if ids := token_ids(config, "bos_token_id"):
        return ids[0]
    size = vocabulary_size(config)
    others = token_ids(config, "decoder_start_token_id") + token_ids(config, "cls_token_id")
    return next((i for i in others if size is None or i < size), None)


def special_ids(config) -> set[int]:
    """Ids of the start, end and padding tokens that a configuration names."""
    return {i for name in ("bos", "eos", "pad") for i in token_ids(config, f"{name}_token_id")}


def token_ids(config, name: str) -> list[int]:
    """What a configuration says under the name of a special token, one id or several: a list, empty if nothing."""
    for part in parts_of(config):
        value = getattr(part, name, None)
        if value is not None:
            return list(value) if isinstance(value, (list, tuple, set)) else [value]
    return []


# ------------------------------------------------------------------------------------------------------ configurations


def parts_of(config) -> Iterator:
    """A configuration, then those of its text inside it."""
    if config is None:
        return
    yield config
    for name in TEXT_PARTS:
        part = getattr(config, name, None)
        if part is not None and hasattr(part, "__dict__"):
            yield from parts_of(part)


def first_number(config, names: tuple[str, ...]) -> int | None:
    """The first of the names under which a configuration has a positive number (-1 and 0 say nothing)."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, Integral) and not isinstance(value, bool) and value >= 1:
            return int(value)
    return None


__all__ = ["device_of", "longest_text", "num_ids", "special_ids", "start_token", "vocabulary_size"]
