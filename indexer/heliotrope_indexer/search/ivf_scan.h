/* Scans the lists of FAISS's IndexIVFPQFastScan: 4-bit codes of residuals, 32 rows a block, inner product.
 *
 * The layout is FAISS's own (pq4_pack_codes, blocks of 32): for each pair of sub-quantisers 32 bytes, of which the first 16
 * hold the codes of the one and the others those of the other; the low halves of the bytes are of rows 0, 8, 1, 9, ..., 15,
 * the high halves of those 16 further on. Sums of table entries of one byte fit into 16 bits.
 */
#include <stdint.h>
#include <string.h>

enum { BLOCK = 32, MAX_SUBQUANTISERS = 128 };

typedef struct {
    uint8_t *const *codes; /* (lists,) blocks of each list */
    int64_t *const *rows;  /* (lists,) */
    int64_t *sizes;        /* (lists,) */
    const float *error;    /* (width,) mean square of what a code leaves of each dimension */
} inverted;

typedef struct {
    int64_t lists, subquantisers, per_code, width; /* subquantisers * per_code == width */
    const float *centroids;                        /* (lists, width) */
    const float *codebook;                         /* (subquantisers, 16, per_code) */
    inverted stored, added;                        /* FAISS's own lists, and those of rows that came later */
    const float *spread;                           /* (width,) mean square of what a stored list's centroid leaves */
    const float *const *most; /* (lists,) for each block of a stored list, the largest bias from there to the end */
} ivf;

/* The table of one query: what a code adds, as bytes: value = (byte / scale) + least, summed over sub-quantisers. */
typedef struct {
    uint8_t bytes[MAX_SUBQUANTISERS * 16] __attribute__((aligned(32)));
    float scale, least, most;
} table;

static inline void fill_table(const ivf *index, const float *q, table *t) {
    float values[MAX_SUBQUANTISERS * 16], low[MAX_SUBQUANTISERS], widest = 0.0f;
    t->least = t->most = 0.0f;
    for (int64_t m = 0; m < index->subquantisers; m++) {
        const float *part = q + m * index->per_code, *words = index->codebook + m * 16 * index->per_code;
        float least = INFINITY, most = -INFINITY;
        for (int64_t c = 0; c < 16; c++) {
            float value = 0.0f;
            for (int64_t i = 0; i < index->per_code; i++) value += part[i] * words[c * index->per_code + i];
            values[m * 16 + c] = value;
            if (value < least) least = value;
            if (value > most) most = value;
        }
        low[m] = least;
        t->least += least;
        t->most += most;
        if (most - least > widest) widest = most - least;
    }
    t->scale = widest > 0.0f ? 255.0f / widest : 1.0f;
    for (int64_t m = 0; m < index->subquantisers; m++)
        for (int64_t c = 0; c < 16; c++)
            t->bytes[m * 16 + c] = (uint8_t)((values[m * 16 + c] - low[m]) * t->scale + 0.5f);
    /* Blocks hold whole pairs. */
    if (index->subquantisers % 2) memset(t->bytes + index->subquantisers * 16, 0, 16);
}

/* Places in a list, ascending, whose sums are at least `floor`, with their sums; returns how many. */
typedef int64_t (*scan_list)(const uint8_t *codes, int64_t size, int64_t pairs, const uint8_t *bytes, int32_t floor,
                             int32_t *places, uint16_t *sums);

