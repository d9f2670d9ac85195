"""Configs: arguments of experiments, checks, and the sections of each stage.

A section holds the keyword arguments of one function, so that function's
signature is the schema, and a field that it does not know is an error before
anything is compiled.
"""

import difflib
import inspect
import pathlib
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

# A config_dict.ConfigDict is no Mapping to Python.
Section = Mapping | config_dict.ConfigDict


class ConfigError(ValueError):
  """A mistake in a config, told in one sentence."""


def nearest(name: str, names: Iterable[str]) -> str:
  """The end of a sentence on an unknown name: what may have been meant."""
  names = sorted(names)
  close = difflib.get_close_matches(name, names, n=1)
  if close:
    return f"did you mean {close[0]!r}?"
  return f"there are {', '.join(map(repr, names)) or 'none'}."


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
  """The arguments of an experiment, given after a colon to `--config`.

  With `parse_arg(arg, model=("tiny", "qwen2.5-7b"), smoke=False, seed=0)`:

    experiment.py                     the defaults: model "tiny"
    experiment.py:smoke               smoke is True
    experiment.py:qwen2.5-7b,seed=3   a choice by its value alone, key=value

  Args:
    arg: words and key=value pairs between commas, or None.
    **defaults: names with their values where `arg` does not mention them. A
      tuple lists the choices, the default first. Other values say their type:
      bool, int, float or str.

  Raises:
    ConfigError: a word that no argument knows, a value of another type, or an
      argument given twice.
  """
  values = {
    name: default[0] if isinstance(default, tuple) else default
    for name, default in defaults.items()
  }
  seen = set()
  for part in filter(None, (part.strip() for part in (arg or "").split(","))):
    name, equals, text = part.partition("=")
    if equals:
      if name not in defaults:
        raise ConfigError(
          f"The experiment has no argument {name!r}; {nearest(name, defaults)}"
        )
      value = _convert(name, text, defaults[name])
    else:
      name, value = _word(part, defaults)
    if name in seen:
      raise ConfigError(f"The experiment's argument {name!r} is given twice.")
    seen.add(name)
    values[name] = value
  return types.SimpleNamespace(**values)


def _word(word: str, defaults: Mapping[str, Any]) -> tuple[str, Any]:
  """The argument that a bare word stands for, and its value."""
  words = {name: (name, True) for name, d in defaults.items() if d is False}
  for name, default in defaults.items():
    if isinstance(default, tuple):
      words |= {choice: (name, choice) for choice in default}
  if word not in words:
    raise ConfigError(
      f"The experiment has no argument {word!r}; {nearest(word, words)}"
    )
  return words[word]


def _convert(name: str, text: str, default: Any) -> Any:
  if isinstance(default, tuple):
    if text not in default:
      raise ConfigError(
        f"The experiment's argument {name!r} cannot be {text!r};"
        f" {nearest(text, default)}"
      )
    return text
  if isinstance(default, bool):
    booleans = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() in booleans:
      return booleans[text.lower()]
  else:
    try:
      return type(default)(text)
    except ValueError:
      pass
  raise ConfigError(
    f"The experiment's argument {name!r} must be of type"
    f" {type(default).__name__}, not {text!r}."
  )


def check_section(
  name: str,
  section: Section,
  function: Callable[..., Any],
  given: Collection[str] = (),
) -> None:
  """Raises ConfigError unless `function(**section)` fits its signature.

  The fields are the function's keyword-only parameters, or all of them where
  it has none, as with the fields of a dataclass.

  Args:
    name: how the config names the section, such as "loss".
    section: the keyword arguments.
    function: what the section feeds.
    given: parameters that the stage itself fills in; no fields.
  """
  parameters = inspect.signature(function).parameters.values()
  keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
  fields = {
    p.name: p.default is p.empty
    for p in keyword_only or parameters
    if p.kind is not p.VAR_KEYWORD
  }
  for p in parameters:
    if p.kind is p.VAR_KEYWORD:
      # `**terms: Unpack[Terms]` takes the optional fields of a TypedDict.
      terms = typing.get_args(p.annotation)
      if not terms:
        raise TypeError(f"{function} takes any keyword; it is no schema.")
      fields |= dict.fromkeys(terms[0].__annotations__, False)
  fields = {
    field: needed for field, needed in fields.items() if field not in given
  }
  _check_names(f"config.{name}", section, fields)
  for field, needed in fields.items():
    if needed and field not in section:
      raise ConfigError(f"config.{name} lacks the field {field!r}.")


