/* fuzz_release_ring.c: both ends of the release ring against a peer whose words and bytes are the input.
 *
 * As in fuzz_record_ring.c: the first byte says whether another thread writes over the peer's words meanwhile, then come
 * operations, each with its numbers.
 */
#define _GNU_SOURCE
#include "fuzz.h"

enum { ENTRIES = 16, RING_BYTES = ENTRIES * SHM_RELEASE_ENTRY };

/* `theirs` is the peer's ring, which I read; `mine` is mine, which I fill. The second pair is for inputs with the other
 * thread, which may be late.
 */
static struct segments pairs[2];
static struct scribbled scribbled;

static void take(struct shm_reaper *reaper, const struct segments *both, bool alone)
{
    uint64_t block = 0, generation = 0, head = reaper->head, said = shm_load_relaxed(reaper->tail_word);
    enum shm_status status = shm_reaper_take(reaper, &block, &generation);
    MUST(reaper->head == head + (status == SHM_OK));
    MUST(shm_load_relaxed(reaper->head_word) == reaper->head);
    MUST(status == SHM_OK || status == SHM_EMPTY || status == SHM_BAD_TAIL);
    if (!alone)
        return;
    bool in_range = said > head && said - head <= ENTRIES;
    MUST(status == (said == head ? SHM_EMPTY : in_range ? SHM_OK : SHM_BAD_TAIL));
    if (status == SHM_OK) {
        uint64_t words[2];
        memcpy(words, both->theirs.releases + head % ENTRIES * sizeof words, sizeof words);
        MUST(block == words[0] && generation == words[1]);
    }
}

/* What the peer has not taken by its own words stays; a push that fails changes nothing. */
static void push(struct shm_releaser *releaser, uint64_t block, bool alone)
{
    uint8_t before[RING_BYTES];
    memcpy(before, releaser->ring, sizeof before);
    uint64_t tail = releaser->tail, said = shm_load_relaxed(releaser->head_word);
    enum shm_status status = shm_releaser_push(releaser, block, ~block);
    MUST(releaser->tail == tail + (status == SHM_OK));
    MUST(shm_load_relaxed(releaser->tail_word) == releaser->tail);
    for (size_t i = 0; i < RING_BYTES; i++)
        MUST(before[i] == releaser->ring[i] || (status == SHM_OK && i / SHM_RELEASE_ENTRY == tail % ENTRIES));
    if (alone)
        MUST(status == (said > tail ? SHM_BAD_HEAD : tail - said >= ENTRIES ? SHM_FULL : SHM_OK));
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct script script = {input, size};
    bool alone = !(next_byte(&script) & 1);
    struct segments *both = &pairs[!alone];
    if (!both->release_entries)
        *both = segments_new(64, ENTRIES);
    shm_word *said_tail = word_of(&both->theirs, SHM_CURSOR_RELEASE_TAIL);
    shm_word *said_head = word_of(&both->theirs, SHM_CURSOR_RELEASE_HEAD);
    shm_store_relaxed(said_tail, 0);
    shm_store_relaxed(said_head, 0);
    shm_store_relaxed(word_of(&both->mine, SHM_CURSOR_RELEASE_HEAD), 0);
    shm_store_relaxed(word_of(&both->mine, SHM_CURSOR_RELEASE_TAIL), 0);
    struct shm_reaper reaper = reaper_of(both);
    struct shm_releaser releaser = {.ring = both->mine.releases,
                                    .entries = ENTRIES,
                                    .tail_word = word_of(&both->mine, SHM_CURSOR_RELEASE_TAIL),
                                    .head_word = said_head};
    if (!alone) {
        if (!scribbled.ring)
            scribbled = (struct scribbled){
                (shm_word *)(void *)both->theirs.releases, RING_BYTES / sizeof(shm_word), {said_tail, said_head}};
        scribble_begin(&scribbled, input, size);
    }
    while (script.left) {
        uint64_t at;
        switch (next_byte(&script) % 6) {
        case 0:
            shm_store_relaxed(said_tail, next_number(&script, 1));
            break;
        case 1:
            shm_store_relaxed(said_tail, shm_load_relaxed(said_tail) + next_number(&script, 1) % (ENTRIES + 2));
            break;
        case 2:
            for (int i = 0; i < ENTRIES + 1; i++)
                take(&reaper, both, alone);
            break;
        case 3:
            at = next_number(&script, 1) % RING_BYTES;
            both->theirs.releases[at] = next_byte(&script);
            break;
        case 4:
            shm_store_relaxed(said_head, next_number(&script, 1));
            break;
        default:
            push(&releaser, next_number(&script, 1), alone);
        }
    }
    scribble_end();
    return 0;
}
