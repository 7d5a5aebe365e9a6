/* unit_release_ring.c: the release ring, with a peer that keeps the rules and with one that does not. */
#include "segments.h"

enum { ENTRIES = 8 };

static struct segments both;
static struct shm_releaser releaser;
static struct shm_reaper reaper;

static void open_ring(void)
{
    both = segments_new(64, ENTRIES);
    releaser = releaser_of(&both);
    reaper = reaper_of(&both);
}

static enum shm_status take_status(void)
{
    uint64_t block, generation;
    return shm_reaper_take(&reaper, &block, &generation);
}

static void take(uint64_t block, uint64_t generation)
{
    uint64_t got_block, got_generation;
    CHECK_EQUAL(shm_reaper_take(&reaper, &got_block, &got_generation), SHM_OK);
    CHECK_EQUAL(got_block, block);
    CHECK_EQUAL(got_generation, generation);
}

static void a_block_comes_home_with_its_generation(void)
{
    open_ring();
    CHECK_EQUAL(take_status(), SHM_EMPTY);
    CHECK_EQUAL(shm_releaser_push(&releaser, 7, UINT64_MAX), SHM_OK);
    take(7, UINT64_MAX);
    CHECK_EQUAL(take_status(), SHM_EMPTY);
    segments_free(&both);
}

static void it_holds_as_many_entries_as_it_says(void)
{
    open_ring();
    for (uint64_t i = 0; i < ENTRIES; i++)
        CHECK_EQUAL(shm_releaser_push(&releaser, i, i + 100), SHM_OK);
    CHECK_EQUAL(shm_releaser_push(&releaser, 99, 99), SHM_FULL);
    take(0, 100);
    CHECK_EQUAL(shm_releaser_push(&releaser, 8, 108), SHM_OK);
    for (uint64_t i = 1; i <= ENTRIES; i++)
        take(i, i + 100);
    CHECK_EQUAL(take_status(), SHM_EMPTY);
    segments_free(&both);
}

static void entries_keep_their_order_through_many_turns(void)
{
    open_ring();
    uint64_t random = 7, pushed = 0, taken = 0;
    while (taken < 10000) {
        if (random_below(&random, 2) && shm_releaser_push(&releaser, pushed, pushed * 3) == SHM_OK)
            pushed++;
        if (random_below(&random, 2) && taken < pushed) {
            take(taken, taken * 3);
            taken++;
        }
    }
    segments_free(&both);
}

static void a_position_ahead_of_what_was_released_is_refused(void)
{
    open_ring();
    CHECK_EQUAL(shm_releaser_push(&releaser, 1, 1), SHM_OK);
    shm_store_relaxed(word_of(&both.mine, SHM_CURSOR_RELEASE_HEAD), 2);
    CHECK_EQUAL(shm_releaser_push(&releaser, 2, 1), SHM_BAD_HEAD);
    CHECK_EQUAL(releaser.tail, 1);
    CHECK_EQUAL(shm_load_relaxed(releaser.tail_word), 1);
    segments_free(&both);
}

static void a_position_that_goes_back_makes_the_ring_full_and_nothing_worse(void)
{
    open_ring();
    for (uint64_t i = 0; i < ENTRIES; i++) {
        CHECK_EQUAL(shm_releaser_push(&releaser, i, 1), SHM_OK);
        take(i, 1);
    }
    shm_store_relaxed(word_of(&both.mine, SHM_CURSOR_RELEASE_HEAD), 0);
    CHECK_EQUAL(shm_releaser_push(&releaser, 9, 1), SHM_FULL);
    segments_free(&both);
}

static void a_tail_that_goes_back_is_refused(void)
{
    open_ring();
    CHECK_EQUAL(shm_releaser_push(&releaser, 1, 1), SHM_OK);
    take(1, 1);
    shm_store_relaxed(word_of(&both.theirs, SHM_CURSOR_RELEASE_TAIL), 0);
    CHECK_EQUAL(take_status(), SHM_BAD_TAIL);
    CHECK_EQUAL(reaper.head, 1);
    segments_free(&both);
}

static void a_tail_that_runs_over_is_refused(void)
{
    open_ring();
    shm_store_relaxed(word_of(&both.theirs, SHM_CURSOR_RELEASE_TAIL), ENTRIES);
    CHECK_EQUAL(take_status(), SHM_OK);
    shm_store_relaxed(word_of(&both.theirs, SHM_CURSOR_RELEASE_TAIL), ENTRIES + 2);
    CHECK_EQUAL(take_status(), SHM_BAD_TAIL);
    shm_store_relaxed(word_of(&both.theirs, SHM_CURSOR_RELEASE_TAIL), UINT64_MAX);
    CHECK_EQUAL(take_status(), SHM_BAD_TAIL);
    segments_free(&both);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(a_block_comes_home_with_its_generation),
        TEST(it_holds_as_many_entries_as_it_says),
        TEST(entries_keep_their_order_through_many_turns),
        TEST(a_position_ahead_of_what_was_released_is_refused),
        TEST(a_position_that_goes_back_makes_the_ring_full_and_nothing_worse),
        TEST(a_tail_that_goes_back_is_refused),
        TEST(a_tail_that_runs_over_is_refused),
    };
    return RUN(tests);
}
