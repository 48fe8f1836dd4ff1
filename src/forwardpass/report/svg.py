"""Elements of an SVG document as text, with everything escaped that came from outside."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

__all__ = ["element", "group", "text_width"]

_PIXELS_PER_CHARACTER = 6.4
"""At the charts' 12 px; only used to keep labels apart and inside, so that an estimate will do."""


def element(name: str, content: str = "", *, title: str = "", **attributes: str | float) -> str:
    """Write one element with plain text in it; `title` is what a reader sees on hovering.

    Python names stand for XML ones: `class_` for `class`, `text_anchor` for `text-anchor`.

    >>> element("text", "a < b", x=1.25, class_="tick")
    '<text x="1.2" class="tick">a &lt; b</text>'
    """
    hover = f"<title>{escape(_printable(title))}</title>" if title else ""
    inner = hover + escape(_printable(content))
    return f"<{name}{_attributes(attributes)}>{inner}</{name}>" if inner else f"<{name}{_attributes(attributes)}/>"


def group(children: list[str], *, name: str = "g", **attributes: str | float) -> str:
    """Write an element around others that are already written."""
    return f"<{name}{_attributes(attributes)}>{''.join(children)}</{name}>"


def text_width(text: str) -> float:
    """Estimate how wide a label is."""
    return len(text) * _PIXELS_PER_CHARACTER


def _attributes(attributes: dict[str, str | float]) -> str:
    return "".join(f" {_xml_name(name)}={quoteattr(_value(value))}" for name, value in attributes.items())


def _xml_name(name: str) -> str:
    return name.rstrip("_").replace("_", "-") if name != "viewBox" else name


def _value(value: str | float) -> str:
    return _printable(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def _printable(text: str) -> str:
    """Drop what XML cannot carry at all: control characters, lone surrogates and non-characters."""
    return "".join(
        character
        for character in text
        if character in "\t\n\r" or (ord(character) >= 0x20 and not _is_excluded(ord(character)))
    )


def _is_excluded(code: int) -> bool:
    return 0x7F <= code <= 0x9F or 0xD800 <= code <= 0xDFFF or code in (0xFFFE, 0xFFFF)
