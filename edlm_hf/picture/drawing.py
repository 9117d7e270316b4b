"""The states of a generation as one SVG file, which is readable on light and on dark pages.

The states stand one below the other. Beside each are the energies of the candidates of the step that
comes next. Text stays text, so that the file is small and sharp.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from string import Template
from xml.sax.saxutils import escape, quoteattr

from edlm_hf.picture.layout import Place, places, width_of
from edlm_hf.picture.states import MASK, NEW, NEXT, State

TEMPLATE = Path(__file__).with_suffix(".svg")

# Pixels. A letter is 0.6 of the size of the font, as in most monospaced fonts
LETTER, LINE = 8.4, 22
SMALL_LETTER = 6.2  # of the labels, on average
MARGIN = 24
STEP_COLUMN = 62
HEADER, GAP, FOOTER = 50, 20, 54
BAR, BAR_DISTANCE = 7, 10
SHORTEST_BAR, LONGEST_BAR = 4, 36
# From the text to the energies, and the width of "energy of 8 candidates"
ENERGIES_GAP, HEADING_WIDTH = 36, 142
# From the upper edge of a line to the foot of its letters
BASELINE = 15
# The block of a mask is 14 high and 3 below the edge of its line, the marker of a new text 19
MASK_TOP, MASK_HEIGHT, MARKER_HEIGHT = 3, 14, 19


@dataclass
class Frame:
    """Where the parts of a picture are, in pixels.

    Args:
        text: the left edge of the text.
        energies: the left edge of the energies.
        block: the height of a state.
        right: the right edge of the content.
        num_candidates: k, or 0 where there are no energies.
    """

    text: float
    energies: float
    block: float
    right: float
    num_candidates: int


def draw(states: Sequence[State], columns: int) -> str:
    """The SVG file of some states, with at most so many letters on a line.

    Raises:
        ValueError: the states have no text.
    """
    # 1. Places and sizes
    tokens = places_of(states, columns)
    frame = frame_of(tokens, most_candidates(states))
    legend = draw_legend(has_energies=frame.num_candidates > 0)
    right = max(frame.right, legend.width)

    # 2. The names of the columns, then the states from top to bottom, a line above each
    parts = [draw_label(frame.text, 30, "from masks to text"), *draw_heading_of_energies(frame)]
    largest = largest_difference(states)
    top = HEADER
    for state in states:
        # Screen readers read the text of a state once, not its pieces
        label = f"step {state.step}" if state.step else "start"
        parts.append(f'<g id="state-{state.step}" aria-label={quoteattr(state.text())}>')
        parts.append(f'<path class="rule" d="M{MARGIN} {top - GAP / 2:g}H{right:.0f}"/>')
        parts.append(draw_label(MARGIN, top + BASELINE, label))
        parts += draw_state(state, tokens, frame, top, largest)
        parts.append("</g>")
        top += frame.block + GAP
    parts.append(f'<g transform="translate({MARGIN} {top + 4:g})">{legend.content}</g>')

    # 3. The file. Below the last state there is no gap
    height = top + FOOTER - GAP
    return svg_file(states, tokens, parts, width=right + MARGIN, height=height)


def draw_state(state: State, tokens: Sequence[Place], frame: Frame, top: float, largest: float) -> list[str]:
    """The text of a state, and the energies of its candidates beside it.

    Args:
        top: the upper edge.
        largest: the difference of energies that has the longest bar.
    """
    parts = draw_tokens(state, tokens, frame.text, top)

    # The bars stand in the middle of the block, however many lines it has
    if state.energies is not None:
        bottom = top + (frame.block + LONGEST_BAR) / 2 - 2
        parts += draw_energies(state, frame.energies, bottom, largest)
    return parts


def draw_heading_of_energies(frame: Frame) -> list[str]:
    """The name of the column of energies, nothing where there is none."""
    if not frame.num_candidates:
        return []
    return [draw_label(frame.energies, 30, f"energy of {frame.num_candidates} candidates")]


def svg_file(
    states: Sequence[State],
    tokens: Sequence[Place],
    parts: Sequence[str],
    *,
    width: float,
    height: float,
    style: str = "",
) -> str:
    """The file with these parts inside a card.

    Args:
        style: more rules of CSS.
    """
    # The line of the card is one pixel wide, half of it on either side of its edge
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    num_tokens = sum(place.width > 0 for place in tokens)
    return template.substitute(
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        card_width=f"{width - 1:.0f}",
        card_height=f"{height - 1:.0f}",
        title=f"{num_tokens} tokens in {states[-1].step} steps, from masks to text",
        description=escape(states[-1].text()),
        style=style,
        content="\n".join(parts),
    )


def most_candidates(states: Sequence[State]) -> int:
    """k, or 0 where no candidates were ever weighed."""
    return max(len(state.energies or []) for state in states)


def places_of(states: Sequence[State], columns: int) -> list[Place]:
    """The places of all tokens, each as wide as its longest text. A mask that stays has one column.

    Raises:
        ValueError: the states have no text.
    """
    # A token can change after it is revealed, with samplers that mask or edit tokens again
    last = states[-1]
    widths = []
    for position, kind in enumerate(last.kinds):
        longest = max(width_of(state.texts[position]) for state in states)
        if kind == MASK:
            longest = max(longest, 1)
        widths.append(longest)

    if sum(widths) == 0:
        raise ValueError("There is no text to draw: give a prompt, or ask for new tokens.")
    return places(last.texts, widths, columns)


def frame_of(tokens: Sequence[Place], num_candidates: int, text: float = MARGIN + STEP_COLUMN) -> Frame:
    """The frame around tokens at these places, with room for a bar for each candidate.

    Args:
        text: the left edge of the text.
    """
    columns = max(place.column + place.width for place in tokens)
    lines = 1 + max(place.line for place in tokens)
    right = text + LETTER * columns
    block = LINE * lines

    # At the right of the text, as wide as the bars or as the name of their column
    energies = right + ENERGIES_GAP
    if num_candidates:
        right = energies + max(BAR_DISTANCE * num_candidates, HEADING_WIDTH)
        block = max(block, LONGEST_BAR)
    return Frame(text, energies, block, right, num_candidates)


def draw_tokens(state: State, tokens: Sequence[Place], left: float, top: float) -> list[str]:
    """The tokens of a state: blocks for masks, text for the others. Neighbours of a kind are one text."""
    # Cells (kind, place, text). Special tokens have no width
    cells = zip(state.kinds, tokens, state.texts, strict=True)
    cells = [cell for cell in cells if cell[1].width]

    # Outlines by kind: all blocks of a kind are one path, which keeps the file small
    shapes = {MASK: [], NEXT: [], NEW: []}
    texts = []
    for (kind, line), run in groupby(cells, key=kind_and_line):
        _, run_places, run_texts = zip(*run, strict=True)
        x = left + LETTER * run_places[0].column
        y = top + LINE * line

        # 1. A block for every mask. The space in front of a word stays free
        if kind in (MASK, NEXT):
            for place in run_places:
                begin = left + LETTER * (place.column + place.indent)
                width = LETTER * (place.width - place.indent)
                shapes[kind].append(block(begin, y + MASK_TOP, width, MASK_HEIGHT))
            continue

        # 2. One text for a run of other tokens
        pairs = zip(run_texts, run_places, strict=True)
        text = "".join(fitted(token, place) for token, place in pairs)
        texts.append(draw_text(kind, text, x, y + BASELINE))

        # 3. A marker below new text, a little wider than its letters
        if kind == NEW:
            indent = LETTER * run_places[0].indent
            width = LETTER * width_of(text) - indent
            shapes[NEW].append(block(x + indent - 0.7, y + 0.5, width + 1.4, MARKER_HEIGHT))

    # Text is drawn last, over the markers
    classes = {MASK: "mask", NEXT: "next", NEW: "highlight"}
    paths = [draw_path(classes[kind], "".join(blocks)) for kind, blocks in shapes.items() if blocks]
    return [*paths, *filter(None, texts)]


def kind_and_line(cell: tuple[str, Place, str]) -> tuple[str, int]:
    """What the tokens of one run have in common."""
    kind, place, _ = cell
    return kind, place.line


def fitted(text: str, place: Place) -> str:
    """The text of a token in its place: without a space that begins a line, and filled up with spaces."""
    if width_of(text) > place.width:
        text = text.removeprefix(" ")
    return text + " " * (place.width - width_of(text))


def block(x: float, y: float, width: float, height: float) -> str:
    """The outline of a block in its place. Half a line of 2 pixels and a small gap are left around it."""
    inset = 1.7
    side = f"{width - 2 * inset:.1f}"
    return f"M{x + inset:.1f} {y + 1:g}h{side}v{height - 2:g}h-{side}z"


def draw_path(kind: str, outline: str) -> str:
    return f'<path class="{kind}" d="{outline}"/>'


def draw_text(kind: str, text: str, x: float, y: float) -> str:
    """A piece of a line, stretched to its columns in every font. Nothing for spaces alone."""
    shown = text.strip(" ")
    if not shown:
        return ""

    # Spaces in front move the text. In XML they would be left out
    num_spaces = len(text) - len(text.lstrip(" "))
    x += LETTER * num_spaces

    # A single letter has no distances between letters that could be stretched
    width = LETTER * width_of(shown)
    stretched = ""
    if len(shown) > 1:
        stretched = f' textLength="{width:.1f}"'
    return f'<text class="{kind}" x="{x:.1f}" y="{y:g}"{stretched}>{escape(shown)}</text>'


def largest_difference(states: Sequence[State]) -> float:
    """The largest difference of two energies of a state. It has the longest bar."""
    # One scale for all states: bars of different steps can be compared. None is +inf
    differences = [0.0]
    for state in states:
        finite = [energy for energy in state.energies or [] if energy is not None]
        if finite:
            differences.append(max(finite) - min(finite))
    return max(differences)


def draw_energies(state: State, left: float, bottom: float, largest: float) -> list[str]:
    """A bar for each candidate: its energy above the least one of the state, the longest for +inf."""
    # Only differences matter: candidates are weighed by softmax(-E)
    finite = [energy for energy in state.energies if energy is not None]
    least = min(finite, default=0.0)
    bars = []
    for number, energy in enumerate(state.energies):
        # From 0 to 1. Where all energies are equal, `largest` is 0 and all bars are the shortest
        share = 1.0
        if energy is not None:
            share = (energy - least) / (largest or 1.0)
        height = SHORTEST_BAR + share * (LONGEST_BAR - SHORTEST_BAR)

        kind = "taken" if number == state.chosen else "bar"
        x = left + BAR_DISTANCE * number
        bars.append(rectangle(kind, x, bottom - height, BAR, height))
    return bars


@dataclass
class Legend:
    """The explanation of blocks, texts and bars, and its right edge in pixels."""

    content: str
    width: float


def draw_legend(has_energies: bool) -> Legend:
    """The legend on one line, from the left edge 0 and the upper edge 0."""
    # 1. Entries (symbol, its width, what it means)
    mask = block(0, 1, MASK_HEIGHT, MASK_HEIGHT)
    marker = draw_path("highlight", block(0, -1.5, 34, MARKER_HEIGHT))
    new_text = draw_text(NEW, "new", 4.4, 13)
    entries = [
        (draw_path("mask", mask), MASK_HEIGHT, "mask"),
        (draw_path("next", mask), MASK_HEIGHT, "revealed by the next step"),
        (marker + new_text, 34, "just revealed"),
    ]
    if has_energies:
        higher = rectangle("bar", 0, 2, BAR, 13)
        taken = rectangle("taken", BAR_DISTANCE, 9, BAR, 6)
        entries.append((higher + taken, 17, "energy, lower is likelier; blue: the one taken"))

    # 2. From left to right, 8 pixels behind a symbol and 24 behind its meaning
    parts = []
    x = 0
    for symbol, symbol_width, text in entries:
        label = draw_label(symbol_width + 8, 13, text)
        parts.append(f'<g transform="translate({x:g})">{symbol}{label}</g>')
        x += round(symbol_width + 8 + SMALL_LETTER * len(text) + 24)
    return Legend("\n".join(parts), MARGIN + x - 24)


def draw_label(x: float, y: float, text: str) -> str:
    return f'<text class="label" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def rectangle(kind: str, x: float, y: float, width: float, height: float) -> str:
    """A rectangle with round corners."""
    size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" {size} rx="2"/>'


__all__ = ["draw"]
