import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import policy, weighting

# Those that choose among all tokens are in test_surrogates.py.
OBJECTIVES = sorted(set(policy.OBJECTIVES) - {"ppo", "clip_cov", "kl_cov"})
BY_TOKEN = ["grpo", "cispo", "sapo", "reinforce", "dppo_tv", "dppo_kl", "dro"]

# Options of each objective, one set per seed.
OPTIONS = {
  "grpo": [
    {},
    {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0},
    {"clip_low": 10.0, "clip_high": 10.0},
  ],
  "gspo": [{}, {"clip_low": 0.1, "clip_high": 0.3}, {"clip_low": 2.0}],
  "gspo_token": [{}, {"clip_low": 0.1, "clip_high": 0.3}, {"clip_low": 2.0}],
  "gmpo": [{}, {"log_clip_low": 0.1, "log_clip_high": 1.0}, {}],
  "cispo": [{}, {"ratio_min": 0.5, "ratio_max": 1.28}, {"ratio_max": 8.0}],
  "sapo": [{}, {"tau_positive": 2.0, "tau_negative": 3.0}, {}],
  "reinforce": [{}, {}, {}],
  "luspo": [{}, {"clip_low": 0.1, "clip_high": 0.3}, {"clip_low": 2.0}],
  "dppo_tv": [{}, {"max_low": 0.05, "max_high": 0.02}, {"max_low": 1.0}],
  "dppo_kl": [{}, {"max_low": 0.01, "max_high": 0.02}, {"max_low": 1.0}],
  "vespo": [{}, {"power_positive": 1.0, "decay_negative": 0.5}, {}],
  "dro": [{}, {"beta": 0.5}, {}],
}
TERMS = [
  {},
  {"kl_coef": 0.1, "entropy_coef": 0.01},
  {"kl_coef": 0.3, "kl_estimator": "k3_k2", "kl_off_policy": True},
  {"kl_coef": 0.3, "kl_estimator": "k1", "kl_off_policy": True},
]


def _batch(seed, shape=(2, 3, 5), spread=0.4):
  """A batch in float64, padding full of NaN; one row is all padding."""
  rng = np.random.default_rng(seed)
  mask = rng.random(shape) < 0.7
  mask[0, 0] = False
  mask[1] = True
  logprobs = -rng.exponential(size=shape)
  batch = {
    "logprobs": logprobs,
    "old_logprobs": np.minimum(
      logprobs + rng.normal(scale=spread, size=shape), -1e-3
    ),
    "ref_logprobs": logprobs + rng.normal(scale=spread, size=shape),
    "advantages": np.broadcast_to(
      rng.normal(size=shape[:-1] + (1,)), shape
    ).copy(),
    "entropy": rng.exponential(size=shape),
    "correction": rng.choice([0.0, 0.5, 1.7], size=shape),
  }
  for array in batch.values():
    array[~mask] = np.nan
  batch["weights"] = np.asarray(weighting.sequence_mean(jnp.asarray(mask)))
  return batch


def _cast(batch, dtype=jnp.float32):
  return {name: jnp.asarray(x, dtype) for name, x in batch.items()}


def _loss(name, batch, terms, options):
  """Calls the objective with a batch of arrays."""
  terms = dict(terms)
  if "entropy_coef" in terms:
    terms["entropy"] = batch["entropy"]
  return policy.LOSSES[name](
    batch["logprobs"],
    batch["old_logprobs"],
    batch["ref_logprobs"] if "kl_coef" in terms else None,
    batch["advantages"],
    batch["weights"],
    correction=batch["correction"],
    **terms,
    **options,
  )


def _clamp(x):
  return min(max(x, -20.0), 20.0)


