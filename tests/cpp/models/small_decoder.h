// Small random decoders.
#pragma once

#include <hybridattn/models/decoder.h>

inline hybridattn::models::ModelConfig small_config(bool tied = true) {
  hybridattn::models::ModelConfig config;
  config.vocab_size = 31;
  config.hidden_size = 16;
  config.intermediate_size = 20;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 4;
  config.rotary.head_dim = 4;
  config.tie_word_embeddings = tied;
  config.teacher = {{"model_type", "llama"},    {"vocab_size", 31},       {"hidden_size", 16},
                    {"intermediate_size", 20},  {"num_hidden_layers", 3}, {"num_attention_heads", 4},
                    {"num_key_value_heads", 2}, {"head_dim", 4},          {"tie_word_embeddings", tied}};
  return config;
}

inline hybridattn::models::Decoder small_decoder(bool tied = true) {
  hybridattn::models::Decoder decoder(small_config(tied));
  decoder->eval();
  return decoder;
}
