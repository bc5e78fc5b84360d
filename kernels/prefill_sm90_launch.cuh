#pragma once
// The host's part of the Hopper prefill kernel: tensor maps, which of its kernels, clusters.

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "general_weights.hpp"
#include "launch.cuh"
#include "prefill_sm90.cuh"
#include "tensor_map.hpp"

namespace mpq::kernels {

template <int WBits, DType T, int Row>
struct HopperPrefillLaunch {
  static constexpr KernelConfig kConfig = kKernelTable[Row];
  using Shape = HopperPrefillShape<WBits, kConfig>;
  using Layout = typename Shape::Layout;
  template <Dequantising kWay>
  using Storage = HopperPrefillStorage<WBits, kConfig, kWay == Dequantising::general>;
  template <Dequantising kWay>
  static constexpr bool kIsCompiled = is_compiled(kConfig, WBits, kWay);

  static cudaError_t prepare(int most_shared_bytes) {
    if (tensor_map_encoder() == nullptr) return cudaErrorNotSupported;
    cudaError_t status = allow_shared<Dequantising::general>(most_shared_bytes);
    if (status == cudaSuccess) status = allow_shared<Dequantising::stepwise>(most_shared_bytes);
    if (status == cudaSuccess) status = allow_shared<Dequantising::fused>(most_shared_bytes);
    return status;
  }

  static cudaError_t launch(const ForwardArguments& args, const Launch& launch) {
    HopperPrefillArguments full{};
    full.forward = args;
    // Rows of x that TMA cannot read are copied by threads, each CTA for itself.
    full.x_by_tma = args.x_is_aligned;
    full.multicast = full.x_by_tma ? launch.multicast : 1;
    full.split = launch.cluster / launch.multicast;
    const auto chunks = static_cast<int>(ceil_div(args.k_padded, Shape::kChunkK));
    full.slice_chunks = chunks / full.split;
    full.longer_slices = chunks % full.split;
    full.split_reciprocal = reciprocal(full.split);
    full.exchanges = full.split > 1 || Shape::kPhases > 1;
    full.tiles_n = static_cast<int>(launch.grid_n) / full.multicast;
    full.tiles_m = static_cast<int>(launch.grid_m);
    full.tiles_m_reciprocal = reciprocal(full.tiles_m);
    full.first_channel = launch.first_channel;
    full.followed = launch.followed;
    full.follows = launch.follows;
    const bool fuses = uses_fused_weights(full, launch);
    const bool narrow =
        args.statistics != nullptr || (args.zeros == nullptr && args.fused_shift >= 0);
    full.most_zero = narrow ? 0 : general_most_zero(WBits, T);
    cudaError_t status = cudaSuccess;
    if (full.x_by_tma) status = encode_x(full);
    full.y_by_pieces = args.n % 8 == 0 && rows_are_aligned(args.y, args.ldy, args.m);
    if (status == cudaSuccess) status = encode_weights(full);
    if (status == cudaSuccess) status = encode_parameters(full);
    if (status != cudaSuccess) return status;

    Launch grid = launch;
    grid.cluster = full.multicast * full.split;
    grid.grid_n = static_cast<unsigned>(launch.clusters * launch.cluster);
    grid.grid_n -= grid.grid_n % static_cast<unsigned>(grid.cluster);
    if constexpr (kIsCompiled<Dequantising::fused>) {
      if (fuses) return start<Dequantising::fused>(full, grid);
    }
    if constexpr (kIsCompiled<Dequantising::stepwise>) {
      if (args.zeros != nullptr && has_own_scales(args)) {
        return start<Dequantising::stepwise>(full, grid);
      }
    }
    return start<Dequantising::general>(full, grid);
  }

 private:
  // Of the activations' type.
  static bool has_own_scales(const ForwardArguments& args) {
    return args.scales_are_bf16 == (T == DType::bf16);
  }

