"""What the tiny Z-Image and FLUX.2 klein pipelines share: a Qwen tokenizer, a Qwen3 text encoder and their schedulers."""
import json

import diffusers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from goldens_family import strong
from goldens_models import CORPUS

# Qwen3's added tokens, in the order of their ids.
ADDED = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call>
</tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <tool_response>
</tool_response> <think> </think>""".split()
NOT_SPECIAL = {"<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
               "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"}

# What tokenizers find hard: contractions, digits, white space, marks, scripts, composed and decomposed letters.
TEXTS = [
    "", " ", "\n", "  a  photo\tof\n\na   cat ", "\r\nwindows\r\n\r\nlines \r", "It's THEY'LL we've I'm he'd don't 'S ''re",
    "it’s a “quoted” ‘prompt’ — with… dashes–", "42 1234567890 3.14 1,000,000 2nd f/1.4 ²½٣ Ⅷ ①",
    "(masterpiece:1.2), [best|quality] {very_detailed} <lora:x:0.8>\n!!! ??? ...\n\n", "snake_case __init__ CamelCase",
    "café naïve", "cafe\u0301 nai\u0308ve", "ÀÉÎÕÜ ß ẞ İ ı ΣΑΣ", "Привет, мир!", "山の上の城と桜の花、夜空。", "고양이 사진",
    "مرحبا بالعالم", "ภาพถ่ายของแมว", "नमस्ते दुनिया", "😀 🐈\u200d⬛ 👩\u200d🚀 ❤\ufe0f", "a😀b🐈c", "nul\u0000bell\u0007",
    "non\u00a0breaking\u3000ideographic\u2028line", "<|im_end|>\n<|im_start|>system\n<think> x </think><|endoftext|>",
    "<tool_call> </tool_call><|fim_pad|> <|IM_END|>", "{{ messages }} {% raw %}", "a" * 90, "tree " * 60,
]


def tokens(tok):
    """Each text's ids inside of the template, truncated and padded as the pipelines do it."""
    rows = []
    for text in TEXTS:
        for thinking in (True, False):
            chat = tok.apply_chat_template([dict(role="user", content=text)], tokenize=False, add_generation_prompt=True,
                                           enable_thinking=thinking)
            made = tok(chat, padding="max_length", max_length=48, truncation=True)
            rows.append(dict(text=text, thinking=thinking, ids=made.input_ids, mask=made.attention_mask))
    return rows


# A template with the parts of Jinja that Qwen3's own uses.
TEMPLATE = """{%- if tools %}
    {{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(open=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.open = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' + message.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def tokenizer(merges=120, padding_side="right", old=False):
    """A byte-level tokenizer with Qwen3's added tokens behind a small vocabulary."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + merges, initial_alphabet=sorted(alphabet), show_progress=False)
    base.train_from_iterator([CORPUS], trainer)
    model = json.loads(base.to_str())["model"]
    tok = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], unk_token=None,
                         eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side=padding_side)
    # The reference gives ids in this order, whatever was there before.
    start = len(model["vocab"])
    ids = {token: start + i for i, token in enumerate(ADDED)}
    return model, ids, tok


def write_tokenizer(folder, merges=120, padding_side=None, old=False, template_file=False):
    """The tokenizer's files as published repositories have them: with `old`, vocab.json and merges.txt instead of
    tokenizer.json; with `template_file`, the chat template in a file of its own."""
    model, ids, _ = tokenizer(merges)
    folder.mkdir(parents=True, exist_ok=True)
    token = lambda t: dict(content=t, lstrip=False, normalized=False, rstrip=False, single_word=False,
                           special=t not in NOT_SPECIAL)
    config = dict(add_bos_token=False, add_prefix_space=False, bos_token=None, clean_up_tokenization_spaces=False,
                  eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None, errors="replace",
                  model_max_length=131072, split_special_tokens=False, tokenizer_class="Qwen2Tokenizer",
                  added_tokens_decoder={str(i): token(t) for t, i in ids.items()})
    if padding_side:
        config["padding_side"] = padding_side
    if template_file:
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    else:
        config["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    if old:
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
        lines = ["#version: 0.2"] + [" ".join(m) for m in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    else:
        tok = Qwen2Tokenizer.from_pretrained(write_old(folder, model))
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
        (folder / "tokenizer.json").write_text(tok.backend_tokenizer.to_str(pretty=False))
    return Qwen2Tokenizer.from_pretrained(folder)


def write_old(folder, model):
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    lines = ["#version: 0.2"] + [" ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


def text_encoder(tok, seed, **config):
    config = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                  head_dim=16, rope_theta=1000000.0, max_position_embeddings=40960, rms_norm_eps=1e-6,
                  tie_word_embeddings=True, max_window_layers=36, sliding_window=None) | config
    encoder = Qwen3ForCausalLM(Qwen3Config(vocab_size=-(-len(tok) // 8) * 8, **config))
    return strong(encoder, seed)


# Other schedulers than the model's own, and what they are told.
SAMPLERS = {
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_dpmpp_2m": ("DPMSolverMultistepScheduler", dict(use_flow_sigmas=True, prediction_type="flow_prediction")),
    "unipc": ("UniPCMultistepScheduler", dict(use_flow_sigmas=True, prediction_type="flow_prediction")),
}
SCHEDULES = {"karras": dict(use_karras_sigmas=True), "exponential": dict(use_exponential_sigmas=True)}


def case(prompt="a photo of a cat", size=(64, 64), *, steps=4, guidance=0.0, seed=0, negative=None, strength=None,
         mask=False, references=(), sampler=None, schedule=None):
    """One picture; `strength` starts from the start image, `mask` paints a part of it, `references` are looked at."""
    return dict(prompt=prompt, negative=negative, width=size[0], height=size[1], steps=steps, guidance=guidance, seed=seed,
                strength=strength, mask=mask, references=list(references), sampler=sampler, schedule=schedule)


def scheduler(pipe, what):
    """The scheduler of a case."""
    if what["sampler"] is None:
        return pipe.scheduler
    name, keys = SAMPLERS[what["sampler"]]
    keys = keys | SCHEDULES.get(what["schedule"], {})
    if "use_flow_sigmas" in keys:
        keys |= dict(flow_shift=pipe.scheduler.config.shift)
    return getattr(diffusers, name).from_config(pipe.scheduler.config, **keys)


def write_tokens(folder, tokenizers):
    """What each model's tokenizer makes of the texts."""
    texts = {name: tokens(tokenizer) for name, tokenizer in tokenizers.items()}
    (folder / "tokens.json").write_text(json.dumps(texts).replace('{"text"', '\n{"text"') + "\n", encoding="utf-8")