def _surrogates(name, row, frozen, options):
  """Of the tokens of one completion; `frozen` stands behind stop-gradients."""
  advantage = row["advantages"]
  tokens = range(len(advantage))
  log_ratio = [row["logprobs"][t] - row["old_logprobs"][t] for t in tokens]
  frozen_log_ratio = [frozen[t] - row["old_logprobs"][t] for t in tokens]
  low = options.get("clip_low", 0.2 if name == "grpo" else 3e-4)
  high = options.get("clip_high", 0.2 if name == "grpo" else 4e-4)

  def clipped(ratio, a):
    return min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)

  result = []
  for t in tokens:
    a, ratio = advantage[t], math.exp(_clamp(log_ratio[t]))
    if name == "grpo":
      value = clipped(ratio, a)
      if a < 0 and "dual_clip" in options:
        value = max(value, options["dual_clip"] * a)
    elif name == "gspo":
      value = clipped(math.exp(_clamp(np.mean(log_ratio))), a)
    elif name == "gspo_token":
      mean = math.exp(_clamp(np.mean(frozen_log_ratio)))
      value = clipped(mean * math.exp(row["logprobs"][t] - frozen[t]), a)
    elif name == "gmpo":
      bound_low = -options.get("log_clip_low", 0.4)
      bound_high = options.get("log_clip_high", 0.4)
      sign = 1 if a > 0 else -1
      clips = [
        sign * min(sign * x, sign * min(max(x, bound_low), bound_high))
        for x in log_ratio
      ]
      value = a * math.exp(_clamp(np.mean(clips)))
    elif name == "cispo":
      weight = math.exp(_clamp(frozen_log_ratio[t]))
      weight = max(weight, options.get("ratio_min", 0.0))
      weight = min(weight, options.get("ratio_max", 5.0))
      value = weight * a * row["logprobs"][t]
    elif name == "sapo":
      tau = (
        options.get("tau_positive", 1.0)
        if a > 0
        else options.get("tau_negative", 1.05)
      )
      value = 4 / tau / (1 + math.exp(min(-tau * (ratio - 1), 700.0))) * a
    elif name == "luspo":
      value = len(tokens) * clipped(math.exp(_clamp(np.mean(log_ratio))), a)
    elif name.startswith("dppo"):
      value = 0.0 if _is_far(name, row, frozen, t, options) else ratio * a
    elif name == "vespo":
      sign = "positive" if a >= 0 else "negative"
      power, decay = {"positive": (2.0, 3.0), "negative": (3.0, 2.0)}[sign]
      power = options.get("power_" + sign, power)
      decay = options.get("decay_" + sign, decay)
      w = math.exp(_clamp(np.sum(frozen_log_ratio)))
      weight = math.exp(_clamp(power * math.log(w) + decay * (1 - w)))
      value = weight * a * row["logprobs"][t]
    elif name == "dro":
      beta = options.get("beta", 0.05)
      value = a * row["logprobs"][t] - beta / 2 * log_ratio[t] ** 2
    else:
      value = a * row["logprobs"][t]
    result.append(value)
  return result


def _is_far(name, row, frozen, t, options):
  """Whether DPPO drops a token."""
  a = row["advantages"][t]
  pi, mu = math.exp(frozen[t]), math.exp(row["old_logprobs"][t])
  tv = name == "dppo_tv"
  bound = options.get("max_high" if a > 0 else "max_low", 0.15 if tv else 0.05)
  if a * (pi - mu) <= 0:
    return False
  if tv:
    return abs(pi - mu) > bound
  left, old_left = max(-math.expm1(frozen[t]), 1e-8), max(1 - mu, 1e-8)
  kl = mu * math.log(mu / pi) + (1 - mu) * math.log(old_left / left)
  return kl > bound


def _kl(row, t, frozen, estimator, off_policy):
  d = row["logprobs"][t] - row["ref_logprobs"][t]
  frozen_d = frozen[t] - row["ref_logprobs"][t]
  value = {
    "k1": d,
    "k2": d**2 / 2,
    "k3": math.exp(_clamp(-d)) - 1 + d,
    "k3_k2": math.exp(_clamp(-frozen_d))
    - 1
    + frozen_d
    + (d**2 - frozen_d**2) / 2,
  }[estimator]
  if not off_policy:
    return value
  of = frozen if estimator in ("k2", "k3_k2") else row["logprobs"]
  return value * math.exp(_clamp(of[t] - row["old_logprobs"][t]))


