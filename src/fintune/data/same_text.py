"""When two texts say the same, and which pieces of them are compared where they say nearly the same."""

import html
import re
import unicodedata

import regex  # knows classes of characters that `re` does not, and takes ten times as long

# up to a space, or to what no link holds unescaped: letters of other scripts, emoji
URL = re.compile(
    r"(?:https?://|(?<![a-z0-9])(?:www\.|(?:t\.co|bit\.ly|pic\.twitter\.com)/))[!-~\u00a1-\u024f]+", re.IGNORECASE
)
WIDE = regex.compile(r"[\uff01-\uffee]+")  # full-width Latin and signs, half-width katakana
DASH = "-−–‐‑‒﹣"
MINUS = regex.compile(  # before a number, -5 %, -$3 or -US$3, after a rating, BBB-, and alone, (-); else a dash
    rf"(?<![\p{{L}}\p{{N}}%])[{DASH}](?=(?:[A-Z]{{0,3}}\p{{Sc}}|[A-Z]{{3}} ?)?[.,]?\d)|(?<=\()[{DASH}](?=\))"
    rf"|(?<=\b[A-D][A-Da-d]{{0,2}})[{DASH}](?![\p{{L}}\p{{N}}])"
)
LOSS = regex.compile(r"(\p{Sc})\(([\d.,]+[KMB]?)\)|\((\p{Sc}[\d.,]+[KMB]?|\d*\.\d+)\)")  # accountants' -$3
POINT = re.compile(r"(?<![\w.,])\.(?=\d)")  # .5
IDLE = "|~¦¬©®™℠" + "🚨🔥💥⚡🔔📢📣👇👉❗❕"  # signs that part, protect or catch the eye, and say no more than a comma
SIGN = regex.compile(rf"([[\p{{Sm}}\p{{Sc}}\p{{So}}%‰]--[{IDLE}]])", regex.VERSION1)  # + $ % ▲ and emoji
FACES = {"☺": re.compile(r"[:;=][-']?[)\]](?!\w)"), "☹": re.compile(r"[:=][-']?[(\[](?![\w$])")}
NOT_SAID = regex.compile(r"[^\p{L}\p{M}\p{N}\p{Sm}\p{Sc}\p{So}%‰]|[" + IDLE + "]")
NOT_WORD = regex.compile(r"[^\p{L}\p{M}\p{N}]+")  # marks are vowels in Hindi
NOT_ASCII_WORD = re.compile(r"[\W_]+")
# zero-width, of direction or control; and the stroke that draws Arabic words out
UNSEEN = regex.compile(r"[[\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u0640]--\s]", regex.VERSION1)
ENDS = regex.compile(r"^[\s\p{Cc}\p{Cf}]+|[\s\p{Cc}\p{Cf}]+$")
WHOLE = re.compile(r"^(-?\d+)\.0+$")  # a number that is no fraction, as pandas writes it
DIGITS = re.compile(r"\d+")
# a letter with its marks, of a script that puts no spaces between words
UNSPACED = regex.compile(r"([\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*)")


def _plain(text: str) -> str:
    if text.isascii():
        return text
    seen = UNSEEN.sub("", unicodedata.normalize("NFC", text))
    return WIDE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), seen)


def normalise(text: str) -> str:
    """Lower case, without URLs and punctuation: two texts that differ only there are the same news.

    Signs that can change what is said stay, each as a word: emoji, :-), ▲, $, %, + and a minus, as in -3, (0.03) or
    BBB-. Marks that nobody sees count for nothing. A text of URLs and punctuation alone is compared as it is.
    """
    said = LOSS.sub(r" − \1\2\3 ", MINUS.sub(" − ", POINT.sub("0.", URL.sub(" ", html.unescape(_plain(text))))))
    for face, pattern in FACES.items():
        said = pattern.sub(f" {face} ", said)
    said = NOT_SAID.sub(" ", SIGN.sub(r" \1 ", said).lower())
    return " ".join(said.split()) or " ".join(text.split())


def signs_of(text: str) -> list[str]:
    """The signs that `normalise` keeps, in order."""
    return SIGN.findall(normalise(text))


def words_of(text: str) -> str:
    """`normalise` without the signs; of a text without words its signs."""
    return _words(text) or normalise(text)


def _words(text: str) -> str:
    outside = NOT_ASCII_WORD if text.isascii() else NOT_WORD
    return " ".join(outside.sub(" ", URL.sub(" ", _plain(text).lower())).split())


def pieces(text: str, mask_digits: bool) -> str:
    """What of a text is compared, two neighbours at a time: its words, between spaces.

    Chinese, Japanese, Thai and the like put no spaces between words: there each letter is one.

    Args:
        mask_digits: all numbers are alike.
    """
    words = _words(text)
    if not words.isascii():
        words = " ".join(UNSPACED.sub(r" \1 ", words).split())
    return (DIGITS.sub("0", words) if mask_digits else words) or normalise(text)


def name_key(name: str) -> str:
    """Equal for names that look the same but for case and spaces: also full-width ones, with and without marks that
    nobody sees, or 1 and 1.0."""
    seen = UNSEEN.sub("", " ".join(unicodedata.normalize("NFKC", name).split()))
    return WHOLE.sub(r"\1", " ".join(seen.casefold().split()))


def trimmed(name: str) -> str:
    """Without spaces and what nobody sees at the ends; the mark that colours an emoji stays."""
    return ENDS.sub("", name)


def row_key(row: dict) -> tuple[str, ...]:
    """Equal for rows that say the same: text and columns without regard to case, the text as `normalise` has it."""
    columns = row.get("columns") or {}
    return (normalise(row["text"]), *(value.strip().lower() for value in columns.values()))
