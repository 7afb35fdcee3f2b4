/* Search and exact scoring of a batch of queries: see kernel.py, which calls it.
 *
 *     score(row) = q . x + b + weight * log1p(count) + gain + intercept
 *
 * A query's candidates are rows that are scored for every query ("blocks": moved, fresh, trending and head rows), rows that
 * are suggested to it, rows that were found for it elsewhere, and those rows of the nearest lists of an index whose codes
 * put them near the list in the making. A row counts once, whatever found it.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "ivf_scan.h"

/* One file for every processor of the kind: the widest of these that it has is taken when the library is loaded. */
#if defined(PER_PROCESSOR)
#define KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8, CHUNK = 256, AHEAD = 12 };

static const float REACH = 4.0f;

typedef float lanes __attribute__((vector_size(LANES * 4)));
typedef float unaligned __attribute__((vector_size(LANES * 4), aligned(4)));

typedef struct {
    int64_t count;
    const int64_t *rows;  /* (count,) */
    const float *vectors; /* (count, d) */
    const float *terms;   /* (count,) what a score holds beyond taste and intercept */
} block;

typedef struct {
    int64_t queries, d, asked_step, found_each, wanted, base_count, rows; /* rows: base_count and what is beyond */
    const float *vectors; /* (base_count, d) */
    const float *bias;    /* (base_count,) */
    int64_t known;        /* rows whose vectors are here: base_count and those of the next two */
    const float *beyond_vectors; /* (known - base_count, d) */
    const float *beyond_bias;    /* (known - base_count,) */
    const float *boosts;  /* (rows,), or NULL */
    const double *counts; /* (rows,): a boost is weight * log1p(count * factor); NULL where boosts are given, or none */
    double factor;
    float weight;
    float outside;        /* no row that is not trending has a larger boost */
    float intercept;
    block moved, fresh, trending, head;
    const uint8_t *alive; /* (rows,), or NULL when all are */
    const uint8_t *const *allowed; /* (queries,) of (rows,), each NULL for all; or NULL */
    uint32_t *stamps;     /* (rows,), each at most `stamp` */
    float *gain_of;       /* (rows,) of zeros */
    const float *asked;   /* (queries, asked_step), of which the first d are q */
    const int64_t *found; /* (queries, found_each); -1 where the index had no more */
    const ivf *index;     /* to be searched here, or NULL */
    int64_t probes;       /* lists of it */
    int64_t added_only;   /* 1: leave its own lists aside */
    int64_t portable;     /* 1: scan them without instructions of this processor, as others must */
    float margin;         /* standard deviations of a code's error that are allowed for */
    float *closeness;     /* (lists,) */
    int64_t *order;       /* (lists,) */
    int32_t *places;      /* (longest list, stored or added,) */
    uint16_t *sums;       /* (the same,) */
    const int64_t *excluded, *excluded_ends;   /* rows of all queries, and where each query's end */
    const int64_t *suggested, *suggested_ends;
    const float *gains;
    uint32_t stamp;       /* raised by one for each query */
    int64_t *best_rows;   /* (queries, wanted), best first */
    float *best_scores;   /* (queries, wanted) */
    int64_t *sizes;       /* (queries,) how many of them there are */
    float *last_base;     /* (queries,) the least taste and bias of what the index found; infinity for nothing */
} job;

typedef struct {
    int64_t *rows;
    float *scores;
    int64_t wanted, size;
    float bar; /* what a row must beat or equal */
    uint32_t stamp; /* of the rows that were met */
    const uint8_t *allowed; /* (rows,), or NULL for all */
} best;

INLINE int inside(int64_t row, int64_t rows) { return (uint64_t)row < (uint64_t)rows; }

INLINE lanes load(const float *from) { return *(const unaligned *)from; }

INLINE float sum(lanes v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

/* q . x of d elements; `tail` are the last LANES of q with zeros for those that the full steps cover. */
INLINE float dot(const float *q, const float *tail, const float *x, int64_t d) {
    if (d < LANES) {
        float total = 0.0f;
        for (int64_t i = 0; i < d; i++) total += q[i] * x[i];
        return total;
    }
    lanes even = {0}, odd = {0};
    int64_t i = 0;
    for (; i + 2 * LANES <= d; i += 2 * LANES) {
        even += load(q + i) * load(x + i);
        odd += load(q + i + LANES) * load(x + i + LANES);
    }
    if (i + LANES <= d) {
        even += load(q + i) * load(x + i);
        i += LANES;
    }
    if (i < d) odd += load(tail) * load(x + d - LANES);
    return sum(even + odd);
}

/* The same of four rows at once, for rows that lie side by side. */
INLINE void dot4(const float *q, const float *tail, const float *x, int64_t d, float *out) {
    lanes a = {0}, b = {0}, c = {0}, e = {0};
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) {
        lanes step = load(q + i);
        a += step * load(x + i);
        b += step * load(x + d + i);
        c += step * load(x + 2 * d + i);
        e += step * load(x + 3 * d + i);
    }
    if (i < d) {
        lanes step = load(tail);
        a += step * load(x + d - LANES);
        b += step * load(x + 2 * d - LANES);
        c += step * load(x + 3 * d - LANES);
        e += step * load(x + 4 * d - LANES);
    }
    out[0] = sum(a), out[1] = sum(b), out[2] = sum(c), out[3] = sum(e);
}

