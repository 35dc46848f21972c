"""Pieces of a page: text, lists, tables in boxes that scroll."""

import html
from collections.abc import Sequence


def text(value: object) -> str:
    """Return text as HTML shows it."""
    return html.escape(str(value))


def note(value: str) -> str:
    """Return a paragraph of small print."""
    return f"<p class=note>{text(value)}</p>"


def listed(items: Sequence[str]) -> str:
    """Return a list, nothing for none."""
    return f"<ul>{''.join(f'<li>{text(item)}</li>' for item in items)}</ul>" if items else ""


def table(rows: Sequence[Sequence[str]], label: str) -> str:
    """Return a table with its head, in a box of its own that scrolls where the page is narrow."""
    head, *body = rows
    lines = ["<thead><tr>" + "".join(f"<th scope=col>{text(cell)}</th>" for cell in head) + "</tr></thead><tbody>"]
    for first, *rest in body:
        cells = "".join(f"<td>{text(cell)}</td>" for cell in rest)
        lines.append(f"<tr><th scope=row>{text(first)}</th>{cells}</tr>")
    box = f'<div class=scroll tabindex=0 role=region aria-label="{text(label)}">'
    return f"{box}<table>{''.join(lines)}</tbody></table></div>"
