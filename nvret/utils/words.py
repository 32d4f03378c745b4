"""The words of a text in any script.

A word is a run of letters, digits and the marks on them: without its vowel signs a word of Hindi
or Thai is another word. Scripts that put no spaces between words (Chinese, Japanese, Thai, Lao,
Khmer, Burmese) give overlapping pieces of some characters instead, as Lucene's CJK analyser does.
"""

from __future__ import annotations

import re
import unicodedata

import regex

_LETTERS = r"\p{L}\p{N}_"
_SCRIPTS = ("Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr")
_UNSPACED = "[{}]&&[{}]".format(
    "".join(rf"\p{{Script_Extensions={script}}}" for script in _SCRIPTS), _LETTERS
)
# Latin letters, punctuation and currencies: no marks, and no script without spaces
_LATIN = re.compile(r"[\u0000-\u024f\u1e00-\u1eff\u2000-\u206f\u20a0-\u20bf]*")
_RUN = regex.compile(
    rf"(?P<unspaced>[{_UNSPACED}](?:[{_UNSPACED}]|\p{{M}})*)"
    rf"|[{_LETTERS}](?:[[{_LETTERS}]--[{_UNSPACED}]]|\p{{M}})*",
    regex.VERSION1,
)


def words(text: str, *, piece: int) -> list[str]:
    """Words in their order and case.

    Args:
        text: in any Unicode form; accents are composed.
        piece: characters (with their marks) of a piece, in scripts without spaces.

    >>> words("Emma (1815), हिन्दी", piece=2)
    ['Emma', '1815', 'हिन्दी']
    >>> words("東京タワー", piece=2)
    ['東京', '京タ', 'タワ', 'ワー']
    """
    text = unicodedata.normalize("NFC", text)
    if _LATIN.fullmatch(text):
        return re.findall(r"\w+", text)  # the same, several times as fast
    pieces: list[str] = []
    for run in _RUN.finditer(text):
        if run["unspaced"] is None:
            pieces.append(run[0])
            continue
        characters = regex.findall(r"\X", run[0])
        last = max(len(characters) - piece, 0)
        pieces += ["".join(characters[at : at + piece]) for at in range(last + 1)]
    return pieces
