/* unit_references.c: the table of references that a payload begins with, and what a peer can write into it. */
#include "check.h"
#include "references.h"

enum { SLAB = 16 * SHM_GRANULE };

/* A payload of the exact size, so that the address sanitizer sees an access that is one byte outside. */
static uint8_t *payload_of(uint64_t bytes)
{
    uint8_t *payload = malloc(bytes ? bytes : 1);
    CHECK(payload);
    memset(payload, 0xee, bytes);
    return payload;
}

static struct shm_reference reference_to(uint64_t block, uint64_t offset, uint64_t nbytes)
{
    return (struct shm_reference){.block = block, .generation = 1, .offset = offset, .nbytes = nbytes};
}

static bool lies_in(uint64_t slab_bytes, uint64_t block, uint64_t offset, uint64_t nbytes)
{
    struct shm_reference reference = reference_to(block, offset, nbytes);
    uint64_t at = UINT64_MAX;
    bool lies = shm_reference_locate(&reference, slab_bytes, &at);
    if (lies)
        CHECK(at <= slab_bytes && nbytes <= slab_bytes - at);
    return lies;
}

static void what_was_written_is_read(void)
{
    const struct shm_reference sent[3] = {
        {.block = 1, .generation = UINT64_MAX, .offset = 3, .nbytes = 4},
        {.block = SHM_PEER_OWNED | UINT64_C(5) << 32 | 6, .generation = 7, .offset = 0, .nbytes = UINT64_MAX},
        {.block = 0, .generation = 0, .offset = UINT64_MAX, .nbytes = 0},
    };
    uint64_t bytes = shm_references_bytes(3);
    CHECK_EQUAL(bytes, 104);
    uint8_t *payload = payload_of(bytes);
    shm_references_begin(payload, 3);
    for (uint32_t i = 0; i < 3; i++)
        shm_reference_put(payload, i, &sent[i]);
    uint32_t count;
    CHECK_EQUAL(shm_references_check(payload, bytes, 3, &count), SHM_REFERENCES_OK);
    CHECK_EQUAL(count, 3);
    for (uint32_t i = 0; i < 3; i++) {
        struct shm_reference got = shm_reference_at(payload, i);
        CHECK_EQUAL(got.block, sent[i].block);
        CHECK_EQUAL(got.generation, sent[i].generation);
        CHECK_EQUAL(got.offset, sent[i].offset);
        CHECK_EQUAL(got.nbytes, sent[i].nbytes);
    }
    free(payload);
}

static void the_words_are_little_endian(void)
{
    static const uint8_t expected[40] = {1, 0, 0, 0, 0, 0, 0, 0, /* block */ 2, 0, 0, 0, 3, 0, 0, 0x80,
                                         /* generation */ 4, 0, 0, 0, 0, 0, 0, 0, /* offset */ 5, 0, 0, 0, 0, 0, 0, 0,
                                         /* nbytes */ 6, 0, 0, 0, 0, 0, 0, 0};
    uint8_t payload[40];
    struct shm_reference reference = {
        .block = SHM_PEER_OWNED | UINT64_C(3) << 32 | 2, .generation = 4, .offset = 5, .nbytes = 6};
    shm_references_begin(payload, 1);
    shm_reference_put(payload, 0, &reference);
    CHECK_EQUAL(memcmp(payload, expected, sizeof expected), 0);
}

static void a_block_says_whose_it_is_and_in_which_extent(void)
{
    struct shm_reference theirs = reference_to(UINT64_C(0x7fffffff) << 32 | UINT32_MAX, 0, 0);
    CHECK(!shm_reference_is_peer_owned(&theirs));
    CHECK_EQUAL(shm_reference_extent(&theirs), 0x7fffffff);
    struct shm_reference mine = reference_to(SHM_PEER_OWNED | UINT64_C(1) << 32, 0, 0);
    CHECK(shm_reference_is_peer_owned(&mine));
    CHECK_EQUAL(shm_reference_extent(&mine), 1);
}

static enum shm_references_status check(uint64_t bytes, uint32_t count, uint32_t zero, uint64_t most, uint32_t *counted)
{
    const uint32_t words[2] = {count, zero};
    uint8_t *payload = payload_of(bytes);
    memcpy(payload, words, bytes < sizeof words ? bytes : sizeof words);
    enum shm_references_status status = shm_references_check(payload, bytes, most, counted);
    free(payload);
    return status;
}

static void a_table_that_is_cut_off_is_refused(void)
{
    uint32_t count;
    for (uint64_t bytes = 0; bytes < 8; bytes++) {
        CHECK_EQUAL(check(bytes, 0, 0, 9, &count), SHM_REFERENCES_CUT);
        CHECK_EQUAL(count, 0);
    }
    CHECK_EQUAL(check(8, 0, 0, 0, &count), SHM_REFERENCES_OK);
    CHECK_EQUAL(check(8, 1, 0, 9, &count), SHM_REFERENCES_CUT);
    CHECK_EQUAL(check(39, 1, 0, 9, &count), SHM_REFERENCES_CUT);
    CHECK_EQUAL(count, 1);
    CHECK_EQUAL(check(40, 1, 0, 9, &count), SHM_REFERENCES_OK);
    CHECK_EQUAL(check(71, 2, 0, 9, &count), SHM_REFERENCES_CUT);
    CHECK_EQUAL(check(72, UINT32_MAX, 0, UINT64_MAX, &count), SHM_REFERENCES_CUT);
    CHECK_EQUAL(check(72, UINT32_C(1) << 27, 0, UINT64_MAX, &count), SHM_REFERENCES_CUT); /* 1 << 32 bytes */
}

