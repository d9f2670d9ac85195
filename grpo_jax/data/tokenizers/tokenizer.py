"""Text to token ids and back.

Three tokenizers with one interface: sentencepiece, trained here on a corpus or
given; bytes, which need no training; and those of Hugging Face's checkpoints
(`data/huggingface.py`). The first two keep text as it is (no normalization), so
that what the policy wrote is what the rewards read. `encode` adds no special
token; ids that mean nothing are dropped by `decode`, which never raises: a
policy may draw a slot of the padded vocabulary that no piece occupies. So are
those that frame a sequence (bos, eos, pad). All others are written: special
tokens such as `<think>` are part of what a policy says.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import sentencepiece
from etils import epath

from grpo_jax.data.tokenizers import huggingface, pieces, special

_MODEL_FILE = "tokenizer.model"
_JSON_FILE = "tokenizer.json"
_MERGES_FILES = ("vocab.json", "merges.txt")
_LONGEST_TEXT = 1 << 20  # Bytes; sentencepiece skips longer ones silently.


class SentencePieceTokenizer:
  """A sentencepiece model.

  Attributes:
    vocab_size: number of pieces, special ones included.
    pad_id: fills empty slots. Masks come from lengths, so any id will do; a
      model without one pads with its end of sequence.
    bos_id: begins every sequence; None if the model has none.
    eos_ids: tokens that end a sequence.
    unknown_id: stands for what the vocabulary cannot write.
    special_tokens: text of each role, for chat templates.
    chat_template: a jinja template of conversations, or None.
    settings: what its directory says beside the vocabulary.
  """

  def __init__(
    self, model_proto: bytes, settings: special.Settings | None = None
  ):
    """Takes a model and what its directory says beside it.

    Raises:
      ValueError: nothing ends a sequence, or a token stands outside the model.
    """
    self._proto = model_proto
    self.settings = settings = settings or special.Settings()
    self._model = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
    self.vocab_size: int = self._model.vocab_size()
    bos, eos, pad = (
      self._model.bos_id(),
      self._model.eos_id(),
      self._model.pad_id(),
    )
    for i, text, _ in settings.added:
      if i >= self.vocab_size or self._model.id_to_piece(i) != text:
        raise ValueError(
          f"The added token {text!r}, id {i}, is no piece of tokenizer.model;"
          " give a tokenizer.json, which `save_pretrained` of transformers"
          " writes."
        )
    named = settings.tokens.get("eos_token")
    if named is not None:
      eos = self._model.piece_to_id(named)
    stop = dict.fromkeys((eos, *settings.stop_ids) if eos >= 0 else ())
    if not stop:
      raise ValueError("The sentencepiece model has no end-of-sequence piece.")
    wanted = bos >= 0 and settings.adds_bos is not False
    self.bos_id: int | None = bos if wanted else None
    self.eos_ids: tuple[int, ...] = tuple(stop)
    self.unknown_id: int | None = self._model.unk_id()
    self.pad_id: int = pad if pad >= 0 else eos
    roles = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    self.special_tokens = {
      role: self._model.id_to_piece(i) for role, i in roles.items() if i >= 0
    } | dict(settings.tokens)
    self.chat_template = settings.chat_template
    self._control = {
      self._model.id_to_piece(i): i
      for i in range(self.vocab_size)
      if self._model.is_control(i)
    }
    # Other control pieces are part of what a model says.
    self._frame = {bos, eos, pad, *stop}

  def encode(self, text: str) -> list[int]:
    """Ids of the text alone, without special tokens."""
    return self._model.encode(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text; on several threads."""
    return self._model.encode(list(texts))

  def encode_chat(self, text: str) -> tuple[list[int], list[int]]:
    """Ids of a rendered conversation, and the character where each begins.

    Control pieces written in it become their ids; the text between two of them
    is encoded by itself.
    """

    def encode(part: str) -> tuple[list[int], list[int]]:
      found = self._model.encode(part, return_type="proto").pieces
      begins = [p.begin for p in found]
      return [p.id for p in found], pieces.characters(part, begins)

    return pieces.encode_between(text, self._control, encode)

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Text of the ids; bos, eos, pad and unoccupied ids are dropped."""
    known = [
      i
      for i in map(int, ids)
      if 0 <= i < self.vocab_size and i not in self._frame
    ]
    parts = []
    for control, group in itertools.groupby(known, self._model.is_control):
      if control:
        parts += map(self._model.id_to_piece, group)
      elif parts:
        # The blank that begins a piece is one here, and not at the beginning.
        front = self._model.encode("a")
        after = self._model.decode([*front, *group])
        parts.append(after[len(self._model.decode(front)) :])
      else:
        parts.append(self._model.decode(list(group)))
    return "".join(parts)

  def piece(self, token: SupportsIndex) -> str:
    """How one id looks, for people to read; "" for an unoccupied id."""
    known = 0 <= int(token) < self.vocab_size
    return self._model.id_to_piece(int(token)) if known else ""

  def with_settings(
    self, settings: special.Settings
  ) -> "SentencePieceTokenizer":
    """The same model beside other special tokens."""
    return SentencePieceTokenizer(self._proto, settings)

  def is_control(self, token: int) -> bool:
    """Whether a token has a meaning and no text of its own."""
    return token in self._control.values()

  def save(self, directory: epath.PathLike) -> None:
    """Writes `tokenizer.model`, and what stood beside it, to the directory."""
    special.write(epath.Path(directory) / _MODEL_FILE, self._proto)
    self.settings.save(directory, self.eos_ids)


class ByteTokenizer:
  """One token per byte of UTF-8, and one for each of `symbols`.

  Attributes:
    vocab_size: pad, bos, eos, 256 bytes and the symbols.
    pad_id: fills empty slots.
    bos_id: begins every sequence.
    eos_ids: tokens that end a sequence.
    unknown_id: None, for bytes write everything.
    special_tokens: text of each role, for chat templates.
    chat_template: a jinja template of conversations, or None.
    settings: what its directory says beside the vocabulary.
  """

  _FIRST_BYTE = 3  # After pad, bos and eos.

  def __init__(
    self,
    symbols: Sequence[str] = (),
    settings: special.Settings | None = None,
  ):
    """Takes symbols and what the tokenizer's directory says beside them."""
    self._symbols = tuple(symbols)
    self.settings = settings or special.Settings()
    if len(set(self._symbols)) < len(self._symbols) or "" in self._symbols:
      raise ValueError(f"Symbols must differ and not be empty: {symbols}.")
    self.pad_id = 0
    self.bos_id: int = 1
    self.eos_ids: tuple[int, ...] = tuple(
      dict.fromkeys((2, *self.settings.stop_ids))
    )
    self.unknown_id: int | None = None
    first = self._FIRST_BYTE + 256
    self.vocab_size = first + len(self._symbols)
    self.special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    self.chat_template = self.settings.chat_template
    self._ids = {s: first + i for i, s in enumerate(self._symbols)}
    self._split = pieces.any_of(self._symbols)

  def encode(self, text: str) -> list[int]:
    """Ids of the text alone, without special tokens."""
    ids = []
    for part in self._split.split(text):
      if part in self._ids:
        ids.append(self._ids[part])
      else:
        # A lone surrogate has no UTF-8; it becomes a question mark.
        ids += [self._FIRST_BYTE + b for b in part.encode("utf-8", "replace")]
    return ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text."""
    return [self.encode(text) for text in texts]

  def encode_chat(self, text: str) -> tuple[list[int], list[int]]:
    """Ids of a rendered conversation, and the character where each begins."""

    def encode(part: str) -> tuple[list[int], list[int]]:
      ids = self.encode(part)
      sizes = [len(self._bytes(i)) for i in ids]
      begins = [sum(sizes[:n]) for n in range(len(sizes))]
      return ids, pieces.characters(part, begins)

    special_ids = {"<s>": self.bos_id, "</s>": 2}
    return pieces.encode_between(text, special_ids, encode)

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Text of the ids; special and unoccupied ids are dropped."""
    return b"".join(map(self._bytes, ids)).decode("utf-8", "replace")

  def piece(self, token: SupportsIndex) -> str:
    """How one id looks, for people to read; "" for an unoccupied id."""
    return self._bytes(token).decode("utf-8", "backslashreplace")

  def with_settings(self, settings: special.Settings) -> "ByteTokenizer":
    """The same symbols beside other special tokens."""
    return ByteTokenizer(self._symbols, settings)

  def is_control(self, token: int) -> bool:
    """Whether a token is no byte: one of pad, bos, eos, or a symbol."""
    return not 0 <= token - self._FIRST_BYTE < 256

  def save(self, directory: epath.PathLike) -> None:
    """Writes `tokenizer.json`, and what stood beside it, to the directory."""
    content = {"kind": "bytes", "symbols": self._symbols}
    path = epath.Path(directory) / _JSON_FILE
    special.write(path, json.dumps(content, ensure_ascii=False).encode())
    self.settings.save(directory, self.eos_ids)

  def _bytes(self, token: SupportsIndex) -> bytes:
    index = int(token) - self._FIRST_BYTE
    if 0 <= index < 256:
      return bytes([index])
    if 256 <= index < 256 + len(self._symbols):
      return self._symbols[index - 256].encode()
    return b""


