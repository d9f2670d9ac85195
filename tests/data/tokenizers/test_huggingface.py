"""Real tokenizers: the ids of the libraries that they were made with."""

import csv
import json
import shutil

import numpy as np
import pytest
import sentencepiece
import tokenizers
import transformers
from transformers import tokenization_utils_base

from grpo_jax.data.tokenizers import tokenizer

NAMES = ("gpt2", "qwen", "deepseek_r1", "mistral_v1")
SMALL = {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<end>": 4}
BYTE_LEVEL = {
  "type": "ByteLevel",
  "add_prefix_space": False,
  "trim_offsets": True,
}
AWKWARD = (
  "",
  " ",
  "\n\n  two  blanks \n",
  "tab\there\r\n",
  "é 数学 🤔👩‍👩‍👧 ﬁ \u0301x",
  "12345+678=13023 it's WE'LL",
)


@pytest.fixture(scope="module")
def texts(shared_data):
  """500 English problems with their solutions, 100 in each of five tongues."""
  lines = (shared_data / "gsm8k" / "train.jsonl").read_text().splitlines()
  found = [
    "{question}\n{answer}".format(**json.loads(line)) for line in lines[:500]
  ]
  for language in ("en", "zh", "de", "fr", "ja"):
    path = shared_data / "mgsm" / f"mgsm_{language}.tsv"
    with path.open(encoding="utf-8", newline="") as file:
      rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
      found += [row[0] for row in list(rows)[:100]]
  assert len(found) == 1000
  return found


@pytest.fixture(scope="module", params=NAMES)
def pair(request, shared_data):
  """Our tokenizer of a directory, and that of transformers."""
  directory = shared_data / "tokenizers" / request.param
  known = {
    "gpt2": transformers.PreTrainedTokenizerFast,
    "qwen": transformers.Qwen2Tokenizer,
    "deepseek_r1": transformers.PreTrainedTokenizerFast,
  }
  theirs = (
    known[request.param].from_pretrained(directory)
    if request.param in known
    else llama_tokenizer(directory / "tokenizer.model")
  )
  return tokenizer.load(directory), theirs


def llama_tokenizer(path):
  """The pieces of a sentencepiece model, merged by the `tokenizers` library.

  In the order of their scores, which transformers 5.23 leaves out: it joins two
  blanks before all else, and sentencepiece does so last.
  """
  model = sentencepiece.SentencePieceProcessor(model_file=str(path))
  vocab = {model.id_to_piece(i): i for i in range(model.vocab_size())}
  scores = {piece: model.get_score(i) for piece, i in vocab.items()}
  merges = tokenization_utils_base.generate_merges(vocab, scores)
  bpe = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True)
  )
  bpe.normalizer = tokenizers.normalizers.Sequence(
    [
      tokenizers.normalizers.Prepend("▁"),
      tokenizers.normalizers.Replace(" ", "▁"),
    ]
  )
  return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe)


def test_ids_are_those_of_transformers(pair, texts):
  ours, theirs = pair
  texts = [*texts, *AWKWARD]
  expected = theirs(texts, add_special_tokens=False).input_ids
  assert ours.encode_batch(texts) == expected
  assert [ours.encode(text) for text in texts[-20:]] == expected[-20:]


def test_text_comes_back(pair, texts):
  ours, _ = pair
  nfc = "é 数学 🤔👩‍👩‍👧 ﬁ x"  # Qwen composes what is written in parts.
  for text in [*texts[::10], *AWKWARD[:4], nfc]:
    assert ours.decode(ours.encode(text)) == text


def test_tokens_one_by_one_give_the_text_and_no_half_character(pair, texts):
  ours, _ = pair
  for text in [*texts[::50], *AWKWARD]:
    ids = ours.encode(text)
    decoder = tokenizer.IncrementalDecoder(ours)
    parts = [decoder.push(token) for token in ids]
    assert not any("\ufffd" in part for part in parts)
    assert "".join(parts) == ours.decode(ids)
    assert decoder.flush() == ""


def test_random_tokens_one_by_one_give_what_decoding_them_gives(pair):
  ours, _ = pair
  rng = np.random.default_rng(0)
  # Many are parts of characters, special or unoccupied.
  for bound in (300, ours.vocab_size + 10):
    for _ in range(50):
      ids = rng.integers(0, bound, size=30)
      decoder = tokenizer.IncrementalDecoder(ours)
      parts = [decoder.push(token) for token in ids]
      assert "".join(parts) + decoder.flush() == ours.decode(ids)


def test_decoding_never_raises(pair):
  ours, _ = pair
  assert ours.decode([-1, ours.vocab_size, 10**9]) == ""
  assert ours.piece(10**9) == ""
  rng = np.random.default_rng(0)
  for token in rng.integers(0, ours.vocab_size, size=500):
    assert isinstance(ours.piece(token), str)


