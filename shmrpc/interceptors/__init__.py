"""What goes around a call: code that sees every call of a stub or a server, and may change, refuse, repeat or time it."""
