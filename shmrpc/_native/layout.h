/* layout.h: the fixed offsets of a base segment, for C. shmrpc/shm/layout.py owns them and draws them; a test compares
 * the two. All words are little-endian u64; all offsets are bytes.
 */
#ifndef SHMRPC_LAYOUT_H
#define SHMRPC_LAYOUT_H

/* The cursor page: one word to a 128-byte line, so that no two words share a cache line or a prefetched pair. */
#define SHM_CURSOR_TAIL 0x1000          /* end of what I have published in my record ring */
#define SHM_CURSOR_HEAD 0x1080          /* my position in the peer's record ring */
#define SHM_CURSOR_RELEASE_TAIL 0x1100  /* end of what I have published in my release ring */
#define SHM_CURSOR_RELEASE_HEAD 0x1180  /* my position in the peer's release ring */
#define SHM_CURSOR_DOORBELL_EPOCH 0x1200 /* odd: ring me when you publish */
#define SHM_CURSOR_ROOM_EPOCH 0x1280    /* odd: ring me when you consume or release */
#define SHM_CURSOR_END 0x1300

/* A record: three header words, then the payload, padded to eight bytes. */
#define SHM_RECORD_HEADER 24
#define SHM_RECORD_ALIGN 8
#define SHM_KIND_PAD 0                  /* one word only: skip to the end of the ring */
#define SHM_KIND_REQUEST 1              /* the numbers of envelope.py that the hot path knows */
#define SHM_KIND_REPLY 2
#define SHM_FLAG_IN_BLOCK 1
#define SHM_FLAG_HAS_BUFFERS 8

#define SHM_RELEASE_ENTRY 16            /* block number, generation */
#define SHM_GRANULE 1024                /* a slab's unit of allocation */

#endif
