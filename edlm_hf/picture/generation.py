"""A picture of a generation that is at hand, or of one by a model with a name."""

import torch
from transformers import PreTrainedTokenizerBase

from edlm_hf.defaults import COLUMNS, MOST_ANIMATED_STATES, MOST_STATES
from edlm_hf.loading import load_with_tokenizer
from edlm_hf.modeling.generation_config_edlm import EDLMGenerationOutput
from edlm_hf.picture.animation import animate as animated
from edlm_hf.picture.drawing import draw
from edlm_hf.picture.states import states_of
from edlm_hf.tokenization import num_end_tokens

# New tokens, where the model has room for them
LENGTH = 112


def generation_picture(
    output: EDLMGenerationOutput,
    tokenizer: PreTrainedTokenizerBase,
    *,
    mask_token_id: int | None = None,
    columns: int = COLUMNS,
    most_states: int | None = None,
    animate: bool = False,
) -> str:
    """Draw the first row of `output` as SVG.

    Args:
        output: of `generate(..., return_dict_in_generate=True, output_history=True)`.
        mask_token_id: the mask token, for tokenizers that have none.
        columns: letters of a line.
        most_states: of more states than this, so many at even distances. Unless given 9, or 33 if they move.
        animate: show the states one after the other in one place.

    Raises:
        ValueError: the output has no history, no mask token is known, a number is too small, or
            there is no text to draw.
    """
    # States that move take no room, so that more of them can be shown
    if most_states is None:
        most_states = MOST_ANIMATED_STATES if animate else MOST_STATES
    check_sizes(columns, most_states)

    states = states_of(output, tokenizer, mask_token_id, most_states)
    return animated(states, columns) if animate else draw(states, columns)


def make_picture(
    model: str,
    *,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    columns: int = COLUMNS,
    most_states: int | None = None,
    animate: bool = False,
    **options,
) -> str:
    """Generate one text and draw it as SVG. The same arguments give the same picture.

    Args:
        model: folder, repository of the Hub, or a checkpoint that ships.
        prompt: text to continue. Its mask tokens are filled.
        max_new_tokens: length of the continuation. Unless given 112, or as many as fit.
        options: of `generate()`, such as `max_denoising_steps` and `num_candidates`.
        columns, most_states, animate: as in `generation_picture`.

    Raises:
        ValueError: a number is too small, or as loading and `generate()`.
    """
    # Checked before a model is loaded
    check_sizes(columns, MOST_STATES if most_states is None else most_states)
    network, tokenizer = load_with_tokenizer(model)
    network = network.to(device)

    # A start token is the context of every text that the model has seen: (1, L)
    start = [] if network.config.bos_token_id is None else [network.config.bos_token_id]
    ids = start
    if prompt is not None:
        # New tokens follow the text, not an end token that the tokenizer puts behind it
        ids = tokenizer(prompt).input_ids
        if max_new_tokens != 0:
            ids = ids[: len(ids) - num_end_tokens(tokenizer)]
    if max_new_tokens is None:
        max_new_tokens = room_for(network.config.max_position_embeddings, len(ids))

    # With the states (T + 1, 1, L) and the energies of all candidates
    output = network.generate(
        torch.tensor([ids], dtype=torch.long, device=device),
        max_new_tokens=max_new_tokens,
        generator=torch.Generator(device).manual_seed(seed),
        return_dict_in_generate=True,
        output_history=True,
        **options,
    )
    return generation_picture(
        output,
        tokenizer,
        mask_token_id=network.config.mask_token_id,
        columns=columns,
        most_states=most_states,
        animate=animate,
    )


def room_for(longest: int | None, num_given: int) -> int:
    """How many of `LENGTH` new tokens fit after so many given ones. `longest` None is no limit."""
    if longest is None:
        return LENGTH
    return max(min(LENGTH, longest - num_given), 0)


def check_sizes(columns: int, most_states: int) -> None:
    """Raise ValueError for lines that are too short, or for fewer states than a first and a last one."""
    if columns < 16:
        raise ValueError(f"columns is {columns}, but a line needs at least 16.")
    if most_states < 2:
        raise ValueError(f"most_states is {most_states}, but a picture needs 2 or more: the first and the last.")


__all__ = ["generation_picture", "make_picture"]
