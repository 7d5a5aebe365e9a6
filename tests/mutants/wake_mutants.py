"""The guards of the doorbell protocol, most of which no test of the running code can see missing: the model can."""

from typing import Final

from mutant import Mutant

WAKE: Final = (
    Mutant(
        "the ringer's fence stands before its look at the epoch",
        "shmrpc/_native/wake.h",
        "    shm_fence_ringer(); /* [ringer] meets [sleeper] in shm_sleeper_arm */\n    SHM_STEP(ringer_fenced);\n"
        "    uint64_t epoch = shm_load_acquire(r->word);",
        "    uint64_t epoch = shm_load_acquire(r->word);\n    SHM_STEP(ringer_fenced);\n"
        "    shm_fence_ringer(); /* [ringer] meets [sleeper] in shm_sleeper_arm */",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "the sleeper's fence",
        "shmrpc/_native/wake.h",
        "    shm_fence_sleeper(); /*",
        "    /*",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "the tail is published with release",
        "shmrpc/_native/ring.h",
        "shm_store_release(p->tail_word, p->tail); /* [tail]",
        "shm_store_relaxed(p->tail_word, p->tail); /* [tail]",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "the head is published with release",
        "shmrpc/_native/ring.h",
        "shm_store_release(c->head_word, c->head);",
        "shm_store_relaxed(c->head_word, c->head);",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "room in the release ring is told",
        "shmrpc/_native/ring.h",
        "    shm_store_release(r->head_word, r->head); /* [release-head]",
        "    /* [release-head]",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "the look after arming",
        "shmrpc/_native/consumer.c",
        "    bool ready = shm_consumer_ready(&self->ring);\n    SHM_STEP(consumer_looked);",
        "    bool ready = false;\n    SHM_STEP(consumer_looked);",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "the peer that waits for room is rung",
        "shmrpc/_native/consumer.c",
        "        self->room_due |= (char)shm_ringer_must_ring(&self->room);",
        "        ;",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "a peer that sleeps is rung for records",
        "shmrpc/_native/producer.c",
        "    bool rings = shm_ringer_must_ring(&self->doorbell);",
        "    bool rings = false;",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "a peer that waits for memory is rung from any thread",
        "shmrpc/_native/release_types.c",
        "    else if (self->on_ring && !interpreter_is_finalizing() && shm_ringer_must_ring(&self->room))\n"
        "        ring_for_room(self->on_ring);\n",
        "",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "who waits for room wants to be rung",
        "shmrpc/shm/channel.py",
        "producer.want_room()  # and look once more before waiting",
        "pass",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "releases wait for the records before them",
        "shmrpc/shm/channel.py",
        "self._homecoming.append((self.consumer.published(), entries))",
        "self._homecoming.append((0, entries))",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "a fresh wait for room has a fresh epoch",
        "shmrpc/shm/channel.py",
        "            producer.room_found()  # a fresh epoch for a fresh wait: the peer rings once for each\n",
        "",
        "tests/model/test_model_beside_the_code.py",
    ),
    Mutant(
        "no record overtakes those that wait",
        "shmrpc/shm/channel.py",
        "producer.corked = bool(self.outbox)",
        "producer.corked = False",
        "tests/model/test_model_beside_the_code.py",
    ),
    Mutant(
        "room is rung for when it is due",
        "shmrpc/shm/channel.py",
        "if consumer.room_due and not self._closed:",
        "if False:",
        "tests/model/test_model_beside_the_code.py",
    ),
    Mutant(
        "who was woken disarms",
        "shmrpc/shm/poller.py",
        "        member.consumer.disarm()\n        if member.consumer.ready():",
        "        if member.consumer.ready():",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "a member arms before it sleeps",
        "shmrpc/shm/poller.py",
        "                    and member.consumer.arm()\n",
        "",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "what waits is sent when there is room",
        "shmrpc/shm/session.py",
        "                channel.flush()",
        "                pass",
        "tests/model/test_model_is_the_code.py",
    ),
    Mutant(
        "a turn that stops the event loop is finished later",
        "shmrpc/shm/session.py",
        "            self._loop.call_soon(self._finish_turn)",
        "            pass",
        "tests/shm/test_session_stopped.py",
    ),
)
