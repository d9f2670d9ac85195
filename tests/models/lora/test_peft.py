"""Adapters in PEFT's files, read and written; PEFT agrees on what they do."""

import dataclasses
import json
import warnings

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors import numpy as safetensors_numpy

from grpo_jax.losses import weighting
from grpo_jax.models import heads, hf, lora, transformer

SETTINGS = lora.LoraConfig(rank=2, alpha=3.0)


def our_logits(cfg, params, tokens, mask):
  hidden, _ = transformer.forward(
    params, cfg, tokens, weighting.positions(mask), mask
  )
  return heads.logits(params, cfg, hidden)


def assert_same_logits(model, cfg, params):
  prompts = helpers.make_prompts([9, 3, 12, 1], slots=12)
  with torch.no_grad():
    theirs = model(
      input_ids=torch.tensor(prompts.tokens),
      attention_mask=torch.tensor(prompts.mask).long(),
      position_ids=torch.tensor(
        np.maximum(np.cumsum(prompts.mask, axis=-1) - 1, 0)
      ),
    ).logits.numpy()
  given = jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask)
  ours = jax.jit(our_logits, static_argnums=0)(cfg, params, *given)
  real = prompts.mask
  np.testing.assert_allclose(
    jax.nn.log_softmax(ours)[real],
    jax.nn.log_softmax(theirs)[real],
    atol=1e-4,
  )


def saved(family, directory):
  cfg = helpers.FAMILIES[family]
  params = helpers.make_params(cfg)
  hf.save(directory, cfg, params)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, attn_implementation="eager"
  )
  return cfg, params, model.eval()


LATENT = ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj")


@pytest.mark.parametrize(
  "family, targets",
  [
    ("qwen2", ("all-linear",)),
    ("qwen3_moe", ("all-linear",)),
    ("deepseek_v3", ("q_a_proj", "q_b_proj", *LATENT)),
    ("deepseek_v3_direct", ("q_proj", *LATENT)),
  ],
)
def test_peft_loads_our_adapters_and_agrees(family, targets, tmp_path):
  cfg, base, model = saved(family, tmp_path / "base")
  ours = dataclasses.replace(SETTINGS, targets=targets)
  adapters = helpers.make_adapters(cfg, ours)
  lora.save(tmp_path / "adapters", cfg, ours, adapters, base="base")
  with warnings.catch_warnings():
    # It only warns of tensors that are missing.
    warnings.filterwarnings("error", message=".*missing adapter keys")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapters")
  params = lora.attach(base, adapters, SETTINGS.scale)
  assert_same_logits(model.eval(), cfg, params)
  settings, again = lora.load(tmp_path / "adapters", cfg)
  assert settings.scale == SETTINGS.scale
  helpers.assert_trees_close(again, adapters, rtol=0, atol=0)


@pytest.mark.parametrize(
  "family, targets",
  [
    ("qwen2", ["q_proj", "v_proj", "down_proj"]),
    ("qwen2", "all-linear"),
    ("deepseek_v3", ["q_a_proj", "q_b_proj", *LATENT]),
  ],
)
def test_adapters_that_peft_made_act_as_there(family, targets, tmp_path):
  cfg, base, model = saved(family, tmp_path / "base")
  torch.manual_seed(0)
  config = peft.LoraConfig(
    r=3, lora_alpha=5, target_modules=targets, use_rslora=True
  )
  model = peft.get_peft_model(model, config)
  with torch.no_grad():
    for name, x in model.named_parameters():
      if "lora_B" in name:
        x.normal_(std=0.3)
  model.save_pretrained(tmp_path / "adapters")
  settings, adapters = lora.load(tmp_path / "adapters", cfg)
  assert (settings.rank, settings.rslora) == (3, True)
  params = lora.attach(base, adapters, settings.scale)
  assert_same_logits(model.eval(), cfg, params)


def test_what_peft_means_otherwise_beside_routed_experts_is_refused(tmp_path):
  cfg, _, model = saved("deepseek_v3", tmp_path / "base")
  with pytest.raises(
    ValueError, match="PEFT takes 'down_proj' of a model with"
  ):
    lora.save(
      tmp_path / "ours", cfg, SETTINGS, helpers.make_adapters(cfg, SETTINGS)
    )
  assert not (tmp_path / "ours").exists()
  config = peft.LoraConfig(r=2, target_modules="all-linear")
  peft.get_peft_model(model, config).save_pretrained(tmp_path / "theirs")
  with pytest.raises(ValueError, match="pattern=.* read are those of plain"):
    lora.load(tmp_path / "theirs", cfg)


def test_files_that_do_not_fit_are_named(tmp_path):
  cfg = helpers.FAMILIES["qwen2"]
  path = tmp_path / "adapters"
  with pytest.raises(FileNotFoundError, match="No adapter_config.json in"):
    lora.load(path, cfg)
  lora.save(path, cfg, SETTINGS, helpers.make_adapters(cfg, SETTINGS))
  with pytest.raises(ValueError, match="is not empty"):
    lora.save(path, cfg, SETTINGS, helpers.make_adapters(cfg, SETTINGS))
  shorter = dataclasses.replace(cfg, num_layers=1)
  with pytest.raises(ValueError, match="adapters: .*layers.1.* is no tensor"):
    lora.load(path, shorter)
  file = path / lora.WEIGHTS
  arrays = safetensors_numpy.load_file(file)
  name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
  gone = arrays.pop(name)
  safetensors_numpy.save_file(arrays | {"more": gone}, file)
  with pytest.raises(ValueError, match=rf"'{name}' .* missing; 'more' in"):
    lora.load(path, cfg)
  config = json.loads((path / lora.CONFIG).read_text())
  (path / lora.CONFIG).write_text(json.dumps(config | {"use_dora": True}))
  with pytest.raises(ValueError, match="use_dora=True; read are those of"):
    lora.load(path, cfg)
  (path / lora.CONFIG).write_text(json.dumps({"peft_type": "IA3"}))
  with pytest.raises(ValueError, match="of another kind; read are those of"):
    lora.load(path, cfg)
