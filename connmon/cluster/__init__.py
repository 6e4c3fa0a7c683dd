"""What lives in connmond: the replicated state, the Raft group, and the one port."""
