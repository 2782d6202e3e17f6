"""Writes docs/icon.svg and docs/banner.svg, and their PNG twins for the registry: noise that becomes a landscape.

python -m tools.make_brand            needs resvg-py, which `--extra test` of tools/host.py installs
"""

from __future__ import annotations

import math
import random
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
ICON = (400, 400)  # the registry takes squares up to this size
BANNER = (1260, 540)  # and 21:9

SKY = ("#1b1464", "#5b2a86", "#f2709c")  # top to horizon
HILLS = ("#3f2b77", "#2a1f5e", "#170f3d")  # far to near
SUN = "#ffd27a"
NOISE = ("#8fe3ff", "#ff9ecb", "#ffe29a", "#b79cff", "#7cf0c4")
INK = "#fff6e8"

# Letters on a grid of 4 x 6, drawn with one round pen: no font that a machine may lack.
LETTERS = {
    "S": "M3.8 0.9 C3.4 0.2 2.7 0 2 0 C0.9 0 0.2 0.6 0.2 1.5 C0.2 3.5 3.8 2.5 3.8 4.5 C3.8 5.4 3.1 6 2 6 "
    "C1.2 6 0.5 5.7 0.1 5",
    "A": "M0 6 L2 0 L4 6 M0.75 4 L3.25 4",
    "N": "M0.3 6 L0.3 0 L3.7 6 L3.7 0",
    "T": "M0 0 L4 0 M2 0 L2 6",
    "I": "M2 0 L2 6",
    "V": "M0 0 L2 6 L4 0",
    "E": "M3.6 0 L0.4 0 L0.4 6 L3.6 6 M0.4 3 L3 3",
}


def hill(width: int, height: int, level: float, swell: float, phase: float) -> str:
    """A wave over the whole width, closed at the bottom; `level` and `swell` are shares of the height."""
    points = [
        (x, height * (level + swell * math.sin(phase + 2.2 * math.pi * x / max(width, 1.4 * height))))
        for x in range(0, width + 10, 10)
    ]
    line = " ".join(f"L{x} {y:.1f}" for x, y in points)
    return f"M0 {height} {line} L{width} {height} Z"


def noise(width: int, height: int, cell: int, reach: float) -> str:
    """Squares of noise, dense at the left and gone at `reach` of the width."""
    rng, squares = random.Random(32), []
    for top in range(0, height, cell):
        for left in range(0, width, cell):
            density = 1 - (left + cell / 2) / (width * reach)
            if rng.random() < density * 1.15:
                color, opacity = rng.choice(NOISE), 0.25 + 0.65 * max(density, 0) * rng.random()
                squares.append(
                    f'<rect x="{left}" y="{top}" width="{cell}" height="{cell}" fill="{color}" '
                    f'opacity="{opacity:.2f}"/>'
                )
    return "\n".join(squares)


def word(text: str, left: float, top: float, unit: float) -> str:
    """`text` in our letters, 6 units high, with the space between them that their shapes want."""
    pen = 'fill="none" stroke-linecap="round" stroke-linejoin="round" stroke-width="0.85"'
    drawn, right = [], left
    for letter in text:
        start = right - (1.2 * unit if letter == "I" else 0)  # as wide as its stroke
        drawn.append(f'<path transform="translate({start:.1f} {top:.1f}) scale({unit})" {pen} d="{LETTERS[letter]}"/>')
        right = start + (4.1 if letter == "I" else 5.3) * unit
    return f'<g stroke="{INK}">{"".join(drawn)}</g>'


def picture(width: int, height: int, corner: int, sun: tuple[float, float, float], cell: int, reach: float, front: str):
    """The landscape; `sun` is its centre and radius in pixels, `front` is drawn over everything."""
    stops = "".join(f'<stop offset="{i / 2 * 0.75}" stop-color="{color}"/>' for i, color in enumerate(SKY))
    x, y, radius = sun
    hills = "".join(
        f'<path d="{hill(width, height, 0.66 + 0.11 * i, 0.06, 0.6 + 2.1 * i)}" fill="{color}"/>'
        for i, color in enumerate(HILLS)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<defs>
<linearGradient id="sky" x1="0" y1="0" x2="0" y2="1">{stops}</linearGradient>
<radialGradient id="glow"><stop offset="0.3" stop-color="{SUN}" stop-opacity="0.7"/>
<stop offset="1" stop-color="{SUN}" stop-opacity="0"/></radialGradient>
<clipPath id="frame"><rect width="{width}" height="{height}" rx="{corner}"/></clipPath>
</defs>
<g clip-path="url(#frame)">
<rect width="{width}" height="{height}" fill="url(#sky)"/>
<circle cx="{x}" cy="{y}" r="{2.1 * radius}" fill="url(#glow)"/>
<circle cx="{x}" cy="{y}" r="{radius}" fill="{SUN}"/>
{hills}
{noise(width, height, cell, reach)}
{front}
</g>
</svg>
"""


def drawings() -> dict[str, str]:
    """Name -> SVG."""
    unit = 17
    lettering = word("SANA", 556, 150, unit) + word("NATIVE", 556, 292, unit * 0.713)
    return {
        "icon": picture(*ICON, 84, (262, 170, 74), 25, 0.62, ""),
        "banner": picture(*BANNER, 0, (1085, 215, 88), 30, 0.42, lettering),
    }


def main() -> None:
    import resvg_py  # of the test extra; the drawings themselves need nothing

    for name, svg in drawings().items():
        (DOCS / f"{name}.svg").write_text(svg, encoding="utf-8")
        (DOCS / f"{name}.png").write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=svg)))


if __name__ == "__main__":
    main()
