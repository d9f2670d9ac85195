import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import vocabulary

V, D, K = 24, 8, 3


def _batch(shape=(4, 2, 6), dtype=jnp.float32):
  """Hidden states, head, ids and one cotangent for each of three results."""
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(rng.normal(size=(*shape, D)), dtype),
    jnp.asarray(rng.normal(size=(D, V)), dtype),
    jnp.asarray(rng.integers(0, V, (*shape, K))),
    jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32),
    jnp.asarray(rng.normal(size=(*shape, K)), jnp.float32),
  )


def _loop(hidden, head, ids, cotangents, temperature):
  """Values and gradients token by token, in float64."""
  hidden, head, cotangents = (
    np.asarray(x, np.float64) for x in (hidden, head, cotangents)
  )
  shape = hidden.shape[:-1]
  results = np.zeros((3, *shape))
  hidden_grad, head_grad = np.zeros_like(hidden), np.zeros_like(head)
  for i in np.ndindex(*shape):
    logits = hidden[i] @ head / temperature
    z = np.log(np.sum(np.exp(logits)))
    p = np.exp(logits - z)
    entropy = -np.sum(p * np.log(p))
    target = ids[i][0]
    results[(slice(None), *i)] = logits[target] - z, entropy, z
    a, b, c = cotangents[(slice(None), *i)]
    slope = a * (np.eye(V)[target] - p) + c * p
    slope -= b * p * (np.log(p) + entropy)
    slope /= temperature
    hidden_grad[i] = head @ slope
    head_grad += np.outer(hidden[i], slope)
  return results, hidden_grad, head_grad


def _pulled_back(hidden, head, ids, cotangents, **options):
  results, pullback = jax.vjp(
    lambda hidden, head: tuple(
      vocabulary.token_stats(hidden, head, ids[..., 0], **options)
    ),
    hidden,
    head,
  )
  return results, *pullback(tuple(cotangents))


def _naive_logprobs(hidden, head, temperature=1.0):
  logits = jnp.einsum("...d,dv->...v", hidden, head) / temperature
  return jax.nn.log_softmax(logits)


@pytest.mark.parametrize(
  ("shape", "chunk_size", "temperature"),
  [
    ((4, 2, 6), None, 0.6),
    ((4, 2, 6), 7, 0.6),
    ((8, 6), None, 1.0),
    ((8, 6), 12, 1.0),
    ((48,), 1, 1.7),
    ((48,), 48, 1.7),
  ],
)
def test_values_and_gradients_match_a_loop_over_tokens(
  shape, chunk_size, temperature
):
  hidden, head, ids, cotangents, _ = _batch(shape)
  expected = _loop(hidden, head, np.asarray(ids), cotangents, temperature)
  call = functools.partial(
    _pulled_back, chunk_size=chunk_size, temperature=temperature
  )
  result = jax.jit(call)(hidden, head, ids, cotangents)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    result,
    (tuple(expected[0]), *expected[1:]),
  )


def test_existing_logits_give_the_same():
  hidden, head, ids, _, _ = _batch()
  logits = jnp.einsum("...d,dv->...v", hidden, head)
  expected = vocabulary.token_stats(hidden, head, ids[..., 0], temperature=0.7)
  result = vocabulary.stats_from_logits(logits, ids[..., 0], temperature=0.7)
  for a, b in zip(result, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def _at(hidden, head, ids, cotangent, **options):
  logprobs, pullback = jax.vjp(
    lambda *x: vocabulary.logprobs_at(*x, ids, **options), hidden, head
  )
  return logprobs, *pullback(cotangent)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_logprobs_of_several_ids_match_the_softmax(chunk_size):
  hidden, head, ids, _, cotangent = _batch()
  ids = ids.at[0, 0, 0].set(5)  # The same id three times.

  @jax.jit
  def naive(hidden, head):
    logprobs, pullback = jax.vjp(
      lambda *x: jnp.take_along_axis(_naive_logprobs(*x), ids, axis=-1),
      hidden,
      head,
    )
    return logprobs, *pullback(cotangent)

  call = jax.jit(functools.partial(_at, chunk_size=chunk_size))
  result = call(hidden, head, ids, cotangent)
  for a, b in zip(result, naive(hidden, head), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_the_top_tokens_are_those_of_the_softmax(chunk_size):
  hidden, head, *_ = _batch()
  expected, ids = jax.lax.top_k(_naive_logprobs(hidden, head, 0.6), 5)
  result = vocabulary.top_logprobs(
    hidden, head, 5, temperature=0.6, chunk_size=chunk_size
  )
  np.testing.assert_array_equal(result.ids, ids)
  np.testing.assert_allclose(result.logprobs, expected, rtol=1e-5, atol=1e-6)


LAYOUTS = [
  (jax.P("data", "fsdp", None, None), jax.P(None, "tensor")),
  (jax.P(("data", "fsdp")), jax.P("fsdp", "tensor")),
  (jax.P(None, None, "data", "fsdp"), jax.P(None, ("fsdp", "tensor"))),
]


@pytest.mark.parametrize(("rows", "columns"), LAYOUTS)
def test_a_sharded_vocabulary_gives_the_same(rows, columns):
  batch = _batch()

  def everything(hidden, head, ids, cotangents, cotangent):
    return (
      _pulled_back(hidden, head, ids, cotangents, chunk_size=5),
      _pulled_back(hidden, head, ids, cotangents),
      _at(hidden, head, ids, cotangent, chunk_size=5),
      vocabulary.top_logprobs(hidden, head, 8, chunk_size=5),
    )

  expected = jax.device_get(jax.jit(everything)(*batch))
  with jax.set_mesh(jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))):
    tokens = jax.P(*(*rows, None, None, None)[:3])
    hidden, head, ids, cotangents, cotangent = batch
    batch = (
      jax.device_put(hidden, rows),
      jax.device_put(head, columns),
      ids,  # Replicated: it is brought to the rows.
      jax.device_put(cotangents, jax.P(None, *tokens)),
      jax.device_put(cotangent, jax.P(*tokens, None)),
    )
    result = jax.jit(everything)(*batch)
    for gradients in (result[0], result[1], result[2]):
      assert jax.typeof(gradients[1]) == jax.typeof(batch[0])
      assert jax.typeof(gradients[2]) == jax.typeof(batch[1])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
      jax.device_get(result),
      expected,
    )


