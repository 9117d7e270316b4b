"""A generation as one SVG file that moves: the states follow each other in one place.

The movement is CSS inside the file, which GitHub shows, as any browser does. Where nothing moves (on
paper, in a viewer without animations, for readers who prefer less motion) the finished text stands.
"""

from collections.abc import Sequence
from string import Template
from xml.sax.saxutils import quoteattr

from edlm_hf.picture.drawing import (
    FOOTER,
    HEADER,
    MARGIN,
    draw_heading_of_energies,
    draw_label,
    draw_legend,
    draw_state,
    frame_of,
    largest_difference,
    most_candidates,
    places_of,
    rectangle,
    svg_file,
)
from edlm_hf.picture.states import State

SECONDS_PER_STATE, SECONDS_OF_THE_LAST = 0.8, 5.0
# Pixels
PROGRESS_LEFT, PROGRESS_WIDTH, PROGRESS_HEIGHT = 116, 200, 6

# Every state is visible for its share of a round. The last one is also visible where nothing moves
STYLE = Template("""\
.state { visibility: hidden; animation: show ${round}s step-end infinite; }
.state.last { visibility: visible; animation-name: wait; }
.track { fill: #e4e9ee; }
.done { fill: #0969da; }
@keyframes show { 0% { visibility: visible; } ${share}%, 100% { visibility: hidden; } }
@keyframes wait { 0% { visibility: hidden; } ${begin}%, 100% { visibility: visible; } }
@media (prefers-reduced-motion: reduce) { .state { animation: none; } }
@media (prefers-color-scheme: dark) {
.track { fill: #242b34; }
.done { fill: #4493f8; }
}
""")


def animate(states: Sequence[State], columns: int) -> str:
    """The SVG file of states that follow each other, with at most so many letters on a line.

    Raises:
        ValueError: the states have no text.
    """
    # 1. Places and sizes, the same for all states
    tokens = places_of(states, columns)
    frame = frame_of(tokens, most_candidates(states), text=MARGIN)
    legend = draw_legend(has_energies=frame.num_candidates > 0)
    right = max(frame.right, legend.width)
    largest = largest_difference(states)

    # 2. What stays, then the states on top of each other
    last = states[-1]
    parts = [draw_progress("track", 1.0), *draw_heading_of_energies(frame)]
    for number, state in enumerate(states):
        parts.append(open_group(state, number, is_last=state is last))
        parts.append(draw_label(MARGIN, 30, f"step {state.step} of {last.step}"))
        if state.step:
            parts.append(draw_progress("done", state.step / last.step))
        parts += draw_state(state, tokens, frame, HEADER, largest)
        parts.append("</g>")

    # The legend is below the tallest state, whichever is visible
    bottom = HEADER + frame.block
    parts.append(f'<g transform="translate({MARGIN} {bottom + 24:g})">{legend.content}</g>')

    # 3. The file
    height = bottom + FOOTER
    return svg_file(states, tokens, parts, width=right + MARGIN, height=height, style=style_of(len(states)))


def style_of(num_states: int) -> str:
    """The rules of CSS that show so many states one after the other."""
    # A round is all states once. The last one begins at `begin` seconds
    begin = SECONDS_PER_STATE * (num_states - 1)
    seconds = begin + SECONDS_OF_THE_LAST

    # Key frames are in % of a round
    share = 100 * SECONDS_PER_STATE / seconds
    begin_share = 100 * begin / seconds
    return STYLE.substitute(
        round=f"{seconds:.1f}",
        share=f"{share:.3f}",
        begin=f"{begin_share:.3f}",
    )


def open_group(state: State, number: int, is_last: bool) -> str:
    """The tag that opens a state. The last one has no delay, since it waits inside its own movement."""
    names = "state last"
    delay = ""
    if not is_last:
        names = "state"
        delay = f' style="animation-delay: {SECONDS_PER_STATE * number:.1f}s"'
    return f'<g id="state-{state.step}" class="{names}"{delay} aria-label={quoteattr(state.text())}>'


def draw_progress(kind: str, share: float) -> str:
    """A horizontal bar, as long as the share of the steps that are done."""
    return rectangle(kind, PROGRESS_LEFT, 23, PROGRESS_WIDTH * share, PROGRESS_HEIGHT)


__all__ = ["animate"]
