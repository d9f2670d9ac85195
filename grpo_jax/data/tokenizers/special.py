"""What a tokenizer's directory says beside its vocabulary.

Special tokens, stop tokens and the chat template stand in files of their own,
in the layout of Hugging Face: `tokenizer_config.json`, `added_tokens.json`,
`special_tokens_map.json`, `generation_config.json` and `chat_template.jinja`.
"""

import dataclasses
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

_CONFIG = "tokenizer_config.json"
_MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_GENERATION = "generation_config.json"
_MODEL = "config.json"
_TEMPLATE = "chat_template.jinja"
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclasses.dataclass(frozen=True)
class Settings:
  """A directory's special tokens.

  Attributes:
    tokens: text of each role: bos_token, eos_token, pad_token, unk_token.
    added: id and text of tokens beside the vocabulary, and whether each is
      special, which is to say has no text of its own.
    stop_ids: what ends a sequence, by the generation config.
    adds_bos: whether a sequence begins with bos; None where no file says so.
    tokenizer_class: the class that `transformers` takes; "" if not named.
    chat_template: a jinja template of conversations; None if there is none.
    files: contents by name, for `save`.
  """

  tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
  added: tuple[tuple[int, str, bool], ...] = ()
  stop_ids: tuple[int, ...] = ()
  adds_bos: bool | None = None
  tokenizer_class: str = ""
  chat_template: str | None = None
  files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

  def save(self, directory: epath.PathLike, eos_ids: Iterable[int]) -> None:
    """Writes the files; the stop tokens too, where no file names all of them.

    Args:
      directory: where they go.
      eos_ids: the stop tokens.
    """
    files = dict(self.files)
    if files:
      declared = _content(files.get(_GENERATION))
      if set(_ids(declared)) != set(eos_ids):
        files[_GENERATION] = _json(declared | {"eos_token_id": list(eos_ids)})
    for name, content in files.items():
      write(epath.Path(directory) / name, content)

  def with_eos(self, text: str) -> "Settings":
    """The settings, and their files, with another token as `eos_token`."""
    files = dict(self.files)
    files[_CONFIG] = _json(_content(files.get(_CONFIG)) | {"eos_token": text})
    special = _content(files.get(_MAP))
    if "eos_token" in special:  # Older readers take it from there.
      files[_MAP] = _json(special | {"eos_token": text})
    tokens = dict(self.tokens) | {"eos_token": text}
    return dataclasses.replace(self, tokens=tokens, files=files)


def read(directory: epath.PathLike) -> Settings:
  """The special tokens of a directory; empty where it has no such files.

  Stop tokens are those of `generation_config.json`, or of the model's
  `config.json` where it is missing.

  Raises:
    ValueError: a file that is not JSON.
  """
  directory = epath.Path(directory)
  names = (_CONFIG, _MAP, _ADDED, _GENERATION, _TEMPLATE)
  files = {
    name: (directory / name).read_bytes()
    for name in names
    if (directory / name).exists()
  }

  def content(name: str) -> dict[str, Any]:
    path = directory / name
    raw = files.get(name)
    if raw is None:
      raw = path.read_bytes() if path.exists() else b"{}"
    try:
      return json.loads(raw)
    except ValueError as error:
      raise ValueError(f"{path} is not JSON: {error}.") from error

  config, special = content(_CONFIG), content(_MAP)
  tokens = {}
  for role in _ROLES:
    token = config.get(role, special.get(role))
    if token is not None:
      tokens[role] = token if isinstance(token, str) else token["content"]
  template = config.get("chat_template")
  if isinstance(template, list):  # Several, each with a name.
    named = {each["name"]: each["template"] for each in template}
    template = named.get("default")
  if _TEMPLATE in files:
    template = files[_TEMPLATE].decode()
  source = _GENERATION if _GENERATION in files else _MODEL
  return Settings(
    tokens,
    _added(config, special, content(_ADDED), tokens),
    tuple(_ids(content(source))),
    config.get("add_bos_token"),
    config.get("tokenizer_class") or "",
    template,
    files,
  )


def write(path: epath.Path, content: bytes) -> None:
  """Writes a file at once, so that no reader ever sees half of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  # A name of its own, for other processes may write the same.
  partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
  partial.write_bytes(content)
  partial.replace(path)


def _ids(generation: Mapping[str, Any]) -> list[int]:
  """The stop tokens that a generation config declares."""
  stop = generation.get("eos_token_id")
  return [] if stop is None else stop if isinstance(stop, list) else [stop]


def _content(raw: bytes | None) -> dict[str, Any]:
  return json.loads(raw) if raw else {}


def _json(content: Mapping[str, Any]) -> bytes:
  return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _added(config, special, added, tokens) -> tuple[tuple[int, str, bool], ...]:
  """Tokens of `tokenizer_config.json`, or of the older `added_tokens.json`."""
  found = {
    int(i): (token["content"], token.get("special", False))
    for i, token in config.get("added_tokens_decoder", {}).items()
  }
  more = special.get("additional_special_tokens") or []
  more = {t if isinstance(t, str) else t["content"] for t in more}
  for text, i in added.items():
    found.setdefault(i, (text, text in more or text in tokens.values()))
  return tuple((i, *found[i]) for i in sorted(found))
