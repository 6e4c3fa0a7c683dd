"""The replicated state machine, and what readers get of it. Pure: no I/O, no clock, no randomness.

`machine.StateMachine` applies batches to `contents`, which are the tables (`tables`, `groups`) of `records`;
`reported` takes in what a report says of one process. `checkpoint` encodes it all. Readers get rows by
`answers`, `call_site_rows` and `lookups`, cut into frames by `answer_frames`; `figures` aggregates, `judging`
makes verdicts of `pool_facts`. `history` and `digest` are one node's own. Nothing in here knows Raft,
connections or consoles.
"""
