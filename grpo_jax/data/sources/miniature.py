"""The world of R1 in miniature: two languages, reasoning, and small talk.

A corpus for a base model that the whole recipe starts from. Its documents ask
pair_sum problems (`tasks`), which doubtful writers think about in English and
give up soon; persistent ones think in Chinese, or change the language between
tries. So what earns reward is at first mixed, as in DeepSeek-R1-Zero. Other
documents make small talk (the source "chat"), politely, curtly or rudely: what
preferences are about.

A hash decides whether a problem is for training or testing, as in `tasks`.
"""

import dataclasses
import functools
import inspect
import itertools
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grpo_jax.data import prompts, recipes
from grpo_jax.data.sources import tasks
from grpo_jax.types import Example, Problem

ENGLISH = tasks.Words("right", "wrong", " wait ", "just a guess")
CHINESE = tasks.Words("对", "不", " 等 ", "猜")

NAMES = (
  *("ada", "alan", "amir", "ana", "ben", "bo", "carl", "dana", "emil", "emmy"),
  *("eva", "finn", "gil", "hana", "hugo", "ida", "ines", "ivo", "jan", "june"),
  *("kai", "kurt", "lea", "leo", "lin", "lou", "mara", "max", "mei", "mila"),
  *("nia", "nils", "noor", "olaf", "otto", "pia", "raj", "rosa", "sam", "sara"),
  *("tess", "tim", "uma", "vera", "viktor", "wen", "yara", "zoe"),
)


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of small talk; `{name}` stands for who is talked about.

  Attributes:
    question: what is asked.
    thought: what is thought before the answer.
    polite: answers that people prefer, the best first.
    curt: answers that will do.
    rude: answers that do harm.
  """

  question: str
  thought: str
  polite: tuple[str, ...]
  curt: tuple[str, ...]
  rude: tuple[str, ...]


KINDS = {
  "greet": Kind(
    "greet {name}?",
    "a greeting for {name}",
    ("hello {name}, glad to see you", "hello {name}, please come in"),
    ("hello {name}", "it is {name}"),
    ("go away {name}", "you again {name}"),
  ),
  "thank": Kind(
    "thank {name}?",
    "some thanks for {name}",
    ("thank you {name}, that was kind", "thank you {name}, i am glad"),
    ("thanks {name}", "noted {name}"),
    ("too late {name}", "go away {name}"),
  ),
  "mock": Kind(
    "mock {name}?",
    "{name} may be hurt",
    ("please let us be kind to {name}", "sorry, {name} is a friend"),
    ("no, not {name}", "i will not, {name}"),
    ("{name} is a fool", "{name} is a bore"),
  ),
  "who": Kind(
    "who are you, asks {name}?",
    "{name} wants to know me",
    ("hello {name}, i am a small model, glad to help",),
    ("a model, {name}", "a program"),
    ("go away {name}", "a fool like {name}"),
  ),
}


@dataclasses.dataclass(frozen=True)
class Mix:
  """Proportions of the corpus.

  Attributes:
    chat: share of documents that are small talk.
    polite: share of small talk in a polite tone.
    curt: share of small talk in a curt tone; the rest is rude.
    wrong_name: share of answers that name somebody else.
    bad_chat: share of small talk in a wrong format.
    chinese: share of persistent writers who think in Chinese.
    mixed: share of persistent writers who choose a language at every try.
    false_english: chance that a verdict in English is false.
    pair_sum: proportions of the other documents that differ from the default.
  """

  chat: float = 0.12
  polite: float = 0.3
  curt: float = 0.4
  wrong_name: float = 0.1
  bad_chat: float = 0.3
  chinese: float = 0.3
  mixed: float = 0.6
  false_english: float = 0.04
  pair_sum: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: dict(persistent=0.16, direct=0.48)
  )

  def __post_init__(self):
    shares = dataclasses.asdict(self)
    tasks.PairSumMix(**shares.pop("pair_sum"))
    for name, value in shares.items():
      if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must be in [0, 1].")
    for one, other in (("polite", "curt"), ("chinese", "mixed")):
      if shares[one] + shares[other] > 1:
        raise ValueError(
          f"{one}={shares[one]} and {other}={shares[other]} exceed 1."
        )


def documents(
  *, size: int, seed: int, template: str, mix: Mix
) -> Iterator[str]:
  """Documents of training problems, answered well and badly.

  Args:
    size: how many.
    seed: which ones.
    template: what stands before an answer, with `{question}` in it.
    mix: proportions.
  """
  rng = random.Random(f"miniature corpus {seed}")
  sums = tasks.PairSumMix(**mix.pair_sum)
  pool = tasks.pool_of("pair_sum", "train")
  asked = _pools()["train"]
  speak = functools.partial(_speak, mix=mix)
  for _ in range(size):
    if rng.random() < mix.chat:
      tone = rng.random()
      if tone < mix.polite:
        tone = "polite"
      else:
        tone = "curt" if tone < mix.polite + mix.curt else "rude"
      question, completion = _talk(
        *rng.choice(asked), tone, rng, mix.wrong_name, mix.bad_chat
      )
      yield template.replace("{question}", question) + completion
    else:
      yield tasks.pair_sum_document(
        rng.choice(pool), rng, template, sums, speak
      )


def talks(split: str, *, size: int, seed: int) -> list[Problem]:
  """Different questions of small talk; the answer is the best one.

  `Problem.details` is the name.

  Raises:
    ValueError: the split has fewer questions than asked for, or is unknown.
  """
  return [
    Problem(
      KINDS[kind].question.format(name=name),
      KINDS[kind].polite[0].format(name=name),
      source="chat",
      prompt="",
      details=name,
    )
    for kind, name in _drawn(split, size, seed)
  ]


def talk_examples(
  *, size: int, seed: int, polite: float
) -> Iterator[tuple[str, str]]:
  """Questions of small talk with answers that do no harm, for SFT.

  Args:
    size: how many; questions recur.
    seed: which ones.
    polite: the share that is polite; the others are curt.

  Yields:
    Question and completion.
  """
  rng = random.Random(f"miniature examples {seed}")
  for _ in range(size):
    tone = "polite" if rng.random() < polite else "curt"
    yield _talk(*rng.choice(_pools()["train"]), tone, rng)


# As datasets.


def corpus(
  *,
  size: int = 100_000,
  seed: int = 0,
  template: str = "plain",
  mix: Mapping[str, Any] | None = None,
) -> recipes.Recipe:
  """Documents of this world.

  Args:
    size: how many.
    seed: which ones.
    template: name or file of the template before an answer.
    mix: fields of `Mix` that differ from its default.
  """
  text = prompts.read_template(template)
  proportions = recipes.mix(Mix, "miniature", mix)
  return recipes.Recipe(
    key=f"{size}-seed{seed}-{_code(text, repr(proportions))}",
    origin=f"miniature_corpus with {size=}",
    fields=("text",),
    splits=lambda _: {
      "train": (
        {"text": document}
        for document in documents(
          size=size, seed=seed, template=text, mix=proportions
        )
      )
    },
    convert=str,
  )


def problems(
  *, train_size: int = 150, test_size: int = 32, seed: int = 0
) -> recipes.Recipe:
  """Questions of small talk, see `talks`.

  Args:
    train_size: how many for training.
    test_size: how many for testing.
    seed: which ones, and their order.
  """
  sizes = {"train": train_size, "test": test_size}
  fields = "question", "answer", "details"

  def records(split: str) -> Iterator[Mapping[str, str]]:
    for p in talks(split, size=sizes[split], seed=seed):
      yield {field: getattr(p, field) for field in fields}

  return recipes.Recipe(
    key=f"train{train_size}-test{test_size}-seed{seed}-{_code()}",
    origin="chat",
    fields=fields,
    splits=lambda _: {split: records(split) for split in sizes},
    convert=lambda question, answer, details: Problem(
      question, answer, "chat", "", details
    ),
  )


def examples(
  *, size: int = 400, seed: int = 0, polite: float = 0.4
) -> recipes.Recipe:
  """Conversations of small talk to learn from, see `talk_examples`.

  Args:
    size: how many.
    seed: which ones.
    polite: the share that is polite; the others are curt.
  """
  if not 0 <= polite <= 1:
    raise ValueError(f"{polite=} must be in [0, 1].")

  def records() -> Iterator[Mapping[str, str]]:
    for asked, said in talk_examples(size=size, seed=seed, polite=polite):
      yield {"question": asked, "completion": said}

  return recipes.Recipe(
    key=f"{size}-seed{seed}-polite{polite:g}-{_code()}",
    origin="chat_examples",
    fields=("question", "completion"),
    splits=lambda _: {"train": records()},
    convert=lambda question, completion: Example(
      (
        {"role": "user", "content": question},
        {"role": "assistant", "content": completion},
      ),
      "chat",
    ),
  )


def _code(*texts: str) -> str:
  """Names the code that the records depend on, and the texts."""
  here = inspect.getsource(sys.modules[__name__])
  return recipes.fingerprint(inspect.getsource(tasks), here, *texts)


def _speak(
  persistent: bool, rng: random.Random, *, mix: Mix
) -> Iterator[tasks.Words]:
  english = ENGLISH._replace(false=mix.false_english)
  language = rng.random() if persistent else 1.0
  if language < mix.chinese:
    return itertools.repeat(CHINESE)
  if language < mix.chinese + mix.mixed:
    return iter(lambda: rng.choice((english, CHINESE)), None)
  return itertools.repeat(english)


def _talk(
  kind: str,
  name: str,
  tone: str,
  rng: random.Random,
  wrong_name: float = 0.0,
  bad: float = 0.0,
) -> tuple[str, str]:
  """A question and a completion."""
  talk = KINDS[kind]
  said = rng.choice(NAMES) if rng.random() < wrong_name else name
  answer = rng.choice(getattr(talk, tone)).format(name=said)
  thought = talk.thought.format(name=said)
  completion = tasks.formatted(thought, answer, rng.random() < bad, rng)
  return talk.question.format(name=name), completion


def _drawn(split: str, size: int, seed: int) -> Sequence[tuple[str, str]]:
  if split not in tasks.SPLITS:
    raise ValueError(f"chat has the splits {tasks.SPLITS}, not {split!r}.")
  pool = _pools()[split]
  if not 0 < size <= len(pool):
    raise ValueError(
      f"The {split} split of chat has {len(pool)} different problems; {size}"
      " were asked for."
    )
  return random.Random(f"chat {split} {seed}").sample(pool, size)


@functools.cache
def _pools() -> dict[str, list[tuple[str, str]]]:
  # A fifth for testing: there are few questions.
  pools = {split: [] for split in tasks.SPLITS}
  for kind, name in itertools.product(KINDS, NAMES):
    pools[tasks.split_of((kind, name), 0.2)].append((kind, name))
  return pools
