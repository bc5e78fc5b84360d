#include "checkpoint/safetensors_header.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "checkpoint/text.hpp"

namespace mpq {

namespace {

struct TypeRow {
  const char* name;
  int bits;
};

// In the order of SafetensorsType.
constexpr std::array kTypes{
    TypeRow{"BOOL", 8},    TypeRow{"U8", 8},      TypeRow{"I8", 8},      TypeRow{"F8_E5M2", 8},
    TypeRow{"F8_E4M3", 8}, TypeRow{"F8_E8M0", 8}, TypeRow{"I16", 16},    TypeRow{"U16", 16},
    TypeRow{"F16", 16},    TypeRow{"BF16", 16},   TypeRow{"I32", 32},    TypeRow{"U32", 32},
    TypeRow{"F32", 32},    TypeRow{"F64", 64},    TypeRow{"I64", 64},    TypeRow{"U64", 64},
    TypeRow{"F4", 4},      TypeRow{"F6_E2M3", 6}, TypeRow{"F6_E3M2", 6}, TypeRow{"C64", 64}};
static_assert(kTypes.size() == static_cast<std::size_t>(SafetensorsType::C64) + 1);

}  // namespace

const char* to_string(SafetensorsType type) noexcept {
  return kTypes[static_cast<std::size_t>(type)].name;
}

int bits_of(SafetensorsType type) noexcept {
  return kTypes[static_cast<std::size_t>(type)].bits;
}

namespace detail {

namespace {

// Any real tensor has far fewer; without a limit "0,0,0,..." would need four times the header's
// memory.
constexpr std::size_t kMaxRank = 64;

/// Receives the parser's events. The parser keeps its own stack on the heap and the events allow no
/// more than three levels, so that neither deep nesting nor unexpected values cost anything.
class HeaderEvents {
 public:
  HeaderEvents(SafetensorsHeader& header, const std::string& where)
      : header_(header), where_(where) {}

  bool start_object(std::size_t) {
    if (at_ == At::start) {
      at_ = At::top;
    } else if (at_ == At::metadata_value) {
      at_ = At::metadata;
    } else if (at_ == At::tensor_value) {
      at_ = At::tensor;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(std::string& key) {
    if (at_ == At::top) {
      top_key(key);
    } else if (at_ == At::metadata) {
      if (header_.metadata.contains(key)) {
        bad("key {} is twice in __metadata__", in_quotes(key));
      }
      metadata_key_ = std::move(key);
    } else {
      tensor_key(key);
    }
    return true;
  }

  bool end_object() {
    if (at_ == At::tensor && seen_ != (kDtype | kShape | kOffsets)) {
      bad("tensor {} has no {}", in_quotes(entry().name),
          !(seen_ & kDtype)   ? "dtype"
          : !(seen_ & kShape) ? "shape"
                              : "data_offsets");
    }
    at_ = at_ == At::top ? At::end : At::top;
    return true;
  }

  bool start_array(std::size_t) {
    if (at_ == At::shape) {
      at_ = At::shape_items;
    } else if (at_ == At::offsets) {
      at_ = At::offset_items;
    } else {
      unexpected("an array");
    }
    return true;
  }

  bool end_array() {
    if (at_ == At::offset_items && offsets_ != 2) {
      bad("tensor {} has {} data_offsets, not 2", in_quotes(entry().name), offsets_);
    }
    at_ = At::tensor;
    return true;
  }

  bool string(std::string& value) {
    if (at_ == At::metadata) {
      header_.metadata.emplace(std::move(metadata_key_), std::move(value));
    } else if (at_ == At::dtype) {
      const auto type = type_from_name(value);
      if (!type) bad("tensor {} has unknown dtype {}", in_quotes(entry().name), in_quotes(value));
      entry().type = *type;
      at_ = At::tensor;
    } else {
      unexpected("a string");
    }
    return true;
  }

  bool number_unsigned(std::uint64_t value) {
    if (at_ == At::shape_items) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        bad("tensor {} has a dimension of {}, limit 2^63 - 1", in_quotes(entry().name), value);
      }
      if (entry().shape.size() == kMaxRank) {
        bad("tensor {} has more than {} dimensions", in_quotes(entry().name), kMaxRank);
      }
      entry().shape.push_back(static_cast<std::int64_t>(value));
    } else if (at_ == At::offset_items) {
      if (offsets_ == 2) bad("tensor {} has more than 2 data_offsets", in_quotes(entry().name));
      (offsets_++ == 0 ? entry().begin : entry().end) = value;
    } else {
      unexpected("a number");
    }
    return true;
  }

  bool number_integer(std::int64_t) { unexpected("a negative number"); }
  bool number_float(double, const std::string&) {
    unexpected("a fraction or a number beyond 64 bits");
  }
  bool boolean(bool) { unexpected("a boolean"); }
  bool null() { unexpected("null"); }
  bool binary(std::vector<std::uint8_t>&) { unexpected("binary data"); }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    bad("the header is not JSON at its byte {}", position == 0 ? 0 : position - 1);
  }

 private:
  // clang-format off
  enum class At : std::uint8_t {
    start, top, metadata_value, metadata, tensor_value, tensor,
    dtype, shape, shape_items, offsets, offset_items, end
  };
  // clang-format on
  static constexpr unsigned kDtype = 1, kShape = 2, kOffsets = 4;

