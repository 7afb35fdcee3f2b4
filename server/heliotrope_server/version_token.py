"""Version tokens: which state a client has seen.

A token is `generation.shard:lsn[,shard:lsn...]`: the generation of the data folder's layout, and for each shard that
took part in the acknowledged call the log sequence number of its last record.
"""

from collections.abc import Mapping

from heliotrope_server.errors import InvalidArgumentError, VersionNotAvailableError


class VersionClock:
    """Makes and checks tokens for one shard. `ancestors` are the generations that this one was resharded from."""

    def __init__(self, generation: str, shard_index: int, ancestors: Mapping[str, Mapping[int, int]]) -> None:
        self._generation = generation
        self._shard_index = shard_index
        self._ancestors = ancestors

    def token(self, lsn: int) -> str:
        return f"{self._generation}.{self._shard_index}:{lsn}"

    def require(self, token: str, applied_lsn: int) -> None:
        """Raises unless the state of this shard includes what the token saw.

        VersionNotAvailableError for a state that this store does not have (a restored backup, another server);
        InvalidArgumentError for something that is no token.
        """
        generation, seen = parse_token(token)
        if generation == self._generation:
            wanted = seen.get(self._shard_index, 0)
            if wanted > applied_lsn:
                raise VersionNotAvailableError(
                    "VERSION_NOT_AVAILABLE",
                    f"the token names LSN {wanted} and this store ends at {applied_lsn}: it was restored or replaced",
                    value=wanted,
                    limit=applied_lsn,
                )
            return
        final = self._ancestors.get(generation)
        if final is None:
            raise VersionNotAvailableError(
                "VERSION_NOT_AVAILABLE",
                f"the token is of store generation {generation}; this store is {self._generation}",
                value=generation,
            )
        for shard, lsn in seen.items():
            if lsn > final.get(shard, 0):
                raise VersionNotAvailableError(
                    "VERSION_NOT_AVAILABLE",
                    f"the token names LSN {lsn} of shard {shard} in generation {generation}, which ended at "
                    f"{final.get(shard, 0)}",
                    value=lsn,
                    limit=final.get(shard, 0),
                )


def parse_token(token: str) -> tuple[str, dict[int, int]]:
    """Generation and the LSN by shard. Raises InvalidArgumentError."""
    generation, _, rest = token.partition(".")
    try:
        pairs = [part.split(":") for part in rest.split(",")]
        seen = {int(shard): int(lsn) for shard, lsn in pairs}
    except ValueError:
        seen = {}
    if not generation or not seen or len(token) > 4096:
        raise InvalidArgumentError(
            "INVALID_VERSION_TOKEN",
            f"{token[:64]!r} is no version token; pass what RecordEvents or UpdateProfile returned",
        )
    return generation, seen


def merge_tokens(tokens: list[str]) -> str:
    """One token for a call that several shards took part in."""
    seen: dict[int, int] = {}
    generation = ""
    for token in tokens:
        if token:
            generation, part = parse_token(token)
            for shard, lsn in part.items():
                seen[shard] = max(lsn, seen.get(shard, 0))
    if not seen:
        return ""
    return f"{generation}." + ",".join(f"{shard}:{lsn}" for shard, lsn in sorted(seen.items()))