static void more_references_than_allowed_are_refused(void)
{
    uint32_t count;
    CHECK_EQUAL(check(104, 3, 0, 2, &count), SHM_REFERENCES_MANY);
    CHECK_EQUAL(count, 3);
    CHECK_EQUAL(check(104, 3, 0, 3, &count), SHM_REFERENCES_OK);
    CHECK_EQUAL(check(104, UINT32_MAX, 0, 3, &count), SHM_REFERENCES_MANY);
    CHECK_EQUAL(check(104, 1, 0, 0, &count), SHM_REFERENCES_MANY);
}

static void the_word_that_must_be_zero_must_be_zero(void)
{
    uint32_t count;
    CHECK_EQUAL(check(40, 1, 1, 9, &count), SHM_REFERENCES_DIRTY);
    CHECK_EQUAL(check(8, 0, UINT32_C(1) << 31, 9, &count), SHM_REFERENCES_DIRTY);
}

static void bytes_inside_of_the_slab_are_found(void)
{
    struct shm_reference reference = reference_to(UINT64_C(9) << 32 | 3, 5, 7);
    uint64_t at;
    CHECK(shm_reference_locate(&reference, SLAB, &at));
    CHECK_EQUAL(at, 3 * SHM_GRANULE + 5);
    CHECK(lies_in(SLAB, 0, 0, SLAB));
    CHECK(lies_in(SLAB, 15, 0, SHM_GRANULE));
    CHECK(lies_in(SLAB, 15, SHM_GRANULE - 1, 1));
    CHECK(lies_in(SLAB, 16, 0, 0)); /* nothing, at the very end */
    CHECK(lies_in(SLAB, 0, SLAB, 0));
    CHECK(lies_in(0, 0, 0, 0));
}

static void bytes_outside_of_the_slab_are_refused(void)
{
    CHECK(!lies_in(SLAB, 0, 0, SLAB + 1));
    CHECK(!lies_in(SLAB, 0, 1, SLAB));
    CHECK(!lies_in(SLAB, 15, 0, SHM_GRANULE + 1));
    CHECK(!lies_in(SLAB, 15, SHM_GRANULE, 1));
    CHECK(!lies_in(SLAB, 16, 0, 1));
    CHECK(!lies_in(SLAB, 16, 1, 0));
    CHECK(!lies_in(SLAB, 17, 0, 0));
    CHECK(!lies_in(SLAB, UINT32_MAX, 0, 0));
    CHECK(!lies_in(0, 0, 0, 1));
}

static void sums_that_overflow_are_refused(void)
{
    CHECK(!lies_in(SLAB, 1, UINT64_MAX - SHM_GRANULE + 1, 1)); /* the offset brings it back to the beginning */
    CHECK(!lies_in(SLAB, 1, UINT64_MAX, 0));
    CHECK(!lies_in(SLAB, 0, 8, UINT64_MAX - 7));
    CHECK(!lies_in(SLAB, 15, 0, UINT64_MAX));
    CHECK(!lies_in(SLAB, UINT32_MAX, UINT64_MAX, UINT64_MAX));
    CHECK(!lies_in(INT64_MAX, UINT32_MAX, INT64_MAX, 1));
}

/* Whatever words a peer writes: what is accepted lies in the slab, by a sum that has no limit. */
static void garbage_lies_in_the_slab_or_is_refused(void)
{
    uint64_t random = 11;
    unsigned accepted = 0;
    for (int round = 0; round < 200000; round++) {
        uint64_t block = random_below(&random, 3) ? random_below(&random, 20) : next_random(&random);
        uint64_t offset = random_below(&random, 3) ? random_below(&random, SLAB) : next_random(&random);
        uint64_t nbytes = random_below(&random, 3) ? random_below(&random, SLAB) : next_random(&random);
        unsigned __int128 end = (unsigned __int128)(block & UINT32_MAX) * SHM_GRANULE;
        end = end + offset + nbytes;
        bool lies = lies_in(SLAB, block, offset, nbytes);
        CHECK(lies == (end <= SLAB));
        accepted += lies;
    }
    CHECK(accepted > 1000);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(what_was_written_is_read),
        TEST(the_words_are_little_endian),
        TEST(a_block_says_whose_it_is_and_in_which_extent),
        TEST(a_table_that_is_cut_off_is_refused),
        TEST(more_references_than_allowed_are_refused),
        TEST(the_word_that_must_be_zero_must_be_zero),
        TEST(bytes_inside_of_the_slab_are_found),
        TEST(bytes_outside_of_the_slab_are_refused),
        TEST(sums_that_overflow_are_refused),
        TEST(garbage_lies_in_the_slab_or_is_refused),
    };
    return RUN(tests);
}