def test_what_was_saved_loads_and_is_the_same(pair, texts, tmp_path):
  ours, _ = pair
  ours.save(tmp_path)
  again = tokenizer.load(tmp_path)
  for name in ("vocab_size", "pad_id", "bos_id", "eos_ids", "chat_template"):
    assert getattr(again, name) == getattr(ours, name)
  assert again.encode_batch(texts[::20]) == ours.encode_batch(texts[::20])


def test_special_tokens_are_those_of_the_files(shared_data):
  loaded = {
    name: tokenizer.load(shared_data / "tokenizers" / name) for name in NAMES
  }
  special = {
    name: (t.bos_id, t.eos_ids, t.pad_id) for name, t in loaded.items()
  }
  assert special == {
    # The only special token that it has.
    "gpt2": (None, (50256,), 50256),
    "qwen": (None, (151645,), 151643),
    "deepseek_r1": (0, (1,), 1),
    "mistral_v1": (1, (2,), 2),
  }
  assert loaded["qwen"].encode("<think>") == [151667]
  assert loaded["qwen"].decode([151667, 151645]) == "<think>"


def test_stop_tokens_are_the_tokenizers_and_the_generation_configs(
  shared_data, tmp_path
):
  source = shared_data / "tokenizers" / "qwen"
  for file in source.iterdir():
    shutil.copy(file, tmp_path)
  (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
  assert tokenizer.load(tmp_path).eos_ids == (151645, 7)
  path = tmp_path / "generation_config.json"
  path.write_text('{"eos_token_id": [151645, 151643]}')
  loaded = tokenizer.load(tmp_path)
  assert loaded.eos_ids == (151645, 151643)
  loaded.save(tmp_path / "saved")
  assert tokenizer.load(tmp_path / "saved").eos_ids == loaded.eos_ids


def small(directory, config=None, **more):
  """A directory with a tokenizer of five tokens."""
  content = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": BYTE_LEVEL,
    "decoder": BYTE_LEVEL,
    "model": {"type": "BPE", "vocab": SMALL, "merges": ["a b"]},
  }
  directory.mkdir(exist_ok=True)
  path = directory / "tokenizer.json"
  path.write_text(json.dumps(content | more))
  path = directory / "tokenizer_config.json"
  path.write_text(json.dumps(config or {}))
  return directory


def test_added_tokens_and_a_beginning_come_from_the_config(tmp_path):
  config = {
    "add_bos_token": True,
    "bos_token": "<begin>",
    "eos_token": {"content": "<end>"},
    "added_tokens_decoder": {
      "5": {"content": "<begin>", "special": True},
      "6": {"content": "<think>", "special": False},
    },
  }
  loaded = tokenizer.load(small(tmp_path, config))
  assert loaded.encode("ab<think>a<end>") == [2, 6, 0, 4]
  assert loaded.decode([5, 2, 6, 0, 4]) == "ab<think>a"
  assert (loaded.bos_id, loaded.eos_ids, loaded.vocab_size) == (5, (4,), 7)
  config["add_bos_token"] = False
  assert tokenizer.load(small(tmp_path, config)).bos_id is None
  config["added_tokens_decoder"]["9"] = {"content": "<far>"}
  with pytest.raises(ValueError, match="'<far>' should have id 9"):
    tokenizer.load(small(tmp_path, config))


def test_a_beginning_of_the_tokenizer_itself_is_found(tmp_path):
  config = {"eos_token": "<end>", "bos_token": "b"}
  processor = {
    "type": "TemplateProcessing",
    "single": [
      {"SpecialToken": {"id": "b", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"b": {"id": "b", "ids": [1], "tokens": ["b"]}},
  }
  directory = small(tmp_path, config, post_processor=processor)
  assert tokenizer.load(directory).bos_id == 1


def test_what_is_missing_is_named(tmp_path, shared_data):
  with pytest.raises(ValueError, match='add "eos_token"'):
    tokenizer.load(small(tmp_path / "a"))
  with pytest.raises(ValueError, match="eos_token='<no>' is not in"):
    tokenizer.load(small(tmp_path / "a", {"eos_token": "<no>"}))
  (tmp_path / "a" / "tokenizer_config.json").write_text("{")
  with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
    tokenizer.load(tmp_path / "a")
  qwen = shared_data / "tokenizers" / "qwen"
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(qwen / name, tmp_path)
  with pytest.raises(ValueError, match="do not say how text is split"):
    tokenizer.load(tmp_path)
  mistral = shared_data / "tokenizers" / "mistral_v1" / "tokenizer.model"
  (tmp_path / "m").mkdir()
  shutil.copy(mistral, tmp_path / "m")
  (tmp_path / "m" / "added_tokens.json").write_text('{"[PAD]": 32000}')
  with pytest.raises(ValueError, match="no piece of tokenizer.model"):
    tokenizer.load(tmp_path / "m")
