"""Conversations in rows: each once an epoch, loss on the assistant alone."""

import collections

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.data import conversations, prompts
from grpo_jax.data.tokenizers import special, tokenizer
from grpo_jax.train import text_loss

BYTES = tokenizer.ByteTokenizer()
# Turns end with </s>; what the assistant wrote is told by rendering prefixes.
TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
  "{{ eos_token }}"
  "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHATTY = tokenizer.ByteTokenizer(
  settings=special.Settings(chat_template=TEMPLATE)
)
PLAIN = "Q: {question}\nA:"


def example(question, answer):
  return types.Example(
    (
      {"role": "user", "content": question},
      {"role": "assistant", "content": answer},
    ),
    "test",
  )


def some(count=40, longest=12, seed=0):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, longest, (count, 2)).tolist()
  return [
    example(f"{i}" + "?" * a, "abcdefghijkl"[:b] + f"{i}")
    for i, (a, b) in enumerate(lengths)
  ]


def source(examples, tok=BYTES, template=PLAIN, **changes):
  fields = dict(num_rows=3, row_length=48, num_epochs=2, seed=0)
  return conversations.ConversationSource(
    examples, tok, template, **fields | changes
  )


def segments_of(batch):
  """Ids, positions and weights of every segment of a batch."""
  for row in range(len(batch.tokens)):
    for segment in range(1, batch.segments[row].max() + 1):
      inside = batch.segments[row] == segment
      yield (
        tuple(batch.tokens[row, inside].tolist()),
        batch.positions[row, inside].tolist(),
        batch.weights[row, inside],
      )


def text_of(ids):
  return BYTES.decode(ids)


def test_every_conversation_comes_exactly_once_an_epoch():
  examples = some()
  batches = source(examples, num_epochs=3)
  want = collections.Counter(
    PLAIN.replace("{question}", e.messages[0]["content"])
    + e.messages[1]["content"]
    for e in examples
  )
  found = [collections.Counter()]
  for step in range(batches.num_steps):
    batch = batches(step)
    assert batch.tokens.shape == (3, 48)
    found[-1].update(text_of(ids) for ids, _, _ in segments_of(batch))
    if found[-1].total() == len(examples):
      found.append(collections.Counter())
  assert found == [want, want, want, collections.Counter()]


def test_epochs_and_seeds_have_orders_of_their_own():
  batches, again = source(some()), source(some())
  other = source(some(), seed=1)
  half = batches.num_steps // 2
  np.testing.assert_array_equal(batches(3).tokens, again(3).tokens)
  assert (batches(0).tokens != batches(half).tokens).any()
  assert (batches(0).tokens != other(0).tokens).any()


def test_plain_loss_is_on_the_answer_and_its_end():
  batch = source([example("2+3", "<a>5")], num_rows=1, num_epochs=1)(0)
  ((ids, positions, weights),) = segments_of(batch)
  prompt = prompts.encode_prompts(["Q: 2+3\nA:"], BYTES, 48)[0].tolist()
  answer = [*BYTES.encode("<a>5"), BYTES.eos_ids[0]]
  assert list(ids) == prompt + answer
  assert positions == list(range(len(ids)))
  np.testing.assert_allclose(weights[: len(prompt)], 0)
  np.testing.assert_allclose(weights[len(prompt) :], 1 / len(answer))


def test_chat_loss_is_on_what_the_assistant_wrote():
  talk = types.Example(
    (
      {"role": "system", "content": "be brief"},
      {"role": "user", "content": "hi"},
      {"role": "assistant", "content": "hello"},
      {"role": "user", "content": "bye"},
      {"role": "assistant", "content": "ciao"},
    ),
    "test",
  )
  batch = source([talk], CHATTY, prompts.CHAT, num_rows=1, row_length=99)(0)
  ((ids, _, weights),) = segments_of(batch)
  learned = [i for i, w in zip(ids, weights, strict=True) if w]
  end = BYTES.eos_ids[0]
  assert learned == [*BYTES.encode("hello"), end, *BYTES.encode("ciao"), end]
  assert text_of(ids).startswith("[system]be brief[user]hi[assistant]")
  assert ids[0] == BYTES.bos_id


def test_weights_of_a_batch_sum_to_one_and_padding_has_none():
  batches = source(some(), num_rows=4)
  for step in range(batches.num_steps):
    batch = batches(step)
    assert batch.weights.sum() == pytest.approx(1)
    assert not batch.weights[batch.segments == 0].any()
    assert not batch.weights[batch.positions == 0].any()
    assert np.unique(batch.weights).size == 2
  assert (batch.tokens[batch.segments == 0] == BYTES.pad_id).all()


def test_the_last_batch_of_an_epoch_is_filled_with_empty_rows():
  batches = source(some(5), num_rows=64)
  assert batches.num_steps == 2
  rows = batches(0).segments.any(axis=1)
  assert rows.any() and not rows.all()


