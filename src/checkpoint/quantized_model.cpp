#include "mpq/quantized_model.hpp"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "checkpoint/text.hpp"
#include "cpu/thread_pool.hpp"

namespace mpq {

namespace {

using namespace detail;

/// An upper bound of what one layer needs between the file and the device: the tensors' bytes once
/// more as vectors, the canonical form, and codes in bytes where a format's order asks for them.
std::uint64_t host_need(const LayerInfo& layer) {
  const auto weights = static_cast<std::uint64_t>(layer.in_features * layer.out_features);
  const std::uint64_t packed = weights * static_cast<std::uint64_t>(layer.bits) / 8;
  return 4 * layer.bytes + 2 * packed + (layer.format == "hqq" ? 2 * weights : 0);
}

int thread_number(const ModelOptions& options, std::size_t layers) {
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const int wanted = options.threads > 0 ? options.threads : cores;
  return std::clamp(wanted, 1, std::max(1, static_cast<int>(std::min<std::size_t>(layers, 256))));
}

std::vector<const LayerInfo*> chosen_layers(const Checkpoint& checkpoint,
                                            const ModelOptions& options) {
  std::vector<const LayerInfo*> chosen;
  for (const auto& layer : checkpoint.layers()) {
    if (options.filter && !options.filter(layer)) continue;
    if (!layer.mixed_bits.empty()) {
      fail(ErrorCode::unsupported, "layer {}: its widths are {} bits, a model has one for a layer",
           in_quotes(layer.name), detail::joined(layer.mixed_bits, ", "));
    }
    chosen.push_back(&layer);
  }
  return chosen;
}

/// Bytes that may be in use; acquire() waits for room.
class Budget {
 public:
  explicit Budget(std::uint64_t bytes) : limit_(bytes) {}

  /// False: stop() was called.
  bool acquire(std::uint64_t bytes) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || used_ == 0 || used_ + bytes <= limit_; });
    if (!stopped_) used_ += bytes;
    return !stopped_;
  }
  void release(std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    used_ -= bytes;
    changed_.notify_all();
  }
  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t limit_, used_ = 0;
  bool stopped_ = false;
};

/// One load, shared by its threads.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, Device device, const ModelOptions& options,
         std::vector<const LayerInfo*> layers)
      : checkpoint_(checkpoint),
        device_(device),
        options_(options),
        layers_(std::move(layers)),
        loaded_(layers_.size()),
        budget_(options.max_host_bytes) {
    progress_.layers = layers_.size();
    for (const auto* layer : layers_) progress_.bytes += layer->bytes;
  }

  std::vector<std::shared_ptr<AnyLinear>> run() {
    const int threads = thread_number(options_, layers_.size());
    const int share = std::max(1, thread_count() / threads);
    std::vector<std::jthread> workers;
    for (int i = 1; i < threads; ++i) workers.emplace_back([&] { work(share); });
    work(share);
    workers.clear();  // joins
    if (error_) std::rethrow_exception(error_);
    return std::move(loaded_);
  }

 private:
  void work(int share) noexcept {
    const ThreadLimit limit(share);
    try {
      while (const auto index = next()) load(*index);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      budget_.stop();
    }
  }

  std::optional<std::size_t> next() {
    const std::lock_guard lock(mutex_);
    if (error_ || next_ == layers_.size()) return std::nullopt;
    return next_++;
  }

  void load(std::size_t index) {
    const LayerInfo& info = *layers_[index];
    const std::uint64_t need = host_need(info);
    if (!budget_.acquire(need)) return;
    try {
      const AnyQuantizedWeights weights = checkpoint_.read(info.name);
      check_values(data_of(weights), info.bits);
      loaded_[index] =
          std::make_shared<AnyLinear>(weights, device_, options_.dtype.value_or(info.dtype));
      loaded_[index]->prepare_params();
    } catch (const Error& error) {
      budget_.release(need);
      const std::string message = error.what();
      if (message.starts_with("layer ")) throw;
      throw Error(error.code(), detail::format("layer {}: {}", in_quotes(info.name), message));
    }
    checkpoint_.release(info.name);
    budget_.release(need);
    tell(info);
  }

  void tell(const LayerInfo& info) {
    const std::lock_guard lock(mutex_);
    ++progress_.layers_done;
    progress_.bytes_done += info.bytes;
    progress_.layer = info.name;
    if (options_.progress) options_.progress(progress_);
  }

  const Checkpoint& checkpoint_;
  Device device_;
  const ModelOptions& options_;
  std::vector<const LayerInfo*> layers_;
  std::vector<std::shared_ptr<AnyLinear>> loaded_;  ///< as layers_
  Budget budget_;
  std::mutex mutex_;
  std::size_t next_ = 0;
  ModelProgress progress_;
  std::exception_ptr error_;
};

/// For each layer the first one that it equals byte for byte, itself mostly.
std::vector<std::size_t> find_tied(const Checkpoint& checkpoint,
                                   const std::vector<const LayerInfo*>& layers) {
  std::vector<std::size_t> first(layers.size());
  std::map<std::uint64_t, std::vector<std::size_t>> by_size;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    first[i] = i;
    auto& others = by_size[layers[i]->bytes];
    const auto same = std::ranges::find_if(others, [&](std::size_t other) {
      return checkpoint.equal_layers(layers[other]->name, layers[i]->name);
    });
    if (same == others.end()) {
      others.push_back(i);
    } else {
      first[i] = *same;
    }
  }
  return first;
}

}  // namespace

std::uint64_t QuantizedModel::host_bytes(const Checkpoint& checkpoint,
                                         const ModelOptions& options) {
  std::vector<std::uint64_t> needs;
  for (const auto* layer : chosen_layers(checkpoint, options)) needs.push_back(host_need(*layer));
  std::ranges::sort(needs, std::greater<>());
  const auto threads = static_cast<std::size_t>(thread_number(options, needs.size()));
  std::uint64_t most = 0;
  for (std::size_t i = 0; i < std::min(threads, needs.size()); ++i) most += needs[i];
  const std::uint64_t largest = needs.empty() ? 0 : needs[0];
  return std::max(largest, std::min(most, options.max_host_bytes));
}

QuantizedModel QuantizedModel::load(const Checkpoint& checkpoint, Device device,
                                    const ModelOptions& options) {
  const auto layers = chosen_layers(checkpoint, options);
  const auto first = find_tied(checkpoint, layers);
  std::vector<const LayerInfo*> distinct;
  std::vector<std::size_t> place(layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    place[i] = first[i] == i ? distinct.size() : place[first[i]];
    if (first[i] == i) distinct.push_back(layers[i]);
  }
  const auto loaded = Loader(checkpoint, device, options, std::move(distinct)).run();
  StreamRef().synchronize(device);  // so that any stream may use the layers
  QuantizedModel model;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    model.layers_.emplace(layers[i]->name, loaded[place[i]]);
  }
  for (const auto& [alias, name] : options.aliases) {
    const auto at = model.layers_.find(name);
    if (at == model.layers_.end() || !model.layers_.emplace(alias, at->second).second) {
      fail(ErrorCode::invalid_argument, "alias {} of {}: {}", in_quotes(alias), in_quotes(name),
           at == model.layers_.end() ? "there is no such layer" : "there is a layer of that name");
    }
  }
  return model;
}

const AnyLinear& QuantizedModel::layer(std::string_view name) const {
  const auto at = layers_.find(name);
  if (at == layers_.end()) {
    fail(ErrorCode::invalid_argument, "no layer {} among {}", in_quotes(name), layers_.size());
  }
  return *at->second;
}

}  // namespace mpq
