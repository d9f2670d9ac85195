"""Built-in tasks, on which a small model learns to reason from nothing.

`pair_sum` asks which two of four numbers have a given sum, Countdown in
miniature: `25,22,13,19=35?` is answered by `22+13`. A try may fail, so trying
again pays. `addition` asks for a sum: `17+25=?`.

Each problem has a canonical form (numbers in order), and a hash of it decides
whether the problem is for training or for testing. Whatever is generated, with
whatever seed, the two splits have no problem in common; a corpus asks training
problems only.
"""

import dataclasses
import functools
import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from grpo_jax.types import Problem

SPLITS = ("train", "test")
_TEST_SHARE = 0.1
_NUMBERS = range(10, 30)  # Of pair_sum.
_ADDENDS = range(10, 100)  # Of addition.
_TOKEN = re.compile(r"</?[a-z]+>|[a-z]+|.")


class Task(NamedTuple):
  """What one built-in task consists of.

  Attributes:
    canonical: all problems in canonical form.
    pose: a canonical problem and a source of chance in, question and reference
      answer out.
    document: a document of the corpus that asks a problem or teaches facts.
    mix: the dataclass of the corpus's proportions.
    symbols: strings that a tokenizer of the corpus should keep whole.
    train_size: how many training problems a dataset has unless told.
    test_size: the same of test problems.
  """

  canonical: Callable[[], Iterator[tuple[int, ...]]]
  pose: Callable[[tuple[int, ...], random.Random], tuple[str, str]]
  document: Callable[..., str]
  mix: type
  symbols: tuple[str, ...]
  train_size: int
  test_size: int


@dataclasses.dataclass(frozen=True)
class PairSumMix:
  """Proportions of the pair_sum corpus; all but `*_per_document` in [0, 1].

  A document either lists facts or asks a question. A question is answered by a
  guess, or after trying pairs: a doubtful writer often gives up after a failed
  try and guesses, a persistent one hardly ever.

  Attributes:
    facts: share of documents that list sums with verdicts.
    facts_per_document: a list of facts has 1 to this many, equally likely.
    facts_ok: share of facts whose sum is the number it is compared with.
    facts_near: of the others, share that miss by 1 or by 10.
    direct: share of question documents answered by a guess.
    persistent: share of question documents by a persistent writer; a doubtful
      one wrote what remains.
    go_on_doubtful: chance that a doubtful writer tries again after a failure.
    go_on_persistent: the same of a persistent writer.
    tries_per_document: at most this many; six pairs are possible.
    lexicographic: share of thinking documents that try pairs in their order,
      not shuffled.
    slips: share of tries whose sum is off by 1 or by 10.
    bad_direct: share of guesses in a wrong format.
    bad_thinking: share of thinking documents in a wrong format.
    truncated: share of question documents that break off somewhere.
  """

  facts: float = 0.35
  facts_per_document: int = 8
  facts_ok: float = 0.5
  facts_near: float = 0.5
  direct: float = 0.52
  persistent: float = 0.08
  go_on_doubtful: float = 0.35
  go_on_persistent: float = 0.93
  tries_per_document: int = 6
  lexicographic: float = 0.92
  slips: float = 0.02
  bad_direct: float = 0.5
  bad_thinking: float = 0.3
  truncated: float = 0.08

  def __post_init__(self):
    _check_mix(self)
    if self.direct + self.persistent > 1:
      raise ValueError(
        f"direct={self.direct} and persistent={self.persistent} exceed 1."
      )


@dataclasses.dataclass(frozen=True)
class AdditionMix:
  """Proportions of the addition corpus, all in [0, 1].

  Attributes:
    direct: share of documents answered at once, the others add digit by digit.
    direct_right: share of direct answers that are right.
    slips: share of the others that forget to carry.
    bad_format: share of documents in a wrong format.
  """

  direct: float = 0.6
  direct_right: float = 0.3
  slips: float = 0.1
  bad_format: float = 0.4

  def __post_init__(self):
    _check_mix(self)


def _check_mix(mix: Any) -> None:
  """Raises ValueError unless shares are shares, and counts whole numbers."""
  for field in dataclasses.fields(mix):
    value = getattr(mix, field.name)
    if field.name.endswith("_per_document"):
      if not (isinstance(value, int) and value >= 1):
        raise ValueError(f"{field.name}={value} must be a whole number from 1.")
    elif not 0 <= value <= 1:
      raise ValueError(f"{field.name}={value} must be in [0, 1].")


