/* doorbell.pml: the doorbell protocol, the twin of model_*.py for spin, with more records and sleeps.
 *
 * A sends N records through a ring of RING places to B, which sleeps between them and takes at most BUDGET at once. With LENDS
 * each record has the one block of A's memory, which B releases, and A waits until it is home. With ANNOUNCES any record may be rung for ahead. BELL says how many rings a doorbell holds
 * (an eventfd, where only zero or not matters, and a pipe: 1; a pipe that is read in parts: 2).
 *
 * Memory is that of total store order: each process has a store buffer, which another process moves to the memory, one entry at
 * any time. No process loads a word that it writes itself (each keeps a private copy), so loads need not look into the buffer.
 * KERNEL_FENCES: what is done to a doorbell waits for the buffer, as a system call does on x86. Without it there are more
 * interleavings.
 *
 * What must hold: records come in order, each once, and are not overwritten (assert); a block is not given away while it is lent,
 * and comes home once (assert); and nobody sleeps beside what it waits for, which is an invalid end state.
 *
 * What is in one `atomic` has at most one step that another process can see, at its beginning, and then what is private, and
 * stores into the own buffer. A fence may stand before that step: that it was passed is seen by nobody.
 *
 * Each mutant is a macro: see test_spin.py.
 */
#ifndef N
#define N 3
#endif
#ifndef RING
#define RING 1
#endif
#ifndef BUDGET
#define BUDGET 1
#endif
#ifndef BELL
#define BELL 1
#endif
#define ENTRIES 2

#define TAIL 0
#define HEAD 1
#define DOORBELL_EPOCH 2
#define ROOM_EPOCH 3
#define RELEASE_TAIL 4
#define RELEASE_HEAD 5
#define BLOCK 6
#define RECORDS 7
#define RELEASES (RECORDS + RING)
#define WORDS (RELEASES + ENTRIES)

byte memory[WORDS];
chan buffer_a = [10] of { byte, byte };
chan buffer_b = [10] of { byte, byte };
byte bell_a, bell_b;

active proctype drains()
{
    byte word, value;
end:
    do
    :: atomic { buffer_a ? word, value -> memory[word] = value; word = 0; value = 0 }
    :: atomic { buffer_b ? word, value -> memory[word] = value; word = 0; value = 0 }
    od
}

#define store(buffer, word, value) buffer ! word, value
#define fence(buffer) empty(buffer)
#ifdef KERNEL_FENCES
#define system_call(buffer) empty(buffer)
#else
#define system_call(buffer) skip
#endif

inline ring_if(needed, buffer, bell)
{
    if
    :: needed -> atomic { system_call(buffer) -> bell = (bell < BELL -> bell + 1 : bell); needed = false }
    :: else
    fi
}

/* ---- wake.h ---- */

inline arm(buffer, word, epoch)
{
    atomic {
#ifdef FLAG
        epoch = 1;
        store(buffer, word, 1);
#else
        if
        :: epoch % 2 == 0 -> epoch++; store(buffer, word, epoch)
        :: else
        fi;
#endif
#ifndef NO_SLEEPER_FENCE
        fence(buffer)
#endif
    }
}

inline disarm(buffer, word, epoch) /* in an atomic */
{
#ifdef FLAG
    if
    :: epoch == 1 -> epoch = 0; store(buffer, word, 0)
    :: else
    fi
#else
    if
    :: epoch % 2 == 1 -> epoch++; store(buffer, word, epoch)
    :: else
    fi
#endif
}

inline must_ring(buffer, word, rung, rings)
{
    atomic {
#ifndef NO_RINGER_FENCE
        fence(buffer) ->
#endif
        seen = memory[word];
#ifdef FLAG
        rings = (seen == 1 && rung == 0);
        rung = seen;
#else
        rings = (seen % 2 == 1 && seen != rung);
#ifndef FORGETS
        rung = (rings -> seen : rung);
#endif
#endif
        seen = 0
    }
}

/* ---- A: producer.c, and Channel with flush and what it calls ---- */

#define WRITE store(buffer_a, RECORDS + published % RING, published + 1)
#define PUBLISH store(buffer_a, TAIL, published + 1)

inline publish_next() /* the oldest record that is made and not published; `ok`: there was room */
{
#ifdef LOOKS_BEFORE_IT_PUBLISHES
    must_ring(buffer_a, DOORBELL_EPOCH, rung, rings);
#endif
    atomic {
        if
        :: published + 1 - head > RING -> head = memory[HEAD]; assert(head <= published)
        :: else
        fi;
        ok = (published + 1 - head <= RING);
        if
        :: ok ->
#ifdef PUBLISHES_BEFORE_IT_WRITES
            PUBLISH; WRITE;
#else
            WRITE; PUBLISH;
#endif
            published++
        :: else
        fi
    };
#ifndef LOOKS_BEFORE_IT_PUBLISHES
    if
    :: ok -> must_ring(buffer_a, DOORBELL_EPOCH, rung, rings)
    :: else
    fi;
#endif
    ring_if(rings, buffer_a, bell_b)
}

inline take_home() /* Channel.collect; `home`: something came */
{
    atomic {
        home = (memory[RELEASE_TAIL] != release_head);
        if
        :: !home
        :: else ->
            assert(memory[RELEASES + release_head % ENTRIES] == lent && lent != 0);
            lent = 0;
            release_head++;
            store(buffer_a, RELEASE_HEAD, release_head);
            wants_memory = false
        fi
    }
}

