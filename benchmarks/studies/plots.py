"""How the studies' plots look."""

from typing import Any

STYLE: Any = {  # matplotlib types each key on its own
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "savefig.dpi": 160,
}
COLOURS = {
    "InfoNCE": "#444444",
    "label smoothing": "#a0a0a0",
    "KD": "#e08a1e",
    "OTTER": "#1768ac",
    "OTTER without Sinkhorn": "#62b6cb",
    "RobustLoss": "#2a8c4a",
}
INK, FAINT, GRID = "#222222", "#777777", "#e6e6e6"
