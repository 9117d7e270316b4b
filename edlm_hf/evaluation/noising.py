"""The random masks that bounds average over: a function of seed, text and sample alone.

Shapes: B rows of a batch, L positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
import torch

from edlm_hf.evaluation.texts import Texts
from edlm_hf.modeling.masked_diffusion import NoiseSchedule
from edlm_hf.modeling.samplers import Jump, Sampler, uniforms_of_row
from edlm_hf.processes import gather_turns, place

GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class RowNoise:
    """Uniforms on [0, 1), float64, of which every row has its own `sources`: the methods of `modeling.noise.Noise`.

    The numbers of a row depend neither on the other rows of its batch nor on padding.
    """

    sources: list[np.random.Generator]

    def per_position(self, rows: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """One uniform for every True position of `where` (R, L) bool: (R, L), 0 elsewhere."""
        flags = where.cpu()
        drawn = torch.zeros(flags.shape, dtype=torch.float64, device="cpu")
        for number, row in enumerate(rows.tolist()):
            drawn[number, flags[number]] = torch.from_numpy(self.sources[row].random(int(flags[number].sum())))
        return on_device(drawn, where.device)

    def per_draw(self, rows: torch.Tensor, where: torch.Tensor, k: int) -> torch.Tensor:
        """k uniforms for each of the N True positions of `where` (R, L) bool: (N, k)."""
        counts = where.sum(-1).tolist()
        parts = [self.sources[row].random((n, k)) for row, n in zip(rows.tolist(), counts, strict=True)]
        return on_device(torch.from_numpy(np.concatenate(parts)), where.device)

    def per_row(self, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
        """One uniform for every row: (R, 1)."""
        drawn = [[self.sources[row].random()] for row in rows.tolist()]
        return on_device(torch.tensor(drawn, dtype=torch.float64, device="cpu"), device)


def on_device(drawn: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Uniforms on a device, but on the CPU for one that has no float64."""
    return drawn if device.type == "mps" else drawn.to(device)


@dataclass(frozen=True)
class Noised:
    """A batch of texts with masks: rows aligned left, on the model's device.

    Args:
        text: (B,) which text each row is.
        clean: (B, L) its tokens. real: (B, L) bool, where it has some. scored: (B, L) bool, those that count.
        masked: (B, L) bool, M(x_t). revealed: (B, L) bool, the reveal set S of the step from t to s.
        chance: (B, L) float64, P(i in S | x_t).
        t: (B,) float64 times. weight: (B,) float64, what the row counts in the bound of its text.
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
        """(B,) the numbers of all rows."""
        return torch.arange(len(self.clean), device=self.clean.device)

    def select(self, rows: torch.Tensor) -> "Noised":
        """The rows chosen by a bool mask (B,)."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "noise"}
        chosen = {name: tensor[rows.to(tensor.device)] for name, tensor in tensors.items()}
        sources = [self.noise.sources[i] for i in rows.nonzero()[:, 0].tolist()]
        return Noised(**chosen, noise=RowNoise(sources))


# (scored (L,), point on [0, 1), noise of the row) -> what is masked and revealed
Draw = Callable[[torch.Tensor, float, RowNoise], Jump]


class Noising:
    """M noise samples per text with low-discrepancy times, in batches; see `points` for their joint distribution.

    Args:
        num_samples: M, even or 1. With M even the samples 2j and 2j + 1 of a text have independent times in stratum j
            of M / 2, so that the Monte-Carlo error of every text can be estimated without bias. With M = 1 the times
            are a lattice over the texts.
        distributed: process r of P makes the batches r, r + P, ... alone.
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
        if num_samples < 1 or (num_samples > 1 and num_samples % 2):
            raise ValueError(f"num_samples is {num_samples}, but it must be 1 or even (samples come in pairs).")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but it must be at least 1.")
        self.texts, self.schedule, self.seed = texts, schedule, seed
        self.num_samples, self.batch_size = num_samples, batch_size
        self.place = place() if distributed else (0, 1)

    def __len__(self) -> int:
        batches = -(-len(self.texts.ids) * self.num_samples // self.batch_size)
        return len(range(self.place[0], batches, self.place[1]))

    def gather(self, of_batches: list) -> list:
        """What the processes made of their batches, one item each, in the order of the batches."""
        return of_batches if self.place[1] == 1 else gather_turns(of_batches)

    def points(self) -> Iterator[tuple[int, float, np.random.Generator]]:
        """(text i, a point of [0, 1) that decides the time, a source of the other noise) for every sample."""
        shift = np.random.default_rng([self.seed]).random()
        for i, number in enumerate(self.texts.numbers):
            for sample in range(self.num_samples):
                source = np.random.default_rng([self.seed, number, sample])
                point = source.random()
                if self.num_samples == 1:
                    yield i, (shift + number * GOLDEN_RATIO) % 1, source
                else:
                    yield i, (sample // 2 + point) / (self.num_samples // 2), source

    def jumps(self, sampler: Sampler, device: torch.device) -> Iterator[Noised]:
        """One step of a random trajectory of a sampler by masks."""

        def draw(scored, point, noise):
            return sampler.jump(scored, point, noise, self.schedule)

        return self.batches(draw, device)

    def at(self, t: float, device: torch.device) -> Iterator[Noised]:
        """Masks of the forward process at time t."""
        share = 1 - float(self.schedule.alpha(torch.tensor(t, dtype=torch.float64, device="cpu")))

        def draw(scored, point, noise):
            masked = scored & (uniforms_of_row(scored, noise) < share)
            return Jump(masked, masked, masked.double(), t, 1.0)

        return self.batches(draw, device)

    def everything(self, device: torch.device) -> Iterator[Noised]:
        """No noise: every token that counts is masked."""
        return self.batches(lambda scored, point, noise: Jump(scored, scored, scored.double(), 1.0, 1.0), device)

    def batches(self, draw: Draw, device: torch.device) -> Iterator[Noised]:
        points, (first, every) = self.points(), self.place
        all_batches = iter(lambda: list(islice(points, self.batch_size)), [])
        for batch in islice(all_batches, first, None, every):
            jumps = [draw(self.texts.scored[i], point, RowNoise([source])) for i, point, source in batch]
            yield self.collate(batch, jumps, device)

    def collate(self, batch: list[tuple], jumps: list[Jump], device: torch.device) -> Noised:
        """The rows of a batch side by side, padded on the right."""
        text, _, sources = zip(*batch, strict=True)
        ids = [self.texts.ids[i] for i in text]

        def padded(tensors) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)

        def numbers(values) -> torch.Tensor:
            return torch.tensor(list(values), dtype=torch.float64, device="cpu")

        return Noised(
            text=torch.tensor(text, device="cpu"),
            clean=padded(ids).to(device),
            real=padded(torch.ones_like(row, dtype=torch.bool) for row in ids).to(device),
            scored=padded(self.texts.scored[i] for i in text).to(device),
            masked=padded(jump.masked for jump in jumps).to(device),
            revealed=padded(jump.revealed for jump in jumps).to(device),
            chance=padded(jump.chance for jump in jumps),
            t=numbers(jump.t for jump in jumps),
            weight=numbers(jump.weight for jump in jumps),
            noise=RowNoise(list(sources)),
        )