def _loss_loop(name, batch, logprobs, terms, options):
  """What each token's terms add to the loss of float64 `logprobs`."""
  rows = {
    key: x.reshape(-1, x.shape[-1]).astype(np.float64)
    for key, x in (batch | {"frozen": batch["logprobs"]}).items()
  }
  rows["logprobs"] = logprobs.reshape(rows["frozen"].shape)
  summands = []
  for b in range(len(logprobs.reshape(-1, logprobs.shape[-1]))):
    inside = [t for t, w in enumerate(rows["weights"][b]) if w > 0]
    row = {key: x[b, inside] for key, x in rows.items()}
    surrogates = _surrogates(name, row, row["frozen"], options)
    for t in range(len(inside)):
      weight = row["weights"][t]
      summands.append(-weight * row["correction"][t] * surrogates[t])
      if "kl_coef" in terms:
        kl = _kl(
          row,
          t,
          row["frozen"],
          terms.get("kl_estimator", "k3"),
          terms.get("kl_off_policy", False),
        )
        summands.append(weight * terms["kl_coef"] * kl)
      bonus = terms.get("entropy_coef", 0.0) * row["entropy"][t]
      summands.append(-weight * bonus)
  return np.array(summands)


def _expected(name, batch, terms, options, h=1e-5):
  """Value and, by central differences in float64, gradient of the loop."""
  logprobs = batch["logprobs"].astype(np.float64)
  loop = functools.partial(
    _loss_loop, name, batch, terms=terms, options=options
  )
  gradient = np.zeros_like(logprobs)
  for index in zip(*np.nonzero(batch["weights"]), strict=True):
    up, down = logprobs.copy(), logprobs.copy()
    up[index] += h
    down[index] -= h
    # Term by term, so that those of 1e8 do not drown the others.
    gradient[index] = np.sum(loop(up) - loop(down)) / (2 * h)
  return np.sum(loop(logprobs)), gradient


def _value_and_grad(name, terms, options):
  def loss(logprobs, batch):
    return _loss(name, batch | {"logprobs": logprobs}, terms, options)

  return jax.value_and_grad(loss, has_aux=True)


@functools.cache
def _compiled(name, terms_index, options_index):
  return jax.jit(
    _value_and_grad(name, TERMS[terms_index], OPTIONS[name][options_index])
  )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_match_the_paper(name, seed):
  batch = {k: np.float32(x) for k, x in _batch(seed).items()}
  if name == "gspo_token":
    # Advantages of tokens are what this form is for.
    batch["advantages"] = batch["advantages"] + np.arange(5, dtype="f") - 2
  options = OPTIONS[name][seed % 3]
  value, gradient = _expected(name, batch, TERMS[seed], options)
  arrays = _cast(batch)
  (loss, _), grad = _compiled(name, seed, seed % 3)(arrays["logprobs"], arrays)
  np.testing.assert_allclose(loss, value, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_log_ratios_stay_finite_and_match_the_clamped_loop(name):
  batch = {k: np.float32(x) for k, x in _batch(7).items()}
  offsets = np.array([-90.0, -25.0, -5.0, 5.0, 90.0], np.float32)
  batch["old_logprobs"] = batch["logprobs"] + offsets
  batch["ref_logprobs"] = batch["logprobs"] - offsets
  options = OPTIONS[name][0]
  value, gradient = _expected(name, batch, TERMS[0], options)
  arrays = _cast(batch)
  (loss, metrics), grad = _compiled(name, 0, 0)(arrays["logprobs"], arrays)
  scale = np.abs(gradient).max()
  np.testing.assert_allclose(loss, value, rtol=1e-4)
  np.testing.assert_allclose(grad, gradient, rtol=1e-3, atol=1e-6 * scale)
  assert all(np.isfinite(x) for x in metrics.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_empty_batch_has_no_loss_and_no_gradient(name):
  batch = _cast(_batch(0))
  batch = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), batch)
  batch["weights"] = jnp.zeros_like(batch["weights"])
  (loss, metrics), grad = _compiled(name, 1, 1)(batch["logprobs"], batch)
  assert loss == 0
  np.testing.assert_array_equal(grad, 0.0)
  assert all(x == 0 for x in metrics.values())


