// 16 bytes of several rows as one vector, and back. Included inside the target region.
#pragma once

namespace powergrad {
namespace {

// Up to 8 bytes, an even number of them, in the low bits of an integer: AVX2 masks no single bytes.
inline uint64_t load_few_bytes(const char* p, int bytes) {
  uint64_t bits = 0;
  if (bytes >= 8) {
    std::memcpy(&bits, p, 8);
    return bits;
  }
  int done = 0;
  if ((bytes & 4) != 0) {
    uint32_t four;
    std::memcpy(&four, p, 4);
    bits = four;
    done = 4;
  }
  if ((bytes & 2) != 0) {
    uint16_t two;
    std::memcpy(&two, p + done, 2);
    bits |= static_cast<uint64_t>(two) << (8 * done);
  }
  return bits;
}

inline void store_few_bytes(uint64_t bits, char* p, int bytes) {
  if (bytes >= 8) {
    std::memcpy(p, &bits, 8);
    return;
  }
  if ((bytes & 4) != 0) {
    std::memcpy(p, &bits, 4);
    bits >>= 32;
    p += 4;
  }
  if ((bytes & 2) != 0) std::memcpy(p, &bits, 2);
}

// For each 128 bits of the result, the 16 bytes at p and p + distance.
inline __m256i load_quads_256(const char* p, int64_t distance) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + distance));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}
inline void store_quads_256(__m256i v, char* p, int64_t distance) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(v));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + distance), _mm256_extracti128_si256(v, 1));
}
// Of the first `quads` addresses the first `bytes` bytes; the rest of the result is 0.
inline __m256i load_quads_first_256(const char* p, int64_t distance, int quads, int bytes) {
  const auto quad = [&](int i) {
    const char* from = p + i * distance;
    if (i >= quads) return _mm_setzero_si128();
    const uint64_t high = bytes > 8 ? load_few_bytes(from + 8, bytes - 8) : 0;
    return _mm_set_epi64x(static_cast<int64_t>(high),
                          static_cast<int64_t>(load_few_bytes(from, bytes)));
  };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(quad(0)), quad(1), 1);
}
inline void store_quads_first_256(__m256i v, char* p, int64_t distance, int quads, int bytes) {
  const auto store = [&](int i, __m128i quad) {
    if (i >= quads) return;
    char* to = p + i * distance;
    store_few_bytes(static_cast<uint64_t>(_mm_extract_epi64(quad, 0)), to, bytes);
    if (bytes <= 8) return;
    store_few_bytes(static_cast<uint64_t>(_mm_extract_epi64(quad, 1)), to + 8, bytes - 8);
  };
  store(0, _mm256_castsi256_si128(v));
  store(1, _mm256_extracti128_si256(v, 1));
}

}  // namespace
}  // namespace powergrad
