"""What goes around a call: code that sees every call of a stub or a server, and may change, refuse, repeat or time it.

The form of it is in `call` and `chain`. Shipped interceptors are in `logging`, `otel` and `prometheus`, each with its own
dependencies; nothing of them is imported here.
"""
