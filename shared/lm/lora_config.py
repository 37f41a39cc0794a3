"""Configuration of a LoRA adapter as `peft` writes it (`adapter_config.json`), and what of it is served.

A setting that would change the adapter's result and is not served is refused by name. Knows names of modules; knows no
tensors.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fovea.errors import InvalidOption, Malformed

MAX_RANK: Final = 256
"""Largest rank of a module."""

_MAX_PATTERNS: Final = 1024
_MAX_PATTERN: Final = 200
_MAX_REPEATS: Final = 3

_SERVED: Final = """peft_type r lora_alpha use_rslora rank_pattern alpha_pattern target_modules layers_to_transform
    exclude_modules"""
_UNCHANGED: Final = """auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config inference_mode
    loftq_config lora_dropout lora_ga_config megatron_core peft_version qalora_group_size revision runtime_config
    task_type"""
"""Settings that only concern training: a saved adapter is the same whatever they are."""

_REFUSED: Final[Mapping[str, str]] = {
    "alora_invocation_tokens": "adapters act on all tokens",
    "arrow_config": "a request has one adapter",
    "bias": "biases are the model's own",
    "fan_in_fan_out": "no served family stores matrices like that",
    "layer_replication": "layers are the model's own",
    "layers_pattern": "layers are called `model.layers`",
    "lora_bias": "biases are the model's own",
    "megatron_config": "export the adapter to plain peft",
    "modules_to_save": "train it with target_modules only",
    "target_parameters": "only linear layers have adapters",
    "trainable_token_indices": "embeddings are the model's own",
    "use_bdlora": "only plain LoRA is served",
    "use_dora": "only plain LoRA is served; DoRA divides by norms of the model's matrices",
    "use_qalora": "only plain LoRA is served",
}

_KEEPS_BASE: Final = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the model's own matrices as they were."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The parts of an adapter's configuration that its result depends on.

    Attributes:
        rank, alpha: Of modules that no pattern names.
        is_rank_stabilized: Whether the scale is alpha / √rank instead of alpha / rank (rsLoRA, Kalajdzievski 2023).
        rank_pattern, alpha_pattern: Values of modules by regular expression.
        targets: Names of modules or their ends, or one regular expression.
        layers: Layers that have an adapter, or None for all; only where targets are names.
        excluded: As targets, of modules without one.
    """

    rank: int
    alpha: float
    is_rank_stabilized: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: tuple[str, ...] | str
    layers: frozenset[int] | None = None
    excluded: tuple[str, ...] | str = ()

    def rank_of(self, module: str) -> int:
        """The rank of a module, such as `model.layers.0.self_attn.q_proj`."""
        return self.rank_pattern.get(_find_pattern(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        """Factor of the product of its two matrices."""
        alpha = self.alpha_pattern.get(_find_pattern(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / (rank**0.5 if self.is_rank_stabilized else rank)

    def covers(self, module: str) -> bool:
        """Whether a module has an adapter by this configuration."""
        if _is_named(self.excluded, module) or not _is_named(self.targets, module):
            return False
        if self.layers is None or isinstance(self.targets, str) or module in self.targets:
            return True
        index = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        return index is not None and int(index[1]) in self.layers


def parse_lora_config(facts: Mapping[str, Any]) -> LoraConfig:
    """Parse the content of an `adapter_config.json`.

    Raises InvalidOption for a setting that is not served, which the detail names, and Malformed for a value that is
    missing, of another kind or out of range.
    """
    _refuse_what_is_not_served(facts)
    try:
        found = LoraConfig(
            rank=_read_rank(facts["r"]),
            alpha=_read_alpha(facts["lora_alpha"]),
            is_rank_stabilized=bool(facts.get("use_rslora")),
            rank_pattern={_check_regex(key): _read_rank(r) for key, r in (facts.get("rank_pattern") or {}).items()},
            alpha_pattern={_check_regex(key): _read_alpha(a) for key, a in (facts.get("alpha_pattern") or {}).items()},
            targets=_read_names(facts["target_modules"]),
            layers=_read_layers(facts.get("layers_to_transform")),
            excluded=_read_names(facts.get("exclude_modules") or []),
        )
    except KeyError as error:
        raise Malformed(f"adapter_config.json has no {error.args[0]}.", field="config") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"adapter_config.json can't be used: {error}.", field="config") from error
    if max(len(found.rank_pattern), len(found.alpha_pattern)) > _MAX_PATTERNS:
        raise Malformed(f"adapter_config.json has more than {_MAX_PATTERNS:,} patterns.", field="config")
    return found


def list_settings() -> Iterator[tuple[str, str, str]]:
    """Settings of peft with their treatment (`served`, `accepted`, `refused`) and a note, by name."""
    found = dict.fromkeys(_SERVED.split(), ("served", ""))
    found["peft_type"] = "served", "`LORA` only."
    found |= dict.fromkeys(_UNCHANGED.split(), ("accepted", "It only concerns training."))
    found |= {name: ("refused", f"{why[0].upper()}{why[1:]}.") for name, why in _REFUSED.items()}
    found["init_lora_weights"] = "served", "Refused where it changes the base model (PiSSA, OLoRA, CorDA, LoftQ)."
    yield from ((name, *found[name]) for name in sorted(found))


def _refuse_what_is_not_served(facts: Mapping[str, Any]) -> None:
    if facts.get("peft_type") != "LORA":
        detail = f"The adapter is of the kind {str(facts.get('peft_type'))[:40]!r}; only LORA is served."
        raise InvalidOption(detail, field="config")
    known = {*_SERVED.split(), *_UNCHANGED.split()}
    for name, value in facts.items():
        if name in known or not value or (name == "bias" and value == "none"):
            continue
        if name == "init_lora_weights":
            if value in _KEEPS_BASE:
                continue
            detail = f"Adapters that were begun with init_lora_weights={str(value)[:40]!r} are not served: they belong "
            hint = "Convert it with peft's `path_initial_model_for_weight_conversion`."
            raise InvalidOption(f"{detail}to a changed base model.", hint=hint, field="config")
        why = _REFUSED.get(name, "it is not known here, and may change what the adapter does")
        detail = f"Adapters with {name[:64]!r} are not served: {why}."
        raise InvalidOption(detail, hint="Train it without that.", field="config")


def _read_rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise ValueError(f"a rank is a whole number from 1 to {MAX_RANK}, not {value!r:.20}")
    return value


def _read_alpha(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise ValueError(f"an alpha is a number below a million, not {value!r:.20}")
    return float(value)


def _read_names(value: Any) -> tuple[str, ...] | str:
    if isinstance(value, str):
        return _check_regex(value)
    if not all(isinstance(name, str) for name in value) or len(value) > _MAX_PATTERNS:
        raise ValueError("modules are a list of names, or one regular expression")
    return tuple(value)


def _read_layers(value: Any) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    layers = [value] if isinstance(value, int) else value
    if not all(isinstance(layer, int) for layer in layers):
        raise ValueError("layers_to_transform are numbers of layers")
    return frozenset(layers)


def _check_regex(pattern: str) -> str:
    """A regular expression that can't take long on a module's name: few repeats, and none of a group."""
    repeats = len(re.findall(r"[*+?{]", pattern.replace("(?:", "(")))
    if len(pattern) > _MAX_PATTERN or repeats > _MAX_REPEATS or re.search(r"\)[*+?{]", pattern):
        message = f"the pattern {pattern[:60]!r} may take long: repeat single characters only, {_MAX_REPEATS} times"
        raise ValueError(message)
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern {pattern[:60]!r} is no regular expression: {error}") from error
    return pattern


def _find_pattern(patterns: Iterable[str], module: str) -> str:
    """The first pattern that matches a module or the end of its name, as in peft; else the module itself."""
    return next((one for one in patterns if re.match(rf"(.*\.)?({one})$", module)), module)


def _is_named(names: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names)
