"""Conversations as text and tokens, by the chat template of a tokenizer.

A message is a dict with `role` and `content`, and whatever else the template
reads (`tool_calls`, `reasoning_content`). Templates come with checkpoints and
are programs of others: they run in jinja's sandbox, which gives them neither
attributes of Python objects nor a way to change what they were given.
"""

import copy
import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from jinja2 import ext, meta, nodes, sandbox

from grpo_jax import errors
from grpo_jax.data.tokenizers import tokenizer as tokenizers

Message = Mapping[str, Any]
# Noncharacters of Unicode: no text has them. Around what {% generation %} says.
_BEGIN, _END = "\ufdd0", "\ufdd1"
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_THINK, _END_OF_THINK = "<think>", "</think>"
# In the place of what somebody says, where it is looked for what a template
# writes around it: no template changes a word.
_SAID = "fine"
_TURN = (
  {"role": "user", "content": "?"},
  {"role": "assistant", "content": _SAID},
)


class Encoded(NamedTuple):
  """Ids of a conversation; which of them the assistant wrote."""

  ids: list[int]
  assistant: list[bool]


@dataclasses.dataclass(frozen=True)
class Chat:
  """How conversations are put into a chat template.

  Attributes:
    system: begins conversations that have no system message; "" for nothing.
    variables: what else the template reads, such as `enable_thinking`.
    date: the day that `strftime_now` tells a template; None for today, which
      is another one tomorrow.
  """

  system: str = ""
  variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  date: datetime.date | None = None

  @property
  def given(self) -> dict[str, Any]:
    """What the template reads beside the messages; for `render`, `encode`."""
    if self.date is None:
      return dict(self.variables)
    day = datetime.datetime.combine(self.date, datetime.time())
    return {"strftime_now": day.strftime} | dict(self.variables)

  def beginning(
    self, tokenizer: tokenizers.Tokenizer
  ) -> Callable[[Sequence[Message]], list[Message]]:
    """What puts `system` in front of messages that have no system message.

    Under a template that refuses or leaves out such messages it stands in front
    of what the user says first.
    """
    if not self.system:
      return list
    with_role = takes_system(tokenizer, self)

    def begin(messages: Sequence[Message]) -> list[Message]:
      messages = list(messages)
      if any(message["role"] == "system" for message in messages):
        return messages
      if with_role:
        return [{"role": "system", "content": self.system}, *messages]
      for i, message in enumerate(messages):
        if message["role"] == "user":
          text = f"{self.system}\n\n{message['content']}"
          messages[i] = {**message, "content": text}
          break
      return messages

    return begin


def render(
  tokenizer: tokenizers.Tokenizer,
  messages: Sequence[Message],
  *,
  add_generation_prompt: bool = False,
  **variables: Any,
) -> str:
  """Text of a conversation.

  Args:
    tokenizer: with a chat template.
    messages: the conversation.
    add_generation_prompt: end with what makes the model answer.
    **variables: what else the template reads, such as `tools` or
      `enable_thinking`.

  Raises:
    ValueError: the tokenizer has no template, or the template refuses the
      conversation.
  """
  text = _render(tokenizer, messages, add_generation_prompt, variables)
  return text.replace(_BEGIN, "").replace(_END, "")


def encode_prompt(
  tokenizer: tokenizers.Tokenizer, messages: Sequence[Message], **variables: Any
) -> list[int]:
  """Ids of a conversation that the model is to answer.

  Special tokens are those that the template writes, and no other.

  Raises:
    ValueError: as `render`.
  """
  text = render(tokenizer, messages, add_generation_prompt=True, **variables)
  return tokenizer.encode_chat(text)[0]


def encode(
  tokenizer: tokenizers.Tokenizer, messages: Sequence[Message], **variables: Any
) -> Encoded:
  """Ids of a whole conversation, and which tokens the assistant wrote.

  Those are what stands inside {% generation %} where the template has it.
  Otherwise they are what an assistant's message adds to the conversation before
  it with its generation prompt, the end of the turn included.

  A last message that the template would not write so, for its prompt begins
  the thinking or it leaves thinking out, is what is written behind that prompt:
  the message, and the end that the template gives to its turns. Where the
  prompt has begun to think and the message has no thought, it ends the thinking
  first.

  Raises:
    ValueError: as `render`; or the template does not show what the assistant
      wrote earlier, because it leaves out thinking or writes a turn in another
      way once others follow.
  """
  return _encode(tokenizer, *_written(tokenizer, messages, variables)).encoded


def takes_system(tokenizer: tokenizers.Tokenizer, chat: Chat) -> bool:
  """Whether the chat template writes what a system message says."""
  system = {"role": "system", "content": _SAID}
  try:
    text = render(tokenizer, [system, _TURN[0]], **chat.given)
    without = render(tokenizer, _TURN[:1], **chat.given)
  except ValueError:
    return False
  return text.count(_SAID) > without.count(_SAID)


