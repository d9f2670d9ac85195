"""Arguments of experiments, and mistakes in a config told in one sentence."""

import dataclasses
import functools
from typing import TypedDict, Unpack

import pytest
from absl import flags
from ml_collections import ConfigDict

from grpo_jax import configs, errors, schema
from grpo_jax.configs import comments

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


class TestOptions:
  def check(self, section, function, given=()):
    schema.check(schema.Options(function, given), section, "config.s")

  def test_the_signature_is_the_schema(self):
    self.check({"kl_coef": 1.0}, loss)
    self.check(ConfigDict({"clip_low": 0.1}), loss)
    self.check({"max_new_tokens": 4}, Sampling)
    self.check({}, Sampling, given=("max_new_tokens",))

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
      (3, loss, (), "config.s must be a section, not 3."),
    ],
  )
  def test_other_and_missing_fields_are_named(
    self, section, function, given, sentence
  ):
    with pytest.raises(errors.ConfigError) as error:
      self.check(section, function, given)
    assert str(error.value) == sentence

  def test_what_a_partial_has_already_filled_in_may_be_replaced(self):
    self.check({"kl_coef": 0.5}, functools.partial(loss, kl_coef=1.0))

  def test_keywords_of_a_typed_dict_are_optional_fields(self):
    class Terms(TypedDict, total=False):
      kl_coef: float

    def function(logprobs, *, scale, **terms: Unpack[Terms]):
      return logprobs, scale, terms

    self.check({"scale": 1.0}, function)
    self.check({"scale": 1.0, "kl_coef": 0.0}, function)
    with pytest.raises(errors.ConfigError, match="did you mean 'kl_coef'"):
      self.check({"scale": 1.0, "kl_coeff": 0.0}, function)

  def test_the_docstring_says_what_an_option_means(self):
    def function(x, *, low=0.0, high=1.0, kind="a"):
      """Something.

      Args:
        x: data.
        low: of the range: it is closed,
          and in nats.
        high: at least `low`.
        kind: one of a, b.

      Returns:
        nothing: really.
      """

    found = schema.options_of(function)
    assert {name: option.comment for name, option in found.items()} == {
      "low": "of the range: it is closed, and in nats.",
      "high": "at least `low`.",
      "kind": "one of a, b.",
    }


class TestFields:
  TEMPLATE = ConfigDict(
    {"seed": 0, "loss": {"kl_coef": 0.0}, "rewards": {"accuracy": 1.0}}
  )

  def test_what_the_template_has_passes_whatever_its_value(self):
    config = ConfigDict({"seed": 3, "loss": {}, "rewards": {"mine": 1.0}})
    node = schema.Fields(self.TEMPLATE, {"rewards": schema.Free()})
    schema.check(node, config)
    schema.check(schema.Fields(self.TEMPLATE), self.TEMPLATE)

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
      ({"seed": "x"}, "config.seed='x' must be one of 'a', 'b'."),
    ],
  )
  def test_what_it_does_not_have_is_named_with_its_path(self, config, sentence):
    node = schema.Fields(self.TEMPLATE, choices={"seed": ("a", "b")})
    with pytest.raises(errors.ConfigError) as error:
      schema.check(node, ConfigDict(config))
    assert str(error.value) == sentence

  def test_a_default_that_is_named_and_one_that_is_not_are_the_same(self):
    whole = schema.completed(CONFIG, {"loss": {"kl_coef": 0.1}})
    assert whole["loss"] == {"kl_coef": 0.1, "clip": 0.2}
    said = {"seed": 0, "loss": {"clip": 0.2, "kl_coef": 0.1}, "extra": None}
    assert schema.completed(CONFIG, said) == whole
    assert schema.completed(CONFIG, whole) == whole
    assert whole["data"] == {"name": "sums", "size": 3, "split": "train"}
    assert whole["model"] == {"dtype": "float32"}


# A stage of its own: what each kind of section may hold.


def clipped(logprobs, *, clip=0.2):
  return logprobs, clip


def weighed(logprobs, *, largest=4.0, tail: float | None = None):
  return logprobs, largest, tail


def _terms(logprobs, *, kl_coef: float = 0.0):
  return logprobs, kl_coef


def sums(*, size: int = 3):
  return size


def files(*, path: str, symbols: tuple[str, ...] = ()):
  return path, symbols


def _computed(*, dtype: str, remat: str):
  return dtype, remat


def _split(*, split: str = "train"):
  return split


def term(problems, *, least: float = 0.5, names: tuple[str, ...] | None = None):
  return problems, least, names


def _weight(*, weight: float, function: str = ""):
  return weight, function


def _term(name):
  def choose(section):
    known = name == "length" or section.get("function")
    return schema.Options(term if known else _weight, shared=_weight)

  return schema.Chosen(choose, scalars=(int, float), scalar="weight")


