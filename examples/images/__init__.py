"""Images: a worker that computes on pictures and a front end that has them, two processes over one contract.

Read the modules in this order:

    api.py         the contract, which both sides import
    operations.py  what is computed: no I/O, no RPC
    worker.py      the contract served from the operations; results are born in shared memory
    front.py       a client: pictures are written into shared memory, results are kept after the connection is closed

and, for the demo around them:

    pictures.py    where the input comes from; files to arrays, arrays to files
    check.py       the same computation in this process, compared bit for bit
    rival.py       the same computation behind a hand-rolled Unix socket
    load.py        the calls and the clock
    demo.py        starts both workers, runs the load, writes the pictures, prints the report
"""
