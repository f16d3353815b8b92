"""Text from outside, made fit to be stored, logged and printed."""

import re

WORDS_MAX = 300
"""Characters that are kept of what a server says, or of an id that it gives."""
SOMEBODY = "…"
"""What stands for an address or a number."""
_ADDRESS = re.compile(r"[^\s<>()\[\]\",;]+@[^\s<>()\[\]\",;]+")
_NUMBER = re.compile(r"\+?(?<![\w.])\d(?:[ -]?\d){6,}(?!\w)")
"""Seven digits or more, the shortest that a number of a telephone has; codes of servers and years have fewer."""
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")


def sanitize(text: str, max_length: int = WORDS_MAX) -> str:
    """Return `text` as one line of printable characters, at most `max_length` of them.

    Control characters, line breaks and lone surrogates become blanks: terminals obey the first, logs are split by the
    second, and neither database stores the third.
    """
    if len(text) <= max_length and text.isprintable() and text == text.strip():
        return text  # as nearly always
    line = "".join(character if character.isprintable() else " " for character in text[: 4 * max_length])
    return " ".join(line.split())[:max_length].rstrip()


def without_people(text: str) -> str:
    """Return `text` without email addresses and telephone numbers, which servers like to repeat."""
    return _NUMBER.sub(SOMEBODY, _ADDRESS.sub(SOMEBODY, text))


def spreadsheet_cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula (OWASP, CSV Injection): people choose their own names."""
    is_formula = text.startswith(("=", "+", "-", "@", "\t", "\r")) and not _WHOLE_NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text
