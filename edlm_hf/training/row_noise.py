"""The uniforms by which rows are noised: a function of a key, the row and the position, however rows are batched."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch


def row_uniforms(key: Sequence[int], rows: Sequence[int], *shapes: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """One uniform on [0, 1) common to all rows, then (B, *shape) for every shape, float64.

    The numbers come from a counter-based generator (Philox; Salmon et al., 2011) with the row in its key. They depend
    neither on the other rows of `rows` nor on the first dimension of a shape: a longer row begins with the numbers of
    a shorter one, so padding changes nothing.

    Args:
        key: what else the numbers are a function of, the seed first. rows: B row numbers.
    """
    source = np.random.Philox(np.random.SeedSequence(key[0], spawn_key=tuple(key[1:])))
    generator, state = np.random.Generator(source), source.state
    yield torch.tensor(generator.random(), dtype=torch.float64, device="cpu")

    for number, shape in enumerate(shapes, 1):
        drawn = np.empty((len(rows), *shape))
        state["state"]["counter"][3] = number
        for i, row in enumerate(rows):
            state["state"]["key"][1] = row
            source.state = state  # starts anew: several times faster than a new generator
            drawn[i] = generator.random(shape)
        yield torch.from_numpy(drawn)


__all__ = ["row_uniforms"]
