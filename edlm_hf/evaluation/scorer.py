"""Likelihoods and continuations for evaluation harnesses, from a masked diffusion model: likelihoods are bounds.

This file knows no harness: `edlm_hf.lm_eval` is the bridge to one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from edlm_hf.data import document_windows
from edlm_hf.evaluation.likelihood import discrete_nelbo, nelbo, sampler_bound
from edlm_hf.evaluation.scoring import LikelihoodEstimate
from edlm_hf.modeling.generation_edlm import MaskedDiffusionGenerationMixin
from edlm_hf.modeling.importance_sampling import Likeliest
from edlm_hf.modeling.network_facts import device_of
from edlm_hf.modeling.noise import Noise
from edlm_hf.modeling.reverse_chain import chain
from edlm_hf.tokenization import check_mask_token

logger = logging.get_logger(__name__)

BOUNDS = ("nelbo", "discrete", "sampler")


class Window(NamedTuple):
    """Tokens that the model sees at once. Those from `first` on count, the others stay visible."""

    ids: tuple[int, ...]
    first: int


class Job(NamedTuple):
    """A text to generate: jobs of equal options share a call of `generate()`.

    Args:
        prompt: token ids, the start token among them.
        until: strings that end the continuation.
        options: arguments of `generate()` by name.
    """

    prompt: tuple[int, ...]
    until: tuple[str, ...]
    options: tuple[tuple[str, object], ...]


class EDLMScorer:
    """Log-likelihoods and continuations of texts.

    A log-likelihood is minus an upper bound of -log p in nats, a Monte-Carlo estimate: `estimates` has
    the last result of every kind of request with its standard error. It depends on the seed and on the
    set of requests, not on their order, and not on the batch size beyond 1e-5. Every text begins with
    the start token of the model's configuration (or else of the tokenizer), which stays visible and
    does not count.

    Args:
        model: one of ours, or any masked language model in `EDLMForMaskedDiffusion.from_components`.
        bound: `nelbo` (revealing one token at a time without energy), `discrete` (`num_steps` steps
            without energy) or `sampler` (`num_steps` steps of the sampler with the energy), see
            `edlm_hf.evaluation`.
        num_samples: noise samples per text, even or 1.
        num_steps: T of the bound, and of generated text (per block).
        inner_copies: m of the bound `sampler`.
        batch_size: rows per call of the networks.
        max_length: tokens of a window to score, the model's unless given.
        block_length: generate in blocks of this many tokens. Unless given, all tokens are generated
            at once, and a text longer than the model in blocks of at most half its length.
        max_gen_toks: new tokens where a request does not say.
        generation_options: further arguments of the bound `sampler` and of `generate()`:
            num_candidates, energy_window, ...

    Raises:
        ValueError: an unknown bound or option, a batch size or length that is not allowed, or a
            tokenizer whose mask token is not the mask token of the model.
    """

    def __init__(
        self,
        model: MaskedDiffusionGenerationMixin,
        tokenizer: PreTrainedTokenizerBase,
        *,
        bound: str = "nelbo",
        num_samples: int = 32,
        num_steps: int = 128,
        inner_copies: int = 1,
        batch_size: int = 16,
        max_length: int | None = None,
        block_length: int | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        progress_bar: bool = False,
        **generation_options,
    ):
        if bound not in BOUNDS:
            raise ValueError(f"bound is {bound!r}, but it must be one of {', '.join(BOUNDS)}.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}, but it must be a positive integer; nothing is detected.")
        # Raises ValueError for options that are unknown or not allowed
        model.reverse_process(max_denoising_steps=num_steps, **generation_options)
        if tokenizer.mask_token_id is not None:
            check_mask_token(tokenizer, model.config)

        # In front of every text
        start = getattr(model.config, "bos_token_id", None)
        if start is None:
            start = tokenizer.bos_token_id
        self.start = () if start is None else (start,)

        # The length of a window: at least one token besides the start token
        self.model_length = getattr(model.config, "max_position_embeddings", None)
        self.max_length = self.model_length if max_length is None else max_length
        shortest = len(self.start) + 1
        longest = self.model_length or self.max_length
        if self.max_length is not None and not shortest <= self.max_length <= longest:
            raise ValueError(f"max_length is {max_length}, but it must be from {shortest} to {longest}.")

        # The bounds other than `sampler` are of the denoiser, also for a model with an energy
        self.has_energy = getattr(model.config, "energy_type", "none") != "none"
        if self.has_energy and bound != "sampler":
            logger.warning(f"bound={bound} is that of the denoiser alone; with bound=sampler the energy takes part.")

        # (model, texts, scored) -> LikelihoodEstimate
        noise = {
            "num_samples": num_samples,
            "batch_size": batch_size,
            "seed": seed,
            "progress_bar": progress_bar,
        }
        if bound == "nelbo":
            self.bound = partial(nelbo, **noise)
        elif bound == "discrete":
            self.bound = partial(discrete_nelbo, num_steps=num_steps, **noise)
        else:
            steps = {"num_steps": num_steps, "inner_copies": inner_copies}
            self.bound = partial(sampler_bound, **steps, **noise, **generation_options)

        self.model = model.eval()
        self.tokenizer = tokenizer
        self.generation_options = {"max_denoising_steps": num_steps} | generation_options
        self.batch_size = batch_size
        self.block_length = block_length
        self.max_gen_toks = max_gen_toks
        self.seed = seed
        self.progress_bar = progress_bar
        self.estimates: dict[str, LikelihoodEstimate] = {}

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For (context, continuation): minus the bound of the continuation in nats, and whether it is greedy.

        The context stays visible. It is cut on the left to fit. A continuation longer than a window is
        scored as by `rolling`.

        Greedy means that `generate(do_sample=False, sampler="first_hitting")`, which fills in the
        likeliest token of the most confident position one at a time, gives the continuation in place
        of as many masks. It costs one call of the denoiser for every token up to the first wrong one.

        Raises:
            ValueError: a text holds the mask token or unknown ids, or has probability zero.
        """
        windows_of_pairs = []
        for context, continuation in pairs:
            ids = self.encode_pair(context, continuation)
            windows_of_pairs.append(self.windows(*ids))

        # Window -> nats, and whether greedy generation gives it back. Equal windows cost one call.
        nats = self.nats("loglikelihood", windows_of_pairs)
        greedy = self.reproduced(windows_of_pairs)

        # A long continuation has several windows, each with tokens of its own
        answers = []
        for windows in windows_of_pairs:
            log_likelihood = -sum(nats[window] for window in windows)
            is_greedy = all(greedy[window] for window in windows)
            answers.append((log_likelihood, is_greedy))
        return answers

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Minus the bound of complete texts in nats.

        A text longer than a window is scored in windows that overlap by one token, so that every later
        one sees at least the token before it. The last one ends with the text. Every token counts once.

        Raises:
            ValueError: as `loglikelihood`.
        """
        windows_of_texts = [self.windows([], self.encode(text)) for text in texts]
        nats = self.nats("loglikelihood_rolling", windows_of_texts)
        return [-sum(nats[window] for window in windows) for windows in windows_of_texts]

    def generate_until(self, requests: Sequence[tuple[str, Mapping]]) -> list[str]:
        """Continuations of contexts by `generate()`, each up to the first of its strings `until` or an end of text.

        A request is a context with options: `until` (a string or several), `max_gen_toks`, and any
        argument of `generate()`. It is greedy unless its options have do_sample=True or a temperature
        above 0. Greedy generation weighs no candidates, so that an energy takes no part in it. The
        context is cut on the left to fit. Samples depend on the seed, the batch size and the set of
        requests; equal requests get samples of their own.

        Raises:
            ValueError: an argument that `generate()` refuses.
        """
        jobs = [self.job(*request) for request in requests]

        # Batches of equal options, in an order that does not depend on the order of the requests
        groups = defaultdict(list)
        for i, job in enumerate(jobs):
            groups[repr(job.options)].append(i)
        batches = []
        for _, members in sorted(groups.items()):
            # The longest prompts first, so that a batch has little padding
            members.sort(key=lambda i: (-len(jobs[i].prompt), jobs[i].prompt, jobs[i].until))
            batches += batches_of(members, self.batch_size)

        # Index of the request -> continuation, in the order of the batches
        answers = {}
        generator = torch.Generator().manual_seed(self.seed)
        console = Console(stderr=True)
        for batch in track(batches, "generating", console=console, disable=not self.progress_bar):
            texts = self.complete([jobs[i] for i in batch], generator)
            answers.update(zip(batch, texts, strict=True))
        return [answers[i] for i in range(len(jobs))]

    def nats(self, kind: str, windows_of_texts: Sequence[Sequence[Window]]) -> dict[Window, float]:
        """The bound of every window. `estimates` keeps the result under the `kind` of request."""
        windows = distinct(windows_of_texts)
        if not windows:
            return {}

        # The tokens that count begin at `first`: n lists (L_i,)
        ids = [window.ids for window in windows]
        scored = []
        for window in windows:
            scored.append([i >= window.first for i in range(len(window.ids))])

        estimate = self.bound(self.model, ids, scored=scored)
        self.estimates[kind] = estimate
        return dict(zip(windows, estimate.sequence_nats, strict=True))

    @torch.no_grad()
    def reproduced(self, windows_of_texts: Sequence[Sequence[Window]]) -> dict[Window, bool]:
        """Whether greedy generation in place of the tokens that count gives them back."""
        process = self.model.reverse_process(do_sample=False, sampler="first_hitting")
        mask_token_id = self.model.config.mask_token_id
        windows = distinct(windows_of_texts)

        answers = {}
        for batch in batches_of(windows, self.batch_size):
            # Masks from `first` on, (B, L)
            clean, real = self.padded([window.ids for window in batch])
            device = clean.device
            first = torch.tensor([window.first for window in batch], device=device)
            columns = torch.arange(clean.shape[1], device=device).expand(clean.shape)
            free = real & (columns >= first.unsqueeze(1))

            # The chain begins with the context alone
            noisy = clean.masked_fill(free, mask_token_id)
            state = process.state(noisy, free, real)

            # One position after the other. A row with a wrong token is filled no more.
            correct = torch.ones(len(batch), dtype=torch.bool, device=device)
            for _ in chain(process, state, Likeliest(), Noise()):
                # (B, L), True at masks that are still to fill
                agrees = (state.ids == clean) | (state.ids == mask_token_id)
                correct = correct & agrees.all(-1)
                state.free = state.free & correct.unsqueeze(1)

            answers.update(zip(batch, correct.tolist(), strict=True))
        return answers

    def job(self, context: str, options: Mapping) -> Job:
        """The prompt of a request, and the arguments of `generate()` for it."""
        options = self.generation_options | dict(options)
        until = options.pop("until", ()) or ()
        new_tokens = int(options.pop("max_gen_toks", self.max_gen_toks))

        # Greedy unless a temperature or do_sample=True asks for samples
        options.setdefault("do_sample", bool(options.get("temperature")))
        if not options["do_sample"]:
            options.pop("temperature", None)
            if self.has_energy:
                logger.warning_once(
                    "Greedy generation weighs no candidates: the energy takes no part. Ask for do_sample=True."
                )

        # A text longer than the model is made in blocks, with as much context as fits before a block
        ids = self.encode(context)
        block_length = self.block_length
        longest = self.model_length
        length = len(self.start) + len(ids) + new_tokens
        if longest is not None and length > longest:
            half = max(longest // 2, 1)
            block_length = block_length or min(new_tokens, half)
            ids = last(ids, longest - block_length - len(self.start))

        options["max_new_tokens"] = new_tokens
        options["block_length"] = block_length

        # Tuples, since jobs are grouped and sorted by them
        prompt = self.start + tuple(ids)
        until = (until,) if isinstance(until, str) else tuple(until)
        return Job(prompt, until, options=tuple(sorted(options.items())))

    def complete(self, jobs: Sequence[Job], generator: torch.Generator) -> list[str]:
        """Continuations of jobs of equal options."""
        # Prompts, aligned left: (B, P). They differ in length, so that a row begins its text at its own column.
        ids, real = self.padded([job.prompt for job in jobs])
        end = self.tokenizer.eos_token_id

        def finished(rows: torch.LongTensor, _) -> list[bool]:
            """Whether the continuation in the first tokens (B, n) of every row is complete."""
            flags = []
            for row, job in zip(rows, jobs, strict=True):
                continuation = row[len(job.prompt) :]
                flags.append(self.text(continuation, job.until)[1])
            return flags

        output = self.model.generate(
            ids,
            real.long(),
            stopping_criteria=finished,
            generator=generator,
            eos_token_id=end,
            pad_token_id=self.filler if end is None else end,
            **dict(jobs[0].options),
        )
        continuations = output[:, ids.shape[1] :]
        texts = []
        for row, job in zip(continuations, jobs, strict=True):
            text, _ = self.text(row, job.until)
            texts.append(text)
        return texts

    def text(self, ids: torch.LongTensor, until: Sequence[str]) -> tuple[str, bool]:
        """The text (L,) up to its end, the first mask or the first of `until`; and whether it is complete."""
        ids = ids.tolist()
        end = self.tokenizer.eos_token_id

        # A mask is text that is not there yet: tokens to its right do not count
        ends = (end, self.model.config.mask_token_id)
        stops = [ids.index(token) for token in ends if token in ids]
        stop = min(stops, default=len(ids))
        text = self.tokenizer.decode(ids[:stop], skip_special_tokens=True)

        # The place of the first string of `until`, in characters
        cuts = [text.find(string) for string in until if string and string in text]
        cut = min(cuts, default=len(text))

        # A text that stops at a mask is not complete
        ended = ids[stop : stop + 1] == [end]
        complete = cut < len(text) or ended
        return text[:cut], complete

    def encode(self, text: str) -> list[int]:
        """Ids without the start token."""
        ids = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)

        # A text may spell the start token, which is in front of every window already
        begins_with_start = tuple(ids[:1]) == self.start
        return ids[1:] if begins_with_start else ids

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both, tokenized as one text; spaces that end the context go to the continuation, as in the harness."""
        ids = self.encode(context.rstrip())
        ids_of_both = self.encode(context + continuation)
        return ids, ids_of_both[len(ids) :]

    def windows(self, context: list[int], continuation: list[int]) -> list[Window]:
        """Windows of at most `max_length` tokens in which every token of the continuation counts once."""
        if not continuation:
            return []

        # Text tokens of a window; the context gives way, down to one token
        room = len(context + continuation)
        if self.max_length is not None:
            room = self.max_length - len(self.start)
        context = last(context, max(room - len(continuation), 1))

        # Windows that overlap by one token, and the tokens that each of them scores: (N, room) both
        ids = torch.tensor(context + continuation, device="cpu")
        stride = max(room - 1, 1)
        rows, scored = document_windows(ids, room, stride)
        scored[0, : len(context)] = False

        # The start token in front, and the first True of `scored` moved by it
        windows = []
        for row, counts in zip(rows, scored, strict=True):
            if counts.any():
                first = len(self.start) + int(counts.long().argmax())
                ids_of_window = self.start + tuple(row.tolist())
                windows.append(Window(ids_of_window, first))
        return windows

    @property
    def filler(self) -> int:
        """An id for padding, which is not the mask."""
        return 0 if self.model.config.mask_token_id else 1

    def padded(self, rows: Sequence[tuple[int, ...]]) -> tuple[torch.LongTensor, torch.Tensor]:
        """Rows aligned left, (B, L), and where they are text, (B, L) bool; on the device of the model."""
        device = device_of(self.model)
        ids = [torch.tensor(row, dtype=torch.long, device=device) for row in rows]
        real = [torch.ones_like(row, dtype=torch.bool) for row in ids]

        padded_ids = pad_sequence(ids, batch_first=True, padding_value=self.filler)
        padded_real = pad_sequence(real, batch_first=True)
        return padded_ids, padded_real


def distinct(windows_of_texts: Sequence[Sequence[Window]]) -> list[Window]:
    """Every window once, the longest first, in an order that does not depend on the order of the texts."""
    windows = {window for windows in windows_of_texts for window in windows}
    return sorted(windows, key=lambda window: (-len(window.ids), window))


def batches_of(items: Sequence, size: int) -> list[Sequence]:
    """Runs of `size` items. The last one may be shorter."""
    begins = range(0, len(items), size)
    return [items[begin : begin + size] for begin in begins]


def last(ids: list[int], count: int) -> list[int]:
    """The last `count` ids: all if they are fewer, none if `count` is negative."""
    count = max(count, 0)
    begin = max(len(ids) - count, 0)
    return ids[begin:]
