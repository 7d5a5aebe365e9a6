"""How calls travel between two processes of one host: segments, rings, doorbells, and the sessions over them.

From the bottom up: `layout` (every offset), `segment` (shared mappings), `doorbell` (wake-ups), `ring` and `slab` (records
and blocks), `channel` (the four composed), `envelope` and `protocol` (what records mean), `poller` (the event loop's
side), `handshake` and `liveness` (how two processes meet, and part), `outgoing`, `incoming` and `session` (calls),
`link` and `listener` (the client's and the server's end).
"""
