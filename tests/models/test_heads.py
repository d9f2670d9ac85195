"""From hidden states to numbers about tokens; the shift by one."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import heads

CFG = helpers.tiny(num_layers=1)


def hidden_states(*shape):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.standard_normal((*shape, CFG.d_model), np.float32))


@pytest.mark.parametrize("tied", [True, False])
def test_text_is_scored_by_the_position_before(tied):
  cfg = helpers.tiny(num_layers=1, tied_head=tied)
  params = helpers.make_params(cfg)
  hidden = hidden_states(2, 5)
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 32, (2, 5)))
  stats = heads.text_stats(params, cfg, hidden, tokens)
  all_logprobs = np.asarray(
    jax.nn.log_softmax(heads.logits(params, cfg, hidden)), np.float64
  )
  for b in range(2):
    assert stats.logprobs[b, 0] == stats.entropy[b, 0] == 0
    for t in range(1, 5):
      before = all_logprobs[b, t - 1]
      assert float(stats.logprobs[b, t]) == pytest.approx(
        before[tokens[b, t]], abs=1e-5
      )
      assert float(stats.entropy[b, t]) == pytest.approx(
        -np.sum(np.exp(before) * before), abs=1e-5
      )


def test_completions_begin_after_the_prompts_last_token():
  params = helpers.make_params(CFG)
  first, hidden = hidden_states(3), hidden_states(3, 2, 4)[:, ::-1]
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 32, (3, 2, 4)))
  stats = heads.completion_stats(params, CFG, first, hidden, tokens, 0.7)
  for p in range(3):
    for g in range(2):
      row = jnp.concatenate([first[p][None], hidden[p, g]])
      logprobs = jax.nn.log_softmax(heads.logits(params, CFG, row) / 0.7)
      want = [float(logprobs[n, tokens[p, g, n]]) for n in range(4)]
      np.testing.assert_allclose(stats.logprobs[p, g], want, atol=1e-5)


@pytest.mark.parametrize("head_chunk", [1, 7, 24])
def test_chunks_change_nothing(head_chunk):
  params = helpers.make_params(CFG)
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 32, (3, 2, 4)))

  def gradient(chunk):
    cfg = helpers.tiny(num_layers=1, head_chunk=chunk)

    def loss(params, hidden):
      stats = heads.completion_stats(
        params, cfg, hidden_states(3), hidden, tokens
      )
      return jnp.sum(stats.logprobs - 0.1 * stats.entropy)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
      params, hidden_states(3, 2, 4)
    )

  helpers.assert_trees_close(
    gradient(head_chunk), gradient(1000), rtol=1e-5, atol=1e-5
  )


def test_logits_of_bfloat16_are_float32():
  cfg = helpers.tiny(num_layers=1, dtype="bfloat16")
  params = helpers.make_params(cfg)
  logits = heads.logits(params, cfg, hidden_states(2).astype(jnp.bfloat16))
  assert logits.dtype == jnp.float32
