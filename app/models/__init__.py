"""The models behind the service: what belongs to each, where they lie, which one serves, and the change to the next."""