  // Whether one multiply-add makes the layer's weights here; the kernel is told how.
  static bool uses_fused_weights(HopperPrefillArguments& full, const Launch& launch) {
    ForwardArguments& args = full.forward;
    if (!kIsCompiled<Dequantising::fused> || args.fused_shift < 0 || !has_own_scales(args)) {
      return false;
    }
    full.zeros_are_affine = args.zeros == nullptr;
    if (full.zeros_are_affine) {
      full.zeros_are_affine = Shape::kMayBeAffine && launch.affine_zeros != nullptr;
      if (!full.zeros_are_affine) return false;
      args.zeros = launch.affine_zeros;
      args.zeros_stride = args.n_padded;
    }
    const FusedFactors factors = fused_factors(WBits, T, args.fused_shift, full.zeros_are_affine);
    full.fused_multiplier = factors.scale;
    full.fused_zero = factors.zero;
    full.fused_result = std::ldexp(1.f, args.fused_shift);
    return true;
  }

  template <Dequantising kWay>
  static cudaError_t allow_shared(int most_shared_bytes) {
    if constexpr (!kIsCompiled<kWay>) {
      return cudaSuccess;
    } else {
      return cudaFuncSetAttribute(prefill_sm90<WBits, T, Row, kWay>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared_bytes);
    }
  }

  template <Dequantising kWay>
  static cudaError_t start(HopperPrefillArguments& args, const Launch& grid) {
    static_assert(sizeof(Storage<kWay>) <= 227 << 10);
    if (Shape::kStoresByTma && args.y_by_pieces) {
      const cudaError_t status = encode_y(args, Storage<kWay>::kBoxPasses * Shape::kPassRows);
      if (status != cudaSuccess) return status;
    }
    return launch_kernel(prefill_sm90<WBits, T, Row, kWay>, dim3(grid.grid_n), Shape::kThreads,
                         std::max(sizeof(Storage<kWay>), grid.shared_bytes), grid, args);
  }

  // Rows past the end take TMA longer than others, though it only fills them with zeros. So a tile
  // that has all rows is no taller than they are, and the last rows have a map of their own.
  static cudaError_t encode_x(HopperPrefillArguments& full) {
    const std::int64_t m = full.forward.m;
    full.x_rows = static_cast<int>(m > kConfig.tile_m ? kConfig.tile_m / full.multicast
                                                      : round_up(ceil_div(m, full.multicast), 8));
    full.x_by_stages = Shape::kOneRing && full.multicast == 1 && full.x_rows == kConfig.tile_m &&
                       (m <= kConfig.tile_m || m % kConfig.tile_m == 0) &&
                       full.forward.k % Shape::kSwizzledK == 0;
    if (full.x_by_stages) return encode_stages_of_x(full);
    const auto last = static_cast<int>(m % kConfig.tile_m % full.x_rows);
    const cudaError_t status = encode_x(full, full.x, full.x_rows);
    return status == cudaSuccess && last != 0 ? encode_x(full, full.last_x, last) : status;
  }

