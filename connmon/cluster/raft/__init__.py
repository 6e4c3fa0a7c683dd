"""Raft replication: one member of the group per node, the peer links, and the files in data_dir.

How a batch passes through, and which file to open:

- `replica` runs a `group` on the event loop; `group` puts the parts together and routes messages to them;
  `applier` proposes a batch, and applies what the group has committed to the state.
- `election` (who leads), `leader` (what to send to whom) and `follower` (what to believe of a leader) decide;
  `member` wraps pysyncobj, which keeps terms, votes and the commit rule, and `log` is its log by index.
  `pysyncobj_check` lists what that relies on.
- `messages` are what nodes send to each other, over the links of `transport`; `storage` is data_dir.
- `settings` has the timings and sizes; `status` is what a node reports of its membership.

Only `member` imports pysyncobj. `election`, `leader`, `follower`, `log`, `messages`, `settings` and `status`
do no I/O and read no clock: time is passed in. The state itself is in connmon.cluster.state.
"""
