"""A random model of 0.5 million parameters in the form of Qwen2, with a tokenizer and a chat template of the Hermes kind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]

#: Tokens of the vocabulary, and those with a meaning of their own among them.
VOCABULARY = 2048
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>"]

#: ChatML, with tools as Hermes tells them: JSON between tags.
TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == "system" %}{{ messages[0].content }}

{% endif %}# Tools

{% for tool in tools %}{{ tool | tojson }}
{% endfor %}
Call one as <tool_call>{"name": <name>, "arguments": <object>}</tool_call><|im_end|>
{% elif messages[0].role == "system" %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "user" or (message.role == "system" and not loop.first) %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% elif message.role == "assistant" %}<|im_start|>assistant
{{ message.content or "" }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% elif message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_tokenizer(further: tuple[str, ...] = (), template: str = TEMPLATE) -> Any:
    """Train the tokenizer.

    Args:
        further: special tokens besides the usual ones; their ids come after those of all others.
        template: the chat template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    texts = [path.read_text("utf-8") for path in sorted((REPOSITORY / "docs").glob("*.md"))]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    tokens.add_special_tokens(list(further))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


def make(folder: Path, seed: int = 0, dtype: str = "float32", longest: int = 2048) -> Path:
    """Make a model.

    Args:
        folder: where it is written.
        seed: of its weights; the tokenizer is always the same.
        dtype: of its weights.
        longest: tokens of prompt and answer together.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    make_tokenizer().save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=longest,
        tie_word_embeddings=True,
        initializer_range=0.2,  # else all tokens are about equally likely
        eos_token_id=SPECIAL.index("<|im_end|>"),
        pad_token_id=0,
    )
    Qwen2ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    make(Path(sys.argv[1]), *(int(seed) for seed in sys.argv[2:3]))
