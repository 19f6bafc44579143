// Kernels that fold several buffers, element by element, into one or several others, in one pass over memory: what
// `reduce/` does on the host, with the same bits. Compiled once for each element type (`-D ELEMENT=F32`, ...), by
// `generate.py`, to the PTX beside this file.
//
// Buffers are of the device, of a peer that it can reach, or pinned memory of the host.
//
// A kernel may be a whole exchange among ranks (`board.rs`): it publishes what its rank gives on the rank's board, waits
// until all others have, and folds what it finds on the boards. It is one block then, so that all ranks' kernels can run
// at once, on one device too. It never traps, and waits for nobody for ever: the host can end it.
//
// The bits are those of `collectives/src/reduce/mod.rs`: sources are folded left to right; integers wrap; small
// floats are folded (and scaled) in single precision and rounded once, to nearest even; in a minimum and a maximum
// -0 is less than +0, and NaN wins; a NaN result is the positive quiet one without payload. Compiled without fused
// multiply-add.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;

#define MOST_OPERANDS 64

// What a fold does: `Argument` of `kernels.rs`.
struct Fold {
    u64 source[MOST_OPERANDS];
    u64 destination[MOST_OPERANDS];
    u64 count;
    double scalar;
    u32 sources;
    u32 destinations;
    u32 pass;
    // Of an exchange: how many ranks there are, or 0 if it is none. The sources are on the boards, by rank.
    u32 ranks;
    u32 rank;
    // What this rank gives is put into its slot by this pass.
    u32 given_pass;
    double factor;
    u64 given;
    u64 given_count;
    u64 slot;
    // This rank's flag, and what is stored there: the exchange's number above the digest of the call.
    u64 flag;
    u64 word;
    // From a rank's flag to what is read of its board.
    u64 distance;
    // On this rank's board: not zero once an exchange has failed.
    u64 failed;
    // Pinned memory of the host: see `Report`.
    u64 report;
    // The first of the sources that `collect` copies.
    u32 first;
};

// Offsets in the memory of a report, as in `board.rs`: the host wants all to end; by rank, the number of the exchange that
// is waited for it in, and a flag of another call that was found.
enum { REPORT_END = 0, REPORT_WAITS = 128, REPORT_FOREIGN = REPORT_WAITS + 8 * MOST_OPERANDS };

// Looks at a flag between two looks at the host's memory, which take long.
#define LOOK_TURNS 256

// The numbers that `number` of `kernels.rs` gives passes.
enum { SUM, PRODUCT, MIN, MAX, BIT_AND, BIT_OR, BIT_XOR, AVERAGE, SCALE };

#define INLINE static __device__ __forceinline__

// ---- Floats, as they are folded ----

INLINE u32 bits_of(float x) { return __float_as_uint(x); }
INLINE u64 bits_of(double x) { return (u64)__double_as_longlong(x); }
INLINE float of_bits(u32 bits) { return __uint_as_float(bits); }
INLINE double of_bits(u64 bits) { return __longlong_as_double((i64)bits); }
INLINE float canonical_nan(float) { return of_bits(0x7FC00000u); }
INLINE double canonical_nan(double) { return of_bits(0x7FF8000000000000ull); }

// Equal numbers differ at most in the sign of zero: the minimum is minus if one has it, the maximum if both have.
template <class F> INLINE F least(F a, F b) {
    F either = a < b ? a : b, or_either = b < a ? b : a;
    return a != a || b != b ? canonical_nan(a) : of_bits(bits_of(either) | bits_of(or_either));
}
template <class F> INLINE F greatest(F a, F b) {
    F either = a > b ? a : b, or_either = b > a ? b : a;
    return a != a || b != b ? canonical_nan(a) : of_bits(bits_of(either) & bits_of(or_either));
}

template <int PASS, class F> INLINE F combine_floats(F a, F b) {
    switch (PASS) {
    case PRODUCT: return a * b;
    case MIN: return least(a, b);
    case MAX: return greatest(a, b);
    default: return a + b;
    }
}
template <int PASS, class F> INLINE F scale_float(F x, double scalar) {
    switch (PASS) {
    case AVERAGE: return x / (F)scalar;
    case SCALE: return x * (F)scalar;
    default: return x;
    }
}

// ---- Element types: how they are stored, folded and finished ----

