"""Programs that show shmrpc at work; run them from the repository's root."""
