"""Pictures of our pages, drawn by matplotlib as inline SVG, and the frame of a page.

Colours are drawn as placeholders and then become the page's CSS variables, so that one picture serves the light and
the dark page, and its text is the page's own text.
"""

import io
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

INK, MUTED, LINE, ACCENT, LOCAL, WARN, PAPER, BAND = (f"#0{n}0{n}0{n}" for n in range(1, 9))
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", LOCAL: "--local", WARN: "--warn",
    PAPER: "--paper", BAND: "--band",
}  # fmt: skip
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.0f} %")


def percent(value: float) -> str:
    """`0.937` → `93.7 %`, with a space that does not break."""
    return f"{100 * value:.1f}\u00a0%"


def svg(figure: Figure, name: str, title: str, colours: Mapping[str, str]) -> str:
    """The figure as an `<svg>` element whose ids are unique in the page and whose colours are CSS variables.

    `colours`: placeholders besides those of this module, and the variable of each.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for colour, variable in {**_VARIABLES, **colours}.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"font: ([^;\"]*?)(\d+(?:\.\d+)?px) [^;\"]*", r"font: \1\2 var(--sans)", svg)
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _opening(title), svg, count=1, flags=re.S)


def _opening(title: str) -> str:
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return rf'<svg {namespaces} viewBox="\1" role="img" aria-label="{escape(title)}">'


def page(title: str, body: str) -> str:
    """A whole document: one file, no script, nothing fetched. `title` is text, `body` HTML."""
    style = files("console").joinpath("page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
