/* ring.h: the record ring, a bounded single-producer single-consumer queue of variable-size records, and the release
 * ring, the same with fixed entries. Plain C11, no Python.
 *
 * Positions are monotonic u64 byte counts, masked on use. The producer owns the ring bytes and the tail; the consumer
 * owns the head, which lives in the consumer's own segment. Each side treats the other's words as hostile: a position
 * is validated before it is used, a record's header is loaded once into private memory and only the copy is believed.
 */
#ifndef SHMRPC_RING_H
#define SHMRPC_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "atomics.h"
#include "layout.h"
#include "steps.h"

enum shm_status {
    SHM_OK = 0,
    SHM_EMPTY,            /* nothing to take */
    SHM_FULL,             /* no room: wait for the consumer */
    SHM_BAD_HEAD,         /* the consumer's position is outside of what was published */
    SHM_BAD_TAIL,         /* the producer's position went back, is unaligned, or is further than the ring is long */
    SHM_BAD_RECORD,       /* a record does not fit in what was published, or in the ring */
};

/* What a record says of itself; for a SHM_KIND_PAD only `length` has a meaning. */
struct shm_record {
    uint32_t length;  /* payload bytes */
    uint8_t kind;
    uint8_t flags;
    uint16_t method;
    uint64_t call_id;
    uint64_t deadline_ns;
};

static inline uint64_t shm_record_word0(const struct shm_record *r)
{
    return (uint64_t)r->length | (uint64_t)r->kind << 32 | (uint64_t)r->flags << 40 | (uint64_t)r->method << 48;
}

static inline uint64_t shm_record_bytes(uint64_t payload)
{
    return SHM_RECORD_HEADER + ((payload + SHM_RECORD_ALIGN - 1) & ~(uint64_t)(SHM_RECORD_ALIGN - 1));
}

/* ---- producer ------------------------------------------------------------------------------------------------- */

struct shm_producer {
    uint8_t *ring;              /* in my segment */
    uint64_t size;              /* bytes, a power of two */
    shm_word *tail_word;        /* in my segment */
    const shm_word *head_word;  /* in the peer's segment */
    uint64_t tail;              /* private copy of *tail_word */
    uint64_t head;              /* what I last saw of *head_word */
};

/* Re-reads the consumer's position. */
static inline enum shm_status shm_producer_refresh(struct shm_producer *p)
{
    uint64_t head = shm_load_acquire(p->head_word); /* [head] meets the release in shm_consumer_commit */
    SHM_STEP(refresh_head_loaded);
    if (head < p->head || head > p->tail || head % SHM_RECORD_ALIGN)
        return SHM_BAD_HEAD;
    p->head = head;
    return SHM_OK;
}

/* Appends one record and publishes it. `payload` may be NULL when record->length is 0. */
static inline enum shm_status shm_producer_push(struct shm_producer *p, const struct shm_record *record,
                                                const void *payload)
{
    uint64_t need = shm_record_bytes(record->length);
    uint64_t at = p->tail & (p->size - 1);
    uint64_t to_end = p->size - at;
    uint64_t pad = need > to_end ? to_end : 0;

    if (p->tail + pad + need - p->head > p->size) {
        enum shm_status status = shm_producer_refresh(p);
        if (status != SHM_OK)
            return status;
        if (p->tail + pad + need - p->head > p->size)
            return SHM_FULL;
    }
    SHM_STEP(publish_begun);
    if (pad) {
        struct shm_record skip = {.length = (uint32_t)pad, .kind = SHM_KIND_PAD};
        uint64_t word = shm_record_word0(&skip);
        memcpy(p->ring + at, &word, sizeof word);
        at = 0;
        SHM_STEP(publish_pad_written);
    }
    uint64_t words[3] = {shm_record_word0(record), record->call_id, record->deadline_ns};
    memcpy(p->ring + at, words, sizeof words);
    SHM_STEP(publish_header_written);
    if (record->length)
        memcpy(p->ring + at + SHM_RECORD_HEADER, payload, record->length);
    p->tail += pad + need;
    SHM_STEP(publish_record_written);
    shm_store_release(p->tail_word, p->tail); /* [tail] publish: meets the acquire in shm_consumer_look */
    SHM_STEP(publish_tail_stored);
    return SHM_OK;
}

/* ---- consumer ------------------------------------------------------------------------------------------------- */

struct shm_consumer {
    const uint8_t *ring;        /* in the peer's segment */
    uint64_t size;              /* bytes, a power of two */
    const shm_word *tail_word;  /* in the peer's segment */
    shm_word *head_word;        /* in my segment */
    uint64_t head;              /* how far I have taken; published by shm_consumer_commit */
    uint64_t committed;         /* private copy of *head_word */
    uint64_t tail;              /* what I last saw of *tail_word, validated */
};

/* Whether anything new is there: the one load that a polling look costs. Validates nothing. */
static inline bool shm_consumer_ready(const struct shm_consumer *c)
{
    return c->head != c->tail || shm_load_acquire(c->tail_word) != c->tail;
}

/* Where the producer says that its records end now. Validates nothing.
 *
 * After an entry of the same peer's release ring was taken it covers every record that was published before the entry:
 * the peer stored the tail first, and [release-tail] makes that store visible too.
 */
