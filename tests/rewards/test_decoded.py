"""What a completion says reaches the rewards whole, with every tokenizer."""

import io
import json
import shutil

import numpy as np
import pytest
import sentencepiece

from grpo_jax import types
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.rewards import answer, format
from grpo_jax.sampling import generate

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
TEXTS = (
  "<think>17 + 25 = 42, so it is.</think>\n<answer>42</answer>",
  "<think>\n4\u00b2\u2026 \u7b54\u6848\u662f\n\n</think> <answer> 42</answer>",
  "<think>x</think><answer>\\boxed{4.2 \\times 10^{1}}</answer>",
)


def completion(tok, text):
  """The text as a policy draws it, its stop token included, and is read."""
  ids = np.array(tok.encode(text) + [tok.eos_ids[0]])
  return generate.decoded(tok, ids[None, None], np.ones((1, 1, len(ids)), bool))


def check(tok):
  problem = types.Problem("17+25?", "42", "gsm8k", "17+25?")
  for text in TEXTS:
    (read,) = completion(tok, text)
    assert read.strip() == text
    assert format.well_formed([problem], [read]) == [1.0]
    assert answer.accuracy([problem], [read]).scores == [1.0]


@pytest.mark.parametrize("name", ["deepseek_r1", "gpt2", "mistral_v1", "qwen"])
def test_of_real_tokenizers(name, shared_data):
  check(tokenizer.load(shared_data / "tokenizers" / name))


@pytest.mark.parametrize("name", ["deepseek_r1", "gpt2", "qwen"])
def test_where_the_tags_are_special_tokens(name, shared_data, tmp_path):
  """As a user has them who adds `additional_special_tokens` for R1's format."""
  directory = tmp_path / name
  shutil.copytree(shared_data / "tokenizers" / name, directory)
  size = tokenizer.load(directory).vocab_size
  config = json.loads((directory / "tokenizer_config.json").read_text())
  if name == "gpt2":
    config["eos_token"] = "<|endoftext|>"
  added = config.setdefault("added_tokens_decoder", {})
  ids = {t["content"]: i for i, t in added.items()}
  loaded = tokenizer.load(directory)
  for tag in TAGS:
    known = loaded.encode(tag)
    i = ids.get(tag, str(known[0]) if len(known) == 1 else None)
    if i is None:
      i, size = str(size), size + 1
    added[i] = {"content": tag, "special": True}
  (directory / "tokenizer_config.json").write_text(json.dumps(config))
  tok = tokenizer.load(directory)
  assert all(len(tok.encode(tag)) == 1 for tag in TAGS)
  check(tok)
  # A special token between two digits does not make one number of them.
  between = tok.encode("4") + tok.encode("<think>") + tok.encode("2")
  assert tok.decode(between) == "4<think>2"


@pytest.mark.parametrize("dummy", [True, False])
def test_where_the_tags_are_control_pieces_of_sentencepiece(dummy):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([t for t in TEXTS for _ in range(3)]),
    model_writer=model,
    model_type="bpe",
    vocab_size=400,
    hard_vocab_limit=False,
    byte_fallback=True,
    normalization_rule_name="identity",
    add_dummy_prefix=dummy,
    remove_extra_whitespaces=False,
    control_symbols=list(TAGS),
    minloglevel=3,
  )
  tok = tokenizer.SentencePieceTokenizer(model.getvalue())
  problem = types.Problem("17+25?", "42", "gsm8k", "17+25?")
  for text in TEXTS:
    ids, _ = tok.encode_chat(text)
    ids = np.array([*ids, tok.eos_ids[0]])
    mask = np.ones((1, 1, len(ids)), bool)
    (read,) = generate.decoded(tok, ids[None, None], mask)
    # encode_chat begins each part with the dummy blank.
    assert "".join(read.split()) == "".join(text.split())
    assert format.well_formed([problem], [read]) == [1.0]
    assert answer.accuracy([problem], [read]).scores == [1.0]


def test_the_blank_in_front_of_the_first_word_is_kept(shared_data):
  tok = tokenizer.load(shared_data / "tokenizers" / "mistral_v1")
  ids = tok.encode("so 42")  # Pieces that begin words begin with a blank.
  assert tok.decode(ids[1:]) == "42"
  assert tokenizer.decode_after(tok, ids[1:]) == " 42"
