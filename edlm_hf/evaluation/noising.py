"""The random masks that bounds average over: a function of seed, text and sample alone.

Shapes: B rows of a batch, L positions, R rows that act.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from edlm_hf.evaluation.texts import Texts
from edlm_hf.modeling.devices import has_float64
from edlm_hf.modeling.generation_config_edlm import given_whole_number, whole_number
from edlm_hf.modeling.masked_diffusion import NoiseSchedule
from edlm_hf.modeling.positions import Positions
from edlm_hf.modeling.samplers import Jump, Sampler, reveal_times
from edlm_hf.processes import gather_turns, rank_and_world_size

# n times the golden ratio modulo 1: a sequence that covers [0, 1) evenly at every length
GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class RowNoise:
    """Uniforms on [0, 1), float64, with a source for every row; has the methods of `modeling.noise.Noise`.

    The numbers of a row depend neither on the other rows of its batch nor on padding.
    """

    sources: list[np.random.Generator]

    def per_position(self, rows: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """One uniform for every True position of `where` (R, L) bool: (R, L), 0 elsewhere."""
        flags = where.cpu()
        uniforms = torch.zeros(flags.shape, dtype=torch.float64, device="cpu")

        # Only as many numbers as a row has positions, so that padding takes none
        for i, row in enumerate(rows.tolist()):
            count = int(flags[i].sum())
            drawn = self.sources[row].random(count)
            uniforms[i, flags[i]] = torch.from_numpy(drawn)
        return on_device(uniforms, where.device)

    def per_draw(self, rows: torch.Tensor, where: Positions, k: int) -> torch.Tensor:
        """k uniforms for each of the N positions `where`: (N, k)."""
        # Row by row, each from its own source: (count, k) of them
        parts = []
        for row, count in zip(rows.tolist(), where.counts.tolist(), strict=True):
            parts.append(self.sources[row].random((count, k)))

        uniforms = torch.from_numpy(np.concatenate(parts))
        return on_device(uniforms, where.flags.device)

    def per_row(self, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
        """One uniform for every row: (R, 1)."""
        values = [[self.sources[row].random()] for row in rows.tolist()]
        uniforms = torch.tensor(values, dtype=torch.float64, device="cpu")
        return on_device(uniforms, device)


def on_device(uniforms: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Uniforms on a device. They stay on the CPU for a device without float64."""
    return uniforms.to(device) if has_float64(device) else uniforms


@dataclass(frozen=True)
class Noised:
    """A batch of texts with masks: rows aligned left, on the model's device.

    Args:
        text: (B,) the index of the text of each row.
        clean: (B, L) its tokens x_0.
        real: (B, L) bool, True where the row has a token, False at padding.
        scored: (B, L) bool, the tokens that count.
        masked: (B, L) bool, M(x_t).
        revealed: (B, L) bool, the reveal set S of the step from t to s.
        chance: (B, L) float64, P(i in S | x_t).
        t: (B,) float64 times.
        weight: (B,) float64, the factor of the row in the bound of its text.
        noise: the source of all further random numbers.
    """

    text: torch.Tensor
    clean: torch.LongTensor
    real: torch.Tensor
    scored: torch.Tensor
    masked: torch.Tensor
    revealed: torch.Tensor
    chance: torch.Tensor
    t: torch.Tensor
    weight: torch.Tensor
    noise: RowNoise

    @property
    def rows(self) -> torch.LongTensor:
        """The indices of all rows, (B,), on the CPU."""
        return torch.arange(len(self.clean), device="cpu")

    def select(self, chosen: torch.Tensor) -> "Noised":
        """The rows chosen by a bool mask (B,)."""
        tensors = {}
        for field in fields(self):
            if field.name != "noise":
                tensor = getattr(self, field.name)
                tensors[field.name] = tensor[chosen.to(tensor.device)]

        # Each row keeps its source, and goes on where it was
        kept = chosen.nonzero()[:, 0].tolist()
        sources = [self.noise.sources[i] for i in kept]
        return Noised(**tensors, noise=RowNoise(sources))


class NoiseSample(NamedTuple):
    """Random numbers for one text: a uniform on [0, 1) that decides the time, and a source of the other noise."""

    text: int
    uniform: float
    source: np.random.Generator


# (scored (B, L), B uniforms for the times, noise of the rows) -> the masks M and reveal sets S
Masking = Callable[[torch.Tensor, list[float], RowNoise], list[Jump]]


