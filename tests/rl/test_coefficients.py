"""Coefficients that adapt follow the rules of `losses.kl`, step by step."""

import json

import pytest

from grpo_jax.losses import kl
from grpo_jax.rl.coefficients import Coefficients


def test_without_rules_nothing_is_given_to_the_loss():
  fixed = Coefficients({"kl_coef": 0.1})
  assert fixed.now(1.0) == {}
  fixed.after({"kl": 9.0})
  assert fixed.state == {}


def test_the_kl_coefficient_is_that_of_the_rule():
  adapting = Coefficients({"kl_coef": 0.1}, adapt_kl=dict(target=0.02))
  want = 0.1
  for measured in (0.05, 0.01, 0.02):
    assert adapting.now(1.0)["kl_coef"] == pytest.approx(want, rel=1e-6)
    want = float(kl.adapt_coef(want, measured, target=0.02))
    adapting.after({"kl": measured})
  assert adapting.state["kl_coef"] == pytest.approx(want, rel=1e-6)


def test_the_entropy_bonus_is_off_above_its_target():
  adapting = Coefficients({}, adapt_entropy=dict(target=0.5, delta=0.01))
  used = [
    float(adapting.now(entropy)["entropy_coef"])
    for entropy in (0.4, 0.4, 0.9, 0.4)
  ]
  assert used == pytest.approx([0.0, 0.01, 0.0, 0.01])


def test_what_is_kept_goes_on_where_it_was():
  rule = dict(adapt_entropy=dict(target=0.5))
  whole, stopped = Coefficients({}, **rule), Coefficients({}, **rule)
  for run in (whole, stopped):
    run.now(0.1)
  again = Coefficients({}, **rule)
  again.state |= json.loads(json.dumps(stopped.state))
  assert again.now(0.1) == whole.now(0.1)