Tokenizer = (
  SentencePieceTokenizer | ByteTokenizer | huggingface.HuggingFaceTokenizer
)


def decode_after(tokenizer: Tokenizer, ids: Iterable[SupportsIndex]) -> str:
  """Text of ids that follow others, as a completion follows its prompt.

  Where a piece begins with a blank, `decode` drops that of the first one.
  """
  front = tokenizer.encode("a")
  return tokenizer.decode([*front, *ids])[len(tokenizer.decode(front)) :]


class IncrementalDecoder:
  """Text of tokens as they come; never a part of a character.

  What `push` returned so far, with `flush` at the end, is the text that
  `decode` gives for all the tokens.
  """

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._ids: list[int] = []  # From the last token that had a text.
    self._returned = 0  # Characters of their text.

  def push(self, token: SupportsIndex) -> str:
    """Text that is certain now; "" inside a character of several tokens."""
    self._ids.append(int(token))
    text = self._tokenizer.decode(self._ids)
    # Bytes of a character whose end is missing decode to this one.
    whole = text.rstrip("\ufffd")
    new = whole[self._returned :]
    self._returned = max(self._returned, len(whole))
    # What stands before a token decides whether it begins with a blank, so one
    # with text stays.
    last = self._tokenizer.decode(self._ids[-1:])
    if whole == text and last:
      self._ids, self._returned = self._ids[-1:], len(last)
    return new

  def flush(self) -> str:
    """What is left: a character whose end never came."""
    return self._tokenizer.decode(self._ids)[self._returned :]


