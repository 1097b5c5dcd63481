// Cuts packed or batched documents into chunks, ordered so that all documents advance together.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <hybridattn/core/check.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

namespace hybridattn::ops {

/// Start and end of every document in the flattened tokens [B * T].
/// @throws c10::ValueError when cu_seqlens does not rise from 0 to the number of tokens.
inline std::vector<std::pair<int64_t, int64_t>> document_spans(const std::string& op, int64_t batch, int64_t tokens,
                                                               const std::optional<at::Tensor>& cu_seqlens) {
  std::vector<std::pair<int64_t, int64_t>> spans;
  if (!cu_seqlens) {
    for (int64_t b = 0; b < batch; ++b) {
      spans.emplace_back(b * tokens, (b + 1) * tokens);
    }
    return spans;
  }
  const auto offsets = cu_seqlens->to(at::kCPU, at::kLong).contiguous();
  const int64_t* at_offset = offsets.const_data_ptr<int64_t>();
  const int64_t n = offsets.size(0) - 1;
  HA_CHECK(at_offset[0] == 0 && at_offset[n] == tokens, op, ": cu_seqlens must run from 0 to the number of tokens ",
           tokens, ", got ", at_offset[0], " to ", at_offset[n]);
  for (int64_t i = 0; i < n; ++i) {
    HA_CHECK(at_offset[i] <= at_offset[i + 1], op, ": cu_seqlens must not fall, got ", at_offset[i], " before ",
             at_offset[i + 1]);
    spans.emplace_back(at_offset[i], at_offset[i + 1]);
  }
  return spans;
}

/// The order of all chunks of all documents, step-major: row block j holds the j-th chunk of every document that has
/// one, longest documents first, so a step reads consecutive rows and the leading states.
struct ChunkOrder {
  int64_t chunk = 0, rows = 0;
  std::vector<int64_t> active;    ///< documents that have a j-th chunk
  std::vector<int64_t> first_row; ///< first row of step j; one entry more than steps
  std::vector<int64_t> document;  ///< document at each position of the states

  int64_t steps() const { return static_cast<int64_t>(active.size()); }
};

inline ChunkOrder chunk_order(const std::vector<std::pair<int64_t, int64_t>>& spans, int64_t chunk) {
  ChunkOrder order{.chunk = chunk};
  order.document.resize(spans.size());
  std::iota(order.document.begin(), order.document.end(), 0);
  const auto length = [&](int64_t d) { return spans[d].second - spans[d].first; };
  std::stable_sort(order.document.begin(), order.document.end(),
                   [&](int64_t a, int64_t b) { return length(a) > length(b); });
  order.first_row.push_back(0);
  int64_t active = static_cast<int64_t>(spans.size());
  for (int64_t step = 0;; ++step) {
    while (active > 0 && length(order.document[active - 1]) <= step * chunk) {
      --active;
    }
    if (active == 0) {
      break;
    }
    order.active.push_back(active);
    order.first_row.push_back(order.first_row.back() + active);
  }
  order.rows = order.first_row.back();
  return order;
}

/// Where the states that forward saves for backward lie: those at the start of every `interval`-th chunk of a document,
/// in the order of the chunks' rows.
struct SavedStates {
  int64_t interval = 1, rows = 0;
  std::vector<int64_t> first_row; ///< per step; of those that are saved

  SavedStates(const ChunkOrder& order, int64_t every) : interval(every), first_row(order.active.size()) {
    for (int64_t step = 0; step < order.steps(); ++step) {
      first_row[step] = rows;
      rows += holds(step) ? order.active[step] : 0;
    }
  }

  bool holds(int64_t step) const { return step % interval == 0; }
};

/// All chunks of all documents as rows of C tokens.
struct ChunkTable : ChunkOrder {
  int64_t tokens = 0;
  bool padded = false;              ///< some rows end in padding (its index is `tokens`)
  std::vector<int64_t> token_index; ///< [rows * C] flattened token of each place

  /// Token indices of rows [begin, end) on `device`.
  at::Tensor index(int64_t begin, int64_t end, at::Device device) const {
    const at::IntArrayRef places(token_index.data() + begin * chunk, (end - begin) * chunk);
    return at::tensor(places, at::TensorOptions().dtype(at::kLong)).to(device);
  }
  at::Tensor order(at::Device device) const {
    return at::tensor(at::IntArrayRef(document), at::TensorOptions().dtype(at::kLong)).to(device);
  }
};

inline ChunkTable chunk_table(const std::vector<std::pair<int64_t, int64_t>>& spans, int64_t tokens, int64_t chunk) {
  ChunkTable table{chunk_order(spans, chunk), tokens};
  table.token_index.reserve(table.rows * chunk);
  for (int64_t step = 0; step < table.steps(); ++step) {
    for (int64_t position = 0; position < table.active[step]; ++position) {
      const auto [first, end] = spans[table.document[position]];
      for (int64_t place = first + step * chunk; place < first + (step + 1) * chunk; ++place) {
        table.token_index.push_back(place < end ? place : tokens);
        table.padded |= place >= end;
      }
    }
  }
  return table;
}

} // namespace hybridattn::ops
