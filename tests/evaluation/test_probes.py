"""What a policy forgot, which language it thinks in, what examples change."""

import helpers
import jax
import numpy as np
import pytest

from grpo_jax import errors, types
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.evaluation import probes
from grpo_jax.models import scoring
from grpo_jax.sampling.generate import Policy

TOK = tokenizer.ByteTokenizer()
CFG = helpers.tiny(num_layers=1, vocab_size=264)
DOCUMENTS = ["User: 1", "a", "a longer document of two pieces", "x y", ""]


def loss(sizes=None, **options):
  mesh = helpers.make_mesh(**sizes or {})
  with jax.set_mesh(mesh):
    params = helpers.make_params(CFG, mesh)
    settings = dict(row_length=16, num_rows=4) | options
    policy = Policy(params, CFG, TOK, mesh)
    return probes.text_loss(policy, DOCUMENTS, **settings)


@pytest.fixture(scope="module")
def whole():
  return loss()


def test_text_loss_is_that_of_each_document_alone(whole):
  """One document at a time, unpadded, and its pieces by themselves."""
  params = helpers.make_params(CFG)
  score = jax.jit(scoring.score_text, static_argnums=1)
  for document, nats, count in zip(DOCUMENTS, *whole, strict=True):
    ids = np.array([*TOK.encode(document), TOK.eos_ids[0]], np.int32)
    if TOK.bos_id is not None:
      ids = np.concatenate([[TOK.bos_id], ids])
    sums = []
    for start in range(0, len(ids), 16):
      piece = jax.numpy.asarray(ids[None, start : start + 16])
      positions = jax.numpy.arange(piece.shape[1])[None]
      ones = jax.numpy.ones_like(piece)
      scores = score(params, CFG, piece, positions, ones)
      sums += np.asarray(scores.logprobs)[0, 1:].tolist()
    assert count == len(sums)
    if sums:
      assert nats == pytest.approx(-np.mean(sums), rel=1e-5)
    else:
      assert np.isnan(nats)


@pytest.mark.parametrize(
  "sizes, num_rows", [(None, 2), (None, 7), (helpers.EIGHT, 4)]
)
def test_text_loss_does_not_depend_on_batches_and_devices(
  sizes, num_rows, whole
):
  for one, other in zip(whole, loss(sizes, num_rows=num_rows), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5)


def answered(texts, accuracy, question="q"):
  problems = [types.Problem(question, "1", "gsm8k", "q")] * len(texts)
  scores = types.Rewards(
    np.zeros(len(texts), np.float32),
    np.ones(len(texts), bool),
    {"accuracy": np.asarray(accuracy, np.float32)},
  )
  lengths = np.full(len(texts), 3)
  return types.Completions(problems, texts, lengths, lengths < 0, 2, scores)


def setting(data_dir, **fields):
  section = dict(rewards={"accuracy": 1.0})
  return probes.Setting(
    TOK,
    data_dir,
    helpers.make_mesh(),
    0,
    {"mine": section},
    *(fields.get(name) for name in ("questions", "ask", "load")),
  )


CORPUS = dict(name="addition_corpus", split="train", size=20)


def test_forgetting_is_the_increase_of_the_loss(tmp_path):
  """The policy and its base are the same: nothing is forgotten."""
  (tmp_path / "base" / "checkpoints").mkdir(parents=True)
  TOK.save(tmp_path / "base" / "tokenizer")
  mesh = helpers.make_mesh()
  with jax.set_mesh(mesh):
    policy = Policy(helpers.make_params(CFG, mesh), CFG, TOK, mesh)
    measure = probes.forgetting(
      setting(tmp_path, load=lambda base: policy),
      data=CORPUS,
      row_length=64,
      num_rows=8,
      num_documents=6,
      base=str(tmp_path / "base"),
    )
    rows = measure(policy, {}, None)
  assert list(rows.values())[0] == list(rows.values())[1]
  assert rows["nats per token, increase"] == (0, 0, 0)
  # A random model is no better than an even guess among the vocabulary.
  assert rows["nats per token"].value > np.log(200)


def test_a_base_with_another_tokenizer_is_refused(tmp_path):
  (tmp_path / "base" / "checkpoints").mkdir(parents=True)
  other = tokenizer.ByteTokenizer(("<think>", "</think>"))
  other.save(tmp_path / "base" / "tokenizer")
  with pytest.raises(ValueError, match="has another tokenizer"):
    probes.forgetting(
      setting(tmp_path),
      data=CORPUS | dict(name="pair_sum_corpus"),
      row_length=64,
      num_rows=8,
      base=str(tmp_path / "base"),
    )


def test_problems_are_no_text_to_have_forgotten(tmp_path):
  data = dict(name="addition", split="test", test_size=3)
  with pytest.raises(ValueError, match="'addition', whose records are no text"):
    probes.forgetting(setting(tmp_path), data=data, row_length=8, num_rows=1)


def test_language_is_the_share_of_the_thoughts_words(tmp_path):
  german = "<think>Zuerst addieren wir die beiden Zahlen zusammen</think>"
  english = "<think>First we have to add the two numbers together</think>"
  answers = {"mine": answered([german, english, german, german], [0] * 4)}
  measure = probes.languages(setting(tmp_path), datasets={"mine": "de"})
  ((name, row),) = measure(None, answers, None).items()
  assert "in de" in name
  assert row.value == pytest.approx(0.75)


def test_examples_are_put_in_front_and_compared_in_pairs(tmp_path):
  asked = []
  questions = lambda section, examples: asked.append((section, examples))  # noqa: E731
  few = answered(["a"] * 4, [1, 0, 1, 1])
  probe = setting(tmp_path, questions=questions, ask=lambda p, q: few)
  kept = {}
  measure = probes.few_shot(
    probe, dataset="mine", examples=CORPUS, num_examples=2, prompt_slots=99
  )
  ((section, examples),) = asked
  assert section["prompt_slots"] == 99 and len(examples) == 2
  zero = answered(["a"] * 4, [0, 0, 1, 0])
  rows = measure(None, {"mine": zero}, kept.__setitem__)
  assert kept == {"few_shot": few}
  assert rows["pass@1, increase"].value == pytest.approx(0.5)
  assert rows["pass@1, increase"][1:] == (0.5, 0.5)  # The same for both.


@pytest.mark.parametrize(
  "probe, options",
  [
    (probes.languages, dict(datasets={"mime": "de"})),
    (
      probes.few_shot,
      dict(dataset="mime", examples={}, num_examples=1, prompt_slots=9),
    ),
  ],
)
def test_a_dataset_that_is_not_asked_is_refused(probe, options, tmp_path):
  with pytest.raises(errors.ConfigError, match="'mime'.*did you mean 'mine'"):
    probe(setting(tmp_path), **options)
