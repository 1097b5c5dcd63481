// AMX on processors without it: each tile instruction raises SIGILL there, whose handler does what it would have done.
// Slow, one thread at a time, and only what amx-inl.h uses; it lets every machine test what is computed.
#pragma once

#include <hybridattn/kernels/cpu/instruction_set.h>

#if HYBRIDATTN_X86_KERNELS && defined(__linux__)
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <ucontext.h>

namespace hybridattn::test {

/// Emulates AMX while it lives, where this process cannot use the processor's own.
class AmxEmulation {
public:
  AmxEmulation() {
    if (!kernels::cpu::is_available(kernels::cpu::InstructionSet::amx)) {
      struct sigaction action = {};
      action.sa_sigaction = on_illegal_instruction;
      action.sa_flags = SA_SIGINFO | SA_NODEFER;
      sigaction(SIGILL, &action, &previous_);
      installed_ = true;
    }
  }
  ~AmxEmulation() {
    if (installed_) {
      sigaction(SIGILL, &previous_, nullptr);
    }
  }
  AmxEmulation(const AmxEmulation&) = delete;
  AmxEmulation& operator=(const AmxEmulation&) = delete;

private:
  static constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

  struct Tiles {
    uint8_t data[kTiles][kRows][kRowBytes];
    uint16_t bytes_per_row[kTiles];
    uint8_t rows[kTiles];
    bool configured;
  };
  inline static Tiles tiles;

  /// One instruction: VEX prefix of three bytes, opcode, operands.
  struct Instruction {
    int prefix, opcode, reg, rm, vvvv, length;
    bool is_register; // the operand `rm` is one
    uint64_t address, stride;
  };

  static uint64_t general_register(const ucontext_t* context, int number) {
    static constexpr int kOrder[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                     REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return static_cast<uint64_t>(context->uc_mcontext.gregs[kOrder[number]]);
  }

  /// False if the bytes are no tile instruction (map 0F38, W0, 128 bits).
  static bool decode(const uint8_t* code, const ucontext_t* context, Instruction& result) {
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) {
      return false;
    }
    const int r = (code[1] & 0x80) ? 0 : 8, x = (code[1] & 0x40) ? 0 : 8, b = (code[1] & 0x20) ? 0 : 8;
    const int modrm = code[4], mod = modrm >> 6;
    int at = 5;
    result = {code[2] & 3, code[3], (modrm >> 3 & 7) + r, (modrm & 7) + b, ~(code[2] >> 3) & 15, 0, mod == 3, 0, 0};
    if (mod != 3) {
      int base = (modrm & 7) + b;
      bool has_base = !(mod == 0 && (modrm & 7) == 5);
      if (!has_base) {
        return false; // relative to the instruction pointer: no tile load or store has that
      }
      if ((modrm & 7) == 4) {
        const int sib = code[at++], index = (sib >> 3 & 7) + x;
        base = (sib & 7) + b;
        has_base = !(mod == 0 && (sib & 7) == 5);
        if (index != 4) {
          result.stride = general_register(context, index) << (sib >> 6);
        }
      }
      int32_t displacement = 0;
      if (mod == 1) {
        displacement = static_cast<int8_t>(code[at++]);
      } else if (mod == 2 || !has_base) {
        std::memcpy(&displacement, code + at, 4);
        at += 4;
      }
      result.address = (has_base ? general_register(context, base) : 0) + static_cast<uint64_t>(displacement);
    }
    result.length = at;
    return true;
  }

  static void multiply(int sums, int left, int right) {
    for (int row = 0; row < tiles.rows[sums]; ++row) {
      for (int column = 0; column < tiles.bytes_per_row[sums] / 4; ++column) {
        float sum;
        std::memcpy(&sum, &tiles.data[sums][row][4 * column], 4);
        for (int pair = 0; pair < tiles.bytes_per_row[left] / 4; ++pair) {
          for (int half = 0; half < 2; ++half) { // both terms of a pair are added in turn, subnormal numbers are 0
            const float a = widened(&tiles.data[left][row][4 * pair + 2 * half]);
            const float b = widened(&tiles.data[right][pair][4 * column + 2 * half]);
            sum = std::fma(a, b, sum);
          }
        }
        std::memcpy(&tiles.data[sums][row][4 * column], &sum, 4);
      }
    }
  }
  static float widened(const uint8_t* bf16) {
    uint16_t half;
    std::memcpy(&half, bf16, 2);
    const uint32_t bits = (half & 0x7f80) != 0 ? static_cast<uint32_t>(half) << 16 : 0;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
  }

  static bool execute(const Instruction& it) {
    constexpr int kNone = 0, kF3 = 2, kF2 = 3;
    if (it.opcode == 0x49 && it.prefix == kNone && !it.is_register) { // ldtilecfg
      const auto* shapes = reinterpret_cast<const uint8_t*>(it.address);
      if (shapes[0] != 1) {
        return false;
      }
      std::memset(&tiles, 0, sizeof(tiles));
      std::memcpy(tiles.bytes_per_row, shapes + 16, 2 * kTiles);
      std::memcpy(tiles.rows, shapes + 48, kTiles);
      tiles.configured = true;
      return true;
    }
    if (!tiles.configured) {
      return false;
    }
    if (it.opcode == 0x49 && it.prefix == kNone) { // tilerelease
      tiles.configured = false;
      return true;
    }
    if (it.opcode == 0x49 && it.prefix == kF2) { // tilezero
      std::memset(tiles.data[it.reg], 0, sizeof(tiles.data[it.reg]));
      return true;
    }
    if (it.opcode == 0x4b && (it.prefix == kF2 || it.prefix == kF3)) { // tileloadd, tilestored
      const bool loads = it.prefix == kF2;
      if (loads) {
        std::memset(tiles.data[it.reg], 0, sizeof(tiles.data[it.reg]));
      }
      for (int row = 0; row < tiles.rows[it.reg]; ++row) {
        auto* memory = reinterpret_cast<uint8_t*>(it.address + static_cast<uint64_t>(row) * it.stride);
        uint8_t* own = tiles.data[it.reg][row];
        std::memcpy(loads ? own : memory, loads ? memory : own, tiles.bytes_per_row[it.reg]);
      }
      return true;
    }
    if (it.opcode == 0x5c && it.prefix == kF3 && it.is_register) { // tdpbf16ps
      multiply(it.reg, it.rm, it.vvvv);
      return true;
    }
    return false;
  }

  static void on_illegal_instruction(int /*signal*/, siginfo_t* /*info*/, void* raw_context) {
    auto* context = static_cast<ucontext_t*>(raw_context);
    auto& pointer = context->uc_mcontext.gregs[REG_RIP];
    Instruction instruction;
    if (decode(reinterpret_cast<const uint8_t*>(pointer), context, instruction) && execute(instruction)) {
      pointer += instruction.length;
      return;
    }
    std::signal(SIGILL, SIG_DFL); // really illegal: ends the process where it stands
  }

  struct sigaction previous_ = {};
  bool installed_ = false;
};

} // namespace hybridattn::test
#endif
