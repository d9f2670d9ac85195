"""Learning rates and the chain of AdamW."""

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.train import optimizer


def rates(total, **changes):
  schedule = optimizer.make_schedule(total, learning_rate=2.0, **changes)
  return [float(schedule(i)) for i in range(total + 1)]


def test_constant_stays():
  assert rates(4) == [2.0] * 5


def test_linear_and_cosine_end_at_the_final_fraction():
  linear = rates(4, schedule="linear", final_fraction=0.1)
  np.testing.assert_allclose(linear, 2 * np.linspace(1, 0.1, 5), rtol=1e-6)
  cosine = rates(4, schedule="cosine", final_fraction=0.1)
  angles = np.pi * np.arange(5) / 4
  want = 2 * (0.1 + 0.9 * (1 + np.cos(angles)) / 2)
  np.testing.assert_allclose(cosine, want, rtol=1e-6)


@pytest.mark.parametrize("schedule", optimizer.SCHEDULES)
def test_the_warm_up_grows_from_its_first_share_to_the_whole(schedule):
  got = rates(8, schedule=schedule, warmup_updates=4)
  np.testing.assert_allclose(got[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)
  if schedule != "constant":
    assert got[8] == pytest.approx(0.0, abs=1e-6)


def test_a_warm_up_of_one_update_is_none():
  assert rates(3, warmup_updates=1) == [2.0] * 4


def test_bad_schedules_are_refused_in_one_sentence():
  with pytest.raises(ValueError, match="schedule='sine' must be one of"):
    rates(4, schedule="sine")
  with pytest.raises(ValueError, match="warmup_updates=4 must be below .* 4"):
    rates(4, warmup_updates=4)


def slow_adamw(params, gradients, *, rate, b1, b2, eps, decay, clip_norm):
  """AdamW (arXiv 1711.05101, algorithm 2) behind a clip, in float64."""
  moments = {name: (0.0, 0.0) for name in params}
  for t, gradient in enumerate(gradients, start=1):
    norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
    for name, g in gradient.items():
      g = g * min(1.0, clip_norm / norm)
      m, v = moments[name]
      m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
      moments[name] = m, v
      step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
      if not name.endswith(("norm", "bias")):
        step = step + decay * params[name]
      params = params | {name: params[name] - rate * step}
  return params


def test_updates_are_adamw_behind_a_clip_and_spare_norms_and_biases():
  rng = np.random.default_rng(0)
  params = {
    name: rng.standard_normal((3, 2)) for name in ("q", "q_bias", "norm")
  }
  gradients = [
    {name: scale * rng.standard_normal((3, 2)) for name in params}
    for scale in (5.0, 0.01, 1.0)
  ]
  tx, rate = optimizer.make_optimizer(
    9, learning_rate=0.1, weight_decay=0.3, clip_norm=0.7, b1=0.8, b2=0.9
  )
  assert float(rate(0)) == pytest.approx(0.1)
  to_jax = lambda tree: {k: jnp.asarray(x) for k, x in tree.items()}  # noqa: E731
  got = to_jax(params)
  state = tx.init(got)
  for gradient in gradients:
    changes, state = tx.update(to_jax(gradient), state, got)
    got = {name: got[name] + changes[name] for name in got}
  want = slow_adamw(
    params,
    gradients,
    rate=0.1,
    b1=0.8,
    b2=0.9,
    eps=1e-8,
    decay=0.3,
    clip_norm=0.7,
  )
  for name in params:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
  "name, value",
  [
    ("learning_rate", -1),
    ("learning_rate", 0.0),
    ("learning_rate", float("nan")),
    ("learning_rate", float("inf")),
    ("learning_rate", "1e-3"),
    ("learning_rate", True),
    ("warmup_updates", -1),
    ("final_fraction", -0.1),
    ("weight_decay", float("nan")),
    ("clip_norm", 0.0),
    ("b1", 1.0),
    ("b2", -0.1),
    ("eps", -1e-8),
  ],
)
def test_a_number_out_of_its_range_is_named(name, value):
  with pytest.raises(ValueError, match=f"config.optimizer.{name}=.* must be"):
    optimizer.check({name: value}, "config.optimizer")
  good = dict(learning_rate=1e-3, b1=0.0, weight_decay=0, clip_norm=1)
  optimizer.check(good)
