"""HybridConfig: the teacher's own config, and which layer became what."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from hybridattn.hf.families import check_teacher


class HybridConfig(PretrainedConfig):
    """Config of a hybrid decoder.

    Args:
        teacher_config: the teacher's config as a dict.
        layer_types: per layer ``full_attention`` (the teacher's own) or ``linear_attention`` (replaced by `mixer`).
        mixer: kind of the replacement, a key of ``hybridattn.nn.MIXERS``.
        mixer_options: its options.
    """

    model_type = "hybridattn"

    def __init__(
        self,
        teacher_config: dict[str, Any] | None = None,
        layer_types: list[str] | None = None,
        mixer: str = "gated_deltanet",
        mixer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.teacher_config = dict(teacher_config or {})
        self.mixer = mixer
        self.mixer_options = dict(mixer_options or {})
        # What generation and caches look up on a config.
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
            if name in self.teacher_config:
                setattr(self, name, self.teacher_config[name])
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "use_cache"):
            if name in self.teacher_config:
                kwargs.setdefault(name, self.teacher_config[name])
        super().__init__(**kwargs)
        self.layer_types = list(layer_types or [])

    def build_teacher_config(self) -> Any:
        """The teacher's config object.

        Raises:
            ValueError: the family is not supported.
        """
        values = dict(self.teacher_config)
        config = AutoConfig.for_model(values.pop("model_type", "missing"), **values)
        check_teacher(config)
        return config

    @property
    def softmax_layers(self) -> list[int]:
        return [index for index, kind in enumerate(self.layer_types) if kind == "full_attention"]
