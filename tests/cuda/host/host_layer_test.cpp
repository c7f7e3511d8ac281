// A first sign of life; the planted bugs follow.
#include <cstdio>
#include <vector>
#include <chrono>
namespace h = powergrad::host_cuda;
template <bool Bug>
__global__ void __launch_bounds__(256) sum(const float* in, float* out, int n) {
  float* s = reinterpret_cast<float*>(h::dynamic_shared_memory());
  float a = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) a += in[i + blockIdx.x * n];
  for (int o = 16; o; o >>= 1) a += __shfl_xor_sync(0xffffffffu, a, o);
  if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = a;
  if (!Bug) __syncthreads();
  if (threadIdx.x == 0) {
    float t = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++) t += s[w];
    out[blockIdx.x] = t;
    s[0] = t;
  }
  h::cluster_sync();
  if (threadIdx.x == 0 && h::cluster_rank() == 0) {
    float t = 0;
    for (unsigned r = 0; r < h::cluster_size(); r++) t += *h::map_to_rank(s, r);
    out[blockIdx.x] = t;
  }
  h::cluster_sync();
}
int main(int argc, char**) {
  setvbuf(stdout, 0, _IONBF, 0);
  int n = 1000, B = 16, C = 4, T = 256;
  if (argc > 2) C = 8, T = 512;
  std::vector<float> in(n * B, 1.f), out(B, 0.f);
  for (int seed = 0; seed < 5; seed++) {
    auto t0 = std::chrono::steady_clock::now();
    h::configure({h::kSm90, (uint64_t)seed, {}});
    cudaLaunchConfig_t c{};
    c.gridDim = dim3(B);
    c.blockDim = dim3(T);
    c.dynamicSmemBytes = T / 32 * 4;
    cudaLaunchAttribute at[1];
    at[0].id = cudaLaunchAttributeClusterDimension;
    at[0].val.clusterDim = {(unsigned)C, 1, 1};
    c.attrs = at;
    c.numAttrs = 1;
    cudaError_t e = cudaLaunchKernelEx(&c, argc > 1 && argc < 3 ? sum<true> : sum<false>, in.data(),
                                       out.data(), n);
    double dt = std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count();
    printf("%d %s %g %g %.4f s\n", e, cudaGetErrorString(e), out[0], out[1], dt);
  }
}
