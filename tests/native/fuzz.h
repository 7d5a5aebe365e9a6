/* fuzz.h: what the fuzz targets share: reading the input, the other thread, and a main for a build without libFuzzer.
 *
 *   clang -fsanitize=fuzzer,address,undefined fuzz_record_ring.c ...            libFuzzer brings the main
 *   cc -DSHMRPC_STANDALONE -fsanitize=address,undefined fuzz_record_ring.c ...  [rounds] [seed] [files ...]
 *
 * The standalone main runs every file, then `rounds` inputs made of them by chance. It prints what it was about to run when
 * it ended, so that a crash can be replayed as a file.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "segments.h"

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

/* What a peer must not be able to bring about. Ends the program in the way that both fuzzers take for a crash. */
#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: must hold: %s\n", __FILE__, __LINE__, #condition);                                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* ---- the input, read as operations and numbers; zeros when it is over ---- */

struct script {
    const uint8_t *at;
    size_t left;
};

static inline uint8_t next_byte(struct script *script)
{
    if (!script->left)
        return 0;
    script->left--;
    return *script->at++;
}

/* A small multiple of `unit` from one byte, or any number at all from nine. */
static inline uint64_t next_number(struct script *script, uint64_t unit)
{
    uint8_t first = next_byte(script);
    if (first < 224)
        return first * unit;
    uint64_t number = 0;
    for (int i = 0; i < 8; i++)
        number |= (uint64_t)next_byte(script) << 8 * i;
    return number;
}

/* ---- the other thread, which changes words under the eyes of whoever reads them ---- */

enum { WORDS = 16, BURST = 64, IDLE_TURNS = 4000, MOST_TURNS = 500, YIELDS_PER = 512 };

struct scribbled {
    shm_word *ring;
    size_t ring_words;
    shm_word *positions[2];
};

static _Atomic(const struct scribbled *) scribbling; /* what is changed now; NULL: nothing. Never freed. */
static shm_word scribbled_values[WORDS];             /* what may be written: words of the input */
static shm_word bursts;                              /* how often BURST words were written */

#if defined(__clang__) && __has_attribute(no_sanitize)
__attribute__((no_sanitize("coverage"))) /* what it does is no merit of the input */
#endif
static inline void *
scribble(void *unused)
{
    uint64_t random = 17;
    (void)unused;
    for (int idle = 0;;) {
        const struct scribbled *now = atomic_load(&scribbling);
        if (!now) {
            if (++idle < IDLE_TURNS)
                __asm__ volatile("" ::: "memory");
            else
                sched_yield();
            continue;
        }
        idle = 0;
        for (int i = 0; i < BURST; i++) {
            random = random * UINT64_C(6364136223846793005) + 1442695040888963407; /* no call, which would count */
            uint64_t dice = random >> 32, value = atomic_load_explicit(&scribbled_values[dice % WORDS], memory_order_relaxed);
            shm_word *word = &now->ring[dice / WORDS % now->ring_words];
            if (dice >> 28 < 4) {
                word = now->positions[dice >> 28 & 1];
                value = dice >> 28 & 2 ? value : value % 64 * 8;
            }
            atomic_store_explicit(word, value, memory_order_relaxed);
        }
        atomic_fetch_add(&bursts, 1);
    }
    return NULL;
}

/* From now on the other thread writes words of the input over what `now` says, until scribble_end. */
static inline void scribble_begin(const struct scribbled *now, const uint8_t *input, size_t size)
{
    static pthread_t thread;
    static bool runs;
    if (!runs) {
        MUST(pthread_create(&thread, NULL, scribble, NULL) == 0);
        runs = true;
    }
    for (size_t i = 0; i < WORDS; i++) {
        uint64_t value = 0;
        if ((i + 1) * sizeof value <= size)
            memcpy(&value, input + i * sizeof value, sizeof value);
        shm_store_relaxed(&scribbled_values[i], value);
    }
    uint64_t before = atomic_load(&bursts);
    atomic_store(&scribbling, now);
    for (unsigned turns = 0; turns < MOST_TURNS && atomic_load(&bursts) == before; turns++)
        shm_pause(); /* else it would be over before the other thread knew; where that does not run just now, so be it */
}

static inline void scribble_end(void)
{
    atomic_store(&scribbling, NULL);
}

#ifdef SHMRPC_STEPS
/* Whoever is being written over is late now and then, between any two accesses; or the other thread gets its processor. */
void shm_step(enum shm_step_name step)
{
    static uint64_t random = 23;
    (void)step;
    if (!atomic_load_explicit(&scribbling, memory_order_relaxed))
        return;
    if (random_below(&random, YIELDS_PER) == 0)
        sched_yield();
    else if (random_below(&random, 4) == 0)
        for (uint64_t turns = random_below(&random, 400); turns; turns--)
            __asm__ volatile("" ::: "memory");
}
#endif