def thinks(tokenizer: tokenizers.Tokenizer) -> bool:
  """Whether the chat template knows of thinking between tags of its own."""
  return _END_OF_THINK in _template(tokenizer)


def check_variables(
  tokenizer: tokenizers.Tokenizer, variables: Mapping[str, Any]
) -> None:
  """Raises ConfigError for a variable that the chat template never reads."""
  environment = _environment()
  known = meta.find_undeclared_variables(
    environment.parse(_template(tokenizer))
  ).difference(environment.globals, ("messages", "add_generation_prompt"))
  for name in variables:
    if name not in known:
      raise errors.ConfigError(
        f"config.prompts.variables has {name!r}, which the chat template does"
        f" not read; {errors.nearest(name, sorted(known))}"
      )


def end_of_turn(tokenizer: tokenizers.Tokenizer, chat: Chat) -> int | None:
  """The token with which the template ends what the assistant says.

  It is the first one without a text of its own of those that stand behind the
  content and are learned (`encode`). None where there is no such token.
  """
  messages = chat.beginning(tokenizer)(_TURN)
  text, spans = _written(tokenizer, messages, chat.given)
  found = _encode(tokenizer, text, spans)
  end = text.rindex(_SAID) + len(_SAID)
  for i, inside, start in zip(*found.encoded, found.starts, strict=True):
    if inside and start >= end and tokenizer.is_control(i):
      return i
  return None


def with_end_of_turn(
  tokenizer: tokenizers.Tokenizer, chat: Chat
) -> tokenizers.Tokenizer:
  """The tokenizer with the end of a turn among its stop tokens.

  What training teaches a policy to end with, what ends sampling, and what its
  saved files declare are then one. The files of a base model often stop at
  another token than its chat template writes (Qwen2.5: `<|endoftext|>` and
  `<|im_end|>`). The same tokenizer where nothing is to be added.
  """
  if tokenizer.chat_template is None:
    return tokenizer
  try:
    end = end_of_turn(tokenizer, chat)
    if end is None or end in tokenizer.eos_ids:
      return tokenizer
    renamed = copy.copy(tokenizer)
    eos = {"eos_token": tokenizer.piece(end)}
    renamed.special_tokens = dict(tokenizer.special_tokens) | eos
    # A template that writes the role itself must go on to write the old one.
    same = _turn(renamed, chat) == _turn(tokenizer, chat)
  except ValueError:
    return tokenizer  # Who asks under this template is told why.
  return _with_stop(tokenizer, end, named=same)


def _with_stop(
  tokenizer: tokenizers.Tokenizer, token: int, *, named: bool
) -> tokenizers.Tokenizer:
  """The tokenizer with one more stop token, which its saved files declare.

  Args:
    tokenizer: stays as it is.
    token: an id that is no stop token yet.
    named: whether the token is the `eos_token` from now on, where the
      tokenizer's files can name it, so that it comes first.
  """
  settings, stops = tokenizer.settings, (*tokenizer.eos_ids, token)
  if named and not isinstance(tokenizer, tokenizers.ByteTokenizer):
    stops = token, *tokenizer.eos_ids
    settings = settings.with_eos(tokenizer.piece(token))
  # As its saved files will be read.
  changed = tokenizer.with_settings(
    dataclasses.replace(settings, stop_ids=stops)
  )
  changed.chat_template = tokenizer.chat_template
  return changed


def _turn(tokenizer: tokenizers.Tokenizer, chat: Chat) -> str:
  """A conversation as the template writes it."""
  return render(tokenizer, chat.beginning(tokenizer)(_TURN), **chat.given)


class _Found(NamedTuple):
  """Ids of a conversation, and the character where each begins."""

  encoded: Encoded
  starts: list[int]


def _encode(
  tokenizer: tokenizers.Tokenizer, text: str, spans: list[tuple[int, int]]
) -> _Found:
  """Ids of a text, and which of them begin inside the spans."""
  ids, starts = tokenizer.encode_chat(text)
  begins = [begin for begin, _ in spans]
  if not set(begins) <= {*starts, len(text)}:
    # A token holds the end of a prompt and the begin of what is said. A policy
    # is given its prompt by itself.
    ids, starts = [], []
    for begin, end in zip([0, *begins], [*begins, len(text)], strict=True):
      more, places = tokenizer.encode_chat(text[begin:end])
      ids += more
      starts += [begin + place for place in places]
  inside = [any(a <= start < b for a, b in spans) for start in starts]
  return _Found(Encoded(ids, inside), starts)


