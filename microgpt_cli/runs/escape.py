"""Escape text from untrusted files, such as samples and results, before it is printed on a terminal."""


def escape(text: str, keep: str = "") -> str:
    """Replace non-printable characters, control sequences among them, by their Python escapes.

    Args:
        keep: characters to leave as they are, such as newlines.
    """
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)


def readable(text: str) -> str:
    """Text with the bytes that are not UTF-8, kept as lone surrogates, replaced by U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def one_line(text: str) -> str:
    """The escaped text on one line, with runs of whitespace collapsed."""
    return escape(" ".join(text.split()))
