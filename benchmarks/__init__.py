"""shmrpc against its rivals, measured in one run: `python -m benchmarks`, explained in README.md."""
