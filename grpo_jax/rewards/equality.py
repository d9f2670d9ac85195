r"""Whether answers are equal: numbers, expressions, sets, text; LaTeX or plain.

`decide` compares strings and rational numbers exactly, in time linear in them;
`equal` compares everything else by math-verify (`expressions`), which may take
forever and so belongs into a process that can be killed (`workers`). This
module does not import JAX.

Stricter than math-verify, because a policy would find out:

- Where the reference is a rational number, an answer must be written as one.
  Otherwise a question that is a formula could be its own answer: `17 \cdot 23`
  for 391.
- Any other formula of the question is no answer either, unless the reference is
  written like it.
- What an answer says to be equal must be so: in `x = 6 = 5` no side counts.
- A word is compared as a word, not as a product of its letters.
- Tuples and intervals must have equal brackets, numbers equal bases; a finite
  set is no interval.

Looser than a reader: units are ignored (3 m is 3 cm), 50% is 50 and also 1/2,
and an expression equals each of its forms, factored or expanded.
"""

import re
from typing import NamedTuple

from grpo_jax.rewards import expressions, latex, lists, numbers

# Longer answers are wrong: none that we grade comes near.
MAX_CHARACTERS = 1000
_MAX_PARTS = 64

_BASE = re.compile(r"(-?[0-9A-Z]+)_\{?([0-9]{1,2})\}?")
# What follows the letter of an option must not name another one.
_CHOICE = re.compile(
  r"\(?([A-Z])\)?(?:[.:)] (?!,)(?:(?<![A-Za-z])[A-Z](?=[A-Za-z])|[^A-Z]"
  r"|(?<=[A-Za-z])[A-Z])*)?"
)
_WORDS = re.compile(r"[A-Za-z]{4,}(?:[ -][A-Za-z]+)*")
_CLOCK = re.compile(r"[0-9]+(?: ?: ?[0-9]+)+")
_DOTS = re.compile(r"\s*\\[lc]?dots$")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|ne)(?![A-Za-z])")
_GREEK = (
  "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|kappa|lambda|mu|nu"
  "|xi|rho|sigma|tau|phi|varphi|chi|psi|omega|ell|Delta|Omega|Phi|Sigma"
)
_NAME = re.compile(
  rf"(?:[A-Za-z]|[A-Z]{{2,3}}|\\(?:{_GREEK})|(?:m ?)?\\angle ?[A-Z]{{1,3}}"
  r"|[A-Za-z]{4,}|\\text\{[A-Za-z ]+\})"
  r" ?'*(?:_(?:\{\w+\}|\w))?'*(?:\^\{-1\})?"
  r"(?:\([A-Za-z0-9]+(?:,[A-Za-z0-9]+)*\))?"
)


class _Pair(NamedTuple):
  """What is to be compared of two answers.

  Attributes:
    reference: without the name of what it is.
    answer: likewise.
    rounded: what the answer says it is about; "" if nothing.
    claims: numbers that the answer says it is equal to or about.
  """

  reference: str
  answer: str
  rounded: str
  claims: list[numbers.Number]


def decide(reference: str, answer: str) -> bool | None:
  """Whether the answers are equal, or None where `equal` has to tell."""
  if len(answer) > MAX_CHARACTERS:
    return False
  reference, answer = latex.canonical(reference), latex.canonical(answer)
  if not answer or not reference:
    return False
  if reference == answer:
    return True
  expected, given = numbers.read(reference), numbers.read(answer)
  if expected is not None and given is not None:
    return numbers.same(expected, given)
  return _decide(_aligned(reference, answer))


def equal(reference: str, answer: str, question: str = "") -> bool:
  """Whether the answers are equal, however long it takes to find out.

  Args:
    reference: the right answer.
    answer: the one that is given.
    question: whose formulas are no answers, see `expressions.copied`.
  """
  decided = decide(reference, answer)
  if decided is not None:
    return decided
  reference, answer = latex.canonical(reference), latex.canonical(answer)
  return _equal(reference, answer) and not expressions.copied(
    reference, latex.split(answer, "=")[-1], question
  )


def copied(reference: str, answer: str, question: str) -> bool:
  """Whether an answer equal to a number is the question's, in another form.

  Such as 3/20 where the question asks for it as a decimal, or an equation. What
  `equal` has found to be equal is known to be no formula of the question.
  """
  expected, given = latex.canonical(reference), latex.canonical(answer)
  forms = numbers.read(expected), numbers.read(given)
  if not question or expected == given or forms[0] is None:
    return False
  same_form = forms[1] is not None and (
    (forms[0].decimals is None, forms[0].percent)
    == (forms[1].decimals is None, forms[1].percent)
  )
  return not same_form and latex.written(given, question)


def is_number(text: str) -> bool:
  """Whether the answer is a rational number, written as one."""
  return _number(latex.canonical(text)) is not None


def is_choice(text: str) -> bool:
  """Whether the answer is the letter of an option, such as (C)."""
  return bool(_CHOICE.fullmatch(latex.TEXT.sub(r"\1", latex.canonical(text))))


def is_words(text: str) -> bool:
  """Whether the answer is compared as text, as `even` is."""
  text = latex.canonical(text)
  plain = latex.TEXT.sub(r"\1", text)
  return not is_number(text) and (
    plain != text or bool(_WORDS.fullmatch(plain) or _CLOCK.fullmatch(plain))
  )