/* Reads all of what was handed out: the address sanitizer looks. */
static inline void touch(const uint8_t *bytes, size_t count)
{
    static volatile uint8_t sum;
    for (size_t i = 0; i < count; i++)
        sum = (uint8_t)(sum + bytes[i]);
}

/* ---- the main of a build without libFuzzer ---- */

#ifdef SHMRPC_STANDALONE
enum { MOST_FILES = 64, MOST_BYTES = 1024, MOST_CHANGES = 6, STANDALONE_SECONDS = 100 };

struct seed {
    uint8_t bytes[MOST_BYTES];
    size_t size;
};

static struct seed seeds[MOST_FILES], current;
static size_t seed_count;

static inline void print_current(int signal_number)
{
    fprintf(stderr, "the input was");
    for (size_t i = 0; i < current.size; i++)
        fprintf(stderr, " %02x", current.bytes[i]);
    fprintf(stderr, "\n");
    if (signal_number) {
        signal(signal_number, SIG_DFL);
        raise(signal_number);
    }
}

#if defined(__SANITIZE_ADDRESS__)
void __asan_on_error(void);
void __asan_on_error(void) /* the sanitizer calls it before it reports */
{
    print_current(0);
}
#endif

static inline void change(struct seed *input, uint64_t *random)
{
    static const uint8_t telling[] = {0, 1, 2, 7, 8, 16, 24, 63, 64, 127, 128, 223, 224, 254, 255};
    size_t at = input->size ? random_below(random, input->size) : 0;
    switch (random_below(random, 7)) {
    case 0: /* one bit */
        input->bytes[at] ^= (uint8_t)(1u << random_below(random, 8));
        break;
    case 1: /* one byte */
        input->bytes[at] = (uint8_t)next_random(random);
        break;
    case 2:
        input->bytes[at] = telling[random_below(random, sizeof telling)];
        break;
    case 3: /* longer */
        if (input->size < MOST_BYTES) {
            memmove(input->bytes + at + 1, input->bytes + at, input->size - at);
            input->bytes[at] = (uint8_t)next_random(random);
            input->size++;
        }
        break;
    case 4: /* shorter */
        if (input->size > 1) {
            memmove(input->bytes + at, input->bytes + at + 1, input->size - at - 1);
            input->size--;
        }
        break;
    case 5: { /* part of another */
        const struct seed *other = &seeds[random_below(random, seed_count)];
        size_t count = other->size ? random_below(random, other->size) + 1 : 0;
        if (at + count <= MOST_BYTES) {
            memcpy(input->bytes + at, other->bytes + random_below(random, other->size - count + 1), count);
            if (at + count > input->size)
                input->size = at + count;
        }
        break;
    }
    default: /* eight telling bytes, as a number is read */
        for (size_t i = at; i < at + 8 && i < input->size; i++)
            input->bytes[i] = random_below(random, 2) ? 0xff : telling[random_below(random, sizeof telling)];
    }
}

int main(int argc, char **argv)
{
    uint64_t rounds = number_argument(argc, argv, 1, 10000), random = number_argument(argc, argv, 2, 1) * 2 + 1;
    alarm(STANDALONE_SECONDS);
    signal(SIGABRT, print_current);
    signal(SIGALRM, print_current);
    for (int i = 3; i < argc; i++) {
        CHECK(seed_count < MOST_FILES);
        struct seed *seed = &seeds[seed_count++];
        FILE *file = fopen(argv[i], "rb");
        CHECK(file);
        seed->size = fread(seed->bytes, 1, sizeof seed->bytes, file);
        fclose(file);
        current = *seed;
        LLVMFuzzerTestOneInput(seed->bytes, seed->size);
    }
    CHECK(seed_count > 0);
    for (uint64_t round = 0; round < rounds; round++) {
        current = seeds[random_below(&random, seed_count)];
        for (uint64_t left = 1 + random_below(&random, MOST_CHANGES); left; left--)
            change(&current, &random);
        uint8_t *input = malloc(current.size ? current.size : 1); /* of the exact size */
        CHECK(input);
        memcpy(input, current.bytes, current.size);
        LLVMFuzzerTestOneInput(input, current.size);
        free(input);
    }
    printf("executions: %" PRIu64 "\n", rounds + seed_count);
    return 0;
}
#endif

#endif
