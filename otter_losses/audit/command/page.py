"""report.html: one page that needs nothing beside it, no network and no script."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import torch

from otter_losses.audit.command.histogram import Histogram
from otter_losses.audit.command.lists import Names, Selection
from otter_losses.audit.command.pictures import NoPicture, embedded
from otter_losses.audit.report import PairTrust

LONGEST = 600
"""Characters of a caption, key or path that the page shows."""

LEAST_TRUSTS = (0.1, 0.25, 0.5, 0.75, 0.9)

LIMITS = (
    "<b>It ranks pairs.</b> Trust is the estimated probability that a pair of this score belongs together. Low trust is a reason "
    "to look, not a proof: a right pair that nothing else resembles looks wrong.",
    "<b>The share of wrong pairs is a rough estimate.</b> A wrong caption from the right topic looks right, so where captions "
    "were mixed up within topics the share is underestimated. The interval covers the luck of the sample only.",
    "<b>It sees what the encoders see.</b> What their features do not tell apart, such as counts, fine detail or a language they "
    "never learnt, no score here can judge.",
    "<b>Suggested captions are captions of other pairs,</b> the best among those of similar pictures. They show what the audit "
    "expected; they need not be right.",
)

FILES = {
    "trust.npy": "trust of every pair, float32, in the order of the rows",
    "alpha.npy": "0.05 + 0.45 trust, what the losses take as alpha",
    "alpha.npz": "the same by key, for loaders that know their samples by key",
    "suspicious.csv": "the pairs that are not kept, and at least those above, the most suspicious first",
    "keep_rows.npy": "rows of the pairs that are kept, int64, ascending",
    "keep_keys.txt": "their keys, one a line",
    "keep_uids.npy": "their uids, sorted: the subset file of DataComp's resharder",
    "duplicates.csv": "rows that are nearly the same in image and in text",
    "summary.json": "the numbers of this page, and the options of this audit",
}


@dataclass(frozen=True)
class Kept:
    """What is kept from some trust on."""

    pairs: int
    share: float
    wrong: float
    """Estimated share of wrong pairs among them."""

    @classmethod
    def of(cls, trust: torch.Tensor, kept: torch.Tensor) -> "Kept":
        return cls(len(kept), len(kept) / len(trust), float(1 - trust[kept].double().mean()) if len(kept) else 0.0)


def write_page(result: PairTrust, selection: Selection, names: Names, top: int, written: Iterable[str]) -> str:
    """The page; `written` are the files that lie beside it."""
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Audit of {len(result.trust):,} pairs</title>",
            f"<style>{files(__package__).joinpath('page.css').read_text(encoding='utf-8')}</style></head><body><main>",
            *_summary(result, selection),
            *_scores(result, selection),
            *_thresholds(result),
            "<h2>What this page can and cannot tell</h2>",
            f"<ul>{''.join(f'<li>{limit}</li>' for limit in LIMITS)}</ul>",
            *_sheet(result, selection, names, top),
            *_files(written),
            "</main></body></html>\n",
        )
    )


def percent(share: float) -> str:
    """
    >>> percent(0.284), percent(0.0042), percent(0.0)
    ('28 %', '0.4 %', '0 %')
    """
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def _summary(result: PairTrust, selection: Selection) -> Iterable[str]:
    low, high = result.wrong_share_interval
    kept = Kept.of(result.trust, selection.kept)
    space = (
        "The cosine of image and caption is part of the score."
        if result.common_space
        else ("Image and caption were compared through their neighbours only, not with each other.")
    )
    numbers = (
        ("Wrong pairs, estimated", percent(result.wrong_share), f"95 % interval {percent(low)} to {percent(high)}"),
        ("Pairs kept", f"{kept.pairs:,}", f"{percent(kept.share)} of all"),
        ("Wrong among the kept", percent(kept.wrong), "estimated by their mean trust"),
        ("Near-duplicate pairs", f"{len(result.duplicates):,}", "the same in image and text"),
    )
    yield f"<h1>Audit of {len(result.trust):,} image-text pairs</h1>"
    yield f'<p class="quiet">Which pairs belong together, judged by features of frozen encoders. {space}</p>'
    yield '<dl class="numbers">'
    yield from (f"<div><dt>{name}</dt><dd><b>{number}</b>{note}</dd></div>" for name, number, note in numbers)
    yield "</dl>"


def _scores(result: PairTrust, selection: Selection) -> Iterable[str]:
    least = float(result.score[selection.kept].min()) if len(selection.kept) else float("inf")
    wrong = percent(result.wrong_share)
    described = (
        f"Histogram of the scores of {len(result.score):,} pairs. About {wrong} of them lie where those of mismatched pairs lie."
    )
    legend = (
        ("dropped", "pairs not kept"),
        ("kept", "pairs kept"),
        ("line", f"mismatched pairs, as many as are estimated wrong ({wrong})"),
    )
    yield "<h2>How well the pairs agree with their neighbours</h2>"
    yield (
        '<p class="quiet">A pair scores high if the captions of similar images are like its caption, and the images of similar '
        "captions like its image. The scale is that of mismatched pairs: their mean is 0, their standard deviation 1.</p>"
    )
    yield '<div class="panel"><ul class="legend">'
    yield from (f'<li><i class="{kind}"></i>{meaning}</li>' for kind, meaning in legend)
    yield f'</ul>{Histogram.of(result).svg(least, described)}<p class="axis">score</p></div>'


def _thresholds(result: PairTrust) -> Iterable[str]:
    yield "<h2>What a threshold keeps</h2>"
    yield '<div class="scroll"><table><tr>'
    yield from (f"<th>{name}</th>" for name in ("trust at least", "pairs kept", "of all", "estimated wrong among them"))
    yield "</tr>"
    for least in LEAST_TRUSTS:
        kept = Kept.of(result.trust, (result.trust >= least).nonzero().flatten())
        yield f"<tr><td>{least:g}</td><td>{kept.pairs:,}</td><td>{percent(kept.share)}</td><td>{percent(kept.wrong)}</td></tr>"
    yield "</table></div>"


def _sheet(result: PairTrust, selection: Selection, names: Names, top: int) -> Iterable[str]:
    shown = selection.suspicious[:top]
    if not shown:
        return
    yield f"<h2>The {len(shown):,} most suspicious pairs</h2>"
    yield '<ol class="sheet">'
    yield from (_card(row, result, names) for row in shown)
    yield "</ol>"


def _card(row: int, result: PairTrust, names: Names) -> str:
    text = int(result.best_text[row])
    given = f'<dt>given caption</dt><dd class="given" dir="auto">{_caption(names.caption(row))}</dd>' if names.captions else ""
    better = f'<dd dir="auto">{_caption(names.caption(text))}</dd>' if names.captions and text >= 0 else ""
    rather = f"<dt>audit's choice, caption of row {text}</dt>{better}" if text >= 0 else ""
    key = f"<br>{_shown(names.key(row))}" if names.keys else ""
    return (
        f"<li>{_picture(row, names)}<dl>{given}{rather}</dl>"
        f"<p>row {row}{key}<br>trust {float(result.trust[row]):.2f} · score {float(result.score[row]):.2f}</p></li>"
    )


def _picture(row: int, names: Names) -> str:
    if not names.pictures:
        return ""
    path = names.picture(row)
    try:
        file = path if os.path.exists(path) else names.picture_folder / path
        return f'<img src="{embedded(Path(file))}" alt="picture of row {row}, {_shown(path)}">'
    except NoPicture as reason:
        return f'<div class="none">{_shown(path)}<br>{escape(str(reason))}</div>'


def _caption(caption: str) -> str:
    return _shown(caption) or '<span class="quiet">(empty)</span>'


def _shown(text: str) -> str:
    """Escaped, and not longer than a page should show."""
    return escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")


def _files(written: Iterable[str]) -> Iterable[str]:
    yield "<h2>Beside this page</h2>"
    yield '<div class="scroll"><table class="files">'
    yield from (f"<tr><td><code>{name}</code></td><td>{FILES[name]}</td></tr>" for name in written)
    yield "</table></div><p>The trust as a prior of the losses, so that pairs in doubt lean on the teacher:</p>"
    yield (
        "<pre>alpha = torch.from_numpy(numpy.load(&quot;alpha.npy&quot;))\n"
        "loss(x, y, logit_scale, alpha=alpha[rows])  # rows: the rows of this batch's pairs</pre>"
    )