def template():
  return ConfigDict(
    dict(
      stage="mine",
      seed=0,
      betas=(0.9, 0.95),
      rate=1e-3,
      fast=False,
      objective="clipped",
      loss=dict(kl_coef=0.1),
      data=dict(name="sums", split="train"),
      extra=None,
      model=dict(dtype="float32"),
      rewards=dict(length=1.0),
      schedule=dict(),
    )
  )


CONFIG = schema.Fields(
  template,
  {
    "loss": schema.Kind(
      {"clipped": clipped, "also": clipped, "weighed": weighed},
      by="objective",
      beside=True,
      shared=_terms,
    ),
    "data": schema.Kind(
      {"sums": sums, "files": files}, by="name", shared=_split
    ),
    "extra": schema.Optional(schema.Options(weighed)),
    "model": schema.Options(_computed, partial=True),
    "rewards": schema.Named(_term, known=("length",)),
    "schedule": schema.Named(
      schema.Options(_computed, partial=True), numbers=True
    ),
  },
)


class TestOverride:
  def override(self, *fields):
    fields = [f"config.{field}" for field in fields]
    return configs.override(template(), CONFIG, fields)

  @pytest.mark.parametrize(
    "fields, changes",
    [
      (["seed=3"], {"seed": 3}),
      (["seed=3", "seed=4"], {"seed": 4}),
      (["rate=1"], {"rate": 1.0}),
      (["fast=true"], {"fast": True}),
      (["betas=(0.8, 0.9)"], {"betas": (0.8, 0.9)}),
      (["betas=0.8,0.9"], {"betas": (0.8, 0.9)}),
      (["betas[1]=0.5"], {"betas": (0.9, 0.5)}),
      (["loss.clip=1e-2"], {"loss": {"kl_coef": 0.1, "clip": 0.01}}),
      (["loss={'clip': 0.1}"], {"loss": {"clip": 0.1}}),
      (["model.remat=full"], {"model": {"dtype": "float32", "remat": "full"}}),
      (["extra=on"], {"extra": {}}),
      (["extra.tail=2"], {"extra": {"tail": 2.0}}),
      (["extra.tail=None"], {"extra": {"tail": None}}),
      (["extra.tail=2", "extra=None"], {"extra": None}),
      (["schedule.20.remat=full"], {"schedule": {20: {"remat": "full"}}}),
      (["rewards.length=2"], {"rewards": {"length": 2}}),
      (["rewards.length=None"], {"rewards": {}}),
      (
        ["rewards.length.names=a,b"],
        {"rewards": {"length": {"weight": 1.0, "names": ("a", "b")}}},
      ),
      (
        ["data.size=8"],
        {"data": {"name": "sums", "split": "train", "size": 8}},
      ),
    ],
  )
  def test_any_field_that_may_be_set_is_set(self, fields, changes):
    assert self.override(*fields).to_dict() == template().to_dict() | changes

  @pytest.mark.parametrize(
    "fields, changes",
    [
      (
        ["objective=weighed", "loss.largest=2"],
        {"objective": "weighed", "loss": {"kl_coef": 0.1, "largest": 2.0}},
      ),
      (
        ["data.name=files", "data.path=x", "data.symbols=('a', 'b')"],
        {
          "data": {
            "name": "files",
            "split": "train",
            "path": "x",
            "symbols": ("a", "b"),
          }
        },
      ),
      (
        [
          "rewards.mine.function=package:f",
          "rewards.mine.weight=1",
          "rewards.mine.least=0",
        ],
        {
          "rewards": {
            "length": 1.0,
            "mine": {"function": "package:f", "weight": 1.0, "least": 0.0},
          }
        },
      ),
    ],
  )
  @pytest.mark.parametrize("reverse", [False, True])
  def test_a_choice_brings_its_own_fields_in_any_order(
    self, fields, changes, reverse
  ):
    found = self.override(*(fields[::-1] if reverse else fields))
    assert found.to_dict() == template().to_dict() | changes

  def test_what_belonged_to_the_other_choice_is_gone(self):
    config = template()
    config.loss.clip = 0.3
    choose = ["config.objective=weighed"]
    found = configs.override(config, CONFIG, choose)
    assert found.loss.to_dict() == {"kl_coef": 0.1}
    # Another name of the same function keeps it.
    found = configs.override(config, CONFIG, ["config.objective=also"])
    assert found.loss.to_dict() == {"kl_coef": 0.1, "clip": 0.3}

  @pytest.mark.parametrize(
    "field, sentence",
    [
      ("sed=1", "config has no field 'sed'; did you mean 'seed'?"),
      ("los.clip=1", "config has no field 'los'; did you mean 'loss'?"),
      (
        "loss.clipp=1",
        "config.loss has no field 'clipp'; did you mean 'clip'?",
      ),
      (
        "loss.largest=1",
        "config.loss has no field 'largest'; there are 'clip', 'kl_coef'.",
      ),
      (
        "extra.tale=1",
        "config.extra has no field 'tale'; did you mean 'tail'?",
      ),
      ("seed=x", "config.seed must be of type int, not 'x'."),
      (
        "extra.tail=x",
        "config.extra.tail must be of type float or None, not 'x'.",
      ),
      ("betas=(0.8,", "config.betas must be of type tuple, not '(0.8,'."),
      ("betas[2]=1", "config.betas has no element [2]."),
      (
        "objective=weihed",
        "config.objective='weihed' must be one of 'clipped', 'also',"
        " 'weighed'; did you mean 'weighed'?",
      ),
      (
        "loss=None",
        "config.loss is a section and cannot be 'None'; set a field of it, such"
        " as --config.loss.kl_coef=...",
      ),
      ("seed.x=1", "config.seed is no section and has no field 'x'."),
    ],
  )
  def test_a_mistake_is_told_in_one_sentence(self, field, sentence):
    with pytest.raises(errors.ConfigError) as error:
      self.override(field)
    assert str(error.value) == sentence

  def test_the_config_is_locked(self):
    with pytest.raises(AttributeError):
      self.override().total_stepz = 3


