"""How a run asks: system prompts, variables and days; what ends completions."""

import datetime
import json

import bases
import helpers
import pytest

from grpo_jax import configs
from grpo_jax.data import prompts
from grpo_jax.data.tokenizers import templates, tokenizer
from grpo_jax.rewards import format
from grpo_jax.runs import directory, fork
from grpo_jax.stages import evaluate, prompting, rl, setup, sft
from grpo_jax.types import Problem

PROBLEM = Problem("What is 2+2?", "4", "any", "")
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + bases.QWEN
# It thinks by itself, unless it is told not to.
THINKING = bases.QWEN.replace(
  "assistant\n{% endif %}",
  "assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
  "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
NO_SYSTEM = (
  "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}"
  "{% endif %}" + bases.QWEN
)


def write_base(path, template=bases.QWEN):
  """A tokenizer and a config.json; no weights are read here."""
  bases.write_small(path, template)
  (path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
  return path


def config_of(source, **fields):
  c = configs.rl()
  c.source = str(source)
  c.prompts.template = "chat"
  c.prompts.update(fields)
  return c


def asked(config, workdir, problem=PROBLEM):
  """The problem as a run of the config asks it, and the run."""
  run = setup.Run(config, workdir, helpers.make_mesh())
  (problem,), _ = prompts.ask([problem], run.template, run.tok, 999)
  return problem, run


def well_formed(problem, completion):
  return format.well_formed([problem], [completion])[0]


TAGS = "<think>2 and 2</think><answer>4</answer>"
OWN = "<think>\n2 and 2\n</think>\n\nThe answer is \\boxed{4}."


def test_a_model_that_knows_no_tags_is_told_of_those_that_pay(tmp_path, capsys):
  base = write_base(tmp_path / "base")
  problem, run = asked(config_of(base), tmp_path / "run")
  assert problem.prompt.startswith(
    "<|im_start|>system\nA conversation between User and Assistant. The user"
  )
  assert "<answer> answer here </answer>.<|im_end|>" in problem.prompt
  assert problem.form == "tags"
  assert (well_formed(problem, TAGS), well_formed(problem, OWN)) == (1.0, 0.0)
  assert "The system prompt is 'r1_zero'" in capsys.readouterr().out
  prompting.check_told(run.config, problem, run.source)
  assert "Warning" not in capsys.readouterr().out


def test_a_model_that_thinks_is_paid_for_its_own_form(tmp_path, capsys):
  base = write_base(tmp_path / "base", THINKING)
  problem, run = asked(config_of(base), tmp_path / "run")
  assert problem.prompt.startswith("<|im_start|>user\nWhat is 2+2?")
  assert problem.form == "think"
  assert (well_formed(problem, OWN), well_formed(problem, "4")) == (1.0, 0.0)
  prompting.check_told(run.config, problem, run.source)
  assert "Warning" not in capsys.readouterr().out
  config = config_of(base, variables=dict(enable_thinking=False))
  problem, _ = asked(config, tmp_path / "run")
  assert problem.prompt.endswith("<think>\n\n</think>\n\n")
  assert (well_formed(problem, "It is 4."), well_formed(problem, OWN)) == (1, 0)


@pytest.mark.parametrize(
  ("name", "form", "own"),
  [
    ("qwen2_5", "tags", TAGS),
    ("qwen3", "think", OWN),
    ("qwen3_instruct_2507", "tags", TAGS),
    ("deepseekv3", "think", OWN.removeprefix("<think>\n")),
  ],
)
def test_forms_of_real_families(name, form, own, shared_data, tmp_path):
  base = bases.write_real(tmp_path / "base", shared_data, name)
  (base / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
  problem, run = asked(config_of(base), tmp_path / "run")
  assert problem.form == form
  assert well_formed(problem, own) == 1.0
  assert well_formed(problem, "It is 4.") == 0.0
  assert templates.end_of_turn(run.tok, run.template) in run.tok.eos_ids


def test_styles_and_system_prompts_can_be_chosen(tmp_path, capsys):
  base = write_base(tmp_path / "base", THINKING)
  c = config_of(base)
  c.rewards = dict(accuracy=1.0, format=dict(weight=1.0, style="tags"))
  problem, run = asked(c, tmp_path / "run")
  assert "<answer>" in problem.prompt and problem.form == "tags"
  c.rewards.format.style = "box"
  problem, _ = asked(c, tmp_path / "run")
  assert "within \\boxed{}." in problem.prompt and problem.form == "box"
  c = config_of(base, system="You are terse and kind.")
  problem, _ = asked(c, tmp_path / "run")
  assert "system\nYou are terse and kind.<|im_end|>" in problem.prompt
  path = tmp_path / "system.txt"
  path.write_text("From a file.\n")
  problem, _ = asked(config_of(base, system=str(path)), tmp_path / "run")
  assert "system\nFrom a file.<|im_end|>" in problem.prompt
  assert not capsys.readouterr().out.count("Warning")


def test_a_form_that_nothing_tells_of_is_warned_of(tmp_path, capsys):
  base = write_base(tmp_path / "base")
  problem, run = asked(config_of(base, system=""), tmp_path / "run")
  assert "system" not in problem.prompt
  prompting.check_told(run.config, problem, run.source)
  said = capsys.readouterr().out
  assert "config.rewards.format asks for the form 'tags', and nothing" in said
  assert "Set config.prompts.system='r1_zero'" in said
  c = config_of(base)
  c.prompts.template = "plain"
  problem, run = asked(c, tmp_path / "run")
  prompting.check_told(run.config, problem, run.source)
  assert 'config.prompts.template="r1_zero"' in capsys.readouterr().out
  c.prompts.template = "r1_zero"
  problem, run = asked(c, tmp_path / "run")
  prompting.check_told(run.config, problem, run.source)
  c.prompts.template, c.rewards = "plain", dict(accuracy=1.0, format=0.0)
  problem, run = asked(c, tmp_path / "run")
  prompting.check_told(run.config, problem, run.source)
  assert not capsys.readouterr().out


def test_a_template_without_system_messages_is_told_in_the_question(tmp_path):
  base = write_base(tmp_path / "base", NO_SYSTEM)
  problem, _ = asked(config_of(base), tmp_path / "run")
  assert problem.prompt.startswith("<|im_start|>user\nA conversation between")
  assert "</answer>.\n\nWhat is 2+2?<|im_end|>" in problem.prompt
  assert problem.question == PROBLEM.question and problem.form == "tags"


def test_what_begins_with_a_run_asks_as_it_did(tmp_path):
  """Evaluation of an RL run has its system prompt; SFT adds none."""
  base = write_base(tmp_path / "base")
  _, run = asked(config_of(base), tmp_path / "rl")
  run.claim()
  tokenizer.load(base).save(tmp_path / "rl" / "tokenizer")
  c = configs.evaluate()
  c.source, c.prompts.template = str(tmp_path / "rl"), "chat"
  problem, _ = asked(c, tmp_path / "evaluation")
  assert problem.form == "tags" and "<answer>" in problem.prompt
  c.source = str(base)
  problem, _ = asked(c, tmp_path / "evaluation")
  assert "system" not in problem.prompt
  c = configs.sft()
  c.source = str(base)
  assert prompting.template_of(c, tmp_path / "sft", base).system == ""


def test_the_day_is_that_on_which_a_run_began(tmp_path, monkeypatch):
  def on(day, workdir, **fields):
    monkeypatch.setattr(prompting, "today", lambda: datetime.date(2026, 1, day))
    config = config_of(base, **fields)
    problem, run = asked(config, tmp_path / workdir)
    run.claim()
    return problem.prompt.partition(".")[0]

  base = write_base(tmp_path / "base", DATED)
  assert on(30, "run") == "Today is 30 Jan 2026"
  assert on(31, "run") == "Today is 30 Jan 2026"
  assert on(31, "new") == "Today is 31 Jan 2026"
  assert on(31, "set", date="2025-07-04") == "Today is 04 Jul 2025"
  kept = json.loads((tmp_path / "run" / directory.PROMPTS).read_text())
  assert kept["date"] == "2026-01-30"
  # A fork goes on with it.
  checkpoint = tmp_path / "run" / directory.CHECKPOINTS / "1"
  checkpoint.mkdir(parents=True)
  (checkpoint / "x").write_text("")
  fork._copy(tmp_path / "run", 1, tmp_path / "fork")
  assert (tmp_path / "fork" / directory.PROMPTS).exists()
  with pytest.raises(ValueError, match="config.prompts.date='tomorrow' is no"):
    on(31, "bad", date="tomorrow")


@pytest.mark.parametrize("stage", [rl, sft, evaluate])
@pytest.mark.parametrize(
  ("typed", "value"),
  [
    ("enable_thinking=False", {"enable_thinking": False}),
    ("enable_thinking=false", {"enable_thinking": False}),
    ("enable_thinking=True", {"enable_thinking": True}),
    ("budget=512", {"budget": 512}),
    ("mood=kind", {"mood": "kind"}),
  ],
)
def test_variables_are_set_from_the_command_line(stage, typed, value):
  name = stage.__name__.rpartition(".")[2]
  config = configs.override(
    getattr(configs, name)(),
    stage.SCHEMA,
    ["config.prompts.template=chat", f"config.prompts.variables.{typed}"],
  )
  assert config.prompts.variables.to_dict() == value
  whole = configs.override(
    getattr(configs, name)(),
    stage.SCHEMA,
    [f"config.prompts.variables={value}"],
  )
  assert whole.prompts.variables.to_dict() == value


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      dict(variables=dict(enable_thinkin=False)),
      "'enable_thinkin', which the chat template does not read; did you mean"
      " 'enable_thinking'",
    ),
    (dict(system="r1_zerro"), "'r1_zerro' is neither a file .* 'r1_zero'"),
    (
      dict(template="plain", system="Be kind to all."),
      'system=.* is for a chat template: set config.prompts.template="chat"',
    ),
    (
      dict(template="plain", variables=dict(a=1)),
      "config.prompts.variables=.* is for a chat template",
    ),
  ],
)
def test_what_does_not_fit_is_one_sentence(fields, message, tmp_path):
  base = write_base(tmp_path / "base", THINKING)
  with pytest.raises(ValueError, match=message):
    asked(config_of(base, **fields), tmp_path / "run")
  assert not (tmp_path / "run").exists()
