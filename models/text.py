"""Text from outside, made fit to be stored, logged and printed."""

WORDS_MAX = 300
"""Characters that are kept of what a server says, or of an id that it gives."""


def sanitize(text: str, max_length: int = WORDS_MAX) -> str:
    """Return `text` as one line of printable characters, at most `max_length` of them.

    Control characters, line breaks and lone surrogates become blanks: terminals obey the first, logs are split by the
    second, and neither database stores the third.
    """
    if len(text) <= max_length and text.isprintable() and text == text.strip():
        return text  # as nearly always
    line = "".join(character if character.isprintable() else " " for character in text[: 4 * max_length])
    return " ".join(line.split())[:max_length].rstrip()