class Noising:
    """M noise samples for each of n texts, in batches.

    The times are spread evenly, which lowers the error. With M even, the samples 2j and 2j + 1 of
    a text have independent times in stratum j of M / 2, so that the Monte-Carlo error of every text
    can be estimated without bias. With M = 1 the times are a lattice over the texts.

    Args:
        num_samples: M, even or 1.
        distributed: share the batches: process r of P makes the batches r, r + P, ...

    Raises:
        ValueError: num_samples or batch_size is not allowed.
    """

    def __init__(
        self,
        texts: Texts,
        schedule: NoiseSchedule,
        num_samples: int,
        batch_size: int,
        seed: int,
        distributed: bool = False,
    ):
        samples = whole_number(num_samples)
        if samples is None or samples < 1 or (samples > 1 and samples % 2):
            raise ValueError(f"num_samples is {num_samples!r}, but it must be 1 or even (samples come in pairs).")
        number = whole_number(seed)
        if number is None or number < 0:
            raise ValueError(f"seed is {seed!r}, but it must be a whole number of at least 0.")

        self.texts = texts
        self.schedule = schedule
        self.num_samples = samples
        self.batch_size = given_whole_number("batch_size", batch_size, 1)
        self.seed = number
        self.rank, self.world_size = rank_and_world_size() if distributed else (0, 1)

    def __len__(self) -> int:
        """The number of batches of this process."""
        num_rows = len(self.texts.ids) * self.num_samples
        num_batches = -(-num_rows // self.batch_size)  # rounded up

        # The batches r, r + P, ...
        own_batches = range(self.rank, num_batches, self.world_size)
        return len(own_batches)

    def gather(self, of_batches: list) -> list:
        """Collect one item per batch from all processes, in the order of the batches."""
        return of_batches if self.world_size == 1 else gather_turns(of_batches)

    def random_steps(self, sampler: Sampler, device: torch.device) -> Iterator[Noised]:
        """One random step of a trajectory, for a sampler that sees masks alone."""

        def masking(scored, uniforms, noise):
            return sampler.jumps(scored, uniforms, noise, self.schedule)

        return self.batches(masking, device)

    def masked_at(self, t: float, device: torch.device) -> Iterator[Noised]:
        """Masks of the forward process at time t."""
        # 1 - alpha_t, for every position by itself
        time = torch.tensor(t, dtype=torch.float64, device="cpu")
        mask_rate = 1 - float(self.schedule.alpha(time))

        # S is all of M, so that P(i in S | x_t) is 1 on M
        def masking(scored, uniforms, noise):
            masked = scored & (reveal_times(scored, noise) < mask_rate)
            return [Jump(row, row, row.double(), t, 1.0) for row in masked]

        return self.batches(masking, device)

    def all_masked(self, device: torch.device) -> Iterator[Noised]:
        """A mask on every token that counts, as at t = 1."""

        def masking(scored, uniforms, noise):
            return [Jump(row, row, row.double(), 1.0, 1.0) for row in scored]

        return self.batches(masking, device)

    def batches(self, masking: Masking, device: torch.device) -> Iterator[Noised]:
        """The batches of this process."""
        # Lists of batch_size samples, until one is empty
        samples = self.samples()
        all_batches = iter(lambda: list(islice(samples, self.batch_size)), [])

        for batch in islice(all_batches, self.rank, None, self.world_size):
            # (B, L), on the CPU: the masks of a text do not depend on the device
            scored = padded(self.texts.scored[sample.text] for sample in batch)
            uniforms = [sample.uniform for sample in batch]
            noise = RowNoise([sample.source for sample in batch])

            # M and S of every row, with its time and weight
            jumps = masking(scored, uniforms, noise)
            yield self.collate(batch, scored, jumps, noise, device)

    def samples(self) -> Iterator[NoiseSample]:
        """The M samples of every text, text by text."""
        shift = np.random.default_rng([self.seed]).random()
        strata = self.num_samples // 2
        for text, number in enumerate(self.texts.numbers):
            for i in range(self.num_samples):
                # The same numbers whatever the batches and the number of processes
                source = np.random.default_rng([self.seed, number, i])
                uniform = source.random()

                if self.num_samples == 1:
                    # A point of the lattice over all texts
                    uniform = (shift + number * GOLDEN_RATIO) % 1
                else:
                    # In stratum i // 2 of [0, 1)
                    uniform = (i // 2 + uniform) / strata
                yield NoiseSample(text, uniform, source)

    def collate(
        self,
        batch: list[NoiseSample],
        scored: torch.Tensor,
        jumps: list[Jump],
        noise: RowNoise,
        device: torch.device,
    ) -> Noised:
        """Stack the rows of a batch, padded on the right."""
        ids = [self.texts.ids[sample.text] for sample in batch]
        real = [torch.ones_like(row, dtype=torch.bool) for row in ids]

        # (B, L) each
        masked = torch.stack([jump.masked for jump in jumps])
        revealed = torch.stack([jump.revealed for jump in jumps])
        chance = torch.stack([jump.chance for jump in jumps])

        # Sums are taken in float64 on the CPU: what only they need stays there
        return Noised(
            text=torch.tensor([sample.text for sample in batch], device="cpu"),
            clean=padded(ids).to(device),
            real=padded(real).to(device),
            scored=scored.to(device),
            masked=masked.to(device),
            revealed=revealed.to(device),
            chance=chance,
            t=doubles(jump.t for jump in jumps),
            weight=doubles(jump.weight for jump in jumps),
            noise=noise,
        )


def padded(rows: Iterable[torch.Tensor]) -> torch.Tensor:
    """Rows (L_i,) with zeros on the right: (B, L)."""
    return pad_sequence(list(rows), batch_first=True)


def doubles(values: Iterable[float]) -> torch.Tensor:
    """Numbers as a tensor (B,) of float64 on the CPU."""
    return torch.tensor(list(values), dtype=torch.float64, device="cpu")