/* Ties go to the smaller row, so that a list does not depend on who found what. */
INLINE void offer(best *list, float score, int64_t row) {
    int64_t place = list->size;
    if (place == list->wanted) {
        place--;
        if (score == list->bar && row > list->rows[place]) return;
    } else {
        list->size++;
    }
    while (place > 0 && (score > list->scores[place - 1] ||
                         (score == list->scores[place - 1] && row < list->rows[place - 1]))) {
        list->scores[place] = list->scores[place - 1];
        list->rows[place] = list->rows[place - 1];
        place--;
    }
    list->scores[place] = score;
    list->rows[place] = row;
    if (list->size == list->wanted) list->bar = list->scores[list->wanted - 1];
}

INLINE float boost(const job *j, int64_t row) {
    if (j->boosts) return j->boosts[row];
    if (!j->counts || !(j->counts[row] > 0.0)) return 0.0f;
    return j->weight * log1pf((float)(j->counts[row] * j->factor));
}

/* Offers a row that has not been met before for this query; -infinity is no score. */
INLINE void meet(const job *j, best *list, float score, int64_t row) {
    if (!(score >= list->bar) || score == -INFINITY || j->stamps[row] == list->stamp) return;
    j->stamps[row] = list->stamp;
    if ((!j->alive || j->alive[row]) && (!list->allowed || list->allowed[row])) offer(list, score, row);
}

INLINE void meet_block(const job *j, const block *b, best *list, const float *q, const float *tail,
                       int gained) {
    float scores[CHUNK + 3];
    for (int64_t start = 0; start < b->count; start += CHUNK) {
        int64_t size = b->count - start < CHUNK ? b->count - start : CHUNK, i = 0;
        const float *x = b->vectors + start * j->d;
        if (j->d >= LANES)
            for (; i + 4 <= size; i += 4) dot4(q, tail, x + i * j->d, j->d, scores + i);
        for (; i < size; i++) scores[i] = dot(q, tail, x + i * j->d, j->d);
        for (i = 0; i < size; i++) scores[i] += b->terms[start + i] + j->intercept;
        if (gained)
            for (i = 0; i < size; i++) scores[i] += j->gain_of[b->rows[start + i]];
        for (i = 0; i < size; i++)
            if (scores[i] >= list->bar) meet(j, list, scores[i], b->rows[start + i]);
    }
}

INLINE const float *vector_of(const job *j, int64_t row) {
    return row < j->base_count ? j->vectors + row * j->d : j->beyond_vectors + (row - j->base_count) * j->d;
}

/* Taste and bias of a row below `known`. */
INLINE float base_of(const job *j, const float *q, const float *tail, int64_t row) {
    const float bias = row < j->base_count ? j->bias[row] : j->beyond_bias[row - j->base_count];
    return dot(q, tail, vector_of(j, row), j->d) + bias;
}

INLINE void meet_base(const job *j, best *list, float base, int64_t row) {
    if (base + j->outside + j->intercept >= list->bar) meet(j, list, base + boost(j, row) + j->intercept, row);
}

INLINE void meet_found(const job *j, best *list, const float *q, const float *tail, int64_t row) {
    if (list->allowed && !list->allowed[row]) return;
    meet_base(j, list, base_of(j, q, tail, row), row);
}

INLINE void prefetch(const job *j, int64_t row) {
    const char *vector = (const char *)vector_of(j, row);
    for (int64_t line = 0; line < j->d * 4; line += 64) __builtin_prefetch(vector + line);
}

/* What every list's centroid is worth to a query or row (width,). */
INLINE void measure_lists(const ivf *index, const float *q, float *closeness) {
    float tail[LANES] = {0};
    for (int64_t i = index->width - index->width % LANES; i < index->width && index->width >= LANES; i++)
        tail[i - (index->width - LANES)] = q[i];
    int64_t i = 0;
    if (index->width >= LANES)
        for (; i + 4 <= index->lists; i += 4)
            dot4(q, tail, index->centroids + i * index->width, index->width, closeness + i);
    for (; i < index->lists; i++) closeness[i] = dot(q, tail, index->centroids + i * index->width, index->width);
}