template <class T> struct Integer {
    typedef T Stored;
    typedef T Folded;
    INLINE T widen(T stored) { return stored; }
    template <int PASS> INLINE T combine(T a, T b) {
        switch (PASS) {
        case PRODUCT: return (T)((u64)a * (u64)b);
        case MIN: return a < b ? a : b;
        case MAX: return a > b ? a : b;
        case BIT_AND: return a & b;
        case BIT_OR: return a | b;
        case BIT_XOR: return a ^ b;
        default: return (T)((u64)a + (u64)b);
        }
    }
    template <int PASS> INLINE T scale(T x, double) { return x; }
    INLINE T finish(T x) { return x; }
};

// `S` is how it is stored, `F` how it is folded.
template <class S, class F> struct Float {
    typedef S Stored;
    typedef F Folded;
    template <int PASS> INLINE F combine(F a, F b) { return combine_floats<PASS>(a, b); }
    template <int PASS> INLINE F scale(F x, double scalar) { return scale_float<PASS>(x, scalar); }
};

template <class F> struct Plain : Float<F, F> {
    INLINE F widen(F stored) { return stored; }
    INLINE F finish(F x) { return x != x ? canonical_nan(x) : x; }
};

struct Bf16 : Float<u16, float> {
    INLINE float widen(u16 stored) { return of_bits((u32)stored << 16); }
    INLINE u16 finish(float x) {
        u32 bits = x != x ? 0x7FC00000u : bits_of(x);
        return (u16)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
    }
};

struct F16 : Float<u16, float> {
    INLINE float widen(u16 stored) {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(stored));
        return x;
    }
    INLINE u16 finish(float x) {
        u16 stored;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored) : "f"(x));
        return x != x ? (u16)0x7E00 : stored;
    }
};

// fp8 of "FP8 Formats for Deep Learning" (arXiv 2209.05433): see `reduce/narrow.rs`, which this follows.
template <u32 MANTISSA, u32 BIAS, u32 FIRST_SPECIAL, u32 NOT_A_NUMBER> struct F8 : Float<u8, float> {
    static const u32 SHIFT = 23 - MANTISSA;
    static const u32 REBIAS = 127 - BIAS;
    static const u32 LEAST_NORMAL = (REBIAS + 1) << 23;
    static const u32 LAST_PLACE = (REBIAS + 1 + SHIFT) << 23;

    INLINE float widen(u8 stored) {
        u32 magnitude = stored & 0x7Fu;
        u32 normal = (magnitude << SHIFT) + (REBIAS << 23);
        float small = of_bits((magnitude << SHIFT) + LEAST_NORMAL) - of_bits(LEAST_NORMAL);
        u32 special = magnitude >= FIRST_SPECIAL ? 0x7F800000u : 0u;
        u32 bits = magnitude < 1u << MANTISSA ? bits_of(small) : normal | special;
        return of_bits(bits | (u32)(stored & 0x80u) << 24);
    }
    INLINE u8 finish(float x) {
        u32 bits = bits_of(x), magnitude = bits & 0x7FFFFFFFu;
        u32 odd = magnitude >> SHIFT & 1u;
        u32 rounded = (magnitude + ((1u << (SHIFT - 1)) - 1u) + odd) >> SHIFT;
        u32 normal = rounded - (REBIAS << MANTISSA);
        normal = normal < FIRST_SPECIAL ? normal : FIRST_SPECIAL;
        u32 small = bits_of(of_bits(magnitude) + of_bits(LAST_PLACE)) - LAST_PLACE;
        u32 code = magnitude < LEAST_NORMAL ? small : normal;
        bool is_nan = magnitude > 0x7F800000u || (FIRST_SPECIAL == NOT_A_NUMBER && code == NOT_A_NUMBER);
        return (u8)(is_nan ? NOT_A_NUMBER : code | (bits >> 24 & 0x80u));
    }
};

#define F32 1
#define F64 2
#define BF16 3
#define I32 4
#define U8 5
#define I8 6
#define U32 7
#define U64 8
#define I64 9
#define F16_ 10
#define F8E4M3 11
#define F8E5M2 12

#if ELEMENT == F32
typedef Plain<float> Element;
#elif ELEMENT == F64
typedef Plain<double> Element;
#elif ELEMENT == BF16
typedef Bf16 Element;
#elif ELEMENT == F16_
typedef F16 Element;
#elif ELEMENT == F8E4M3
typedef F8<3, 7, 0x7F, 0x7F> Element;
#elif ELEMENT == F8E5M2
typedef F8<2, 15, 0x7C, 0x7E> Element;
#elif ELEMENT == I8
typedef Integer<i8> Element;
#elif ELEMENT == U8
typedef Integer<u8> Element;
#elif ELEMENT == I32
typedef Integer<i32> Element;
#elif ELEMENT == U32
typedef Integer<u32> Element;
#elif ELEMENT == I64
typedef Integer<i64> Element;
#elif ELEMENT == U64
typedef Integer<u64> Element;
#else
#error "ELEMENT is no element type"
#endif