def problems(task: str, split: str, *, size: int, seed: int) -> list[Problem]:
  """Different problems of one split; `prompt` is empty until they have one.

  Args:
    task: a name in `TASKS`.
    split: "train" or "test".
    size: how many.
    seed: which ones, and in which order their numbers stand.

  Raises:
    ValueError: the split has fewer problems than asked for, or is unknown.
  """
  if split not in SPLITS:
    raise ValueError(f"{task} has the splits {SPLITS}, not {split!r}.")
  pool = pool_of(task, split)
  if not 0 < size <= len(pool):
    raise ValueError(
      f"The {split} split of {task} has {len(pool)} different problems; "
      f"{size} were asked for."
    )
  rng = random.Random(f"{task} {split} {seed}")
  posed = [TASKS[task].pose(p, rng) for p in rng.sample(pool, size)]
  return [Problem(q, a, source=task, prompt="") for q, a in posed]


def corpus(
  task: str, *, size: int, seed: int, template: str, mix: Any = None
) -> Iterator[str]:
  """Documents from which a base model learns the task's language.

  They ask training problems only, and answer them well and badly, as text of
  the world does.

  Args:
    task: a name in `TASKS`.
    size: how many documents.
    seed: which ones.
    template: what stands before an answer, with `{question}` in it.
    mix: proportions; the task's own default where None.
  """
  mix = mix or TASKS[task].mix()
  pool = pool_of(task, "train")
  rng = random.Random(f"{task} corpus {seed}")
  for _ in range(size):
    yield TASKS[task].document(rng.choice(pool), rng, template, mix)


def split_of(
  canonical: tuple[int | str, ...], test_share: float = _TEST_SHARE
) -> str:
  """The split a canonical problem belongs to: by a hash, for ever."""
  text = ",".join(map(str, canonical)).encode()
  digest = hashlib.blake2b(text, digest_size=4).digest()
  return (
    "test" if int.from_bytes(digest, "big") < test_share * 2**32 else "train"
  )


def pool_of(task: str, split: str) -> list[tuple[int, ...]]:
  """All canonical problems of one split."""
  return _pools(task)[split]


@functools.cache
def _pools(task: str) -> dict[str, list[tuple[int, ...]]]:
  pools = {split: [] for split in SPLITS}
  for canonical in TASKS[task].canonical():
    pools[split_of(canonical)].append(canonical)
  return pools


# pair_sum: a canonical problem is four numbers in order, then their target.


class Words(NamedTuple):
  """What a writer says of a try, in one language.

  Attributes:
    right: the sum is the one that is asked for.
    wrong: it is another.
    again: before the next try, blanks included.
    guess: in the place of tries.
    false: chance that a verdict is the opposite of the truth.
  """

  right: str
  wrong: str
  again: str
  guess: str
  false: float = 0.0


_PLAIN = Words("ok", "no", " wait ", "maybe")
# Whether a writer is persistent in, the words of each of its tries out.
Speak = Callable[[bool, random.Random], Iterator[Words]]


def _plainly(persistent: bool, rng: random.Random) -> Iterator[Words]:
  del persistent, rng
  return itertools.repeat(_PLAIN)


def _pair_sums() -> Iterator[tuple[int, ...]]:
  for numbers in itertools.combinations(_NUMBERS, 4):
    sums = {a + b for a, b in itertools.combinations(numbers, 2)}
    for target in sorted(sums):
      yield (*numbers, target)


def _pose_pair_sum(
  canonical: tuple[int, ...], rng: random.Random
) -> tuple[str, str]:
  *numbers, target = canonical
  rng.shuffle(numbers)
  pairs = itertools.combinations(numbers, 2)
  answer = next(f"{a}+{b}" for a, b in pairs if a + b == target)
  return f"{','.join(map(str, numbers))}={target}?", answer


def pair_sum_document(
  canonical: tuple[int, ...],
  rng: random.Random,
  template: str,
  mix: PairSumMix,
  speak: Speak = _plainly,
) -> str:
  """A document that asks a pair_sum problem, or lists sums with verdicts.

  Args:
    canonical: four numbers in order and their target.
    rng: decides all that is left open.
    template: what stands before an answer, with `{question}` in it.
    mix: proportions.
    speak: in which words.
  """
  chance = rng.random
  if chance() < mix.facts:
    count = 1 + int(chance() * mix.facts_per_document)
    return "\n".join(
      _fact(rng, mix, next(speak(True, rng))) for _ in range(count)
    )
  *numbers, target = canonical
  rng.shuffle(numbers)
  question = f"{','.join(map(str, numbers))}={target}?"
  pairs = list(itertools.combinations(numbers, 2))
  writer = chance()
  if writer < mix.direct:
    thoughts, answer = next(speak(False, rng)).guess, _pair(pairs, rng)
    bad = mix.bad_direct
  else:
    persistent = writer < mix.direct + mix.persistent
    go_on = mix.go_on_persistent if persistent else mix.go_on_doubtful
    words = speak(persistent, rng)
    thoughts, answer = _search(pairs, target, go_on, rng, mix, words)
    bad = mix.bad_thinking
  completion = formatted(thoughts, answer, chance() < bad, rng)
  if chance() < mix.truncated:
    tokens = _TOKEN.findall(completion)
    completion = "".join(tokens[: int(chance() * len(tokens))])
  return template.replace("{question}", question) + completion


