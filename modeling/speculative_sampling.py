"""Speculative sampling: an autoregressive model is the target, and the denoiser drafts for it.

A round is one call of the denoiser, which drafts n tokens at once, and one of the target, which
accepts them from the left as far as they are good enough. What it draws instead makes the result
exactly a sample of the target, whatever the denoiser and n are (Leviathan et al., arXiv 2211.17192;
Chen et al., arXiv 2302.01318).

Shapes: R rows, L positions, N rows that go on, V vocabulary.
"""

import torch

from .confidence import likeliest_tokens
from .drafter import Drafter, Runs
from .energies import Energy
from .generation_config_edlm import EDLMGenerationConfig
from .generation_records import Records
from .masked_diffusion import sample_categorical
from .positions import Positions
from .proposal import Proposal
from .reverse_chain import ReverseProcess
from .samplers import Step


def accept_or_replace(
    drafts: torch.LongTensor,
    log_p: torch.Tensor,
    log_q: torch.Tensor,
    uniforms: torch.Tensor,
) -> tuple[torch.LongTensor, torch.Tensor]:
    """Tokens with the distribution p, from drafts with the distribution q.

    A draft x is accepted with the chance min(1, p(x) / q(x)). Otherwise a token is drawn from
    (p - q)+, normalised. A row without a draft has q = 0 everywhere, and its token is drawn from p.

    With p = (.5, .3, .2) and q = (.2, .6, .2) the drafts 0 and 2 are always accepted, and draft 1
    with the chance 1/2. A refused draft, chance .3, becomes token 0, since (p - q)+ = (.3, 0, 0).
    Together the tokens have the chances .2 + .3, .6 / 2 and .2, which are p.

    Args:
        drafts: (N,).
        log_p, log_q: (N, V) normalised.
        uniforms: (N, 2) on [0, 1), for the decision and for the token in place of the draft.

    Returns:
        Tokens (N,), and whether they are the drafts (N,) bool.
    """
    # 1. u < p(x) / q(x)
    column = drafts.unsqueeze(1)
    draft_log_p = log_p.gather(1, column).squeeze(1)
    draft_log_q = log_q.gather(1, column).squeeze(1)
    ratio = (draft_log_p - draft_log_q).exp()
    ratio = torch.where(draft_log_q == -torch.inf, 0, ratio)
    is_below = uniforms[:, 0] < ratio.to(uniforms.device)
    accepted = is_below.to(drafts.device)

    # 2. (p - q)+ of the others. Where p = q up to rounding nothing is left of it, and p will do.
    refused = ~accepted
    p = log_p[refused].exp()
    q = log_q[refused].exp()
    residual = (p - q).clamp_min(0)
    is_empty = residual.sum(-1, keepdim=True) == 0
    residual = torch.where(is_empty, p, residual)

    # Their tokens, in the places of the refused drafts
    of_refused = uniforms[refused.to(uniforms.device), 1:]
    drawn, _ = sample_categorical(residual.log(), of_refused)
    tokens = drafts.masked_scatter(refused, drawn.squeeze(1))
    return tokens, accepted


