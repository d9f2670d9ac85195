r"""Reads the answer that a statement makes: `the largest $n$ is 34` says 34.

What can be an answer is a *quantity*: a formula between dollars, or all that
stands together in plain text (`2^10`, `(1, 5)`, `x = 3 + 4 = 7`). A quantity is
read whole or not at all, never the digits inside one. The rule, for a sentence:

1. Quantities with nothing but a comma, "and" or "or" between them are one list.
2. The answer is the quantity at the beginning; else the only one; else the one
   after the last "is", "are" or "equals". What answer tags hold must name no
   other quantity.
3. There is no answer where the clause before it has a negation or a comparison
   ("not 204", "at least 5"), where "or" stands beside it ("5 or more"), where
   the sentence or the next one takes it back ("204 is wrong"; "5. No, 7."), and
   where the sentence is a question.

The functions `..._at_end` read the last quantity of a text by the same rule. A
word of several letters that touches a number (`AZYUK2A`) is part of it. Texts
longer than `MAX_CHARACTERS` make no statement; at the end so many are read.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from grpo_jax.rewards import equality, latex

# Longer statements are no answer.
MAX_CHARACTERS = 2000

_EMPHASIS = re.compile(
  r"(?<![\w*)}\]])(\*{1,3}|__|`+)(?=[^\s*])([^*`\n]+?)(?<=\S)\1(?![\w*({\[])"
)
_NEGATIVE = re.compile(
  r"(?<!\w)(?:negative|minus)\s+(?=[$\\]*[0-9.])|[\u8d1f\u8ca0]\s*(?=[0-9.])",
  re.IGNORECASE,
)
_TOKEN = re.compile(
  rf"(?P<formula>{latex.FORMULA.pattern})"
  r"|(?P<money>(?:US|(?:USD|EUR|Rs\.?)\s)?[$\u20ac\u00a3\u00a5]\s?(?=-?[0-9.]))"
  r"|(?P<number>(?:[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?|\.[0-9]+)"
  r"(?:[eE][-+]?[0-9]{1,3}(?![A-Za-z0-9]))?)"
  r"|(?P<command>\\(?:text[a-z]*|mbox|math[a-z]+)\s*\{[^{}]*\}|\\[A-Za-z]+|\\[^A-Za-z\s])"
  r"|(?P<scale>(?:hundred|thousand|[mb]illion|trillion|dozen|percent|per cent"
  r"|half|halves|thirds?|quarters?|fifths?|sixths?|eighths?|tenths?)\b"
  r"|[\u767e\u5343\u4e07\u842c\u4ebf\u5104])"
  r"|(?P<function>(?:sqrt|sin|cos|tan|log|ln|pi)(?![A-Za-z]))"
  r"|(?P<sign>[-+*/^_=<>(){}\[\]|!%,:;&~\u00d7\u00f7\u00b7\u221a\u2212\u2264"
  r"\u2265\u2260\u2248\u00b1\u221e\u222a\u00b0\u00b2\u00b3\u00b9\u2070-\u2089"
  r"\u00bc-\u00be])"
  r"|(?P<word>[A-Za-z]+(?:['\u2019][A-Za-z]+)?|[^\W\d_])",
  re.DOTALL,
)
_VARIABLE = re.compile(r"[$\\()\s]*[A-Za-z](?:_\{?\w\}?)?[$\\()\s]*")
_SENTENCE = re.compile(
  r"(?<=[.!?])\s+(?=[^a-z0-9\s])|(?<=[\u3002\uff01\uff1f])|\n+"
)
_CLAUSE = re.compile(
  r"[,;:\uff0c\uff1b\uff1a\u2014]"
  r"|\b(?:so|thus|hence|therefore|but|because|since|and)\b|[\u6240\u56e0\u4f46]",
  re.IGNORECASE,
)
_NOT = re.compile(
  r"\b(?:not|no|never|neither|nor|cannot|wrong|incorrect|rather than|instead of"
  r"|except|excluding|unless|(?:more|less|fewer|greater|larger|smaller|other)"
  r" than|at least|at most|between|exceeds?)\b|n['\u2019]t\b"
  r"|\b(?:or|over|under|below|above)\W*$|[\u4e0d\u975e\u672a\u6ca1\u6216]|\u81f3\u5c11|\u81f3\u591a"
  r"|\u8d85\u8fc7",
  re.IGNORECASE,
)
_AGAINST = re.compile(
  r"\b(?:or|not|wrong|incorrect|impossible|false|cannot)\b|n['\u2019]t\b"
  r"|\?|[\uff1f\u9519\u6216\u4e0d\u975e]",
  re.IGNORECASE,
)
_ALL_BUT = re.compile(
  r"\b(?:(?:any|every)thing|all|any) but\W*$", re.IGNORECASE
)
# What takes back the answer in front of it.
_NO = re.compile(
  r"[^\w$\\]*(?:no(?!\s+(?:other|more|need|one|further))|nope|not|wait|actually"
  r"|sorry|oops|hmm|correction|or|rather|maybe|perhaps|\u4e0d|\u9519|\u7b49)"
  r"(?![A-Za-z])",
  re.IGNORECASE,
)
# Calculations of GSM8K's solutions, and emphasis of HTML.
_CALCULATION = re.compile(r"<<[^<>]*>>|</?(?:b|i|u|em|strong)>")
_IS = re.compile(
  r"(?<![A-Za-z])(?:is|are|was|were|be|equals?|equal to|gives|yields|makes|ist"
  r"|sind|est|sont|es|son)(?![A-Za-z'\u2019])\s*[:=]?\s*"
  r"|[\u662f\u4e3a\u70ba\u5171\u306f]\s*",
  re.IGNORECASE,
)
_JOINT = re.compile(
  r"\s*[,;\u3001]?\s*|\s*(?:[A-Za-z]+\s*){0,2}[,;\u3001]?\s*"
  r"(?:(?<![A-Za-z])(?:and|or|und|oder|et|ou|y|o)(?![A-Za-z])|&"
  r"|\u548c|\u6216\u8005?|\u4e0e|\u53ca)\s*",
  re.IGNORECASE,
)
_LETTER = re.compile(r"\(?(?<![A-Za-z])([A-Z])(?![A-Za-z'\u2019])\)?")
_ARTICLE = re.compile(r"(?:A|I)\s+[a-z]")
_OPTION = re.compile(
  r"(?:(?:the|option|choice|letter|answer)\s+)*\(?(?=[A-Z](?![A-Za-z]))",
  re.IGNORECASE,
)
_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")
_AROUND = tuple(",:;!&|~")
_MARKS = " \t\r\n*_\u3000"


class Quantity(NamedTuple):
  """What can be an answer, and where it stands."""

  text: str
  start: int
  end: int


def number(text: str, *, alone: bool = False) -> str:
  """The answer of a statement where a number is asked for.

  All of the statement where the rule finds none: it has words in it, so it is
  equal to no number.

  Args:
    text: the statement; of several sentences the first one counts.
    alone: whether the others must not name a quantity.
  """
  if len(text) > MAX_CHARACTERS or latex.PLAIN.fullmatch(text.strip()):
    return text
  first, later = _first(text)
  found = _numeric(first)
  if not found or _NO.match(later):
    return text
  if alone and _numeric(later):
    return text
  groups = _groups(first, found)
  if len(groups) > 1 and (alone or _words(first[: found[0].start])):
    begin = _last_is(first)
    if not begin or any(_IS.fullmatch(first, q.end, begin) for q in groups):
      return text
    groups = [q for q in groups if q.start >= begin]
    if len(groups) != 1:
      return text
  return text if _hedged(first, groups[0]) else groups[0].text


def formula(text: str, reference: str, *, alone: bool = False) -> str:
  """The answer of a statement where another one is asked for than a number.

  All of it where it is the reference, which may be text; else the formula at
  its beginning; else what stands after the last "is".

  Args:
    text: the statement; of several sentences the first one counts.
    reference: the right answer.
    alone: whether all of it is the statement.
  """
  if len(text) > MAX_CHARACTERS:
    return text
  first, later = _first(text)
  if alone:
    first, later = _plain(text).strip(_MARKS), ""
  if _NO.match(later):
    return text
  if equality.decide(reference, first) is True:
    return first
  tail = first[_last_is(first) :]
  for part in (first, tail):
    found = quantities(part)
    if found and not _words(part[: found[0].start]):
      if "$" in part or "\\(" in part or part is not first:
        group = _groups(part, found)[0]
        return text if _hedged(part, group) else group.text
  return tail


def choice(text: str) -> str | None:
  """The letter of a statement where an option is asked for.

  All of the statement, or None, where the rule finds no answer.
  """
  if len(text) > MAX_CHARACTERS:
    return None
  refused = None if equality.is_choice(text) else text
  first, later = _first(text)
  if _NO.match(later):
    return refused
  if equality.is_choice(first):
    return first
  for start in dict.fromkeys((0, _last_is(first))):
    option = _OPTION.match(first, start)
    if option:
      after = first[option.end() + 1 :].lstrip(")")
      hedged = _against(after) or _beside(after) or _negated(first[:start])
      return refused if hedged else first[option.end()]
  return refused


def number_at_end(text: str) -> str | None:
  """The last quantity of a text; None where the rule finds no answer."""
  return _at_end(text, _last_numeric)


def formula_at_end(text: str, reference: str) -> str | None:
  """The last formula of a text, else the answer of its last line."""
  if latex.FORMULA.search(text[-MAX_CHARACTERS:]):
    return _at_end(text, _formulas)
  line = text.strip().rpartition("\n")[2]
  return formula(line, reference, alone=True) or None


def choice_at_end(text: str) -> str | None:
  """The last option's letter; None where the rule finds no answer."""
  return _at_end(text, _letters)


