"""Online learning: what was shown and what came of it moves A_h and theta, inside bounds and behind guard rails.

An answer is remembered as an *impression*; feedback that names its request id turns it into *examples*; one shard, the
leader, learns from the examples of all shards on *shadow* weights, and only what proves better than the *active* ones
is promoted. The item side of the score (vectors and biases) is never touched, so no index is ever rebuilt for it.
"""