static int64_t scan_plain(const uint8_t *codes, int64_t size, int64_t pairs, const uint8_t *bytes, int32_t floor,
                          int32_t *places, uint16_t *sums) {
    int64_t passed = 0;
    for (int64_t start = 0; start < size; start += BLOCK, codes += pairs * BLOCK) {
        for (int64_t row = 0; row < BLOCK && start + row < size; row++) {
            const int64_t in = row % 16, byte = in < 8 ? 2 * in : 2 * (in - 8) + 1, shift = row < 16 ? 0 : 4;
            uint32_t total = 0;
            for (int64_t pair = 0; pair < pairs; pair++) {
                const uint8_t *both = codes + pair * BLOCK;
                total += bytes[pair * 32 + (both[byte] >> shift & 15)] + bytes[pair * 32 + 16 + (both[16 + byte] >> shift & 15)];
            }
            if ((int32_t)total >= floor) {
                places[passed] = (int32_t)(start + row);
                sums[passed++] = (uint16_t)total;
            }
        }
    }
    return passed;
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2,bmi"))) static int64_t scan_avx2(const uint8_t *codes, int64_t size, int64_t pairs,
                                                         const uint8_t *bytes, int32_t floor, int32_t *places,
                                                         uint16_t *sums) {
    const __m256i half = _mm256_set1_epi8(15);
    const __m256i below = _mm256_set1_epi16((int16_t)(floor - 1));
    int64_t passed = 0;
    for (int64_t start = 0; start < size; start += BLOCK) {
        /* 16-bit sums of the even bytes, which also gather the odd ones times 256, and of the odd bytes. */
        __m256i a = _mm256_setzero_si256(), b = a, c = a, e = a;
        for (int64_t pair = 0; pair < pairs; pair++, codes += BLOCK) {
            const __m256i code = _mm256_loadu_si256((const __m256i *)codes);
            const __m256i words = _mm256_load_si256((const __m256i *)(bytes + pair * 32));
            const __m256i low = _mm256_shuffle_epi8(words, _mm256_and_si256(code, half));
            const __m256i high = _mm256_shuffle_epi8(words, _mm256_and_si256(_mm256_srli_epi16(code, 4), half));
            a = _mm256_add_epi16(a, low);
            b = _mm256_add_epi16(b, _mm256_srli_epi16(low, 8));
            c = _mm256_add_epi16(c, high);
            e = _mm256_add_epi16(e, _mm256_srli_epi16(high, 8));
        }
        a = _mm256_sub_epi16(a, _mm256_slli_epi16(b, 8));
        c = _mm256_sub_epi16(c, _mm256_slli_epi16(e, 8));
        /* The two halves are the two sub-quantisers of each pair. */
        const __m256i first =
            _mm256_add_epi16(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
        const __m256i second =
            _mm256_add_epi16(_mm256_permute2x128_si256(c, e, 0x20), _mm256_permute2x128_si256(c, e, 0x31));
        const __m256i over =
            _mm256_packs_epi16(_mm256_cmpgt_epi16(first, below), _mm256_cmpgt_epi16(second, below));
        uint32_t mask = (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(over, 0xD8));
        if (size - start < BLOCK) mask &= (1u << (size - start)) - 1;
        if (!mask) continue;
        uint16_t all[BLOCK] __attribute__((aligned(32)));
        _mm256_store_si256((__m256i *)all, first);
        _mm256_store_si256((__m256i *)(all + 16), second);
        for (; mask; mask &= mask - 1) {
            const int row = __builtin_ctz(mask);
            places[passed] = (int32_t)(start + row);
            sums[passed++] = all[row];
        }
    }
    return passed;
}
#endif

static scan_list chosen_scan(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi")) return scan_avx2;
#endif
    return scan_plain;
}

/* The byte that holds the code of one sub-quantiser of the row at a place of a list, and where in it. */
static inline uint8_t *byte_of(const ivf *index, uint8_t *codes, int64_t place, int64_t m, int64_t *shift) {
    const int64_t pairs = (index->subquantisers + 1) / 2, in = place % 16;
    *shift = place % BLOCK < 16 ? 0 : 4;
    return codes + (place / BLOCK * pairs + m / 2) * BLOCK + m % 2 * 16 + (in < 8 ? 2 * in : 2 * (in - 8) + 1);
}

/* Writes a row with its codes (subquantisers,) to the end of an added list, whose blocks beyond that are zeros. */
static inline void append(const ivf *index, int64_t list, int64_t row, const uint8_t *codes) {
    const inverted *added = &index->added;
    const int64_t place = added->sizes[list]++;
    added->rows[list][place] = row;
    for (int64_t m = 0; m < index->subquantisers; m++) {
        int64_t shift;
        uint8_t *byte = byte_of(index, added->codes[list], place, m, &shift);
        *byte |= (uint8_t)(codes[m] << shift);
    }
}

/* The nearest words of what a centroid leaves of a row (width,), and what these leave of it. */
static inline void encode(const ivf *index, const float *row, int64_t list, uint8_t *codes, float *left) {
    const float *centroid = index->centroids + list * index->width;
    for (int64_t m = 0; m < index->subquantisers; m++) {
        const int64_t at = m * index->per_code;
        const float *words = index->codebook + m * 16 * index->per_code;
        float least = INFINITY;
        codes[m] = 0;
        for (int64_t c = 0; c < 16; c++) {
            float square = 0.0f;
            for (int64_t i = 0; i < index->per_code; i++) {
                const float lacks = row[at + i] - centroid[at + i] - words[c * index->per_code + i];
                square += lacks * lacks;
            }
            if (square < least) least = square, codes[m] = (uint8_t)c;
        }
        for (int64_t i = 0; i < index->per_code; i++)
            left[at + i] = row[at + i] - centroid[at + i] - words[codes[m] * index->per_code + i];
    }
}

/* What the codes leave of some rows, and what the centroids do: adds the squares of each dimension to `squares` and
 * `spread` (width,); returns how many rows. */
static inline int64_t add_errors(const ivf *index, int64_t list, const float *vectors, const float *bias, int64_t d,
                                 int64_t at_most, double *squares, double *spread) {
    const inverted *stored = &index->stored;
    const int64_t all = stored->sizes[list], size = all < at_most ? all : at_most;
    for (int64_t sample = 0; sample < size; sample++) {
        const int64_t place = sample * all / size; /* from all of the list: its rows may be in some order */
        const int64_t row = stored->rows[list][place];
        for (int64_t i = 0; i < index->width; i++) {
            const int64_t m = i / index->per_code;
            int64_t shift, code = *byte_of(index, stored->codes[list], place, m, &shift) >> shift & 15;
            const float true_value = i < d ? vectors[row * d + i] : i == d ? bias[row] : 0.0f;
            const float rest = true_value - index->centroids[list * index->width + i];
            const float left = rest - index->codebook[(m * 16 + code) * index->per_code + i % index->per_code];
            squares[i] += (double)left * left;
            spread[i] += (double)rest * rest;
        }
    }
    return size;
}
