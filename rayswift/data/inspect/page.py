"""An `Inspection` as text for a terminal, and as a self-contained HTML page."""

import html

from rayswift.data.inspect.inspection import Document, Inspection
from rayswift.data.sequence.global_batches import table

_BAR_WIDTH = 40
_GREEN, _DIM, _PLAIN = "\x1b[30;42m", "\x1b[2m", "\x1b[0m"
_STYLE = """
:root { color-scheme: light dark; --trained: #bfe8c5; --bar: #4a7fb5; --line: #ccc; }
@media (prefers-color-scheme: dark) { :root { --trained: #1f5a2c; --bar: #7fb2e5; --line: #444; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td { padding: .1rem .8rem .1rem 0; } td.n { text-align: right; }
.bar { background: var(--bar); height: .8rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); padding: .6rem; }
mark { background: var(--trained); color: inherit; }
"""


def to_text(found: Inspection, colours: bool) -> str:
    """Text for a terminal; without colours, trained text is marked by « and »."""
    most = max((count for _, _, count in found.bins), default=1)
    lines = [_headline(found), "", "formats"]
    lines += [f"  {name:<48} {count:>10,}" for name, count in found.formats.most_common()]
    lines += ["", "outcomes", table(found.counts)]
    lines += [f"  e.g. {bad.id}: {bad.reason}: {bad.detail}" for bad in found.left_out]
    lines += ["", "tokens of a document"]
    for begin, end, count in found.bins:
        lines.append(f"  {begin:>7,} to {end - 1:>7,} {count:>9,} {'█' * round(count / most * _BAR_WIDTH)}")
    lines += ["", *(f"{name:<28} {value}" for name, value in _figures(found))]
    for document in found.shown:
        lines += ["", _title(document), _coloured(document, colours)]
    return "\n".join(lines)


def to_html(found: Inspection) -> str:
    """A self-contained page, light or dark like the reader's system."""
    most = max((count for _, _, count in found.bins), default=1)
    bars = [
        f'<tr><td class="n">{begin:,} to {end - 1:,}</td><td class="n">{count:,}</td>'
        f'<td style="width:20rem"><div class="bar" style="width:{count / most:.1%}"></div></td></tr>'
        for begin, end, count in found.bins
    ]
    shown = []
    for document in found.shown:
        runs = (f"<mark>{html.escape(text)}</mark>" if on else html.escape(text) for text, on in document.runs)
        shown.append(f"<h3>{html.escape(_title(document))}</h3>\n<pre>{''.join(runs)}</pre>")
    examples = [f"<li>{html.escape(f'{bad.id}: {bad.reason}: {bad.detail}')}</li>" for bad in found.left_out]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>rayswift data inspect</title>',
            f"<style>{_STYLE}</style>\n<h1>{html.escape(_headline(found))}</h1>",
            "<h2>Formats</h2>" + _rows([(name, f"{count:,}") for name, count in found.formats.most_common()]),
            "<h2>Outcomes</h2>" + _rows([(name, f"{count:,}") for name, count in found.counts.most_common()]),
            f"<ul>{''.join(examples)}</ul>" if examples else "",
            f"<h2>Tokens of a document</h2><table>{''.join(bars)}</table>",
            "<h2>Figures</h2>" + _rows(_figures(found)),
            "<h2>Rows, trained tokens marked</h2>",
            *shown,
            "</html>\n",
        ]
    )


def _headline(found: Inspection) -> str:
    return f"{found.num_sampled:,} of {found.num_rows:,} rows"


def _figures(found: Inspection) -> list[tuple[str, str]]:
    total = int(found.lengths.sum())
    mean = total / max(1, len(found.lengths))
    return [
        ("documents", f"{len(found.lengths):,}, {mean:,.1f} tokens on average"),
        ("tokens", f"{total:,}, {found.num_trained_tokens / max(1, total):.1%} of them trained"),
        ("packed rows", f"{found.num_packed_rows:,} of up to {found.max_length:,} tokens, {found.fill:.2%} full"),
    ]


def _title(document: Document) -> str:
    return f"{document.id}, {document.num_tokens:,} tokens"


def _coloured(document: Document, colours: bool) -> str:
    on, off, plain = (_GREEN, _DIM, _PLAIN) if colours else ("«", "", "")
    end = _PLAIN if colours else "»"
    return "".join(f"{on}{text}{end}" if trained else f"{off}{text}{plain}" for text, trained in document.runs)


def _rows(cells: list[tuple[str, str]]) -> str:
    rows = (f'<tr><td>{html.escape(name)}</td><td class="n">{html.escape(value)}</td></tr>' for name, value in cells)
    return f"<table>{''.join(rows)}</table>"
