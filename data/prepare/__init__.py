"""`isthmus data prepare`: from raw archives to shards, the same bits on every machine."""
