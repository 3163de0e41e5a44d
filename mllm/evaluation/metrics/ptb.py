"""Penn Treebank words of captions, as the COCO caption evaluation takes them, without its Java tokenizer.

The official scorer runs Stanford's PTBTokenizer (CoreNLP 3.4.1, lower-casing) and drops punctuation. These rules give
the same words on English captions; `docs/explain/metric_quirks.md` says on which texts that was measured.
"""

import re

# The official list holds bracket names in capitals, but the tokens are in lower case: brackets stay, as words.
DROPPED = {"''", "'", "`", ".", "?", "!", ",", ":", "-", "--", ";", '"'}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_SPELLINGS = {
    "’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "–": " -- ", "—": " -- ", "½": "1/2", "¼": "1/4", "¾": "3/4",
    "£": "#", "€": "$", "\u00a0": " ", "&amp;": "&", "&quot;": '"', "&lt;": "<", "&gt;": ">",
}  # fmt: skip

_ABBREVIATIONS = (
    r"mr|mrs|ms|dr|prof|messrs|rev|hon|pres|st|ave|blvd|rd|sq|bldg|jr|sr|inc|co|corp|ltd|bros|assn|dept|univ|est|vs|"
    r"etc|mt|ft|tel|gen|sen|rep|gov|capt|lt|sgt|col|maj|adm|cmdr|supt|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|"
    r"mon|tue|tues|wed|thu|thurs|fri|ph\.d|(?:[a-z]\.)*[a-z]"
)
_BEFORE_NUMBERS = "no|nos|fig|pp|art"
_WORD = r"[^\W_]+(?:_[^\W_]+)*"

_TOKEN = re.compile(
    rf"""
      https?://\S+ | www\.[\w./-]*\w | [\w.+-]+@[\w-]+(?:\.[\w-]+)+ | [\w-]+(?:\.[\w-]+)*\.(?:com|org|net|edu|gov)\b
    | <[a-z/][^<>\s]*>                                      # mark-up
    | @{_WORD} | \#[^\W\d_]{_WORD}                          # @name, #tag; #1 is two words
    | (?-i:[A-Z]+&[A-Z]+)                                   # AT&T
    | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:lem|gim)(?=me\b) | 't(?=(?:is|was)\b)
    | [^\W_]+?(?=n't\b) | n't\b                             # do n't
    | 'n' | '(?:s|m|d|re|ve|ll)\b | '(?:em|cause|n)(?![^\W\d_]) | '\d\ds\b
    | [odl]'[^\W\d_]{{2,}} | ma'am\b | y'(?=all\b)
    | (?:{_ABBREVIATIONS})\.(?![^\W_]) | (?:{_BEFORE_NUMBERS})\.(?=\s*\d)
    | [+-]?(?:\d+(?:[.,:/]\d+)+ | \.\d+(?:\.\d+)*)(?:-{_WORD} | (?=[^\W\d_]) | (?![^\W_])) | (?<![\w-])-\d+\b
    | {_WORD}(?:(?:[-/]{_WORD})+ | (?:[.!?](?=[^\W\d_]){_WORD})*)(?:\+\+ | \#(?!\w))?   # t-shirt, and/or, end.Next
    | \.\.\.+ | -- | [!?]+ | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def ptb_words(caption: str) -> list[str]:
    """The words of a caption in lower case, without punctuation."""
    text = caption
    for spelling, plain in _SPELLINGS.items():
        text = text.replace(spelling, plain)
    tokens = (BRACKETS.get(token, token.lower()) for token in _TOKEN.findall(text))
    return [token for token in tokens if token not in DROPPED and token.strip(".")]
