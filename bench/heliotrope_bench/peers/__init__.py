"""`heliotrope bench peers`: whole requests, the user's interest vector to ten unseen items, beside other engines.

peer.py                what a peer is
qdrant_edge.py, zvec.py, lancedb.py        engines in the calling process
pgvector.py, chroma.py, milvus_lite.py     servers
heliotrope_server.py, heliotrope_engine.py our own, both ways
server_process.py      a peer's server as a pinned process group
host.py                the process that holds one of them
closed_loop.py         callers, and what streams in meanwhile
catalogue.py           what they hold and are asked
readers.py             the users
truth.py               recall
contest.py             loading, tuning, rounds in turns
command.py             the command and its table
"""

from heliotrope_bench.peers.chroma import Chroma
from heliotrope_bench.peers.lancedb import LanceDb
from heliotrope_bench.peers.milvus_lite import MilvusLite
from heliotrope_bench.peers.peer import Peer
from heliotrope_bench.peers.pgvector import PgVector
from heliotrope_bench.peers.qdrant_edge import QdrantEdge
from heliotrope_bench.peers.zvec import Zvec

PEERS: dict[str, type[Peer]] = {
    "pgvector": PgVector,
    "chroma": Chroma,
    "milvus-lite": MilvusLite,
    "qdrant-edge": QdrantEdge,
    "zvec": Zvec,
    "lancedb": LanceDb,
}
"""By the name that the command line knows."""
