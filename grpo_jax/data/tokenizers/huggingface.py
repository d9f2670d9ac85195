"""Tokenizers in Hugging Face's layouts, run by its `tokenizers` library.

Either one `tokenizer.json`, which holds everything, or the older `vocab.json`
and `merges.txt` of byte-level pair encoding, whose rule for splitting text
follows from the tokenizer's class.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import tokenizers
from etils import epath
from tokenizers import decoders, models, normalizers, pre_tokenizers

from grpo_jax.data.tokenizers import special

# How Qwen2 to Qwen3 cut text before merging: contractions, words with the sign
# before them, single digits, punctuation, line ends, blanks.
_QWEN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class HuggingFaceTokenizer:
  """A tokenizer of the `tokenizers` library.

  Special tokens that are written in a text become their ids, as they do in
  `transformers`. `decode` drops those that frame a sequence, and writes all
  others: `<think>` is a special token of some models, part of what they say.

  Attributes:
    vocab_size: one more than the largest id. A model may have more rows.
    pad_id: fills empty slots; the first stop token where none is named.
    bos_id: begins every sequence; None if the directory wants none.
    eos_ids: tokens that end a sequence: the tokenizer's, then the generation
      config's.
    unknown_id: stands for what the vocabulary cannot write; None if nothing
      does.
    special_tokens: text of each role, for chat templates.
    chat_template: a jinja template of conversations, or None.
    settings: what its directory says beside the vocabulary.
  """

  def __init__(
    self,
    model: tokenizers.Tokenizer,
    settings: special.Settings,
    files: dict[str, bytes],
  ):
    """Use `tokenizer.load`.

    Args:
      model: with its vocabulary.
      settings: the directory's special tokens.
      files: the vocabulary, for `save`.

    Raises:
      ValueError: no file names a stop token, or an added token has another id
        in the vocabulary.
    """
    self._model, self.settings, self._files = model, settings, files
    model.no_truncation()
    model.no_padding()
    self._add(settings)
    tokens = dict(settings.tokens)
    known = {
      i: token.content
      for i, token in model.get_added_tokens_decoder().items()
      if token.special
    }
    if "eos_token" not in tokens and not settings.stop_ids:
      if len(known) != 1:
        raise ValueError(
          "No file of the tokenizer names the token that ends a sequence; add"
          ' "eos_token" to its tokenizer_config.json.'
        )
      (tokens["eos_token"],) = known.values()
    stop = settings.stop_ids
    if "eos_token" in tokens:
      stop = (model.token_to_id(tokens["eos_token"]), *stop)
    known_stop = [i for i in stop if i is not None]
    if len(known_stop) < len(stop):
      raise ValueError(
        f"eos_token={tokens['eos_token']!r} is not in the vocabulary."
      )
    self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(known_stop))
    self.bos_id: int | None = self._find_bos(tokens, settings.adds_bos)
    pad = model.token_to_id(tokens.get("pad_token", ""))
    self.pad_id: int = self.eos_ids[0] if pad is None else pad
    unknown = getattr(model.model, "unk_token", None)
    self.unknown_id: int | None = model.token_to_id(unknown or "")
    self.vocab_size: int = 1 + max(model.get_vocab().values())
    roles = (tokens.get(f"{role}_token", "") for role in ("bos", "eos", "pad"))
    frame = map(model.token_to_id, roles)
    self._frame = {i for i in frame if i is not None} | set(self.eos_ids)
    self.special_tokens = tokens
    self.chat_template = settings.chat_template

  def encode(self, text: str) -> list[int]:
    """Ids of the text; none is added before or after it."""
    return self._model.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text; on several threads."""
    found = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
    return [each.ids for each in found]

  def encode_chat(self, text: str) -> tuple[list[int], list[int]]:
    """Ids of a rendered conversation, and the character where each begins."""
    found = self._model.encode(text, add_special_tokens=False)
    return found.ids, [start for start, _ in found.offsets]

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Text of the ids; bos, eos, pad and unoccupied ids are dropped."""
    known = [
      i
      for i in map(int, ids)
      if 0 <= i < self.vocab_size and i not in self._frame
    ]
    return self._model.decode(known, skip_special_tokens=False)

  def piece(self, token: SupportsIndex) -> str:
    """How one id looks, for people to read; "" for an unoccupied id."""
    known = 0 <= int(token) < self.vocab_size
    return (
      self._model.decode([int(token)], skip_special_tokens=False)
      if known
      else ""
    )

  def with_settings(self, settings: special.Settings) -> "HuggingFaceTokenizer":
    """The same vocabulary beside other special tokens."""
    return HuggingFaceTokenizer(self._model, settings, self._files)

  def is_control(self, token: int) -> bool:
    """Whether a token was added beside the vocabulary of text."""
    return token in self._model.get_added_tokens_decoder()

  def save(self, directory: epath.PathLike) -> None:
    """Writes the files that it was loaded from."""
    for name, content in self._files.items():
      special.write(epath.Path(directory) / name, content)
    self.settings.save(directory, self.eos_ids)

  def _add(self, settings: special.Settings) -> None:
    """Adds what stands beside the vocabulary, in the order of the ids."""
    for i, text, is_special in settings.added:
      if self._model.token_to_id(text) != i or is_special:
        token = tokenizers.AddedToken(
          text, special=is_special, normalized=False
        )
        self._model.add_tokens([token])
      if self._model.token_to_id(text) != i:
        raise ValueError(
          f"The added token {text!r} should have id {i}, and the vocabulary"
          f" gives it {self._model.token_to_id(text)}."
        )
    roles = [t for t in settings.tokens.values() if self._model.token_to_id(t)]
    self._model.add_special_tokens(
      [tokenizers.AddedToken(t, special=True, normalized=False) for t in roles]
    )

  def _find_bos(self, tokens, adds_bos: bool | None) -> int | None:
    """What begins a sequence: the config decides, then the tokenizer."""
    if adds_bos is not None:
      wanted = adds_bos and "bos_token" in tokens
      return self._model.token_to_id(tokens["bos_token"]) if wanted else None
    plain = self._model.encode("a", add_special_tokens=False).ids
    whole = self._model.encode("a", add_special_tokens=True).ids
    return whole[0] if whole[:1] != plain[:1] else None


def from_json(
  content: bytes, settings: special.Settings
) -> HuggingFaceTokenizer:
  """A tokenizer from the contents of `tokenizer.json`."""
  try:
    model = tokenizers.Tokenizer.from_str(content.decode())
  except Exception as error:  # The library raises Exception itself.
    raise ValueError(f"tokenizer.json cannot be read: {error}.") from error
  return HuggingFaceTokenizer(model, settings, {"tokenizer.json": content})


def from_merges(
  vocab: bytes, merges: bytes, settings: special.Settings
) -> HuggingFaceTokenizer:
  """A tokenizer from `vocab.json` and `merges.txt`.

  Raises:
    ValueError: of a class whose way of splitting text is not known here.
  """
  byte_level = pre_tokenizers.ByteLevel
  known = {
    "GPT2Tokenizer": (None, byte_level(add_prefix_space=False)),
    "Qwen2Tokenizer": (
      normalizers.NFC(),
      pre_tokenizers.Sequence(
        [
          pre_tokenizers.Split(tokenizers.Regex(_QWEN), "isolated"),
          byte_level(add_prefix_space=False, use_regex=False),
        ]
      ),
    ),
  }
  name = settings.tokenizer_class.removesuffix("Fast")
  if name not in known:
    raise ValueError(
      f"vocab.json and merges.txt do not say how text is split, and"
      f" tokenizer_class={name!r} is none of {', '.join(known)}; give a"
      " tokenizer.json, which `save_pretrained` of transformers writes."
    )
  rules = [line for line in merges.decode().split("\n") if line]
  pairs: list[Any] = [
    tuple(r.split(" ")) for r in rules if not r.startswith("#version")
  ]
  model = tokenizers.Tokenizer(models.BPE(json.loads(vocab), pairs))
  normalizer, model.pre_tokenizer = known[name]
  if normalizer is not None:
    model.normalizer = normalizer
  model.decoder = decoders.ByteLevel()
  files = {"vocab.json": vocab, "merges.txt": merges}
  return HuggingFaceTokenizer(model, settings, files)
