/* What each event of a user adds to the scores of some items by taste: see event_shares.py, which calls it.
 *
 *     share(event, item) = sum over h of gain * 2^((time - read) / half_life_h) / total_h * x_event . aim_(item, h)
 *
 * and weight * strength where the event speaks for the neighbours of its item and the item is one of them: the newest
 * events that are marked do. Only the largest shares of each item are kept one by one. Included by kernel.c.
 */

enum { RECORD = 17, KINDS = 0x80, MOST_AHEAD = 64 };

typedef struct {
    int64_t d, horizons;
    const float *vectors;      /* (n, d) */
    const double *half_lives;  /* (horizons,) in seconds */
    const double *kappas;      /* (horizons,) */
    const double *weights, *centers; /* (KINDS,) a gain is weight * (value - center), bounded by the limit */
    double limit;
    int64_t events;
    const char *numbers;       /* (events,) int32: the number of an event's item; not aligned */
    const char *records;       /* (events,) of RECORD bytes: value, time in us, kind, and in its highest bit the mark */
    const char *ids;           /* (events,) event ids, each behind a byte for its length */
    const int32_t *rows;       /* row of an item by its number, -1 for one without */
    int64_t strangers;         /* items without a row: */
    const int32_t *stranger_numbers; /* (strangers,) */
    const float *stranger_vectors;   /* (strangers, d) */
    int64_t speakers;          /* marked events that speak, at most; 0 for none */
    int64_t neighbours;        /* of an item, at most */
    const int32_t *neighbour_rows;   /* (n, neighbours), -1 for none */
    const float *strengths;    /* (n, neighbours) */
    double neighbour_weight;
    const int64_t *targets;    /* (items,) their rows as neighbours, -2 for none */
    int64_t *speaking;         /* (speakers,) to work in */
    int64_t *said_at;          /* (events,) to work in */
    double *said;              /* (speakers, items) to work in */
    int64_t tied;              /* afterwards: times did not tell which of the marked events are the newest */
    int64_t spoken;            /* events that add something beside taste: */
    const int64_t *spoken_places;    /* (spoken,) ascending */
    const double *spoken_shares;     /* (spoken, items) */
    double read_s;
    const double *totals;      /* (horizons,) kappa + mass */
    const float *prior;        /* (d,) */
    const double *folded;      /* (horizons, d) sum as of read_s, or NULL */
    int64_t items;
    const float *aims;         /* (items, horizons * d) */
    double *scales;            /* (events * horizons,) to work in */
    int64_t named;             /* how many shares are kept at most; afterwards, how many are */
    int64_t unknown;           /* afterwards: events on items of which there is no vector */
    int64_t adding;            /* afterwards: events that add something */
    int64_t *starts;           /* (events,) afterwards: where their ids begin */
    int64_t *places;           /* (items, named) the events, the largest share first by absolute value */
    double *shares;            /* (items, named) */
    double *others, *by_prior, *by_folded; /* (items,) */
} share_job;

INLINE double dot_double(const double *a, const float *x, int64_t d) {
    double total = 0.0;
    for (int64_t i = 0; i < d; i++) total += a[i] * x[i];
    return total;
}

INLINE float dot_float(const float *a, const float *x, int64_t d) {
    lanes even = {0}, odd = {0};
    int64_t i = 0;
    for (; i + 2 * LANES <= d; i += 2 * LANES) {
        even += load(a + i) * load(x + i);
        odd += load(a + i + LANES) * load(x + i + LANES);
    }
    float total = sum(even + odd);
    for (; i < d; i++) total += a[i] * x[i];
    return total;
}

static const float *event_vector(const share_job *job, int64_t event) {
    int32_t number;
    memcpy(&number, job->numbers + 4 * event, 4);
    int32_t row = job->rows[number];
    if (row >= 0) return job->vectors + (int64_t)row * job->d;
    for (int64_t i = 0; i < job->strangers; i++)
        if (job->stranger_numbers[i] == number) return job->stranger_vectors + i * job->d;
    return NULL;
}

/* Fills `scales` with what x_event is multiplied by for each horizon; returns whether any of them is not 0. */
static int scale(const share_job *job, int64_t event, double *scales) {
    double value;
    int64_t time_us;
    const char *record = job->records + RECORD * event;
    memcpy(&value, record, 8);
    memcpy(&time_us, record + 8, 8);
    int kind = (uint8_t)record[16] & (KINDS - 1), any = 0;
    double gain = job->weights[kind] * (value - job->centers[kind]);
    if (gain > job->limit) gain = job->limit;
    if (gain < -job->limit) gain = -job->limit;
    for (int64_t h = 0; h < job->horizons; h++) {
        scales[h] = gain ? gain * exp2((time_us / 1e6 - job->read_s) / job->half_lives[h]) / job->totals[h] : 0.0;
        any |= scales[h] != 0.0;
    }
    return any;
}

