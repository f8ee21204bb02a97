"""Where users live: sequences, states and counters in Redis; every key, every byte format, every atomic script."""
