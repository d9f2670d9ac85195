import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import distill, vocabulary

V = 24
SETTINGS = [
  ("forward_kl", 0.5),
  ("reverse_kl", 0.5),
  ("js", 0.5),
  ("js", 0.1),
]


def _batch(shape=(4, 2, 6), dtype=jnp.float32):
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(rng.normal(size=(*shape, 8)), dtype),
    jnp.asarray(rng.normal(size=(8, V)), dtype),
    jnp.asarray(rng.normal(size=(*shape, 5)), dtype),
    jnp.asarray(rng.normal(size=(5, V)), dtype),
    jnp.asarray(rng.normal(size=shape), jnp.float32),
  )


def _divergence_loop(p, q, kind, beta):
  if kind == "forward_kl":
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True))
  if kind == "reverse_kl":
    return _divergence_loop(q, p, "forward_kl", beta)
  m = beta * p + (1 - beta) * q
  return beta * _divergence_loop(p, m, "forward_kl", 0) + (
    1 - beta
  ) * _divergence_loop(q, m, "forward_kl", 0)


def _softmax(logits):
  p = np.exp(logits - logits.max())
  return p / p.sum()


@pytest.mark.parametrize(("kind", "beta"), SETTINGS)
def test_values_and_gradients_match_a_loop(kind, beta, h=1e-6):
  logits, teacher = np.random.default_rng(0).normal(size=(2, 3, 9))
  logits, teacher = np.float32(logits), np.float32(teacher)

  def loop(row, b):
    q, p = _softmax(row / 0.7), _softmax(teacher[b].astype(float) / 0.7)
    return _divergence_loop(p, q, kind, beta)

  value = [loop(logits[b].astype(float), b) for b in range(3)]
  gradient = np.zeros((3, 9))
  for b, v in np.ndindex(3, 9):
    step = h * np.eye(9)[v]
    row = logits[b].astype(float)
    gradient[b, v] = (loop(row + step, b) - loop(row - step, b)) / (2 * h)
  call = functools.partial(
    distill.logits_divergence, kind=kind, beta=beta, temperature=0.7
  )
  logits, teacher = jnp.asarray(logits), jnp.asarray(teacher)
  np.testing.assert_allclose(call(logits, teacher), value, rtol=1e-5)
  result = jax.grad(lambda x: jnp.sum(call(x, teacher)))(logits)
  np.testing.assert_allclose(result, gradient, rtol=1e-4, atol=1e-6)


def _pulled_back(hidden, head, teacher_hidden, teacher_head, cotangent, **kw):
  divergence, pullback = jax.vjp(
    lambda hidden, head: distill.full_divergence(
      hidden, head, teacher_hidden, teacher_head, **kw
    ),
    hidden,
    head,
  )
  return divergence, *pullback(cotangent)


def _naive(hidden, head, teacher_hidden, teacher_head, cotangent, **kw):
  def divergence(hidden, head):
    return distill.logits_divergence(
      hidden @ head, teacher_hidden @ teacher_head, **kw
    )

  value, pullback = jax.vjp(divergence, hidden, head)
  return value, *pullback(cotangent)


@pytest.mark.parametrize(("kind", "beta"), SETTINGS)
def test_chunks_give_what_all_logits_give(kind, beta):
  batch = _batch()
  options = {"kind": kind, "beta": beta, "temperature": 1.3}

  def everything(*batch):
    return [
      _naive(*batch, **options),
      _pulled_back(*batch, **options),
      _pulled_back(*batch, **options, chunk_size=7),
    ]

  expected, *results = jax.jit(everything)(*batch)
  for result in results:
    for a, b in zip(result, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("rows", "columns"),
  [
    (jax.P("data", "fsdp", None, None), jax.P(None, "tensor")),
    (jax.P(("data", "fsdp")), jax.P("fsdp", "tensor")),
  ],
)
def test_a_sharded_vocabulary_gives_the_same(rows, columns):
  batch = _batch()

  def everything(*batch):
    return [
      _pulled_back(*batch, kind=kind, chunk_size=3)
      for kind in distill.DIVERGENCES
    ]

  expected = jax.device_get(jax.jit(everything)(*batch))
  with jax.set_mesh(jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))):
    hidden, head, teacher_hidden, teacher_head, cotangent = batch
    result = jax.jit(everything)(
      jax.device_put(hidden, rows),
      jax.device_put(head, columns),
      teacher_hidden,
      teacher_head,
      jax.device_put(cotangent, jax.P(*rows[:2])),
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
    jax.device_get(result),
    expected,
  )


@pytest.mark.parametrize("kind", distill.DIVERGENCES)
def test_nan_in_padding_reaches_neither_loss_nor_gradient(kind):
  hidden, head, teacher_hidden, teacher_head, _ = _batch()
  weights = jnp.broadcast_to((jnp.arange(6) < 4) / 32, (4, 2, 6))
  inside = weights[..., None] > 0

  def loss(hidden, head, teacher_hidden):
    divergence = distill.full_divergence(
      hidden, head, teacher_hidden, teacher_head, kind=kind
    )
    return distill.distill_loss(divergence, weights)

  call = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  expected = call(hidden, head, teacher_hidden)
  result = call(
    jnp.where(inside, hidden, jnp.nan),
    head,
    jnp.where(inside, teacher_hidden, jnp.nan),
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    result,
    expected,
  )
  np.testing.assert_array_equal(result[0][1]["divergence"], result[0][0])


