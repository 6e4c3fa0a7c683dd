"""The node, `connmond`: its one port, the Raft group (raft), the replicated state (state), metrics and dump
(export).

A newcomer starts at daemon and server. Nothing here is imported by applications or readers; what travels
between them and a node is in connmon.protocol.
"""
