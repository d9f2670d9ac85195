"""From a Hugging Face directory through training to another one."""

import json
import pathlib
import subprocess
import sys

import helpers
import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import transformers

from grpo_jax import configs
from grpo_jax.data.tokenizers import tokenizer
from grpo_jax.models import hf
from grpo_jax.models.config import ModelConfig
from grpo_jax.runs import source as source_lib
from grpo_jax.stages import export

REPOSITORY = pathlib.Path(__file__).parents[2]
CHAT = (
  "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
  "{% if add_generation_prompt %}assistant:{% endif %}"
)


def write_source(directory):
  """A tiny Qwen with a byte-level tokenizer, as a stranger has it."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocab = {c: i for i, c in enumerate([*alphabet, "<end>"])}
  level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
  directory.mkdir()
  (directory / "tokenizer.json").write_text(
    json.dumps(
      {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
      }
    )
  )
  (directory / "tokenizer_config.json").write_text(
    json.dumps({"eos_token": "<end>", "chat_template": CHAT})
  )
  config = transformers.Qwen2Config(
    vocab_size=264,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    eos_token_id=vocab["<end>"],
    bos_token_id=None,
  )
  model = transformers.Qwen2ForCausalLM(config)
  model.save_pretrained(directory)
  return directory


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return write_source(tmp_path_factory.mktemp("hf") / "model")


def command(experiment, workdir, *fields):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "grpo_jax.main",
      f"--config=experiments/{experiment}",
      f"--workdir={workdir}",
      *fields,
    ],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_a_model_is_loaded_with_its_tokenizer(source):
  mesh = helpers.make_mesh()
  assert source_lib.is_source(source)
  cfg, params, step = source_lib.load_policy(source, mesh, dtype="bfloat16")
  assert (step, cfg.dtype) == (0, "bfloat16")
  assert params["embed"].dtype == "float32"
  tok = tokenizer.load(source_lib.tokenizer_directory(source))
  assert tok.eos_ids == (256,)
  assert not source_lib.is_source(source.parent)


def test_export_refuses_what_it_cannot_do(source, tmp_path):
  c = configs.export()
  c.source = str(tmp_path / "none")
  with pytest.raises(FileNotFoundError, match="No model in .*none"):
    export.run(c, tmp_path / "out")
  c.source, c.save.dtype = str(source), "int8"
  with pytest.raises(ValueError, match="config.save.dtype='int8' must be"):
    export.run(c, tmp_path / "out")
  c.save.dtype = "float32"
  (tmp_path / "file").write_text("mine")
  with pytest.raises(ValueError, match="is not empty"):
    export.run(c, tmp_path)


def test_what_is_saved_has_its_tokenizer_and_stop_tokens(source, tmp_path):
  cfg, params = hf.load(source)
  tok = tokenizer.load(source)
  hf.save(tmp_path / "out", cfg, params, tok, dtype="bfloat16")
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  assert str(model.dtype) == "torch.bfloat16"
  assert model.config.eos_token_id == 256
  assert model.generation_config.eos_token_id in (256, [256])
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert theirs.chat_template == CHAT
  assert theirs("a+b").input_ids == tok.encode("a+b")
  again = tokenizer.load(tmp_path / "out")
  assert (again.eos_ids, again.chat_template) == (tok.eos_ids, CHAT)


@pytest.mark.slow
def test_a_stranger_trains_a_model_of_hugging_face_and_takes_it_back(
  source, tmp_path
):
  """Through the command line: evaluate, train two steps, export."""
  small = [
    "--config.sampling.max_new_tokens=8",
    "--config.sampling.cache_chunk=8",
    "--config.batching.length_multiple=8",
    "--config.batching.num_minibatches=1",
    "--config.prompts.num_prompts=8",
    "--config.prompts.prompt_slots=40",
    "--config.prompts.template=chat",
    "--config.evaluate.prompt_slots=40",
    "--config.evaluate.sampling.max_new_tokens=8",
    "--config.evaluate.sampling.cache_chunk=8",
    "--config.evaluate.data.test_size=8",
    f"--config.data_dir={tmp_path / 'data'}",
    # A random model never answers; the entropy and length move it.
    "--config.optimizer.learning_rate=1e-2",
    "--config.loss.kl_coef=0.1",
  ]
  run, out = tmp_path / "run", tmp_path / "out"
  command(f"r1_zero.py:smoke,base={source}", run, *small)
  text = command(f"export.py:{run}", out, "--config.save.dtype=float32")
  assert "after step 2" in text
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    out, output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"]
  assert tokenizer.load(out).chat_template == CHAT
  _, _, step = source_lib.load_policy(run, helpers.make_mesh())
  assert step == 2
  again = safetensors.numpy.load_file(out / "model.safetensors")
  cfg, params, _ = source_lib.load_policy(run, helpers.make_mesh())
  np.testing.assert_array_equal(
    again["model.embed_tokens.weight"], jax.device_get(params["embed"])
  )
  assert isinstance(cfg, ModelConfig)
  assert hf.read_config(out).d_model == cfg.d_model
