"""Overlapping windows on a document that is longer than the model."""

import torch


def document_windows(ids: torch.Tensor, length: int, stride: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping windows on a document longer than the model, and which tokens to score in each.

    Every token is scored once: in the first window all are, in each later one the tokens that the
    window before it does not reach, so that at least `length - stride` tokens to their left are seen.
    The last window ends with the document.

    >>> windows, scored = document_windows(torch.arange(7), length=4, stride=2)
    >>> windows.tolist()
    [[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]]
    >>> windows[scored].tolist()
    [0, 1, 2, 3, 4, 5, 6]

    Args:
        ids: (n,) tokens of the document.
        length: L, tokens per window. A document with fewer tokens is one window of n.
        stride: from one window to the next, at most L. Windows side by side (L) unless given.

    Returns:
        windows (N, L) as `ids`, and scored (N, L) of bool, True n times in all.

    Raises:
        ValueError: `ids` is not a document of at least one token, or length or stride is not allowed.
    """
    stride = length if stride is None else stride
    if ids.dim() != 1 or len(ids) == 0:
        raise ValueError(f"ids has shape {tuple(ids.shape)}; one document of shape (n,) with n > 0 is needed.")
    if not 1 <= stride <= length:
        raise ValueError(f"stride={stride} with length={length}; 1 <= stride <= length is needed, or tokens are lost.")

    # Where the windows begin, (N,). The last one is moved back to end with the document.
    length = min(length, len(ids))
    last_begin = len(ids) - length
    num_steps = -(-last_begin // stride)  # rounded up
    begins = torch.arange(num_steps + 1, device=ids.device) * stride
    begins = begins.clamp(max=last_begin)

    # Positions in the document, (N, L)
    columns = torch.arange(length, device=ids.device)
    positions = begins[:, None] + columns

    # Each window scores the positions after the end of the window before it, the first one all
    ends_before = begins[:-1] + length
    first_scored = torch.cat([begins[:1], ends_before])
    scored = positions >= first_scored[:, None]
    return ids[positions], scored
