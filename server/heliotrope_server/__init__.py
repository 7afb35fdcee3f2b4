"""The gRPC server: profiles, retrieval, scoring and the shards that carry them."""
