"""A random model that takes images, in the form of Idefics3: a tiny vision tower before a tiny Llama.

An image becomes a tile of its own, and where it is large one for each part before that; the ids between tiles say which.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.vllm.tiny import SPECIAL, TEMPLATE, VOCABULARY, make_tokenizer

#: What stands for an image in a prompt, and what it becomes besides.
IMAGE = "<image>"
MARKS = ("<fake_token_around_image>", IMAGE, "<end_of_utterance>", "<global-img>", "<row_1_col_1>", "<row_1_col_2>")

#: Pixels of a tile's side and of a patch's, and how many ids a tile has.
TILE, PATCH = 32, 8
PATCHES = (TILE // PATCH // 2) ** 2

#: The template for text, but the messages of users and tools may have parts.
PARTS = """\
{%- macro said(content) %}{% if content is string %}{{ content }}{% else %}
{%- for part in content %}{{ "<image>" if part.type == "image" else part.text }}{% endfor %}
{%- endif %}{% endmacro -%}
""" + TEMPLATE.replace("{{ message.content }}", "{{ said(message.content) }}")


def make_vision(folder: Path, seed: int = 0, template: str = PARTS) -> Path:
    """Make a model.

    Args:
        folder: where it is written.
        seed: of its weights.
        template: its chat template.
    """
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, LlamaConfig
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = make_tokenizer(MARKS, template)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE})
    Idefics3Processor(images, tokenizer, image_seq_len=PATCHES, chat_template=template).save_pretrained(folder)
    torch.manual_seed(seed)
    end = SPECIAL.index("<|im_end|>")
    text = LlamaConfig(
        vocab_size=VOCABULARY + 64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=2048,
        initializer_range=0.2,
        eos_token_id=end,
        pad_token_id=0,
    )
    vision = Idefics3VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=TILE,
        patch_size=PATCH,
        initializer_range=0.2,
    )
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=vision,
            text_config=text,
            scale_factor=2,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
            pad_token_id=0,
        )
    )
    model.generation_config.eos_token_id = end
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    make_vision(Path(sys.argv[1]), *(int(seed) for seed in sys.argv[2:3]))
