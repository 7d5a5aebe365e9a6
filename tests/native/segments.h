/* segments.h: two segments in one process, and the ends of the rings on them.
 *
 * A segment's cursor page and its rings are separate allocations of the exact size, so that the address sanitizer sees
 * an access that is one byte outside.
 */
#ifndef SEGMENTS_H
#define SEGMENTS_H

#include "check.h"
#include "ring.h"
#include "wake.h"

struct segment {
    uint8_t *cursors; /* as if the segment began here: the offsets of layout.h apply */
    uint8_t *ring;
    uint8_t *releases;
};

struct segments {
    struct segment mine, theirs;
    uint64_t ring_bytes, release_entries;
};

static inline shm_word *word_of(const struct segment *segment, size_t offset)
{
    return (shm_word *)(void *)(segment->cursors + offset);
}

static inline struct segment segment_new(uint64_t ring_bytes, uint64_t release_entries)
{
    struct segment s = {
        .cursors = calloc(1, SHM_CURSOR_END),
        .ring = malloc(ring_bytes),
        .releases = malloc(release_entries * SHM_RELEASE_ENTRY),
    };
    CHECK(s.cursors && s.ring && s.releases);
    memset(s.ring, 0xee, ring_bytes); /* nothing may depend on a ring that begins with zeros */
    memset(s.releases, 0xee, release_entries * SHM_RELEASE_ENTRY);
    return s;
}

static inline struct segments segments_new(uint64_t ring_bytes, uint64_t release_entries)
{
    return (struct segments){
        .mine = segment_new(ring_bytes, release_entries),
        .theirs = segment_new(ring_bytes, release_entries),
        .ring_bytes = ring_bytes,
        .release_entries = release_entries,
    };
}

static inline void segment_free(struct segment *s)
{
    free(s->cursors);
    free(s->ring);
    free(s->releases);
}

static inline void segments_free(struct segments *s)
{
    segment_free(&s->mine);
    segment_free(&s->theirs);
}

/* The sending end, which is mine, and the receiving end, which is theirs, of my record ring. */
static inline struct shm_producer producer_of(const struct segments *s)
{
    return (struct shm_producer){
        .ring = s->mine.ring,
        .size = s->ring_bytes,
        .tail_word = word_of(&s->mine, SHM_CURSOR_TAIL),
        .head_word = word_of(&s->theirs, SHM_CURSOR_HEAD),
    };
}

static inline struct shm_consumer consumer_of(const struct segments *s)
{
    return (struct shm_consumer){
        .ring = s->mine.ring,
        .size = s->ring_bytes,
        .tail_word = word_of(&s->mine, SHM_CURSOR_TAIL),
        .head_word = word_of(&s->theirs, SHM_CURSOR_HEAD),
    };
}

/* The sending end, which is theirs, and the receiving end, which is mine, of their release ring. */
static inline struct shm_releaser releaser_of(const struct segments *s)
{
    return (struct shm_releaser){
        .ring = s->theirs.releases,
        .entries = s->release_entries,
        .tail_word = word_of(&s->theirs, SHM_CURSOR_RELEASE_TAIL),
        .head_word = word_of(&s->mine, SHM_CURSOR_RELEASE_HEAD),
    };
}

static inline struct shm_reaper reaper_of(const struct segments *s)
{
    return (struct shm_reaper){
        .ring = s->theirs.releases,
        .entries = s->release_entries,
        .tail_word = word_of(&s->theirs, SHM_CURSOR_RELEASE_TAIL),
        .head_word = word_of(&s->mine, SHM_CURSOR_RELEASE_HEAD),
    };
}

/* Whoever waits for records sleeps on an epoch of theirs, whoever waits for room on one of mine. */
static inline struct shm_sleeper record_sleeper_of(const struct segments *s)
{
    return (struct shm_sleeper){.word = word_of(&s->theirs, SHM_CURSOR_DOORBELL_EPOCH)};
}

static inline struct shm_ringer record_ringer_of(const struct segments *s)
{
    return (struct shm_ringer){.word = word_of(&s->theirs, SHM_CURSOR_DOORBELL_EPOCH)};
}

static inline struct shm_sleeper room_sleeper_of(const struct segments *s)
{
    return (struct shm_sleeper){.word = word_of(&s->mine, SHM_CURSOR_ROOM_EPOCH)};
}

static inline struct shm_ringer room_ringer_of(const struct segments *s)
{
    return (struct shm_ringer){.word = word_of(&s->mine, SHM_CURSOR_ROOM_EPOCH)};
}

#endif