def _written(
  tokenizer, messages, variables
) -> tuple[str, list[tuple[int, int]]]:
  """Text of a whole conversation, and the spans that the assistant wrote.

  Without {% generation %} they are told by rendering what leads up to each.
  """
  if _GENERATION.search(_template(tokenizer)):
    return _unmark(_render(tokenizer, messages, False, variables))
  text = render(tokenizer, messages, **variables)
  spans, afters = [], []
  for i, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    before = render(
      tokenizer, messages[:i], add_generation_prompt=True, **variables
    )
    after = render(tokenizer, messages[: i + 1], **variables)
    fault = _fault(message, before, after)
    if fault and i == len(messages) - 1:
      written = _behind_prompt(tokenizer, messages, before, variables)
      if written is not None:
        text = after = before + written
        fault = ""
    if not fault and not all(map(text.startswith, (*afters, after))):
      fault = "is written in another way once others follow"
    if fault:
      raise ValueError(
        f"Under this chat template message {i}, of the assistant, {fault}, so"
        " its tokens cannot be told for training. Put {% generation %} and"
        " {% endgeneration %} around what the assistant writes in the template,"
        " or end the conversation with this message."
      )
    afters.append(after)
    spans.append((len(before), len(after)))
  return text, spans


def _fault(message: Message, before: str, after: str) -> str:
  """What keeps a message from being told in a rendered conversation."""
  if not after.startswith(before):
    return "does not begin with the generation prompt"
  # Some templates leave out thinking.
  for part in (message.get("reasoning_content"), message.get("content")):
    if isinstance(part, str) and part.strip() not in after[len(before) :]:
      return "loses a part of its content, as thinking is lost in some"
  return ""


def _behind_prompt(tokenizer, messages, before, variables) -> str | None:
  """What the assistant says last, behind its prompt, with the turn's end.

  None where a template does not tell how it ends a turn, or there is more in
  the message than text.
  """
  message = messages[-1]
  said, thought = message.get("content"), message.get("reasoning_content")
  if not isinstance(said, str) or message.get("tool_calls"):
    return None
  shown = render(tokenizer, [*messages[:-1], _TURN[1]], **variables)
  _, found, end = shown.rpartition(_SAID)
  if not found:
    return None
  if thought:
    said = f"{_THINK}\n{thought.strip()}\n{_END_OF_THINK}\n\n{said}"
  if before.rstrip().endswith(_END_OF_THINK) and _END_OF_THINK in said:
    return None  # The prompt says that there is no thinking.
  if before.rstrip().endswith(_THINK):
    if said.lstrip().startswith(_THINK):
      # The blanks behind the tag are the prompt's.
      said = said.lstrip().removeprefix(_THINK).lstrip()
    elif _END_OF_THINK not in said:
      said = f"\n{_END_OF_THINK}\n\n{said}"
  return said + end


def _unmark(marked: str) -> tuple[str, list[tuple[int, int]]]:
  """The text without marks, and the spans between them."""
  text, spans, begin = "", [], 0
  for part in re.split(f"({_BEGIN}|{_END})", marked):
    if part == _BEGIN:
      begin = len(text)
    elif part == _END:
      spans.append((begin, len(text)))
    else:
      text += part
  return text, spans


def _template(tokenizer: tokenizers.Tokenizer) -> str:
  if tokenizer.chat_template is None:
    raise ValueError(
      "The tokenizer has no chat template; put one as chat_template.jinja into"
      " its directory, or ask in plain text (config.prompts.template)."
    )
  return tokenizer.chat_template


def _render(tokenizer, messages, add_generation_prompt, variables) -> str:
  if _BEGIN in str(messages) or _END in str(messages):
    raise ValueError("A message holds a noncharacter, U+FDD0 or U+FDD1.")
  given = {"tools": None, "documents": None} | variables
  try:
    return _compile(_template(tokenizer)).render(
      messages=messages,
      add_generation_prompt=add_generation_prompt,
      **tokenizer.special_tokens | given,
    )
  except (jinja2.TemplateError, TypeError) as error:
    raise ValueError(
      f"The chat template refuses the conversation: {error}"
    ) from error


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
  return _environment().from_string(source)


def _environment() -> sandbox.ImmutableSandboxedEnvironment:
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, ext.loopcontrols],
  )
  environment.filters["tojson"] = _to_json
  functions: dict[str, Any] = {
    "raise_exception": _raise,
    "strftime_now": lambda form: datetime.datetime.now().strftime(form),
  }
  environment.globals |= functions
  return environment


class _Generation(ext.Extension):
  """Marks what stands between {% generation %} and {% endgeneration %}."""

  tags = {"generation"}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    call = self.call_method("_mark")
    return nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _mark(self, caller):
    return _BEGIN + caller() + _END


def _to_json(value, ensure_ascii=False, indent=None, separators=None, **more):
  """JSON as models were trained on it; jinja's own would escape HTML."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    **more,
  )


def _raise(message: str):
  raise jinja2.TemplateError(message)
