// Kernels as collectives have them, for tests of the interpreter. collectives.ptx is what NVRTC 13 makes of it
// for compute_75.
typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
__device__ __forceinline__ u32 ldacq(const u32* p){ u32 v; asm volatile("ld.acquire.sys.global.u32 %0,[%1];":"=r"(v):"l"(p):"memory"); return v; }
__device__ __forceinline__ void strel(u32* p,u32 v){ asm volatile("st.release.sys.global.u32 [%0],%1;"::"l"(p),"r"(v):"memory"); }
// One-shot all-reduce of two peers: each tells that its input is ready, waits for the other's, and reads it.
extern "C" __global__ void __launch_bounds__(256) oneshot_f32(float* out,const float* mine,const float* peer,u32* myflag,u32* peerflag,u32 epoch,u64 n){
  if(threadIdx.x==0){ __threadfence_system(); strel(peerflag+blockIdx.x,epoch); while(ldacq(myflag+blockIdx.x)<epoch){} }
  __syncthreads();
  for(u64 i=(u64)blockIdx.x*blockDim.x+threadIdx.x;i<n/4;i+=(u64)gridDim.x*blockDim.x){ float4 x=((const float4*)mine)[i],y=((const float4*)peer)[i]; ((float4*)out)[i]=make_float4(x.x+y.x,x.y+y.y,x.z+y.z,x.w+y.w); }
}
// Words of 8 bytes with 4 of data and 4 of flag.
extern "C" __global__ void ll_send(u64* fifo,const u32* src,u32 flag,u64 n){ for(u64 i=threadIdx.x;i<n;i+=blockDim.x){ asm volatile("st.volatile.global.v2.u32 [%0],{%1,%2};"::"l"(fifo+i),"r"(src[i]),"r"(flag):"memory"); } }
extern "C" __global__ void ll_receive(float* out,const u64* fifo,const float* mine,u32 flag,u64 n){ for(u64 i=threadIdx.x;i<n;i+=blockDim.x){ u32 d,f; do { asm volatile("ld.volatile.global.v2.u32 {%0,%1},[%2];":"=r"(d),"=r"(f):"l"(fifo+i):"memory"); } while(f!=flag); out[i]=__uint_as_float(d)+mine[i]; } }
// Sum of squares: shared memory, a shuffle and an atomic.
extern "C" __global__ void sum_of_squares(const float* a,float* out,u64 n){ __shared__ float s[32]; float v=0; for(u64 i=(u64)blockIdx.x*blockDim.x+threadIdx.x;i<n;i+=(u64)gridDim.x*blockDim.x) v=fmaf(a[i],a[i],v); for(int o=16;o;o>>=1) v+=__shfl_down_sync(~0u,v,o); if(!(threadIdx.x&31)) s[threadIdx.x>>5]=v; __syncthreads(); if(threadIdx.x==0){ float t=0; for(int k=0;k<(blockDim.x+31)/32;k++) t+=s[k]; atomicAdd(out,t);} }
// bf16 by integer rounding.
extern "C" __global__ void add_bf16(u16* o,const u16* a,const u16* b,u64 n){ for(u64 i=(u64)blockIdx.x*blockDim.x+threadIdx.x;i<n;i+=(u64)gridDim.x*blockDim.x){ float f=__uint_as_float((u32)a[i]<<16)+__uint_as_float((u32)b[i]<<16); u32 u=__float_as_uint(f); o[i]=(u & 0x7fffffffu)>0x7f800000u? (u16)((u>>16)|0x40) : (u16)((u+0x7fffu+((u>>16)&1u))>>16);} }