def test_bfloat16_is_computed_in_float32():
  *low, cotangent = _batch(dtype=jnp.bfloat16)
  cotangent = cotangent.astype(jnp.float32)
  call = jax.jit(functools.partial(_pulled_back, kind="js", chunk_size=7))
  value, *grads = call(*low, cotangent)
  high = [x.astype(jnp.float32) for x in low]
  expected, *expected_grads = call(*high, cotangent)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
  for a, b in zip(grads, expected_grads, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("kind", "beta"), SETTINGS)
def test_top_k_of_the_whole_vocabulary_is_the_full_divergence(kind, beta):
  hidden, head, teacher_hidden, teacher_head, _ = _batch()

  @jax.jit
  def divergences(hidden, head, teacher_hidden, teacher_head):
    top = vocabulary.top_logprobs(teacher_hidden, teacher_head, V)
    logprobs = vocabulary.logprobs_at(hidden, head, top.ids)
    options = {"kind": kind, "beta": beta}
    return (
      distill.full_divergence(
        hidden, head, teacher_hidden, teacher_head, **options
      ),
      distill.top_k_divergence(logprobs, top.logprobs, **options),
      distill.top_k_divergence(
        logprobs[..., :4], top.logprobs[..., :4], **options
      ),
    )

  full, top, part = divergences(hidden, head, teacher_hidden, teacher_head)
  np.testing.assert_allclose(top, full, rtol=1e-4, atol=1e-5)
  # Fewer tokens tell less, and nothing about equal distributions.
  assert jnp.all(part >= -1e-6) and jnp.all(part <= full + 1e-5)


def test_a_run_chooses_between_both_by_top_k():
  hidden, head, teacher_hidden, teacher_head, _ = _batch()
  given = hidden, head, teacher_hidden, teacher_head
  full = distill.full_divergence(*given, temperature=1.3)
  for k, at_most in ((0, full), (V, full), (4, full)):
    found = distill.divergence(*given, temperature=1.3, top_k=k)
    assert jnp.all(found <= at_most + 1e-5)
    if k != 4:
      np.testing.assert_allclose(found, full, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="top_k="):
    distill.check(top_k=-1)


@pytest.mark.parametrize("kind", distill.DIVERGENCES)
def test_the_top_k_gradient_matches_differences(kind):
  rng = np.random.default_rng(0)
  teacher = np.log(_softmax(rng.normal(size=9)))[:4]
  student = np.log(_softmax(rng.normal(size=9)))[:4]

  def loop(x):
    q = np.append(np.exp(x), 1 - np.exp(x).sum())
    p = np.append(np.exp(teacher), 1 - np.exp(teacher).sum())
    return _divergence_loop(p, q, kind, 0.5)

  steps = 1e-6 * np.eye(4)
  expected = [(loop(student + s) - loop(student - s)) / 2e-6 for s in steps]
  result = jax.grad(
    lambda x: jnp.sum(
      distill.top_k_divergence(x[None], jnp.float32(teacher)[None], kind=kind)
    )
  )(jnp.float32(student))
  np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)


def test_a_top_k_without_a_rest_stays_finite():
  certain = jnp.log(jnp.array([[1.0, 1e-30]]))
  value, gradient = jax.value_and_grad(
    lambda x: jnp.sum(distill.top_k_divergence(x, certain, kind="reverse_kl"))
  )(certain)
  assert jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))


def test_on_policy_advantages_lower_the_reverse_kl():
  logits, teacher = jnp.asarray(
    np.random.default_rng(0).normal(size=(2, 9)), jnp.float32
  )
  logprobs = jax.nn.log_softmax(logits)
  advantages = distill.on_policy_advantages(
    logprobs, jax.nn.log_softmax(teacher), jnp.ones(9, bool)
  )

  def surrogate(logits):
    probabilities = jax.lax.stop_gradient(jax.nn.softmax(logits))
    return jnp.sum(probabilities * advantages * jax.nn.log_softmax(logits))

  def reverse_kl(logits):
    return jnp.sum(
      distill.logits_divergence(logits[None], teacher[None], kind="reverse_kl")
    )

  np.testing.assert_allclose(
    jax.grad(surrogate)(logits), -jax.grad(reverse_kl)(logits), atol=1e-6
  )


def test_unknown_kinds_are_refused():
  x = jnp.zeros((1, 2))
  with pytest.raises(ValueError, match="kind="):
    distill.top_k_divergence(x, x, kind="kl")
  with pytest.raises(ValueError, match="beta="):
    distill.top_k_divergence(x, x, kind="js", beta=1.0)