def test_rows_and_vocabulary_over_one_mesh_axis_are_refused():
  hidden, head, ids, *_ = _batch()
  with jax.set_mesh(jax.make_mesh((2, 4), ("data", "tensor"))):
    hidden = jax.device_put(hidden, jax.P("data"))
    head = jax.device_put(head, jax.P(None, "data"))
    with pytest.raises(ValueError, match="share a mesh axis"):
      jax.jit(vocabulary.token_stats)(hidden, head, ids[..., 0])


def test_vmap_gives_each_part_its_own():
  hidden, head, ids, cotangents, _ = _batch()
  call = jax.jit(functools.partial(_pulled_back, chunk_size=5))
  expected = [call(hidden[i], head, ids[i], cotangents[:, i]) for i in range(4)]
  result = jax.vmap(call, (0, None, 0, 1))(hidden, head, ids, cotangents)
  for i, part in enumerate(expected):
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(
        a[i], b, rtol=1e-4, atol=1e-5
      ),
      result,
      part,
    )


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_bfloat16_products_are_accumulated_in_float32(chunk_size):
  low = _batch(dtype=jnp.bfloat16)[:4]
  high = [x.astype(jnp.float32) for x in low[:2]]
  call = functools.partial(_pulled_back, chunk_size=chunk_size)
  results, *gradients = jax.jit(call)(*low)
  expected, *expected_gradients = jax.jit(call)(*high, *low[2:])
  for a, b in zip(results, expected, strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  for a, b in zip(gradients, expected_gradients, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_nan_in_tokens_without_cotangent_reaches_no_gradient(chunk_size):
  hidden, head, ids, cotangents, _ = _batch()
  inside = jnp.arange(6) < 4
  cotangents = jnp.where(inside, cotangents, 0.0)
  call = jax.jit(functools.partial(_pulled_back, chunk_size=chunk_size))
  _, *expected = call(hidden, head, ids, cotangents)
  broken = jnp.where(inside[:, None], hidden, jnp.nan)
  _, *gradients = call(broken, head, ids, cotangents)
  for a, b in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_large_logits_stay_finite_and_exact():
  hidden = jnp.full((1, D), 100.0)
  head = jnp.zeros((D, V)).at[:, 3].set(10.0).at[:, 4].set(10.0)
  ids = jnp.array([3])
  stats = vocabulary.token_stats(hidden, head, ids)
  np.testing.assert_allclose(stats.logprobs, np.log(0.5), rtol=1e-6)
  np.testing.assert_allclose(stats.entropy, np.log(2.0), rtol=1e-6)
  np.testing.assert_allclose(stats.log_normalizer, 8e3, rtol=1e-3)


def test_an_id_outside_the_vocabulary_does_not_crash():
  hidden, head, ids, cotangents, _ = _batch()
  stats = vocabulary.token_stats(hidden, head, jnp.full((4, 2, 6), V + 5))
  assert jnp.all(jnp.isfinite(stats.logprobs))
  result = _pulled_back(hidden, head, jnp.full_like(ids, -1), cotangents)
  assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(result))


def test_no_array_of_all_logits_exists():
  tokens, vocab, chunk = 1024, 4096, 64
  hidden, head = jnp.zeros((tokens, D)), jnp.zeros((D, vocab))
  ids = jnp.zeros(tokens, jnp.int32)

  def gradients(hidden, head, chunk_size):
    def loss(hidden, head):
      stats = vocabulary.token_stats(hidden, head, ids, chunk_size=chunk_size)
      return jnp.sum(stats.logprobs) + jnp.sum(stats.entropy)

    return jax.grad(loss, (0, 1))(hidden, head)

  compiled = jax.jit(gradients, static_argnums=2).lower(hidden, head, chunk)
  compiled = compiled.compile()
  logits = 4 * tokens * vocab
  assert compiled.memory_analysis().temp_size_in_bytes < logits / 4
  sizes = [
    np.prod([int(d) for d in shape.split(",")])
    for shape in re.findall(r"\[(\d+(?:,\d+)*)\]", compiled.as_text())
  ]
  assert max(sizes) < tokens * vocab / 4


def test_impossible_arguments_are_refused():
  hidden, head, ids, *_ = _batch()
  with pytest.raises(ValueError, match="temperature="):
    vocabulary.token_stats(hidden, head, ids[..., 0], temperature=0.0)
  with pytest.raises(ValueError, match="chunk_size="):
    vocabulary.token_stats(hidden, head, ids[..., 0], chunk_size=0)
  for k in (0, V + 1):
    with pytest.raises(ValueError, match="k="):
      vocabulary.top_logprobs(hidden, head, k)
