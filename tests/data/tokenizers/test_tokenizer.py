"""Tokenizers: round trips, whole symbols, ids that mean nothing."""

import numpy as np
import pytest

from grpo_jax.data import prompts
from grpo_jax.data.sources import tasks
from grpo_jax.data.tokenizers import tokenizer

SYMBOLS = tasks.TASKS["pair_sum"].symbols
AWKWARD = [
  "",
  " ",
  "\n\n  two  blanks \n",
  "tab\there",
  "12345+678=13023",
  "<think><think></answer> wait  wait ",
]


@pytest.fixture(scope="module")
def corpus():
  template = prompts.TEMPLATES["plain"]
  return list(tasks.corpus("pair_sum", size=2000, seed=0, template=template))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
  return tokenizer.train_sentencepiece(
    [*corpus, *AWKWARD],
    tmp_path_factory.mktemp("tokenizer"),
    vocab_size=96,
    symbols=SYMBOLS,
  )


@pytest.fixture(params=["sentencepiece", "bytes"])
def any_tokenizer(request, trained):
  return {
    "sentencepiece": trained,
    "bytes": tokenizer.ByteTokenizer(SYMBOLS),
  }[request.param]


def test_decoding_gives_back_what_was_encoded(any_tokenizer, corpus):
  for text in [*AWKWARD, *corpus[:500]]:
    assert any_tokenizer.decode(any_tokenizer.encode(text)) == text


def test_a_batch_is_encoded_like_its_texts(any_tokenizer, corpus):
  one_by_one = [any_tokenizer.encode(text) for text in corpus[:50]]
  assert any_tokenizer.encode_batch(corpus[:50]) == one_by_one


def test_decoding_never_raises(any_tokenizer):
  rng = np.random.default_rng(0)
  for _ in range(200):
    ids = rng.integers(0, 512, size=20).astype(np.int32)
    assert isinstance(any_tokenizer.decode(ids), str)
  assert any_tokenizer.decode([-1, any_tokenizer.vocab_size, 10**6]) == ""


def test_special_tokens_have_no_text(any_tokenizer):
  special = [
    any_tokenizer.pad_id,
    any_tokenizer.bos_id,
    *any_tokenizer.eos_ids,
  ]
  assert len(set(special)) == 3
  middle = any_tokenizer.encode("17+25=42")
  assert any_tokenizer.decode([*special, *middle, *special]) == "17+25=42"


def test_special_tokens_cannot_be_written(any_tokenizer):
  ids = any_tokenizer.encode("<pad><s></s><unk>")
  special = {any_tokenizer.pad_id, any_tokenizer.bos_id}
  assert special.isdisjoint(ids)
  assert not set(any_tokenizer.eos_ids).intersection(ids)


def test_each_symbol_is_one_token(any_tokenizer):
  for symbol in SYMBOLS:
    assert len(any_tokenizer.encode(symbol)) == 1


def test_what_was_saved_loads_and_encodes_the_same(
  any_tokenizer, corpus, tmp_path
):
  any_tokenizer.save(tmp_path / "deep" / "er")
  loaded = tokenizer.load(tmp_path / "deep" / "er")
  assert type(loaded) is type(any_tokenizer)
  assert loaded.vocab_size == any_tokenizer.vocab_size
  assert loaded.eos_ids == any_tokenizer.eos_ids
  for text in corpus[:50]:
    assert loaded.encode(text) == any_tokenizer.encode(text)


def test_digits_and_newlines_are_tokens_of_their_own(trained):
  assert len(trained.encode("1234567890")) == 10
  assert len(trained.encode("\n\n\n")) == 3


def test_pair_sum_needs_few_pieces_and_few_tokens(corpus, tmp_path):
  trained = tokenizer.train_sentencepiece(
    corpus, tmp_path, vocab_size=96, symbols=SYMBOLS
  )
  assert trained.vocab_size <= 72
  prompt = prompts.TEMPLATES["plain"].format(question="35,22,13,19=35?")
  assert len(trained.encode(prompt)) == 19
  one_try = "35+22=57:35 no wait "
  for tries in (1, 2, 5):
    text = "<think>" + tries * one_try
    assert len(trained.encode(text)) == 1 + 13 * tries


def test_training_twice_gives_the_same_model(corpus, tmp_path):
  for folder in ("a", "b"):
    tokenizer.train_sentencepiece(
      corpus[:300], tmp_path / folder, vocab_size=60, symbols=SYMBOLS
    )
  first, second = (
    (tmp_path / folder / "tokenizer.model").read_bytes() for folder in "ab"
  )
  assert first == second


def test_an_unknown_character_decodes_to_the_replacement_character(trained):
  assert trained.decode(trained.encode("1é2")) == "1\ufffd2"


def test_byte_fallback_spells_unknown_characters(corpus, tmp_path):
  trained = tokenizer.train_sentencepiece(
    corpus, tmp_path, vocab_size=400, symbols=SYMBOLS, byte_fallback=True
  )
  assert trained.decode(trained.encode("1é2 数")) == "1é2 数"


def test_texts_longer_than_a_page_are_learned_from(tmp_path):
  # sentencepiece skips "sentences" over 4192 bytes unless told otherwise.
  trained = tokenizer.train_sentencepiece(
    ["xyz " * 5000], tmp_path, vocab_size=16
  )
  assert trained.decode(trained.encode("xyz")) == "xyz"


def test_a_vocabulary_smaller_than_the_alphabet_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="vocab_size=8"):
    tokenizer.train_sentencepiece(["abcdefghijklmnopq"], tmp_path, vocab_size=8)
  with pytest.raises(ValueError, match="sentencepiece"):
    tokenizer.train_sentencepiece([], tmp_path, vocab_size=64)


def test_a_missing_or_foreign_tokenizer_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json"):
    tokenizer.load(tmp_path)
  (tmp_path / "tokenizer.json").write_text('{"model": {"type": "none"}}')
  with pytest.raises(ValueError, match="tokenizer.json cannot be read"):
    tokenizer.load(tmp_path)


def test_a_real_sentencepiece_model_loads(shared_data):
  real = tokenizer.load(shared_data / "tokenizers" / "mistral_v1")
  assert real.vocab_size == 32000
  assert "48 of her friends" in real.decode(
    real.encode("Natalia sold clips to 48 of her friends")
  )
  for token in range(real.vocab_size + 5):
    real.decode([token])
