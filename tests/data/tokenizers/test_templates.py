"""Chat templates: what transformers renders; what the assistant wrote."""

import copy
import json

import pytest
import transformers

from grpo_jax.data.tokenizers import templates, tokenizer

TEMPLATES = (
  "qwen2_5",
  "qwen3",
  "qwen3_instruct_2507",
  "deepseekv3",
)
THOUGHT = "<think>\nTwo and two,\nso 4.\n</think>\n\nIt is 4."
TALK = [
  {"role": "system", "content": "Be <b>brief</b> & kind."},
  {"role": "user", "content": "What is 2+2?"},
  {"role": "assistant", "content": THOUGHT},
  {"role": "user", "content": "And 2+3? 数 "},
  {"role": "assistant", "content": "It is 5."},
]
TOOL_TALK = [
  {"role": "user", "content": "Weather in Zürich?"},
  {
    "role": "assistant",
    "content": "",
    "tool_calls": [
      {
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
      }
    ],
  },
  {"role": "tool", "content": "Rain <5 mm>"},
  {"role": "assistant", "content": "Rain."},
]
TOOLS = [
  {
    "type": "function",
    "function": {"name": "weather", "parameters": {"é": "<int>"}},
  }
]
MARKED = (
  "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
  "{% if m.role == 'assistant' %}{% generation %}"
  "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}"
  "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def qwen(shared_data):
  return tokenizer.load(shared_data / "tokenizers" / "qwen")


@pytest.fixture(scope="module")
def theirs(shared_data):
  return transformers.Qwen2Tokenizer.from_pretrained(
    shared_data / "tokenizers" / "qwen"
  )


def with_template(tok, source):
  tok = copy.copy(tok)
  tok.chat_template = source
  return tok


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
  "variables",
  [{}, {"enable_thinking": False}, {"tools": TOOLS}],
  ids=["plain", "no_thinking", "tools"],
)
def test_templates_render_as_transformers_renders_them(
  name, variables, qwen, theirs, shared_data
):
  source = (shared_data / "chat_templates" / f"{name}.jinja").read_text()
  ours = with_template(qwen, source)
  reasoned = [*TALK[:2], {**TALK[-1], "reasoning_content": "2, 3"}]
  for talk in (TALK, TALK[:2], TALK[1:4], reasoned, TOOL_TALK, TOOL_TALK[:3]):
    for prompt in (False, True):
      expected = theirs.apply_chat_template(
        talk,
        chat_template=source,
        tokenize=False,
        add_generation_prompt=prompt,
        **variables,
      )
      rendered = templates.render(
        ours, talk, add_generation_prompt=prompt, **variables
      )
      assert rendered == expected
      assert len(rendered) > 20


def test_a_prompt_has_the_ids_of_transformers(qwen, theirs):
  ids = templates.encode_prompt(qwen, TALK[:4])
  expected = theirs.apply_chat_template(TALK[:4], add_generation_prompt=True)
  assert ids == expected["input_ids"]


def test_generation_blocks_mark_what_transformers_marks(qwen, theirs):
  ours = with_template(qwen, MARKED)
  encoded = templates.encode(ours, TALK)
  expected = theirs.apply_chat_template(
    TALK,
    chat_template=MARKED,
    return_assistant_tokens_mask=True,
    return_dict=True,
  )
  assert encoded.ids == expected["input_ids"]
  assert encoded.assistant == [bool(m) for m in expected["assistant_masks"]]
  assert said(ours, encoded) == f"{THOUGHT}<|im_end|>It is 5.<|im_end|>"


def said(tok, encoded):
  """What the assistant wrote, special tokens shown."""
  pairs = zip(encoded.ids, encoded.assistant, strict=True)
  return "".join(tok.piece(i) for i, inside in pairs if inside)


def test_without_generation_blocks_turns_are_told_by_what_they_add(
  qwen, shared_data
):
  source = (shared_data / "chat_templates" / "qwen2_5.jinja").read_text()
  ours = with_template(qwen, source)
  talk = [*TALK[:4], {"role": "assistant", "content": "5"}]
  encoded = templates.encode(ours, talk)
  assert encoded.ids == ours.encode(templates.render(ours, talk))
  assert said(ours, encoded) == f"{THOUGHT}<|im_end|>\n5<|im_end|>\n"
  # The prompt that the assistant answers is the part before it.
  first = encoded.assistant.index(True)
  assert encoded.ids[:first] == templates.encode_prompt(ours, talk[:2])


def test_one_turn_with_thinking_is_told_by_what_it_adds(qwen, shared_data):
  source = (shared_data / "chat_templates" / "qwen3.jinja").read_text()
  ours = with_template(qwen, source)
  assert (
    said(ours, templates.encode(ours, TALK[:3])) == f"{THOUGHT}<|im_end|>\n"
  )