def _every(batch):
  """Loss, metrics and gradient of each objective."""
  return {
    name: _value_and_grad(name, TERMS[1], OPTIONS[name][1])(
      batch["logprobs"], batch
    )
    for name in OBJECTIVES
  }


_every_compiled = jax.jit(_every)


def _assert_close(result, expected, **tolerances):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerances),
    jax.device_get(result),
    jax.device_get(expected),
  )


def _assert_adds_up(parts, whole):
  """Losses and metrics sum over the first axis; gradients are laid side by."""
  for name, (scalars, grad) in whole.items():
    part_scalars, part_grads = parts[name]
    sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), part_scalars)
    _assert_close(sums, scalars, rtol=1e-5, atol=1e-7)
    _assert_close(part_grads.reshape(grad.shape), grad, rtol=1e-5, atol=1e-7)


def test_jit_and_plain_calls_agree():
  batch = _cast(_batch(1))
  (loss, metrics), grad = _value_and_grad("grpo", TERMS[1], OPTIONS["grpo"][1])(
    batch["logprobs"], batch
  )
  compiled = _every_compiled(batch)["grpo"]
  _assert_close(((loss, metrics), grad), compiled, rtol=1e-5, atol=1e-7)


def test_rows_under_vmap_add_up():
  batch = _cast(_batch(1))
  _assert_adds_up(jax.jit(jax.vmap(_every))(batch), _every_compiled(batch))


def test_bfloat16_inputs_are_computed_in_float32():
  low = _cast(_batch(2), jnp.bfloat16)
  low["weights"] = _cast(_batch(2))["weights"]
  high = jax.tree.map(lambda x: x.astype(jnp.float32), low)
  expected = _every_compiled(high)
  for name, ((loss, metrics), grad) in _every_compiled(low).items():
    assert loss.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    _assert_close((loss, metrics), expected[name][0], rtol=1e-5, atol=1e-6)
    _assert_close(
      grad.astype(jnp.float32), expected[name][1], rtol=1e-2, atol=1e-6
    )


@pytest.mark.parametrize("num_microbatches", [2, 4])
def test_microbatches_add_up(num_microbatches):
  batch = _cast(_batch(3, shape=(8, 1, 5)))

  def split(x):
    return x.reshape(num_microbatches, -1, *x.shape[1:])

  def accumulate(batch):
    return jax.lax.map(_every, batch)

  parts = jax.jit(accumulate)(jax.tree.map(split, batch))
  _assert_adds_up(parts, _every_compiled(batch))


def test_eight_devices_add_up():
  batch = _cast(_batch(4, shape=(4, 2, 6)))
  expected = jax.device_get(_every_compiled(batch))
  with jax.set_mesh(jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))):
    for spec in (jax.P("data", "fsdp", None), jax.P(("data", "fsdp"))):
      result = _every_compiled(jax.device_put(batch, spec))
      _assert_close(result, expected, rtol=1e-5, atol=1e-7)


