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
#include "steps.h"

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
        SHM_STEP(arm_begun);
        s->epoch += 1;
        shm_store_relaxed(s->word, s->epoch);
        SHM_STEP(arm_epoch_stored);
    }
    shm_fence_sleeper(); /* [sleeper] meets [ringer] in shm_ringer_must_ring */
    SHM_STEP(arm_fenced);
}

static inline void shm_sleeper_disarm(struct shm_sleeper *s)
{
    if (shm_sleeper_armed(s)) {
        SHM_STEP(disarm_begun);
        s->epoch += 1;
        shm_store_relaxed(s->word, s->epoch);
        SHM_STEP(disarm_epoch_stored);
    }
}

/* Whether the doorbell must be rung now, for work that was published before this call. */
static inline bool shm_ringer_must_ring(struct shm_ringer *r)
{
    shm_fence_ringer(); /* [ringer] meets [sleeper] in shm_sleeper_arm */
    SHM_STEP(ringer_fenced);
    uint64_t epoch = shm_load_acquire(r->word);
    SHM_STEP(ringer_epoch_loaded);
    if ((epoch & 1) == 0 || epoch == r->rung)
        return false;
    r->rung = epoch;
    SHM_STEP(ringer_ring_due);
    return true;
}

/* Announcing: ringing ahead of work that takes a while to be written, so that the sleeper wakes meanwhile.
 *
 * To the protocol it is a spurious ring for an epoch that it remembers. If the sleeper is in that epoch still when the work
 * is published, the ring is on its way, and it looks after it has disarmed; else its epoch is another one, and the publish
 * rings. So nothing is ordered here: an epoch that is read late makes an announcement vain, and nothing else.
 */
struct shm_announcer {
    bool out;         /* announced, and not published yet */
    unsigned vain;    /* how many in a row the peer did not stay awake for */
    unsigned sit_out; /* how many not to make */
};

enum { SHM_VAIN_ALLOWED = 2, SHM_MOST_SIT_OUT = 64 };

/* Whether to ring now. A peer that is awake is told as well, since it may be about to sleep. */
static inline bool shm_announce(struct shm_announcer *a, struct shm_ringer *r)
{
    if (a->sit_out) {
        a->sit_out -= 1;
        return false;
    }
    a->out = true;
    uint64_t epoch = shm_load_relaxed(r->word);
    SHM_STEP(announce_epoch_loaded);
    if ((epoch & 1) == 0)
        return true;
    if (epoch == r->rung)
        return false; /* that ring has not been heard yet */
    r->rung = epoch;
    SHM_STEP(announce_ring_due);
    return true;
}

/* The work is published, and shm_ringer_must_ring said whether to ring for it. If so, the peer has slept again since the
 * announcement. One that goes on like that (it never polls, or shares this processor) is told less and less often.
 */
static inline void shm_announced(struct shm_announcer *a, bool rings)
{
    if (!a->out)
        return;
    a->out = false;
    if (!rings)
        a->vain = 0;
    else if (++a->vain > SHM_VAIN_ALLOWED)
        a->sit_out = a->vain > SHM_VAIN_ALLOWED + 6 ? SHM_MOST_SIT_OUT : 1u << (a->vain - SHM_VAIN_ALLOWED - 1);
}

#endif
