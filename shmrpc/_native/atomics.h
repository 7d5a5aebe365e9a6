/* atomics.h: every memory-ordering primitive of shmrpc, and nothing else.
 *
 * Each ordering point in this directory carries a label [name]; an acquire names the release that it meets, and a
 * fence names the fence on the other side. docs/specification.md lists the pairs.
 *
 * The SHMRPC_MUTANT_* switches weaken one ordering point each. They exist for the tests, which assert that every
 * mutant is caught; a normal build defines none of them.
 */
#ifndef SHMRPC_ATOMICS_H
#define SHMRPC_ATOMICS_H

#include <stdatomic.h>
#include <stdint.h>

typedef _Atomic uint64_t shm_word; /* one shared word: exactly one process writes it */

_Static_assert(sizeof(shm_word) == 8, "a shared word is eight bytes");

static inline uint64_t shm_load_acquire(const shm_word *word)
{
    return atomic_load_explicit(word, memory_order_acquire);
}

static inline uint64_t shm_load_relaxed(const shm_word *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static inline void shm_store_relaxed(shm_word *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

/* publish: makes every earlier write of this thread visible to whoever loads `value` with acquire. */
static inline void shm_store_release(shm_word *word, uint64_t value)
{
#ifdef SHMRPC_MUTANT_RELAXED_PUBLISH
    atomic_store_explicit(word, value, memory_order_relaxed);
#else
    atomic_store_explicit(word, value, memory_order_release);
#endif
}

/* Orders an earlier store before a later load, which neither acquire nor release does, on x86 neither. */
static inline void shm_fence_ringer(void)
{
#ifndef SHMRPC_MUTANT_NO_RINGER_FENCE
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

static inline void shm_fence_sleeper(void)
{
#ifndef SHMRPC_MUTANT_NO_SLEEPER_FENCE
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* A hint to the processor that this is a spin loop. */
static inline void shm_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield" ::: "memory");
#endif
}

#endif
