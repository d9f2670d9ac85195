"""The accuracy reward: rules that read a final answer and decide equality.

A verifier takes one problem and one completion and says what became of it. Its
own work is linear in the text; where equality takes mathematics, it is decided
by `equality.equal` in a process that is killed at a deadline. Text of a model
is matched, parsed and compared, never evaluated as code.

What a rule cannot be talked into: several answers, an answer before or inside
the thinking, tags inside the answer and text after it all count as wrong. So
does an answer that is negated or taken back, by the rule of `statement`. A
completion that hangs or kills its grader has earned 0, as a wrong one has: no
score would take it out of its group, and so spare it what wrong ones get.
"""

import collections
import math as math_lib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from grpo_jax import errors, types
from grpo_jax.rewards import code, equality, final_answer, format
from grpo_jax.rewards import countdown as countdown_lib
from grpo_jax.rewards.isolation import sandbox, workers
from grpo_jax.rewards.terms import Result

OUTCOMES = (
  "correct",
  "wrong",
  "no_answer",
  "timed_out",
  "crashed",
  "ungradable",
)


class Grade(NamedTuple):
  """What became of one completion.

  Attributes:
    outcome: one of `OUTCOMES`. "ungradable" is a fault of the problem, whose
      reference no answer can be compared with; all others are the completion's.
    score: 1.0 where correct, None where ungradable, else 0.0; a verifier that
      gives partial credit calls everything below 1.0 wrong.
    extracted: the final answer, as it was written, where there is one.
  """

  outcome: str
  score: float | None
  extracted: str | None = None


class Pending(NamedTuple):
  """A grade that is left to a function of texts in a worker process."""

  arguments: tuple[str, ...]
  extracted: str
  function: str = "grpo_jax.rewards.equality:equal"


class Program(NamedTuple):
  """A grade that is left to the problem's unit tests, see `rewards.code`."""

  problem: types.Problem
  completion: str


# What outcomes of unit tests say of the program. A problem without tests, and a
# machine that is too short of something to run them, say nothing.
_TESTED = {
  "passed": "correct",
  "failed": "wrong",
  "timed_out": "timed_out",
  "no_program": "no_answer",
}

Verifier = Callable[
  [types.Problem, str], Grade | Pending | Program | float | None
]

_PAIR_SUM = re.compile(
  r"([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9})=([0-9]{1,9})\?"
)
_ADDITION = re.compile(r"([0-9]{1,9})\+([0-9]{1,9})=\?")
# Characters of an answer to a task of reasoning-gym.
_MAX_GYM_ANSWER = 50_000


def accuracy(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  deadline: float | int = 3.0,
  num_workers: int = 0,
) -> Result:
  """1.0 where the final answer is right, 0.0 where it is not.

  The problem's source chooses the rule, see `rule_for`. Programs are right
  where they pass all unit tests, under the limits that `code.unit_tests` has by
  default. None where a problem cannot be graded. Each outcome is logged as a
  share of all
  completions.

  Args:
    problems: B problems, one for each completion.
    completions: B texts.
    deadline: seconds of wall-clock time for an answer that is not decided by
      comparing numbers or text.
    num_workers: processes that decide them; 0 for all cores but one.
  """
  graded = grades(
    problems, completions, deadline=deadline, num_workers=num_workers
  )
  return Result(
    [g.score for g in graded],
    {outcome: [g.outcome == outcome for g in graded] for outcome in OUTCOMES},
  )


def check(problems: Iterable[types.Problem]) -> None:
  """Raises sandbox.IsolationError where programs could not be run safely."""
  if not all(compares(problem.source) for problem in problems):
    sandbox.check("namespaces")


def rule_for(problem: types.Problem) -> str:
  """The rule in `VERIFIERS` that grades a problem: its source.

  A problem of a user's file that names no source (`UNNAMED`) is graded by what
  its reference is: "number", "choice", "text", or "math" for all else.

  Raises:
    ConfigError: its source is none of ours.
  """
  if problem.source in UNNAMED and problem.source not in VERIFIERS:
    kind = final_answer.kind(final_answer.reference(problem.answer))
    return "math" if kind == final_answer.FORMULA else kind
  if problem.source not in VERIFIERS:
    raise errors.ConfigError(
      f"No rule grades the source {problem.source!r} of the problem"
      f" {problem.question[:60]!r}; {errors.nearest(problem.source, VERIFIERS)}"
    )
  return problem.source


