"""The sampler: what it draws depends on seeds and on nothing else.

P prompts, G completions each, S prompt slots, N completion slots.
"""

import collections

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import sharding
from grpo_jax.models import scoring
from grpo_jax.sampling import decode, logits
from grpo_jax.types import PromptBatch

CFG = helpers.tiny()
LENGTHS = [3, 5, 1, 4]
EOS = (2, 5, 9)
G, N = 4, 10
BASIC = dict(group_size=G, max_new_tokens=N, cache_chunk=64)


def draw(lengths=LENGTHS, slots=5, mesh=None, first=0, **sampling):
  """The rollout of prompts number `first` on, on the host."""
  prompts = helpers.make_prompts(LENGTHS, slots)
  chosen = slice(first, first + len(lengths))
  prompts = PromptBatch(prompts.tokens[chosen], prompts.mask[chosen])
  arguments = dict(
    sampling=decode.SamplingParams(**BASIC | sampling),
    eos_ids=EOS,
    first_row=first * G,
  )
  key = jax.random.key(11)
  if mesh is None:
    params = helpers.make_params(CFG)
    prompts = jax.tree.map(jnp.asarray, prompts)
    return jax.device_get(decode.sample(params, CFG, prompts, key, **arguments))
  with jax.set_mesh(mesh):
    axes = sharding.split_rows(mesh, len(lengths), G)
    placed = sharding.place(mesh, prompts, axes[:1])
    params = helpers.make_params(CFG, mesh)
    return jax.device_get(decode.sample(params, CFG, placed, key, **arguments))


@pytest.fixture(scope="module")
def rollout():
  return draw()


def assert_same_draw(got, want, rows=slice(None)):
  mask = want.completion_mask[rows]
  np.testing.assert_array_equal(got.completion_mask, mask)
  np.testing.assert_array_equal(got.tokens[mask], want.tokens[rows][mask])
  np.testing.assert_array_equal(got.truncated, want.truncated[rows])
  np.testing.assert_allclose(
    got.logprobs, want.logprobs[rows], rtol=1e-5, atol=5e-6
  )


class TestLayout:
  """Draws are the same tokens however they are computed."""

  @pytest.mark.parametrize("cache_chunk", [3, 8])
  def test_chunks_of_the_cache_change_nothing(self, cache_chunk, rollout):
    assert_same_draw(draw(cache_chunk=cache_chunk), rollout)

  def test_wider_prompt_slots_change_nothing(self, rollout):
    assert_same_draw(draw(slots=9), rollout)

  @pytest.mark.parametrize("first", [0, 2])
  def test_two_batches_draw_what_one_does(self, first, rollout):
    rows = slice(first, first + 2)
    assert_same_draw(draw(LENGTHS[rows], first=first), rollout, rows)

  def test_more_slots_begin_the_same(self, rollout):
    longer = draw(max_new_tokens=N + 3)
    mask = rollout.completion_mask
    np.testing.assert_array_equal(longer.completion_mask[..., :N], mask)
    np.testing.assert_array_equal(
      longer.tokens[..., :N][mask], rollout.tokens[mask]
    )

  @pytest.mark.parametrize("num_prompts", [1, 2, 4])
  def test_eight_devices_draw_what_one_does(self, num_prompts, rollout):
    mesh = helpers.make_mesh(**helpers.EIGHT)
    spread = draw(LENGTHS[:num_prompts], mesh=mesh)
    assert_same_draw(spread, rollout, slice(num_prompts))

  def test_prompts_laid_out_wrongly_are_refused(self):
    mesh = helpers.make_mesh(**helpers.EIGHT)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="Prompts are spl"):
      decode.sample(
        helpers.make_params(CFG, mesh),
        CFG,
        sharding.place(mesh, helpers.make_prompts(LENGTHS, 5), ("data",)),
        jax.random.key(0),
        sampling=decode.SamplingParams(**BASIC),
        eos_ids=EOS,
      )


