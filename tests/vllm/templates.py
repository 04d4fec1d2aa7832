"""Chat templates that behave as those of well-known models do, and a tokenizer that is trained on the spot."""

from __future__ import annotations

from functools import cache
from typing import Any

#: As Qwen 2.5 and Hermes: tools in the system message, calls and results in XML tags, results are said by the user.
CHATML = """
{%- set first = messages[0].content if messages[0].role == 'system' else 'You help.' -%}
<|im_start|>system
{{ first }}
{%- if tools %}

# Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
{%- endif %}<|im_end|>
{% for message in messages %}
{%- if message.role == 'tool' %}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
    {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif message.tool_calls %}
    {{- '<|im_start|>assistant' }}
    {%- if message.content %}{{ '\\n' + message.content }}{% endif %}
    {%- for call in message.tool_calls %}
        {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson }}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif message.role != 'system' or not loop.first %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

#: As Llama 3.1: headers, trimmed content, one call in a message, whose text is dropped then.
LLAMA = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('one tool call at a time') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson + '}' }}
    {%- else %}
        {%- set role = 'ipython' if message.role == 'tool' else message.role %}
        {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
        {{- message.content | tojson if message.content is mapping else message.content | trim }}
        {%- if loop.first and tools %}{{ '\\nTools: ' + tools | tojson }}{% endif %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

#: As Qwen 3: reasoning stays until the user says something new; the last answer has at least an empty thought.
QWEN3 = """
{%- if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(query=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
    {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif message.role == 'assistant' %}
    {%- set content = message.content or '' %}
    {%- set thought = '' %}
    {%- if message.reasoning_content is string %}
        {%- set thought = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}
        {%- set content = content.split('</think>')[-1] %}
    {%- endif %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if loop.index0 > ns.query and (loop.last or thought) %}
        {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
    {%- else %}
        {{- content }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {%- if content or not loop.first %}{{ '\\n' }}{% endif %}
        {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

#: As DeepSeek R1: thoughts are begun by the prompt and dropped from every answer; arguments are text, missing content is null.
R1 = """
{{- bos_token }}
{%- set ns = namespace(tool=false) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ message.content }}{% endif %}
    {%- if message.role == 'user' %}{% set ns.tool = false %}{{ '<|User|>' + message.content }}{% endif %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {%- set ns.tool = false %}
        {{- '<|Assistant|><|calls|>' }}
        {%- for call in message.tool_calls %}
            {{- '<|call|>' + call.type + '<|sep|>' + call.function.name + '\\n' + call.function.arguments + '<|/call|>' }}
        {%- endfor %}
        {{- '<|/calls|><|eos|>' }}
    {%- endif %}
    {%- if message.role == 'assistant' and message.content is not none %}
        {%- if ns.tool %}
            {%- set ns.tool = false %}
            {{- '<|/outputs|>' + message.content + '<|eos|>' }}
        {%- else %}
            {{- '<|Assistant|>' + message.content.split('</think>')[-1] + '<|eos|>' }}
        {%- endif %}
    {%- endif %}
    {%- if message.role == 'tool' %}
        {{- '\\n<|output|>' if ns.tool else '<|outputs|><|output|>' }}{{ message.content + '<|/output|>' }}
        {%- set ns.tool = true %}
    {%- endif %}
{%- endfor %}
{%- if ns.tool %}{{ '<|/outputs|>' }}{% endif %}
{%- if add_generation_prompt and not ns.tool %}{{ '<|Assistant|><think>\\n' }}{% endif %}"""

#: Knows neither tools nor tokens that end a turn.
PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

#: Template, BOS, EOS.
TEMPLATES = {
    "chatml": (CHATML, None, "<|im_end|>"),
    "llama": (LLAMA, "<|begin_of_text|>", "<|eot_id|>"),
    "qwen3": (QWEN3, None, "<|im_end|>"),
    "r1": (R1, "<|bos|>", "<|eos|>"),
    "plain": (PLAIN, None, "<|endoftext|>"),
}

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", 
    "<|eot_id|>", "<|eom_id|>", "<|bos|>", "<|eos|>", "<|User|>", "<|Assistant|>", "<|calls|>", "<|/calls|>",
    "<|call|>", "<|/call|>",
    "<|sep|>", "<|outputs|>", "<|/outputs|>", "<|output|>", "<|/output|>",
]  # fmt: skip

#: Added, but no special tokens: they are text that parsers read.
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]

_TEXT = [
    "You help. # Tools The weather in Paris is sunny, and the capital of France is Paris.",
    '<tool_call>\n{"name": "look", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>',
    "system user assistant ipython tool_response Grüße, 你好, \U0001f600 \n\n",
] * 20


@cache
def tokenizer(name: str) -> Any:
    """A byte-level BPE tokenizer with one of the templates."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AddedToken, PreTrainedTokenizerFast

    template, bos, eos = TEMPLATES[name]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(_TEXT, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet))
    if bos is not None:  # as Llama's: it must not stand twice
        first = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))])
        made.post_processor = first
    whole = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos, chat_template=template)
    whole.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return whole
