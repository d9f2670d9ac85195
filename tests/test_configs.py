"""Arguments of experiments, and mistakes in a config told in one sentence."""

import dataclasses
import functools
import sys
from typing import TypedDict, Unpack

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from grpo_jax import configs, errors

EXPERIMENT = """
import ml_collections
from grpo_jax import configs

def get_config(arg=None):
  arg = configs.parse_arg(arg, model=("tiny", "qwen2.5-7b"), smoke=False)
  steps = 2 if arg.smoke else 40
  if arg.model == "qwen2.5-7b" and arg.smoke:
    raise ValueError("a bug")
  return ml_collections.ConfigDict(dict(
      total_steps=steps, model=arg.model, loss=dict(kl_coef=0.0),
      betas=(0.9, 0.95)))
"""


def loss(logprobs, weights, *, kl_coef=0.0, clip_low=0.2):
  return logprobs, weights, kl_coef, clip_low


@dataclasses.dataclass(frozen=True)
class Sampling:
  max_new_tokens: int
  temperature: float = 1.0


class TestParseArg:
  def parse(self, arg):
    return vars(
      configs.parse_arg(
        arg,
        model=("tiny", "qwen2.5-7b"),
        smoke=False,
        fast=True,
        seed=0,
        rate=1.0,
        path="",
      )
    )

  DEFAULTS = {
    "model": "tiny",
    "smoke": False,
    "fast": True,
    "seed": 0,
    "rate": 1.0,
    "path": "",
  }

  @pytest.mark.parametrize(
    "arg, changes",
    [
      (None, {}),
      ("", {}),
      ("smoke", {"smoke": True}),
      ("qwen2.5-7b", {"model": "qwen2.5-7b"}),
      ("tiny", {}),
      ("smoke, qwen2.5-7b", {"model": "qwen2.5-7b", "smoke": True}),
      ("model=qwen2.5-7b,seed=3", {"model": "qwen2.5-7b", "seed": 3}),
      ("rate=1e-3,path=a=b", {"rate": 1e-3, "path": "a=b"}),
      ("fast=False,smoke=1", {"fast": False, "smoke": True}),
    ],
  )
  def test_words_and_pairs_replace_defaults(self, arg, changes):
    assert self.parse(arg) == self.DEFAULTS | changes

  @pytest.mark.parametrize(
    "arg, sentence",
    [
      ("smok", "The experiment has no argument 'smok'; did you mean 'smoke'?"),
      (
        "qwen2.5-7",
        "The experiment has no argument 'qwen2.5-7'; did you mean"
        " 'qwen2.5-7b'?",
      ),
      (
        "zzz",
        "The experiment has no argument 'zzz'; there are 'qwen2.5-7b', 'smoke',"
        " 'tiny'.",
      ),
      ("sed=3", "The experiment has no argument 'sed'; did you mean 'seed'?"),
      (
        "seed=x",
        "The experiment's argument 'seed' must be of type int, not 'x'.",
      ),
      (
        "smoke=maybe",
        "The experiment's argument 'smoke' must be of type bool, not 'maybe'.",
      ),
      (
        "model=tin",
        "The experiment's argument 'model' cannot be 'tin'; did you mean"
        " 'tiny'?",
      ),
      (
        "tiny,qwen2.5-7b",
        "The experiment's argument 'model' is given twice.",
      ),
    ],
  )
  def test_a_mistake_is_told_with_the_nearest_name(self, arg, sentence):
    with pytest.raises(ValueError) as error:
      self.parse(arg)
    assert str(error.value) == sentence


class TestCheckSection:
  def test_the_signature_is_the_schema(self):
    errors.check_section("loss", {"kl_coef": 1.0}, loss)
    errors.check_section("loss", ConfigDict({"clip_low": 0.1}), loss)
    errors.check_section("sampling", {"max_new_tokens": 4}, Sampling)
    errors.check_section("sampling", {}, Sampling, given=("max_new_tokens",))

  @pytest.mark.parametrize(
    "section, function, given, sentence",
    [
      (
        {"kl_coeff": 1.0},
        loss,
        (),
        "config.s has no field 'kl_coeff'; did you mean 'kl_coef'?",
      ),
      (
        ConfigDict({"weights": 1.0}),
        loss,
        (),
        "config.s has no field 'weights'; there are 'clip_low', 'kl_coef'.",
      ),
      (
        {"temprature": 1.0, "max_new_tokens": 4},
        Sampling,
        (),
        "config.s has no field 'temprature'; did you mean 'temperature'?",
      ),
      ({}, Sampling, (), "config.s lacks the field 'max_new_tokens'."),
      (
        {"max_new_tokens": 4},
        Sampling,
        ("max_new_tokens",),
        "config.s has no field 'max_new_tokens'; there are 'temperature'.",
      ),
    ],
  )
  def test_other_and_missing_fields_are_named(
    self, section, function, given, sentence
  ):
    with pytest.raises(ValueError) as error:
      errors.check_section("s", section, function, given)
    assert str(error.value) == sentence

  def test_what_a_partial_has_already_filled_in_may_be_replaced(self):
    filled = functools.partial(loss, kl_coef=1.0)
    errors.check_section("loss", {"kl_coef": 0.5}, filled)

  def test_keywords_of_a_typed_dict_are_optional_fields(self):
    class Terms(TypedDict, total=False):
      kl_coef: float

    def function(logprobs, *, scale, **terms: Unpack[Terms]):
      return logprobs, scale, terms

    errors.check_section("s", {"scale": 1.0}, function)
    errors.check_section("s", {"scale": 1.0, "kl_coef": 0.0}, function)
    with pytest.raises(errors.ConfigError, match="did you mean 'kl_coef'"):
      errors.check_section("s", {"scale": 1.0, "kl_coeff": 0.0}, function)

  def test_any_keyword_is_no_schema(self):
    with pytest.raises(TypeError, match="is no schema"):
      errors.check_section("s", {}, lambda **kwargs: kwargs)


