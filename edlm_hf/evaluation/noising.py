"""Texts to score, and the random masks that bounds average over: a function of seed, text and sample alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
import torch

from edlm_hf.modeling.masked_diffusion import NoiseSchedule, reveal_probability
from edlm_hf.modeling.network_facts import longest_text, special_ids, vocabulary_size
from edlm_hf.processes import gather_turns, place

GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Texts:
    """Token ids of n texts without their padding, and which tokens count; the others stay visible as context.

    Args:
        ids: n tensors (L_i,). scored: n bool tensors (L_i,), each with at least one token.
        numbers: n integers by which the noise of the texts is drawn.
    """

    ids: list[torch.LongTensor]
    scored: list[torch.Tensor]
    numbers: Sequence[int]

    @property
    def counts(self) -> torch.Tensor:
        """Tokens that count, (n,) float64."""
        return torch.tensor([int(scored.sum()) for scored in self.scored], dtype=torch.float64, device="cpu")


def read_texts(
    config,
    input_ids: torch.Tensor | Sequence[Sequence[int]],
    attention_mask: torch.Tensor | None = None,
    scored: torch.Tensor | Sequence[Sequence[bool]] | None = None,
    numbers: Sequence[int] | None = None,
) -> Texts:
    """The texts of a batch (n, L) or of n lists.

    Args:
        config: of the model; its mask token may not occur, its start, end and padding tokens do not count.
        attention_mask: (n, L), 0 at padding on either side. scored: bool, the tokens that count, in place of all that
            are neither padding nor special. numbers: of the texts, 0, 1, ... unless given.

    Raises:
        ValueError: no texts, a text of which no token counts or that is too long, an id outside the vocabulary, the
            mask token in a text, or shapes that do not fit.
    """
    if len(input_ids) == 0:
        raise ValueError("There are no texts: input_ids is empty. Give at least one.")
    numbers = range(len(input_ids)) if numbers is None else numbers
    if len(numbers) != len(input_ids):
        raise ValueError(f"There are {len(numbers)} numbers for {len(input_ids)} texts: give one for every text.")
    masks = {"attention_mask": attention_mask, "scored": scored}
    for name, mask in masks.items():
        if mask is not None and [len(row) for row in mask] != [len(row) for row in input_ids]:
            raise ValueError(f"{name} and input_ids differ in shape: give one entry for every token.")
    mask_token_id = getattr(config, "mask_token_id", None)
    special = torch.tensor(sorted(special_ids(config)), dtype=torch.long, device="cpu")
    ids, counted = [], []
    for i, row in enumerate(input_ids):
        row = torch.as_tensor(row, device="cpu").long()
        if row.dim() != 1:
            raise ValueError(f"input_ids has texts of shape {tuple(row.shape)}: give (n, L), or n lists of ids.")
        real = torch.ones_like(row, dtype=torch.bool)
        if attention_mask is not None:
            real = torch.as_tensor(attention_mask[i], device="cpu").bool()
        row, keep = row[real], ~torch.isin(row[real], special)
        if scored is not None:
            keep = torch.as_tensor(scored[i], device="cpu").bool()[real]
        check_text(i, row, keep, config, mask_token_id)
        ids.append(row)
        counted.append(keep)
    return Texts(ids, counted, numbers)


def check_text(i: int, ids: torch.Tensor, scored: torch.Tensor, config, mask_token_id: int | None) -> None:
    vocab_size, limit = vocabulary_size(config), longest_text(config)
    if not scored.any():
        raise ValueError(
            f"Text {i} has {len(ids)} tokens of which none counts (padding and special tokens never do). Leave it out."
        )
    if mask_token_id is not None and (ids == mask_token_id).any():
        raise ValueError(f"Text {i} holds the mask token ({mask_token_id}); a text to score is complete.")
    if vocab_size is not None and (ids.min() < 0 or ids.max() >= max(vocab_size, (mask_token_id or 0) + 1)):
        raise ValueError(
            f"Text {i} has ids from {ids.min()} to {ids.max()}, but the model knows 0 to {vocab_size - 1}."
        )
    if limit is not None and len(ids) > limit:
        raise ValueError(
            f"Text {i} has {len(ids)} tokens, but the model takes at most {limit}. Cut it with "
            "edlm_hf.data.document_windows, which says for every window which tokens count."
        )


@dataclass(frozen=True)
class Noised:
    """A batch of texts with masks: rows aligned left, on the model's device.

    Args:
        text: which text each row is, (B,). clean: (B, L). real, masked, revealed: (B, L) bool; `revealed` is the
            reveal set S of the step from t to s. t: (B,) float64 times. weight: (B,) float64, what the row counts in
            the bound of its text. uniforms: for each row a source of further noise.
    """

    text: torch.Tensor
    clean: torch.LongTensor
    real: torch.Tensor
    masked: torch.Tensor
    revealed: torch.Tensor
    t: torch.Tensor
    weight: torch.Tensor
    uniforms: list[np.random.Generator]

    def select(self, rows: torch.Tensor) -> "Noised":
        """The rows chosen by a bool mask (B,)."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "uniforms"}
        chosen = {name: tensor[rows.to(tensor.device)] for name, tensor in tensors.items()}
        return Noised(**chosen, uniforms=[self.uniforms[i] for i in rows.nonzero()[:, 0].tolist()])