def test_packed_and_padded_rows_give_the_same_loss_and_gradient():
  cfg = helpers.tiny(num_layers=1)
  params = helpers.make_params(cfg)
  examples = some(9)
  encoded = conversations.encode(examples, BYTES, PLAIN)
  packed = source(examples, num_rows=8, num_epochs=1)(0)
  total = sum(learned.sum() for _, learned in encoded)
  shape = len(encoded), 48
  tokens, segments, positions = np.zeros((3, *shape), np.int32)
  weights = np.zeros(shape, np.float32)
  for row, (ids, learned) in enumerate(encoded):
    inside = slice(len(ids))
    tokens[row, inside], segments[row, inside] = ids, 1
    positions[row, inside] = np.arange(len(ids))
    weights[row, inside] = learned / total
  padded = types.TextBatch(tokens, segments, positions, weights)
  assert packed.segments.max() > 1, "several share a row"

  @jax.jit
  def gradient(batch):
    def loss(params):
      return text_loss.loss_fn(params, batch, cfg=cfg)[0]

    return jax.value_and_grad(loss)(params)

  found = [
    gradient(jax.tree.map(jnp.asarray, b.replace(tokens=b.tokens % 32)))
    for b in (packed, padded)
  ]
  helpers.assert_trees_close(*found, rtol=1e-4, atol=1e-6)


def test_what_is_longer_than_a_row_is_left_out_and_counted():
  long = example("?" * 40, "answer")
  batches = source([*some(6), long, long])
  assert (batches.num_kept, batches.num_too_long) == (6, 2)
  texts = [
    text_of(ids)
    for step in range(batches.num_steps)
    for ids, _, _ in segments_of(batches(step))
  ]
  assert len(texts) == 2 * 6 and not any("?" * 40 in text for text in texts)


def test_rows_are_filled_first_fit():
  assert conversations.first_fit([0, 1, 2, 3], [5, 6, 4, 2], 10) == [
    [0, 2],
    [1, 3],
  ]
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 100, 20_000).tolist()
  rows = conversations.first_fit(range(len(lengths)), lengths, 128)
  assert sorted(sum(rows, [])) == list(range(len(lengths)))
  sums = [sum(lengths[i] for i in row) for row in rows]
  assert max(sums) <= 128
  assert sum(lengths) / (128 * len(rows)) > 0.95


def test_an_answer_is_encoded_as_it_stands_after_its_prompt(tmp_path):
  texts = ["Q: 2+3\nA:<think>ok</think>5", "say it", "A: 5"] * 5
  tok = tokenizer.train_sentencepiece(
    texts, tmp_path, vocab_size=60, symbols=("<think>", "</think>")
  )
  ((ids, learned),) = conversations.encode([example("2+3", " 5")], tok, PLAIN)
  assert ids.tolist() == [
    tok.bos_id,
    *tok.encode("Q: 2+3\nA: 5"),
    tok.eos_ids[0],
  ]
  assert tok.decode(ids[learned]) == " 5"


@pytest.mark.parametrize(
  ("examples", "tok", "template", "message"),
  [
    ([], BYTES, PLAIN, "There are no conversations"),
    (
      [example("?" * 60, "a"), example("?" * 50, "a")],
      BYTES,
      PLAIN,
      r"All 2 conversations are longer than row_length=48; .* 59 tokens",
    ),
    (
      [example("a", "b")],
      BYTES,
      prompts.CHAT,
      "tokenizer has no chat template",
    ),
    (
      [example("a", "b"), types.Example(({"role": "user"},), "test")],
      BYTES,
      PLAIN,
      'Conversation 1 has messages of user, .*template="chat"',
    ),
    ([example("a", None)], BYTES, PLAIN, "a content that is no text"),
    (
      [types.Example(({"role": "user", "content": "a"},), "test")],
      CHATTY,
      prompts.CHAT,
      "Conversation 0 has nothing to learn",
    ),
  ],
)
def test_bad_conversations_are_one_sentence(examples, tok, template, message):
  with pytest.raises(ValueError, match=message):
    source(examples, tok, template)


def test_text_of_another_tokenizer_is_refused_by_its_character(tmp_path):
  tok = tokenizer.train_sentencepiece(
    ["Q: A: ab 1"] * 9, tmp_path, vocab_size=30
  )
  assert conversations.encode([example("1", "ab")], tok, PLAIN)
  with pytest.raises(ValueError, match="Conversation 1 has .* write: '对'"):
    conversations.encode([example("1", "ab"), example("1", "a对")], tok, PLAIN)


def test_progress_of_encoding_is_told(monkeypatch):
  monkeypatch.setattr(conversations, "_SECONDS_BETWEEN_LINES", 0.0)
  lines = []
  source(some(1500), tell=lines.append)
  assert lines == [
    "1,000 of 1,500 conversations are encoded.",
    "1,500 of 1,500 conversations are encoded.",
  ]