class TestStopping:
  """Rule 14: lengths, stop tokens and truncation."""

  def test_a_row_ends_with_its_first_stop_token(self, rollout):
    seen = set()
    for tokens, mask, truncated in zip(
      rollout.tokens.reshape(-1, N),
      rollout.completion_mask.reshape(-1, N),
      rollout.truncated.ravel(),
      strict=True,
    ):
      length = mask.sum()
      assert mask[:length].all()
      assert not set(tokens[: length - 1]) & set(EOS)
      assert truncated == (tokens[length - 1] not in EOS)
      assert length == N or not truncated
      seen.add(int(tokens[length - 1]))
    assert len(seen & set(EOS)) > 1 and seen - set(EOS)

  def test_outside_the_mask_log_probs_are_zero(self, rollout):
    outside = rollout.logprobs[~rollout.completion_mask]
    np.testing.assert_array_equal(outside, 0.0)

  def test_a_stop_token_alone_has_length_one(self, rollout):
    lengths = rollout.completion_mask.sum(axis=-1)
    first = rollout.tokens[..., 0]
    np.testing.assert_array_equal(lengths == 1, np.isin(first, EOS))
    assert (lengths == 1).any()

  def test_one_slot_is_enough(self, rollout):
    one = draw(max_new_tokens=1)
    np.testing.assert_array_equal(one.tokens[..., 0], rollout.tokens[..., 0])
    np.testing.assert_array_equal(
      one.truncated, ~np.isin(one.tokens[..., 0], EOS)
    )

  @pytest.mark.parametrize("cache_chunk", [5, 64])
  def test_the_network_runs_no_longer_than_the_longest_row(
    self, cache_chunk, monkeypatch
  ):
    steps = []
    process = logits.process

    def counted(*args, **kwargs):
      jax.debug.callback(lambda: steps.append(1))
      return process(*args, **kwargs)

    monkeypatch.setattr(logits, "process", counted)
    sample = jax.jit(
      decode.sample.__wrapped__,
      static_argnames=("cfg", "sampling", "eos_ids"),
    )
    stops = tuple(range(0, 32, 2))
    rollout = sample(
      helpers.make_params(CFG),
      CFG,
      jax.tree.map(jnp.asarray, helpers.make_prompts([3], 5)),
      jax.random.key(0),
      sampling=decode.SamplingParams(
        group_size=2, max_new_tokens=16, cache_chunk=cache_chunk
      ),
      eos_ids=stops,
    )
    jax.effects_barrier()
    assert len(steps) == rollout.completion_mask.sum(axis=-1).max() < 16


class TestDistribution:
  """What is drawn, and the log-probs that are told of it."""

  @pytest.mark.parametrize(
    "sampling",
    [
      dict(),
      dict(temperature=0.7),
      dict(temperature=1.3, top_k=5),
      dict(temperature=0.8, top_p=0.6, min_p=0.05),
    ],
    ids=str,
  )
  def test_log_probs_are_those_of_the_filtered_distribution(self, sampling):
    rollout = draw(**sampling)
    want = np.zeros(rollout.tokens.shape)
    names = {name: value for name, value in sampling.items()}
    filters = {
      "temperature": names.pop("temperature", 1.0),
      **{f"{name}_": value for name, value in names.items()},
    }
    everything = all_logprobs(rollout)
    processed = logits.process(jnp.asarray(everything), **filters)
    want = np.take_along_axis(
      np.asarray(processed), rollout.tokens[..., None], axis=-1
    )[..., 0]
    mask = rollout.completion_mask
    assert np.isfinite(want[mask]).all()  # Nothing outside the support.
    assert np.max(np.abs(want - rollout.logprobs)[mask]) < 1e-5

  def test_temperature_zero_takes_the_best_token_each_time(self):
    rollout = draw(temperature=0.0)
    best = np.argmax(all_logprobs(rollout), axis=-1)
    mask = rollout.completion_mask
    np.testing.assert_array_equal(rollout.tokens[mask], best[mask])
    np.testing.assert_array_equal(rollout.logprobs, 0.0)

  def test_tokens_come_as_often_as_softmax_says(self):
    cfg = helpers.tiny(vocab_size=8)
    params = helpers.make_params(cfg)
    prompts = jax.tree.map(jnp.asarray, helpers.make_prompts([3], 3, 8))
    count = 4096
    rollout = jax.device_get(
      decode.sample(
        params,
        cfg,
        prompts,
        jax.random.key(5),
        sampling=decode.SamplingParams(group_size=count, max_new_tokens=2),
        eos_ids=(),
      )
    )
    pairs = rollout.tokens[0]
    pair_probs = np.exp(rollout.logprobs[0].sum(axis=-1))
    seen = collections.Counter(map(tuple, pairs.tolist()))
    probs = dict(zip(map(tuple, pairs.tolist()), pair_probs, strict=True))
    # Chi-square over pairs that are expected five times or more.
    often = [pair for pair, p in probs.items() if p * count >= 5]
    assert len(often) > 20
    excess = sum(
      (seen[pair] - count * probs[pair]) ** 2 / (count * probs[pair])
      for pair in often
    )
    spread = np.sqrt(2 * len(often))
    assert abs(excess - len(often)) < 4 * spread

  def test_keys_and_rows_draw_apart(self, rollout):
    first = rollout.tokens[:, :, :2].reshape(-1, 2)
    assert len(np.unique(first, axis=0)) > len(first) / 2
    params = helpers.make_params(CFG)
    prompts = jax.tree.map(jnp.asarray, helpers.make_prompts(LENGTHS, 5))
    other = decode.sample(
      params,
      CFG,
      prompts,
      jax.random.key(12),
      sampling=decode.SamplingParams(**BASIC),
      eos_ids=EOS,
      first_row=0,
    )
    assert (np.asarray(other.tokens)[..., 0] != rollout.tokens[..., 0]).any()

  def test_other_stop_tokens_and_temperatures_are_not_those_traced_first(
    self, rollout
  ):
    colder = draw(temperature=0.25)
    assert (colder.tokens != rollout.tokens).any()
    warm = rollout.logprobs[rollout.completion_mask].mean()
    assert colder.logprobs[colder.completion_mask].mean() > warm + 0.3


