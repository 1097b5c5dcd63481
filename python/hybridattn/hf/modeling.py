"""HybridForCausalLM: the teacher's own decoder with the attention of some layers replaced by mixers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hybridattn import ops
from hybridattn.hf.access import head_weight
from hybridattn.hf.cache import CACHE_NAME, HybridCache
from hybridattn.hf.configuration import HybridConfig
from hybridattn.nn import FirstValue, Mixer, build_mixer
from hybridattn.nn.low_rank import ZeroLinear


class HybridForCausalLM(PreTrainedModel, GenerationMixin):
    """A hybrid decoder. Layers that keep softmax are the teacher's own modules.

    Example:
        >>> model = AutoModelForCausalLM.from_pretrained("out")  # after `import hybridattn`
        >>> model.softmax_layers
        [2, 3]
    """

    config_class = HybridConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (Transformers' attribute)
    _keep_in_fp32_modules_strict = ["A_log", "dt_bias", "w0", "a0"]  # noqa: RUF012

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        teacher_config = config.build_teacher_config()
        if len(config.layer_types) != teacher_config.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(config.layer_types)} entries, the teacher {teacher_config.num_hidden_layers} layers"
            )
        teacher_config._attn_implementation = config._attn_implementation
        # In the dtype that this model is built in; the config inside may name the one its teacher was saved in.
        self.model = AutoModel.from_config(teacher_config, dtype=torch.get_default_dtype())
        self.lm_head: nn.Module = nn.Linear(teacher_config.hidden_size, teacher_config.vocab_size, bias=False)
        for index, kind in enumerate(config.layer_types):
            if kind not in ("full_attention", "linear_attention"):
                raise ValueError(f"layer_types[{index}]: expected full_attention or linear_attention, got '{kind}'")
            if kind == "linear_attention":
                mixer = build_mixer(config.mixer, config.mixer_options, index)
                self.model.layers[index].self_attn = mixer
                # Transformers draws every linear layer anew, but for those marked so.
                zeros: Iterator[Any] = (module for module in mixer.modules() if isinstance(module, ZeroLinear))
                for module in zeros:
                    module._is_hf_initialized = True
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from a teacher or a checkpoint; modules initialise themselves when they are built."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers, but strict: weights that are missing, left over or misshapen are an error.

        Raises:
            ValueError: naming the tensors.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("ignore_mismatched_sizes", True)  # they are named below, in the error itself
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        misshapen = [f"{name} of shape {list(there)} for {list(here)}" for name, there, here in info["mismatched_keys"]]
        faults = (
            ("lacks", info["missing_keys"]),
            ("has tensors that the config does not:", info["unexpected_keys"]),
            ("holds", misshapen),
        )
        for what, names in faults:
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                raise ValueError(
                    f"{pretrained_model_name_or_path}: the checkpoint {what} {', '.join(sorted(names)[:8])}{more}; "
                    "config.json and weights are not of the same model"
                )
        return (model, info) if wants_info else model

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.layers

    def mixers(self) -> dict[int, Mixer]:
        """Layer -> mixer, for the layers that were replaced."""
        return {index: layer.self_attn for index, layer in enumerate(self.layers) if isinstance(layer.self_attn, Mixer)}

    @property
    def softmax_layers(self) -> list[int]:
        return self.config.softmax_layers

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Transformers' hook: the cache that `generate` fills."""
        if generation_config.cache_implementation not in (None, "dynamic", "hybrid"):
            raise ValueError(
                f"generate: cache_implementation '{generation_config.cache_implementation}' cannot hold the state of "
                "linear layers; leave it unset"
            )
        if generation_config.use_cache is not False and model_kwargs.get(CACHE_NAME) is None:
            model_kwargs[CACHE_NAME] = HybridCache(self.config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Any | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss when `labels` are given.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T so far], 1 = token, 0 = left padding.
            cu_seqlens: [N + 1] offsets of packed documents over the flattened B * T tokens, row ends included; give
                `position_ids` that restart at each document with it.
            labels: [B, T], shifted inside; -100 = ignored.
            logits_to_keep: compute logits for the last so many positions only; 0 = all.
            cache, past_key_values: what Transformers calls a cache since 5.24 and called it before; either may be given.
        """
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = HybridCache(self.config)
        if attention_mask is not None and attention_mask.dim() == 2:
            kwargs["padding_mask"] = attention_mask.bool()
            if position_ids is None and cache is None:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        kwargs["unpadded"] = attention_mask is None
        kwargs["first_value"] = FirstValue()
        if cu_seqlens is not None:
            kwargs["cu_seqlens"] = cu_seqlens
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=bool(use_cache),
            **{CACHE_NAME: cache},
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if isinstance(cache, HybridCache):
            cache.seen += hidden.shape[1]
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        logits = self.lm_head(hidden if isinstance(keep, int) else hidden[:, keep, :])
        loss = None
        if labels is not None:
            shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
            loss = ops.linear_cross_entropy(hidden, head_weight(self), shifted)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, **{CACHE_NAME: getattr(outputs, CACHE_NAME) if use_cache else None}
        )
