"""Replication: a Raft group over PySyncObj, its transport, its files. Only `member` imports pysyncobj."""