class SpeculativeSampling:
    """One round of speculative sampling, for a step whose window is the next n + 1 masks of a row.

    1. Draft x_1 .. x_n ~ q in one call of the denoiser (drafter.py).
    2. Compute p_AR(. | x_<i) at all n + 1 positions, in one call.
    3. From the left, accept x_i or replace it. The first one that is replaced ends the round. If all
       are accepted, draw one token more from p_AR.

    Filters and processors change both distributions, so that the tokens have p_AR with the filters.
    Without sampling both take their likeliest token: a draft is accepted if the target has the same.
    """

    def __init__(self, process: ReverseProcess, noise, records: Records):
        self.process = process
        self.noise = noise
        self.records = records
        self.is_greedy = process.config.do_sample is False
        records.begin_drafts()

        self.drafter = Drafter(process, noise, records.batch_size)

    def __call__(
        self,
        step: Step,
        rows: torch.Tensor,
        proposal: Proposal,
        revealed: Positions,
    ) -> torch.LongTensor:
        """Tokens (R, L) for some `rows` (R,), the mask where the round did not get.

        Args:
            revealed: the windows, consecutive masks.
        """
        window = revealed.flags  # (R, L)

        # 1. Drafts (R, L) at all positions of the window but the last, which is the target's own
        windows = Runs.of(window)
        count = windows.count
        is_draft = window & (window.cumsum(-1) < count.unsqueeze(1))
        drafts, drafted = self.drafter.draft(rows, proposal, Positions(is_draft), windows)

        # 2. p_AR at the window. `given` (R,) says whose first token belongs to the prompt.
        given = ~self.records.state.fillable[rows, 0]
        text_length = int(proposal.present.sum(-1).max())
        self.process.target.prepare(proposal.vocab_size, text_length)
        target = self.process.target.read(rows, drafts, window, given)
        uniforms = self.noise.per_draw(rows, revealed, 2)

        # 3. Left to right
        ids = proposal.ids.clone()
        log_probs = torch.full_like(ids, torch.nan, dtype=torch.float32)
        going = torch.arange(len(rows), device=ids.device)  # (N,)
        for number in range(int(count.max())):
            going = going[number < count[going]]
            if not len(going):
                break
            at = windows.at(going, number)

            # log p and log q (N, V), with q = 0 where nothing was drafted
            logits = target.logits(going, number)
            logits = self.process.processors(ids[going], logits)
            log_p = logits.log_softmax(-1)
            numbers = windows.numbers(going, number)
            log_q = drafted.logits_of(numbers).log_softmax(-1)
            log_q = torch.where(is_draft[at].unsqueeze(1), log_q, -torch.inf)

            # The rows whose draft is replaced, and those without a draft, stop here
            of_numbers = uniforms[numbers.to(uniforms.device)]
            tokens, accepted = self.decide(drafts[at], log_p, log_q, of_numbers)
            of_tokens = log_p.gather(1, tokens.unsqueeze(1)).squeeze(1)
            ids[at] = tokens
            log_probs[at] = of_tokens.to(log_probs.dtype)
            going = going[accepted]

        # The last token of a round is the target's own: all before it are accepted drafts
        is_filled = window & (ids != proposal.config.mask_token_id)
        if self.records.keeps_log_probs:
            self.records.keep_log_probs(rows, is_filled, log_probs)
        num_drafts = is_draft.sum(-1)
        num_accepted = is_filled.sum(-1) - 1
        self.records.keep_drafts(step, num_drafts, num_accepted)
        if self.drafter.reads_states:
            self.drafter.keep_states(rows, target.states(num_accepted).to(rows.device))
        return ids

    def decide(
        self,
        drafts: torch.LongTensor,
        log_p: torch.Tensor,
        log_q: torch.Tensor,
        uniforms: torch.Tensor,
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """Tokens (N,), and whether they are accepted drafts (N,) bool."""
        if not self.is_greedy:
            # The mask, which may have no column, is not a draft: q = 0 there
            drafts = drafts.clamp_max(log_p.shape[1] - 1)
            return accept_or_replace(drafts, log_p, log_q, uniforms)
        tokens = likeliest_tokens(log_p)
        return tokens, tokens == drafts


def target_of(energy: Energy | None, config: EDLMGenerationConfig):
    """The target of speculative sampling that belongs to an energy (autoregressive_target.py).

    Raises:
        ValueError: the energy is not autoregressive, or guidance is asked for.
    """
    target = None if energy is None else energy.target()
    if target is None:
        what = "there is no energy"
        if energy is not None:
            what = f"the energy is a {type(energy).__name__}"
        raise ValueError(
            f"sampler='speculative' draws from the autoregressive energy model of an EDLM, but {what}. "
            "Combine the denoiser with a causal language model: "
            "EDLMForMaskedDiffusion.from_components(denoiser, causal_lm)."
        )
    if config.is_guided:
        raise ValueError(
            f"guidance_scale is {config.guidance_scale}, but with sampler='speculative' it could "
            "only change the drafts and not the distribution, which is the autoregressive model's. "
            "Leave it out."
        )
    return target
