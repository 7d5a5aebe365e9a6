/* fuzz_references.c: the table of references at the beginning of a payload, whose bytes are the input.
 *
 * The first bytes say how many references are allowed and how long the slab is; the rest is the payload. It is a private
 * copy in its receiver, so there is no other thread here. What is accepted is compared with sums that have no limit, and
 * touched in a slab of the exact size.
 */
#define _GNU_SOURCE
#include "fuzz.h"

#include "references.h"

enum { MOST_SLAB = 64 };

typedef unsigned __int128 wide;

static uint8_t *exact(uint64_t bytes)
{
    uint8_t *memory = calloc(1, bytes ? bytes : 1);
    MUST(memory);
    return memory;
}

static void locate(const struct shm_reference *reference, const uint8_t *slab, uint64_t slab_bytes)
{
    uint64_t at;
    wide first = (wide)(reference->block & UINT32_MAX) * SHM_GRANULE + reference->offset;
    bool lies = shm_reference_locate(reference, slab_bytes, &at);
    MUST(lies == (first + reference->nbytes <= slab_bytes));
    if (lies) {
        MUST(at == first);
        touch(slab + at, reference->nbytes);
    }
    MUST(shm_reference_is_peer_owned(reference) == (reference->block >> 63 == 1));
    MUST(shm_reference_extent(reference) == (reference->block >> 32 & INT32_MAX));
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct script script = {input, size};
    uint64_t most = next_number(&script, 1), slab_bytes = next_byte(&script) % MOST_SLAB * SHM_GRANULE;
    uint64_t length = script.left;
    uint8_t *payload = exact(length), *slab = exact(slab_bytes);
    memcpy(payload, script.at, length);
    uint32_t words[2] = {0, 0}, count = UINT32_MAX;
    memcpy(words, payload, length < sizeof words ? 0 : sizeof words);
    enum shm_references_status status = shm_references_check(payload, length, most, &count);
    bool whole = length >= 8 && !words[1] && words[0] <= most && 8 + (wide)words[0] * 32 <= length;
    MUST((status == SHM_REFERENCES_OK) == whole);
    MUST(count == words[0]);
    if (whole) {
        uint64_t table = shm_references_bytes(count);
        uint8_t *again = exact(table);
        shm_references_begin(again, count);
        for (uint32_t i = 0; i < count; i++) {
            struct shm_reference reference = shm_reference_at(payload, i);
            locate(&reference, slab, slab_bytes);
            shm_reference_put(again, i, &reference);
        }
        MUST(memcmp(again, payload, table) == 0);
        free(again);
    }
    free(payload);
    free(slab);
    return 0;
}