def quantities(text: str) -> list[Quantity]:
  """What can be an answer in a sentence, in order.

  Tokens that stand together are one: numbers, formulas, signs, single letters
  and functions, with nothing but blanks between them.
  """
  runs: list[list[re.Match[str]]] = []
  previous = None
  for token in _TOKEN.finditer(text):
    beside = (
      previous is not None and not text[previous.end() : token.start()].strip()
    )
    if _belongs(text, token, previous if beside else None):
      if beside and runs and runs[-1][-1] is previous:
        runs[-1].append(token)
      else:
        runs.append([token])
    previous = token
  return [q for run in runs if (q := _trimmed(text, run))]


def _belongs(
  text: str, token: re.Match[str], previous: re.Match[str] | None
) -> bool:
  """Whether a token, behind another one, is part of a quantity."""
  before = previous.lastgroup if previous is not None else ""
  if token.lastgroup == "scale":
    return before in ("number", "formula", "command", "sign")
  if token.lastgroup != "word":
    return True
  if not token[0].isascii():
    return False
  if len(token[0]) == 1 and token[0] not in "aAI":
    return True
  if before == "number" and not text[token.start() - 1].isspace():
    return True
  return text[token.end() : token.end() + 1].isdigit()


def _trimmed(text: str, run: list[re.Match[str]]) -> Quantity | None:
  """The quantity of a run, without marks around it; None for marks alone."""
  first, last = 0, len(run)
  open_ = sum((t[0] in _OPENING) - (t[0] in _CLOSING) for t in run)
  while last > first:
    token, after = run[last - 1], text[run[last - 1].end() :][:1]
    if token[0] in _OPENING or (token[0] in _CLOSING and open_ < 0):
      open_ -= 1 if token[0] in _OPENING else -1
    # Also the hyphen of `5-year`.
    elif token[0] not in _AROUND and not (token[0] == "-" and after.isalpha()):
      break
    last -= 1
  while first < last:
    token, after = run[first], text[run[first].end() :][:1]
    if token[0] in _CLOSING or (token[0] in _OPENING and open_ > 0):
      open_ += 1 if token[0] in _CLOSING else -1
    elif token[0] not in (*_AROUND, "=", "%") and not (
      token[0] in ("-", "*") and after == " " and token.start()
    ):
      break
    first += 1
  if first < last and run[first][0] == "/":  # As of `km/h`.
    return None
  kinds = {token.lastgroup for token in run[first:last]}
  if not kinds & {"number", "formula", "command", "function"}:
    if not kinds >= {"word", "sign"}:
      return None
  start, end = run[first].start(), run[last - 1].end()
  return Quantity(text[start:end], start, end)


