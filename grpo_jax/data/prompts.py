"""Problems in a template, tokenized and padded on the left: what a policy sees.

P prompts, S prompt slots.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from etils import epath

from grpo_jax import errors
from grpo_jax.data.tokenizers import templates
from grpo_jax.data.tokenizers import tokenizer as tokenizers
from grpo_jax.types import Problem, PromptBatch

# DeepSeek-R1, arXiv 2501.12948, Table 1.
_R1_ZERO = (
  "A conversation between User and Assistant. The user asks a question, and"
  " the Assistant solves it. The assistant first thinks about the reasoning"
  " process in the mind and then provides the user with the answer. The"
  " reasoning process and answer are enclosed within <think> </think> and"
  " <answer> </answer> tags, respectively, i.e., <think> reasoning process"
  " here </think> <answer> answer here </answer>."
)
TEMPLATES = {
  # One line for the question, short enough for a model of minutes.
  "plain": "User: {question}\nAssistant:",
  "r1_zero": _R1_ZERO + " User: {question}. Assistant:",
  # As `plain`, with the thinking begun: no answer before a thought.
  "plain_thinking": "User: {question}\nAssistant:<think>",
  # The question alone, for a policy whose problems are whole prompts.
  "bare": "{question}",
  # What a user says to a policy that follows instructions, so that it shows
  # its work: `config.ways` of the rejection stage.
  "detailed": (
    "{question}\n\nAnswer in detail. First think between <think> and </think>,"
    " in short paragraphs and in the language of the question: restate what is"
    " asked, plan, and work step by step. Reflect as you go: where a step looks"
    " wrong, say so, go back and try another way. Before you answer, verify the"
    " result, by another method where there is one. Then give the answer, and"
    " nothing else, between <answer> and </answer>."
  ),
}


class Shot(NamedTuple):
  """A worked example: a question and the completion that answers it."""

  question: str
  completion: str


# What a conversation under a chat template may begin with.
SYSTEM = {
  # R1-Zero's instruction, which tells of the tags that rewards ask for.
  "r1_zero": _R1_ZERO,
  # What Qwen and DeepSeek advise for questions of mathematics.
  "boxed": (
    "Please reason step by step, and put your final answer within \\boxed{}."
  ),
}
# In place of a template: the question is one message under the tokenizer's own
# chat template, filled as `templates.Chat` says.
CHAT = "chat"
Template = str | templates.Chat
# By this a prompt tells a policy of answer tags.
_ANSWER_TAG = "<answer>"


def read_template(name_or_path: str, *, chat_too: bool = False) -> str:
  """A template of `TEMPLATES` by its name, or the text of a file.

  Args:
    name_or_path: a name or a file.
    chat_too: whether `CHAT` will do as well.

  Raises:
    ValueError: neither a name nor a file, or no `{question}` in it.
  """
  if name_or_path == CHAT and chat_too:
    return CHAT
  if name_or_path in TEMPLATES:
    return TEMPLATES[name_or_path]
  path = epath.Path(name_or_path)
  if not path.is_file():
    raise ValueError(
      f"Template {name_or_path!r} is neither a file nor one of "
      f"{', '.join((*TEMPLATES, CHAT) if chat_too else TEMPLATES)}."
    )
  template = path.read_text()
  if "{question}" not in template:
    raise ValueError(f"The template in {path} has no {{question}}.")
  return template


def read_system(text: str) -> str:
  """What a conversation begins with: of `SYSTEM` by its name, or of a file.

  Args:
    text: a name, a file, the text itself (of more than one word), or "".

  Raises:
    ConfigError: a word that is neither a name nor a file.
  """
  if text in SYSTEM or not text:
    return SYSTEM.get(text, "")
  if len(text.split()) > 1:
    return text
  path = epath.Path(text)
  if not path.is_file():
    raise errors.ConfigError(
      f"config.prompts.system={text!r} is neither a file nor a text of several"
      f" words; {errors.nearest(text, ('auto', *SYSTEM))}"
    )
  return path.read_text().strip()


def as_chat(template: Template) -> templates.Chat | None:
  """How a chat template is filled; None where it is another template."""
  if isinstance(template, templates.Chat):
    return template
  return templates.Chat() if template == CHAT else None


def fitted(
  tokenizer: tokenizers.Tokenizer, template: Template
) -> tokenizers.Tokenizer:
  """The tokenizer with the stop tokens that it needs under a template.

  Under a chat template the end of a turn is one of them; see
  `templates.with_end_of_turn`. Whatever trains, samples or saves under a
  template takes its tokenizer from here.
  """
  chat = as_chat(template)
  if chat is None:
    return tokenizer
  return templates.with_end_of_turn(tokenizer, chat)


def form_of(
  told: str, template: Template, tokenizer: tokenizers.Tokenizer
) -> str:
  r"""What a completion should look like: a name in `rewards.format.Style`.

  "tags" where the prompt tells of answer tags, "box" where it tells of
  `\boxed{}`, "think" under a chat template that knows of thinking, and "tags"
  elsewhere: what R1-Zero is rewarded for.

  Args:
    told: the prompt without its question.
    template: in which it is asked.
    tokenizer: of the policy.
  """
  if _ANSWER_TAG in told:
    return "tags"
  if "\\boxed" in told:
    return "box"
  chat = as_chat(template)
  return "think" if chat is not None and templates.thinks(tokenizer) else "tags"


def fill(template: str, problem: Problem) -> Problem:
  """The problem with its prompt; braces in it are left alone."""
  return problem._replace(
    prompt=template.replace("{question}", problem.question)
  )


def next_turn(template: Template) -> str:
  """How the next question would begin: "User:" in `plain`.

  A base model that has answered may go on with it. It is the word before the
  question; empty where there is none, as under `CHAT`, whose turns end with a
  token of their own.
  """
  if as_chat(template) is not None:
    return ""
  before = str(template).partition("{question}")[0]
  return before.split()[-1] if before.strip() else ""


def ask(
  problems: Sequence[Problem],
  template: Template,
  tokenizer: tokenizers.Tokenizer,
  slots: int,
  *,
  shots: Sequence[Shot] = (),
  message: str = "{question}",
  tell: Callable[[str], Any] = lambda line: None,
) -> tuple[list[Problem], list[np.ndarray]]:
  """The problems with their prompts, and the ids of each prompt.

  Prompts longer than their slots are left out, with their problems.

  Args:
    problems: each has a question.
    template: what `read_template` returned.
    tokenizer: of the policy.
    slots: S, how many tokens a prompt may have.
    shots: worked examples, each a turn before the question.
    message: what is said in the place of the bare question, with a
      `{question}`.
    tell: takes a line on what was left out.

  Raises:
    ValueError: all prompts are longer than their slots, or one is empty; or a
      chat template is asked for and the tokenizer has none.
  """
  if not len(problems):
    return [], []
  texts, encoded = _encode_all(problems, template, tokenizer, shots, message)
  for text, ids in zip(texts, encoded, strict=True):
    if not ids:
      raise ValueError(f"The prompt {text!r} has no tokens.")
  form = form_of(_told(problems[0], texts[0]), template, tokenizer)
  asked = [
    (problem._replace(prompt=text, form=form), np.asarray(ids, np.int32))
    for problem, text, ids in zip(problems, texts, encoded, strict=True)
  ]
  kept = [(problem, ids) for problem, ids in asked if len(ids) <= slots]
  if not kept:
    problem, ids = min(asked, key=lambda each: len(each[1]))
    raise ValueError(
      f"The prompt {_shortened(problem.prompt)!r} has {len(ids)} tokens, but"
      f" prompt_slots={slots}"
      + (f"; the others, {len(asked) - 1:,}, have no less." * (len(asked) > 1))
    )
  if len(kept) < len(asked):
    tell(
      f"Left out because longer than prompt_slots={slots}:"
      f" {len(asked) - len(kept):,} of {len(asked):,} prompts; the longest has"
      f" {max(len(ids) for _, ids in asked):,} tokens."
    )
  return [problem for problem, _ in kept], [ids for _, ids in kept]


def _encode_all(
  problems, template, tokenizer, shots, message
) -> tuple[list[str], list[list[int]]]:
  """The prompt of each problem, as text and as ids."""
  said = [message.replace("{question}", p.question) for p in problems]
  chat = as_chat(template)
  if chat is None:
    # A template that opens the thinking does so for the examples too.
    opened = "<think>" if template.rstrip().endswith("<think>") else ""
    turns = "".join(
      template.replace("{question}", shot.question)
      + shot.completion.removeprefix(opened)
      + "\n"
      for shot in shots
    )
    texts = [turns + template.replace("{question}", text) for text in said]
    return texts, _with_bos(tokenizer.encode_batch(texts), tokenizer)
  turns = []
  for shot in shots:
    turns.append({"role": "user", "content": shot.question})
    turns.append({"role": "assistant", "content": shot.completion})
  begin = chat.beginning(tokenizer)
  texts = [
    templates.render(
      tokenizer,
      begin([*turns, {"role": "user", "content": text}]),
      add_generation_prompt=True,
      **chat.given,
    )
    for text in said
  ]
  # The template itself writes what begins a sequence.
  return texts, [tokenizer.encode_chat(text)[0] for text in texts]


def _told(problem: Problem, text: str) -> str:
  """A prompt without its question."""
  before, found, behind = text.rpartition(problem.question)
  return before + behind if found and problem.question else text


def _with_bos(
  encoded: list[list[int]], tokenizer: tokenizers.Tokenizer
) -> list[list[int]]:
  begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  return [begin + ids for ids in encoded]


def encode_prompts(
  texts: Sequence[str], tokenizer: tokenizers.Tokenizer, slots: int
) -> list[np.ndarray]:
  """Ids of each text, after the tokenizer's bos if it has one.

  Args:
    texts: prompts.
    tokenizer: of the policy.
    slots: S, how many tokens a prompt may have.

  Raises:
    ValueError: a prompt is longer than its slots, or empty.
  """
  encoded = _with_bos(tokenizer.encode_batch(texts), tokenizer)
  return [
    _checked(text, ids, slots) for text, ids in zip(texts, encoded, strict=True)
  ]


def pad_prompts(
  prompts: Sequence[str | np.ndarray],
  tokenizer: tokenizers.Tokenizer,
  slots: int,
) -> PromptBatch:
  """One batch of prompts, [P, S] in NumPy, padded on the left.

  The mask comes from the lengths, so a pad id that occurs in prompts does no
  harm.

  Args:
    prompts: P texts, or what `encode_prompts` made of them.
    tokenizer: of the policy.
    slots: S.

  Raises:
    ValueError: a prompt is longer than its slots, or empty.
  """
  rows = [
    encode_prompts([p], tokenizer, slots)[0] if isinstance(p, str) else p
    for p in prompts
  ]
  tokens = np.full((len(rows), slots), tokenizer.pad_id, np.int32)
  mask = np.zeros((len(rows), slots), bool)
  for row, ids in enumerate(rows):
    tokens[row, slots - len(ids) :] = ids
    mask[row, slots - len(ids) :] = True
  return PromptBatch(tokens=tokens, mask=mask)


class PromptSource:
  """Batches of prompts by step: `source(step)` is a function of the step alone.

  Problems are shuffled anew every epoch and come exactly once in each; a batch
  may span two epochs. There is no state to save.

  Attributes:
    num_prompts: P, how many prompts a step has.
    steps_per_epoch: steps until every problem was seen once; a fraction.
    longest: tokens of the longest prompt, bos included.
  """

  def __init__(
    self,
    problems: Sequence[Problem],
    tokenizer: tokenizers.Tokenizer,
    template: Template,
    *,
    num_prompts: int,
    prompt_slots: int,
    seed: int,
    tell: Callable[[str], Any] = lambda line: None,
  ):
    """Encodes all prompts; those that are too long are asked at no step.

    Args:
      problems: at random access; each `prompt` is filled in here.
      tokenizer: of the policy.
      template: what `read_template` returned.
      num_prompts: P, how many prompts a step has.
      prompt_slots: S.
      seed: of the order.
      tell: takes a line on what was left out.

    Raises:
      ValueError: all prompts are longer than their slots, or there are no
        problems.
    """
    if not len(problems):
      raise ValueError("There are no problems to draw prompts from.")
    if num_prompts < 1:
      raise ValueError(f"{num_prompts=} must be at least 1.")
    self._problems, self._prompts = ask(
      problems, template, tokenizer, prompt_slots, tell=tell
    )
    self._order: Any = (
      grain.MapDataset.range(len(self._problems)).shuffle(seed).repeat()
    )
    self.num_prompts = num_prompts
    self._tokenizer = tokenizer
    self._slots = prompt_slots
    self.steps_per_epoch = len(self._problems) / num_prompts
    self.longest = max(map(len, self._prompts))

  def __call__(self, step: int) -> tuple[PromptBatch, list[Problem]]:
    """The prompts of a step in NumPy, [P, S], and their problems."""
    first = step * self.num_prompts
    return self.batch([self.at(first + i) for i in range(self.num_prompts)])

  def at(self, place: int) -> int:
    """The index of the problem at a place in the order, from 0 on, no end."""
    return self._order[place]

  @property
  def problems(self) -> Sequence[Problem]:
    """All problems, with their prompts."""
    return self._problems

  def problem(self, index: int) -> Problem:
    """The problem of an index, with its prompt."""
    return self._problems[index]

  def batch(self, indices: Sequence[int]) -> tuple[PromptBatch, list[Problem]]:
    """The prompts of some problems in NumPy, [P, S], and the problems."""
    rows = [self._prompts[i] for i in indices]
    prompt_batch = pad_prompts(rows, self._tokenizer, self._slots)
    return prompt_batch, [self._problems[i] for i in indices]


def _checked(text: str, ids: list[int], slots: int) -> np.ndarray:
  """The ids of a prompt, if there are any and they fit."""
  if len(ids) > slots:
    raise ValueError(
      f"The prompt {_shortened(text)!r} has {len(ids)} tokens, but "
      f"prompt_slots={slots}."
    )
  if not ids:
    raise ValueError(f"The prompt {text!r} has no tokens.")
  return np.asarray(ids, np.int32)


def _shortened(text: str, limit: int = 80) -> str:
  return text if len(text) <= limit else text[:limit] + "..."
