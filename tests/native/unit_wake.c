/* unit_wake.c: the epochs of the doorbell protocol, step by step. */
#include "segments.h"

static struct segments both;
static struct shm_sleeper sleeper;
static struct shm_ringer ringer;
static struct shm_announcer announcer;

static void open_epoch(void)
{
    both = segments_new(64, 8);
    sleeper = record_sleeper_of(&both);
    ringer = record_ringer_of(&both);
    announcer = (struct shm_announcer){0};
}

static void nobody_rings_for_one_who_is_awake(void)
{
    open_epoch();
    CHECK(!shm_sleeper_armed(&sleeper));
    CHECK(!shm_ringer_must_ring(&ringer));
    segments_free(&both);
}

static void one_ring_is_due_for_each_sleep(void)
{
    open_epoch();
    for (int sleep = 0; sleep < 5; sleep++) {
        shm_sleeper_arm(&sleeper);
        CHECK(shm_sleeper_armed(&sleeper));
        CHECK(shm_ringer_must_ring(&ringer));
        CHECK(!shm_ringer_must_ring(&ringer));
        shm_sleeper_disarm(&sleeper);
        CHECK(!shm_sleeper_armed(&sleeper));
        CHECK(!shm_ringer_must_ring(&ringer));
    }
    segments_free(&both);
}

static void the_epoch_is_odd_while_armed_and_only_rises(void)
{
    open_epoch();
    const shm_word *word = word_of(&both.theirs, SHM_CURSOR_DOORBELL_EPOCH);
    CHECK_EQUAL(shm_load_relaxed(word), 0);
    shm_sleeper_arm(&sleeper);
    CHECK_EQUAL(shm_load_relaxed(word), 1);
    shm_sleeper_disarm(&sleeper);
    CHECK_EQUAL(shm_load_relaxed(word), 2);
    shm_sleeper_arm(&sleeper);
    CHECK_EQUAL(shm_load_relaxed(word), 3);
    segments_free(&both);
}

static void arming_twice_is_one_sleep_and_disarming_twice_one_waking(void)
{
    open_epoch();
    shm_sleeper_arm(&sleeper);
    shm_sleeper_arm(&sleeper);
    CHECK_EQUAL(sleeper.epoch, 1);
    CHECK(shm_ringer_must_ring(&ringer));
    shm_sleeper_arm(&sleeper);
    CHECK(!shm_ringer_must_ring(&ringer));
    shm_sleeper_disarm(&sleeper);
    shm_sleeper_disarm(&sleeper);
    CHECK_EQUAL(sleeper.epoch, 2);
    segments_free(&both);
}

static void a_ring_for_an_old_sleep_does_not_swallow_that_of_the_next(void)
{
    open_epoch();
    shm_sleeper_arm(&sleeper);
    CHECK(shm_ringer_must_ring(&ringer)); /* the ring itself is late, the sleeper woke by itself */
    shm_sleeper_disarm(&sleeper);
    shm_sleeper_arm(&sleeper);
    CHECK(shm_ringer_must_ring(&ringer)); /* a flag instead of an epoch would say no */
    segments_free(&both);
}

static void the_epoch_of_a_hostile_sleeper_can_only_ring_its_own_bell(void)
{
    open_epoch();
    const uint64_t values[] = {UINT64_MAX, 1, UINT64_MAX, 0, 3, 2};
    const bool expected[] = {true, true, true, false, true, false};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        shm_store_relaxed(word_of(&both.theirs, SHM_CURSOR_DOORBELL_EPOCH), values[i]);
        CHECK_EQUAL(shm_ringer_must_ring(&ringer), expected[i]);
        CHECK(!shm_ringer_must_ring(&ringer));
    }
    segments_free(&both);
}

static void room_and_records_have_epochs_of_their_own(void)
{
    open_epoch();
    struct shm_sleeper room_sleeper = room_sleeper_of(&both);
    struct shm_ringer room_ringer = room_ringer_of(&both);
    shm_sleeper_arm(&sleeper);
    CHECK(!shm_ringer_must_ring(&room_ringer));
    shm_sleeper_arm(&room_sleeper);
    CHECK(shm_ringer_must_ring(&room_ringer));
    CHECK(shm_ringer_must_ring(&ringer));
    segments_free(&both);
}

/* What a publish does: whether it rings. */
static bool publish(void)
{
    bool rings = shm_ringer_must_ring(&ringer);
    shm_announced(&announcer, rings);
    return rings;
}

static void a_sleeper_that_was_told_in_time_is_not_rung_again(void)
{
    open_epoch();
    shm_sleeper_arm(&sleeper);
    CHECK(shm_announce(&announcer, &ringer));
    CHECK(!publish()); /* it has not woken yet: the ring is on its way */
    shm_sleeper_disarm(&sleeper);
    shm_sleeper_arm(&sleeper);
    CHECK(shm_announce(&announcer, &ringer));
    shm_sleeper_disarm(&sleeper);
    CHECK(!publish()); /* it is awake */
    segments_free(&both);
}

