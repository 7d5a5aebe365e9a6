/* wake.h: the doorbell protocol. A sleeper declares that it wants to be rung, a ringer finds out whether it must ring.
 *
 * The declaration is an epoch, not a flag: odd means "armed". A ringer remembers the last epoch that it rang, so it rings
 * once per sleep, and an old "armed" that it reads late cannot swallow the wake-up of the next sleep.
 *
 *   sleeper                               ringer
 *   epoch = odd          (store)          work is published  (release-store)
 *   fence [sleeper]                       fence [ringer]
 *   look at the work     (load)           look at the epoch  (acquire-load)
 *
 * Of the two loads at least one sees the other side's store, because of the two fences: either the sleeper finds the
 * work, or the ringer finds the armed epoch. Without either fence both can miss, on x86 too (store buffers).
 */
#ifndef SHMRPC_WAKE_H
#define SHMRPC_WAKE_H

#include <stdbool.h>

#include "atomics.h"

struct shm_sleeper {
    shm_word *word;  /* in my segment */
    uint64_t epoch;  /* private copy of *word: I am its only writer */
};

struct shm_ringer {
    const shm_word *word;  /* in the peer's segment */
    uint64_t rung;         /* the last epoch that I rang */
};

static inline bool shm_sleeper_armed(const struct shm_sleeper *s)
{
    return (s->epoch & 1) != 0;
}

/* Arms. The caller MUST look for work once more after this and before it sleeps. */
static inline void shm_sleeper_arm(struct shm_sleeper *s)
{
    if (!shm_sleeper_armed(s)) {
        s->epoch += 1;
        shm_store_relaxed(s->word, s->epoch);
    }
    shm_fence_sleeper(); /* [sleeper] meets [ringer] in shm_ringer_must_ring */
}

static inline void shm_sleeper_disarm(struct shm_sleeper *s)
{
    if (shm_sleeper_armed(s)) {
        s->epoch += 1;
        shm_store_relaxed(s->word, s->epoch);
    }
}

/* Whether the doorbell must be rung now, for work that was published before this call. */
static inline bool shm_ringer_must_ring(struct shm_ringer *r)
{
    shm_fence_ringer(); /* [ringer] meets [sleeper] in shm_sleeper_arm */
    uint64_t epoch = shm_load_acquire(r->word);
    if ((epoch & 1) == 0 || epoch == r->rung)
        return false;
    r->rung = epoch;
    return true;
}

#endif