typedef Element::Stored Stored;

// Loops over operands are not unrolled: the kernels wait for memory, and the driver compiles them when they are first
// used.

// Sixteen bytes of elements: what a thread loads and stores at once.
union Pack {
    uint4 vector;
    Stored element[16 / sizeof(Stored)];
    __device__ Pack() {}
};

INLINE bool is_aligned(const Fold &fold) {
    u64 all = 0;
#pragma unroll 1
    for (u32 i = 0; i < fold.sources; i++) all |= fold.source[i];
#pragma unroll 1
    for (u32 i = 0; i < fold.destinations; i++) all |= fold.destination[i];
    return (all & 15) == 0;
}

// Folds; or, `publishes`, puts what this rank gives into its slot.
template <int PASS> INLINE void run(const Fold &fold, bool publishes) {
    const u64 first = (u64)blockIdx.x * blockDim.x + threadIdx.x, stride = (u64)gridDim.x * blockDim.x;
    const u64 count = publishes ? fold.given_count : fold.count;
    const u32 sources = publishes ? 1 : fold.sources, destinations = publishes ? 1 : fold.destinations;
    const double scalar = publishes ? fold.factor : fold.scalar;
    const int WIDTH = 16 / sizeof(Stored);
    u64 done = 0;
    if (publishes ? (fold.given & 15) == 0 : is_aligned(fold)) {
        const u64 packs = count / WIDTH;
#pragma unroll 1
        for (u64 i = first; i < packs; i += stride) {
            Element::Folded folded[WIDTH];
            Pack pack;
            pack.vector = ((const uint4 *)(publishes ? fold.given : fold.source[0]))[i];
#pragma unroll
            for (int k = 0; k < WIDTH; k++) folded[k] = Element::widen(pack.element[k]);
#pragma unroll 1
            for (u32 s = 1; s < sources; s++) {
                pack.vector = ((const uint4 *)fold.source[s])[i];
#pragma unroll
                for (int k = 0; k < WIDTH; k++)
                    folded[k] = Element::combine<PASS>(folded[k], Element::widen(pack.element[k]));
            }
#pragma unroll
            for (int k = 0; k < WIDTH; k++)
                pack.element[k] = Element::finish(Element::scale<PASS>(folded[k], scalar));
#pragma unroll 1
            for (u32 d = 0; d < destinations; d++)
                ((uint4 *)(publishes ? fold.slot : fold.destination[d]))[i] = pack.vector;
        }
        done = packs * WIDTH;
    }
#pragma unroll 1
    for (u64 i = done + first; i < count; i += stride) {
        Element::Folded folded = Element::widen(((const Stored *)(publishes ? fold.given : fold.source[0]))[i]);
#pragma unroll 1
        for (u32 s = 1; s < sources; s++)
            folded = Element::combine<PASS>(folded, Element::widen(((const Stored *)fold.source[s])[i]));
        const Stored finished = Element::finish(Element::scale<PASS>(folded, scalar));
#pragma unroll 1
        for (u32 d = 0; d < destinations; d++)
            ((Stored *)(publishes ? fold.slot : fold.destination[d]))[i] = finished;
    }
}

// ---- Exchanges ----

INLINE u64 load_acquire(u64 at) {
    u64 value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    return value;
}
INLINE void store_release(u64 at, u64 value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" : : "l"(at), "l"(value) : "memory");
}
INLINE u64 load(u64 at) {
    u64 value;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    return value;
}
INLINE void store(u64 at, u64 value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" : : "l"(at), "l"(value) : "memory");
}

// Waits until a rank has published. False if it has published another call, or all is to end.
INLINE bool hears(const Fold &fold, u32 peer) {
    const u64 number = fold.word >> 32, flag = fold.source[peer] - fold.distance;
    const u64 waits = fold.report + REPORT_WAITS + 8 * peer;
#pragma unroll 1
    for (u32 turn = 1;; turn++) {
        const u64 word = load_acquire(flag);
        if (word >> 32 == number) {
            if (turn > LOOK_TURNS) store(waits, 0);
            if (word == fold.word) return true;
            store(fold.report + REPORT_FOREIGN + 8 * peer, word);
            return false;
        }
        if (turn % LOOK_TURNS != 0) continue;
        if (turn == LOOK_TURNS) store(waits, number);
        if ((load(fold.report + REPORT_END) | load(fold.failed)) != 0) return false;
    }
}

