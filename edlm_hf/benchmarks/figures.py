"""Plots that need no display and that are left out without matplotlib."""

import io
from pathlib import Path

from edlm_hf.files import write_atomically


def new_figure(width: float, height: float):
    """Return an empty figure of so many inches, None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None

    # A figure of its own, without pyplot: no window, no state that other figures share
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure, path: Path) -> str:
    """Write a PNG, never half of one. Returns its name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    write_atomically(path, content.getvalue())
    return path.name


def plain_ticks(axis) -> None:
    """Write numbers on a logarithmic axis, not powers of ten, and more of them on a short one."""
    from matplotlib.ticker import LogLocator, NullFormatter

    # An axis of less than 1.5 decades has one or two powers of ten, too few to read it by
    low, high = axis.get_view_interval()
    multiples = (1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1,)

    axis.set_major_locator(LogLocator(subs=multiples))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def light_frame(axes) -> None:
    """A faint grid, and no lines above and to the right."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def legend_beside(axes, **options) -> None:
    """A legend to the right of the axes."""
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), **options)


__all__ = ["legend_beside", "light_frame", "new_figure", "plain_ticks", "save_figure"]
