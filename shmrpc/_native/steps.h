/* steps.h: numbered steps, one between every two accesses whose order matters. Plain C11, no Python.
 *
 * A normal build has none of them: SHM_STEP is nothing. With SHMRPC_STEPS each calls shm_step, which the program supplies: to
 * be delayed there, to die there, or to count. steps.c does that for the extension, as SHMRPC_STEP in the environment says.
 *
 * The names are those of the code: a step lies behind what it is called after. Numbers are for reports; use the names.
 */
#ifndef SHMRPC_STEPS_H
#define SHMRPC_STEPS_H

#define SHM_EACH_STEP(STEP)                                                                                            \
    /* ring.h, shm_producer_push and _refresh */                                                                       \
    STEP(publish_begun)          /* there is room, nothing is written */                                               \
    STEP(publish_pad_written)    /* the rest of the ring is given away */                                              \
    STEP(publish_header_written) /* without its payload */                                                             \
    STEP(publish_record_written) /* whole, and nobody can know of it */                                                \
    STEP(publish_tail_stored)    /* published, and nobody was rung */                                                  \
    STEP(refresh_head_loaded)    /* the peer's position, not yet checked */                                            \
    /* wake.h */                                                                                                       \
    STEP(ringer_fenced)          /* behind the fence, before the epoch is loaded */                                    \
    STEP(ringer_epoch_loaded)    /* before it is judged */                                                             \
    STEP(ringer_ring_due)        /* remembered as rung, and not rung */                                                \
    STEP(announce_epoch_loaded)  /* before it is judged */                                                             \
    STEP(announce_ring_due)      /* told as a ring, and not rung */                                                    \
    STEP(arm_begun)              /* awake still */                                                                     \
    STEP(arm_epoch_stored)       /* odd, before the fence */                                                           \
    STEP(arm_fenced)             /* before the last look */                                                            \
    STEP(disarm_begun)           /* woken, and armed still */                                                          \
    STEP(disarm_epoch_stored)    /* even, before the look */                                                           \
    /* ring.h, shm_consumer_take and _commit */                                                                        \
    STEP(take_tail_loaded)       /* the peer's position, not yet checked */                                            \
    STEP(take_word_loaded)       /* length and kind, not yet checked */                                                \
    STEP(take_pad_passed)        /* the rest of the ring was skipped */                                                \
    STEP(take_header_loaded)     /* checked; the payload is in the ring still */                                       \
    STEP(commit_begun)           /* taken, and the room not given back */                                              \
    STEP(commit_head_stored)     /* given back, and nobody was rung */                                                 \
    /* ring.h, shm_releaser_push */                                                                                    \
    STEP(release_begun)          /* the block is ours still */                                                         \
    STEP(release_head_loaded)    /* the peer's position, not yet checked */                                            \
    STEP(release_entry_written)  /* and nobody can know of it */                                                       \
    STEP(release_tail_stored)    /* gone home, and nobody was rung */                                                  \
    /* ring.h, shm_reaper_take */                                                                                      \
    STEP(reap_tail_loaded)       /* the peer's position, not yet checked */                                            \
    STEP(reap_entry_loaded)      /* copied, and not given back */                                                      \
    STEP(reap_head_stored)       /* given back, and not judged */                                                      \
    /* references.h and references.c */                                                                                \
    STEP(references_counted)     /* the count was copied, and not checked */                                           \
    STEP(references_copied)      /* one reference was copied, and not checked */                                       \
    STEP(references_opened)      /* every View is open, and none owes a release */                                     \
    STEP(references_owed)        /* each View owes its release */                                                      \
    STEP(references_packed)      /* a table was written */                                                             \
    /* ledger.c */                                                                                                     \
    STEP(lend_numbered)          /* the lease has a number, and is not put down */                                     \
    STEP(lend_put_down)          /* and the block does not count it */                                                 \
    STEP(lend_counted)           /* lent, and nobody was told */                                                       \
    STEP(refer_written)          /* a payload refers to a lease that is not out */                                     \
    STEP(take_back_found)        /* the lease is out, and is that of its block */                                      \
    STEP(take_back_struck)       /* out no more, and the block counts it still */                                      \
    STEP(take_back_ended)        /* the block is at home */                                                            \
    /* release_types.c, producer.c, consumer.c, requester.c */                                                         \
    STEP(view_died)              /* and its block is not on the way home */                                            \
    STEP(room_wanted)            /* armed: the producer tries once more */                                             \
    STEP(room_found)             /* disarmed */                                                                        \
    STEP(consumer_looked)        /* armed, and has looked once more */                                                 \
    STEP(payload_copied)         /* out of the ring, and its room not given back */                                    \
    STEP(record_handled)         /* one record was given to its handler or waiter */                                   \
    STEP(call_pending)           /* numbered and kept, and not published */                                            \
    STEP(call_published)         /* the request was offered to the ring */                                             \
    STEP(call_lent)              /* a request with a lease that is out, and is not published */

enum shm_step_name {
    SHM_STEP_none = 0,
#define SHM_STEP_NUMBER(name) SHM_STEP_##name,
    SHM_EACH_STEP(SHM_STEP_NUMBER)
#undef SHM_STEP_NUMBER
    SHM_STEPS /* one more than the last */
};

#ifdef SHMRPC_STEPS
void shm_step(enum shm_step_name step);
#define SHM_STEP(name) shm_step(SHM_STEP_##name)
#else
#define SHM_STEP(name) ((void)0)
#endif

#endif
