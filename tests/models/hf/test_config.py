"""config.json in and out, and the table of published models."""

import json

import helpers
import pytest

from grpo_jax.models import params
from grpo_jax.models.hf import config as hf_config
from grpo_jax.models.presets import PRESETS

PUBLISHED = {
  "DeepSeek-R1-Distill-Qwen-32B": "r1-distill-qwen-32b",
  "DeepSeek-R1": "deepseek-r1",
  "DeepSeek-V3": "deepseek-v3",
  "Meta-Llama-3.1-70B": "llama-3.1-70b",
  "Meta-Llama-3.1-8B": "llama-3.1-8b",
  "Qwen2.5-1.5B": "qwen2.5-1.5b",
  "Qwen2.5-32B": "qwen2.5-32b",
  "Qwen2.5-7B": "qwen2.5-7b",
  "Qwen3-0.6B": "qwen3-0.6b",
  "Qwen3-1.7B": "qwen3-1.7b",
  "Qwen3-30B-A3B": "qwen3-30b-a3b",
  "Qwen3-32B": "qwen3-32b",
  "Qwen3-8B": "qwen3-8b",
}
BILLIONS = {  # Of parameters, as the model cards say.
  "qwen2.5-0.5b": 0.494,
  "qwen2.5-3b": 3.09,
  "qwen2.5-14b": 14.8,
  "qwen2.5-72b": 72.7,
  "qwen3-4b": 4.02,
  "qwen3-14b": 14.8,
  "qwen3-30b-a3b": 30.5,
  "qwen3-235b-a22b": 235.1,
  "llama-3.1-70b": 70.6,
  "llama-3.2-1b": 1.24,
  "llama-3.2-3b": 3.21,
  "mistral-7b-v0.1": 7.24,
  "deepseek-v3": 671.0,
  "r1-distill-qwen-1.5b": 1.78,
}
MODELS = PRESETS | helpers.FAMILIES


@pytest.mark.parametrize("model", PUBLISHED)
def test_presets_are_the_published_configs(model, shared_data):
  path = shared_data / "configs" / f"{model}.json"
  cfg = hf_config.from_hf(json.loads(path.read_text()))
  assert cfg == PRESETS[PUBLISHED[model]]


@pytest.mark.parametrize("model", BILLIONS)
def test_presets_have_the_parameters_of_their_cards(model):
  count = params.count(params.param_specs(PRESETS[model]))
  assert count / 1e9 == pytest.approx(BILLIONS[model], rel=0.005)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_written_is_read_as_the_same_model(model):
  config = json.loads(json.dumps(hf_config.to_hf(MODELS[model])))
  assert hf_config.from_hf(config) == MODELS[model]


@pytest.mark.parametrize("model", MODELS)
def test_transformers_takes_the_model_as_the_same(model):
  """What `transformers` reads and writes again is still the same model."""
  transformers = pytest.importorskip("transformers")
  config = hf_config.to_hf(MODELS[model])
  theirs = transformers.AutoConfig.for_model(**config)
  assert type(theirs).model_type == config["model_type"]
  again = json.loads(theirs.to_json_string(use_diff=False))
  assert hf_config.from_hf(again) == MODELS[model]


def test_changes_say_how_and_not_what_is_computed():
  config = hf_config.to_hf(PRESETS["qwen3-0.6b"])
  assert hf_config.from_hf(config, dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize(
  "model, changes, sentence",
  [
    ("llama", dict(model_type="gpt2"), "model_type='gpt2' .* not supported"),
    ("llama", dict(hidden_act="gelu"), "hidden_act='gelu' .* be 'silu'"),
    ("llama", dict(attention_bias=True), "attention_bias=True .* be False"),
    ("llama", dict(hidden_size=None), "lacks the field 'hidden_size'"),
    (
      "llama",
      dict(rope_scaling=dict(rope_type="longrope", factor=2.0)),
      "rope_type='longrope' .* not supported",
    ),
    (
      "qwen2",
      dict(use_sliding_window=True, sliding_window=8, max_window_layers=1),
      "max_window_layers=1 .* of all layers or of none",
    ),
    ("qwen3_moe", dict(mlp_only_layers=[1]), "dense layers must be the first"),
    ("qwen3_moe", dict(decoder_sparse_step=2), "decoder_sparse_step=2"),
    ("deepseek_v3", dict(scoring_func="softmax"), "scoring_func='softmax'"),
  ],
)
def test_what_is_not_supported_is_refused_in_one_sentence(
  model, changes, sentence
):
  config = hf_config.to_hf(helpers.FAMILIES[model]) | changes
  config = {name: x for name, x in config.items() if x is not None}
  with pytest.raises(ValueError, match=sentence):
    hf_config.from_hf(config)


def test_a_model_of_no_family_is_refused():
  with pytest.raises(ValueError, match="with qk_norm, qkv_bias and nothing"):
    hf_config.family(helpers.tiny())


@pytest.mark.parametrize(
  "changes",
  [
    dict(num_dense_layers=1),
    dict(sliding_window=4),
  ],
)
def test_variants_of_qwen3_moe_are_written_and_read(changes):
  cfg = helpers.FAMILIES["qwen3_moe"]
  cfg = type(cfg)(**vars(cfg) | changes)
  assert hf_config.from_hf(hf_config.to_hf(cfg)) == cfg
