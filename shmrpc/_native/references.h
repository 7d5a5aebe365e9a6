/* references.h: the table of references at the beginning of a payload whose buffers travel out of band. Plain C11, no
 * Python.
 *
 *   u32 count, u32 zero, then count times, u64 each: block, generation, offset, nbytes; then the body.
 *
 * A block is named by its extent (31 bits) and, in the low half, its first granule; the top bit says that it belongs to
 * the receiver of the record. The payload is a private copy by now, but its words are the peer's: all of them are hostile.
 */
#ifndef SHMRPC_REFERENCES_H
#define SHMRPC_REFERENCES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "layout.h"
#include "steps.h"

#define SHM_REFERENCES_HEADER 8
#define SHM_REFERENCE 32
#define SHM_PEER_OWNED (UINT64_C(1) << 63)

struct shm_reference {
    uint64_t block;
    uint64_t generation;
    uint64_t offset; /* bytes from the beginning of the block */
    uint64_t nbytes;
};

_Static_assert(sizeof(struct shm_reference) == SHM_REFERENCE, "a reference has no padding");

enum shm_references_status {
    SHM_REFERENCES_OK = 0,
    SHM_REFERENCES_CUT,   /* the payload ends inside of its table */
    SHM_REFERENCES_MANY,  /* more references than are allowed */
    SHM_REFERENCES_DIRTY, /* the word that must be zero is not */
};

/* How long a table is, bytes. */
static inline uint64_t shm_references_bytes(uint64_t count)
{
    return SHM_REFERENCES_HEADER + count * SHM_REFERENCE;
}

/* Checks that a payload begins with a whole table of at most `most` references; *count is set from four bytes on. */
static inline enum shm_references_status shm_references_check(const uint8_t *payload, uint64_t length, uint64_t most,
                                                              uint32_t *count)
{
    uint32_t words[2] = {0, 0};
    if (length < sizeof words) {
        *count = 0;
        return SHM_REFERENCES_CUT;
    }
    memcpy(words, payload, sizeof words);
    *count = words[0];
    SHM_STEP(references_counted);
    if (words[1])
        return SHM_REFERENCES_DIRTY;
    if (*count > most)
        return SHM_REFERENCES_MANY;
    return shm_references_bytes(*count) > length ? SHM_REFERENCES_CUT : SHM_REFERENCES_OK;
}

/* A reference of a table that was checked. */
static inline struct shm_reference shm_reference_at(const uint8_t *payload, uint32_t index)
{
    struct shm_reference reference;
    memcpy(&reference, payload + shm_references_bytes(index), sizeof reference);
    SHM_STEP(references_copied);
    return reference;
}

static inline bool shm_reference_is_peer_owned(const struct shm_reference *reference)
{
    return (reference->block & SHM_PEER_OWNED) != 0;
}

static inline uint32_t shm_reference_extent(const struct shm_reference *reference)
{
    return (uint32_t)((reference->block & ~SHM_PEER_OWNED) >> 32);
}

/* Where the bytes begin, from the beginning of a slab of `slab_bytes`. False: they do not lie in it. */
static inline bool shm_reference_locate(const struct shm_reference *reference, uint64_t slab_bytes, uint64_t *at)
{
    uint64_t first = (reference->block & UINT32_MAX) * SHM_GRANULE; /* below 1 << 42 */
    if (first > slab_bytes || reference->offset > slab_bytes - first)
        return false;
    *at = first + reference->offset;
    return reference->nbytes <= slab_bytes - *at;
}

/* Begins a table; `payload` has room for shm_references_bytes(count). */
static inline void shm_references_begin(uint8_t *payload, uint32_t count)
{
    const uint32_t words[2] = {count, 0};
    memcpy(payload, words, sizeof words);
}

static inline void shm_reference_put(uint8_t *payload, uint32_t index, const struct shm_reference *reference)
{
    memcpy(payload + shm_references_bytes(index), reference, sizeof *reference);
}

#endif
