"""What training teaches to end with is what ends sampling, and is exported."""

import json
import shutil

import bases
import numpy as np
import pytest
import torch
import transformers

from grpo_jax import configs, types
from grpo_jax.data import conversations, prompts
from grpo_jax.data.tokenizers import templates, tokenizer
from grpo_jax.models import hf, lora
from grpo_jax.runs import directory
from grpo_jax.stages import evaluate, export, prompting, sft

NUMBERS = "one two three four five six seven eight".split()
TEMPLATES = ("qwen2_5", "qwen3", "qwen3_instruct_2507", "deepseekv3")


def write_talks(path):
  rows = [
    {"question": f"What is {i}?", "answer": "one"} for i in range(len(NUMBERS))
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def talk(answer="one"):
  return types.Example(
    (
      {"role": "user", "content": "What is 1?"},
      {"role": "assistant", "content": answer},
    ),
    "test",
  )


def train(base, tmp_path, epochs=30, **lora_fields):
  """Eight conversations, an update an epoch."""
  c = configs.sft()
  c.source, c.data_dir = str(base), str(tmp_path / "data")
  c.data.path = str(write_talks(tmp_path / "talks.jsonl"))
  c.model = dict(dtype="float32", remat="none", head_chunk=2048)
  c.batch = dict(num_rows=8, row_length=96, num_microbatches=1)
  c.num_epochs, c.evaluate = epochs, None
  c.optimizer.learning_rate = 1e-2
  c.lora.update(lora_fields)
  sft.run(c, tmp_path / "sft")
  return tmp_path / "sft"


def ask(source, tmp_path):
  """Completions of the questions, of at most 16 tokens each."""
  c = configs.evaluate()
  c.source, c.data_dir = str(source), str(tmp_path / "data")
  c.model = dict(dtype="float32")
  c.prompts.template = "chat"
  c.datasets = dict(
    talks=dict(
      data=dict(
        name="jsonl",
        split="train",
        path=str(tmp_path / "talks.jsonl"),
        source="math",
      )
    )
  )
  c.evaluate.update(greedy=False, prompts_per_batch=8, prompt_slots=64)
  c.evaluate.sampling.update(group_size=1, max_new_tokens=16, cache_chunk=16)
  evaluate.run(c, tmp_path / "evaluation")
  rows = (tmp_path / "evaluation" / "samples.jsonl").read_text().splitlines()
  return [json.loads(row) for row in rows]


def transformers_ends(path, tok, prompt):
  """What transformers generates by the directory's own files."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path, dtype=torch.float32
  )
  ids = torch.tensor([tok.encode_chat(prompt)[0]])
  out = model.generate(ids, max_new_tokens=16, do_sample=False)
  return out[0, ids.shape[1] :].tolist()


def check_ends(base, tmp_path, end, before=""):
  """From a base through training and sampling to what another library does."""
  run = train(base, tmp_path)
  saved = tokenizer.load(run / "tokenizer")
  assert saved.piece(saved.eos_ids[0]) == end
  rows = ask(run, tmp_path)
  assert len(rows) == 8
  assert not any(row["truncated"] for row in rows)
  assert {row["completion"] for row in rows} == {before + "one"}
  c = configs.export()
  c.source, c.save.dtype = str(run), "float32"
  export.run(c, tmp_path / "out")
  asked = [{"role": "user", "content": rows[0]["question"]}]
  prompt = templates.render(saved, asked, add_generation_prompt=True)
  drawn = transformers_ends(tmp_path / "out", saved, prompt)
  assert saved.piece(drawn[-1]) == end and len(drawn) < 12
  assert saved.decode(drawn) == before + "one"
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert theirs.eos_token == end
  for name in ("config.json", "generation_config.json"):
    content = json.loads((tmp_path / "out" / name).read_text())
    declared = content["eos_token_id"]
    declared = declared if isinstance(declared, list) else [declared]
    assert tuple(declared) == saved.eos_ids, name


def test_a_base_that_stops_elsewhere_ends_after_chat_sft(tmp_path, capsys):
  base = bases.write_model(bases.write_small(tmp_path / "base"))
  assert tokenizer.load(base).eos_ids == (256,)
  check_ends(base, tmp_path, "<|im_end|>")
  said = capsys.readouterr().out
  assert "Completions end at '<|im_end|>', '<|endoftext|>'." in said


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "end", "before"),
  [
    ("qwen2_5", "<|im_end|>", ""),
    # What the template writes for a message without a thought.
    ("qwen3", "<|im_end|>", "<think>\n\n</think>\n\n"),
    # The prompt has begun to think.
    ("deepseekv3", "<｜end▁of▁sentence｜>", "\n</think>\n\n"),
  ],
)
def test_real_families_end_after_chat_sft(
  name, end, before, tmp_path, shared_data
):
  base = bases.write_model(
    bases.write_real(tmp_path / "base", shared_data, name)
  )
  check_ends(base, tmp_path, end, before)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_learned_is_a_stop_token_under_every_template(
  name, shared_data, tmp_path
):
  """Also where the file's own stop token is another one."""
  path = bases.write_real(tmp_path / "base", shared_data, name)
  tok = tokenizer.load(path)
  fitted = prompts.fitted(tok, prompts.CHAT)
  assert set(tok.eos_ids) <= set(fitted.eos_ids)
  for answer in ("one", "<think>\nso\n</think>\n\none", "<think>so</think>one"):
    ((ids, learned),) = conversations.encode(
      [talk(answer)], fitted, prompts.CHAT
    )
    prompt = templates.encode_prompt(tok, talk().messages[:1])
    assert ids[: len(prompt)].tolist() == prompt
    assert np.isin(ids[learned], fitted.eos_ids).any()
    said = fitted.decode(ids[learned])
    assert said.strip().endswith("one") and "so" in answer or "so" not in said
    if "so" in answer:
      assert said.count("so") == 1 and said.count("</think>") == 1
  fitted.save(tmp_path / "saved")
  again = tokenizer.load(tmp_path / "saved")
  assert again.eos_ids == fitted.eos_ids
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
  assert theirs.eos_token_id in fitted.eos_ids
  assert theirs.eos_token_id == templates.end_of_turn(tok, templates.Chat())


def test_a_base_as_it_is_would_never_learn_to_stop(shared_data, tmp_path):
  """The smallest form: ids of Qwen2.5's template, stop tokens of its base."""
  tok = tokenizer.load(bases.write_real(tmp_path / "b", shared_data, "qwen2_5"))
  assert tok.eos_ids == (151643,)
  with pytest.raises(ValueError, match=r"no token that ends .*<\|im_end\|>"):
    conversations.encode([talk()], tok, prompts.CHAT)
  fitted = prompts.fitted(tok, prompts.CHAT)
  assert fitted.eos_ids == (151645, 151643)


def test_a_template_that_ends_with_plain_text_is_an_error(tmp_path):
  path = bases.write_small(
    tmp_path / "base",
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
  )
  base = bases.write_model(path)
  tok = prompts.fitted(tokenizer.load(base), prompts.CHAT)
  assert tok.eos_ids == (256,)
  with pytest.raises(ValueError, match="Conversation 0 teaches no token that"):
    train(base, tmp_path)
  assert not (tmp_path / "sft").exists()


def test_a_template_that_writes_the_role_keeps_its_token(tmp_path):
  """What `eos_token` means to a template must not change under it."""
  path = bases.write_small(
    tmp_path / "base",
    bases.QWEN + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
  )
  tok = tokenizer.load(path)
  fitted = prompts.fitted(tok, prompts.CHAT)
  assert fitted.eos_ids == (256, 258)
  fitted.save(tmp_path / "saved")
  again = tokenizer.load(tmp_path / "saved")
  assert again.eos_ids == fitted.eos_ids
  assert again.special_tokens["eos_token"] == "<|endoftext|>"


def test_tokens_outside_what_is_generated_are_not_learned(tmp_path):
  """{% generation %} that leaves out the end is found at the start."""
  path = bases.write_small(
    tmp_path / "base",
    "{% for m in messages %}<|im_start|>{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}"
    "{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}",
  )
  tok = prompts.fitted(tokenizer.load(path), prompts.CHAT)
  with pytest.raises(ValueError, match="inside {% generation %} if it has"):
    conversations.encode([talk()], tok, prompts.CHAT)


def test_a_plain_template_ends_with_the_files_own_token(tmp_path):
  tok = tokenizer.load(bases.write_small(tmp_path / "base"))
  template = prompts.read_template("plain")
  assert prompts.fitted(tok, template).eos_ids == (256,)
  ((ids, _),) = conversations.encode([talk()], tok, template)
  assert ids[-1] == 256


def test_adapters_are_exported_with_their_stop_tokens(tmp_path):
  base = bases.write_model(bases.write_small(tmp_path / "base"))
  run = train(base, tmp_path, epochs=1, rank=2)
  c = configs.export()
  c.source, c.adapters_only = str(run), True
  export.run(c, tmp_path / "out")
  assert tokenizer.load(tmp_path / "out").eos_ids == (258, 256)
  assert (tmp_path / "out" / "adapter_config.json").exists()
  cfg = hf.read_config(base)
  assert lora.load(tmp_path / "out", cfg)


def test_a_run_of_an_earlier_version_is_exported_with_its_end(tmp_path):
  """Its saved tokenizer has the base's stop token alone."""
  base = bases.write_model(bases.write_small(tmp_path / "base"))
  run = train(base, tmp_path, epochs=1)
  shutil.rmtree(run / "tokenizer")
  tokenizer.load(base).save(run / "tokenizer")
  (run / directory.PROMPTS).unlink()
  assert tokenizer.load(run / "tokenizer").eos_ids == (256,)
  assert prompting.chat_of_run(run) is not None
  assert export.tokenizer_of(str(run)).eos_ids == (258, 256)