  SafetensorsEntry& entry() { return header_.entries.back(); }

  void top_key(std::string& key) {
    if (key == "__metadata__") {
      if (std::exchange(has_metadata_, true)) bad("key \"__metadata__\" is twice in the header");
      at_ = At::metadata_value;
    } else {
      header_.entries.emplace_back().name = std::move(key);
      seen_ = 0;
      at_ = At::tensor_value;
    }
  }

  void tensor_key(const std::string& key) {
    unsigned bit = 0;
    if (key == "dtype") {
      bit = kDtype;
      at_ = At::dtype;
    } else if (key == "shape") {
      bit = kShape;
      at_ = At::shape;
    } else if (key == "data_offsets") {
      bit = kOffsets;
      offsets_ = 0;
      at_ = At::offsets;
    } else {
      bad("tensor {} has unknown key {}", in_quotes(entry().name), in_quotes(key));
    }
    if (seen_ & bit) bad("key {} is twice in tensor {}", in_quotes(key), in_quotes(entry().name));
    seen_ |= bit;
  }

  [[noreturn]] void unexpected(const char* what) {
    if (at_ == At::metadata_value) bad("__metadata__ is {}, not an object of strings", what);
    if (at_ == At::metadata) {
      bad("__metadata__ key {} is {}, not a string", in_quotes(metadata_key_), what);
    }
    bad("tensor {}: {} where the format has none", in_quotes(entry().name), what);
  }

  template <class... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> format, Args&&... args) {
    fail(ErrorCode::invalid_file, "{}: {}", where_,
         detail::format(format, std::forward<Args>(args)...));
  }

  SafetensorsHeader& header_;
  const std::string& where_;
  At at_ = At::start;
  unsigned seen_ = 0;
  int offsets_ = 0;
  bool has_metadata_ = false;
  std::string metadata_key_;
};

/// Sizes, and that in order of their offsets tensors lie side by side from 0 to the end.
void check_extents(std::vector<SafetensorsEntry>& entries, std::uint64_t data_bytes,
                   const std::string& where) {
  for (const auto& e : entries) {
    const auto bytes = tensor_bytes(e.type, e.shape);
    if (!bytes) {
      fail(ErrorCode::invalid_file, "{}: tensor {} of {} {} has no size in whole bytes below 2^64",
           where, in_quotes(e.name), to_string(e.type), shape_text(e.shape));
    }
    if (e.end < e.begin || e.end - e.begin != *bytes) {
      fail(ErrorCode::invalid_file,
           "{}: tensor {} of {} {} needs {} bytes, data_offsets are [{}, {}]", where,
           in_quotes(e.name), to_string(e.type), shape_text(e.shape), *bytes, e.begin, e.end);
    }
  }
  std::ranges::sort(entries, {}, [](const auto& e) { return std::pair(e.begin, e.end); });
  std::uint64_t at = 0;
  for (const auto& e : entries) {
    if (e.begin != at) {
      fail(ErrorCode::invalid_file, "{}: tensor {} begins at data byte {}, {} {}", where,
           in_quotes(e.name), e.begin,
           e.begin < at ? "overlapping the tensor before it, which ends at"
                        : "leaving a hole after the tensor before it, which ends at",
           at);
    }
    at = e.end;
  }
  if (at != data_bytes) {
    fail(ErrorCode::invalid_file, "{}: the tensors end at data byte {}, the file has {}", where, at,
         data_bytes);
  }
}

}  // namespace

std::optional<SafetensorsType> type_from_name(std::string_view name) noexcept {
  const auto row = std::ranges::find(kTypes, name, &TypeRow::name);
  if (row == kTypes.end()) return std::nullopt;
  return static_cast<SafetensorsType>(row - kTypes.begin());
}

std::optional<std::uint64_t> tensor_bytes(SafetensorsType type,
                                          std::span<const std::int64_t> shape) noexcept {
  std::uint64_t elements = 1, bits = 0;
  for (const std::int64_t dimension : shape) {
    if (dimension < 0) return std::nullopt;
    if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(dimension), &elements)) {
      return std::nullopt;
    }
  }
  if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(bits_of(type)), &bits)) {
    return std::nullopt;
  }
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

SafetensorsHeader parse_header(std::string_view text, std::uint64_t data_bytes,
                               const std::string& where) {
  if (text.empty() || text.front() != '{') {
    fail(ErrorCode::invalid_file, "{}: the header does not begin with '{{'", where);
  }
  // The JSON parser takes a zero byte for the end of its input and would not see what follows it.
  if (const auto zero = text.find('\0'); zero != std::string_view::npos) {
    fail(ErrorCode::invalid_file, "{}: the header is not JSON at its byte {}", where, zero);
  }
  SafetensorsHeader header;
  HeaderEvents events(header, where);
  nlohmann::json::sax_parse(text.begin(), text.end(), &events);
  check_extents(header.entries, data_bytes, where);
  std::ranges::sort(header.entries, {}, &SafetensorsEntry::name);
  const auto twice = std::ranges::adjacent_find(header.entries, {}, &SafetensorsEntry::name);
  if (twice != header.entries.end()) {
    fail(ErrorCode::invalid_file, "{}: tensor {} is twice in the header", where,
         in_quotes(twice->name));
  }
  return header;
}

}  // namespace detail
}  // namespace mpq
