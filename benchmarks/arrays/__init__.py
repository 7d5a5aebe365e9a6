"""The benchmark of arrays and bytes: what large payloads cost in time, memory and copies, beside the rivals."""