def test_templates_that_rewrite_turns_say_so(qwen, shared_data):
  folder = shared_data / "chat_templates"
  ours = with_template(qwen, (folder / "qwen3.jinja").read_text())
  with pytest.raises(ValueError, match="message 2, of .* in another way once"):
    templates.encode(ours, TALK)
  ours = with_template(qwen, (folder / "deepseekv3.jinja").read_text())
  with pytest.raises(ValueError, match="begin with the generation prompt"):
    templates.encode(ours, TALK)
  first_release = tokenizer.load(shared_data / "tokenizers" / "deepseek_r1")
  assert templates.encode(first_release, TALK[3:]).assistant[-1]
  with pytest.raises(ValueError, match="loses a part of its content"):
    templates.encode(first_release, TALK)


@pytest.mark.parametrize("opened", [False, True])
def test_a_last_message_stands_behind_its_prompt_whole(opened, shared_data):
  """Where the template would drop the thought, or begins it in the prompt."""
  tok = tokenizer.load(shared_data / "tokenizers" / "deepseek_r1")
  if opened:
    source = shared_data / "chat_templates" / "deepseekv3.jinja"
    tok = with_template(tok, source.read_text())
  end = "<｜end▁of▁sentence｜>"
  thought, summary = "Two and two,\nso 4.", "It is 4."
  reasoned = {"content": summary, "reasoning_content": thought}
  for message in ({"content": THOUGHT}, reasoned):
    talk = [*TALK[:2], {"role": "assistant"} | message]
    encoded = templates.encode(tok, talk)
    first = encoded.assistant.index(True)
    assert encoded.ids[:first] == templates.encode_prompt(tok, talk[:2])
    assert all(encoded.assistant[first:])
    want = f"{THOUGHT}{end}"
    assert said(tok, encoded) == want.removeprefix("<think>\n" * opened)
  short = [*TALK[:2], {"role": "assistant", "content": summary}]
  ended = "\n</think>\n\n" * opened
  assert said(tok, templates.encode(tok, short)) == f"{ended}{summary}{end}"


def test_thinking_behind_a_prompt_that_rules_it_out_is_an_error(
  qwen, shared_data
):
  source = (shared_data / "chat_templates" / "qwen3.jinja").read_text()
  ours = with_template(qwen, source)
  with pytest.raises(ValueError, match="begin with the generation prompt"):
    templates.encode(ours, TALK[:3], enable_thinking=False)
  short = [*TALK[:2], TALK[-1]]
  encoded = templates.encode(ours, short, enable_thinking=False)
  assert said(ours, encoded) == "It is 5.<|im_end|>\n"


def test_sentencepiece_and_bytes_take_templates_too(shared_data, tmp_path):
  template = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
  )
  talk = [
    {"role": "user", "content": "数 é?"},
    {"role": "assistant", "content": "Oui 🤔."},
  ] * 2
  tokenizer.ByteTokenizer(["<think>"]).save(tmp_path)
  (tmp_path / "chat_template.jinja").write_text(template)
  mistral = shared_data / "tokenizers" / "mistral_v1"
  for tok in (
    tokenizer.load(tmp_path),
    with_template(tokenizer.load(mistral), template),
  ):
    encoded = templates.encode(tok, talk)
    assert encoded.ids[0] == tok.bos_id
    assert encoded.ids.count(tok.eos_ids[0]) == 2
    # A byte tokenizer has one token a byte; pieces may hold the blank before.
    pairs = zip(encoded.ids, encoded.assistant, strict=True)
    ids = [i for i, inside in pairs if inside]
    assert tok.decode(ids) in ("Oui 🤔." * 2, "Oui 🤔. Oui 🤔.")
    assert ids[-1] == tok.eos_ids[0]
    tok.save(tmp_path / "saved")
  loaded = tokenizer.load(tmp_path)
  loaded.save(tmp_path / "again")
  assert tokenizer.load(tmp_path / "again").chat_template == template


def test_without_a_template_the_error_says_how_to_give_one(shared_data):
  tok = tokenizer.load(shared_data / "tokenizers" / "gpt2")
  with pytest.raises(ValueError, match=r"put one as chat_template\.jinja"):
    templates.render(tok, TALK)


def test_what_a_template_refuses_is_one_error(qwen):
  ours = with_template(qwen, "{{ raise_exception('No system role') }}")
  with pytest.raises(ValueError, match="refuses .*: No system role"):
    templates.render(ours, TALK)
  ours = with_template(qwen, "{% for %}")
  with pytest.raises(ValueError, match="chat template"):
    templates.render(ours, TALK)


@pytest.mark.parametrize(
  "attack",
  [
    "{{ messages.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ messages.append(1) }}",
    "{{ strftime_now.__globals__.json }}",
  ],
)
def test_templates_run_in_a_sandbox(attack, qwen):
  ours = with_template(qwen, attack)
  with pytest.raises(ValueError, match="refuses"):
    templates.render(ours, TALK)


def test_templates_have_dates_json_and_loop_controls(qwen):
  source = (
    "{{ strftime_now('%Y') }} {{ {'é': '<x>'} | tojson }}"
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    " {{ m.role }}{% endfor %}"
  )
  text = templates.render(with_template(qwen, source), TALK)
  assert text[4:] == " " + json.dumps({"é": "<x>"}, ensure_ascii=False) + (
    " system"
  )
