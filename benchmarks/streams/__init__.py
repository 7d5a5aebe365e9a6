"""The benchmark of streams: small items one way, turns both ways, arrays."""
