"""The uniforms that noise rows: a function of a key, the row and the position, in any batch."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

Shape = tuple[int, ...]


def row_uniforms(key: Sequence[int], rows: Sequence[int], *shapes: Shape) -> Iterator[torch.Tensor]:
    """Yield one uniform on [0, 1) common to all rows, then (B, *shape) for every shape, float64.

    The numbers come from a counter-based generator (Philox, Salmon et al., 2011) with the row in
    its key. They do not depend on the other rows of `rows`. Nor do they depend on the first
    dimension of a shape: a longer row begins with the numbers of a shorter one, so padding changes
    nothing.

    Args:
        key: the seed, and all else that the numbers are a function of.
        rows: B row numbers.
        shapes: of the numbers of one row.
    """
    # 1. The seed and the rest of the key, and the number for all rows
    seed, *rest = key
    philox = np.random.Philox(np.random.SeedSequence(seed, spawn_key=tuple(rest)))
    generator = np.random.Generator(philox)
    state = philox.state  # the start, before any number
    yield torch.tensor(generator.random(), dtype=torch.float64, device="cpu")

    # 2. Every row and shape: the same start with the row in the key, the shape in the counter.
    # A new state is several times faster than a new generator.
    start = state["state"]
    for number, shape in enumerate(shapes, 1):
        uniforms = np.empty((len(rows), *shape))  # float64

        # The highest of the four words of the counter, which the numbers of a row never reach
        start["counter"][3] = number
        for i, row in enumerate(rows):
            start["key"][1] = row
            philox.state = state
            uniforms[i] = generator.random(shape)
        yield torch.from_numpy(uniforms)


__all__ = ["Shape", "row_uniforms"]