def on_one_line(text: str) -> str:
  """The text with each formula of several lines on one."""
  return latex.FORMULA.sub(lambda match: match[0].replace("\n", " "), text)


def _plain(text: str) -> str:
  text = _CALCULATION.sub("", text.translate(latex.WIDE))
  text = on_one_line(text)
  text = _EMPHASIS.sub(r"\2", text)
  return _NEGATIVE.sub("-", text)


def _first(text: str) -> tuple[str, str]:
  """The first sentence of a statement, and what follows it."""
  first, *later = _SENTENCE.split(_plain(text).strip(_MARKS), maxsplit=1)
  return first.strip(_MARKS), "".join(later)


def _at_end(text: str, find: Callable[[str], list[Quantity]]) -> str | None:
  sentences = _SENTENCE.split(_plain(text[-MAX_CHARACTERS:]))
  for i in range(len(sentences) - 1, -1, -1):
    found = find(sentences[i])
    if found:
      group = _groups(sentences[i], found)[-1]
      taken_back = any(map(_NO.match, sentences[i + 1 :]))
      return None if taken_back or _hedged(sentences[i], group) else group.text
  return None


def _numeric(sentence: str) -> list[Quantity]:
  """Quantities but for names of variables, which are no number's answer."""
  return [q for q in quantities(sentence) if not _VARIABLE.fullmatch(q.text)]


