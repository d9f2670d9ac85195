"""Conversations as text and tokens, by the chat template of a tokenizer.

A message is a dict with `role` and `content`, and whatever else the template
reads (`tool_calls`, `reasoning_content`). Templates come with checkpoints and
are programs of others: they run in jinja's sandbox, which gives them neither
attributes of Python objects nor a way to change what they were given.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from jinja2 import ext, nodes, sandbox

from grpo_jax.data.tokenizers import tokenizer as tokenizers

Message = Mapping[str, Any]
# Noncharacters of Unicode: no text has them. Around what {% generation %} says.
_BEGIN, _END = "\ufdd0", "\ufdd1"
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Encoded(NamedTuple):
  """Ids of a conversation; which of them the assistant wrote."""

  ids: list[int]
  assistant: list[bool]


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

  Raises:
    ValueError: as `render`; or the template does not show what the assistant
      wrote, because it leaves out thinking or writes a turn in another way once
      others follow.
  """
  if _GENERATION.search(_template(tokenizer)):
    text, spans = _unmark(_render(tokenizer, messages, False, variables))
  else:
    text = render(tokenizer, messages, **variables)
    spans = _turns(tokenizer, messages, text, variables)
  ids, starts = tokenizer.encode_chat(text)
  inside = [any(a <= start < b for a, b in spans) for start in starts]
  return Encoded(ids, inside)


def _turns(tokenizer, messages, text, variables) -> list[tuple[int, int]]:
  """Spans of the assistant's messages, by rendering what leads up to each."""
  spans = []
  for i, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    before = render(
      tokenizer, messages[:i], add_generation_prompt=True, **variables
    )
    after = render(tokenizer, messages[: i + 1], **variables)
    said = (message.get("content") or "").strip()
    if not after.startswith(before):
      fault = "does not begin with the generation prompt"
    elif not text.startswith(after):
      fault = "is written in another way once others follow"
    elif said not in after[len(before) :]:
      fault = "loses a part of its content, as thinking is lost in some"
    else:
      spans.append((len(before), len(after)))
      continue
    raise ValueError(
      f"Under this chat template message {i}, of the assistant, {fault}, so"
      " its tokens cannot be told for training. Put {% generation %} and"
      " {% endgeneration %} around what the assistant writes in the template,"
      " or end the conversation with this message."
    )
  return spans


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
  return environment.from_string(source)


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
