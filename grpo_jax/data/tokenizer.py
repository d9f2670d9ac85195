"""Text to token ids and back.

Two tokenizers with one interface: sentencepiece, trained here on a corpus, and
bytes, which need no training. Both keep text as it is (no normalization), so
that what the policy wrote is what the rewards read. `encode` adds no special
token; ids that mean nothing are dropped by `decode`, which never raises: a
policy may draw a slot of the padded vocabulary that no piece occupies.
"""

import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import sentencepiece
from etils import epath

_MODEL_FILE = "tokenizer.model"
_JSON_FILE = "tokenizer.json"
_LONGEST_TEXT = 1 << 20  # Bytes; sentencepiece skips longer ones silently.


class SentencePieceTokenizer:
  """A sentencepiece model.

  Attributes:
    vocab_size: number of pieces, special ones included.
    pad_id: fills empty slots. Masks come from lengths, so any id will do; a
      model without one pads with its end of sequence.
    bos_id: begins every sequence; None if the model has none.
    eos_ids: tokens that end a sequence.
  """

  def __init__(self, model_proto: bytes):
    self._proto = model_proto
    self._model = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
    self.vocab_size: int = self._model.vocab_size()
    bos, eos, pad = (
      self._model.bos_id(),
      self._model.eos_id(),
      self._model.pad_id(),
    )
    if eos < 0:
      raise ValueError("The sentencepiece model has no end-of-sequence piece.")
    self.bos_id: int | None = bos if bos >= 0 else None
    self.eos_ids: tuple[int, ...] = (eos,)
    self.pad_id: int = pad if pad >= 0 else eos

  def encode(self, text: str) -> list[int]:
    """Ids of the text alone, without special tokens."""
    return self._model.encode(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text; on several threads."""
    return self._model.encode(list(texts))

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Text of the ids; special and unoccupied ids are dropped."""
    known = [i for i in map(int, ids) if 0 <= i < self.vocab_size]
    return self._model.decode(known)

  def piece(self, token: SupportsIndex) -> str:
    """How one id looks, for people to read; "" for an unoccupied id."""
    known = 0 <= int(token) < self.vocab_size
    return self._model.id_to_piece(int(token)) if known else ""

  def save(self, directory: epath.PathLike) -> None:
    """Writes `tokenizer.model` to the directory."""
    _write(epath.Path(directory) / _MODEL_FILE, self._proto)


class ByteTokenizer:
  """One token per byte of UTF-8, and one for each of `symbols`.

  Attributes:
    vocab_size: pad, bos, eos, 256 bytes and the symbols.
    pad_id: fills empty slots.
    bos_id: begins every sequence.
    eos_ids: tokens that end a sequence.
  """

  _FIRST_BYTE = 3  # After pad, bos and eos.

  def __init__(self, symbols: Sequence[str] = ()):
    self._symbols = tuple(symbols)
    if len(set(self._symbols)) < len(self._symbols) or "" in self._symbols:
      raise ValueError(f"Symbols must differ and not be empty: {symbols}.")
    self.pad_id = 0
    self.bos_id: int | None = 1
    self.eos_ids: tuple[int, ...] = (2,)
    first = self._FIRST_BYTE + 256
    self.vocab_size = first + len(self._symbols)
    self._ids = {s: first + i for i, s in enumerate(self._symbols)}
    # Longer symbols first, so that one may begin with another.
    ordered = sorted(self._symbols, key=len, reverse=True)
    self._split = (
      re.compile("(" + "|".join(map(re.escape, ordered)) + ")")
      if ordered
      else None
    )

  def encode(self, text: str) -> list[int]:
    """Ids of the text alone, without special tokens."""
    ids = []
    for part in self._split.split(text) if self._split else (text,):
      if part in self._ids:
        ids.append(self._ids[part])
      else:
        # A lone surrogate has no UTF-8; it becomes a question mark.
        ids += [self._FIRST_BYTE + b for b in part.encode("utf-8", "replace")]
    return ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text."""
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Text of the ids; special and unoccupied ids are dropped."""
    return b"".join(map(self._bytes, ids)).decode("utf-8", "replace")

  def piece(self, token: SupportsIndex) -> str:
    """How one id looks, for people to read; "" for an unoccupied id."""
    return self._bytes(token).decode("utf-8", "backslashreplace")

  def save(self, directory: epath.PathLike) -> None:
    """Writes `tokenizer.json` to the directory."""
    content = {"kind": "bytes", "symbols": self._symbols}
    path = epath.Path(directory) / _JSON_FILE
    _write(path, json.dumps(content, ensure_ascii=False).encode())

  def _bytes(self, token: SupportsIndex) -> bytes:
    index = int(token) - self._FIRST_BYTE
    if 0 <= index < 256:
      return bytes([index])
    if 256 <= index < 256 + len(self._symbols):
      return self._symbols[index - 256].encode()
    return b""


Tokenizer = SentencePieceTokenizer | ByteTokenizer


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
  """The tokenizer that `save` wrote to the directory.

  Raises:
    FileNotFoundError: neither `tokenizer.model` nor `tokenizer.json` is there.
    ValueError: `tokenizer.json` is of a kind that is not supported.
  """
  directory = epath.Path(directory)
  model, description = directory / _MODEL_FILE, directory / _JSON_FILE
  if model.exists():
    return SentencePieceTokenizer(model.read_bytes())
  if not description.exists():
    raise FileNotFoundError(
      f"No tokenizer in {directory}: neither {_MODEL_FILE} nor {_JSON_FILE}."
    )
  content = json.loads(description.read_text())
  kind = content.get("kind", "Hugging Face" if "model" in content else None)
  if kind != "bytes":
    raise ValueError(
      f"{description} describes a tokenizer of kind {kind!r}; supported are "
      f"sentencepiece ({_MODEL_FILE}) and kind 'bytes'."
    )
  return ByteTokenizer(content["symbols"])


def _write(path: epath.Path, content: bytes) -> None:
  """Writes a file at once, so that no reader ever sees half of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".partial")
  partial.write_bytes(content)
  partial.replace(path)