/* The `probes` nearest lists, nearest first, to the front of `order`. */
INLINE void nearest_lists(job *j, const float *q) {
    const ivf *index = j->index;
    measure_lists(index, q, j->closeness);
    int64_t kept = 0;
    for (int64_t i = 0; i < index->lists; i++) {
        const float close = j->closeness[i];
        if (kept == j->probes && close <= j->closeness[j->order[kept - 1]]) continue;
        int64_t place = kept < j->probes ? kept++ : kept - 1;
        for (; place > 0 && close > j->closeness[j->order[place - 1]]; place--) j->order[place] = j->order[place - 1];
        j->order[place] = i;
    }
}

/* Standard deviation of a query's error by the codes of some lists; `t` rounds to bytes. */
INLINE float deviation(const ivf *index, const inverted *lists, const float *q, const table *t) {
    float variance = (float)index->subquantisers / (12.0f * t->scale * t->scale);
    for (int64_t i = 0; i < index->width; i++) variance += q[i] * q[i] * lists->error[i];
    return sqrtf(variance);
}

/* How many rows of a stored list, from its start, may have a bias of `least` or more. */
INLINE int64_t rows_with_bias(const ivf *index, int64_t at, float least) {
    const int64_t size = index->stored.sizes[at];
    int64_t rows = 0;
    for (const float *most = index->most[at]; rows < size && *most >= least; most++) rows += BLOCK;
    return rows < size ? rows : size;
}

/* Meets those of the first `size` rows of one list whose codes put them within `slack` of the bar, which rises meanwhile.
 * `start` is what the list and the least codes are worth. */
INLINE void search_list(job *j, best *list, const float *q, const float *tail, const inverted *lists, int64_t at,
                        int64_t size, const table *t, float start, float slack) {
    const scan_list scan = j->portable ? scan_plain : chosen_scan();
    float floor = ceilf((list->bar - slack - start) * t->scale);
    if (floor > 255.0f * (float)j->index->subquantisers) return;
    if (!(floor > 0.0f)) floor = 0.0f;
    const int64_t pairs = (j->index->subquantisers + 1) / 2;
    const int64_t passed = scan(lists->codes[at], size, pairs, t->bytes, (int32_t)floor, j->places, j->sums);
    const int64_t *rows = lists->rows[at];
    float bar = list->bar;
    for (int64_t i = 0; i < passed; i++) {
        if (i + AHEAD < passed) prefetch(j, rows[j->places[i + AHEAD]]);
        if (list->bar != bar) {
            bar = list->bar;
            floor = ceilf((bar - slack - start) * t->scale);
        }
        const int64_t row = rows[j->places[i]];
        if ((float)j->sums[i] >= floor && inside(row, j->known)) meet_found(j, list, q, tail, row);
    }
}

/* Meets the rows of the nearest lists whose codes say that they may come in: those within the margin of the bar. Of a
 * stored list, whose rows are in the order of their bias, the end is left out that would need more taste than REACH
 * standard deviations, or the margin if it is larger, beyond the centroid. */
INLINE void search(job *j, best *list, const float *q, const float *tail) {
    const ivf *index = j->index;
    table t;
    nearest_lists(j, q);
    fill_table(index, q, &t);
    const float beside = j->outside + j->intercept;
    const float slack = j->margin * deviation(index, &index->stored, q, &t) + beside;
    const float added_slack = j->margin * deviation(index, &index->added, q, &t) + beside;
    float spread = 0.0f;
    for (int64_t i = 0; i < j->d; i++) spread += q[i] * q[i] * index->spread[i];
    const float reach = fmaxf(REACH, j->margin) * sqrtf(spread) + beside;
    for (int64_t probe = 0; probe < j->probes; probe++) {
        const int64_t at = j->order[probe];
        const float start = j->closeness[at] + t.least;
        if (!j->added_only) {
            const float taste = j->closeness[at] - index->centroids[at * index->width + j->d];
            const int64_t size = rows_with_bias(index, at, list->bar - reach - taste);
            search_list(j, list, q, tail, &index->stored, at, size, &t, start, slack);
        }
        const int64_t later = index->added.sizes[at];
        if (later) search_list(j, list, q, tail, &index->added, at, later, &t, start, added_slack);
    }
}