@jax.jit
def _next_logprobs(params, prompts, tokens, mask):
  """Log-probs of every token at every slot, by scoring each in turn."""

  def score(token):
    changed = jnp.full_like(tokens, token)

    def at(n):
      row = tokens.at[..., n].set(changed[..., n])
      return scoring.score_completions(
        params, CFG, prompts.tokens, prompts.mask, row, mask
      ).logprobs[..., n]

    return jax.lax.map(at, jnp.arange(tokens.shape[-1]))

  scores = jax.lax.map(score, jnp.arange(CFG.vocab_size))
  return jnp.moveaxis(scores, (0, 1), (-1, -2))


def all_logprobs(rollout):
  """The model's log-probs [P, G, N, V] where the rollout's tokens stood."""
  return np.asarray(
    _next_logprobs(
      helpers.make_params(CFG),
      *jax.tree.map(
        jnp.asarray,
        (rollout.prompts, rollout.tokens, rollout.completion_mask),
      ),
    )
  )


def test_a_draw_is_one_row_s_alone_and_has_the_log_prob_of_its_token():
  scores = jax.random.normal(jax.random.key(0), (2, 3, 8))
  keys = jax.random.split(jax.random.key(1), (2, 3))
  sampling = decode.SamplingParams(temperature=0.5, top_k=4)
  tokens, logprobs = decode.draw(scores, keys, 5, sampling=sampling)
  alone = decode.draw(scores[1:, 2:], keys[1:, 2:], 5, sampling=sampling)
  assert (alone[0], alone[1]) == (tokens[1, 2], logprobs[1, 2])
  kept = np.sort(scores, axis=-1)[..., -4:] / 0.5
  total = np.log(np.sum(np.exp(kept), axis=-1))
  chosen = np.take_along_axis(scores, tokens[..., None], axis=-1)[..., 0] / 0.5
  np.testing.assert_allclose(logprobs, chosen - total, rtol=1e-5)


def test_a_record_is_of_rows_that_are_alive_and_a_stop_token_ends_them():
  nothing = jnp.zeros((1, 3, 2))
  state = decode.DrawState(
    tokens=nothing.astype(jnp.int32),
    logprobs=nothing,
    mask=nothing.astype(bool),
    last=jnp.zeros((1, 3), jnp.int32),
    alive=jnp.array([[True, True, False]]),
  )
  token, logprob = jnp.array([[7, 9, 7]]), jnp.array([[-1.0, -2.0, -3.0]])
  got = decode.record(state, token, logprob, 1, eos_ids=(9, 5))
  assert got.tokens.tolist() == [[[0, 7], [0, 9], [0, 0]]]
  assert got.logprobs.tolist() == [[[0, -1], [0, -2], [0, 0]]]
  assert got.mask.tolist() == [[[False, True], [False, True], [False, False]]]
  assert got.alive.tolist() == [[True, False, False]]


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (dict(group_size=0), "must be at least 1"),
    (dict(max_new_tokens=0), "must be at least 1"),
    (dict(temperature=-1.0), "temperature=-1.0 must not be negative"),
    (dict(top_k=-1), "top_k=-1 must not be negative"),
    (dict(top_p=0.0), r"top_p=0.0 must be in \(0, 1\]"),
    (dict(min_p=1.0), r"min_p=1.0 must be in \[0, 1\)"),
  ],
)
def test_bad_parameters_are_refused_in_one_sentence(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    decode.SamplingParams(**changes)


@pytest.mark.parametrize(
  "changes, full",
  [
    (dict(), True),
    (dict(temperature=0.6), True),
    (dict(temperature=0.0), False),
    (dict(top_p=0.95), False),
    (dict(top_k=50), False),
    (dict(min_p=0.1), False),
  ],
)
def test_only_the_whole_vocabulary_is_full_support(changes, full):
  assert decode.SamplingParams(**changes).full_support is full
