"""The names of the keys of the one shard that most tests use."""

from gymq.store.keys import Keys

keys = Keys()