def is_list(text: str) -> bool:
  """Whether the answer has several parts, as `1, 2` has."""
  structure = lists.structure(latex.canonical(text))
  return structure is not None and structure[0] == "set"


def warm_up() -> None:
  """Fills caches that all workers then share."""
  expressions.warm_up()


def _number(text: str) -> numbers.Number | None:
  """The number that a canonical answer is, with or without its name."""
  sides = _sides(latex.split(text, "\\approx")[0])
  if len(sides) > 1 and not _NAME.fullmatch(sides[0]):
    return None
  return numbers.read(sides[-1])


def _aligned(reference: str, answer: str) -> _Pair | None:
  """What is to be compared; None where the answer contradicts itself.

  `x = 5` answers a reference of 5, and 5 one of `x = 5`. Where both are
  equations, they stay what they are unless both name the same thing.
  """
  reference = latex.split(reference, "\\approx")[0]
  answer, *rounded = latex.split(answer, "\\approx")
  sides, given = _sides(reference), _sides(answer)
  read = [numbers.read(_DOTS.sub("", text)) for text in rounded]
  claims = [n for n in (*map(numbers.read, given), *read) if n is not None]
  if None in read:
    return None
  if any(not numbers.near(claims[-1], claim) for claim in claims):
    return None
  named = len(sides) > 1 and _is_name(sides[0])
  if named and (len(given) == 1 or sides[0] == given[0]):
    reference, answer = sides[-1], given[-1]
  elif len(sides) == 1:
    answer = given[-1]
  else:  # Equations, whose sides claim nothing.
    claims = []
  return _Pair(reference, answer, "".join(rounded[-1:]), claims)


def _sides(text: str) -> list[str]:
  """The sides of an equation; a list of equations is none."""
  if len(lists.elements(text)) > 1:
    return [text]
  return latex.split(text, "=")


def _is_name(text: str) -> bool:
  brackets, inner = lists.inside(text)
  names = lists.elements(inner) if brackets == "()" else [text]
  return all(_NAME.fullmatch(name) for name in names)


def _decide(pair: _Pair | None) -> bool | None:
  if pair is None:
    return False
  expected = numbers.read(pair.reference)
  if expected is None:
    decided = _simply_equal(pair.reference, pair.answer)
    # What is said to be equal to it has to be computed first.
    return None if decided and pair.claims else decided
  return any(
    given is not None and numbers.same(expected, given)
    for given in map(numbers.read, (pair.answer, pair.rounded))
  )


def _equal(reference: str, answer: str) -> bool:
  pair = _aligned(lists.bare(reference), lists.bare(answer))
  if pair is None:
    return False
  decided = _decide(pair)
  if decided is not None:
    return decided
  if pair.claims and not _claimed(pair):
    return False
  reference, answer = pair.reference, pair.answer
  expected, given = lists.structure(reference), lists.structure(answer)
  if expected is None and given is None:
    decided = _simply_equal(reference, answer)
    return expressions.equal(reference, answer) if decided is None else decided
  if expected is not None and given is not None:
    return _same_parts(expected, given)
  kind, other = (
    (given or expected or ("",))[0],
    answer if expected else reference,
  )
  # An interval may also be written as an inequality.
  if kind not in lists.INTERVALS or not _RELATION.search(other):
    return False
  return expressions.equal(reference, answer)


def _claimed(pair: _Pair) -> bool:
  """Whether the answer is the number that it says it is equal to."""
  value = expressions.value(pair.answer)
  return value is not None and all(
    numbers.near(claim, numbers.of_float(value)) for claim in pair.claims
  )


def _same_parts(
  expected: tuple[str, list[str]], given: tuple[str, list[str]]
) -> bool:
  (kind, parts), (other, others) = expected, given
  if len(parts) != len(others) or len(parts) > _MAX_PARTS:
    return False
  if kind != other:
    # x < 1 or x > 2 is a union of intervals.
    relations = parts if kind == "set" else others
    if {kind, other} != {"set", "union"} or not all(
      map(_RELATION.search, relations)
    ):
      return False
  if kind not in ("set", "union") or _named_in_order(parts, others):
    return all(map(_equal, parts, others))
  left = list(others)
  for part in parts:
    match = next((o for o in left if _equal(part, o)), None)
    if match is None:
      return False
    left.remove(match)
  return True


def _named_in_order(parts: list[str], others: list[str]) -> bool:
  """Whether one list names its values, such as x=1, y=2, and one does not."""
  names = [
    {sides[0] for part in each if len(sides := latex.split(part, "=")) > 1}
    for each in (parts, others)
  ]
  return bool(names[0]) != bool(names[1]) and max(map(len, names)) > 1


def _simply_equal(reference: str, answer: str) -> bool | None:
  """Equality of texts; None for everything else that is no number."""
  if reference == answer:
    return True
  plain, other = latex.TEXT.sub(r"\1", reference), latex.TEXT.sub(r"\1", answer)
  base = _BASE.fullmatch(plain)
  if base:
    # Without a base the answer is in the one that was asked for.
    given = _BASE.fullmatch(other)
    return base.groups() == given.groups() if given else base[1] == other
  choice = _CHOICE.fullmatch(plain)
  if choice:
    given = _CHOICE.fullmatch(other)
    return given is not None and given[1] == choice[1]
  if _CLOCK.fullmatch(plain):
    return plain.replace(" ", "") == other.replace(" ", "")
  if plain != reference or _WORDS.fullmatch(plain):
    if "," in plain:
      return None
    return plain.casefold().split() == other.casefold().split()
  return None