class TestCheckFields:
  TEMPLATE = ConfigDict(
    {"seed": 0, "loss": {"kl_coef": 0.0}, "rewards": {"accuracy": 1.0}}
  )

  def test_what_the_template_has_passes_whatever_its_value(self):
    config = ConfigDict({"seed": 3, "loss": {}, "rewards": {"mine": 1.0}})
    errors.check_fields(config, self.TEMPLATE, free=("rewards",))
    errors.check_fields(self.TEMPLATE, self.TEMPLATE)

  @pytest.mark.parametrize(
    "config, sentence",
    [
      ({"sed": 1}, "config has no field 'sed'; did you mean 'seed'?"),
      (
        {"loss": {"kl_coeff": 1}},
        "config.loss has no field 'kl_coeff'; did you mean 'kl_coef'?",
      ),
      ({"loss": 3}, "config.loss must be a section, not 3."),
      (
        {"rewards": {"format": 1}},
        "config.rewards has no field 'format'; there are 'accuracy'.",
      ),
    ],
  )
  def test_what_it_does_not_have_is_named_with_its_path(self, config, sentence):
    with pytest.raises(errors.ConfigError) as error:
      errors.check_fields(ConfigDict(config), self.TEMPLATE)
    assert str(error.value) == sentence


class TestParseFlags:
  @pytest.fixture
  def parse(self, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.py").write_text(EXPERIMENT)

    def parse(*arguments):
      argv = ["main.py", *arguments]
      monkeypatch.setattr(sys, "argv", argv)
      values = flags.FlagValues()
      config_flags.DEFINE_config_file("config", flag_values=values)
      flags.DEFINE_string("workdir", None, "", flag_values=values)
      assert configs.parse_flags(argv, values) == ["main.py"]
      return values

    return parse

  def test_a_config_and_its_overrides_are_read(self, parse):
    values = parse(
      "--config=experiment.py:smoke",
      "--config.loss.kl_coef=0.5",
      "--config.betas=(0.8, 0.9)",
      "--workdir=w",
    )
    assert values.config.to_dict() == {
      "total_steps": 2,
      "model": "tiny",
      "loss": {"kl_coef": 0.5},
      "betas": (0.8, 0.9),
    }
    assert values.workdir == "w"

  @pytest.mark.parametrize(
    "arguments, sentence",
    [
      (
        ["--config=experiment.py", "--config.loss.kl_coeff=1"],
        "config.loss has no field 'kl_coeff'; did you mean 'kl_coef'?",
      ),
      (
        ["--config", "experiment.py", "--config.los.kl_coef", "1"],
        "config has no field 'los'; did you mean 'loss'?",
      ),
      (
        ["--config=experiment.py:smok"],
        "The experiment has no argument 'smok'; did you mean 'smoke'?",
      ),
      (
        ["--config=experimnt.py"],
        "There is no config file 'experimnt.py'; did you mean 'experiment.py'?",
      ),
      (
        ["--config=experiment.py", "--workdr=w"],
        "Unknown command line flag 'workdr'. Did you mean: workdir ?",
      ),
    ],
  )
  def test_a_mistake_ends_in_one_sentence(self, parse, arguments, sentence):
    with pytest.raises(SystemExit) as end:
      parse(*arguments)
    assert end.value.code == sentence

  def test_a_value_of_another_type_names_its_flag(self, parse):
    with pytest.raises(SystemExit, match="--config.total_steps=x"):
      parse("--config=experiment.py", "--config.total_steps=x")

  def test_no_config_is_none(self, parse):
    assert parse("--workdir=w").config is None

  def test_a_bug_in_an_experiment_keeps_its_traceback(self, parse):
    with pytest.raises(SystemExit, match="(?s)Traceback.*a bug"):
      parse("--config=experiment.py:smoke,qwen2.5-7b")
