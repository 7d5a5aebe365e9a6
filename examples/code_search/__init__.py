"""Code search: an index worker and a front end, two processes over one contract.

Read the modules in this order:

    api.py       the contract, which both sides import
    index.py     the inverted index: no I/O, no RPC
    worker.py    the contract served from the index
    front.py     a client: indexes the standard library and asks one question

and, for the demo around them:

    sources.py   where the input comes from, and how a file becomes text
    check.py     the same questions answered by reading the sources, to compare with
    rival.py     the same contract over a hand-rolled Unix socket
    load.py      the queries and the clock
    demo.py      starts both workers, runs the load, prints the report
"""