/* Among equal ones the event with the smaller place stays first. */
INLINE void keep(int64_t *places, double *shares, int64_t size, int64_t named, int64_t event, double share) {
    int64_t at = size < named ? size : named - 1;
    if (size == named && fabs(share) <= fabs(shares[at])) return;
    for (; at > 0 && fabs(share) > fabs(shares[at - 1]); at--) {
        shares[at] = shares[at - 1];
        places[at] = places[at - 1];
    }
    shares[at] = share;
    places[at] = event;
}

static int64_t time_of(const share_job *job, int64_t event) {
    int64_t time_us;
    memcpy(&time_us, job->records + RECORD * event + 8, 8);
    return time_us;
}

/* What the newest marked events say of the items, to `said`; their places there, -1 for silent ones, to `said_at`. */
static void speak(share_job *job) {
    int64_t size = 0, most = job->speakers, items = job->items;
    job->tied = 0;
    for (int64_t e = 0; e < job->events; e++) {
        job->said_at[e] = -1;
        if (!most || !((uint8_t)job->records[RECORD * e + 16] & KINDS)) continue;
        int64_t time_us = time_of(job, e), at = size;
        if (size == most) {
            int64_t oldest = time_of(job, job->speaking[most - 1]);
            job->tied |= time_us == oldest;
            if (time_us <= oldest) continue;
            at = most - 1;
            job->tied |= most > 1 && time_of(job, job->speaking[most - 2]) == oldest;
        } else {
            size++;
        }
        for (; at > 0 && time_us > time_of(job, job->speaking[at - 1]); at--) job->speaking[at] = job->speaking[at - 1];
        job->speaking[at] = e;
    }
    for (int64_t s = 0; s < size; s++) {
        int32_t number;
        memcpy(&number, job->numbers + 4 * job->speaking[s], 4);
        int64_t row = job->rows[number];
        if (row < 0) continue;
        const int32_t *named = job->neighbour_rows + row * job->neighbours;
        const float *strengths = job->strengths + row * job->neighbours;
        double *said = job->said + s * items;
        int any = 0;
        for (int64_t i = 0; i < items; i++) {
            said[i] = 0.0;
            for (int64_t n = 0; n < job->neighbours; n++)
                if (named[n] == job->targets[i]) said[i] += job->neighbour_weight * strengths[n], any = 1;
        }
        if (any) job->said_at[job->speaking[s]] = s;
    }
}

KERNEL void heliotrope_event_shares(share_job *job) {
    int64_t d = job->d, horizons = job->horizons, width = d * horizons, items = job->items;
    int64_t adding = 0, spoken = 0, start = 0;
    job->unknown = 0;
    speak(job);
    /* The search has just driven them from the caches. */
    for (int64_t e = 0; e < job->events && e < MOST_AHEAD; e++) {
        const float *x = event_vector(job, e);
        for (int64_t i = 0; x != NULL && i < d; i += 16) __builtin_prefetch(x + i);
    }
    for (int64_t e = 0; e < job->events; e++) {
        job->starts[e] = start;
        start += 1 + (uint8_t)job->ids[start];
        const float *x = event_vector(job, e);
        int adds = x != NULL && scale(job, e, job->scales + e * horizons);
        job->unknown += x == NULL;
        if (!adds) for (int64_t h = 0; h < horizons; h++) job->scales[e * horizons + h] = 0.0;
        int speaks = spoken < job->spoken && job->spoken_places[spoken] == e;
        spoken += speaks;
        adding += adds || speaks || job->said_at[e] >= 0;
    }
    job->adding = adding;
    int64_t named = job->named < adding ? job->named : adding, size = 0;
    job->named = named;
    for (int64_t i = 0; i < items; i++) {
        const float *aims = job->aims + i * width;
        double by_prior = 0.0, by_folded = 0.0;
        for (int64_t h = 0; h < horizons; h++) {
            by_prior += job->kappas[h] / job->totals[h] * dot_float(aims + h * d, job->prior, d);
            if (job->folded) by_folded += dot_double(job->folded + h * d, aims + h * d, d) / job->totals[h];
        }
        job->by_prior[i] = by_prior, job->by_folded[i] = by_folded, job->others[i] = 0.0;
    }
    spoken = 0;
    for (int64_t e = 0; e < job->events; e++) {
        const double *scales = job->scales + e * horizons;
        const double *said = NULL;
        if (spoken < job->spoken && job->spoken_places[spoken] == e) said = job->spoken_shares + spoken++ * items;
        if (job->said_at[e] >= 0) said = job->said + job->said_at[e] * items;
        int adds = 0;
        for (int64_t h = 0; h < horizons; h++) adds |= scales[h] != 0.0;
        if (!adds && !said) continue;
        const float *x = adds ? event_vector(job, e) : NULL;
        for (int64_t i = 0; i < items; i++) {
            double share = said ? said[i] : 0.0;
            for (int64_t h = 0; adds && h < horizons; h++)
                share += scales[h] * dot_float(job->aims + i * width + h * d, x, d);
            job->others[i] += share;
            if (named) keep(job->places + i * named, job->shares + i * named, size, named, e, share);
        }
        size += size < named;
    }
    for (int64_t i = 0; i < items; i++)
        for (int64_t m = 0; m < named; m++) job->others[i] -= job->shares[i * named + m];
}
