"""Rewriting a question for a search, without a model: what is only polite goes, several questions are parted.

Rule. When in doubt the words stay: nothing but known phrases at the ends of a question is ever taken away, and a
question that would be left empty is left as it was.
"""

from __future__ import annotations

import re

MOST_QUESTIONS = 5
LEAST_CHARACTERS = 2
MOST_CHARACTERS = 2000
"""A longer question is a text: it is searched as it is."""

_PARTING = re.compile(r"(?<=[?!\uff1f\uff01])\s*|(?<=[.\u3002])\s+|\n+|\s*;\s+")
_BEGINNINGS = re.compile(
    r"""^(?:
      (?:hi|hello|hey|dear\s\w+|good\s(?:morning|day|evening))(?:\sthere)?\b[\s,!.]*
    | (?:please|pls|kindly|thanks|thank\syou)\b[\s,!.]*
    | (?:also|and|so|well|ok(?:ay)?)\b\s*,\s*
    | (?:can|could|would|will|may)\s(?:you|i|we|someone|anybody)\s(?:please\s)?
        (?:tell|show|explain(?:\sto)?|give|help|find|ask|know)(?:\s(?:me|us|out))?\b\s*(?:about\b\s*)?
    | (?:i|we)(?:\sam|'m|\sare|'re)?\s(?:would\slike|want|need|wish|wanted|trying|looking)
        \s(?:to\s(?:know|find|understand|ask)|for)(?:\sout)?\b\s*(?:about\b\s*)?
    | (?:i|we)\s(?:was|am|were|are)\swondering\b\s*(?:if\b|about\b)?\s*
    | (?:do|does)\s(?:you|anyone|anybody|someone)\s(?:happen\sto\s)?know\b\s*(?:if\b|whether\b|about\b)?\s*
    | (?:tell|show|explain|give|help|find)(?:\sto)?\s(?:me|us)\b\s*(?:about\b\s*)?
    | (?:what|who|where)(?:\s(?:is|are|was|were)|'s)\s(?:the\s|an?\s)?
    | (?:how)\s(?:do|can|should|would|could|to)\s?(?:i\s|we\s|you\s|one\s)?
    | 안녕하세요[\s,!.]* | 혹시\s+ | 죄송(?:하지만|한데|합니다만)[\s,]* | 저기요?[\s,]+ | 실례지만[\s,]*
    | (?:좀|그럼|그리고)\s+ | 궁금한\s?(?:게|것이|점이)\s?있(?:는데요?|습니다|어요)[\s,.]*
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_ENDINGS = re.compile(
    r"""(?:
      [\s,]*\b(?:please|pls|thanks(?:\sa\slot|\sin\sadvance)?|thank\syou(?:\svery\smuch)?)
    | \s*(?:좀\s*)?(?:에\s?(?:대해|대하여|관해)(?:서)?\s*)?(?:자세히\s*)?
        (?:알려|가르쳐|설명해|말해|말씀해|보여|찾아)\s?(?:줘요?|주세요|주십시오|주실\s?수\s?있(?:나요|을까요|습니까)|줄래요?)
    | \s*(?:이|가|은|는|을|를)?\s*(?:궁금(?:해요?|합니다|하네요|한데요))
    | \s*(?:부탁\s?(?:드립니다|드려요|해요|합니다)) | \s*감사(?:합니다|해요|드립니다)
    | \s*(?:이|가)?\s*(?:뭐|무엇|뭔)(?:예요|에요|인가요|입니까|죠|지|야|인지)?
    | \s*알\s?수\s?있(?:을까요|나요|습니까)
    )[\s.!?~\uff1f\uff01\u3002]*$""",
    re.IGNORECASE | re.VERBOSE,
)
_SIGNS = " \t\r\n?!.,~\uff1f\uff01\u3002"


def rewrite(query: str) -> list[str]:
    """Return what to search for instead of a question: one or several queries, none of them empty or alike."""
    if len(query) > MOST_CHARACTERS:
        return [query]
    parts = [_bare(part) for part in _PARTING.split(query)]
    kept = list(dict.fromkeys(part for part in parts if len(part) >= LEAST_CHARACTERS))
    if len(kept) > MOST_QUESTIONS:
        return [_bare(query)]
    return kept or [query]


def _bare(text: str) -> str:
    """Return a question without the phrases around it; as it was, where nothing else is in it."""
    text = " ".join(text.split()).strip(_SIGNS)
    while True:
        shorter = _ENDINGS.sub("", _BEGINNINGS.sub("", text, count=1), count=1).strip(_SIGNS)
        if shorter == text:
            return text
        text = shorter