static void a_sleeper_that_sleeps_again_after_it_was_told_is_rung(void)
{
    open_epoch();
    shm_sleeper_arm(&sleeper);
    CHECK(shm_announce(&announcer, &ringer));
    shm_sleeper_disarm(&sleeper);
    shm_sleeper_arm(&sleeper);
    CHECK(publish());
    CHECK(!publish());
    segments_free(&both);
}

static void one_who_is_awake_is_told_and_is_rung_when_it_falls_asleep(void)
{
    open_epoch();
    CHECK(shm_announce(&announcer, &ringer));
    CHECK_EQUAL(ringer.rung, 0);
    shm_sleeper_arm(&sleeper);
    CHECK(publish());
    segments_free(&both);
}

static void one_sleep_is_told_of_once(void)
{
    open_epoch();
    shm_sleeper_arm(&sleeper);
    CHECK(shm_announce(&announcer, &ringer));
    CHECK(!shm_announce(&announcer, &ringer));
    CHECK(!publish());
    CHECK(!shm_announce(&announcer, &ringer)); /* the ring is still not heard */
    segments_free(&both);
}

/* Announces until it is done, and gives how often it was not. */
static unsigned passed_over(void)
{
    unsigned count = 0;
    while (!shm_announce(&announcer, &ringer)) {
        CHECK(!announcer.out);
        shm_announced(&announcer, true);
        CHECK(++count < 1000);
    }
    return count;
}

static void one_who_never_stays_awake_for_it_is_told_less_and_less_often(void)
{
    open_epoch();
    const unsigned expected[] = {0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 64, 64};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        CHECK_EQUAL(passed_over(), expected[i]);
        shm_sleeper_disarm(&sleeper);
        shm_sleeper_arm(&sleeper);
        CHECK(publish());
        shm_sleeper_disarm(&sleeper);
    }
    CHECK_EQUAL(passed_over(), SHM_MOST_SIT_OUT);
    CHECK(!publish()); /* it stayed awake */
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(passed_over(), 0);
        CHECK(!publish());
    }
    segments_free(&both);
}

static void what_is_published_without_a_word_tells_nothing_of_announcements(void)
{
    open_epoch();
    for (int i = 0; i < 100; i++) {
        shm_sleeper_arm(&sleeper);
        CHECK(publish());
        shm_sleeper_disarm(&sleeper);
    }
    CHECK_EQUAL(announcer.vain, 0);
    CHECK(shm_announce(&announcer, &ringer));
    segments_free(&both);
}

static void every_word_of_the_cursor_page_has_a_line_of_its_own(void)
{
    const uint64_t offsets[] = {
        SHM_CURSOR_TAIL,         SHM_CURSOR_HEAD,           SHM_CURSOR_RELEASE_TAIL,
        SHM_CURSOR_RELEASE_HEAD, SHM_CURSOR_DOORBELL_EPOCH, SHM_CURSOR_ROOM_EPOCH,
    };
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        CHECK_EQUAL(offsets[i] % 128, 0);
        CHECK(offsets[i] + sizeof(shm_word) <= SHM_CURSOR_END);
        for (size_t j = 0; j < i; j++)
            CHECK(offsets[i] != offsets[j]);
    }
}

static void a_shared_word_is_written_in_one_piece(void)
{
    shm_word word = 0;
    CHECK(atomic_is_lock_free(&word));
    shm_pause();
}

int main(void)
{
    static const struct test tests[] = {
        TEST(nobody_rings_for_one_who_is_awake),
        TEST(one_ring_is_due_for_each_sleep),
        TEST(the_epoch_is_odd_while_armed_and_only_rises),
        TEST(arming_twice_is_one_sleep_and_disarming_twice_one_waking),
        TEST(a_ring_for_an_old_sleep_does_not_swallow_that_of_the_next),
        TEST(the_epoch_of_a_hostile_sleeper_can_only_ring_its_own_bell),
        TEST(room_and_records_have_epochs_of_their_own),
        TEST(a_sleeper_that_was_told_in_time_is_not_rung_again),
        TEST(a_sleeper_that_sleeps_again_after_it_was_told_is_rung),
        TEST(one_who_is_awake_is_told_and_is_rung_when_it_falls_asleep),
        TEST(one_sleep_is_told_of_once),
        TEST(one_who_never_stays_awake_for_it_is_told_less_and_less_often),
        TEST(what_is_published_without_a_word_tells_nothing_of_announcements),
        TEST(every_word_of_the_cursor_page_has_a_line_of_its_own),
        TEST(a_shared_word_is_written_in_one_piece),
    };
    return RUN(tests);
}