def _last_numeric(sentence: str) -> list[Quantity]:
  """The same, an equation at the end without what stands in front of it.

  In `20% of 50 = 10` and `on day 3, 5 + 2 = 7` that is no side of it; nor is
  the dash in front of a line.
  """
  dash = re.match(r"\s*[-*]\s+", sentence)
  blank = " " * dash.end() if dash else ""
  found = _numeric(blank + sentence[len(blank) :])
  if not found:
    return found
  last = found[-1]
  head, comma, tail = last.text.rpartition(", ")
  if comma and "=" in tail and "=" not in head:
    return [Quantity(tail, last.end - len(tail), last.end)]
  before = sentence[: last.start].rstrip()
  left, equals, right = last.text.partition("=")
  if equals and right.strip() and left.strip() and before[-1:].isalpha():
    return [Quantity(right, last.end - len(right), last.end)]
  return found


def _formulas(sentence: str) -> list[Quantity]:
  return [q for q in quantities(sentence) if latex.FORMULA.search(q.text)]


def _letters(sentence: str) -> list[Quantity]:
  """Letters of options, with their parentheses."""
  return [
    Quantity(m[1], m.start(), m.end())
    for m in _LETTER.finditer(sentence)
    if not _ARTICLE.match(sentence, m.start())
  ]


def _groups(text: str, found: list[Quantity]) -> list[Quantity]:
  """Lists of quantities with nothing but a comma, "and" or "or" between."""
  groups: list[Quantity] = []
  for quantity in found:
    if groups and _JOINT.fullmatch(text, groups[-1].end, quantity.start):
      start = groups.pop().start
      quantity = Quantity(text[start : quantity.end], start, quantity.end)
    groups.append(quantity)
  return groups


def _last_is(text: str) -> int:
  """Where the last "is" ends; 0 where there is none."""
  return max((m.end() for m in _IS.finditer(text)), default=0)


def _words(text: str) -> bool:
  return bool(re.search(r"[A-Za-z]{2}|[^\W\d_\x00-\x7f]", text))


def _hedged(sentence: str, answer: Quantity) -> bool:
  """Whether what stands beside an answer leaves none, see the rule."""
  return _negated(sentence[: answer.start]) or _against(sentence[answer.end :])


def _negated(before: str) -> bool:
  clause = _CLAUSE.split(before)[-1]
  return bool(_NOT.search(clause) or _ALL_BUT.search(before))


def _against(after: str) -> bool:
  # The end of a formula that the answer stands in is no clause.
  first, *others = _CLAUSE.split(re.sub(r"^[^\w\s]*\$", "", after))
  return bool(_AGAINST.search(first)) or any(map(_NO.match, others))


def _beside(after: str) -> bool:
  """Whether another option is named right behind one."""
  return bool(
    re.match(r"\s*(?:[,/&]|and\b|or\b)\s*\(?[A-Z](?![A-Za-z])", after)
  )