def _apply(function, batch):
  return {
    name: jnp.asarray(function(np.asarray(x))) for name, x in batch.items()
  }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_side_of_the_padding_and_the_order_of_rows_change_nothing(name):
  batch = _cast(_batch(5))
  function = _compiled(name, 1, 1)
  (loss, _), grad = function(batch["logprobs"], batch)
  inside = np.asarray(batch["weights"]) > 0
  to_left = np.argsort(~inside, axis=-1, kind="stable")
  to_right = np.argsort(inside, axis=-1, kind="stable")
  rows = np.array([1, 0])
  moves = (
    lambda x: np.take_along_axis(x, to_left, axis=-1),
    lambda x: np.take_along_axis(x, to_right, axis=-1),
    lambda x: x[rows],
  )
  for move in moves:
    moved = _apply(move, batch)
    (moved_loss, _), moved_grad = function(moved["logprobs"], moved)
    np.testing.assert_allclose(moved_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(
      moved_grad, move(np.asarray(grad)), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", BY_TOKEN)
def test_packed_rows_have_the_loss_and_gradient_of_padded_ones(name):
  batch = _cast(_batch(6))
  function = _compiled(name, 1, 1)
  (loss, _), grad = function(batch["logprobs"], batch)
  inside = np.asarray(batch["weights"]) > 0

  def pack(x):
    # All tokens in one row, and three slots of padding.
    return np.append(x[inside], np.zeros(3, x.dtype))[None]

  packed = _apply(pack, batch)
  (packed_loss, _), packed_grad = function(packed["logprobs"], packed)
  np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
  np.testing.assert_allclose(
    packed_grad, pack(np.asarray(grad)), rtol=1e-5, atol=1e-7
  )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_first_update_has_the_gradient_of_the_advantage_times_logprob(name):
  batch = _cast(_batch(8))
  batch["old_logprobs"] = batch["logprobs"]
  batch["correction"] = jnp.ones_like(batch["correction"])
  (_, metrics), grad = _compiled(name, 0, 0)(batch["logprobs"], batch)
  expected = jnp.where(
    batch["weights"] > 0, -batch["weights"] * batch["advantages"], 0.0
  )
  if name == "luspo":
    expected *= jnp.sum(batch["weights"] > 0, axis=-1, keepdims=True)
  np.testing.assert_allclose(grad, expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["ratio/mean"], 1.0, rtol=1e-6)
  np.testing.assert_allclose(metrics["ratio/square"], 1.0, rtol=1e-6)
  assert metrics["old_kl"] == 0


def test_gspo_token_is_gspo_where_a_row_has_one_advantage():
  batch = _cast(_batch(9))
  batch["correction"] = jnp.ones_like(batch["correction"])
  (loss, _), grad = _compiled("gspo", 1, 1)(batch["logprobs"], batch)
  (token_loss, _), token_grad = _compiled("gspo_token", 1, 1)(
    batch["logprobs"], batch
  )
  np.testing.assert_allclose(token_loss, loss, rtol=1e-5)
  np.testing.assert_allclose(token_grad, grad, rtol=1e-4, atol=1e-6)


def test_clips_are_counted_by_the_sign_of_the_advantage():
  log_ratio = jnp.log(jnp.array([[0.5, 0.5, 1.5, 1.5, 1.0]]))
  advantages = jnp.array([[-1.0, 1.0, 1.0, -1.0, 1.0]])
  weights = jnp.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
  _, metrics = policy.grpo_loss(
    log_ratio, jnp.zeros((1, 5)), None, advantages, weights
  )
  np.testing.assert_allclose(metrics["clip_ratio/low_mean"], 0.1, rtol=1e-6)
  np.testing.assert_allclose(metrics["clip_ratio/high_mean"], 0.3, rtol=1e-6)
  np.testing.assert_allclose(metrics["clip_ratio/region_mean"], 0.4, rtol=1e-6)
  np.testing.assert_allclose(metrics["weight"], 1.5, rtol=1e-6)


def test_the_logged_kl_does_not_depend_on_the_padding():
  logprobs, ref = jnp.full((2, 4), -1.0), jnp.full((2, 4), -1.5)
  mask = jnp.array([[1, 1, 1, 1], [1, 0, 0, 0]], bool)
  expected = math.exp(-0.5) - 1 + 0.5
  for weigh in (weighting.sequence_mean, weighting.token_mean):
    for width in (0, 9):
      pad = functools.partial(jnp.pad, pad_width=((0, 0), (0, width)))
      args = [pad(x) for x in (logprobs, logprobs, ref, logprobs)]
      _, metrics = policy.grpo_loss(*args, weigh(pad(mask)))
      np.testing.assert_allclose(metrics["kl"], expected, rtol=1e-5)


def test_an_adaptive_coefficient_may_be_an_array():
  batch = _cast(_batch(0))

  def loss(kl_coef):
    return policy.grpo_loss(
      batch["logprobs"],
      batch["old_logprobs"],
      batch["ref_logprobs"],
      batch["advantages"],
      batch["weights"],
      kl_coef=kl_coef,
    )[0]

  np.testing.assert_allclose(
    jax.jit(loss)(jnp.float32(0.2)), loss(0.2), rtol=1e-6
  )


def test_the_entropy_bonus_carries_gradient():
  batch = _cast(_batch(0))

  def loss(entropy):
    return policy.grpo_loss(
      batch["logprobs"],
      batch["old_logprobs"],
      None,
      batch["advantages"],
      batch["weights"],
      entropy=entropy,
      entropy_coef=0.1,
    )[0]

  np.testing.assert_allclose(
    jax.grad(loss)(batch["entropy"]), -0.1 * batch["weights"], rtol=1e-6
  )


@pytest.mark.parametrize(
  ("name", "options", "sentence"),
  [
    ("grpo", {"kl_coef": 0.1}, "needs ref_logprobs"),
    ("grpo", {"entropy_coef": 0.1}, "needs the entropy"),
    ("grpo", {"clip_low": -0.1}, "at least 0"),
    ("grpo", {"dual_clip": 1.0}, "above 1"),
    ("gspo", {"clip_high": -0.1}, "at least 0"),
    ("gspo_token", {"clip_high": -0.1}, "at least 0"),
    ("gmpo", {"log_clip_low": -0.1}, "at least 0"),
    ("cispo", {"ratio_min": 2.0, "ratio_max": 1.0}, "must hold"),
    ("sapo", {"tau_negative": 0.0}, "positive"),
    ("vespo", {"power_negative": -1.0}, "at least 0"),
    ("dro", {"beta": 0.0}, "positive"),
    ("kl_cov", {"fraction": 0.0}, "in \\(0, 1\\]"),
  ],
)
def test_a_contradiction_is_refused(name, options, sentence):
  x = jnp.zeros((1, 2))
  with pytest.raises(ValueError, match=sentence):
    policy.LOSSES[name](x, x, None, x, x, **options)


def test_a_kl_loss_without_expected_gradient_is_refused():
  x = jnp.zeros((1, 2))
  with pytest.raises(ValueError, match="k1"):
    policy.grpo_loss(x, x, x, x, x, kl_coef=0.1, kl_estimator="k1")
  with pytest.raises(ValueError, match="k4"):
    policy.grpo_loss(x, x, x, x, x, kl_coef=0.1, kl_estimator="k4")


@pytest.mark.parametrize("weighting", ["token_mean", "constant_length"])
@pytest.mark.parametrize("objective", ["gspo", "gspo_token", "gmpo", "luspo"])
def test_a_sequence_ratio_refuses_a_weighting_by_tokens(objective, weighting):
  policy.check(objective, "sequence_mean")
  policy.check("grpo", weighting)
  with pytest.raises(ValueError, match="one ratio per completion"):
    policy.check(objective, weighting)


@pytest.mark.parametrize(
  "sampling", [{"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.05}]
)
def test_a_truncated_support_needs_renormalized_logprobs(sampling):
  policy.check("grpo", "token_mean", **sampling, renormalized=True)
  with pytest.raises(ValueError, match="renormalized"):
    policy.check("grpo", "token_mean", **sampling)


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="objective="):
    policy.check("dapo", "token_mean")
  with pytest.raises(ValueError, match="weighting="):
    policy.check("grpo", "mean")