inline try_all() /* _empty_outbox and _tell_home; `done`: nothing waits any more */
{
    ok = true;
    do
    :: published < made && ok -> publish_next()
    :: else -> break
    od;
    if
    :: wants_memory -> take_home(); home = false
    :: else
    fi;
    atomic { done = (ok && !wants_memory); ok = false }
}

active proctype a()
{
    byte seen, made, published, head, room_epoch, rung, release_head, lent;
    bool rings, ok, done, home, waiting_for_room, wants_memory, clears;

    do
    :: made < N && !wants_memory -> /* the application sends one more */
#ifdef LENDS
        if
        :: lent != 0 -> take_home(); home = false
        :: else
        fi;
#ifndef LENDS_WHAT_IS_LENT
        if
        :: lent != 0 -> wants_memory = true; goto flush
        :: else
        fi;
#endif
        atomic { lent = made + 1; store(buffer_a, BLOCK, lent) };
#endif
#ifdef ANNOUNCES
        if
        :: published == made -> /* nothing waits in the outbox: perhaps */
            atomic {
                seen = memory[DOORBELL_EPOCH];
                rings = (seen % 2 == 0 || seen != rung);
                rung = (seen % 2 == 1 -> seen : rung);
#ifdef ANNOUNCES_SILENTLY
                rings = false;
#endif
                seen = 0
            };
            ring_if(rings, buffer_a, bell_b)
        :: true
        fi;
#endif
        made++;
        if
        :: published + 1 == made -> /* nothing is before it; else it is corked */
            publish_next();
            if
            :: !ok -> goto flush
            :: else -> ok = false
            fi
        :: else
        fi
    :: bell_a > 0 ->
#ifdef CLEARS_LAST
        clears = true;
#else
        atomic { system_call(buffer_a) -> bell_a-- };
#endif
flush:
        ok = false;
        if
        :: published == made && !wants_memory -> goto flushed
        :: else
        fi;
        atomic {
            if
            :: waiting_for_room ->
#ifndef OLD_ROOM_EPOCH
                disarm(buffer_a, ROOM_EPOCH, room_epoch);
#endif
                waiting_for_room = false
            :: else
            fi
        };
        try_all();
        if
        :: !done ->
            arm(buffer_a, ROOM_EPOCH, room_epoch);
            waiting_for_room = true;
#ifndef NO_SECOND_LOOK_FOR_ROOM
            try_all();
#endif
            atomic {
                if
                :: done -> disarm(buffer_a, ROOM_EPOCH, room_epoch); waiting_for_room = false
                :: else
                fi
            }
        :: else
        fi;
        done = false;
flushed:
        if
        :: clears -> atomic { system_call(buffer_a) -> bell_a--; clears = false }
        :: else
        fi
    :: made == N && published == N && !wants_memory -> break
    od
}

/* ---- B: Poller, consumer.c, release_types.c ---- */

inline is_ready(answer)
{
    answer = (head != tail || memory[TAIL] != tail)
}

inline take_chunk()
{
    do
    :: count < BUDGET ->
        atomic {
            if
            :: head == tail -> tail = memory[TAIL]; assert(tail >= head && tail - committed <= RING)
            :: else
            fi;
            if
            :: head == tail -> break
            :: else
            fi
        };
#ifdef GIVES_ROOM_BEFORE_IT_COPIES
        atomic { store(buffer_b, HEAD, head + 1); committed = head + 1 };
#endif
        atomic {
            assert(memory[RECORDS + head % RING] == head + 1); /* in order, each once, and as it was written */
            head++;
            count++
        }
    :: else -> break
    od;
    if
    :: count > 0 ->
#ifndef GIVES_ROOM_BEFORE_IT_COPIES
        atomic { store(buffer_b, HEAD, head); committed = head };
#endif
        count = 0;
#ifndef NEVER_RINGS_FOR_ROOM
        must_ring(buffer_b, ROOM_EPOCH, rung, due)
#endif
    :: else
    fi
}

inline release() /* what came goes home at once */
{
    do
    :: release_tail < head ->
        atomic {
            assert(memory[BLOCK] == release_tail + 1);
            store(buffer_b, RELEASES + release_tail % ENTRIES, release_tail + 1);
            release_tail++;
            store(buffer_b, RELEASE_TAIL, release_tail)
        };
#ifndef NEVER_RINGS_FOR_MEMORY
        must_ring(buffer_b, ROOM_EPOCH, release_rung, rings);
        ring_if(rings, buffer_b, bell_a)
#endif
    :: else -> break
    od
}

active proctype b()
{
    byte seen, head, committed, tail, epoch, rung, release_rung, count, release_tail;
    bool awake = true, rings, due, found;

    do
    :: awake ->
        is_ready(found);
        if
        :: found -> goto on_records
        :: !found /* keeps looking */
        :: !found ->
            arm(buffer_b, DOORBELL_EPOCH, epoch);
#ifndef NO_SECOND_LOOK
            is_ready(found);
#endif
            atomic {
                if
                :: found -> disarm(buffer_b, DOORBELL_EPOCH, epoch); found = false
                :: else -> awake = false
                fi
            }
        fi
    :: bell_b > 0 ->
        atomic {
            system_call(buffer_b) -> bell_b--;
#ifndef NO_DISARM
#ifndef DISARMS_LAST
            disarm(buffer_b, DOORBELL_EPOCH, epoch)
#endif
#endif
        };
on_records:
        found = false;
        take_chunk();
#ifdef LENDS
        release();
#endif
        ring_if(due, buffer_b, bell_a);
        atomic {
#ifdef DISARMS_LAST
            disarm(buffer_b, DOORBELL_EPOCH, epoch);
#endif
            awake = true
        }
    :: head == N -> break
    od
}
