"""Which encoding a text file has: by its byte order mark, by what a user says, or as a guess for an error message."""

import codecs
import re

from fintune.errors import UserError

MARKS = [  # byte order marks; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
LIKELY = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874"]
LIKELY += ["gb18030", "big5", "cp932", "euc_jp", "cp949", "koi8_r", "koi8_u"]
OLDER = ["mac_roman", "cp850", "cp437", "cp866"]  # of Macs and DOS: they read anything, so they are asked last

IN_ASCII = {  # encodings whose bytes are sound ASCII -> (their name, what gives them away)
    "iso2022_jp": ("ISO-2022-JP", re.compile(rb"\x1b\$[@B][!-~]{2}")),
    "iso2022_kr": ("ISO-2022-KR", re.compile(rb"\x1b\$\)C")),
    "hz": ("HZ", re.compile(rb"~\{([!-~]{2})+~\}")),
    "utf-7": ("UTF-7", re.compile(rb"\+[A-Za-z0-9+/]{3,}-")),
}

DAMAGED = "fintune.damaged"  # for `errors`: what cannot be decoded becomes half characters, which no sound text holds
codecs.register_error(
    DAMAGED,
    lambda error: (
        "".join(chr(0xDC00 + max(0x80, byte)) for byte in error.object[error.start : error.end]),
        error.end,
    ),
)


def encoding_of(head: bytes, name: str | None, where: str) -> tuple[str, bytes]:
    """(encoding, byte order mark) of a file.

    Args:
        head: its first bytes.
        name: the encoding that the user gave, if any.
        where: the file, for messages.

    Raises:
        UserError: Python knows no such encoding, the file's mark is of another, or it is UTF-16 or UTF-32
            without a mark, or one of those in ASCII.
    """
    mark, marked = next(((mark, found) for mark, found in MARKS if head.startswith(mark)), (b"", None))
    if name is None:
        if marked is None and (half := empty_halves(head)):
            raise UserError(f"{where}: is {half.upper()} without a byte order mark; state its encoding, {half}")
        if marked is None and (found := within_ascii(head)):
            raise UserError(f"{where}: looks like {IN_ASCII[found][0]}; state its encoding, {found}")
        return marked or "utf-8", mark
    try:
        known = codecs.lookup(name)
        "a,\n".encode(name).decode(name, DAMAGED)  # as is not possible with punycode and the like
    except (LookupError, UnicodeError, ValueError) as error:  # none, or one of bytes
        raise UserError(f"{where}: encoding {name!r} is unknown; take one that Python knows, as cp1252") from error
    family = known.name.removesuffix("-sig").removesuffix("-le").removesuffix("-be")
    if marked is None:
        if family == known.name and family in ("utf-16", "utf-32"):
            raise UserError(
                f"{where}: has no byte order mark, so its encoding is {family}-le or {family}-be; state it"
            )
        return known.name.removesuffix("-sig"), b""
    if not marked.startswith(family) and known.name != "utf-8-sig":
        raise UserError(f"{where}: begins with the mark of {marked.upper()}, so it is not {name}; state no encoding")
    return marked, mark


def empty_halves(content: bytes) -> str | None:
    """utf-16-le or utf-16-be where every other byte is often 0, as in Latin letters, digits and commas of these, or
    utf-32-le or utf-32-be where half of them are always."""
    one, two, three, four = (content[start::4].count(0) / max(1, len(content) // 4) for start in range(4))
    for name, zeros, others in (("utf-32-be", (one, two), four), ("utf-32-le", (three, four), one)):
        if min(zeros) > 0.9 > others:
            return name
    first, second = (one + three) / 2, (two + four) / 2
    return None if abs(first - second) < 0.2 else "utf-16-be" if first > second else "utf-16-le"


def within_ascii(head: bytes) -> str | None:
    """The encoding of `IN_ASCII` that a file's first bytes have: some give it away, and all can be decoded."""
    lines = head[: head.rfind(b"\n") + 1] or head
    for name, (_, pattern) in IN_ASCII.items():
        if pattern.search(lines) and lines.isascii():
            try:
                lines.decode(name)
            except UnicodeError:
                continue
            return name
    return None


def damage_of(line: str, encoding: str) -> str | None:
    """What in a line, decoded with errors=DAMAGED, could not be decoded; None where all could."""
    if not line.isascii():
        try:
            line.encode()
        except UnicodeEncodeError as error:
            return f"not {encoding.upper()} (at character {error.start + 1})"
    return None


def likely_encoding(content: bytes) -> str | None:
    """The encoding that bytes which are not UTF-8 most likely have; None where none fits."""
    from charset_normalizer import from_bytes

    for names in (LIKELY, LIKELY + OLDER):
        found = {}
        for match in from_bytes(content, cp_isolation=names, enable_fallback=False):
            for name in set(match.could_be_from_charset).intersection(names):
                found.setdefault(name, (round(match.chaos, 2), -round(match.coherence, 2)))
        if found and min(found.values())[0] < 0.1:
            return min(found, key=lambda name: (found[name], names.index(name)))
    return None