def train_sentencepiece(
  texts: Iterable[str],
  directory: epath.PathLike,
  *,
  vocab_size: int,
  symbols: Sequence[str] = (),
  byte_fallback: bool = False,
) -> SentencePieceTokenizer:
  """A byte-pair sentencepiece model of the texts, also saved to `directory`.

  Text is not normalized, digits are tokens of their own, and so is a newline.
  The same texts in the same order give the same model.

  Args:
    texts: the corpus, or enough of it; each at most a mebibyte.
    directory: where `tokenizer.model` goes.
    vocab_size: at most this many pieces; a small corpus gives fewer.
    symbols: strings that are one token wherever they occur, blanks included.
    byte_fallback: spell characters that the texts lack in bytes (256 more
      pieces) and not as an unknown.

  Returns:
    The tokenizer: pad 0, bos 1, eos 2, unknown 3, newline 4, then `symbols`.

  Raises:
    ValueError: `vocab_size` cannot hold the characters of the texts, or there
      are no texts.
  """
  symbols = [s for s in symbols if s != "\n"]
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      model_type="bpe",
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      split_digits=True,
      character_coverage=1.0,
      byte_fallback=byte_fallback,
      user_defined_symbols=["\n"] + [s.replace(" ", "▁") for s in symbols],
      pad_id=0,
      bos_id=1,
      eos_id=2,
      unk_id=3,
      unk_surface="\ufffd",
      max_sentence_length=_LONGEST_TEXT,
      num_threads=1,
      minloglevel=3,
    )
  except RuntimeError as error:
    raise ValueError(
      f"sentencepiece could not make {vocab_size=} pieces of the texts: {error}"
    ) from error
  tokenizer = SentencePieceTokenizer(model.getvalue())
  tokenizer.save(directory)
  return tokenizer


def load(directory: epath.PathLike) -> Tokenizer:
  """The tokenizer of a directory, by its own files.

  Those are `tokenizer.json`, else `tokenizer.model` of sentencepiece, else
  `vocab.json` with `merges.txt`; special tokens, stop tokens and the chat
  template come from the files beside them (`data/special.py`).

  Raises:
    FileNotFoundError: none of these is there.
    ValueError: a file that cannot be read, or that lacks what is needed.
  """
  directory = epath.Path(directory)
  settings = special.read(directory)
  names = (_JSON_FILE, _MODEL_FILE, *_MERGES_FILES)
  there = {name for name in names if (directory / name).exists()}
  try:
    if _JSON_FILE in there:
      content = (directory / _JSON_FILE).read_bytes()
      described = json.loads(content)
      if described.get("kind") == "bytes":
        return ByteTokenizer(described["symbols"], settings)
      return huggingface.from_json(content, settings)
    if _MODEL_FILE in there:
      content = (directory / _MODEL_FILE).read_bytes()
      return SentencePieceTokenizer(content, settings)
    if there.issuperset(_MERGES_FILES):
      vocab, merges = ((directory / n).read_bytes() for n in _MERGES_FILES)
      return huggingface.from_merges(vocab, merges, settings)
  except ValueError as error:
    raise ValueError(f"The tokenizer in {directory}: {error}") from error
  raise FileNotFoundError(
    f"No tokenizer in {directory}: neither {_JSON_FILE} nor {_MODEL_FILE} nor"
    f" {' with '.join(_MERGES_FILES)}."
  )


def fingerprint(tokenizer: Tokenizer) -> str:
  """A short name for what each id means and which end a sequence."""
  digest = hashlib.blake2b(str(tokenizer.eos_ids).encode(), digest_size=8)
  for i in range(tokenizer.vocab_size):
    digest.update(tokenizer.piece(i).encode("utf-8", "replace") + b"\0")
  return digest.hexdigest()


def difference(a: Tokenizer, b: Tokenizer) -> str:
  """What `a` has otherwise than `b`, "X and not Y"; "" where ids mean the same.

  Template and special roles do not count, stop tokens do.
  """
  if a.vocab_size != b.vocab_size:
    return f"{a.vocab_size} ids and not {b.vocab_size}"
  for i in range(a.vocab_size):
    if a.piece(i) != b.piece(i):
      return f"{a.piece(i)!r} as id {i} and not {b.piece(i)!r}"
  if set(a.eos_ids) != set(b.eos_ids):
    return f"the stop tokens {a.eos_ids} and not {b.eos_ids}"
  return ""