static inline uint64_t shm_consumer_published(const struct shm_consumer *c)
{
    return shm_load_acquire(c->tail_word); /* [tail] meets the publish in shm_producer_push */
}

/* Re-reads the producer's position. */
static inline enum shm_status shm_consumer_look(struct shm_consumer *c)
{
    uint64_t tail = shm_load_acquire(c->tail_word); /* [tail] meets the publish in shm_producer_push */
    SHM_STEP(take_tail_loaded);
    if (tail < c->tail || tail - c->committed > c->size || tail % SHM_RECORD_ALIGN)
        return SHM_BAD_TAIL;
    c->tail = tail;
    return tail == c->head ? SHM_EMPTY : SHM_OK;
}

static inline uint64_t shm_ring_word(const uint8_t *at)
{
    return shm_load_relaxed((const shm_word *)(const void *)at); /* one load: a header cannot change under its checks */
}

/* Takes the next record: its header is copied to *record, *payload points into the ring until shm_consumer_commit. */
static inline enum shm_status shm_consumer_take(struct shm_consumer *c, struct shm_record *record,
                                                const uint8_t **payload)
{
    for (;;) {
        if (c->head == c->tail) {
            enum shm_status status = shm_consumer_look(c);
            if (status != SHM_OK)
                return status;
        }
        uint64_t available = c->tail - c->head;
        uint64_t at = c->head & (c->size - 1);
        uint64_t to_end = c->size - at;
        uint64_t word = shm_ring_word(c->ring + at);
        SHM_STEP(take_word_loaded);

        record->length = (uint32_t)word;
        record->kind = (uint8_t)(word >> 32);
        record->flags = (uint8_t)(word >> 40);
        record->method = (uint16_t)(word >> 48);
        if (record->kind == SHM_KIND_PAD) {
            if (record->length != to_end || record->length > available)
                return SHM_BAD_RECORD;
            c->head += to_end;
            SHM_STEP(take_pad_passed);
            continue;
        }
        uint64_t need = shm_record_bytes(record->length);
        if (need > available || need > to_end)
            return SHM_BAD_RECORD;
        record->call_id = shm_ring_word(c->ring + at + 8);
        record->deadline_ns = shm_ring_word(c->ring + at + 16);
        *payload = c->ring + at + SHM_RECORD_HEADER;
        c->head += need;
        SHM_STEP(take_header_loaded);
        return SHM_OK;
    }
}

/* Gives the room of everything taken so far back to the producer. Returns whether there was any. */
static inline bool shm_consumer_commit(struct shm_consumer *c)
{
    if (c->head == c->committed)
        return false;
    SHM_STEP(commit_begun);
    c->committed = c->head;
    shm_store_release(c->head_word, c->head); /* [head] publish: meets the acquire in shm_producer_refresh */
    SHM_STEP(commit_head_stored);
    return true;
}

/* ---- release ring: (block, generation) pairs on their way home -------------------------------------------------- */

struct shm_releaser {
    uint8_t *ring;              /* in my segment */
    uint64_t entries;           /* a power of two, at least the number of blocks that can be out */
    shm_word *tail_word;        /* in my segment, counts entries */
    const shm_word *head_word;  /* in the peer's segment */
    uint64_t tail;
};

static inline enum shm_status shm_releaser_push(struct shm_releaser *r, uint64_t block, uint64_t generation)
{
    SHM_STEP(release_begun);
    uint64_t head = shm_load_acquire(r->head_word); /* [release-head] meets the publish in shm_reaper_take */
    SHM_STEP(release_head_loaded);
    if (head > r->tail)
        return SHM_BAD_HEAD;
    if (r->tail - head >= r->entries)
        return SHM_FULL;
    uint64_t words[2] = {block, generation};
    memcpy(r->ring + (r->tail & (r->entries - 1)) * SHM_RELEASE_ENTRY, words, sizeof words);
    SHM_STEP(release_entry_written);
    r->tail += 1;
    shm_store_release(r->tail_word, r->tail); /* [release-tail] publish: meets the acquire in shm_reaper_take */
    SHM_STEP(release_tail_stored);
    return SHM_OK;
}

struct shm_reaper {
    const uint8_t *ring;        /* in the peer's segment */
    uint64_t entries;
    const shm_word *tail_word;  /* in the peer's segment */
    shm_word *head_word;        /* in my segment */
    uint64_t head;
};

static inline enum shm_status shm_reaper_take(struct shm_reaper *r, uint64_t *block, uint64_t *generation)
{
    uint64_t tail = shm_load_acquire(r->tail_word); /* [release-tail] meets the publish in shm_releaser_push */
    SHM_STEP(reap_tail_loaded);
    if (tail == r->head)
        return SHM_EMPTY;
    if (tail < r->head || tail - r->head > r->entries)
        return SHM_BAD_TAIL;
    const uint8_t *at = r->ring + (r->head & (r->entries - 1)) * SHM_RELEASE_ENTRY;
    *block = shm_ring_word(at);
    *generation = shm_ring_word(at + 8);
    r->head += 1;
    SHM_STEP(reap_entry_loaded);
    shm_store_release(r->head_word, r->head); /* [release-head] publish: meets the acquire in shm_releaser_push */
    SHM_STEP(reap_head_stored);
    return SHM_OK;
}

#endif