class TestFieldsText:
  def test_it_has_each_field_with_its_meaning_and_its_default(self):
    config = configs.override(template(), CONFIG, ["config.seed=3"])
    lines = configs.fields.text(CONFIG, config, template()).splitlines()
    for line in (
      "config.seed = 3  (default: 0)",
      "  config.loss.clip = 0.2  (not set: the default)",
      "  config.loss.kl_coef = 0.1",
      "config.extra = None",
      "  config.extra.largest = 4.0  (not set: the default)",
      "# One of clipped, also, weighed.",
    ):
      assert line in lines

  def test_comments_of_the_code_are_those_of_the_fields(self):
    found = comments.comments("rl")
    assert found["ref_every"].startswith("The reference becomes the policy")
    assert found["evaluate.num_problems"].startswith("The first ones")
    assert found["data_dir"].startswith("Prepared datasets")
    inherited = comments.comments("sft")
    assert inherited["evaluate.num_problems"] == found["evaluate.num_problems"]


class TestParseFlags:
  @pytest.fixture
  def parse(self, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.py").write_text(EXPERIMENT)

    def parse(*arguments):
      values = flags.FlagValues()
      flags.DEFINE_string("config", None, "", flag_values=values)
      flags.DEFINE_string("workdir", None, "", flag_values=values)
      rest = configs.parse_flags(["main.py", *arguments], values)
      return values, rest

    return parse

  def test_fields_of_the_config_remain(self, parse):
    values, rest = parse(
      "--config=experiment.py:smoke",
      "--config.loss.kl_coef=0.5",
      "--config.betas",
      "(0.8, 0.9)",
      "-config.fast",
      "--config.path=a=b",
      "--workdir=w",
      "--config.slow",
    )
    assert values.config == "experiment.py:smoke"
    assert values.workdir == "w"
    assert rest == [
      "main.py",
      "config.loss.kl_coef=0.5",
      "config.betas=(0.8, 0.9)",
      "config.fast=True",
      "config.path=a=b",
      "config.slow=True",
    ]

  def test_an_experiment_is_read_with_its_argument(self, parse):
    assert configs.load("experiment.py").total_steps == 40
    assert configs.load("experiment.py:smoke").total_steps == 2
    with pytest.raises(ValueError, match="a bug"):
      configs.load("experiment.py:smoke,qwen2.5-7b")

  @pytest.mark.parametrize(
    "path, sentence",
    [
      (
        "experiment.py:smok",
        "The experiment has no argument 'smok'; did you mean 'smoke'?",
      ),
      (
        "experimnt.py",
        "There is no config file 'experimnt.py'; did you mean 'experiment.py'?",
      ),
    ],
  )
  def test_a_mistake_is_one_sentence(self, parse, path, sentence):
    with pytest.raises(errors.ConfigError) as error:
      configs.load(path)
    assert str(error.value) == sentence

  def test_the_name_of_an_experiment_is_answered_with_its_file(
    self, tmp_path, monkeypatch
  ):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/r1_zero.py").write_text("")
    with pytest.raises(
      errors.ConfigError,
      match="no config file 'r1_zero'; did you mean 'experiments/r1_zero.py'",
    ):
      configs.load("r1_zero")

  def test_an_unknown_flag_is_one_sentence(self, parse):
    with pytest.raises(SystemExit) as end:
      parse("--config=experiment.py", "--workdr=w")
    assert end.value.code == (
      "Unknown command line flag 'workdr'. Did you mean: workdir ?"
    )