INLINE void rank_one(job *j, int64_t place) {
    const int64_t d = j->d;
    const float *q = j->asked + place * j->asked_step;
    const uint32_t stamp = ++j->stamp;
    best list = {
        j->best_rows + place * j->wanted, j->best_scores + place * j->wanted, j->wanted, 0, -INFINITY, stamp,
        j->allowed ? j->allowed[place] : NULL,
    };
    float tail[LANES] = {0};
    for (int64_t i = d - d % LANES; i < d && d >= LANES; i++) tail[i - (d - LANES)] = q[i];

    for (int64_t i = place ? j->excluded_ends[place - 1] : 0; i < j->excluded_ends[place]; i++)
        if (inside(j->excluded[i], j->rows)) j->stamps[j->excluded[i]] = stamp;
    const int64_t first = place ? j->suggested_ends[place - 1] : 0, end = j->suggested_ends[place];
    const int gained = end > first;
    for (int64_t i = first; i < end; i++)
        if (inside(j->suggested[i], j->rows)) j->gain_of[j->suggested[i]] = j->gains[i];
    meet_block(j, &j->moved, &list, q, tail, gained);
    meet_block(j, &j->fresh, &list, q, tail, gained);
    /* The snapshot has moved rows at another place: they are met, whether they came in or not. */
    for (int64_t i = 0; i < j->moved.count; i++) j->stamps[j->moved.rows[i]] = stamp;
    for (int64_t i = first; i < end; i++) {
        const int64_t row = j->suggested[i];
        if (!inside(row, j->rows)) continue;
        if (row < j->known && j->stamps[row] != stamp) {
            meet(j, &list, base_of(j, q, tail, row) + boost(j, row) + j->gains[i] + j->intercept, row);
            j->stamps[row] = stamp; /* without its gain it is not to be met again */
        }
        j->gain_of[row] = 0.0f;
    }
    meet_block(j, &j->trending, &list, q, tail, 0);
    meet_block(j, &j->head, &list, q, tail, 0);

    const int64_t *rows = j->found + place * j->found_each;
    float least = INFINITY;
    for (int64_t i = 0; i < j->found_each; i++) {
        if (i + AHEAD < j->found_each && inside(rows[i + AHEAD], j->base_count)) prefetch(j, rows[i + AHEAD]);
        const int64_t row = rows[i];
        if (!inside(row, j->base_count)) continue;
        const float base = base_of(j, q, tail, row);
        if (base < least) least = base;
        meet_base(j, &list, base, row);
    }
    if (j->index) search(j, &list, q, tail);
    j->last_base[place] = least;
    j->sizes[place] = list.size;
}

/* Ranks the candidates of every query. Rows that there are not are passed over; those of blocks and of the index, and the
 * lengths of arrays, the caller has looked at. */
KERNEL void heliotrope_rank(job *j) {
    for (int64_t place = 0; place < j->queries; place++) rank_one(j, place);
}

#include "event_shares.h"

/* The mean squares of what the codes leave of rows of some lists, to `error` (width,), and centroids, to `spread`. */
void heliotrope_errors(const ivf *index, const float *vectors, const float *bias, int64_t d, float *error, float *spread) {
    double squares[MAX_SUBQUANTISERS * 8] = {0}, rests[MAX_SUBQUANTISERS * 8] = {0};
    const int64_t step = index->lists / 64 + 1;
    int64_t rows = 0;
    for (int64_t list = 0; list < index->lists; list += step) rows += add_errors(index, list, vectors, bias, d, 64, squares, rests);
    for (int64_t i = 0; i < index->width; i++) {
        error[i] = rows ? (float)(squares[i] / (double)rows) : 0.0f;
        spread[i] = rows ? (float)(rests[i] / (double)rows) : 0.0f;
    }
}

/* Chooses the list of each row (count, width), as FAISS does, and its codes (count, subquantisers); `left` (count, width)
 * is what these leave, and `closeness` (lists,) is written over. */
KERNEL void heliotrope_encode(const ivf *index, int64_t count, const float *rows, float *closeness, int64_t *lists,
                              uint8_t *codes, float *left) {
    for (int64_t place = 0; place < count; place++) {
        const float *row = rows + place * index->width;
        measure_lists(index, row, closeness);
        lists[place] = 0;
        for (int64_t i = 1; i < index->lists; i++)
            if (closeness[i] > closeness[lists[place]]) lists[place] = i;
        encode(index, row, lists[place], codes + place * index->subquantisers, left + place * index->width);
    }
}

/* Writes rows, by their numbers, to the ends of their added lists, which have room for them. */
void heliotrope_append(const ivf *index, int64_t count, const int64_t *numbers, const int64_t *lists, const uint8_t *codes) {
    for (int64_t place = 0; place < count; place++)
        append(index, lists[place], numbers[place], codes + place * index->subquantisers);
}