  // A box of 64 columns after the other: one copy a stage.
  static cudaError_t encode_stages_of_x(HopperPrefillArguments& full) {
    const ForwardArguments& args = full.forward;
    constexpr cuuint32_t kColumns = Shape::kSwizzledK;
    const std::int64_t row = args.m == 1 ? args.k : args.ldx;
    return encode_tensor_map<3>(full.x,
                                {.type = CU_TENSOR_MAP_DATA_TYPE_UINT16,
                                 .data = args.x,
                                 .extent = {kColumns, static_cast<cuuint64_t>(args.m),
                                            static_cast<cuuint64_t>(args.k) / kColumns},
                                 .stride_bytes = {static_cast<cuuint64_t>(2 * row), 2 * kColumns},
                                 .box = {kColumns, static_cast<cuuint32_t>(kConfig.tile_m),
                                         static_cast<cuuint32_t>(Shape::kStageK) / kColumns},
                                 .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
  }

  static cudaError_t encode_x(const HopperPrefillArguments& full, CUtensorMap& map, int rows) {
    const ForwardArguments& args = full.forward;
    const std::int64_t row = args.m == 1 ? round_up(args.k, 8) : args.ldx;
    return encode_tensor_map<2>(
        map, {.type = CU_TENSOR_MAP_DATA_TYPE_UINT16,
              .data = args.x,
              .extent = {static_cast<cuuint64_t>(args.k), static_cast<cuuint64_t>(args.m)},
              .stride_bytes = {static_cast<cuuint64_t>(2 * row)},
              .box = {Shape::kSwizzledK, static_cast<cuuint32_t>(rows)},
              .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
  }

  static cudaError_t encode_y(HopperPrefillArguments& full, int rows) {
    const ForwardArguments& args = full.forward;
    const std::int64_t row = args.m == 1 ? args.n : args.ldy;
    return encode_tensor_map<2>(
        full.y, {.type = CU_TENSOR_MAP_DATA_TYPE_UINT16,
                 .data = args.y,
                 .extent = {static_cast<cuuint64_t>(args.n), static_cast<cuuint64_t>(args.m)},
                 .stride_bytes = {static_cast<cuuint64_t>(2 * row)},
                 .box = {Layout::kBlockN, static_cast<cuuint32_t>(rows)},
                 .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
  }

  static cudaError_t encode_parameters(HopperPrefillArguments& full) {
    const ForwardArguments& args = full.forward;
    const ParameterRows scales = rows_of_scales<true>(args),
                        zeros = rows_of_zeros<WBits, kConfig, true>(full);
    full.strip_scales = scales.bytes(Layout::kBlockN) / 8;
    full.strip_zeros = zeros.bytes(Layout::kBlockN) / 8;
    if (!Shape::kParameterBoxes) return cudaSuccess;
    full.zeros_are_shared = zeros.pitch == 0;
    const int begin = std::max(Shape::kStageK >> args.group_shift, 1);  // in a stage
    const auto groups = static_cast<int>(
        ceil_div(std::int64_t{args.k_padded}, std::int64_t{1} << args.group_shift));
    full.parameter_bytes = begin * Shape::kStrips * (full.strip_scales + full.strip_zeros) * 8;
    const cudaError_t status =
        encode_parameters(full, full.scales, scales.data, full.strip_scales, groups, begin);
    if (status != cudaSuccess) return status;
    return encode_parameters(full, full.zeros, zeros.data, full.strip_zeros,
                             full.zeros_are_shared ? begin : groups, begin);
  }

  // rows: of the whole; box: of a stage; strip: as HopperPrefillArguments::strip_scales.
  static cudaError_t encode_parameters(const HopperPrefillArguments& full, CUtensorMap& map,
                                       const void* data, int strip, int rows, int box) {
    const auto pieces = static_cast<cuuint64_t>(full.forward.n_padded / Layout::kBlockN) *
                        static_cast<cuuint64_t>(strip);
    return encode_tensor_map<2>(map, {.type = CU_TENSOR_MAP_DATA_TYPE_UINT64,
                                      .data = data,
                                      .extent = {pieces, static_cast<cuuint64_t>(rows)},
                                      .stride_bytes = {8 * pieces},
                                      .box = {static_cast<cuuint32_t>(Shape::kStrips * strip),
                                              static_cast<cuuint32_t>(box)},
                                      .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE});
  }

  // KernelLayout as KiB: [strips][KiB of a strip][256 words].
  static cudaError_t encode_weights(HopperPrefillArguments& full) {
    constexpr int kKiBPerBlock = Layout::kWordsPerBlock / 256;
    const auto kib =
        static_cast<cuuint64_t>(full.forward.k_padded / Layout::kBlockK) * kKiBPerBlock;
    const auto strips = static_cast<cuuint64_t>(full.forward.n_padded / Layout::kBlockN);
    return encode_tensor_map<3>(
        full.weights, {.type = CU_TENSOR_MAP_DATA_TYPE_UINT32,
                       .data = full.forward.qweight,
                       .extent = {256, kib, strips},
                       .stride_bytes = {1024, 1024 * kib},
                       .box = {256, Shape::kBlocksPerChunk * kKiBPerBlock, Shape::kStrips},
                       .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE});
  }
};

}  // namespace mpq::kernels
