"""How figures look: one palette, a colour and a marker for each method, names of the axes."""

from __future__ import annotations

COLUMN_WIDTH = 6.4  # inches
# Okabe and Ito's palette, for the colour-blind
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK, GREY = "#E69F00", "#56B4E9", "#F0E442", "#000000", "#777777"
COLOURS = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK]
MARKERS = "osD^vP*"
METHODS = {  # part of a method's label -> its colour and marker in every figure
    "Base": ("#999999", "x"),
    "No mined": (GREEN, "*"),
    "Random": (BLACK, "D"),
    "Naive": (VERMILION, "o"),
    "shifted": (ORANGE, "v"),
    "Abs": (PURPLE, "s"),
    "MarginPos": (SKY, "^"),
    "PercPos": (BLUE, "P"),
}
AXES = {  # family of methods -> what its parameter is called
    "shifted": "ranks dropped (N)",
    "abs": "threshold (cosine)",
    "margin-pos": "margin (cosine)",
    "perc-pos": "percentage of the positive (%)",
}


def method_key(label: str) -> str:
    """The key of ``METHODS`` that a method's label holds."""
    return next(key for key in METHODS if key in label)


def of_method(label: str) -> dict[str, str]:
    """Colour and marker of a method's label, as keywords of matplotlib."""
    colour, marker = METHODS[method_key(label)]
    return {"color": colour, "marker": marker}


def of_line(place: int) -> dict[str, str]:
    """Colour and marker of a figure's n-th line, as keywords of matplotlib."""
    return {"color": COLOURS[place % 7], "marker": MARKERS[place % 7]}
