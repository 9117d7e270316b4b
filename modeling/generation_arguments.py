"""Checks of the arguments of `generate()`: a mistake is a ValueError that says what is allowed."""

from collections.abc import Callable

import torch
from transformers import GenerationConfig, LogitsProcessorList

from .vocabulary import suppress_impossible

# Argument -> the types that it may have, and their name in messages
TYPES = {
    "generation_config": (GenerationConfig, "an EDLMGenerationConfig"),
    "attention_mask": (torch.Tensor, "a tensor of the shape of input_ids"),
    "token_type_ids": (torch.Tensor, "a tensor of the shape of input_ids"),
    "logits_processor": ((list, tuple), "a list of processors (LogitsProcessorList)"),
    "generator": (torch.Generator, "a torch.Generator, say torch.Generator().manual_seed(0)"),
}
# Tokens of all rows together that one call may hold, and numbers that it may record.
MOST_TOKENS = 2**26
MOST_RECORDS = 2**28


def check_types(**arguments) -> None:
    """Raise ValueError if an argument of `generate()` is of another type than it must be."""
    for name, value in arguments.items():
        types, allowed = TYPES[name]
        if value is not None and not isinstance(value, types):
            raise ValueError(f"{name} is a {type(value).__name__}, but it must be {allowed}.")
        if torch.is_tensor(value) and value.device.type == "meta":
            raise ValueError(f"{name} is on the device `meta`, where tensors hold no values. Make it elsewhere.")


def check_streamer(streamer) -> None:
    """Raise ValueError unless `streamer` is None or an object with `put` and `end`."""
    if streamer is None:
        return

    is_class = isinstance(streamer, type)
    if is_class or not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        kind = "class" if is_class else type(streamer).__name__
        raise ValueError(f"streamer is a {kind}, but it must be an object with put(tokens) and end().")


def check_callback(callback) -> None:
    """Raise ValueError unless `callback_on_step_end` is None or a function."""
    if callback is not None and (isinstance(callback, type) or not callable(callback)):
        raise ValueError(
            f"callback_on_step_end is {callback!r}, but it must be a function (model, step, t, values), or None."
        )


def check_size(rows: int, length: int) -> None:
    """Raise ValueError if no machine has the memory for so many rows of a length."""
    if rows * max(length, 1) > MOST_TOKENS:
        raise ValueError(
            f"{rows} rows of {length} tokens were asked for (candidates count as rows), but one "
            f"call takes at most {MOST_TOKENS} tokens. Ask for fewer rows or candidates, or a "
            "smaller max_new_tokens or max_length."
        )


def check_records(steps: int, per_step: int) -> None:
    """Raise ValueError if a record of every step would not fit into memory."""
    if steps * per_step > MOST_RECORDS:
        raise ValueError(
            f"A record of {steps} steps with {per_step} numbers each was asked for, which does not "
            "fit. Leave return_dict_in_generate and output_history out, lower max_denoising_steps, "
            "or use sampler='first_hitting', the limit of many steps."
        )


def checked_token_types(
    token_types: torch.Tensor | None,
    input_ids: torch.Tensor,
    takes_types: bool,
    num_types: int | None,
) -> torch.LongTensor | None:
    """The given token types (B, P) for the denoiser.

    None where there are none, and where they are all 0 and the denoiser does not take them.

    Args:
        token_types: of the user.
        input_ids: (B, P).
        takes_types: whether the denoiser takes token types.
        num_types: how many there are, None where that is not known.

    Raises:
        ValueError: they have another shape than input_ids, are not types, or would be lost.
    """
    if token_types is None:
        return None
    if token_types.shape != input_ids.shape:
        raise ValueError(
            f"token_type_ids has shape {tuple(token_types.shape)}, but input_ids {tuple(input_ids.shape)}."
        )
    if token_types.is_floating_point() or token_types.is_complex():
        raise ValueError(f"token_type_ids is of type {token_types.dtype}, but token types are integers.")

    # Types that are all 0 mean the same as none
    types = token_types.to(input_ids.device).long()
    if not takes_types:
        if types.any():
            raise ValueError("token_type_ids are not all 0, but the denoiser takes no token types. Leave them out.")
        return None

    if types.numel():
        lowest = int(types.min())
        highest = int(types.max())
        if lowest < 0 or highest >= (num_types or 2**31):
            raise ValueError(
                f"token_type_ids holds types from {lowest} to {highest}, but the denoiser knows "
                f"{num_types or 'those from 0 on'}."
            )
    return types


class CheckedProcessor:
    """A logits processor of the user whose result is checked."""

    def __init__(self, processor: Callable):
        if isinstance(processor, type) or not callable(processor):
            raise ValueError(
                f"logits_processor holds {processor!r}, but a processor is called as processor(input_ids, scores)."
            )
        self.processor = LogitsProcessorList([processor])

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (N, V) of the same shape, type and device.

        Raises:
            ValueError: the processor returned anything else than scores.
        """
        processed = self.processor(input_ids, scores)

        is_tensor = torch.is_tensor(processed)
        if not is_tensor or not processed.is_floating_point() or processed.shape != scores.shape:
            given = type(processed).__name__
            if is_tensor:
                given = f"{processed.dtype} of shape {tuple(processed.shape)}"
            raise ValueError(
                f"The logits processor {self.processor[0]!r} returned {given}, but scores of shape "
                f"{tuple(scores.shape)} like those it was given are needed."
            )
        return processed.to(scores.device, scores.dtype)


class ImpossibleTokens:
    """A logits processor that makes the mask token and ids without a token impossible again."""

    def __init__(self, config):
        self.config = config

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        # A copy: the processor before may keep its scores
        return suppress_impossible(scores.clone(), self.config)