def check_sources(
  problems: Sequence[types.Problem], where: str = "config.data"
) -> str:
  """Says which rules grade problems that name no source; "" where all name one.

  Args:
    problems: at random access; all that the accuracy is asked about.
    where: how a sentence names them.

  Raises:
    ConfigError: the source of one is none of ours; the sentence has its place.
  """
  places = range(len(problems))
  unnamed = []
  for place in places:
    problem = problems[place]
    if problem.source in UNNAMED:
      unnamed.append(place)
    elif problem.source not in VERIFIERS:
      raise errors.ConfigError(
        f"Problem {place + 1} of the {len(problems)} of {where}"
        f" ({problem.question[:60]!r}): no rule grades its source"
        f" {problem.source!r}; {errors.nearest(problem.source, VERIFIERS)}"
      )
  step = max(1, len(unnamed) // _TRIED)
  counts = collections.Counter(
    rule_for(problems[place]) for place in unnamed[::step]
  )
  if not counts:
    return ""
  total = counts.total()
  shares = ", ".join(
    f"{rule} {count / total:.0%}" for rule, count in counts.most_common()
  )
  return (
    f"Problems of {where} that name no source are graded by what their"
    f" reference answers are ({shares} of {total:,} tried);"
    ' source="math" or another names one rule for all.'
  )


def compares(source: str) -> bool:
  """Whether problems of this source have answers that can be equal."""
  return VERIFIERS.get(source) is not Program


def _found(problem: types.Problem, completion: str):
  return VERIFIERS[rule_for(problem)](problem, completion)


def extract(problem: types.Problem, completion: str) -> str | None:
  """The final answer, as it was written; None where there is none.

  None for programs too, and for a verifier that does not tell.
  """
  found = _found(problem, completion)
  return getattr(found, "extracted", None)


def same(source: str, answers: Sequence[tuple[str, str]]) -> list[bool]:
  """Whether the answers of each pair are equal to one another.

  By the verifier, with the first answer as the reference, where it compares
  answers with a reference (as `math` does); else as texts without blanks.

  Args:
    source: of the problems.
    answers: as `extract` returned them.
  """
  if source not in UNNAMED and VERIFIERS.get(source) not in _COMPARED:
    return [_without_blanks(a) == _without_blanks(b) for a, b in answers]
  problems = [types.Problem("", first, source, "") for first, _ in answers]
  texts = [f"<answer>{second}</answer>" for _, second in answers]
  return [g.outcome == "correct" for g in grades(problems, texts)]


def grades(
  problems: Sequence[types.Problem],
  completions: Sequence[str],
  *,
  deadline: float | int = 3.0,
  num_workers: int = 0,
) -> list[Grade]:
  """What became of each completion; for the arguments see `accuracy`.

  Raises:
    ValueError: the deadline is no positive number.
    RuntimeError: no process can be started that grades.
    ConfigError: the source of a problem is none of ours.
  """
  if not (deadline > 0 and math_lib.isfinite(deadline)):
    raise ValueError(f"{deadline=} must be a positive number of seconds.")
  found = [
    _found(problem, completion)
    for problem, completion in zip(problems, completions, strict=True)
  ]
  # The completions of a group often agree; each answer is compared once.
  pending = list({f: None for f in found if isinstance(f, Pending)})
  graded = {}
  for function in {f.function for f in pending}:
    chosen = [f for f in pending if f.function == function]
    outcomes = workers.shared(num_workers).map(
      function, [f.arguments for f in chosen], deadline=deadline
    )
    graded |= zip(chosen, map(_graded, chosen, outcomes), strict=True)
  programs = list({f: None for f in found if isinstance(f, Program)})
  if programs:
    graded |= zip(programs, _tested(programs), strict=True)
  found = [graded.get(f, f) for f in found]
  return [f if isinstance(f, Grade) else _of_score(f) for f in found]


def _graded(pending: Pending, outcome: workers.Outcome) -> Grade:
  if outcome.status != "value":
    return Grade(outcome.status, 0.0, pending.extracted)
  score = float(outcome.value)
  right = "correct" if score == 1 else "wrong"
  return Grade(right, score, pending.extracted)


def _tested(programs: Sequence[Program]) -> list[Grade]:
  results = code.results(*zip(*programs, strict=True))
  outcomes = [_TESTED.get(r.outcome) if r else None for r in results]
  return [
    Grade(outcome, float(outcome == "correct"))
    if outcome
    else Grade("ungradable", None)
    for outcome in outcomes
  ]


def _decided(right: bool, extracted: str | None) -> Grade:
  if right:
    return Grade("correct", 1.0, extracted)
  return Grade("no_answer" if extracted is None else "wrong", 0.0, extracted)


def _of_score(score: float | None) -> Grade:
  if score is None:
    return Grade("ungradable", None)
  return Grade("correct" if score == 1 else "wrong", float(score))


def grade(
  answer: str,
  completion: str,
  *,
  prompt: str = "",
  question: str = "",
  source: str = "math",
  deadline: float | int = 3.0,
) -> Grade:
  """What became of one completion, by the rule for mathematics.

  Args:
    answer: the reference.
    completion: the text, without its prompt.
    prompt: tells whether the thinking was opened there.
    question: whose formulas are no answers.
    source: chooses another rule of `VERIFIERS`.
    deadline: seconds.
  """
  problem = types.Problem(question, answer, source, prompt)
  return grades([problem], [completion], deadline=deadline)[0]


def pair_sum(problem: types.Problem, completion: str) -> Grade:
  """Which two of four numbers add up to the target: `25,22,13,19=35?`.

  Right is `x+y` in answer tags, blanks allowed, with x and y as they stand at
  two different places of the question and x + y the target.
  """
  question = _PAIR_SUM.fullmatch(problem.question.strip())
  if question is None:
    return Grade("ungradable", None)
  *numbers, target = question.groups()
  answer = format.tagged_answer(problem, completion)
  terms = _without_blanks(answer).split("+")
  if len(terms) != 2:
    return _decided(False, answer)
  for term in terms:
    if term not in numbers:
      return _decided(False, answer)
    numbers.remove(term)
  return _decided(sum(map(int, terms)) == int(target), answer)


def addition(problem: types.Problem, completion: str) -> Grade:
  """The sum of two numbers, `17+25=?`, as an integer in answer tags."""
  question = _ADDITION.fullmatch(problem.question.strip())
  if question is None:
    return Grade("ungradable", None)
  total = sum(map(int, question.groups()))
  answer = format.tagged_answer(problem, completion)
  return _decided(_without_blanks(answer) == str(total), answer)


def countdown(problem: types.Problem, completion: str) -> Grade:
  """An expression in answer tags, see `rewards.countdown`."""
  answer = format.tagged_answer(problem, completion)
  score = countdown_lib.check(problem.answer, answer or "")
  if score is None:
    return Grade("ungradable", None)
  return _decided(score == 1, answer)


def reasoning_gym(problem: types.Problem, completion: str) -> Grade | Pending:
  """What the task's own scorer gives to what stands in answer tags."""
  answer = format.tagged_answer(problem, completion)
  if not answer:
    return Grade("no_answer", 0.0)
  if len(answer) > _MAX_GYM_ANSWER:
    return Grade("wrong", 0.0, answer)
  return Pending(
    (problem.details, answer), answer, "grpo_jax.rewards.gym:score"
  )


def number(problem: types.Problem, completion: str) -> Grade | Pending:
  """One number, compared exactly; the rule for GSM8K.

  Where the answer stands, and what a sentence says, is told in `final_answer`
  and `statement`; how numbers are written, in `numbers`. A problem whose
  reference is no number cannot be graded.
  """
  return _compared(problem, completion, final_answer.NUMBER)


def choice(problem: types.Problem, completion: str) -> Grade | Pending:
  """The letter of an option, such as C, (C) or `C. Paris`."""
  return _compared(problem, completion, final_answer.CHOICE)


def text(problem: types.Problem, completion: str) -> Grade | Pending:
  """An answer in words, compared without case and blanks."""
  return _compared(problem, completion, final_answer.TEXT)


def math(problem: types.Problem, completion: str) -> Grade | Pending:
  r"""One mathematical answer in LaTeX or plain text; the rule for MATH.

  The reference is what the last `\boxed{}` of the reference answer holds, or
  follows `####`, or all of it; it may be a number, an option's letter, words or
  any formula, and is compared as that. See `equality` for what is equal.
  """
  return _compared(problem, completion, None)


def _compared(
  problem: types.Problem, completion: str, kind: str | None
) -> Grade | Pending:
  reference = final_answer.reference(problem.answer)
  if not 0 < len(reference) <= equality.MAX_CHARACTERS:
    return Grade("ungradable", None)
  found = final_answer.kind(reference)
  if kind is not None and found != kind:
    return Grade("ungradable", None)
  answer = final_answer.find(problem, completion, found, reference)
  if not answer:
    return Grade("no_answer", 0.0)
  right = equality.decide(reference, answer)
  if right is None:
    return Pending((reference, answer, problem.question), answer)
  if right and equality.copied(reference, answer, problem.question):
    return Grade("wrong", 0.0, answer)
  return _decided(right, answer)


VERIFIERS: dict[str, Verifier] = {
  "pair_sum": pair_sum,
  "addition": addition,
  "gsm8k": number,
  "math": math,
  "number": number,
  "choice": choice,
  "text": text,
  "countdown": countdown,
  "reasoning_gym": reasoning_gym,
  "mgsm": number,
  "aime": math,
  "code": Program,
  "humaneval": Program,
  "mbpp": Program,
}


# What a problem's source says where a user's file names none.
UNNAMED = ("", "jsonl", "preferences")
_COMPARED = (number, choice, text, math)
# Problems whose references are looked at to say which rules grade them.
_TRIED = 2000


def _without_blanks(text: str | None) -> str:
  return "".join((text or "").split())
