"""`python slow_dump.py ADDRESS RANK WORLD_SIZE` writes the small dataset, a triplet per shard, and
takes its time, so that it can be killed meanwhile."""

import sys
import time

from small_dump import make_writer, stylise

if __name__ == "__main__":
    rank, world_size = map(int, sys.argv[2:])
    writer = make_writer(sys.argv[1], shard_size=1, rank=rank, world_size=world_size)
    for shard in writer.missing_shards():
        time.sleep(0.05)
        writer.write_shard(shard, stylise(writer.shard_pairs(shard)))