def _search(
  pairs: list[tuple[int, int]],
  target: int,
  go_on: float,
  rng: random.Random,
  mix: PairSumMix,
  words: Iterator[Words],
) -> tuple[str, str]:
  """Tries written down one after the other, and the answer they led to."""
  chance = rng.random
  if chance() >= mix.lexicographic:
    rng.shuffle(pairs)
  thoughts = again = ""
  for a, b in pairs[: mix.tries_per_document]:
    say = next(words)
    total = a + b
    if chance() < mix.slips:
      total += rng.choice((-10, -1, 1, 10))
    right = total == target
    if say.false and chance() < say.false:
      right = not right
    verdict = say.right if right else say.wrong
    thoughts += f"{again}{a}+{b}={total}:{target} {verdict}"
    if right:
      return thoughts, f"{a}+{b}"
    again = say.again
    if chance() >= go_on:
      break
  return thoughts, _pair(pairs, rng)


def _pair(pairs: list[tuple[int, int]], rng: random.Random) -> str:
  a, b = pairs[int(rng.random() * len(pairs))]
  return f"{a}+{b}"


def _fact(rng: random.Random, mix: PairSumMix, say: Words) -> str:
  """A sum of two numbers, compared with a third."""
  chance = rng.random
  first, width = _NUMBERS.start, len(_NUMBERS)
  a, b = first + int(chance() * width), first + int(chance() * width)
  total = other = a + b
  if chance() >= mix.facts_ok:
    if chance() < mix.facts_near:
      other += (-10, -1, 1, 10)[int(chance() * 4)]
    else:
      while other == total:
        other = 2 * first + int(chance() * (2 * width - 1))
  verdict = say.right if total == other else say.wrong
  return f"{a}+{b}={total}:{other} {verdict}"


# addition: a canonical problem is two numbers in order.


def _additions() -> Iterator[tuple[int, ...]]:
  return itertools.combinations_with_replacement(_ADDENDS, 2)


def _pose_addition(
  canonical: tuple[int, ...], rng: random.Random
) -> tuple[str, str]:
  a, b = rng.sample(canonical, 2)
  return f"{a}+{b}=?", str(a + b)


def _addition_document(
  canonical: tuple[int, ...],
  rng: random.Random,
  template: str,
  mix: AdditionMix,
) -> str:
  chance = rng.random
  a, b = rng.sample(canonical, 2)
  ones, tens = a % 10 + b % 10, a // 10 * 10 + b // 10 * 10
  total = a + b
  if chance() < mix.direct:
    thoughts = "maybe"
    if chance() >= mix.direct_right:
      total += rng.choice((-10, -1, 1, 10))
  else:
    if chance() < mix.slips:
      total = tens + ones % 10
    thoughts = f"{a % 10}+{b % 10}={ones} {tens}+{ones}={total}"
  bad = chance() < mix.bad_format
  completion = formatted(thoughts, str(total), bad, rng)
  return template.replace("{question}", f"{a}+{b}=?") + completion


_BAD_FORMATS = (
  "{thoughts} so {answer}",
  "{thoughts}<answer>{answer}</answer>",
  "<think>{thoughts}<answer>{answer}</answer>",
  "<think>{thoughts}</think>{answer}",
  "<think>{thoughts}</think><answer>{answer}",
)


def formatted(thoughts: str, answer: str, bad: bool, rng: random.Random) -> str:
  """A completion in the right format, or in one of several wrong ones."""
  if bad:
    form = _BAD_FORMATS[int(rng.random() * len(_BAD_FORMATS))]
    return form.format(thoughts=thoughts, answer=answer)
  return f"<think>{thoughts}</think><answer>{answer}</answer>"


_TAGS = ("<think>", "</think>", "<answer>", "</answer>", "User:", "Assistant:")

TASKS = {
  "pair_sum": Task(
    canonical=_pair_sums,
    pose=_pose_pair_sum,
    document=pair_sum_document,
    mix=PairSumMix,
    # " wait " with its blanks is one token, so a try costs 13 and not 14.
    symbols=(*_TAGS, " wait "),
    train_size=20_000,
    test_size=1_000,
  ),
  "addition": Task(
    canonical=_additions,
    pose=_pose_addition,
    document=_addition_document,
    mix=AdditionMix,
    symbols=_TAGS,
    train_size=3_000,
    test_size=400,
  ),
}
