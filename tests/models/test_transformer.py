"""The network against slow loops, and its many paths against each other.

P prompts, G completions each, S prompt slots, N completion slots.
"""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import language, weighting
from grpo_jax.models import scoring, transformer

VARIANTS = {
  "qwen2": dict(qk_norm=False),
  "qwen3": dict(qkv_bias=False),
  "llama": dict(qkv_bias=False, qk_norm=False, tied_head=False),
  "every_head_its_own": dict(num_kv_heads=4),
  "one_head_for_all": dict(num_kv_heads=1, rope_theta=50.0),
  "mistral": dict(qkv_bias=False, qk_norm=False, sliding_window=3),
}


def slow_logprobs(params, cfg, ids):
  """Log-probs of ids[1:] in float64, one position and one head at a time."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, scale):
    return x / np.sqrt(np.mean(x**2) + cfg.norm_eps) * scale

  def rotate(x, position):
    half = cfg.head_dim // 2
    frequencies = cfg.rope_theta ** (-np.arange(half) * 2 / cfg.head_dim)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * frequencies)
    return np.concatenate([turned.real, turned.imag])

  def project(layer, name, x, head, position):
    y = x @ layer[name][(slice(None), *head)]
    if cfg.qkv_bias:
      y = y + layer[f"{name}_bias"][head]
    if name == "v":
      return y
    if cfg.qk_norm:
      y = norm(y, layer[f"{name}_norm"])
    return rotate(y, position)

  xs = [params["embed"][i] for i in ids]
  for i in range(cfg.num_layers):
    layer = jax.tree.map(lambda x, i=i: x[i], params["layers"])
    attention, mlp = layer["attention"], layer["mlp"]
    inputs = [norm(x, attention["norm"]) for x in xs]
    for k in range(cfg.num_kv_heads):
      keys, values = (
        [project(attention, name, x, (k,), s) for s, x in enumerate(inputs)]
        for name in "kv"
      )
      for r in range(cfg.queries_per_kv):
        for t in range(len(ids)):
          q = project(attention, "q", inputs[t], (k, r), t)
          first = (
            max(0, t + 1 - cfg.sliding_window) if cfg.sliding_window else 0
          )
          seen = slice(first, t + 1)
          shares = [
            np.exp(q @ key / np.sqrt(cfg.head_dim)) for key in keys[seen]
          ]
          mixed = sum(s * v for s, v in zip(shares, values[seen], strict=True))
          xs[t] = xs[t] + mixed / sum(shares) @ attention["o"][k, r]
    for t in range(len(ids)):
      y = norm(xs[t], mlp["norm"])
      gate = y @ mlp["gate"]
      y = gate / (1 + np.exp(-gate)) * (y @ mlp["up"])
      xs[t] = xs[t] + y @ mlp["down"]
  head = params["embed"].T if cfg.tied_head else params["head"]
  result = []
  for x, following in zip(xs, ids[1:], strict=False):
    logits = norm(x, params["norm"]) @ head
    result.append(logits[following] - np.log(np.sum(np.exp(logits))))
  return np.array(result)


@functools.partial(jax.jit, static_argnames="cfg")
def text_logprobs(params, cfg, tokens, positions, segments):
  return scoring.score_text(params, cfg, tokens, positions, segments).logprobs


@functools.partial(jax.jit, static_argnames="cfg")
def completion_logprobs(params, cfg, prompts, tokens, mask):
  return scoring.score_completions(
    params, cfg, prompts.tokens, prompts.mask, tokens, mask
  ).logprobs


def rows_logprobs(params, cfg, rows, slots, side="right"):
  """Log-probs of each row of ids, padded to `slots` on one side."""
  tokens = np.random.default_rng(5).integers(0, 32, (len(rows), slots))
  mask = np.zeros((len(rows), slots), bool)
  for i, row in enumerate(rows):
    inside = slice(len(row)) if side == "right" else slice(-len(row), None)
    tokens[i, inside], mask[i, inside] = row, True
  logprobs = text_logprobs(
    params,
    cfg,
    jnp.asarray(tokens, jnp.int32),
    weighting.positions(jnp.asarray(mask)),
    jnp.asarray(mask, jnp.int32),
  )
  return [np.asarray(logprobs[i][mask[i]])[1:] for i in range(len(rows))]


def real_rows(prompts, tokens, mask):
  """Prompt and completion of every row as one list of ids, P * G of them."""
  rows = []
  for p in range(tokens.shape[0]):
    for g in range(tokens.shape[1]):
      prompt = prompts.tokens[p][prompts.mask[p]].tolist()
      rows.append(prompt + tokens[p, g][mask[p, g]].tolist())
  return rows


def to_jax(tree):
  return jax.tree.map(jnp.asarray, tree)


PROMPTS = helpers.make_prompts([3, 5, 1], slots=5)
COMPLETIONS = helpers.make_completions([[4, 1], [2, 6], [6, 3]], slots=6)


ROWS = [[3, 9, 27, 4, 1], [7, 7], [30, 2, 11]]


@pytest.fixture(scope="module")
def params():
  return helpers.make_params(helpers.tiny())


@pytest.fixture(scope="module")
def unpadded(params):
  cfg = helpers.tiny()
  return [rows_logprobs(params, cfg, [row], len(row))[0] for row in ROWS]


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_and_completions_match_slow_loops(variant):
  cfg = helpers.tiny(**VARIANTS[variant])
  params = helpers.make_params(cfg)
  tokens, mask = COMPLETIONS
  rows = real_rows(PROMPTS, tokens, mask)
  want = [slow_logprobs(params, cfg, row) for row in rows]
  for got, row in zip(rows_logprobs(params, cfg, rows, 11), want, strict=True):
    np.testing.assert_allclose(got, row, atol=1e-5)
  shared = completion_logprobs(params, cfg, *to_jax((PROMPTS, tokens, mask)))
  shared = np.asarray(shared).reshape(6, -1)
  for got, inside, row in zip(shared, mask.reshape(6, -1), want, strict=True):
    count = inside.sum()
    np.testing.assert_allclose(got[inside], row[-count:], atol=1e-5)


class TestLayouts:
  """Rule 15: how text is laid out does not change its log-probs."""

  cfg = helpers.tiny()
  rows = ROWS

  @pytest.mark.parametrize("side", ["left", "right"])
  def test_padding_changes_nothing(self, side, params, unpadded):
    padded = rows_logprobs(params, self.cfg, self.rows, 9, side)
    for got, want in zip(padded, unpadded, strict=True):
      np.testing.assert_allclose(got, want, atol=2e-6)

  def test_packing_changes_nothing(self, params, unpadded):
    tokens = jnp.array([self.rows[0] + self.rows[1] + self.rows[2] + [0, 0]])
    segments = jnp.array([[1] * 5 + [2] * 2 + [3] * 3 + [0] * 2])
    positions = jnp.array([[0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 0, 0]])
    got = text_logprobs(params, self.cfg, tokens, positions, segments)[0]
    for start, want in zip((0, 5, 7), unpadded, strict=True):
      np.testing.assert_allclose(
        got[start + 1 : start + 1 + len(want)], want, atol=2e-6
      )

  def test_a_document_never_reads_its_neighbours(self, params):
    tokens = np.array([self.rows[0] + self.rows[1] + self.rows[2]])
    segments = jnp.array([[1] * 5 + [2] * 2 + [3] * 3])
    positions = jnp.array([[0, 1, 2, 3, 4, 0, 1, 0, 1, 2]])
    before = text_logprobs(
      params, self.cfg, jnp.asarray(tokens), positions, segments
    )[0]
    tokens[0, :5] = 8
    after = text_logprobs(
      params, self.cfg, jnp.asarray(tokens), positions, segments
    )[0]
    np.testing.assert_array_equal(before[6], after[6])
    np.testing.assert_array_equal(before[8:], after[8:])

  def test_packed_and_padded_give_one_loss_and_gradient(self, params):
    def loss(params, tokens, positions, segments):
      stats = scoring.score_text(params, self.cfg, tokens, positions, segments)
      weights = ((segments > 0) & (positions > 0)) / 7
      return language.cross_entropy(stats.logprobs, weights)[0]

    packed = (
      jnp.array([self.rows[0] + self.rows[1] + self.rows[2]]),
      jnp.array([[0, 1, 2, 3, 4, 0, 1, 0, 1, 2]]),
      jnp.array([[1] * 5 + [2] * 2 + [3] * 3]),
    )
    tokens = np.full((3, 5), 31)
    mask = np.zeros((3, 5), np.int32)
    for i, row in enumerate(self.rows):
      tokens[i, : len(row)], mask[i, : len(row)] = row, 1
    padded = (
      jnp.asarray(tokens),
      weighting.positions(jnp.asarray(mask > 0)),
      jnp.asarray(mask),
    )
    gradient = jax.jit(jax.value_and_grad(loss))
    helpers.assert_trees_close(
      gradient(params, *packed), gradient(params, *padded)
    )


class TestSharedPrompts:
  """Rule 26: a prompt is computed once, and nothing else changes."""

  cfg = helpers.tiny()
  tokens, mask = COMPLETIONS

  def test_loss_and_gradient_equal_those_of_rows_with_their_own(self, params):
    share = np.random.default_rng(0).standard_normal(self.mask.shape)
    share = np.where(self.mask, share, 0.0).astype(np.float32)

    def shared(params):
      logprobs = completion_logprobs(
        params, self.cfg, *to_jax((PROMPTS, self.tokens, self.mask))
      )
      return jnp.sum(share * logprobs)

    width = PROMPTS.tokens.shape[1] + self.tokens.shape[2]
    tokens = np.zeros((6, width), np.int32)
    mask = np.zeros((6, width), bool)
    weights = np.zeros((6, width), np.float32)
    for i, row in enumerate(real_rows(PROMPTS, self.tokens, self.mask)):
      tokens[i, : len(row)], mask[i, : len(row)] = row, True
      own = share[i // 2, i % 2][self.mask[i // 2, i % 2]]
      weights[i, len(row) - len(own) : len(row)] = own

    def separate(params):
      logprobs = text_logprobs(
        params,
        self.cfg,
        jnp.asarray(tokens),
        weighting.positions(jnp.asarray(mask)),
        jnp.asarray(mask, jnp.int32),
      )
      return jnp.sum(weights * logprobs)

    helpers.assert_trees_close(
      jax.jit(jax.value_and_grad(shared))(params),
      jax.jit(jax.value_and_grad(separate))(params),
      rtol=1e-4,
      atol=1e-5,
    )

  def test_padding_is_never_read(self, params):
    rng = np.random.default_rng(1)
    given = (PROMPTS, self.tokens, self.mask)
    noise = rng.integers(0, 32, PROMPTS.tokens.shape, dtype=np.int32)
    other = (
      PROMPTS.replace(tokens=np.where(PROMPTS.mask, PROMPTS.tokens, noise)),
      np.where(self.mask, self.tokens, rng.integers(0, 32, self.mask.shape)),
      self.mask,
    )
    before = completion_logprobs(params, self.cfg, *to_jax(given))
    after = completion_logprobs(params, self.cfg, *to_jax(other))
    np.testing.assert_array_equal(
      np.asarray(before)[self.mask], np.asarray(after)[self.mask]
    )

  def test_wider_prompt_slots_change_nothing(self, params):
    wide = helpers.make_prompts([3, 5, 1], slots=9)
    before = completion_logprobs(
      params, self.cfg, *to_jax((PROMPTS, self.tokens, self.mask))
    )
    after = completion_logprobs(
      params, self.cfg, *to_jax((wide, self.tokens, self.mask))
    )
    np.testing.assert_allclose(
      np.asarray(before)[self.mask], np.asarray(after)[self.mask], atol=2e-6
    )


@functools.partial(jax.jit, static_argnames="cfg")
def completion_loss(cfg, params, prompts, tokens, mask):
  """A scalar of what completions score, their log-probs, and the gradient."""

  def loss(params):
    stats = scoring.score_completions(
      params, cfg, prompts.tokens, prompts.mask, tokens, mask
    )
    logprobs = jnp.where(mask, stats.logprobs, 0.0)
    return jnp.sum(jnp.where(mask, logprobs - stats.entropy, 0.0)), logprobs

  return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_gives_the_same_gradient(remat):
  params = helpers.make_params(helpers.tiny())
  given = params, *to_jax((PROMPTS, *COMPLETIONS))
  want = completion_loss(helpers.tiny(), *given)
  got = completion_loss(helpers.tiny(remat=remat), *given)
  helpers.assert_trees_close(got, want)


def test_layers_one_by_one_agree_with_the_scan():
  cfg = helpers.tiny()
  params = helpers.make_params(cfg)
  tokens, mask = to_jax((PROMPTS.tokens, PROMPTS.mask))
  positions = weighting.positions(mask)

  def run(params):
    return transformer.forward(params, cfg, tokens, positions, mask)

  hidden, trace = jax.jit(run)(params)
  one_by_one, each = jax.jit(run)(transformer.unstack(params, cfg))
  np.testing.assert_allclose(one_by_one, hidden, atol=1e-6)
  stacked = {
    name: jax.tree.map(lambda *x: jnp.stack(x), *kvs)
    for name, kvs in each.layers.items()
  }
  helpers.assert_trees_close(stacked, trace.layers)


def test_decoding_with_a_cache_agrees_with_one_pass():
  cfg = helpers.tiny()
  params = helpers.make_params(cfg)
  tokens, _ = COMPLETIONS
  prompts = to_jax(PROMPTS)
  mask = jnp.ones(tokens.shape, bool)
  positions = transformer.completion_positions(prompts.mask, 2, 6)
  _, prompt = transformer.prefill(params, cfg, prompts.tokens, prompts.mask)
  want, _ = transformer.forward(
    params, cfg, jnp.asarray(tokens), positions, mask, prompt=prompt
  )
  used = transformer.unstack(params, cfg)
  _, prompt = transformer.prefill(used, cfg, prompts.tokens, prompts.mask)

  @jax.jit
  def step(token, position, cache):
    hidden, trace = transformer.forward(
      used, cfg, token, position, mask[..., :1], prompt=prompt, cache=cache
    )
    return hidden, transformer.Cache(trace.layers, cache.length + 1)

  cache = transformer.empty_cache(cfg, jnp.asarray(tokens[..., 0]), 2)
  for n in range(6):
    if n in (2, 4):
      cache = transformer.grow(cache, n + 2)
    one = slice(n, n + 1)
    hidden, cache = step(
      jnp.asarray(tokens[..., one]), positions[..., one], cache
    )
    np.testing.assert_allclose(hidden, want[:, :, one], atol=2e-6)
  assert int(cache.length) == 6


def test_bfloat16_is_near_float32_and_its_gradient_is_of_the_masters():
  params = helpers.make_params(helpers.tiny())
  given = params, *to_jax((PROMPTS, *COMPLETIONS))
  (_, want), gradient = completion_loss(helpers.tiny(), *given)
  (_, got), rounded = completion_loss(helpers.tiny(dtype="bfloat16"), *given)
  assert got.dtype == jnp.float32
  assert 1e-4 < np.max(np.abs(got - want)) < 0.1
  for x, y in zip(
    jax.tree.leaves(rounded), jax.tree.leaves(gradient), strict=True
  ):
    assert x.dtype == jnp.float32
    error = np.linalg.norm(x - y) / np.linalg.norm(y)
    assert error < 0.1


@pytest.mark.parametrize("sizes", [helpers.EIGHT, dict(fsdp=4, tensor=1)])
def test_any_mesh_gives_the_same_numbers(sizes):
  cfg = helpers.tiny(tied_head=False)
  prompts = helpers.make_prompts([3, 5, 1, 2], slots=5)
  tokens, mask = helpers.make_completions([[4, 1], [2, 6], [6, 3], [1, 1]], 6)

  want = completion_loss(
    cfg, helpers.make_params(cfg), *to_jax((prompts, tokens, mask))
  )
  mesh = helpers.make_mesh(**sizes)
  with jax.set_mesh(mesh):
    rows = jax.sharding.PartitionSpec(("data", "fsdp"))
    got = completion_loss(
      cfg,
      helpers.make_params(cfg, mesh),
      *jax.tree.map(lambda x: jax.device_put(x, rows), (prompts, tokens, mask)),
    )
    gradient = got[1]["layers"]["mlp"]["gate"]
    assert gradient.sharding.spec == jax.sharding.PartitionSpec(
      None, "fsdp", "tensor"
    )
  helpers.assert_trees_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_row_that_sees_nothing_stays_finite():
  cfg = dataclasses.replace(helpers.tiny(), num_layers=1)
  tokens = jnp.zeros((1, 4), jnp.int32)
  hidden, _ = transformer.forward(
    helpers.make_params(cfg), cfg, tokens, tokens, tokens > 0
  )
  assert np.all(np.isfinite(hidden))
