"""The causal language model that judges samples: loading it with its tokenizer, and checks of the texts it is given."""

import math

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edlm_hf.loading import load_causal, load_tokenizer
from edlm_hf.modeling.network_probes import is_causal


def load_judge(
    judge: str | PreTrainedModel,
    tokenizer: str | PreTrainedTokenizerBase | None,
    device: str | torch.device | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Both as objects, the judge on `device` where one is given.

    Raises:
        ValueError: no tokenizer is given, and the judge has no name under which to find it, or the judge is not a
            causal language model.
    """
    name = judge if isinstance(judge, str) else judge.name_or_path
    if tokenizer is None and not name:
        raise ValueError("The judge has no name under which to find its tokenizer: pass it as `tokenizer`.")

    # Objects are taken as they are, names are loaded
    if isinstance(judge, str):
        judge = load_causal(judge)
    if tokenizer is None or isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer or name)
    if device is not None:
        judge = judge.to(device)

    # One that sees later tokens would only have to copy them
    is_composite = getattr(judge.config, "energy_type", None) is not None
    if is_composite or not is_causal(judge):
        raise ValueError(
            f"The judge is a {type(judge).__name__}, which predicts a token from later ones too. Give a causal "
            "language model, such as the `energy_model` of a composite with an autoregressive energy."
        )
    return judge, tokenizer


def context_length(judge: PreTrainedModel, max_length: int | None, stride: int | None) -> int | None:
    """How many tokens the judge may be given at once, None without a limit.

    Raises:
        ValueError: `max_length` or `stride` is out of range.
    """
    # Two tokens at least, one to score and one before it
    longest = getattr(judge.config.get_text_config(), "max_position_embeddings", None)
    if max_length is not None and not 2 <= max_length <= (longest or max_length):
        raise ValueError(f"max_length is {max_length}, but it must be from 2 to the context of the judge, {longest}.")

    # A longer stride would score tokens that the window does not hold
    context = longest if max_length is None else max_length
    if stride is not None and not 1 <= stride < (context or math.inf):
        raise ValueError(
            f"stride is {stride}, but it must be from 1 to {(context or math.inf) - 1}, one less than the context: "
            "a window must know at least one token before those it scores."
        )
    return context


def start_token(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The start token of the judge, as a row of one token."""
    if tokenizer.bos_token_id is None:
        raise ValueError("The tokenizer of the judge has no start token: add_start_token must be False.")
    return [tokenizer.bos_token_id]


def check_rows(
    rows: list[list[int]],
    judge: PreTrainedModel,
    context: int | None,
    stride: int | None,
    add_start_token: bool,
) -> None:
    """Raise ValueError unless the judge can score every row of token ids."""
    # Rows include the start token, and the first token of a row is context only
    vocab_size = judge.config.get_text_config().vocab_size
    for i, row in enumerate(rows):
        if len(row) < 2:
            needed = 2 - add_start_token
            advice = "" if add_start_token else ", or count first tokens too: add_start_token=True"
            raise ValueError(
                f"Text {i} has {len(row) - add_start_token} tokens, but at least {needed} must be there to score one. "
                f"Leave it out{advice}."
            )

        if context is not None and len(row) > context and stride is None:
            raise ValueError(
                f"Text {i} has {len(row)} tokens, but the context of the judge is {context}. Pass stride, for example "
                f"{max(context // 2, 1)}, to score it in overlapping windows."
            )

        # The embedding of the judge would fail without naming the text
        if max(row) >= vocab_size:
            raise ValueError(
                f"Text {i} has token {max(row)}, but the judge knows ids below {vocab_size}: pass the judge's own "
                "tokenizer."
            )