// All threads have written to the slot: tells the others, and waits for them. False if there is no result. What all have
// published may be read then; it stays until this rank publishes for the exchange after the next one.
INLINE bool meet(const Fold &fold) {
    __syncthreads();
    if (threadIdx.x == 0) store_release(fold.flag, fold.word);
    bool fails = false;
#pragma unroll 1
    for (u32 peer = threadIdx.x; peer < fold.ranks; peer += blockDim.x)
        if (peer != fold.rank && !hears(fold, peer)) fails = true;
    // Those behind it must not publish, as if they had its result.
    if (fails) store(fold.failed, 1);
    return !__syncthreads_or(fails);
}

// What is chosen by the argument is chosen once, or twice in an exchange. Passes that a type does not have are not asked
// for.
extern "C" __global__ void __launch_bounds__(256) fold(const Fold fold) {
    bool publishes = fold.ranks != 0;
    if (publishes && load(fold.failed) != 0) return;
#pragma unroll 1
    for (;;) {
        switch (publishes ? fold.given_pass : fold.pass) {
        case SUM: run<SUM>(fold, publishes); break;
        case PRODUCT: run<PRODUCT>(fold, publishes); break;
        case MIN: run<MIN>(fold, publishes); break;
        case MAX: run<MAX>(fold, publishes); break;
#if ELEMENT == F32 || ELEMENT == F64 || ELEMENT == BF16 || ELEMENT == F16_
        case AVERAGE: run<AVERAGE>(fold, publishes); break;
        case SCALE: run<SCALE>(fold, publishes); break;
#elif ELEMENT != F8E4M3 && ELEMENT != F8E5M2
        case BIT_AND: run<BIT_AND>(fold, publishes); break;
        case BIT_OR: run<BIT_OR>(fold, publishes); break;
        case BIT_XOR: run<BIT_XOR>(fold, publishes); break;
#endif
        }
        if (!publishes || !meet(fold)) return;
        publishes = false;
    }
}

#if ELEMENT == U8
// Copies bytes from one buffer to several, reading them once. `pass` is not looked at.
extern "C" __global__ void __launch_bounds__(256) copy(const Fold fold) {
    const u64 first = (u64)blockIdx.x * blockDim.x + threadIdx.x, stride = (u64)gridDim.x * blockDim.x;
    u64 done = 0;
    if (is_aligned(fold)) {
        const u64 packs = fold.count / 16;
#pragma unroll 1
        for (u64 i = first; i < packs; i += stride) {
            const uint4 vector = ((const uint4 *)fold.source[0])[i];
#pragma unroll 1
            for (u32 d = 0; d < fold.destinations; d++) ((uint4 *)fold.destination[d])[i] = vector;
        }
        done = packs * 16;
    }
#pragma unroll 1
    for (u64 i = done + first; i < fold.count; i += stride) {
        const u8 byte = ((const u8 *)fold.source[0])[i];
#pragma unroll 1
        for (u32 d = 0; d < fold.destinations; d++) ((u8 *)fold.destination[d])[i] = byte;
    }
}

// Copies `pieces` of `bytes` bytes, whole T, one behind the other.
template <class T> INLINE void gather(const Fold &fold, bool publishes, u32 pieces, u32 bytes) {
    const u32 each = bytes / sizeof(T);
    T *const into = (T *)(publishes ? fold.slot : fold.destination[0]);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < pieces * each; i += blockDim.x) {
        const u32 piece = i / each;
        into[i] = ((const T *)(publishes ? fold.given : fold.source[fold.first + piece]))[i - piece * each];
    }
}

// An exchange that copies: `sources` pieces of `count` bytes, from those of `first` on, into one destination. One block.
extern "C" __global__ void __launch_bounds__(256) collect(const Fold fold) {
    if (fold.ranks == 0 || load(fold.failed) != 0) return;
    bool publishes = true;
#pragma unroll 1
    for (;;) {
        const u32 pieces = publishes ? 1 : fold.sources, bytes = publishes ? fold.given_count : fold.count;
        u64 all = bytes | (publishes ? fold.given : fold.destination[0]);
        // What is read of all boards is aligned alike.
        if (!publishes) all |= fold.source[0];
        if ((all & 15) == 0) gather<uint4>(fold, publishes, pieces, bytes);
        else if ((all & 3) == 0) gather<u32>(fold, publishes, pieces, bytes);
        else gather<u8>(fold, publishes, pieces, bytes);
        if (!publishes || !meet(fold)) return;
        publishes = false;
    }
}
#endif
