// Memory of the calling thread that its later calls use again. Aligned to 64 bytes.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace esbnn {

class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(data_); }

    // At least so many bytes, with anything in them. What an earlier call gave is gone if this one asks for more.
    std::uint8_t* get(std::int64_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = 0;
            const std::size_t rounded = (static_cast<std::size_t>(bytes) + 4095) / 4096 * 4096;
            data_ = static_cast<std::uint8_t*>(std::aligned_alloc(64, rounded));
            if (data_ == nullptr) throw std::bad_alloc();
            size_ = static_cast<std::int64_t>(rounded);
        }
        return data_;
    }

private:
    std::uint8_t* data_ = nullptr;
    std::int64_t size_ = 0;
};

}  // namespace esbnn