class Noising:
    """M noise samples per text with low-discrepancy times, in batches; see `points` for their joint law.

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

    def continuous(self, importance: bool, device: torch.device) -> Iterator[Noised]:
        """Noise of the continuous-time bound, which for every schedule is sum_n (1 / n) E[sum_{i in M} -log p_i | n].

        The number n of masks is uniform on 1..L (weight L / n), or has a density proportional to 1 / n (importance
        sampling: weight sum 1 / n). M are the n smallest of L uniforms and the n-th of them is the share of masks at
        time t: then M given t is what the forward process makes of it, and (t, n) have the density
        Beta(t; n, L - n + 1) P(n). Uniform t with the weight 1 / t has the same mean, but an infinite variance.
        """

        def draw(length, point, source):
            weights = 1 / np.arange(1, length + 1) if importance else np.ones(length)
            cdf = np.cumsum(weights)
            n = min(int(np.searchsorted(cdf, point * cdf[-1], side="right")) + 1, length)
            uniforms = source.random(length)
            share = np.sort(uniforms)[n - 1]
            masked = uniforms <= share
            t = float(self.schedule.time(torch.tensor(share, dtype=torch.float64, device="cpu")))
            return masked, masked, t, cdf[-1] / (weights[n - 1] * n)

        return self.batches(draw, device)

    def steps(self, num_steps: int, device: torch.device) -> Iterator[Noised]:
        """Noise of one uniformly drawn step n of T, with the weight T: masks at t_n = n / T, and its reveal set."""

        def draw(length, point, source):
            n = min(int(point * num_steps) + 1, num_steps)
            uniforms = source.random(length)
            masked = uniforms < self.masked_share(n / num_steps)
            still_masked = uniforms < self.masked_share((n - 1) / num_steps)
            return masked, masked & ~still_masked, n / num_steps, num_steps

        return self.batches(draw, device)

    def at(self, t: float, device: torch.device) -> Iterator[Noised]:
        """Masks of the forward process at time t."""
        share = self.masked_share(t)

        def draw(length, point, source):
            masked = source.random(length) < share
            return masked, masked, t, 1.0

        return self.batches(draw, device)

    def masked_share(self, t: float) -> float:
        """1 - alpha_t."""
        return 1 - float(self.schedule.alpha(torch.tensor(t, dtype=torch.float64, device="cpu")))

    def everything(self, device: torch.device) -> Iterator[Noised]:
        """No noise: every token that counts is to be predicted."""
        return self.batches(
            lambda length, point, source: (np.ones(length, bool), np.ones(length, bool), 1.0, 1.0), device
        )

    def batches(self, draw, device: torch.device) -> Iterator[Noised]:
        points, (first, every) = self.points(), self.place
        all_batches = iter(lambda: list(islice(points, self.batch_size)), [])
        for batch in islice(all_batches, first, None, every):
            rows = []
            for i, point, source in batch:
                scored = self.texts.scored[i]
                masked, revealed, t, weight = draw(int(scored.sum()), point, source)
                rows.append((i, self.spread(masked, scored), self.spread(revealed, scored), t, weight, source))
            yield self.collate(rows, device)

    @staticmethod
    def spread(chosen: np.ndarray, scored: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(scored).masked_scatter(scored, torch.from_numpy(chosen))

    def collate(self, rows: list[tuple], device: torch.device) -> Noised:
        text, masked, revealed, t, weight, sources = zip(*rows, strict=True)
        ids = [self.texts.ids[i] for i in text]

        def padded(tensors):
            return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True).to(device)

        return Noised(
            text=torch.tensor(text, device="cpu"),
            clean=padded(ids),
            real=padded([torch.ones_like(row, dtype=torch.bool) for row in ids]),
            masked=padded(masked),
            revealed=padded(revealed),
            t=torch.tensor(t, dtype=torch.float64, device="cpu"),
            weight=torch.tensor(weight, dtype=torch.float64, device="cpu"),
            uniforms=list(sources),
        )


def reveal_chance(schedule: NoiseSchedule, t: torch.Tensor, num_steps: int) -> torch.Tensor:
    """r_n of the step that starts at t = n / T: (B,) -> (B,)."""
    return reveal_probability(schedule.alpha(((t * num_steps).round() - 1) / num_steps), schedule.alpha(t))