def check_fields(
  config: Section,
  template: Section,
  *,
  free: Collection[str] = (),
  path: str = "config",
) -> None:
  """Raises ConfigError where `config` has a field that `template` lacks.

  Args:
    config: the config of a run, with its sections.
    template: a config of the same stage as its builder returns it.
    free: sections whose names are the user's own, such as the rewards.
    path: how the sentence names `config`.
  """
  _check_names(path, config, template)
  for field, value in config.items():
    if field in free or not isinstance(template[field], Section):
      continue
    if not isinstance(value, Section):
      raise ConfigError(f"{path}.{field} must be a section, not {value!r}.")
    check_fields(value, template[field], free=free, path=f"{path}.{field}")


def _check_names(
  path: str, section: Iterable[str], fields: Collection[str]
) -> None:
  for field in section:
    if field not in fields:
      raise ConfigError(
        f"{path} has no field {field!r}; {nearest(field, fields)}"
      )


def parse_flags(
  argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Parses the command line; a mistake in it ends the program in one sentence.

  For `absl.app.run(main, flags_parser=configs.parse_flags)`. By itself
  ml_collections 1.1 answers a misspelt `--config.loss.kl_coef` with three
  chained tracebacks, and a missing file not before the config is read.

  Args:
    argv: the command line, program name first.
    flag_values: flags among which `--config` names a config file, without a
      default.

  Returns:
    What remains of the command line, program name first.
  """
  try:
    _check_overrides(argv, _load(argv))
    return flag_values(argv)
  except (ConfigError, flags.Error) as error:
    sys.exit(_sentence(error))


def _load(argv: Sequence[str]) -> Any:
  """The config that `--config` names, before fields are overridden."""
  probe = flags.FlagValues()
  flag = config_flags.DEFINE_config_file(
    "config", flag_values=probe, lock_config=False, sys_argv=[]
  )
  probe(argv, known_only=True)
  if not probe["config"].present:
    return None
  path = pathlib.Path(probe["config"].config_filename.partition(":")[0])
  if not path.is_file():
    others = [str(other) for other in path.parent.glob("*.py")]
    raise ConfigError(
      f"There is no config file {str(path)!r}; {nearest(str(path), others)}"
    )
  return flag.value


def _check_overrides(argv: Sequence[str], config: Any) -> None:
  for argument in argv:
    override = re.match(r"--?config\.([^=]+)", argument)
    section, path = config, "config"
    for field in override.group(1).split(".") if override else ():
      # An index into a list, such as `betas[0]`, is left to ml_collections.
      name = field.partition("[")[0]
      if isinstance(section, Section):
        _check_names(path, [name], section)
        section, path = section[name], f"{path}.{name}"


def _sentence(error: BaseException) -> str:
  """The mistake in a config that led to the error, or the error's own text."""
  origin = error
  while origin is not None:
    # ml_collections raises the error anew with a traceback for its text.
    if isinstance(origin, ConfigError) and "Traceback" not in str(origin):
      return str(origin)
    origin = origin.__cause__ or origin.__context__
  return str(error)


def _common(stage: str) -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.stage = stage
  c.seed = 0
  # Prepared datasets, shared by all runs of this machine.
  c.data_dir = "~/.cache/grpo_jax"
  c.mesh = dict(data=-1, fsdp=1, tensor=1, expert=1)
  return c


def _optimizer(learning_rate: float) -> dict[str, Any]:
  return dict(
    learning_rate=learning_rate,
    schedule="constant",
    warmup_updates=0,
    final_fraction=0.0,
    clip_norm=1.0,
    weight_decay=0.0,
  )


def pretrain() -> config_dict.ConfigDict:
  """The pretrain stage: a base model from text."""
  c = _common("pretrain")
  c.total_steps = 900
  # What `data.datasets.load` reads.
  c.data = dict(name="pair_sum_corpus", split="train", size=100_000)
  # A sentencepiece model trained on the text, or bytes.
  # `symbols` are one token wherever they occur.
  c.tokenizer = dict(
    kind="sentencepiece",
    vocab_size=96,
    byte_fallback=False,
    symbols=("<think>", "</think>", "<answer>", "</answer>", " wait "),
  )
  c.model = dict(
    num_layers=3,
    d_model=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    d_ff=384,
    dtype="float32",
  )
  c.batch = dict(num_rows=32, row_length=128, num_microbatches=1)
  c.optimizer = _optimizer(3e-3) | dict(
    schedule="cosine", warmup_updates=50, final_fraction=0.05, weight_decay=0.05
  )
  # A sigmoid router's biases move by this towards an even load, per update.
  c.router_bias_rate = 0.0
  c.log_every = 25
  c.checkpoint = dict(every=300, keep=1)
  return c


def rl() -> config_dict.ConfigDict:
  """The rl stage, with DeepSeek-R1-Zero's hyperparameters where it has them."""
  c = _common("rl")
  c.total_steps = 10_400
  # The directory of the base model: of Hugging Face, or of a run, whose newest
  # checkpoint it is. Empty where `pretrain` says how to make one in this run's
  # own directory.
  c.source = ""
  c.pretrain = None
  # How the source's model is computed, not what it is.
  c.model = dict(dtype="bfloat16", remat="full", head_chunk=2048)
  # What `models.lora.LoraConfig` reads: with a rank above 0 the source is
  # frozen, its matrices in the dtype of `model`, and adapters are trained.
  c.lora = dict(rank=0, alpha=32.0, targets=("all-linear",), rslora=False)
  c.data = dict(name="gsm8k", split="train")
  # `template`: a name in `data.prompts.TEMPLATES`, a file, or "chat" for the
  # chat template of the source's tokenizer.
  c.prompts = dict(template="r1_zero", num_prompts=32, prompt_slots=512)
  c.sampling = dict(
    group_size=16,
    max_new_tokens=32_768,
    temperature=1.0,
    top_p=1.0,
    cache_chunk=4096,
  )
  c.rewards = dict(accuracy=1.0, format=1.0)
  c.advantages = dict(scale="std")
  # Names in `losses.policy.OBJECTIVES` and `masking.WEIGHTINGS`.
  c.objective = "grpo"
  c.weighting = "sequence_mean"
  c.loss = dict(clip_low=0.2, clip_high=0.2, kl_coef=1e-3)
  # The reference becomes the policy every so many steps; 0 for never.
  c.ref_every = 400
  c.batching = dict(num_minibatches=1, num_microbatches=1, length_multiple=512)
  c.optimizer = _optimizer(3e-6)
  # A sigmoid router's biases move by this towards an even load, per update.
  c.router_bias_rate = 0.0
  c.evaluate = dict(
    every=100,
    data=dict(name="gsm8k", split="test"),
    prompt_slots=512,
    num_problems=0,  # The first ones of the dataset; 0 for all.
    prompts_per_batch=64,
    sampling=dict(
      group_size=4,
      max_new_tokens=32_768,
      temperature=0.6,
      top_p=0.95,
      cache_chunk=4096,
    ),
  )
  c.print_completions_every = 20
  c.checkpoint = dict(every=50, keep=2)
  return c


def evaluate() -> config_dict.ConfigDict:
  """The evaluate stage: pass@1 of a run's newest checkpoint, or of a model."""
  c = _common("evaluate")
  c.source = ""
  c.model = dict(dtype="bfloat16")
  c.prompts = dict(template="r1_zero")
  c.evaluate = rl().evaluate
  del c.evaluate.every
  return c


def export() -> config_dict.ConfigDict:
  """The export stage: a run's newest checkpoint as a Hugging Face directory."""
  c = config_dict.ConfigDict()
  c.stage = "export"
  c.mesh = _common("export").mesh
  c.source = ""
  # What `models.hf.save` reads.
  c.save = dict(dtype="bfloat16", max_shard_bytes=5_000_000_000)
  # Of a run that trained adapters: these alone, in PEFT's format.
  c.adapters_only = False
  return c


def built_in_evaluation() -> config_dict.ConfigDict:
  """`evaluate` for pair_sum: 256 held-out problems, 4 samples each."""
  return config_dict.ConfigDict(
    dict(
      data=dict(name="pair_sum", split="test", test_size=256),
      prompt_slots=24,
      num_problems=0,
      prompts_per_batch=128,
      sampling=dict(
        group_size=4,
        max_new_tokens=88,
        temperature=0.6,
        top_p=0.95,
        cache_chunk=44,
      ),
    )
  )
